"""The traffic of the throughput rows: all requests at once, real text cut to length, all outputs of one length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moeprof.core.trace import Schedule
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Prompts, Traffic
from moeprof.sources.schedule import build_schedule
from moeprof.sources.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of traffic.

    Attributes:
        name: for the table.
        low: shortest prompt in tokens.
        high: longest prompt in tokens.
        num_requests: requests.
        output_tokens: tokens each request produces.
        steps: batch token limits to try for all continuous engines.
        batches: batch sizes to try for ``generate``.
        repeats: turns of each rival.
    """

    name: str
    low: int
    high: int
    num_requests: int
    output_tokens: int
    steps: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int


SHORT = Load(
    name="prompts of 16-128 tokens",
    low=16,
    high=128,
    num_requests=32,
    output_tokens=64,
    steps=(1024, 4096),
    batches=(16, 32),
    repeats=15,
)
LONG = Load(
    name="prompts of 900-1,100 tokens",
    low=900,
    high=1100,
    num_requests=16,
    output_tokens=32,
    steps=(512, 2048),
    batches=(8, 16),
    repeats=9,
)
# A model that leaves the caches of a CPU: a round takes seconds.
SHAPE = Load(
    name="prompts of 16-128 tokens",
    low=16,
    high=128,
    num_requests=16,
    output_tokens=32,
    steps=(512, 2048),
    batches=(16,),
    repeats=9,
)


def make_schedule(folder: Path, load: Load) -> Schedule:
    """Prompts cut by the tokenizer in ``folder``, and continued by real text."""
    traffic = Traffic(
        arrivals=Arrivals(pattern="offline"),
        lengths=LengthPair(
            input=Lengths(distribution="uniform", low=load.low, high=load.high),
            output=Lengths(distribution="fixed", value=load.output_tokens),
        ),
        prompts=Prompts(source="packaged"),
        num_requests=load.num_requests,
    )
    return build_schedule(traffic, tokenizer=load_tokenizer(folder / "tokenizer.json"), seed=0).measured
