"""What a workload's ``traffic:`` section says, as plain types: a trace or a synthetic pattern, and the text to send.

Fields are the YAML keys. Each class checks its own values when it is made and names the key that is wrong; types and
unknown keys are the YAML reader's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from moeprof.core.errors import WorkloadError

ArrivalPattern = Literal["poisson", "gamma", "constant", "burst", "concurrency", "offline"]
Distribution = Literal["fixed", "uniform", "lognormal", "empirical"]
TooLong = Literal["drop", "truncate", "scale"]
Sessions = Literal["closed", "open"]
TimestampUnit = Literal["s", "ms", "us", "ns", "iso"]
PromptSource = Literal["packaged", "stdlib", "file", "random_ids"]

PATTERNS = ("poisson", "gamma", "constant", "burst", "concurrency", "offline")
DISTRIBUTIONS = ("fixed", "uniform", "lognormal", "empirical")
TIMESTAMP_UNITS = ("s", "ms", "us", "ns", "iso")
TOO_LONG = ("drop", "truncate", "scale")
SESSIONS = ("closed", "open")
PROMPT_SOURCES = ("packaged", "stdlib", "file", "random_ids")
COLUMN_ROLES = ("arrival", "input", "output", "session", "text", "class", "blocks")
DEFAULT_NUM_REQUESTS = 64
# Beyond these a workload means something else: of requests, and of the tokens of one (the longest contexts have 10 M).
MOST_REQUESTS, MOST_TOKENS = 1_000_000, 10_000_000
NEEDED = {"fixed": ("value",), "uniform": ("low", "high"), "lognormal": ("median", "p99"), "empirical": ("path",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """A recorded trace and what to change about it, in this order of use: jitter, window, times, lengths, limits.

    Attributes:
        path: the file.
        format: name of the format, or None to look at the content.
        columns: role to the file's own column or key, for files of no known format: arrival, input and output
            (tokens; text is a recorded answer), text (a prompt, or chat messages), session, class, blocks (prefix
            ids). A dot goes into nested keys and into JSON inside a string.
        timestamp_unit: of the file's times, or None: as the format has it, or as the file proves, which is told.
        block_tokens: prompt tokens that one prefix id stands for, or None: as the format has it, or as the prompt
            lengths prove, which is told.
        skip_bad_rows: rows that do not fit are counted and left out; otherwise the first one is refused.
        sessions: ``closed``: a turn of a conversation is sent when the answer before it has ended and its pause is
            over; ``open``: at its own time, whatever was answered. Closed where the file has sessions.
        start_s: start of the window, seconds from the trace's first request.
        duration_s: length of the window, or None for all; the window is [start_s, start_s + duration_s).
        time_scale: times are multiplied by this: 0.5 is twice as fast.
        length_scale: lengths become max(1, floor(length * scale + 0.5)).
        jitter: spread requests over their cell where the recorder rounded times to a grid.
        max_input_tokens: longest prompt, or None.
        max_output_tokens: longest output, or None.
        max_total_tokens: longest prompt plus output, or None.
        too_long: what happens to longer requests: dropped, cut, or all lengths scaled until the longest fits.
    """

    path: str
    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict, hash=False)
    timestamp_unit: TimestampUnit | None = None
    block_tokens: int | None = None
    skip_bad_rows: bool = False
    sessions: Sessions | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    time_scale: float = 1.0
    length_scale: float = 1.0
    jitter: bool = False
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_total_tokens: int | None = None
    too_long: TooLong = "drop"

    def __post_init__(self) -> None:
        for role, name in self.columns.items():
            _one_of("columns", role, COLUMN_ROLES)
            if not name:
                raise WorkloadError(f"columns.{role}: is empty; the name of a column or key is needed")
        if self.columns and not {"input", "text"} & self.columns.keys():
            raise WorkloadError("columns: input (prompt lengths) or text (prompts) is needed")
        if self.columns and self.format is not None:
            raise WorkloadError("columns: are for files of no known format; leave format out, or columns")
        if self.timestamp_unit is not None:
            _one_of("timestamp_unit", self.timestamp_unit, TIMESTAMP_UNITS)
        _at_least("start_s", self.start_s, 0)
        _positive("duration_s", self.duration_s)
        _positive("time_scale", self.time_scale)
        _positive("length_scale", self.length_scale)
        for name in ("max_input_tokens", "max_output_tokens"):
            _at_least(name, getattr(self, name), 1)
        _at_least("max_total_tokens", self.max_total_tokens, 2)
        _at_least("block_tokens", self.block_tokens, 1, MOST_TOKENS)
        _one_of("too_long", self.too_long, TOO_LONG)
        if self.sessions is not None:
            _one_of("sessions", self.sessions, SESSIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When synthetic requests arrive; of conversations, when they begin.

    Attributes:
        pattern: open loop (poisson, gamma, constant, burst), closed loop (concurrency), or all at once (offline).
        rate: requests per second of the open-loop patterns.
        burstiness: shape of the gamma gaps: 1 is Poisson, below 1 comes in bursts, above is more even.
        concurrency: requests in flight for ``concurrency``.
        burst_size: requests that arrive together for ``burst``; the bursts are evenly spaced.
    """

    pattern: ArrivalPattern = "poisson"
    rate: float | None = None
    burstiness: float = 1.0
    concurrency: int | None = None
    burst_size: int = 8

    @property
    def is_open(self) -> bool:
        """True when requests are sent at their own times."""
        return self.pattern not in ("concurrency", "offline")

    def __post_init__(self) -> None:
        _one_of("pattern", self.pattern, PATTERNS)
        _positive("rate", self.rate)
        _positive("burstiness", self.burstiness)
        _at_least("concurrency", self.concurrency, 1, MOST_REQUESTS)
        _at_least("burst_size", self.burst_size, 1, MOST_REQUESTS)
        if self.is_open and self.rate is None:
            raise WorkloadError(f"rate: missing; pattern {self.pattern} needs requests per second")
        if self.pattern == "concurrency" and self.concurrency is None:
            raise WorkloadError("concurrency: missing; pattern concurrency needs the requests in flight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long prompts or outputs are, in tokens.

    Attributes:
        distribution: fixed (value), uniform (low to high, both included), lognormal (median, p99; draws above
            ``high`` are drawn again), empirical (rows of the trace at ``path``, drawn with replacement).
        value: for fixed.
        low: for uniform.
        high: for uniform; for lognormal the largest length, or None.
        median: for lognormal.
        p99: for lognormal.
        path: for empirical.
        format: format of that trace, or None to look at the content.
    """

    distribution: Distribution = "fixed"
    value: int | None = None
    low: int | None = None
    high: int | None = None
    median: float | None = None
    p99: float | None = None
    path: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        _one_of("distribution", self.distribution, DISTRIBUTIONS)
        for name in NEEDED[self.distribution]:
            if getattr(self, name) is None:
                raise WorkloadError(f"{name}: missing; distribution {self.distribution} needs it")
        for name in ("value", "low", "high", "median", "p99"):
            _at_least(name, getattr(self, name), 1, MOST_TOKENS)
        if self.low is not None and self.high is not None and self.low > self.high:
            raise WorkloadError(f"low: {self.low}, above high ({self.high})")
        if self.median is not None and self.p99 is not None and self.p99 < self.median:
            raise WorkloadError(f"p99: {self.p99:g}, below the median ({self.median:g})")
        if self.distribution == "lognormal" and self.median is not None and (self.high or self.median) < self.median:
            raise WorkloadError(f"high: {self.high}, below the median ({self.median:g})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """Prompts that start alike: each request takes one of ``count`` prefixes, drawn evenly.

    Attributes:
        count: number of different prefixes.
        tokens: tokens of the prompt that are prefix (at most the prompt), or None with ``ratio``.
        ratio: share of each prompt that is prefix, in 16-token blocks rounded down, or None with ``tokens``.
    """

    count: int = 1
    tokens: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        _at_least("count", self.count, 1, MOST_REQUESTS)
        _at_least("tokens", self.tokens, 1, MOST_TOKENS)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise WorkloadError(f"ratio: {self.ratio:g}; above 0 and at most 1 is allowed")
        if (self.tokens is None) == (self.ratio is None):
            raise WorkloadError("give tokens or ratio, one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthPair:
    """Prompt and output lengths.

    Attributes:
        input: tokens of the prompts; beside a trace None (the trace has them).
        output: tokens of the outputs; beside a trace only for text whose rows name no output length.
    """

    input: Lengths | None = None
    output: Lengths | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """One kind of request.

    Attributes:
        name: its tag in every report; text of the same name is used where the source has it.
        weight: share of requests, relative to the others.
        lengths: its own lengths; what is None here is as in the traffic.
    """

    name: str
    weight: float = 1.0
    lengths: LengthPair = field(default_factory=LengthPair)

    def __post_init__(self) -> None:
        _positive("weight", self.weight)
        if not self.name:
            raise WorkloadError("name: is empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Where the text of length-only requests comes from.

    Attributes:
        source: ``stdlib`` (what every Python carries), ``packaged`` (small, ships with moeprof, the same everywhere),
            ``file`` (yours), ``random_ids`` (marked as unreal in every report).
        path: for ``file``: .jsonl with prompt, text or messages in each row, or any text (passages between %% lines).
        classes: names of the text classes to use, empty for all the source has.
    """

    source: PromptSource = "stdlib"
    path: str | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _one_of("source", self.source, PROMPT_SOURCES)
        if (self.source == "file") != (self.path is not None):
            raise WorkloadError("path: needed with source file, and only there")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A recorded trace, or arrivals and lengths; and the text.

    Attributes:
        trace: the recorded trace, or None for synthetic traffic.
        arrivals: for synthetic traffic; beside a trace they replace its times.
        lengths: for synthetic traffic; beside a trace, ``output`` for text whose rows name no output length.
        prompts: the text of length-only requests and of the warm-up.
        prefix: shared prefixes of synthetic traffic, or None.
        classes: classes of synthetic requests; empty: those of the text. A trace has its own.
        num_requests: the first so many requests of the window; None: all of a trace, 64 of synthetic traffic.
    """

    trace: TraceSource | None = None
    arrivals: Arrivals | None = None
    lengths: LengthPair = field(default_factory=LengthPair)
    prompts: Prompts = field(default_factory=Prompts)
    prefix: Prefix | None = None
    classes: tuple[RequestClass, ...] = ()
    num_requests: int | None = None

    def __post_init__(self) -> None:
        _at_least("num_requests", self.num_requests, 1, MOST_REQUESTS)
        names = [item.name for item in self.classes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise WorkloadError(f"classes: the name {twice[0]!r} stands twice")
        if self.trace is not None:
            if self.lengths.input is not None or self.prefix is not None or self.classes:
                raise WorkloadError("lengths.input, prefix and classes are for synthetic traffic; here is a trace")
            return
        if self.arrivals is None:
            raise WorkloadError("give trace (recorded), or arrivals and lengths (synthetic)")
        for side in ("input", "output"):
            of_class = [getattr(item.lengths, side) for item in self.classes]
            if getattr(self.lengths, side) is None and (not of_class or None in of_class):
                raise WorkloadError(f"lengths.{side}: missing; synthetic traffic needs it")

    def with_paths(self, absolute: Callable[[str], str]) -> Traffic:
        """The same traffic with every file path passed through ``absolute``."""

        def lengths(pair: LengthPair) -> LengthPair:
            return LengthPair(input=one(pair.input), output=one(pair.output))

        def one(item: Lengths | None) -> Lengths | None:
            return item if item is None or item.path is None else replace(item, path=absolute(item.path))

        prompts = self.prompts
        return replace(
            self,
            trace=None if self.trace is None else replace(self.trace, path=absolute(self.trace.path)),
            lengths=lengths(self.lengths),
            prompts=prompts if prompts.path is None else replace(prompts, path=absolute(prompts.path)),
            classes=tuple(replace(item, lengths=lengths(item.lengths)) for item in self.classes),
        )


def _positive(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise WorkloadError(f"{key}: found {value:g}; more than 0 is allowed")


def _at_least(key: str, value: float | None, least: float, most: float | None = None) -> None:
    if value is not None and most is not None and not least <= value <= most:
        raise WorkloadError(f"{key}: found {value:g}; {least:g} to {most:,} is allowed")
    if value is not None and not least <= value < float("inf"):
        raise WorkloadError(f"{key}: found {value:g}; {least:g} or more is allowed")


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise WorkloadError(f"{key}: found {value!r}; allowed: {', '.join(allowed)}")
