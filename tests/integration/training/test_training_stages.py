"""The two stages on a small real project, in this process."""

import csv
import json
from pathlib import Path

import pytest
import torch

from reca.config import Config
from reca.data.embeddings import Embeddings
from reca.data.images import load_images, square_tensor
from reca.data.manifest import read_manifest
from reca.models.loading import load_model
from reca.runtime.errors import UserError
from reca.runtime.seeding import SampleRng
from reca.stages.extract import extract
from reca.stages.result import read_result
from reca.stages.train import train
from reca.training.loader import MicroBatch, MicroBatchLoader, TrainingData
from reca.training.losses import TrainingBatch
from tests.integration.training.conftest import poisoned


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_cache_equals_the_models_encoding(project) -> None:
    root, config = project.root, project.config
    embeddings = Embeddings.open(root / "outputs/embeddings")
    assert embeddings.ids == read_manifest(root / "outputs/dataset")["id"].to_pylist()
    assert {name: field.dtype for name, field in embeddings.fields.items()} == {
        "semantic": "bfloat16",
        "target": "int16",
    }
    model = load_model("janus", root / "base", config.model.load_options(root), torch.device("cpu"))
    ids = embeddings.ids[5:9]
    images = [image for _, image in load_images(root / "outputs/dataset", ids)]
    pixels = square_tensor(images, model.spec.understanding_size)
    with torch.no_grad():
        semantic = model.encode_semantic(pixels).embeds
    stored = torch.stack(embeddings.rows("semantic", ids))
    assert torch.equal(stored, semantic.bfloat16().float())
    assert float((stored - semantic).abs().max()) <= embeddings.error["semantic"]["max"]
    assert 0 < embeddings.error["semantic"]["relative_rms"] < 2**-8  # half a unit in the last of bfloat16's 8 bits
    targets = model.encode_target(square_tensor(images, model.spec.generation_size), SampleRng([0, 1, 2, 3]))
    assert torch.equal(torch.stack(embeddings.rows("target", ids)), targets.values)


def test_float32_cache_is_exact(project) -> None:
    config = project.configure("extract.dtype=float32")
    extract(config, project.root)
    embeddings = Embeddings.open(project.root / "outputs/embeddings")
    assert embeddings.error["semantic"] == {"max": 0.0, "relative_rms": 0.0}
    assert embeddings.fields["semantic"].dtype == "float32"


def test_moving_encoder_is_not_cached(project) -> None:
    config = project.configure("model.train_vision=true", "train.max_steps=2")
    extract(config, project.root)
    assert list(Embeddings.open(project.root / "outputs/embeddings").fields) == ["target"]
    train(config, project.root)


def test_training_leaves_model_curves_and_checkpoints(project) -> None:
    train(project.config, project.root)
    outputs = project.root / "outputs"
    steps = [int(row["step"]) for row in rows(outputs / "curves/train.csv")]
    assert steps == list(range(1, 9))
    held_out = rows(outputs / "curves/held_out.csv")
    assert [int(row["step"]) for row in held_out] == [0, 4, 8]
    assert all(float(row["reconstruction_loss"]) > 0 and float(row["text_to_image_loss"]) > 0 for row in held_out)
    row = rows(outputs / "curves/train.csv")[-1]
    parts = [float(row[f"loss_{kind}"]) for kind in ("reconstruction", "text_to_image", "understanding")]
    assert float(row["loss"]) == pytest.approx(0.5 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2], rel=1e-6)
    assert float(row["learning_rate"]) == pytest.approx(0.05 * project.config.train.learning_rate)
    assert project.steps() == ["000006", "000008"]
    assert read_result(outputs / "model") == {
        "stage": "train",
        "params": {key: project.config.to_dict()[key] for key in ("model", "train", "seed")},
        "steps": 8,
        "fingerprint": project.checkpoints.name,
    }
    assert read_result(outputs / "curves")["wall_seconds"] > 0
    assert read_result(outputs / "curves")["resumed_after"] == []


def test_only_trainable_parameters_change(project) -> None:
    options = project.config.model.load_options(project.root)
    before = load_model("janus", project.root / "base", options, torch.device("cpu"))
    train(project.config, project.root)
    after = load_model("janus", project.root / "outputs/model", options, torch.device("cpu"))
    trained = set(before.trainable())
    changed_parameters = {
        name for name, value in after.named_parameters() if not torch.equal(value, before.get_parameter(name))
    }
    assert changed_parameters <= trained
    assert len(changed_parameters) > 0.8 * len(trained)
    assert all(torch.equal(value, dict(after.named_buffers())[name]) for name, value in before.named_buffers())


def test_two_runs_are_byte_equal(project) -> None:
    train(project.config, project.root)
    first = {path.name: path.read_bytes() for path in (project.root / "outputs/model").iterdir()}
    again = project.root.parent / "again"
    again.mkdir()
    for name in ("outputs", "base"):
        (again / name).symlink_to(project.root / name)
    train(project.config, again)
    assert {path.name: path.read_bytes() for path in (again / "outputs/model").iterdir()} == first


