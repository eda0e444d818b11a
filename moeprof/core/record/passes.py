"""``pass.json``: what one pass over the schedule was, how it ended, and whether its figures add up."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, UnsetType, field

from moeprof.core.record.headers import Facts, Header, written
from moeprof.core.workload.studies import SweepPoint

TRAFFIC = ("open", "closed", "offline")


class Invariant(Facts, frozen=True, kw_only=True):
    """Whether figures that must add up do, and how far they are apart."""

    passed: bool
    text: str


class Saturation(Facts, frozen=True, kw_only=True):
    """Whether the engine kept up with the arrivals of a pass; None where the pass cannot tell, and why."""

    saturated: bool | None = None
    reason: str | None = None


class PassMemory(Header, frozen=True, kw_only=True):
    """Memory at its worst within a pass; the device's allocator speaks on a device alone."""

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    reserved_changed: bool | None = None
    host_rss_peak_bytes: int | None = None


class PassEnd(Header, frozen=True, kw_only=True):
    """How a pass ended, be it of one model or of several in turn; None: it never began."""

    status: str | None = None
    cut_by: str | None = None


class ClientHeader(Facts, frozen=True, kw_only=True):
    """The client of a server in one pass; lag: how late its loop came back to a timer.

    Attributes:
        tokens_per_s: output tokens that arrived in the pass, over its length.
        cpu_ratio: processor time of its thread over the length of the pass.
        lag_p50_s, lag_p99_s: in the pass.
        limit_tokens_per_s: from a loop-back server that costs nothing: the most that it takes a second, one token a
            chunk, with one core.
        flood_tokens_per_s: from that server as fast as it goes, many tokens a read.
        paced_tokens_per_s, paced_streams: what that server sent at about the run's rate, spread over so many streams.
        paced_lag_p50_s, paced_lag_p99_s: from the server's stamp to the client, there.
        reason: why there is no limit.
    """

    tokens_per_s: float | None = None
    cpu_ratio: float | None = None
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None
    limit_tokens_per_s: float | None = None
    flood_tokens_per_s: float | None = None
    paced_tokens_per_s: float | None = None
    paced_streams: int | None = None
    paced_lag_p50_s: float | None = None
    paced_lag_p99_s: float | None = None
    reason: str | None = None


class CountersHeader(Facts, frozen=True, kw_only=True):
    """A server's own counters over one pass, as differences; None where it has no such counter.

    Attributes:
        reason: why there are none.
        window_s: between the first and the last look.
        input_tokens, output_tokens: that it processed.
        queue_s, prefill_s, decode_s: seconds summed over the requests of the count beside it.
        queue_requests, prefill_requests, decode_requests: how many requests these sums are of.
        steps, step_tokens: steps, and the tokens in them.
        prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and found.
        preemptions: requests that lost their cache.
    """

    reason: str | None = None
    window_s: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    queue_s: float | None = None
    queue_requests: float | None = None
    prefill_s: float | None = None
    prefill_requests: float | None = None
    decode_s: float | None = None
    decode_requests: float | None = None
    steps: float | None = None
    step_tokens: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    preemptions: float | None = None


class PassHeader(Header, frozen=True, kw_only=True):
    """pass.json.

    Attributes:
        reference_kernel_s: seconds of a fixed small kernel just before; absent for a sweep's short passes.
        traffic: ``open``, ``closed`` or ``offline``.
        started_unix_s: when.
        status: ``started``, ``done``, ``cut``, ``stopped`` or ``failed``; None: it never began.
        reason, error: why it failed.
        process: which process of a resumed run measured it; 0: the run's own.
        captured_steps, decode: sizes of decode step captured for it, and how decode steps were launched.
        origin_perf_s: clock of the worker at its start.
        duration_s: the measured window.
        sent, refused, finished: requests.
        not_sent: turns whose predecessor came to nothing; None where no turn waits.
        memory: at its worst.
        invariants: by name.
        ranks: picks of each rank, where several share the model.
        cut_by: the setting that ended it.
        sweep, round, schedule_sha256, saturation: of a sweep's pass.
        client, counters: where the engine is a server.
    """

    reference_kernel_s: float | None = None
    traffic: str = field(default_factory=written("open"))
    started_unix_s: float | None = None
    status: str | None = None
    reason: str | UnsetType | None = UNSET
    error: str | None = None
    process: int = field(default_factory=written(0))
    captured_steps: int | None = None
    decode: str | None = None
    origin_perf_s: float | None = None
    duration_s: float | None = None
    sent: int | None = None
    refused: int | None = None
    finished: int | None = None
    not_sent: int | UnsetType | None = UNSET
    memory: PassMemory | None = None
    invariants: dict[str, Invariant] | None = None
    ranks: dict[str, Any] | None = None
    cut_by: str | None = None
    sweep: SweepPoint | None = None
    round: int | None = None
    schedule_sha256: str | None = None
    saturation: Saturation | None = None
    client: ClientHeader | None = None
    counters: CountersHeader | None = None

    def __post_init__(self) -> None:
        if self.traffic not in TRAFFIC:
            raise ValueError(f"traffic is {self.traffic!r}; {', '.join(TRAFFIC)} are known")
