"""How often is GenEval's judge right? It is asked about images whose truth is known.

    python -m bench.geneval_judge compose FOLDER     # needs the cut-outs: apt-get install tuxpaint-stamps-default
    python -m bench.geneval_judge judge FOLDER       # needs the judges' weights, fetched where they are missing
    python -m bench.geneval_judge judge FOLDER evaluate.geneval.detector=mmdet/mmdet-swin-s@geneval

`compose` lays photographic cut-outs over plain grounds (reca/data/synthetic/collages.py) for GenEval's own prompts, as
far as there are cut-outs of what they name: single_object, two_object, counting and position. Prompts about colours
are left out, for nobody has named the colours of photographs. FOLDER gets GenEval's layout, and truth.jsonl, a line an
image:

    right      every even image of a prompt shows what it asks for, every odd one has one fault
    fault      which: another thing, one too many, one too few, the other way round
    objects    everything that is to be seen: class, file of the cut-out, box, mask (COCO's run lengths)

GenEval's rules are then given the masks themselves, as a detector without fault would see them. They have to call the
images right and wrong as they are; where they do not, that is a mistake of ours, and the exit status is 1.

`judge` asks the real one and counts, for each task, the right images that it calls right and the wrong ones that it
calls wrong. Things on plain grounds are not what models draw: this tells whether the judge works and what it overlooks
even here, not how often it errs on drawn images. The answer goes to FOLDER/judge.json.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reca.config import ROOT
from reca.config import compose as composed_config
from reca.data.synthetic.collages import PACKAGE_FOLDER, Cutouts, arrange, compose, objects, read_cutouts
from reca.evaluation import geneval_rules as rules
from reca.evaluation.benchmark import ItemScore, load_benchmark
from reca.evaluation.benchmarks.geneval.prompts import OBJECTS, Entry, generate
from reca.evaluation.download import fetch
from reca.evaluation.samples import save_png
from reca.runtime.errors import UserError
from reca.runtime.files import write_json, write_text

TASKS = ("single_object", "two_object", "counting", "position")
TRUTH = "truth.jsonl"
Truth = dict[str, Any]


@dataclass(frozen=True)
class Content:
    """What an image is to show."""

    classes: tuple[str, ...]
    where: str | None = None
    """How the first stands to the second."""
    fault: str | None = None
    """What makes it wrong; ``None``: it is right."""


@dataclass(frozen=True)
class Seen:
    """A thing as a detector without fault reports it."""

    name: str
    box: Sequence[float]
    score: float = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compose or judge; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    composing = verbs.add_parser("compose", help="write images and their truth")
    judging = verbs.add_parser("judge", help="ask GenEval's judge about them")
    for verb in (composing, judging):
        verb.add_argument("folder", type=Path, metavar="FOLDER")
    composing.add_argument("--cutouts", type=Path, default=PACKAGE_FOLDER, metavar="DIR", help="default: the package's")
    composing.add_argument("--images", type=int, default=4, help="for each prompt, half of them wrong (default 4)")
    composing.add_argument("--size", type=int, default=512, help="side in pixels (default 512)")
    composing.add_argument("--seed", type=int, default=0)
    judging.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="evaluate.geneval.detector=…, …")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "compose":
            truths = write(options.folder, read_cutouts(options.cutouts), options.images, options.size, options.seed)
            return report_rules(truths)
        judge(options.folder, options.overrides)
    except UserError as error:
        print(f"geneval_judge: {error}", file=sys.stderr)
        return 2
    return 0


def write(folder: Path, cutouts: Cutouts, images: int, size: int, seed: int) -> list[Truth]:
    """Write the images of every prompt that there are cut-outs for, and the truth about them.

    Raises:
        UserError: There are cut-outs for none.
    """
    classes = [name for name in OBJECTS if name in cutouts]
    truths = []
    for number, entry in enumerate(generate()):
        if entry["tag"] not in TASKS or any(clause["class"] not in cutouts for clause in entry["include"]):
            continue
        prompt_id = f"{number:05d}"
        write_text(folder / prompt_id / "metadata.jsonl", json.dumps(entry) + "\n")
        (folder / prompt_id / "samples").mkdir(exist_ok=True)
        for index in range(images):
            rng = random.Random(f"geneval-judge-{seed}-{prompt_id}-{index}")
            content = wrong(entry, classes, rng) if index % 2 else right(entry)
            collage = arrange(content.classes, cutouts, rng, content.where)
            pixels, masks = compose(collage, size)
            file = f"{prompt_id}/samples/{index:04d}.png"
            save_png(pixels, folder / file)
            truth = {"file": file, "category": entry["tag"], "right": content.fault is None, "fault": content.fault}
            truths.append(truth | {"metadata": entry, "objects": objects(collage, masks)})
    if not truths:
        raise UserError("no prompt of GenEval asks for what these cut-outs show: name them as GenEval does, 'A cup.'")
    write_text(folder / TRUTH, "".join(json.dumps(truth) + "\n" for truth in truths))
    return truths


def right(entry: Entry) -> Content:
    """What a prompt asks for."""
    include = entry["include"]
    if entry["tag"] == "position":
        target, moved = include
        return Content((moved["class"], target["class"]), moved["position"][0])
    return Content(tuple(clause["class"] for clause in include for _ in range(clause["count"])))


def wrong(entry: Entry, classes: Sequence[str], rng: random.Random) -> Content:
    """What a prompt asks for, but for one fault."""
    asked = right(entry)
    if entry["tag"] == "position":
        return Content(asked.classes[::-1], asked.where, "the other way round")
    if entry["tag"] == "counting":
        if rng.random() < 0.5:
            return Content((*asked.classes, asked.classes[0]), fault="one too many")
        return Content(asked.classes[1:], fault="one too few")
    other = rng.choice([name for name in classes if name not in asked.classes])
    return Content((*asked.classes[:-1], other), fault="another thing")


def report_rules(truths: Sequence[Truth]) -> int:
    """Say of how many images GenEval's rules, given the masks themselves, think otherwise; the exit status."""
    mistaken = [truth["file"] for truth in truths if by_rules(truth) != truth["right"]]
    prompts = len({truth["metadata"]["prompt"] for truth in truths})
    print(f"{len(truths)} images of {prompts} prompts; given the masks, the rules are mistaken about {len(mistaken)}")
    return 1 if mistaken else 0


