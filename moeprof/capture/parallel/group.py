"""The ranks of a worker as one group: rank 0 tells the others what to do, and hears what they found.

Two ways to talk. Collectives of the model itself go through the default group (NCCL on GPUs, gloo on CPUs). Commands go
through a gloo group of their own, so that a rank which waits for work waits in the kernel and holds no device.

Where ranks meet: the environment variables of ``torchrun``, set by the parent for each process it starts.

The ranks are our own processes and not torchrun's, because each launch of each model needs fresh ones, the parent
must hear why one of them ended, and rank 0 is the worker as it is without ranks. The variables are the same, so the
libraries cannot tell the difference. Under a torchrun of the user, its first process does the run and the others end.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import util
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from moeprof.core.errors import EngineError, WorkloadError
from moeprof.core.workload.engine import Parallel

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
        store = TCPStore("127.0.0.1", port, ranks, is_master=rank == 0, timeout=JOIN)
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
        """Rank 0: give a command, and go on while it travels. The others are in :meth:`hear`."""
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

    def hear(self) -> tuple[str, tuple[Any, ...]]:
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
        """True while the others already know what rank 0 runs, so that nothing inside of it is told to them."""
        return self._held > 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """What runs inside was told to the others as a whole."""
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


BROKEN_LINK = ("Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL", "DistNetworkError", "TCPStore")
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """A meeting point on this machine.

    Attributes:
        ranks: how many come.
        port: a TCP port that was free a moment ago.
    """

    ranks: int
    port: int

    @classmethod
    def fresh(cls, ranks: int) -> Rendezvous:
        """One on a free port."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return cls(ranks=ranks, port=probe.getsockname()[1])

    def variables(self, rank: int) -> dict[str, str]:
        """What a rank finds in its environment."""
        values = (rank, rank, self.ranks, self.ranks, "127.0.0.1", self.port)
        return {name: str(value) for name, value in zip(NAMES, values, strict=True)}

    @contextmanager
    def as_rank(self, rank: int, device: str) -> Iterator[None]:
        """Processes that are started inside are this rank. Without a GPU to use they see none: libraries look."""
        wanted = self.variables(rank) | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
        agent = [name for name in os.environ if name.startswith("TORCHELASTIC_")]  # of another group
        before = {name: os.environ.get(name) for name in (*wanted, *agent)}
        os.environ.update(wanted)
        for name in agent:
            del os.environ[name]
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def device_of(device: str, rank: int) -> str:
    """The device of a rank, where rank 0 has ``device``."""
    return f"cuda:{rank}" if device.startswith("cuda") else device


def threads_of(threads: int | None, device: str, ranks: int) -> int | None:
    """CPU threads of a rank: ranks on one CPU share it; next to GPUs the default is fine."""
    if threads is not None or device != "cpu":
        return threads
    return max(1, (os.cpu_count() or 1) // ranks)


def leads_torchrun(parallel: Parallel | None, environment: Mapping[str, str]) -> bool:
    """Whether this process does the run: True without torchrun and in its first process.

    Raises:
        WorkloadError: torchrun has started another number of processes than the workload has ranks.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return True
    started = int(environment.get("WORLD_SIZE", "1"))
    ranks = 1 if parallel is None else parallel.ranks
    if started != ranks:
        raise WorkloadError(
            f"engine.parallel: torchrun started {started} processes, the workload asks for {ranks}; write "
            f"`engine: {{parallel: {{plan: tensor, ranks: {started}}}}}` (or plan: expert) into the workload; "
            "moeprof run starts its ranks itself, so torchrun can be left out"
        )
    return environment.get("RANK", "0") == "0"


def is_broken_link(error: str) -> bool:
    """Whether an error only says that another rank is gone: then the reason is there and not here."""
    return any(word in error for word in BROKEN_LINK)
