"""Replay throughput against ``generate`` and ``generate_batch``, each tuned, in turns on the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders import Contender, Generate, GenerateBatch, Ours
from benchmarks.verdict import Row, Target, ratios
from moeprof.core.trace import Schedule
from moeprof.core.traffic import Arrivals, LengthPair, Lengths, Prompts, Traffic
from moeprof.sources.schedule import build_schedule
from moeprof.sources.tokenizer import load_tokenizer

AS_GOOD = Target(at_least=1.0, low_at_least=0.97)
TWICE = Target(at_least=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of traffic; all requests at once, all outputs of one length.

    Attributes:
        name: for the table.
        low: shortest prompt in tokens.
        high: longest prompt in tokens.
        num_requests: requests.
        output_tokens: tokens each request produces.
        steps: batch token limits to try for both continuous engines.
        batches: batch sizes to try for ``generate``.
        repeats: turns of each contender.
        against_generate_batch: the target beside it.
    """

    name: str
    low: int
    high: int
    num_requests: int
    output_tokens: int
    steps: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int
    against_generate_batch: Target


SHORT = Load(
    name="prompts of 16-128 tokens",
    low=16,
    high=128,
    num_requests=32,
    output_tokens=64,
    steps=(1024, 4096),
    batches=(16, 32),
    repeats=15,
    against_generate_batch=AS_GOOD,
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
    against_generate_batch=TWICE,
)


def throughput_rows(model: Any, folder: Path, load: Load, repeats: int, say: Callable[[str], None]) -> list[Row]:
    """Two rows: ours over ``generate``, ours over ``generate_batch``; one tuned contender of each kind, in turns."""
    schedule = continued_by_itself(model, make_schedule(folder, load), load.batches[-1])
    best = [
        _best([partial(Ours, model, schedule, max_batch_tokens=most) for most in load.steps], say),
        _best([partial(Generate, model, schedule, batch=batch, attn="sdpa") for batch in load.batches], say),
        _best_generate_batch(model, schedule, load, say),
    ]
    contenders = [make() for make in best]
    for contender in contenders:
        contender.run()  # warm: only second calls count
    rates = in_turns(contenders, repeats)
    for contender in contenders:
        contender.close()
    ours, generate, generate_batch = contenders
    facts = ", ".join(f"{c.name}: {median(rates[c.name]):.0f} tok/s" for c in contenders)
    targets = ((generate, "generate", AS_GOOD), (generate_batch, "generate_batch", load.against_generate_batch))
    return [
        Row(
            what=f"replay / {name}, {load.name}",
            target=target,
            samples=ratios(rates[ours.name], rates[other.name]),
            details=facts if other is generate else "",
        )
        for other, name, target in targets
    ]


def make_schedule(folder: Path, load: Load) -> Schedule:
    """Real text, cut to length by the model's own tokenizer, and continued by real text."""
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


def continued_by_itself(model: Any, schedule: Schedule, batch: int) -> Schedule:
    """The same prompts, forced to continue as ``generate`` does, so that every contender computes the same tokens."""
    contender = Generate(model, schedule, batch=batch, attn="sdpa")
    contender.run()
    return replace(schedule, output_ids=contender.outputs())


def in_turns(contenders: Sequence[Contender], repeats: int) -> dict[str, list[float]]:
    """Output tokens per second, by contender: A B C, then C B A, and so on."""
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    produced = set()
    for number in range(repeats):
        for contender in contenders[:: -1 if number % 2 else 1]:
            seconds, tokens = contender.run()
            rates[contender.name].append(tokens / seconds)
            produced.add(tokens)
    assert len(produced) == 1, f"contenders produced different numbers of tokens: {sorted(produced)}"
    return rates


Make = Callable[[], Contender]


def _best(makers: Sequence[Make], say: Callable[[str], None], turns: int = 5) -> Make:
    """The maker of the fastest contender by the median of some turns, after a warm call each."""
    contenders = [make() for make in makers]
    for contender in contenders:
        contender.run()
    rates = [median(of_one) for of_one in in_turns(contenders, turns).values()]
    for contender, rate in zip(contenders, rates, strict=True):
        say(f"  {contender.name}: {rate:.0f} tok/s")
        contender.close()
    return makers[rates.index(max(rates))]


def _best_alone(makers: Sequence[Make], say: Callable[[str], None]) -> Make:
    """The same for contenders that cannot be alive together (the model keeps one manager): one by one, best of two."""
    rates = []
    for make in makers:
        contender = make()
        contender.run()
        rates.append(max(tokens / seconds for seconds, tokens in (contender.run(), contender.run())))
        say(f"  {contender.name}: {rates[-1]:.0f} tok/s")
        contender.close()
    return makers[rates.index(max(rates))]


def _best_generate_batch(model: Any, schedule: Schedule, load: Load, say: Callable[[str], None]) -> Make:
    """Page size first, then batch tokens, then attention; the best so far is kept each time."""
    choice: dict[str, Any] = {"page": 16, "max_batch_tokens": load.steps[-1], "attn": "sdpa"}
    for name, values in (("page", (16, 256)), ("max_batch_tokens", load.steps), ("attn", ("sdpa", "paged|eager"))):
        options = [{**choice, name: value} for value in values]
        makers = [partial(GenerateBatch, model, schedule, **option) for option in options]
        choice = options[makers.index(_best_alone(makers, say))]  # type: ignore[arg-type]
    return partial(GenerateBatch, model, schedule, **choice)
