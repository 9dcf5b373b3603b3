"""``train``: align the base model with its own understanding (RecA), from stored embeddings or from the images."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import torch

from reca.config import Config
from reca.data.dialogues import load_verified
from reca.data.embeddings import Embeddings
from reca.data.manifest import MANIFEST, read_manifest
from reca.models.base import UnifiedModel
from reca.models.loading import base_digest, base_folder, load_base
from reca.runtime.device import configure_device
from reca.runtime.distributed import DistributedContext, init_distributed
from reca.runtime.errors import UserError
from reca.runtime.files import atomic_folder, write_json
from reca.runtime.hashing import checkpoint_digests, file_digest
from reca.runtime.locks import friendly_io_errors
from reca.runtime.signals import StopRequest, end_with_parent
from reca.stages.result import write_result
from reca.training.activation_checkpointing import checkpoint_blocks
from reca.training.checkpoint import CheckpointStore, TrainState, fingerprint
from reca.training.compile import compile_blocks, enable_flex_attention
from reca.training.fsdp import gather_parameters, shard_model
from reca.training.loader import TrainingData
from reca.training.loop import train_model
from reca.training.losses import KINDS
from reca.training.mixture import Mixture, build_mixture
from reca.training.precision import bf16_safe_parameters, move_to
from reca.training.step import Run

DATASET = Path("outputs/dataset")
EMBEDDINGS = Path("outputs/embeddings")
MODEL = Path("outputs/model")
CURVES = Path("outputs/curves")
FINGERPRINT = Path("outputs/fingerprint/aligned.json")
SECTIONS = ("model", "train", "seed")


def train(config: Config, root: Path) -> None:
    """Write ``outputs/curves`` (CSV, how the run went) and ``outputs/model`` (the family's official layout).

    The ranks (:func:`init_distributed`) train one model; rank 0 writes.

    ``outputs/model`` is a function of the configuration and the data: values that differ between two equal runs, such
    as wall time, are written next to the curves.

    Raises:
        UserError: Data, embeddings or base are absent or damaged, the data lacks captions or questions that the
            mixture needs, the loss diverged, the disk is full or read-only, or another run trains the same.
        Interrupted: By SIGTERM or SIGINT; the last step is saved, and the same command resumes from it.
    """
    end_with_parent()
    device = configure_device(config.hardware.device, config.hardware.threads)
    with StopRequest() as stop, init_distributed(device) as distributed:
        mixture = _mixture(config)
        base = base_folder(config.model.checkpoint, root)
        read_manifest(root / DATASET, ["id"])
        dialogues = load_verified(config, root)
        name = fingerprint(config, file_digest(root / DATASET / MANIFEST), base_digest(base))
        store = CheckpointStore(root / config.paths.state, name, config.train.keep_checkpoints)
        with store.lock() if distributed.is_main_process else nullcontext():
            embeddings = Embeddings.open(root / EMBEDDINGS)
            model = _load_model(config, base, root, device, distributed)
            data = TrainingData(
                model, root / DATASET, embeddings, config.train, mixture, config.seed, device, dialogues
            )
            hardware = config.hardware
            run = Run(model, data, config.train, config.seed, hardware.micro_batch_size, distributed, hardware.prefetch)
            values = config.to_dict()
            state = train_model(run, store, {section: values[section] for section in SECTIONS}, stop)
            gather_parameters(model, keep=distributed.is_main_process)
            if not distributed.is_main_process:
                return
            with friendly_io_errors(root / CURVES, "the training curves"), atomic_folder(root / CURVES) as folder:
                for curve in sorted((store.folder / "curves").glob("*.csv")):
                    shutil.copyfile(curve, folder / curve.name)
                write_result(folder, "train", config, SECTIONS, **_history(state))
        with friendly_io_errors(root / MODEL, "the aligned model"), atomic_folder(root / MODEL) as folder:
            move_to(model.eval(), torch.device("cpu"))  # in float32 again
            if config.train.adapter is not None:
                from reca.training.lora import merge

                merge(model)
            model.save_official(folder)
            write_result(folder, "train", config, SECTIONS, steps=config.train.max_steps, fingerprint=name)
        write_json(root / FINGERPRINT, checkpoint_digests(root / MODEL))


def _load_model(
    config: Config, base: Path, root: Path, device: torch.device, distributed: DistributedContext
) -> UnifiedModel:
    """Load the base model and prepare it for training: adapters first, because they add layers, sharding last."""
    model = load_base(config.model.family, base, config.model.load_options(root), None)
    if config.train.adapter is not None:
        from reca.training.lora import adapt  # imports peft, which only adapters need

        adapt(model, config.train.adapter, config.seed)
    if config.hardware.flex_attention:
        enable_flex_attention(model, device)
    if config.hardware.compile:
        compile_blocks(model)
    if config.hardware.gradient_checkpointing:
        checkpoint_blocks(model)
    bf16 = bf16_safe_parameters(model) if config.train.precision == "bfloat16" else []
    if distributed.world_size > 1:
        shard_model(model, device, distributed.mesh_shape(config.hardware.shard), bf16)
    else:
        move_to(model, device, bf16)
    return model


def _mixture(config: Config) -> Mixture:
    weights = config.train.mixture
    try:
        return build_mixture({kind: getattr(weights, kind) for kind in KINDS}, config.train.global_batch_size)
    except ValueError as error:
        raise UserError(str(error)) from None


def _history(state: TrainState) -> dict[str, object]:
    return {
        "wall_seconds": round(state.seconds, 1),
        "resumed_after": state.resumed_after,
        "code": [{"from_step": step, "digest": digest} for step, digest in state.code],
    }
