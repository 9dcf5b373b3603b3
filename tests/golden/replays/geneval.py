"""GenEval: prompts, rules, crops, colours, detector arithmetic, whole scenes, summaries."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from reca.evaluation import geneval_rules as geneval
from reca.evaluation.benchmarks.geneval import colors as geneval_colors
from reca.evaluation.benchmarks.geneval import prompts as geneval_prompts
from tests.golden import geneval_report
from tests.golden.geneval_options import box_iou, geneval_options, select
from tests.golden.replays.comparison import MEANS, Folder, Tally, Unusable, numbered, read_json

LOGITS, VECTORS, SCORES = 1e-3, 1e-5, 2e-6
"""Tolerances of CLIP's logits (times 100, float32), of its normalised vectors, and of detector scores of six digits."""
OVERALL_DIGITS, PERCENT_DIGITS, ROUNDED_TABLE = 5.1e-6, 5.1e-3, 1.01e-2


@dataclass
class RecordedDetection:
    """One recorded detection, in float32 as the detector gave it: thresholds are compared in float32."""

    name: str
    box: Sequence[float]
    score: Any
    color: str | None = None
    mask: str | None = None


def replay(folder: Folder) -> None:
    folder.replay("prompts*.json", _prompts)
    folder.replay("relative_position*.json", _positions)
    folder.replay("iou*.json", _iou)
    folder.replay("evaluate_logic*.json", _logic)
    folder.replay("clip_zeroshot*.json", _colors)
    folder.supports("pipeline/*.png", "detector/*.npz", "summary/*.jsonl", "summary/*.txt")
    folder.replay("crops*.json", _crops)
    folder.replay("pipeline/cases*.json", _pipeline)
    folder.replay("detector/expected*.json", _detector)
    folder.replay("summary/*.expected.txt", _summary)
    folder.replay("published_summaries*.json", _published)


