"""Times in whatever unit a file has, as seconds; and how many tokens a prefix id stands for.

What the user says wins. Else the format's own unit or block size stands, unless the file proves another: stamps that
are a clock since 1970 in some unit, fractions and the request rate they imply, prompt lengths beside numbers of ids.
What was concluded is told in a note; what cannot be so is refused.
"""

from __future__ import annotations

import re

import numpy as np

from moeprof.core.trace import FloatArray, IntArray
from moeprof.core.workload.traffic import TimestampUnit as Unit
from moeprof.sources.formats.file import SourceFile

PER_SECOND: dict[Unit, float] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
UNIT_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
EPOCH_S = (1e9, 2.5e9)  # clocks since 1970 that stand between 2001 and 2049
MAX_RATE = 100.0  # requests per second that are believed without a word
MIN_RATE = 0.01
NAMED_UNITS: dict[str, Unit] = {"s": "s", "sec": "s", "secs": "s", "seconds": "s"}
NAMED_UNITS |= {"ms": "ms", "msec": "ms", "millis": "ms", "milliseconds": "ms"}
NAMED_UNITS |= {"us": "us", "usec": "us", "micros": "us", "microseconds": "us"}
NAMED_UNITS |= {"ns": "ns", "nsec": "ns", "nanos": "ns", "nanoseconds": "ns"}
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # startTimeMs
UNIT_IN_NAME = re.compile(rf"(?:_|\b)({'|'.join(NAMED_UNITS)})\W*$", re.IGNORECASE)
MAX_BLOCK_EXPONENT = 16


def inferred_unit(file: SourceFile, name: str, stamps: FloatArray, unit: Unit | None) -> Unit:
    """The unit that the stamps prove, else the format's.

    The proofs, in this order: all stamps are a clock since 1970 in one unit; the column's name ends in a unit (only
    where the format has none); fractions whose reading as milliseconds means more than 100 requests per second, as
    seconds not.

    Raises:
        TraceError: no unit makes sense without a word from the user.
    """
    span = float(np.ptp(stamps))
    if span == 0:
        return unit or "s"
    rates = {u: (len(stamps) - 1) / span * scale for u, scale in PER_SECOND.items()}
    clock = next(
        (
            u
            for u, scale in PER_SECOND.items()
            if EPOCH_S[0] * scale <= stamps.min() <= stamps.max() < EPOCH_S[1] * scale
        ),
        None,
    )
    if clock is not None:
        return _told(file, name, clock, unit, len(stamps), rates, "the stamps are a clock since 1970")
    fractions = bool((stamps % 1 != 0).any())
    if unit is None:
        return _unit_of_unknown(file, name, len(stamps), rates, fractions)
    if unit == "ms" and fractions and rates["ms"] > MAX_RATE:
        if rates["s"] > MAX_RATE:
            raise _unknown_unit(file, name, rates)
        why = f"the stamps have fractions, and as milliseconds they mean {rates['ms']:.4g} requests per second"
        return _told(file, name, "s", unit, len(stamps), rates, why)
    odd = fractions or rates["ms"] > MAX_RATE if unit == "ms" else not fractions and rates[unit] < MIN_RATE
    if odd:
        other: Unit = "s" if unit == "ms" else "ms"
        file.note(
            "timestamp_unit",
            len(stamps),
            f"{name} is read in {UNIT_WORDS[unit]}, the format's unit ({rates[unit]:.4g} requests per second); if it "
            f"is in {UNIT_WORDS[other]}, say timestamp_unit: {other}",
        )
    return unit


def _unit_of_unknown(file: SourceFile, name: str, num_rows: int, rates: dict[Unit, float], fractions: bool) -> Unit:
    in_name = UNIT_IN_NAME.search(HUMP.sub("_", name))
    if in_name is not None:
        named = NAMED_UNITS[in_name[1].lower()]
        return _told(file, name, named, None, num_rows, rates, "its name says so")
    choices: tuple[Unit, ...] = ("s",) if fractions else ("s", "ms", "us", "ns")
    for unit in choices:
        if MIN_RATE <= rates[unit] <= MAX_RATE:
            return _told(file, name, unit, None, num_rows, rates, "the rate is then plausible")
    raise _unknown_unit(file, name, rates)


def _told(
    file: SourceFile, name: str, unit: Unit, format_unit: Unit | None, num_rows: int, rates: dict[Unit, float], why: str
) -> Unit:
    if unit != format_unit:
        file.note(
            "timestamp_unit",
            num_rows,
            f"{name} is read in {UNIT_WORDS[unit]} ({rates[unit]:.4g} requests per second): {why}; if that is wrong, "
            "say timestamp_unit",
        )
    return unit


def _unknown_unit(file: SourceFile, name: str, rates: dict[Unit, float]) -> Exception:
    said = ", ".join(f"{rates[unit]:.4g} as {unit}" for unit in PER_SECOND)
    return file.error(
        None,
        f"the unit of {name} is unclear (requests per second: {said}); say timestamp_unit "
        "(--timestamp-unit s, ms, us or ns)",
    )


def tokens_per_block(file: SourceFile, name: str, input_tokens: IntArray, num_ids: IntArray, *, default: int) -> int:
    """Prompt tokens that one prefix id stands for, so that ``ids = ceil(input / block)`` in as many rows as can be.

    One row of L tokens and k ids says that ceil(L / k) <= block < L / (k - 1). The format's own size stands where no
    other fits more rows; else the smallest power of two that fits most, else the smallest size that fits all.

    Raises:
        TraceError: neither the format's size nor another fits half of the rows.
    """
    if file.how.block_tokens is not None:
        return file.how.block_tokens
    rows = (num_ids > 0) & (input_tokens > 0)
    if not rows.any():
        return default
    lengths, ids = input_tokens[rows], num_ids[rows]
    sizes = [default, *(2**i for i in range(MAX_BLOCK_EXPONENT + 1))]
    least = int((-(-lengths // ids)).max())
    if (-(-lengths // least) == ids).all():
        sizes.append(least)
    fits = [int((-(-lengths // size) == ids).sum()) for size in sizes]
    if max(fits) * 2 < len(lengths):  # some recorders leave out the id of a last block that is not full
        fits = [int((abs(lengths - ids * size) < size).sum()) for size in sizes]
    size = sizes[int(np.argmax(fits))]
    if max(fits) * 2 < len(lengths):
        raise file.error(
            None,
            f"{name}: {default} tokens a block fit {fits[0]} of {len(lengths)} rows (input length / number of ids is "
            f"{float(np.median(lengths / ids)):.4g}), and no other size fits half; say block_tokens (--block-tokens)",
        )
    if size != default:
        file.note(
            "block_tokens",
            max(fits),
            f"{name} are read as blocks of {size} tokens: the prompt lengths fit it in {max(fits)} of {len(lengths)} "
            f"rows, the format's {default} in {fits[0]}; if that is wrong, say block_tokens",
        )
    file.found["block_tokens"] = int(size)
    return int(size)
