"""What a workload's ``traffic:`` section says, as plain types: a trace or a synthetic pattern, and the text to send.

Names follow the YAML keys. ``Traffic.validate`` checks the values and names the key that is wrong; types, unknown keys
and paths are the workload parser's business (paths here are already resolved).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moeprof.core.errors import WorkloadError

ArrivalPattern = Literal["poisson", "gamma", "constant", "burst", "concurrency", "offline"]
Distribution = Literal["fixed", "uniform", "lognormal", "empirical"]
TooLong = Literal["drop", "truncate", "scale"]
PromptSource = Literal["packaged", "stdlib", "file", "random_ids"]

PATTERNS = ("poisson", "gamma", "constant", "burst", "concurrency", "offline")
DISTRIBUTIONS = ("fixed", "uniform", "lognormal", "empirical")
TOO_LONG = ("drop", "truncate", "scale")
PROMPT_SOURCES = ("packaged", "stdlib", "file", "random_ids")
DEFAULT_NUM_REQUESTS = 64
NEEDED = {"fixed": ("value",), "uniform": ("low", "high"), "lognormal": ("median", "p99"), "empirical": ("path",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSource:
    """A recorded trace and what to change about it, in this order of use: jitter, window, times, lengths, limits.

    Attributes:
        path: the file.
        format: name of the format, or None to look at the content.
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

    path: Path
    format: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    time_scale: float = 1.0
    length_scale: float = 1.0
    jitter: bool = False
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_total_tokens: int | None = None
    too_long: TooLong = "drop"

    def validate(self, key: str = "traffic.trace") -> None:
        """Check the ranges; a WorkloadError names the key."""
        _at_least(f"{key}.start_s", self.start_s, 0)
        _positive(f"{key}.duration_s", self.duration_s)
        _positive(f"{key}.time_scale", self.time_scale)
        _positive(f"{key}.length_scale", self.length_scale)
        for name in ("max_input_tokens", "max_output_tokens"):
            _at_least(f"{key}.{name}", getattr(self, name), 1)
        _at_least(f"{key}.max_total_tokens", self.max_total_tokens, 2)
        _one_of(f"{key}.too_long", self.too_long, TOO_LONG)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When synthetic requests arrive.

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

    def validate(self, key: str = "traffic.arrivals") -> None:
        """Check the ranges; a WorkloadError names the key."""
        _one_of(f"{key}.pattern", self.pattern, PATTERNS)
        _positive(f"{key}.rate", self.rate)
        _positive(f"{key}.burstiness", self.burstiness)
        _at_least(f"{key}.concurrency", self.concurrency, 1)
        _at_least(f"{key}.burst_size", self.burst_size, 1)
        if self.is_open and self.rate is None:
            raise WorkloadError(f"{key}.rate: missing; pattern {self.pattern} needs requests per second")
        if self.pattern == "concurrency" and self.concurrency is None:
            raise WorkloadError(f"{key}.concurrency: missing; pattern concurrency needs the requests in flight")


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
    path: Path | None = None
    format: str | None = None

    def validate(self, key: str) -> None:
        """Check the ranges, and that the distribution has what it needs.

        Raises WorkloadError, which names the key.
        """
        _one_of(f"{key}.distribution", self.distribution, DISTRIBUTIONS)
        for name in NEEDED[self.distribution]:
            if getattr(self, name) is None:
                raise WorkloadError(f"{key}.{name}: missing; distribution {self.distribution} needs it")
        for name in ("value", "low", "high", "median", "p99"):
            _at_least(f"{key}.{name}", getattr(self, name), 1)
        if self.low is not None and self.high is not None and self.low > self.high:
            raise WorkloadError(f"{key}.low: {self.low}, above high ({self.high})")
        if self.median is not None and self.p99 is not None and self.p99 < self.median:
            raise WorkloadError(f"{key}.p99: {self.p99:g}, below the median ({self.median:g})")
        if self.distribution == "lognormal" and self.median is not None and (self.high or self.median) < self.median:
            raise WorkloadError(f"{key}.high: {self.high}, below the median ({self.median:g})")


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

    def validate(self, key: str = "traffic.prefix") -> None:
        """Check the ranges; a WorkloadError names the key."""
        _at_least(f"{key}.count", self.count, 1)
        _at_least(f"{key}.tokens", self.tokens, 1)
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise WorkloadError(f"{key}.ratio: {self.ratio:g}; above 0 and at most 1 is allowed")
        if (self.tokens is None) == (self.ratio is None):
            raise WorkloadError(f"{key}: give tokens or ratio, one of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestClass:
    """One kind of request.

    Attributes:
        name: its tag in every report; text of the same name is used where the source has it.
        weight: share of requests, relative to the others.
        input_lengths: its own prompt lengths, or None for the traffic's.
        output_lengths: its own output lengths, or None for the traffic's.
    """

    name: str
    weight: float = 1.0
    input_lengths: Lengths | None = None
    output_lengths: Lengths | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Where the text of length-only requests comes from.

    Attributes:
        source: ``packaged`` (ships with moeprof), ``stdlib`` (Python's own), ``file`` (yours), ``random_ids``.
        path: for ``file``: .jsonl with prompt, text or messages in each row, or any text (passages between %% lines).
        classes: names of the text classes to use, empty for all the source has.
    """

    source: PromptSource = "packaged"
    path: Path | None = None
    classes: tuple[str, ...] = ()

    def validate(self, key: str = "traffic.prompts") -> None:
        """Check that ``file`` has a path.

        Raises WorkloadError, which names the key.
        """
        _one_of(f"{key}.source", self.source, PROMPT_SOURCES)
        if (self.source == "file") != (self.path is not None):
            raise WorkloadError(f"{key}.path: needed with source file, and only there")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A recorded trace, or arrivals and lengths; and the text.

    Attributes:
        trace: the recorded trace, or None for synthetic traffic.
        arrivals: for synthetic traffic; beside a trace they replace its times.
        input_lengths: for synthetic traffic.
        output_lengths: for synthetic traffic; beside a trace, the output lengths of rows that have none.
        prompts: the text.
        prefix: shared prefixes of synthetic traffic, or None.
        classes: request classes; empty: a trace keeps its own, other traffic has those of the text.
        num_requests: the first so many requests of the window; None: all of a trace, 64 of synthetic traffic.
    """

    trace: TraceSource | None = None
    arrivals: Arrivals | None = None
    input_lengths: Lengths | None = None
    output_lengths: Lengths | None = None
    prompts: Prompts = Prompts()
    prefix: Prefix | None = None
    classes: tuple[RequestClass, ...] = ()
    num_requests: int | None = None

    def validate(self, key: str = "traffic") -> None:
        """Check everything below, and that the parts fit each other.

        Raises WorkloadError, which names the key.
        """
        _at_least(f"{key}.num_requests", self.num_requests, 1)
        if self.trace is None:
            for name in ("arrivals", "input_lengths", "output_lengths"):
                if getattr(self, name) is None:
                    raise WorkloadError(f"{key}: without a trace it needs {name.replace('_', ' ')}")
        elif self.input_lengths is not None or self.prefix is not None or self.classes:
            raise WorkloadError(f"{key}: input lengths, prefix and classes are for synthetic traffic; there is a trace")
        if self.trace is not None:
            self.trace.validate(f"{key}.trace")
        if self.arrivals is not None:
            self.arrivals.validate(f"{key}.arrivals")
        for lengths, name in ((self.input_lengths, "lengths.input"), (self.output_lengths, "lengths.output")):
            if lengths is not None:
                lengths.validate(f"{key}.{name}")
        if self.prefix is not None:
            self.prefix.validate(f"{key}.prefix")
        self.prompts.validate(f"{key}.prompts")
        _check_classes(f"{key}.classes", self.classes)


def _check_classes(key: str, classes: Sequence[RequestClass]) -> None:
    names = [item.name for item in classes]
    for item in classes:
        if not item.name or names.count(item.name) > 1:
            raise WorkloadError(f"{key}: class name {item.name!r} is empty or stands there twice")
        _positive(f"{key}.{item.name}.weight", item.weight)
        if item.input_lengths is not None:
            item.input_lengths.validate(f"{key}.{item.name}.lengths.input")
        if item.output_lengths is not None:
            item.output_lengths.validate(f"{key}.{item.name}.lengths.output")


def _positive(key: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise WorkloadError(f"{key}: {value:g}; a number above 0 is allowed")


def _at_least(key: str, value: float | None, least: float) -> None:
    if value is not None and not least <= value < float("inf"):
        raise WorkloadError(f"{key}: {value:g}; {least:g} or more is allowed")


def _one_of(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise WorkloadError(f"{key}: {value!r}; one of {', '.join(allowed)} is allowed")
