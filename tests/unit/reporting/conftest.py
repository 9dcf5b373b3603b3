"""Outputs of earlier stages as the contract has them, made of rendered scenes instead of a model's samples.

The "base" gets two things in five right, the "aligned" four in five: a picture is right when it is rendered
from its prompt, and wrong when it is some other scene.
"""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reca.config import Config, compose
from reca.data.synthetic import scenes
from reca.evaluation.benchmark import ItemScore, Judge, Scores, values_of, write_items
from reca.evaluation.samples import write_manifest
from reca.evaluation.statistics import intervals
from reca.runtime.files import write_json
from reca.stages.result import write_result

SKILL = {"base": 0.4, "aligned": 0.8}
CHECKPOINTS = {"base": "b" * 64, "aligned": "a" * 64}
SMALL = (
    "evaluate.scenes.prompts_per_category=5",
    "evaluate.scenes.images_per_prompt=4",
    "evaluate.understanding.num_images=20",
    "evaluate.fidelity.num_images=14",
    "evaluate.bootstrap_resamples=200",
)


@pytest.fixture(scope="session")
def outputs_of() -> Any:
    """:func:`write_outputs`."""
    return write_outputs


def write_outputs(
    root: Path, *overrides: str, prompt_of: Any = None, swap: bool = False, photographs: bool = False
) -> Config:
    """A project folder whose stages up to ``score`` are done; returns its configuration.

    Args:
        root: The project folder.
        overrides: As for ``reca compose``, in addition to :data:`SMALL`.
        prompt_of: Replaces the text of every drawing prompt.
        swap: The aligned model gets the base's skill, and the other way round.
        photographs: Fidelity is about large images without ground truth.
    """
    skill = dict(zip(SKILL, reversed(SKILL.values()), strict=True)) if swap else SKILL
    config = compose([*SMALL, *overrides])
    (root / "params.yaml").write_text(config.to_yaml())
    for variant in ("base", "aligned"):
        if "scenes" in config.evaluate.benchmarks:
            _scenes(root, variant, config, prompt_of or (lambda prompt: prompt), skill[variant])
        if "understanding" in config.evaluate.benchmarks:
            _understanding(root, variant, config)
        if "fidelity" in config.evaluate.benchmarks:
            (_photographs if photographs else _fidelity)(root, variant, config)
    _training(root, config)
    return config


def _scenes(root: Path, variant: str, config: Config, prompt_of: Any, skill: float) -> None:
    settings = config.evaluate.scenes
    folder, rows, items = root / f"outputs/samples/{variant}/scenes", [], []
    for number, entry in enumerate(scenes.benchmark_prompts(settings.seed, settings.prompts_per_category)):
        rng, prompt_id = random.Random(f"{variant}-{number}"), f"{number:05d}"
        values, files, details = [], [], []
        for index in range(settings.images_per_prompt):
            right = rng.random() < skill
            scene = _matching(entry["include"], rng) if right else scenes.sample_scene(7, rng.randrange(10**6))
            file = f"{prompt_id}_{index}.png"
            _save(folder / file, scene)
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "category": entry["tag"],
                    "prompt": prompt_of(entry["prompt"]),
                    "index": index,
                    "seed": 1000 * number + index,
                    "file": file,
                    "guidance_scale": 2.0,
                    "num_steps": None,
                    "checkpoint": CHECKPOINTS[variant],
                    "metadata": entry,
                }
            )
            values.append(float(right))
            files.append(file)
            details.append({"seen": _seen(scene), "reasons": [] if right else ["expected circle>=1, found 0"]})
        items.append(ItemScore(prompt_id, entry["tag"], tuple(values), tuple(files), tuple(details)))
    _write(root, variant, "scenes", rows, items, settings.images_per_prompt, settings.seed)


def _understanding(root: Path, variant: str, config: Config) -> None:
    rows, items = [], []
    for number in range(config.evaluate.understanding.num_images):
        rng = random.Random(f"{variant}-question-{number}")
        for question in scenes.questions(scenes.sample_scene(11, number), random.Random(number)):
            prompt_id, right = f"{number:04d}-{question.kind}", rng.random() < 0.95
            answer = question.answer if right else "a <b>guess</b>"
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "category": question.kind,
                    "question": question.text,
                    "expected": question.answer,
                    "answer": answer,
                    "checkpoint": CHECKPOINTS[variant],
                }
            )
            detail = {"question": question.text, "expected": question.answer, "answer": answer, "parsable": right}
            items.append(ItemScore(prompt_id, question.kind, (float(right),), details=(detail,)))
    _write(root, variant, "understanding", rows, items, 1, config.evaluate.understanding.seed)


def _fidelity(root: Path, variant: str, config: Config) -> None:
    folder, rows, items = root / f"outputs/samples/{variant}/fidelity", [], []
    for number in range(config.evaluate.fidelity.num_images):
        rng, prompt_id = random.Random(f"{variant}-rebuilt-{number}"), f"{number:016x}"
        scene = scenes.sample_scene(13, number)
        shapes_left = [shape for shape in scene.shapes if rng.random() < 0.2 + 0.8 * SKILL[variant]]
        _save(folder / f"original_{prompt_id}.png", scene)
        rebuilt = scenes.Scene(tuple(shapes_left), scene.background, scene.shade)
        _save(folder / f"{prompt_id}.png", rebuilt)
        names = (f"{prompt_id}.png", f"original_{prompt_id}.png")
        rows.append(
            {
                "prompt_id": prompt_id,
                "category": "scene",
                "file": names[0],
                "original": names[1],
                "metadata": scenes.metadata(scene),
                "checkpoint": CHECKPOINTS[variant],
            }
        )
        share, detail = len(shapes_left) / len(scene.shapes), {"psnr": 20.0, "seen": _seen(rebuilt)}
        items.append(ItemScore(prompt_id, "similarity", (0.5 + share / 2 - 0.01,), names, (detail,)))
        items.append(ItemScore(prompt_id, "objects", (share,), names, ({},)))
        items.append(ItemScore(prompt_id, "exact_scene", (float(share == 1),), names, ({},)))
    _write(root, variant, "fidelity", rows, items, 1, config.evaluate.fidelity.seed)


