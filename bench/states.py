"""Memory of weights, gradients and moments: full training, adapters, and low-bit moments.

    python -m bench.states

Counted from the parameters of the published sizes on the meta device, without activations and temporary tensors; no GPU
is needed. Weights and gradients are float32; with bfloat16 training, frozen matrices are bfloat16 if the files are
(``…_bfloat16_gb``; confirmed for BAGEL). GB are 10⁹ bytes.
"""

import argparse
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import torch

from bench.models import build
from bench.sizes import FAMILIES, PUBLISHED
from reca.config import AdapterSection
from reca.runtime.files import write_json
from reca.training.lora import adapt
from reca.training.low_bit_adamw import StateDtype, state_bytes
from reca.training.precision import bf16_safe_parameters

RESULT = Path(__file__).parent / "results" / "states.json"
META = torch.device("meta")


def rows(family: str, ranks: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a row for full training and each rank, with each dtype of the moments."""
    for rank in [None, *ranks]:
        model = build(family, "real", META)
        if rank is not None:
            with redirect_stdout(StringIO()):
                adapt(model, AdapterSection(rank=rank, alpha=2 * rank), seed=0)
        trained = [model.get_parameter(name) for name in model.trainable()]
        weights, gradients = (4 * sum(value.numel() for value in values) for values in (model.parameters(), trained))
        lower = weights - 2 * sum(model.get_parameter(name).numel() for name in bf16_safe_parameters(model))
        for moments in get_args(StateDtype):
            state = sum(state_bytes(value, moments) for value in trained)
            yield {
                "model": PUBLISHED[family],
                "rank": rank,
                "moments": moments,
                "trained": gradients // 4,
                "weights_gb": round(weights / 1e9, 2),
                "weights_bfloat16_gb": round(lower / 1e9, 2),
                "gradients_gb": round(gradients / 1e9, 2),
                "moments_gb": round(state / 1e9, 2),
                "together_gb": round((weights + gradients + state) / 1e9, 1),
                "together_bfloat16_gb": round((lower + gradients + state) / 1e9, 1),
            }


def main() -> None:
    """Count, print and write the answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--ranks", nargs="+", type=int, default=[16, 64])
    arguments = parser.parse_args()
    results = [row for family in arguments.families for row in rows(family, arguments.ranks)]
    for row in results:
        print("  ".join(f"{value}" for value in row.values()), flush=True)
    write_json(RESULT, results)


if __name__ == "__main__":
    main()