def _prompts(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    arguments = str(recorded.get("regenerated_with", ""))
    seed, per_task = (re.search(pattern, arguments) for pattern in (r"default_rng\((\d+)\)", r"\bn=(\d+)"))
    entries = geneval_prompts.generate(
        int(seed[1]) if seed else geneval_prompts.SEED, int(per_task[1]) if per_task else geneval_prompts.PER_TASK
    )
    tags = [entry["tag"] for entry in entries]
    ours = {
        "evaluation_metadata_sha256": _digest("".join(json.dumps(entry) + "\n" for entry in entries)),
        "generation_prompts_sha256": _digest("".join(f"{entry['prompt']}\n" for entry in entries)),
        "object_names_sha256": _digest("".join(f"{name}\n" for name in geneval_prompts.OBJECTS)),
        "n": len(entries),
        "per_tag": {tag: tags.count(tag) for tag in dict.fromkeys(tags)},
        "tag_order": list(dict.fromkeys(tags)),
        "first_of_each_tag": {tag: entries[tags.index(tag)] for tag in dict.fromkeys(tags)},
    }
    for name in ours.keys() & recorded.keys():
        tally.case(name, recorded[name], partial(ours.__getitem__, name))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _positions(tally: Tally, path: Path) -> None:
    def compare(name: str, case: dict[str, Any]) -> None:
        options = {"position_threshold": case["threshold"]} if "threshold" in case else {}
        with geneval_options(options):
            tally.case(name, sorted(case["relations"]), lambda: sorted(geneval.relative_position(case["a"], case["b"])))

    tally.each(numbered(read_json(path)), compare)


def _iou(tally: Tally, path: Path) -> None:
    def compare(name: str, case: dict[str, Any]) -> None:
        tally.case(name, case["iou"], partial(box_iou, case["a"], case["b"]), MEANS)

    tally.each(numbered(read_json(path)), compare)


def _recorded_colors(objects: Sequence[RecordedDetection], name: str) -> list[str]:
    return [str(row.color) for row in objects]


def _words(reasons: Sequence[str]) -> list[list[str]]:
    """Return reasons as bags of words, because the original names two relations in the order of a set."""
    return [sorted(re.sub(r"\band\b", " ", reason).split()) for reason in reasons]


def _logic(tally: Tally, path: Path) -> None:
    def compare(number: str, case: dict[str, Any]) -> None:
        objects = {
            name: [RecordedDetection(name, row["box"][:4], row["box"][4], row.get("color")) for row in rows]
            for name, rows in case["objects"].items()
        }
        expected = [case["correct"], _words(case["reason_lines"])]
        ours = partial(geneval.evaluate_image, objects, case["metadata"], _recorded_colors)
        with geneval_options(case.get("options") or {}):
            tally.case(number, expected, lambda: [(v := ours()).correct, _words(v.reasons)])

    tally.each(numbered(read_json(path)), compare)


def _colors(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    features = recorded["text_features"]
    if recorded.get("colors", list(geneval.COLORS)) != list(geneval.COLORS):
        raise Unusable("its colours are not GenEval's ten")

    def compare(_: str, case: dict[str, Any]) -> None:
        name, images = case["classname"], np.array(case["image_features"], np.float32)
        vectors = partial(geneval_colors.class_vectors, _float32(features), name)
        if "classifier" in case:
            tally.case(f"{name}, vectors", case["classifier"], lambda v=vectors: v().tolist(), VECTORS)
        for number, (logits, color) in enumerate(zip(case["logits"], case["colors"], strict=True)):
            image = images[number : number + 1]
            ours = partial(lambda v, x: geneval_colors.logits_of(x, v())[0].tolist(), vectors, image)
            tally.case(f"{name}, image {number}, logits", logits, ours, LOGITS)
            named = partial(lambda v, x: geneval_colors.name_colors(x, v())[0], vectors, image)
            tally.case(f"{name}, image {number}, colour", color, named)

    tally.each(numbered(recorded["cases"]), compare)


def _float32(features: dict[str, list[float]]) -> dict[str, Any]:
    return {text: np.array(feature, np.float32) for text, feature in features.items()}


def _crops(tally: Tally, path: Path) -> None:
    pipeline = path.parent / "pipeline"
    absent = []

    def compare(number: str, case: dict[str, Any]) -> None:
        files = [pipeline / case["image"], *([pipeline / case["mask"]] if case.get("mask") else [])]
        if not all(file.is_file() for file in files):
            absent.append(number)
            return
        expected = [case[name] for name in ("size", "sha256") if name in case]
        ours = partial(
            _crop_facts, files, case["box"], case.get("options", {}), [n for n in ("size", "sha256") if n in case]
        )
        tally.case(f"{number}, {case['image']}, {case.get('mask')}", expected, ours)

    tally.each(numbered(read_json(path)), compare)
    if absent:
        tally.notes.append(f"{len(absent)} crops of images or masks that this folder lacks")


def _crop_facts(files: list[Path], box: list[float], options: dict[str, str], wanted: list[str]) -> list[Any]:
    crop = _crop(files[0], files[1] if len(files) > 1 else None, box, options)
    facts = {"size": list(crop.size), "sha256": hashlib.sha256(crop.tobytes()).hexdigest()}
    return [facts[name] for name in wanted]


def _crop(image: Path, mask: Path | None, box: Sequence[float], options: dict[str, str]) -> Image.Image:
    pixels = Image.open(image)
    background = options.get("bgcolor", geneval_colors.BACKGROUND)
    stencil = None if mask is None or background == "original" else np.asarray(Image.open(mask).convert("1"))
    with patch.object(geneval_colors, "BACKGROUND", background):
        return geneval_colors.crop_of(
            pixels, box if str(options.get("crop", "1")) == "1" else (0, 0, *pixels.size), stencil
        )


def _pipeline(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    palette = {name: np.array(rgb, np.float32) for name, rgb in recorded.get("color_rgb", {}).items()}
    stub_text = str(recorded.get("clip_stub", ""))
    side, grey = (re.search(pattern, stub_text) for pattern in (r"(\d+)x\d+ NEAREST", r"- (0?\.\d+)"))
    stub = Stub(path.parent, palette, int(side[1]) if side else 16, float(grey[1]) if grey else 0.4627)
    absent = []

    def compare(number: str, case: dict[str, Any]) -> None:
        expected = dict(case["expect"])
        colored = any("color" in clause for clause in case["metadata"].get("include", ()))
        files = [case["image"], *(detection["mask"] for detection in case["detections"] if detection.get("mask"))]
        if colored and not all((path.parent / file).is_file() for file in files):
            absent.append(number)
            return
        if "reason_lines" in expected:
            expected["reason_lines"] = _words(expected["reason_lines"])
        tally.case(f"{number}, {case['image']}", expected, partial(_whole, stub, case, list(expected)))

    tally.each(numbered(recorded["cases"]), compare)
    if absent:
        tally.notes.append(f"{len(absent)} scenes of images or masks that this folder lacks")


@dataclass
class Stub:
    """The recording's substitute of CLIP: the mean colour of a small copy of the crop, minus a grey."""

    folder: Path
    palette: dict[str, Any]
    side: int
    grey: float

    def colors_of(
        self, image: str, options: dict[str, str], objects: Sequence[RecordedDetection], name: str
    ) -> list[str]:
        texts = {
            text: rgb / np.float32(255) - np.float32(self.grey)
            for color, rgb in self.palette.items()
            for text in geneval_colors.texts_for(name, color)
        }
        vectors = geneval_colors.class_vectors(texts, name)
        features = []
        for row in objects:
            mask = self.folder / row.mask if row.mask else None
            crop = _crop(self.folder / image, mask, [float(value) for value in row.box], options)
            small = np.asarray(crop.resize((self.side, self.side), Image.Resampling.NEAREST), np.float32)
            features.append(small.mean(axis=(0, 1)) / np.float32(255) - np.float32(self.grey))
        return geneval_colors.name_colors(np.stack(features), vectors)


def _whole(stub: Stub, case: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    raw, metadata = case.get("options", {}), case["metadata"]
    rows = []
    for detection in case["detections"]:
        *box, score = (np.float32(value) for value in detection["row"])
        rows.append(RecordedDetection(detection["cls"], box, score, mask=detection.get("mask")))
    with geneval_options(raw):
        selected = select(rows, metadata["tag"], float(raw.get("max_overlap", 1)))
        verdict = geneval.evaluate_image(selected, metadata, partial(stub.colors_of, case["image"], raw))
    facts = {
        "correct": verdict.correct,
        "reason_lines": _words(verdict.reasons),
        "details": {
            name: [[float(v) for v in (*row.box, row.score)] for row in objects] for name, objects in selected.items()
        },
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
    }
    return {name: facts[name] for name in wanted if name in facts}


def _detector(tally: Tally, path: Path) -> None:
    import torch

    from reca.evaluation.benchmarks.geneval.detections import detections_of

    def compare(_: str, case: dict[str, Any]) -> None:
        file = path.parent / case["file"]
        if not file.is_file():
            tally.notes.append(f"{case['file']}, which this folder lacks")
            return
        with np.load(file) as arrays:
            logits = [torch.from_numpy(arrays[name]) for name in ("class_logits", "mask_logits")]
        limit = re.search(r"score\s*>\s*([\d.]+\d)", case.get("note", ""))
        threshold = float(limit[1]) if limit else 0.05
        sizes = [tuple(case[name]) for name in ("padded_hw", "resized_hw", "original_hw")]
        detections = sorted(detections_of(*logits, *sizes), key=lambda detection: -float(detection.score))
        confident = [
            {"cls": d.label, "score": float(d.score), "box": [float(v) for v in d.box], "mask_area": int(d.mask.sum())}
            for d in detections
            if d.score > threshold
        ]
        tally.case(f"{case['file']}, number", len(case["detections"]), lambda d=confident: len(d))
        for number, expected in enumerate(case["detections"]):
            ours = partial(lambda k, n, e: {name: k[n][name] for name in e}, confident, number, expected)
            tally.case(f"{case['file']}, detection {number}", expected, ours, SCORES)

    tally.each(numbered(read_json(path)), compare)
    tally.notes.append("transformers_post_process, the stock post-processing, which is another one")


def _summary(tally: Tally, path: Path) -> None:
    results = path.with_name(path.name.replace(".expected.txt", ".jsonl"))
    if not results.is_file():
        tally.notes.append(f"it needs {results.name}, which this folder lacks")
        return
    rows = geneval_report.read_results(results)
    expected = path.read_text().rstrip().splitlines()
    printed = geneval_report.summary_text(rows).rstrip().splitlines()
    tally.case("number of lines", len(expected), lambda: len(printed))
    for number, line in enumerate(expected):
        if line.strip():
            tally.case(f"line {number + 1}", line.rstrip(), lambda n=number: printed[n])


def _published(tally: Tally, path: Path) -> None:
    recorded = read_json(path)
    if not {"rows", "paper_table"} & recorded.keys():
        raise Unusable("it has neither rows nor paper_table")

    def compare(_: str, row: dict[str, Any]) -> None:
        results = [
            (tag, f"{tag}{number}", number < good) for tag, (good, n) in row["counts"].items() for number in range(n)
        ]
        ours = geneval.summarise(results)
        tally.case(f"{row['src']}, overall", row["overall"], lambda: ours.overall, OVERALL_DIGITS)
        if "images" in row:
            tally.case(f"{row['src']}, images", row["images"], lambda: 100 * ours.images, PERCENT_DIGITS)

    tally.each(numbered(recorded.get("rows", [])), compare)
    for name, (overall, *tasks) in recorded.get("paper_table", {}).items():
        tally.case(f"paper, {name}", overall, lambda t=tasks: sum(t) / len(t), ROUNDED_TABLE)
    tally.notes.append("the share of prompts with any right image, which does not follow from counts")
