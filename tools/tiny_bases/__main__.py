"""Make the base of a tiny preset, or the scene detector, again: ``python -m tools.tiny_bases [NAME]``.

``model=janus_tiny`` (the default) takes about an hour and a half on one core, ``scene_detector`` an hour, the other
bases a few minutes each.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from reca.config import ROOT, ConfigError
from reca.runtime.errors import UserError
from tools.tiny_bases import detector, janus_recipe, short_recipe


def main(arguments: Sequence[str]) -> int:
    """Parse the command line and train one base or the detector."""
    choices = ["model=janus_tiny", *(f"model={name}" for name in short_recipe.PRESETS), "scene_detector"]
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_bases", description=__doc__)
    parser.add_argument("name", nargs="?", default=choices[0], choices=choices, metavar="NAME", help=", ".join(choices))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads, which change the last bits; default: 2, or 1 (Janus)")
    parser.add_argument("--out", type=Path, help="default: data/bases/NAME")
    parser.add_argument("--state", type=Path, default=ROOT / ".reca/pretrain", help="folder of finished stages")
    options = parser.parse_args(arguments)
    name = options.name.removeprefix("model=")
    out = options.out or ROOT / "data/bases" / name
    torch.set_num_threads(options.threads or (2 if name in short_recipe.PRESETS else 1))
    if name == "scene_detector":
        detector.train_detector(out, options.seed)
    elif name == "janus_tiny":
        janus_recipe.pretrain(janus_recipe.JanusRecipe(options.seed), out, options.state)
    else:
        changes = short_recipe.PRESETS[name].RECIPE_CHANGES
        short_recipe.pretrain(short_recipe.ShortRecipe(name, options.seed, **changes), out, options.state)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ConfigError, UserError) as error:
        print(f"tools.tiny_bases: {error}", file=sys.stderr)
        sys.exit(2)
