"""What the tests of several kernels share."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counted(TorchDispatchMode):
    """The most bytes that tensors made inside held at one moment."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {at: kept for at, kept in self.alive.items() if not kept[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


@pytest.fixture
def counter() -> type[Counted]:
    """Counts memory over tensors that have no data."""
    return Counted


@pytest.fixture
def bytes_held() -> Callable[[Iterable[Tensor], Callable[[], object]], int]:
    """Bytes that a call holds for its backward beyond the tensors that it is given."""

    def count(given: Iterable[Tensor], call: Callable[[], object]) -> int:
        saved: dict[int, Tensor] = {}  # by address; as they are held here, none is used twice

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        return sum(t.untyped_storage().nbytes() for at, t in saved.items() if at not in known)

    return count


@pytest.fixture
def gradients_under_ddp(tmp_path: Path) -> Callable[..., list[Tensor | None]]:
    """Gradients of a layer's parameters where DDP wraps it, in a group of one process."""

    def run(layer: nn.Module, *inputs: object) -> list[Tensor | None]:
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            wrapped = nn.parallel.DistributedDataParallel(layer)
            wrapped(*inputs).square().sum().backward()
            # Gone before the group is: the last to hold a group waits for its thread, and DDP does
            # so with Python's lock, which that thread may be waiting for.
            del wrapped
            gc.collect()
        finally:
            torch.distributed.destroy_process_group()
        return [parameter.grad for parameter in layer.parameters()]

    return run
