"""Does each process hold its share only? Host memory of loading, sharding and training, for 1, 2 and 4 processes.

    python -m bench.sharding                # a Janus of some 300 MB, from a file in float32 and from one in bfloat16

Every process loads the same files, takes its rows (:func:`reca.training.fsdp.shard`) and makes one step of AdamW.
Counted is anonymous memory (RssAnon of /proc/self/status), which nobody shares, beyond what the process had when it
knew the others: views of the files are page cache, and there once for all. Peaks are seen by looking every few
milliseconds. One process shards nothing. JSON goes to bench/results/sharding.json, in MiB.
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

from bench.models import build
from reca.config import ROOT
from reca.models.base import load_model
from reca.runtime.distributed import init_distributed
from reca.runtime.files import write_json
from reca.runtime.ports import free_port
from reca.runtime.seeding import SampleRng
from reca.training.fsdp import shard_model
from reca.training.optimizer import build_optimizer, clip_gradients, freeze

RESULT = ROOT / "bench/results/sharding.json"
SIZES = (1, 2, 4)
LAYERS = 36
LOOK_SECONDS = 0.002
MIB = 2**20
MMAP_BYTES = 2**18
"""From here on glibc asks the system for memory and gives it back. Left alone it raises this bound as it goes and keeps
what was freed, so that what is counted would be what was once held."""
OPTIONS = {"train_vision": False, "prompt_dropout": 0.0}
CPU = torch.device("cpu")


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the language model, 6.75 MiB each")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the answer goes")
    options = parser.parse_args()
    result: dict[str, Any] = {"layers": options.layers, "load": os.getloadavg()[0], "files": {}}
    with tempfile.TemporaryDirectory(prefix="reca-sharding-") as folder:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            model = Path(folder) / name
            in_processes(1, write_model, model, options.layers, dtype)
            result["files"][name] = {str(size): in_processes(size, measure, model) for size in SIZES}
            for size, found in result["files"][name].items():
                print(f"{name}, {size} processes: {found}", flush=True)
    write_json(options.output, result)


def in_processes(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns in each of so many fresh processes that know each other.

    Raises:
        SystemExit: One of them failed.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MMAP_BYTES))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.models", "reca.models.janus.model", "reca.training.fsdp", "torch._dynamo"])
    port, results = free_port(), context.SimpleQueue()
    started = [
        context.Process(target=_as_rank, args=(rank, size, port, results, function, *arguments)) for rank in range(size)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise SystemExit(f"processes ended with status {[process.exitcode for process in started]}")
    return [value for _, value in sorted((results.get() for _ in started), key=lambda pair: pair[0])]


def _as_rank(rank: int, size: int, port: int, results: Any, function: Callable[..., Any], *arguments: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.set_num_threads(1)
    results.put((rank, function(*arguments)))


def write_model(folder: Path, layers: int, dtype: torch.dtype) -> None:
    """A Janus with random weights, in its official layout."""
    torch.manual_seed(0)
    build("janus", "middle", CPU, layers).save_official(folder)
    place = folder / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(place).items()}, place, {"format": "pt"})


def measure(folder: Path) -> dict[str, int]:
    """One process's memory; together with the others, if there are any."""
    with init_distributed(CPU, sharded=True) as distributed:
        before = anonymous()
        with watched() as peak:
            model = load_model("janus", folder, OPTIONS, None if distributed.sharded else CPU)
            if distributed.sharded:
                shard_model(model, CPU)
        found = {"whole": sum(value.numel() * 4 for value in model.parameters()), "loading, peak": peak[0] - before}
        found["loaded"] = anonymous() - before
        parameters = freeze(model, set(model.trainable()))
        optimizer = build_optimizer(parameters, (0.9, 0.95), 0.0)
        images = torch.zeros(1, 3, model.spec.generation_size, model.spec.generation_size)
        with watched() as peak:
            rng = SampleRng([distributed.rank])
            model.text_to_image_loss(["a cat"], model.encode_target(images, rng), rng).value.backward()
            clip_gradients(parameters.values(), 1.0)
            optimizer.step()
        found |= {"training, peak": peak[0] - before, "trained": anonymous() - before}
        distributed.barrier()
        return {name: round(value / MIB) for name, value in found.items()}


def anonymous() -> int:
    """Bytes of memory that belong to this process alone."""
    gc.collect()
    return _anonymous()


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


@contextmanager
def watched() -> Iterator[list[int]]:
    """The largest :func:`anonymous` inside the block, in a list of one, complete when the block has ended."""
    peak, ended = [anonymous()], threading.Event()

    def look() -> None:
        while not ended.is_set():
            peak[0] = max(peak[0], _anonymous())
            time.sleep(LOOK_SECONDS)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
