"""The ranks of a worker as one group: rank 0 tells the others what to do, and hears what they found.

Two ways to talk. Collectives of the model itself go through the default group (NCCL on GPUs, gloo on CPUs). Commands go
through a gloo group of their own, so that a rank which waits for work waits in the kernel and holds no device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import util
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist

from moeprof.core.errors import EngineError

JOIN = timedelta(minutes=10)  # one rank still imports libraries while another one waits
STEP = timedelta(minutes=30)  # reading shards takes the ranks differently long; steps are watched from outside
IDLE = timedelta(days=7)  # between two commands other models may run
INLINE_BYTES = 4096
SIZE_BYTES = 8


class Group:
    """What one rank holds of the group."""

    def __init__(self, rank: int, ranks: int, port: int, device: torch.device) -> None:
        """Join; returns when all ranks are there.

        Args:
            rank: of this process.
            ranks: how many there are.
            port: of rank 0, on this machine.
            device: of this rank.
        """
        self.rank, self.ranks, self.device = rank, ranks, device
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self.counts_of_followers: list[Any] = []
        self._held = 0
        self._sent: Any = None
        self._next_number = 0
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed: Any = dist  # torch does not say that it exports the store
        store = distributed.TCPStore("127.0.0.1", port, ranks, is_master=rank == 0, timeout=JOIN)
        dist.init_process_group(
            self.backend, store=store, rank=rank, world_size=ranks, timeout=STEP,
            device_id=device if device.type == "cuda" else None,
        )  # fmt: skip
        self._control = dist.new_group(backend="gloo", timeout=IDLE)

    @property
    def leads(self) -> bool:
        """True for rank 0."""
        return self.rank == 0

    def tell(self, command: str, *arguments: Any) -> None:
        """Rank 0: give a command, and go on while it travels. The others are in :meth:`receive`."""
        if self._sent is not None:
            self._sent.wait()
        body = bytes(ForkingPickler.dumps((command, arguments)))  # as pipes between processes do
        first = torch.zeros(SIZE_BYTES + INLINE_BYTES, dtype=torch.uint8)
        first[:SIZE_BYTES] = torch.frombuffer(bytearray(len(body).to_bytes(SIZE_BYTES, "little")), dtype=torch.uint8)
        whole = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        if len(body) <= INLINE_BYTES:
            first[SIZE_BYTES : SIZE_BYTES + len(body)] = whole
        self._sent = dist.broadcast(first, src=0, group=self._control, async_op=True)  # it keeps the tensor alive
        if len(body) > INLINE_BYTES:
            dist.broadcast(whole, src=0, group=self._control)

    def receive(self) -> tuple[str, tuple[Any, ...]]:
        """The others: wait for the next command."""
        first = torch.zeros(SIZE_BYTES + INLINE_BYTES, dtype=torch.uint8)
        dist.broadcast(first, src=0, group=self._control)
        size = int.from_bytes(bytes(first[:SIZE_BYTES].tolist()), "little")
        whole = first[SIZE_BYTES : SIZE_BYTES + size]
        if size > INLINE_BYTES:
            whole = torch.empty(size, dtype=torch.uint8)
            dist.broadcast(whole, src=0, group=self._control)
        command, arguments = ForkingPickler.loads(whole.numpy().tobytes())
        return command, arguments

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, on rank 0 (others get an empty list). All ranks call it."""
        found: list[Any] | None = [None] * self.ranks if self.leads else None
        dist.gather_object(value, found, dst=0, group=self._control)
        return found or []

    @property
    def is_held(self) -> bool:
        """True while the others already know what rank 0 runs, so that nothing inside of it is sent to them."""
        return self._held > 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """What runs inside was sent to the others as a whole."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def new_number(self) -> int:
        """A number for something that lives on all ranks (an engine)."""
        self._next_number += 1
        return self._next_number

    def leave(self) -> None:
        """End it for this process."""
        if dist.is_initialized():
            dist.destroy_process_group()


_joined: Group | None = None


def joined(device: torch.device) -> Group:
    """This process's group; joins on the first call, by the variables of its environment.

    Raises:
        EngineError: the process was not started as a rank.
    """
    global _joined
    if _joined is None:
        try:
            rank, ranks, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        except KeyError as error:
            raise EngineError(f"engine.parallel: this process is no rank ({error} is not set)") from error
        _joined = Group(rank, ranks, port, device)
        util.Finalize(None, _joined.leave, exitpriority=10)  # a process of multiprocessing runs no other exit handlers
    return _joined


def joined_or_none() -> Group | None:
    """This process's group, if it has one by now."""
    return _joined
