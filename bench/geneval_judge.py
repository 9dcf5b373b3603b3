"""Accuracy of GenEval's judge on images with known ground truth.

    python -m bench.geneval_judge compose FOLDER     # needs the cut-outs: apt-get install tuxpaint-stamps-default
    python -m bench.geneval_judge judge FOLDER       # needs the judges' weights; missing ones are downloaded
    python -m bench.geneval_judge judge FOLDER evaluate.geneval.detector=mmdet/mmdet-swin-s@geneval

`compose` writes collages of photographic cut-outs (reca/data/synthetic/collages.py) for GenEval's prompts whose objects
have cut-outs: single_object, two_object, counting and position. Prompts about colours are omitted, because
photographs have no colour labels. FOLDER gets GenEval's layout, and truth.jsonl with a line per image:

    right      every even image of a prompt is correct, every odd image has one fault
    fault      another object, one too many, one too few, or swapped
    objects    all visible objects: class, file of the cut-out, box, mask (COCO's run lengths)

GenEval's rules are then evaluated on the exact masks, as from a perfect detector. They must classify all images
correctly; otherwise our rules or collages are wrong, and the exit status is 1.

`judge` runs the real judge and counts its correct decisions per task, on right and on wrong images. Objects on plain
backgrounds are easier than generated images: the result shows whether the judge works, not its error rate on generated
images. It goes to FOLDER/judge.json.
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
    """The intended content of an image."""

    classes: tuple[str, ...]
    where: str | None = None
    """Relation of the first object to the second."""
    fault: str | None = None
    """The image's fault; ``None``: it is right."""


@dataclass(frozen=True)
class ExactDetection:
    """A detection of a perfect detector."""

    name: str
    box: Sequence[float]
    score: float = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compose or judge; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    composing = verbs.add_parser("compose", help="write images and their ground truth")
    judging = verbs.add_parser("judge", help="run GenEval's judge on them")
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
    """Write the images of every prompt whose objects have cut-outs, and their ground truth.

    Raises:
        UserError: There is no such prompt.
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
        raise UserError("no prompt of GenEval matches these cut-outs: name them with GenEval's words, 'A cup.'")
    write_text(folder / TRUTH, "".join(json.dumps(truth) + "\n" for truth in truths))
    return truths


def right(entry: Entry) -> Content:
    """Return the content that a prompt asks for."""
    include = entry["include"]
    if entry["tag"] == "position":
        target, subject = include
        return Content((subject["class"], target["class"]), subject["position"][0])
    return Content(tuple(clause["class"] for clause in include for _ in range(clause["count"])))


def wrong(entry: Entry, classes: Sequence[str], rng: random.Random) -> Content:
    """Return the content that a prompt asks for, with one fault."""
    correct = right(entry)
    if entry["tag"] == "position":
        return Content(correct.classes[::-1], correct.where, "swapped")
    if entry["tag"] == "counting":
        if rng.random() < 0.5:
            return Content((*correct.classes, correct.classes[0]), fault="one too many")
        return Content(correct.classes[1:], fault="one too few")
    other = rng.choice([name for name in classes if name not in correct.classes])
    return Content((*correct.classes[:-1], other), fault="another object")


def report_rules(truths: Sequence[Truth]) -> int:
    """Print how many images GenEval's rules misjudge from the exact masks; return the exit status."""
    misjudged = [truth["file"] for truth in truths if by_rules(truth) != truth["right"]]
    prompts = len({truth["metadata"]["prompt"] for truth in truths})
    print(f"{len(truths)} images of {prompts} prompts; with exact masks the rules misjudge {len(misjudged)}")
    return 1 if misjudged else 0


def by_rules(truth: Truth) -> bool:
    """Evaluate GenEval's rules on the exact objects."""
    detections = [ExactDetection(item["class"], item["box"]) for item in truth["objects"]]
    return rules.evaluate_image(rules.select(detections, truth["category"]), truth["metadata"], lambda *_: []).correct


def judge(folder: Path, overrides: Sequence[str]) -> None:
    """Run GenEval's judge on every image; print and write how often it is right.

    Raises:
        UserError: The images or the judges are missing.
    """
    truths = read_truth(folder)
    images = max(int(Path(truth["file"]).stem) for truth in truths) + 1
    config = composed_config(["evaluate=geneval", f"+evaluate.geneval.images_per_prompt={images}", *overrides])
    fetch(config, ROOT)
    bench: Any = load_benchmark("geneval", config, ROOT)
    rows = [row for row in bench.existing_samples(folder) if not row.get("missing")]
    counts = agreement(truths, bench.score(rows, folder))
    print(table(counts))
    write_json(folder / "judge.json", {"judge": bench.judge.model_dump(), "agreement": counts})


def read_truth(folder: Path) -> list[Truth]:
    """Read the ground truth that `compose` wrote.

    Raises:
        UserError: It is missing.
    """
    path = folder / TRUTH
    if not path.is_file():
        raise UserError(f"{path} is missing: run `python -m bench.geneval_judge compose {folder}` first")
    return [json.loads(line) for line in path.read_text().splitlines()]


def agreement(truths: Sequence[Truth], items: Sequence[ItemScore]) -> dict[str, dict[str, int]]:
    """Count right and wrong images per task, and those that the judge recognised."""
    verdicts = {file: value for item in items for file, value in zip(item.files, item.values, strict=True)}
    counts = {task: dict.fromkeys(("right", "right_recognised", "wrong", "wrong_recognised"), 0) for task in TASKS}
    for truth in truths:
        kind = "right" if truth["right"] else "wrong"
        counts[truth["category"]][kind] += 1
        counts[truth["category"]][f"{kind}_recognised"] += verdicts.get(truth["file"]) == float(truth["right"])
    return counts


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Format the agreement."""
    lines = [f"{'task':15} {'right images':>16} {'wrong images':>16}"]
    for task, row in counts.items():
        cells = [f"{row[f'{kind}_recognised']} of {row[kind]}" for kind in ("right", "wrong")]
        lines.append(f"{task:15} {cells[0]:>16} {cells[1]:>16}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
