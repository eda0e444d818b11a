"""Live bytes of tensors, counted operator by operator: the peak of what a piece of code allocates on a device.

Sees what operators return on the thread that it was entered on; scratch memory inside of a kernel is not seen.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ByteLedger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes of storages while they live.

    Attributes:
        live_bytes: now.
        peak_bytes: at most so far.
        widest: largest float32 storage that was made, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = self.widest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not leaf.is_meta:
                self._add(leaf)
        return result

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if tensor.dtype == torch.float32:
            self.widest = max(self.widest, size)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    found = {t.untyped_storage()._cdata: t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(found.values())