def _photographs(root: Path, variant: str, config: Config) -> None:
    folder, rows, items = root / f"outputs/samples/{variant}/fidelity", [], []
    folder.mkdir(parents=True)
    for number in range(config.evaluate.fidelity.num_images):
        prompt_id = f"{number:016x}"
        names = (f"{prompt_id}.png", f"{prompt_id}_original.png")
        for name in names:
            Image.radial_gradient("L").resize((300, 300)).convert("RGB").save(folder / name)
        row = {"prompt_id": prompt_id, "category": "photograph", "metadata": None, "index": 0, "seed": number}
        rows.append({**row, "file": names[0], "original": names[1]})
        items.append(ItemScore(prompt_id, "similarity", (0.5 + 0.3 * SKILL[variant],), names, ({"psnr": 20.0},)))
    _write(root, variant, "fidelity", rows, items, 1, config.evaluate.fidelity.seed)


def _training(root: Path, config: Config) -> None:
    curves = root / "outputs/curves"
    curves.mkdir(parents=True, exist_ok=True)
    columns = "step,loss,loss_reconstruction,loss_text_to_image,loss_understanding,learning_rate,grad_norm"
    rng, lines, held_out = (
        random.Random(0),
        [columns + ",images_per_second"],
        ["step,reconstruction_loss,text_to_image_loss"],
    )
    for step in range(1, config.train.max_steps + 1):
        fall = 2.5 * 0.99**step + 1.5
        noisy = [fall * rng.uniform(0.9, 1.1) for _ in range(3)]
        lines.append(f"{step},{sum(noisy)},{noisy[0]},{noisy[1]},{noisy[2]},{7e-4:.2e},{rng.uniform(0.3, 0.6)},210.5")
        if step % config.train.eval_every == 0:
            held_out.append(f"{step},{fall},{fall + 0.2}")
    (curves / "train.csv").write_text("\n".join(lines) + "\n")
    (curves / "held_out.csv").write_text("\n".join(held_out) + "\n")
    write_result(curves, "train", config, ("model", "train", "seed"), wall_seconds=312.4)


def _write(
    root: Path, variant: str, name: str, rows: list[dict[str, Any]], items: list[ItemScore], images: int, seed: int
) -> None:
    samples, scores = root / f"outputs/samples/{variant}/{name}", root / f"outputs/scores/{variant}"
    write_manifest(samples, rows)
    write_items(scores / f"{name}.items.jsonl", items)
    scores_by_name = intervals(values_of(items), resamples=50)
    overall = scores_by_name.pop("overall")
    score = Scores(
        benchmark=name,
        variant=variant,
        protocol=f"variant: {name} on rendered scenes",
        overall=overall,
        categories=scores_by_name,
        expected=sum(len(item.values) for item in items),
        scored=sum(len(item.values) for item in items),
        failed=0,
        images_per_prompt=images,
        seed=seed,
        settings={"generate": {"guidance_scale": 2.0}},
        checkpoint=CHECKPOINTS[variant],
        judge=Judge(name="scene_detector", version="c1724431", accuracy={"exact_scene": 0.9998, "color": 1.0}),
    )
    write_json(scores / f"{name}.json", score.model_dump(mode="json"))


def _save(path: Path, scene: scenes.Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scenes.render([scene])[0]).save(path)


def _seen(scene: scenes.Scene) -> list[dict[str, Any]]:
    return [{"name": s.kind, "color": s.color, "box": [0, 0, 8, 8], "score": 0.97} for s in scene.shapes]


_CENTRES = {
    "left of": ((0.25, 0.5), (0.72, 0.55)),
    "right of": ((0.75, 0.5), (0.28, 0.45)),
    "above": ((0.5, 0.25), (0.45, 0.72)),
    "below": ((0.5, 0.75), (0.55, 0.28)),
}


def _matching(include: list[dict[str, Any]], rng: random.Random) -> scenes.Scene:
    """Return a scene that satisfies the clauses."""
    clauses = [clause for clause in include for _ in range(clause["count"])]
    places: list[tuple[float, float]] = [(0.25, 0.27), (0.74, 0.3), (0.28, 0.75), (0.73, 0.72)]
    relation = next((clause["position"][0] for clause in include if "position" in clause), None)
    if relation:  # the moved object comes second in the clauses, first in the table
        places = list(reversed(_CENTRES[relation]))
    shapes = [
        scenes.Shape(clause["class"], clause.get("color") or rng.choice(list(scenes.COLORS)), x, y, 3.6 / 24)
        for clause, (x, y) in zip(clauses, places, strict=False)
    ]
    return scenes.Scene(tuple(shapes), rng.choice(list(scenes.BACKGROUNDS)), 0.0)
