"""``launch.json``: what one fresh process learnt of its model, its engine and the device."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType, field
from msgspec.structs import replace

from moeprof.core.record.breakdown import Clock, Gap, GapPoint
from moeprof.core.record.headers import Facts, Header, written


class ServerHeader(Facts, frozen=True, kw_only=True):
    """A server that answered, and how it was asked.

    Attributes:
        host: of its address; whether it is another machine.
        software: its kind: a row of ``KINDS`` of moeprof/capture/engines/served/kinds.py.
        title: of the kind.
        checked: how what is assumed of the kind is known: ``run``, ``source`` or ``documentation``.
        version: as it told it.
        served_as: its name for the model.
        devices, replicas: of the deployment, as the workload says.
        endpoint: ``completions`` or ``chat``.
        prompts: ``ids`` or ``text``.
        fixed_length: what made outputs as long as asked, or None.
        tokens_from: what counted output tokens: ``ids``, ``usage`` (of each chunk) or ``usage at the end``.
        counters: addresses of its own counters.
        assumptions: what was tried at the start, and what came of it.
    """

    host: str = ""
    software: str = ""
    title: str = ""
    checked: str = ""
    version: str | None = None
    served_as: str | None = None
    devices: int | None = None
    replicas: int | None = None
    endpoint: str | None = None
    prompts: str | None = None
    fixed_length: str | None = None
    tokens_from: str | None = None
    counters: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


class EngineHeader(Facts, frozen=True, kw_only=True):
    """What an engine is; see ``EngineFacts`` of moeprof/capture/engines/base.py, whose fields these are."""

    kind: str | None = None
    batching: str | None = None
    attention: str | None = None
    experts: str | None = None
    dtype: str | None = None
    device: str | None = None
    kv_tokens: int | None = None
    kv_bytes: int | None = None
    max_batch_tokens: int | None = None
    max_sequence_tokens: int | None = None
    notes: tuple[str, ...] = ()
    scheduler: str | None = None
    decode: str | None = None
    compiled: str | None = None
    run_ahead: bool = False
    decode_experts: str | None = None
    cpu_kernels: str = "off"
    ranks: int = 1
    parallel: str | None = None


class KvSpaceHeader(Facts, frozen=True, kw_only=True):
    """The cache that was allocated; see ``KvSpace`` of moeprof/capture/memory/kv_space.py."""

    kv_tokens: int | None = None
    kv_bytes: int | None = None
    activation_peak_bytes: int | None = None
    workspace_bytes: int | None = None
    margin_bytes: int | None = None
    free_bytes: int | None = None
    most_kv_tokens: int | None = None
    reason: str | None = None


class PeakTrial(Facts, frozen=True, kw_only=True):
    """One timing of the device: bytes moved or FLOPs done, and the seconds they took."""

    kind: str
    amount: int | float  # whole bytes stay whole on disk
    seconds: float


class PeaksHeader(Facts, frozen=True, kw_only=True):
    """Measured limits of the device; see ``Peaks`` of moeprof/capture/devices/peaks.py."""

    device: str | None = None
    threads: int | None = None
    bandwidth_bytes_per_s: float | None = None
    bandwidth_method: str | None = None
    bandwidth_reason: str | None = None
    flops_per_s: dict[str, float] = field(default_factory=dict)
    cache_bytes: int | None = None
    buffer_bytes: int | None = None
    trials: tuple[PeakTrial, ...] = ()
    spent_s: float | None = None


class WarmupHeader(Facts, frozen=True, kw_only=True):
    """How warm-up went; see ``WarmupResult`` of moeprof/capture/measure/warmup.py."""

    num_requests: int | None = None
    seconds: float = 0.0
    settled: bool = False
    drift_ratio: float | None = None


class TapClaim(Facts, frozen=True, kw_only=True):
    """One claim of the routing tap; ``passed`` is None where it cannot be asked of this model."""

    name: str = ""
    passed: bool | None = None
    detail: str = ""


class SelfCheckHeader(Header, frozen=True, kw_only=True):
    """Whether the routing tap says the truth; None where there is no tap, and ``notes`` says why."""

    passed: bool | None = field(default_factory=written(None))
    checks: tuple[TapClaim, ...] = ()
    notes: tuple[str, ...] = field(default_factory=written(()))
    executes_all_experts: bool | UnsetType = UNSET

    @property
    def failure(self) -> str | None:
        """What the first claim that failed saw; None when none did."""
        if self.passed is not False:
            return None
        return next((claim.detail for claim in self.checks if claim.passed is False), "see launch.json")


class MemoryHeader(Header, frozen=True, kw_only=True):
    """Memory of the launch at its worst, with the reasons of what is null."""

    after_load_bytes: int | None = None
    load_peak_bytes: int | None = None
    after_warmup_bytes: int | None = None
    kv_cache_bytes: int | UnsetType | None = UNSET
    host_rss_peak_bytes: int | None = None
    host_rss_start_bytes: int | None = None
    kind: str | None = None
    device_total_bytes: int | None = None
    peak_allocated_bytes: int | None = field(default_factory=written(None))
    reserved_at_peak_bytes: int | None = None
    reserved_at_peak_is_exact: bool | None = None
    peak_reserved_bytes: int | None = field(default_factory=written(None))
    activation_peak_bytes: int | None = field(default_factory=written(None))
    num_alloc_retries: int | None = None
    reasons: dict[str, str] = field(default_factory=lambda: dict[str, str]())  # written when empty too


class RanksHeader(Facts, frozen=True, kw_only=True):
    """Of a model that several processes share: how, and the memory of each."""

    plan: str | None = None
    ranks: int | None = None
    backend: str | None = None
    memory_of_each: tuple[dict[str, int], ...] = ()
    memory_largest: dict[str, int] = field(default_factory=dict)


class QualityHeader(Header, frozen=True, kw_only=True):
    """Bits of the forced outputs and the bytes of their text, per request and in all; or the reason for none."""

    reason: str | None = None
    bits: float | None = None
    bytes: int | None = None
    tokens: int | None = None
    requests: int | None = None
    per_request: tuple[tuple[float, float], ...] = ()


class ForcedPicksHeader(Header, frozen=True, kw_only=True):
    """Which forced tokens forced.npz holds, or the reason why there is none."""

    reason: str | None = None
    tokens: int | None = None
    requests: int | None = None
    sha256: str | None = None


class GapHeader(Header, frozen=True, kw_only=True):
    """The breakdown of steps (see breakdown.py), or the reason why there is none."""

    reason: str | None = None
    clock: Clock | None = None
    layers: tuple[str, ...] = field(default_factory=written(()))
    points: tuple[GapPoint, ...] = field(default_factory=written(()))
    spent_s: float | None = None
    notes: tuple[str, ...] = field(default_factory=written(()))

    @property
    def found(self) -> Gap | None:
        """What was measured; None where there is a reason for nothing."""
        if self.clock is None or self.spent_s is None:
            return None
        return Gap(clock=self.clock, layers=self.layers, points=self.points, spent_s=self.spent_s, notes=self.notes)


class StoppedRate(Facts, frozen=True, kw_only=True):
    """A request rate that was saturated in every round, and the points that were left out for it."""

    point: int
    request_rate: float | None
    skipped: tuple[int, ...]
    reason: str


class SweepStopped(Facts, frozen=True, kw_only=True):
    """Why a sweep did not climb further."""

    reason: str
    rows: tuple[StoppedRate, ...] = ()


class LaunchHeader(Header, frozen=True, kw_only=True):
    """launch.json; empty for a launch that died before it learnt anything.

    Attributes:
        resumed, process: of a launch that another process of the run went on with.
        kv_space: the cache that was allocated.
        engine: what ran.
        dtype_reason: why in this dtype.
        load_s: seconds to load.
        end_ids: ids that end an output, where the model may end it; empty: the checkpoint names none.
        threads: of the CPU.
        reloaded: the model was loaded once more for later rounds.
        self_check: of the routing tap.
        warmup: how it went.
        memory: at its worst.
        ranks: of a model that several processes share.
        cpu_kernels: what was asked for, and how many modules agreed with their own code.
        peaks: of the device; measured once per run.
        quality, forced_picks, gap, overhead_pairs: measured after the rounds.
        sweep_stopped: why a sweep did not climb further.
        lacks: what the deployment does not offer -> why.
        taken: settings as an engine of others made them of those that were left to it.
        server: of an engine that is a server.
    """

    resumed: bool | None = None
    process: int | None = None
    kv_space: KvSpaceHeader | None = None
    engine: EngineHeader = EngineHeader()
    dtype_reason: str | None = None
    load_s: float | None = None
    end_ids: tuple[int, ...] | None = None
    threads: int | None = None
    reloaded: bool | None = None
    self_check: SelfCheckHeader = SelfCheckHeader()
    warmup: WarmupHeader | None = None
    memory: MemoryHeader = MemoryHeader()
    ranks: RanksHeader | None = None
    cpu_kernels: dict[str, Any] | None = None
    peaks: PeaksHeader | None = None
    quality: QualityHeader | None = None
    forced_picks: ForcedPicksHeader | None = None
    gap: GapHeader | None = None
    overhead_pairs: int | dict[str, str] | None = None
    sweep_stopped: SweepStopped | None = None
    lacks: dict[str, str] = field(default_factory=dict)
    taken: dict[str, Any] | None = None
    server: ServerHeader | None = None

    def knows(self, key: str) -> bool:
        """Whether the launch has measured what this key holds."""
        return getattr(self, key) is not None


def with_peaks(launch: LaunchHeader, peaks: PeaksHeader | None) -> LaunchHeader:
    """The launch with the device's peaks, which another launch of the run may have measured."""
    return launch if launch.peaks is not None else replace(launch, peaks=peaks)
