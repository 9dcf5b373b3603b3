"""The plain loop, and what is said where Ray is missing; tests/integration/test_ray.py has Ray itself."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import partial

import pytest
from pydantic import ValidationError

from reca.config import ConfigError, compose
from reca.config.sections import HardwareSection
from reca.runtime.errors import UserError
from reca.runtime.fan_out import fan_out


def hardware(*words: str) -> HardwareSection:
    return compose([f"hardware.{word}" for word in words]).hardware


class Doubling:
    made = 0

    def __init__(self) -> None:
        Doubling.made += 1

    def __call__(self, items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield 2 * item


@pytest.mark.parametrize("words", [(), ("ray=local",), ("processes=4",)])
def test_one_device_is_one_worker_in_a_plain_loop(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Doubling.made = 0
    assert list(fan_out([3, 1, 2], Doubling, hardware(*words))) == [6, 2, 4]
    assert Doubling.made == 1
    note = "hardware.ray=null: this stage uses one device of 4\n"
    assert capsys.readouterr().out == (note if "processes=4" in words else "")


def test_no_items_make_no_worker() -> None:
    assert list(fan_out([], partial(pytest.fail, "a worker was made"), hardware("ray=local", "processes=2"))) == []


def test_plain_loop_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from reca.config import compose; from reca.runtime.fan_out import fan_out\n"
        "assert list(fan_out([1, 2], lambda: iter, compose([]).hardware)) == [1, 2]\n"
        "print([name for name in ('ray', 'torch', 'torch.distributed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", [("ray=local", "processes=2"), ("ray='10.0.0.1:6379'",)])
def test_missing_ray_names_the_extra(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray: `pip install 'reca\[ray\]'`, or set hardware.ray=null"):
        list(fan_out([1, 2], Doubling, hardware(*words)))


@pytest.mark.parametrize("word", ["auto", "host", "host:port", ":6379"])
def test_address_of_ray_is_explicit(word: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match="ray"):
        hardware(f"ray='{word}'")
