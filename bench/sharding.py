"""Host memory of loading, sharding and training, for 1, 2 and 4 ranks.

    python -m bench.sharding                # a Janus of some 300 MB, from a file in float32 and from one in bfloat16

Every rank loads the same files, keeps its shard (:func:`reca.training.fsdp.shard_model`) and makes a step of AdamW.
Counted is anonymous memory (RssAnon of /proc/self/status) beyond that after process-group initialisation; mapped files
are shared page cache and not in it. Peaks are sampled every few milliseconds. A single rank is not sharded. A last
process saves and loads a checkpoint of 768 MiB; counted is what that takes beyond the state. JSON goes to
bench/results/sharding.json, in MiB.
"""

import argparse
import gc
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.models import build
from bench.sizes import OPTIONS
from reca.config import ROOT
from reca.models.loading import load_model
from reca.runtime.distributed import init_distributed
from reca.runtime.files import write_json
from reca.runtime.ports import free_port
from reca.runtime.seeding import SampleRng
from reca.training import checkpoint
from reca.training.fsdp import shard_model
from reca.training.optimizer import build_optimizer, freeze
from reca.training.step import clip_gradients

RESULT = ROOT / "bench/results/sharding.json"
SIZES = (1, 2, 4)
LAYERS = 36
SAMPLE_SECONDS = 0.002
MIB = 2**20
MMAP_BYTES = 2**18
"""Threshold above which glibc returns freed memory to the system. By default glibc raises it over time, so that freed
memory would be counted."""
CPU = torch.device("cpu")


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the language model, 6.75 MiB each")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    options = parser.parse_args()
    result: dict[str, Any] = {"layers": options.layers, "load": os.getloadavg()[0], "files": {}}
    with tempfile.TemporaryDirectory(prefix="reca-sharding-") as folder:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            model = Path(folder) / name
            run_ranks(1, write_model, model, options.layers, dtype)
            result["files"][name] = {str(size): run_ranks(size, measure, model) for size in SIZES}
            for size, memory in result["files"][name].items():
                print(f"{name}, {size} processes: {memory}", flush=True)
        (result["checkpoint"],) = run_ranks(1, measure_checkpoint, Path(folder))
        print(f"checkpoint: {result['checkpoint']}", flush=True)
    write_json(options.output, result)


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run a function in every rank of a new process group; return the results in order of rank.

    Raises:
        SystemExit: A process failed.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MMAP_BYTES))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.models", "reca.models.janus.model", "reca.training.fsdp", "torch._dynamo"])
    port, results = free_port(), context.SimpleQueue()
    processes = [
        context.Process(target=_as_rank, args=(rank, size, port, results, function, *arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"processes ended with status {[process.exitcode for process in processes]}")
    return [value for _, value in sorted((results.get() for _ in processes), key=lambda pair: pair[0])]


def _as_rank(rank: int, size: int, port: int, results: Any, function: Callable[..., Any], *arguments: Any) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    torch.set_num_threads(1)
    results.put((rank, function(*arguments)))


def write_model(folder: Path, layers: int, dtype: torch.dtype) -> None:
    """Write a Janus with random weights in its official layout."""
    torch.manual_seed(0)
    build("janus", "middle", CPU, layers).save_official(folder)
    file = folder / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, {"format": "pt"})


def measure(folder: Path) -> dict[str, int]:
    """Measure this rank's memory."""
    with init_distributed(CPU) as distributed:
        before = anonymous()
        with track_peak() as peak:
            model = load_model("janus", folder, OPTIONS, None if distributed.world_size > 1 else CPU)
            if distributed.world_size > 1:
                shard_model(model, CPU, distributed.mesh_shape("all"))
        memory = {"whole": sum(value.numel() * 4 for value in model.parameters()), "loading, peak": peak[0] - before}
        memory["loaded"] = anonymous() - before
        parameters = freeze(model, set(model.trainable()))
        optimizer = build_optimizer(parameters, (0.9, 0.95), 0.0)
        images = torch.zeros(1, 3, model.spec.generation_size, model.spec.generation_size)
        with track_peak() as peak:
            rng = SampleRng([distributed.rank])
            model.text_to_image_loss(["a cat"], model.encode_target(images, rng), rng).value.backward()
            clip_gradients(parameters.values(), 1.0)
            optimizer.step()
        memory |= {"training, peak": peak[0] - before, "trained": anonymous() - before}
        distributed.barrier()
        return {name: round(value / MIB) for name, value in memory.items()}


def measure_checkpoint(folder: Path, weight_mib: int = 16, file_bytes: int = checkpoint.FILE_BYTES) -> dict[str, int]:
    """Measure the memory of saving and loading 16 weights and their float32 moments, beyond that of the state."""
    checkpoint.FILE_BYTES = file_bytes
    parameters = {str(number): nn.Parameter(torch.zeros(weight_mib, MIB // 4)) for number in range(16)}
    optimizer = build_optimizer(parameters, (0.9, 0.95), 0.0)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state = sum(value.nbytes for value in checkpoint._tensors(parameters, optimizer).values())
    store = checkpoint.CheckpointStore(folder, "a" * 16, 1)
    before = anonymous()
    with track_peak() as saving:
        store.save(1, parameters, optimizer, {}, {})
    optimizer.state.clear()
    empty = anonymous()
    with track_peak() as loading:
        saved = store.latest()
        assert saved is not None
        checkpoint.restore(saved, parameters, optimizer)
    moments = state - sum(parameter.nbytes for parameter in parameters.values())
    memory = {"state": state, "saving": saving[0] - before, "loading": loading[0] - empty - moments}
    return {name: round(value / MIB) for name, value in memory.items()}


def anonymous() -> int:
    """Return the bytes of anonymous memory after garbage collection."""
    gc.collect()
    return _anonymous()


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


@contextmanager
def track_peak() -> Iterator[list[int]]:
    """Sample :func:`anonymous` during the block; the yielded list contains the peak after the block."""
    peak, stop = [anonymous()], threading.Event()

    def sample() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], _anonymous())
            time.sleep(SAMPLE_SECONDS)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
