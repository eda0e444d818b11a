"""Blocks of consecutive steps, and the shuffles that a permutation test of step times needs.

Step times drift, and so does what a batch's requests talk about. Shuffling single steps would break both drifts and
call their chance meeting an effect; blocks longer than the memory of both keep it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.metrics.routing_terms import StepTerms
from moeprof.analysis.tables import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Runs of consecutive steps of a stratum, moved as one.

    Attributes:
        terms: the steps.
        length: steps per block.
        of_row: number of the block of each step, without rotation.
        count: distinct blocks: aligned rounds count once.
    """

    terms: StepTerms
    length: int
    of_row: IntArray
    count: int

    @staticmethod
    def of(terms: StepTerms, length: int) -> Blocks:
        """Cut every stratum into blocks of ``length`` steps."""
        block = terms.position // length
        key = np.stack([terms.token_code, block])
        of_row = np.unique(key, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
        return Blocks(terms=terms, length=length, of_row=of_row, count=int(of_row.max()) + 1)

    def shuffle(self, rng: np.random.Generator) -> IntArray:
        """An order of steps: each stratum rotated, cut into blocks, blocks shuffled. Strata keep their places."""
        terms = self.terms
        sizes = np.bincount(terms.stratum)
        turn = rng.random(int(terms.token_code.max()) + 1)
        place = rng.random((len(turn), int(sizes.max()) // self.length + 1))
        size = sizes[terms.stratum]
        position = (terms.position + (turn[terms.token_code] * size).astype(np.int64)) % size
        order = np.lexsort((position, place[terms.token_code, position // self.length], terms.stratum))
        return order.astype(np.int64)


def block_length(time: FloatArray, distinct: FloatArray) -> int:
    """Three times the lag after which products of neighbours no longer correlate, at least n^(1/3)."""
    limit = max(len(time) // 4, 1)
    together = _autocorrelation(time, limit) * _autocorrelation(distinct, limit)
    quiet = np.flatnonzero(np.abs(together) < 0.05)
    lag = int(quiet[0]) if len(quiet) else limit
    least: int = math.ceil(np.cbrt(len(time)))
    return max(least, 3 * lag)


def _autocorrelation(series: FloatArray, lags: int) -> FloatArray:
    """Autocorrelation at lags 1..lags, by FFT."""
    size = int(2 ** math.ceil(math.log2(2 * len(series))))
    spectrum = np.fft.rfft(series - series.mean(), size)
    power = np.fft.irfft(spectrum * np.conj(spectrum), size)[: lags + 1]
    return np.asarray(power[1:] / power[0] if power[0] > 0 else np.zeros(lags), dtype=np.float64)
