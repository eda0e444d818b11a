"""Made-up traffic: arrivals, lengths, classes and shared prefixes, each from its own seeded stream.

Separate streams mean that changing one thing leaves the others alone: another rate keeps the same lengths. Open-loop
times are drawn before the run and rescaled, so that N requests span exactly N / rate seconds: [0, N / rate) holds all
of them, the first at 0, and the gap after the last is part of the span.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import TraceError
from moeprof.core.trace import FloatArray, IntArray, Trace
from moeprof.core.workload.traffic import (
    DEFAULT_NUM_REQUESTS,
    Arrivals,
    LengthPair,
    Lengths,
    Prefix,
    RequestClass,
    Traffic,
)
from moeprof.sources.formats.columns import round_half_up

RATIO_BLOCK_TOKENS = 16
MAX_BLOCKS_PER_PREFIX = 2**20  # ids of prefix p start at p * this


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Independent random streams of one seed."""

    arrivals: np.random.Generator
    input_lengths: np.random.Generator
    output_lengths: np.random.Generator
    classes: np.random.Generator
    prefixes: np.random.Generator
    content: np.random.Generator
    warmup: np.random.Generator


def streams(seed: int) -> Streams:
    """The streams of a seed. The order of spawning is part of the format: append, never insert."""
    children = np.random.SeedSequence(seed).spawn(7)
    names = ("arrivals", "input_lengths", "output_lengths", "classes", "prefixes", "content", "warmup")
    return Streams(**{name: np.random.default_rng(child) for name, child in zip(names, children, strict=True)})


def synthesise(traffic: Traffic, *, seed: int) -> Trace:
    """A length-only trace of the given synthetic traffic.

    Raises:
        TraceError: an empirical trace cannot be read, or has no lengths.
    """
    assert traffic.arrivals is not None
    number = traffic.num_requests or DEFAULT_NUM_REQUESTS
    rngs = streams(seed)
    of_class = draw_classes(rngs.classes, traffic.classes, number)
    pairs = [traffic.lengths, *(item.lengths for item in traffic.classes)]
    # Rows of one empirical trace are drawn whole, so that long prompts keep their own outputs.
    paired = all(_same_trace(pair.input, pair.output) for pair in pairs if pair != LengthPair())
    trace = Trace(
        source="synthetic",
        arrival_s=draw_arrivals(rngs.arrivals, traffic.arrivals, number),
        input_tokens=_lengths_by_class(rngs.input_lengths, traffic, of_class, "input"),
        output_tokens=_lengths_by_class(
            streams(seed).input_lengths if paired else rngs.output_lengths, traffic, of_class, "output"
        ),
        request_class=tuple(traffic.classes[i].name for i in of_class) if traffic.classes else None,
    )
    return trace if traffic.prefix is None else with_prefixes(trace, traffic.prefix, rngs.prefixes)


def draw_arrivals(rng: np.random.Generator, arrivals: Arrivals, number: int) -> FloatArray:
    """Arrival times in seconds, shape [number]; zeros for closed loop and offline.

    gamma: gaps ~ Gamma(shape = burstiness, mean = 1 / rate), so their squared CV is 1 / burstiness; 1 is Poisson.
    """
    if not arrivals.is_open:
        return np.zeros(number, dtype=np.float64)
    assert arrivals.rate is not None
    index = np.arange(number, dtype=np.float64)
    if arrivals.pattern == "constant":
        return index / arrivals.rate
    if arrivals.pattern == "burst":
        return np.floor(index / arrivals.burst_size) * (arrivals.burst_size / arrivals.rate)
    shape = 1.0 if arrivals.pattern == "poisson" else arrivals.burstiness
    gaps = rng.gamma(shape, 1.0, number)
    total = float(gaps.sum())
    if total == 0:  # a shape near 0 underflows
        raise TraceError(f"burstiness {shape:g} is too small: all gaps are 0; use pattern burst")
    starts: FloatArray = np.concatenate([[0.0], np.cumsum(gaps[:-1])]) * (number / arrivals.rate / total)
    return starts


def draw_classes(rng: np.random.Generator, classes: tuple[RequestClass, ...], number: int) -> IntArray:
    """Index of the class of each request, shape [number]; zeros without classes."""
    if not classes:
        return np.zeros(number, dtype=np.int64)
    weights = np.array([item.weight for item in classes])
    return rng.choice(len(classes), size=number, p=weights / weights.sum()).astype(np.int64)


