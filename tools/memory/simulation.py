"""Running a model on fake tensors, and the memory that its tensors would take.

Parameters become fake tensors (:mod:`torch._subclasses.fake_tensor`), which have shapes and types but no memory.
Results computed from them are fake too. Ids, masks and noise stay real, because the size of a masked selection depends
on the mask's values. So the training code itself runs at any model size on any machine.
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
"""Operators whose second argument is a list of indices, which may be masks."""


def to_fake(model: nn.Module) -> None:
    """Replace all parameters and buffers by fake CPU tensors; tied parameters stay tied.

    Floating-point tensors become float32, as in training.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    replaced: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        with mode:
            return torch.empty(tensor.shape, dtype=dtype, device="cpu")

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) not in replaced:
                replaced[id(parameter)] = nn.Parameter(fake(parameter), parameter.requires_grad)
            setattr(module, name, replaced[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, replaced.setdefault(id(buffer), fake(buffer)))


class FakeTensorHelpers(TorchDispatchMode):
    """Supports real masks on fake tensors, and returns 1 for ``.item()`` of a fake tensor."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else 1
        if func in MASKED:
            args = (args[0], _to_integer_indices(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _to_integer_indices(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Convert real boolean masks to integer indices."""
    converted: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            converted += index.nonzero(as_tuple=True)
        else:
            converted.append(index)
    return converted


class LiveBytes(TorchDispatchMode):
    """Tracks the storages that operators return, from allocation to release.

    Args:
        tensors: Tensors that exist already.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._tracked: dict[int, weakref.finalize[Any, Any]] = {}
        for tensor in tensors:
            self._track(tensor)

    def restart(self) -> None:
        """Reset the peak to the current value."""
        self.peak = self.now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._track(leaf)
        return result

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._tracked:
            return
        self._tracked[key] = weakref.finalize(storage, self._release, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _release(self, key: int, size: int) -> None:
        del self._tracked[key]
        self.now -= size
