"""Where ranks meet: the environment variables of ``torchrun``, set by the parent for each process it starts.

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

from moeprof.core.errors import WorkloadError
from moeprof.core.workload.engine import Parallel

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
