"""Draws docs/figures/models.png: ``python -m docs.figures.models`` or ``python docs/figures/models.py``.

What is trained, cached and how wide it is, is not written here but asked of the tiny models under their presets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from reca.models.base import UnifiedModel

TRAINED, PARTLY, FROZEN, DATA = "#bfe3d0", "#fbe6b5", "#e3e6ec", "white"
INK, SOFT = "#1b1d22", "#5a6070"
COLUMNS = {"condition": 1.35, "connector": 3.3, "reader": 5.9, "drawer": 8.65, "target": 11.35}
WIDTHS = {"condition": 1.9, "connector": 1.6, "reader": 3.0, "drawer": 2.0, "target": 1.9}


@dataclass(frozen=True)
class Part:
    """A box: where it stands, what is in it, and the parameters that it is."""

    column: str
    text: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A row of the figure."""

    preset: str
    title: str
    parts: Sequence[Part]
    sequence: str
    loss: str


FAMILIES = (
    Family(
        "janus_tiny",
        "Janus, Janus-Pro\nautoregressive",
        (
            Part("condition", "SigLIP\nvision_model", ("network.model.vision_model.",)),
            Part("connector", "aligner", ("network.model.aligner.",)),
            Part("reader", "Llama", ("network.model.language_model.", "network.lm_head.")),
            Part("drawer", "generation_*", ("network.model.generation_",)),
            Part("target", "VQ tokenizer\nvqmodel", ("network.model.vqmodel.",)),
        ),
        "[user] [boi] h_v [eoi] template [assistant] [boi] codes",
        "cross-entropy of\nthe next code",
    ),
    Family(
        "openuni_tiny",
        "OpenUni\nflow",
        (
            Part("condition", "InternViT\nlmm.vision_model", ("network.lmm.vision_model.",)),
            Part("connector", "mlp1", ("network.lmm.mlp1.",)),
            Part("reader", "Qwen2 (lmm)", ("network.lmm.language_model.",)),
            Part(
                "drawer",
                "queries, connector,\nprojector, SANA",
                ("network.meta_queries", "network.connector.", "network.projector.", "network.transformer."),
            ),
            Part("target", "DC-AE\nvae", ("network.vae.",)),
        ),
        "[user] <img> h_v </img> template [assistant] <img> queries",
        "|v − (ε − x)|²,\nuniform t",
    ),
    Family(
        "showo_tiny",
        "Show-o\nmasked tokens",
        (
            Part("condition", "CLIP, layer −2\n(or codes at half size)", ("clip.",)),
            Part("connector", "mm_projector *", ("mm_projector.",)),
            Part("reader", "Phi *", ("showo.model.",)),
            Part("drawer", "lm_head", ("showo.lm_head.",)),
            Part("target", "MAGVIT-v2", ("magvit.",)),
        ),
        "[mmu] [soi] h_v [eoi] template … [soi] codes, some hidden [eoi]",
        "cross-entropy of\nthe hidden codes",
    ),
    Family(
        "bagel_tiny",
        "BAGEL\nflow",
        (
            Part("condition", "SigLIP NaViT\nvit_model", ("network.vit_model.",)),
            Part("connector", "connector", ("network.connector.",)),
            Part("reader", "Qwen2 MoT, reading expert", ("network.language_model.",)),
            Part(
                "drawer",
                "drawing expert (*_moe_gen),\nvae2llm, llm2vae, time",
                ("network.vae2llm.", "network.llm2vae.", "network.time_embedder."),
            ),
            Part("target", "FLUX autoencoder", ("autoencoder.",)),
        ),
        "h_v  ·  template  ·  x_t   (gradient stops at the reading expert)",
        "|v − (ε − x)|²,\nt = sigmoid(N(0, 1))",
    ),
    Family(
        "harmon_tiny",
        "Harmon\nmasked autoregressive",
        (
            Part(
                "condition",
                "KL16 latents →\nMAR encoder",
                ("network.mar.encoder_", "network.mar.z_proj", "network.mar.fake_latent"),
            ),
            Part("connector", "proj_in", ("network.proj_in.",)),
            Part("reader", "Qwen2.5", ("network.llm.",)),
            Part("drawer", "proj_out, MAR decoder,\ndiffusion head", ("network.proj_out.", "network.mar.")),
            Part("target", "KL16\nvae", ("network.vae.",)),
        ),
        "[user] 0.1-gradient(h_v) template [assistant] visible latents",
        "ε² + variance bound\nof the hidden latents",
    ),
)


def load(family: Family) -> UnifiedModel:
    """The tiny model under its preset, with random weights."""
    torch.manual_seed(0)
    model: UnifiedModel = import_module(f"tools.tiny_bases.{family.preset}").build()
    return model


