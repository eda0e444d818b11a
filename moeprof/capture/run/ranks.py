"""A model shared by several processes, as the parent sees it: rank 0 is the worker, the others follow it.

The parent watches all of them. A rank that ends takes the others along, because their next exchange would wait for it.

Can this workload's models be shared by ranks on this machine? Told before anything is loaded.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from moeprof.capture.devices.choose import Choice, choose_device
from moeprof.capture.devices.gpu import Gpu, find_gpu
from moeprof.capture.engines import ENGINES
from moeprof.capture.memory.predict import device_memory
from moeprof.capture.memory.shape import DeviceMemory
from moeprof.capture.parallel.process import follower_main
from moeprof.capture.parallel.rendezvous import Rendezvous, device_of, is_broken_link, threads_of
from moeprof.capture.protocol import OnReport, Order, WorkerPlan
from moeprof.capture.worker.process import WATCHDOG_S, Worker, WorkerFailedError
from moeprof.core.errors import WorkloadError
from moeprof.core.signals import held_back
from moeprof.core.workload.engine import EngineSettings
from moeprof.core.workload.workload import Workload

LAST_WORDS_S = 3.0  # between rank 0 seeing a broken connection and the rank that broke it saying why
END_S = 10.0


class Followers:
    """The processes of rank 1 and up."""

    def __init__(self, plan: WorkerPlan, meeting: Rendezvous) -> None:
        self._label = plan.label
        self._processes: dict[int, SpawnProcess] = {}
        self._pipes: dict[int, Connection] = {}
        self._messages: dict[int, dict[str, Any]] = {}
        context = multiprocessing.get_context("spawn")
        for rank in range(1, meeting.ranks):
            self._pipes[rank], theirs = context.Pipe(duplex=False)
            solo = replace(plan.alone, measure_peaks=False)
            own = replace(plan, device=device_of(plan.device, rank), solo=solo)
            process = context.Process(target=follower_main, args=(own, theirs), daemon=True)
            with meeting.as_rank(rank, plan.device), held_back():
                process.start()
            theirs.close()
            self._processes[rank] = process

    def failure(self) -> WorkerFailedError | None:
        """Why one of them failed, or None. One that ended well did so because rank 0 has ended."""
        ended = [rank for rank, process in self._processes.items() if process.exitcode]
        if not ended:
            return None
        for rank in ended:
            data = self._last_message(rank)
            if data is not None:
                return WorkerFailedError(f"{data['error']} (rank {rank})", data["exit_code"], data["traceback"])
        code = self._processes[ended[0]].exitcode
        hint = "; the system may have killed it for memory" if code == -9 else ""
        text = f"{self._label}: the process of rank {ended[0]} died (exit code {code}){hint}"
        return WorkerFailedError(text, reason="process_died")

    def last_words(self) -> WorkerFailedError | None:
        """:meth:`failure`, for as long as it may take one to say it."""
        until = time.monotonic() + LAST_WORDS_S
        while (found := self.failure()) is None and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def end(self, patience_s: float) -> None:
        """They end by themselves when rank 0 has; wait that long, then see to it."""
        until = time.monotonic() + patience_s
        for process in self._processes.values():
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join(END_S)
        for pipe in self._pipes.values():
            pipe.close()
        self._processes, self._pipes = {}, {}

    def _last_message(self, rank: int) -> dict[str, Any] | None:
        """What a rank reported before it ended; None when it had no time to."""
        pipe = self._pipes[rank]
        try:
            while pipe.poll():
                self._messages[rank] = pipe.recv()
        except (EOFError, OSError):
            pass  # the end of what it reported
        return self._messages.get(rank)


class ParallelWorker(Worker):
    """A worker with followers."""

    def __init__(self, plan: WorkerPlan, watchdog_s: float = WATCHDOG_S) -> None:
        assert plan.engine.parallel is not None
        ranks = plan.engine.parallel.ranks
        plan = replace(plan, threads=threads_of(plan.threads, plan.device, ranks))
        meeting = Rendezvous.fresh(ranks)
        with meeting.as_rank(0, plan.device):
            super().__init__(plan, watchdog_s)
        self._followers = Followers(plan, meeting)

    def do(self, order: Order, on_report: OnReport, stop_requested: Callable[[], bool]) -> dict[str, Any]:
        """As a worker does.

        Raises:
            WorkerFailedError: also when one of the other ranks ended; its own words where it left any.
        """

        def watched() -> bool:
            failure = None if order.command == "close" else self._followers.failure()
            if failure is not None:
                raise failure
            return stop_requested()

        try:
            return super().do(order, on_report, watched)
        except WorkerFailedError as error:
            silent = error.reason == "process_died" or is_broken_link(str(error))
            failure = self._followers.last_words() if silent else None
            if failure is None:
                raise
            raise failure from None

    def kill(self) -> bool:
        """End all ranks now; after a close the others have ended by themselves."""
        ended_well = self._process.exitcode == 0
        ended = super().kill()
        self._followers.end(END_S if ended_well else 0.0)
        return ended


def start_worker(plan: WorkerPlan, watchdog_s: float = WATCHDOG_S) -> Worker:
    """A worker of the kind that the plan needs."""
    return Worker(plan, watchdog_s) if plan.engine.parallel is None else ParallelWorker(plan, watchdog_s)


def opener_of(settings: EngineSettings) -> str:
    """What opens a model in the worker: the row of the table, or what cuts one for ranks."""
    return ENGINES[settings.kind].open if settings.parallel is None else "moeprof.capture.parallel.engine:open"


def check_parallel(workload: Workload) -> None:
    """Refuse what ranks cannot do.

    Raises:
        WorkloadError: a twin, lock-step, a ladder or a sweep of step sizes beside ``engine.parallel``, or a device that
            is not the first.
    """
    if workload.engine.parallel is None:
        return
    twin = next((spec.name for spec in workload.models if spec.twin_of is not None), None)
    if twin is not None:
        raise WorkloadError(
            f"engine.parallel: model {twin} is a twin, and no plan says how its layers are shared; leave the twin or "
            "parallel out"
        )
    for key, settings in (("lockstep", workload.lockstep), ("ladder", workload.ladder)):
        if settings is not None:
            raise WorkloadError(
                f"engine.parallel: {key} steps two models in turn in one process, ranks hold one each; leave {key} or "
                "parallel out"
            )
    if workload.device.startswith("cuda:") and workload.device != "cuda:0":
        raise WorkloadError(
            f"device: found {workload.device}; ranks take the devices from cuda:0 on. Say cuda, and choose by "
            "CUDA_VISIBLE_DEVICES"
        )


def gpus_of_ranks(workload: Workload, device: str, *, find: Callable[..., Gpu] = find_gpu) -> list[Gpu]:
    """The GPUs of rank 1 and up; empty without ranks and on a CPU.

    Raises:
        WorkloadError: there are fewer GPUs than ranks.
    """
    parallel = workload.engine.parallel
    if parallel is None or not device.startswith("cuda"):
        return []
    found = [find(None, position=rank) for rank in range(1, parallel.ranks)]
    there = next((i for i, gpu in enumerate(found, start=1) if gpu.reason in ("no_such_gpu", "hidden")), None)
    if there is not None:
        raise WorkloadError(
            f"engine.parallel.ranks: found {parallel.ranks}; {there} {'GPU is' if there == 1 else 'GPUs are'} visible, "
            "and each rank needs one"
        )
    return found


def choose_devices(workload: Workload, *, has_cuda_build: bool | None = None) -> tuple[Choice, tuple[Gpu, ...]]:
    """The device of rank 0, chosen as without ranks but from the first GPU on, and the GPUs of the other ranks.

    Args:
        workload: as read.
        has_cuda_build: whether the torch of the workers can use a GPU; None: they have this environment's.

    Raises:
        InputError: the device is not there, or there are fewer GPUs than ranks.
    """
    if not workload.engine.is_local:
        if workload.device not in ("auto", "cpu"):
            raise WorkloadError(
                f"device: found {workload.device}; the model is on a server; engine.devices counts its devices; "
                "leave device out"
            )
        return choose_device("cpu"), ()
    choice = choose_device(workload.device, has_cuda_build=has_cuda_build)
    if workload.engine.parallel is not None and choice.device.startswith("cuda:") and choice.device != "cuda:0":
        choice = choose_device("cuda:0")
    return choice, tuple(gpus_of_ranks(workload, choice.device))


def memory_of_all(memory: DeviceMemory, others: Sequence[Gpu]) -> DeviceMemory:
    """Memory of all devices as one: as often the tightest of them as there are, because each holds an equal part."""
    if not others:
        return memory
    each = [memory, *(device_memory("cuda", gpu) for gpu in others)]
    return replace(
        memory,
        total_bytes=len(each) * min(part.total_bytes for part in each),
        free_bytes=len(each) * min(part.free_bytes for part in each),
    )