def draw_lengths(rng: np.random.Generator, lengths: Lengths, number: int, side: str) -> IntArray:
    """Lengths in tokens, shape [number], each at least 1.

    Args:
        rng: the stream.
        lengths: the distribution. lognormal: mu = ln(median), sigma = ln(p99 / median) / 2.326.
        number: how many.
        side: ``input`` or ``output``: the column of an empirical trace.

    Raises:
        TraceError: the empirical trace cannot be read or has no lengths.
    """
    if lengths.distribution == "fixed":
        assert lengths.value is not None
        return np.full(number, lengths.value, dtype=np.int64)
    if lengths.distribution == "uniform":
        assert lengths.low is not None and lengths.high is not None
        return rng.integers(lengths.low, lengths.high, size=number, endpoint=True)
    if lengths.distribution == "lognormal":
        return _lognormal(rng, lengths, number)
    column = _empirical(lengths, side)
    return column[rng.integers(0, len(column), size=number)]


def with_prefixes(trace: Trace, prefix: Prefix, rng: np.random.Generator) -> Trace:
    """The same trace where each prompt starts with one of a few shared prefixes, as block ids."""
    which = rng.integers(0, prefix.count, size=len(trace))
    if prefix.tokens is not None:
        return replace(trace, prefix_blocks=tuple((int(p),) for p in which), prefix_block_tokens=prefix.tokens)
    assert prefix.ratio is not None
    number = np.floor(trace.input_tokens * prefix.ratio / RATIO_BLOCK_TOKENS).astype(np.int64)
    blocks = tuple(
        tuple(range(p * MAX_BLOCKS_PER_PREFIX, p * MAX_BLOCKS_PER_PREFIX + n))
        for p, n in zip(which.tolist(), number.tolist(), strict=True)
    )
    return replace(trace, prefix_blocks=blocks, prefix_block_tokens=RATIO_BLOCK_TOKENS)


def _lengths_by_class(
    rng: np.random.Generator, traffic: Traffic, of_class: npt.NDArray[np.int64], side: str
) -> IntArray:
    common: Lengths | None = getattr(traffic.lengths, side)
    if common is not None:
        tokens = draw_lengths(rng, common, len(of_class), side)
    else:
        tokens = np.ones(len(of_class), dtype=np.int64)  # every class has its own, checked by Traffic
    for i, item in enumerate(traffic.classes):
        own: Lengths | None = getattr(item.lengths, side)
        if own is not None:
            rows = np.flatnonzero(of_class == i)
            tokens[rows] = draw_lengths(rng, own, len(rows), side)
    return tokens


def _same_trace(one: Lengths | None, other: Lengths | None) -> bool:
    if one is None or other is None:
        return False
    return one.distribution == other.distribution == "empirical" and one.path == other.path


def _lognormal(rng: np.random.Generator, lengths: Lengths, number: int) -> IntArray:
    from scipy.special import ndtri

    assert lengths.median is not None and lengths.p99 is not None
    sigma = np.log(lengths.p99 / lengths.median) / NormalDist().inv_cdf(0.99)
    top = 1.0
    if lengths.high is not None and sigma > 0:
        # The distribution cut off above ``high``: as if longer draws were drawn again, in one go.
        top = NormalDist().cdf(float(np.log(lengths.high / lengths.median)) / sigma)
    uniform = 1.0 - rng.random(number)  # in (0, 1]: the quantile of 0 is minus infinity
    quantile = np.minimum(uniform * top, np.nextafter(1.0, 0.0))
    tokens = round_half_up(lengths.median * np.exp(sigma * ndtri(quantile)))
    return tokens if lengths.high is None else np.minimum(tokens, lengths.high)


def _empirical(lengths: Lengths, side: str) -> IntArray:
    from moeprof.sources.formats import read_trace

    assert lengths.path is not None
    trace = read_trace(lengths.path, lengths.format)
    column = trace.input_tokens if side == "input" else trace.output_tokens
    if (column < 0).any():
        raise TraceError(f"{lengths.path}: carries text, not lengths; empirical lengths need a trace with token counts")
    return column