def by_rules(truth: Truth) -> bool:
    """The verdict of GenEval's rules when every thing is seen as it is, and nothing else is."""
    seen = rules.select([Seen(one["class"], one["box"]) for one in truth["objects"]], truth["category"])
    return rules.evaluate_image(seen, truth["metadata"], lambda *_: []).correct


def judge(folder: Path, overrides: Sequence[str]) -> None:
    """Ask GenEval's judge about every image, print and write how often it is right.

    Raises:
        UserError: The images or the judges are missing.
    """
    truths = read_truth(folder)
    images = max(int(Path(truth["file"]).stem) for truth in truths) + 1
    config = composed_config(["evaluate=geneval", f"+evaluate.geneval.images_per_prompt={images}", *overrides])
    fetch(config, ROOT)
    bench: Any = load_benchmark("geneval", config, ROOT)
    rows = [row for row in bench.existing_samples(folder) if not row.get("missing")]
    found = agreement(truths, bench.score(rows, folder))
    print(table(found))
    write_json(folder / "judge.json", {"judge": bench.judge.model_dump(), "agreement": found})


def read_truth(folder: Path) -> list[Truth]:
    """What `compose` wrote.

    Raises:
        UserError: It is not there.
    """
    path = folder / TRUTH
    if not path.is_file():
        raise UserError(f"{path} is missing: run `python -m bench.geneval_judge compose {folder}` first")
    return [json.loads(line) for line in path.read_text().splitlines()]


def agreement(truths: Sequence[Truth], items: Sequence[ItemScore]) -> dict[str, dict[str, int]]:
    """Of each task: how many images there are of either kind, and how many of them the judge told as what they are."""
    verdicts = {file: value for item in items for file, value in zip(item.files, item.values, strict=True)}
    found = {task: dict.fromkeys(("right", "right_told", "wrong", "wrong_told"), 0) for task in TASKS}
    for truth in truths:
        kind = "right" if truth["right"] else "wrong"
        found[truth["category"]][kind] += 1
        found[truth["category"]][f"{kind}_told"] += verdicts.get(truth["file"]) == float(truth["right"])
    return found


def table(found: Mapping[str, Mapping[str, int]]) -> str:
    """The agreement for people."""
    lines = [f"{'task':15} {'right, told so':>16} {'wrong, told so':>16}"]
    for task, one in found.items():
        cells = [f"{one[f'{kind}_told']} of {one[kind]}" for kind in ("right", "wrong")]
        lines.append(f"{task:15} {cells[0]:>16} {cells[1]:>16}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
