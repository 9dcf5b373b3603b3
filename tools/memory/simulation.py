"""Run a model that holds no numbers, and follow what its tensors would take.

Parameters become fake tensors (:mod:`torch._subclasses.fake_tensor`): they have shapes and types, and no memory. What
is computed from them is fake too; ids, masks and noise stay real, because what is cut out by a mask has the size that
the mask says. So the very code of training runs at any size on any machine.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
MASKED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
"""Operators whose second argument are indices, which may be masks."""


def to_fake(model: nn.Module) -> None:
    """Put fake tensors on the CPU in place of all parameters and buffers, wherever these lie; ties stay ties.

    Fractions are float32, as training has them, whatever the files hold.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        with mode:
            return torch.empty(tensor.shape, dtype=dtype, device="cpu")

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in known:
                known[id(parameter)] = nn.Parameter(fake(parameter), parameter.requires_grad)
            setattr(module, name, known[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, known.setdefault(id(buffer), fake(buffer)))


class FakeTensorHelpers(TorchDispatchMode):
    """Lets real masks cut fake tensors, and gives a number to who asks for one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func in MASKED:
            args = (args[0], _numbered(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _numbered(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices with numbers in place of real masks."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operators return, from their birth to their end.

    Args:
        held: Tensors that are there already.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}
        for tensor in held:
            self._note(tensor)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known[key] = weakref.finalize(storage, self._forget, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size