def test_held_out_images_are_never_trained_on(project, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: dict[str, set[str]] = {"train": set(), "held_out": set()}
    load = MicroBatchLoader.load

    def record(self: MicroBatchLoader, micro_batch: MicroBatch) -> TrainingBatch:
        loaded[str(micro_batch.noise_key[0])].update(micro_batch.ids)
        return load(self, micro_batch)

    monkeypatch.setattr(MicroBatchLoader, "load", record)
    train(project.config, project.root)
    table = read_manifest(project.root / "outputs/dataset")
    splits = dict(zip(table["id"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert {splits[name] for name in loaded["train"]} == {"train"}
    assert {splits[name] for name in loaded["held_out"]} == {"held_out"}
    assert len(loaded["train"]) == sum(split == "train" for split in splits.values())  # 64 draws, fewer images


def _without(root: Path, column: str) -> None:
    """Take a column's values out of the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = root / "outputs/dataset/manifest.parquet"
    table = pq.read_table(path)
    empty = pa.nulls(len(table), pa.string())
    pq.write_table(table.set_column(table.column_names.index(column), column, empty), path)


def test_no_captions(project) -> None:
    _without(project.root, "caption")
    with pytest.raises(UserError, match=r"text_to_image is positive.*'caption'.*train\.mixture\.text_to_image=0"):
        train(project.config, project.root)
    config = project.configure("train.mixture.text_to_image=0", "train.max_steps=2")
    train(config, project.root)
    held_out = rows(project.root / "outputs/curves/held_out.csv")
    assert [row["text_to_image_loss"] for row in held_out] == ["", ""]
    assert all(row["loss_text_to_image"] == "" for row in rows(project.root / "outputs/curves/train.csv"))


def test_no_questions(project) -> None:
    _without(project.root, "ground_truth")
    with pytest.raises(UserError, match=r"no training image has questions.*train\.mixture\.understanding=0"):
        train(project.config, project.root)
    train(project.configure("train.mixture.understanding=0", "train.max_steps=2"), project.root)


def test_full_captions_are_other_captions(project) -> None:
    short = ("train.max_steps=1", "train.warmup_steps=0")
    train(project.configure(*short), project.root)
    sparse = project.weights()
    train(project.configure(*short, "train.captions=full"), project.root)
    assert any(not torch.equal(sparse[name], value) for name, value in project.weights().items())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("outputs/embeddings/index.json", r"index\.json is missing.*reca extract"),
        ("outputs/dataset/manifest.parquet", r"manifest\.parquet is missing.*reca ingest"),
        ("base/model.safetensors", r"base"),
        ("base/config.json", r"config\.json is missing"),
    ],
)
def test_missing_input_is_named(project, damage: str, words: str) -> None:
    (project.root / damage).unlink()
    with pytest.raises(UserError, match=words):
        train(project.config, project.root)


def test_missing_base(project) -> None:
    config = project.configure("model.checkpoint=elsewhere")
    for stage in (extract, train):
        with pytest.raises(UserError, match=r"elsewhere is missing.*model\.checkpoint"):
            stage(config, project.root)


@pytest.mark.parametrize("name", ["outputs/embeddings/shard-00001.safetensors", "base/model.safetensors"])
def test_truncated_safetensors_is_named(project, name: str) -> None:
    path = project.root / name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="shard-00001" if "shard" in name else "base"):
        train(project.config, project.root)


def test_cache_of_other_images_is_refused(project) -> None:
    config = project.configure("data.num_images=50")
    from reca.stages.ingest import ingest

    ingest(config, project.root)
    with pytest.raises(UserError, match=r"images are not in .*embeddings.*reca extract"):
        train(config, project.root)


def test_divergence_stops_at_the_last_good_checkpoint(project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of step 5 are NaN; that step changes neither weights nor files."""
    monkeypatch.setattr(TrainingData, "read", poisoned(TrainingData.read, step=5))
    with pytest.raises(UserError, match=r"training stopped at step 5: the loss is nan.*train\.learning_rate") as caught:
        train(project.config, project.root)
    assert f"the last good checkpoint is {project.checkpoints / '000003'}" in str(caught.value)
    assert project.recorded() == 4
    assert not (project.root / "outputs/model").exists()
    monkeypatch.undo()
    train(project.config, project.root)  # with the cause fixed, the run resumes
    assert [row["step"] for row in project.curve("train.csv")] == [str(step) for step in range(1, 9)]


def test_configuration_of_the_stage_is_recorded(project) -> None:
    result = json.loads((project.root / "outputs/embeddings/result.json").read_text())
    assert result["params"]["extract"] == project.config.to_dict()["extract"]
    assert Config.load(project.root / "params.yaml") == project.config