def split(family: Family, model: UnifiedModel) -> dict[str, list[str]]:
    """Parameter names by column; the first box whose prefix fits has it, BAGEL's drawing expert apart."""
    found: dict[str, list[str]] = {part.column: [] for part in family.parts}
    for name, _ in model.named_parameters():
        if "mar.class_emb" in name:  # in Harmon's checkpoints, and read by nothing
            continue
        if "_moe_gen." in name:
            found["drawer"].append(name)
            continue
        column = next((part.column for part in family.parts if name.startswith(part.prefixes)), None)
        if column is None:
            raise ValueError(f"{family.preset}: no box of the figure holds {name}")
        found[column].append(name)
    return found


def color(names: Sequence[str], trained: set[str]) -> str:
    """Of a box: green if all of it is trained, yellow if some, grey if nothing."""
    count = sum(name in trained for name in names)
    return FROZEN if not count else TRAINED if count == len(names) else PARTLY


def draw_row(axes: Axes, family: Family, top: float) -> None:
    """One family."""
    model = load(family)
    trained, columns = set(model.trainable()), split(family, model)
    middle = top - 0.55
    axes.text(-1.75, middle + 0.02, family.title, va="center", fontsize=10, color=INK, fontweight="bold")
    for part in family.parts:
        x, width = COLUMNS[part.column], WIDTHS[part.column]
        fill = color(columns[part.column], trained)
        box = FancyBboxPatch(
            (x - width / 2, middle - 0.3), width, 0.6, boxstyle="round,pad=0.03", facecolor=fill, edgecolor=SOFT
        )
        axes.add_patch(box)
        axes.text(x, middle, part.text, ha="center", va="center", fontsize=8, color=INK)
    for left, right in (("condition", "connector"), ("connector", "reader"), ("reader", "drawer")):
        start = COLUMNS[left] + WIDTHS[left] / 2 + 0.04
        end = COLUMNS[right] - WIDTHS[right] / 2 - 0.04
        axes.annotate("", (end, middle), (start, middle), arrowprops={"arrowstyle": "->", "color": SOFT})
    start, end = COLUMNS["target"] - WIDTHS["target"] / 2 - 0.04, COLUMNS["drawer"] + WIDTHS["drawer"] / 2 + 0.04
    axes.annotate("", (end, middle), (start, middle), arrowprops={"arrowstyle": "->", "color": SOFT, "ls": "--"})
    cached = "h_v cached" if "semantic" in model.cacheable else "h_v computed anew: its encoder is trained"
    axes.text(COLUMNS["condition"] - 0.95, middle - 0.47, cached, fontsize=7, color=SOFT, va="center")
    axes.text(COLUMNS["reader"], middle - 0.47, family.sequence, fontsize=7, color=SOFT, ha="center", va="center")
    axes.text(
        COLUMNS["drawer"],
        middle + 0.49,
        family.loss.replace("\n", " "),
        fontsize=7.5,
        color=INK,
        ha="center",
        va="center",
    )
    axes.text(COLUMNS["target"], middle - 0.47, "target cached", fontsize=7, color=SOFT, ha="center", va="center")


def main() -> None:
    """Write the figure beside this file."""
    figure = Figure(figsize=(14.2, 8.0), dpi=110, facecolor="white")
    axes = figure.add_axes((0.005, 0.01, 0.99, 0.98))
    axes.set_xlim(-1.9, 12.5)
    axes.set_ylim(-0.75, 7.1)
    axes.axis("off")
    heads = {"condition": "sees the image", "connector": "into the model", "reader": "reads h_v and template"}
    heads |= {"drawer": "draws", "target": "makes the target"}
    for column, text in heads.items():
        axes.text(COLUMNS[column], 6.9, text, ha="center", fontsize=10, color=SOFT)
    for number, family in enumerate(FAMILIES):
        draw_row(axes, family, 6.7 - 1.4 * number)
    for number, (fill, text) in enumerate(((TRAINED, "trained"), (PARTLY, "trained in part"), (FROZEN, "frozen"))):
        axes.add_patch(
            FancyBboxPatch(
                (-1.7 + 1.9 * number, -0.65), 0.3, 0.16, boxstyle="round,pad=0.02", facecolor=fill, edgecolor=SOFT
            )
        )
        axes.text(-1.3 + 1.9 * number, -0.57, text, va="center", fontsize=8, color=INK)
    note = (
        "* Show-o: L_RecA runs projector and embedding table without gradient; they learn from questions only.   "
        "Janus: as in janus_tiny"
    )
    axes.text(4.1, -0.57, note, va="center", fontsize=8, color=SOFT)
    path = Path(__file__).with_suffix(".png")
    figure.savefig(path, metadata={"Software": None})
    print(path)


if __name__ == "__main__":
    main()
