"""Which kernel does an operation: all that this machine can have are tried, the fastest that agrees is taken.

Nothing is left out silently: :class:`Choice` says what was tried, what was left out, and why. What there is to choose
from stands in ``candidates.py``, the data it is tried on in ``cases.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from moeprof.capture.kernels.trials import TOLERANCE, Case, Stopwatch, Trial, fastest, run_trial, stopwatch_of

Subject = TypeVar("Subject")
Kernel = TypeVar("Kernel", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Generic[Subject, Kernel]):
    """A kernel that may do an operation.

    Attributes:
        name: as a workload asks for it and the record says it.
        kernel: what does it; for an operation that is a module's, what makes the kernel of one module.
        device: the kind of device it is made for, or None for any.
        why_not: the reason why it cannot serve a subject (a kind of layer, a module), or None; asked before it runs.
        variant: what distinguishes kernels of one name.
        tolerance: largest difference from the plain form over the largest magnitude of that, by dtype.
    """

    name: str
    kernel: Kernel
    device: str | None = None
    why_not: Callable[[Subject], str | None] = lambda subject: None
    variant: str = ""
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)

    def why_none(self, device: torch.device, subjects: Sequence[Subject]) -> str | None:
        """The reason why it cannot serve all of these on this device, or None."""
        if self.device not in (None, device.type):
            return f"needs a {self.device.upper()} device, this is {device.type}"
        return next(filter(None, map(self.why_not, subjects)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Generic[Kernel]):
    """The kernel and how it came to be taken.

    Attributes:
        name: of the candidate.
        kernel: of the candidate.
        reason: why this one, for the record.
        trials: all that was tried or left out; empty where there was nothing to choose.
    """

    name: str
    kernel: Kernel
    reason: str
    trials: tuple[Trial, ...] = ()


def choose(
    candidates: Sequence[Candidate[Subject, Kernel]],
    subjects: Sequence[Subject],
    cases: Callable[[Subject, Kernel], list[Case]],
    device: torch.device,
    *,
    default: Candidate[Subject, Kernel],
    stopwatch: Stopwatch | None = None,
) -> Choice[Kernel]:
    """One kernel for all subjects. Where only the default can serve, nothing runs.

    Args:
        candidates: what may be taken.
        subjects: what it must serve.
        cases: the random data that a kernel is tried on for a subject.
        device: where it will run.
        default: what is taken where no candidate can serve and agrees.
        stopwatch: another than the device's (tests).
    """
    reasons = [one.why_none(device, subjects) for one in candidates]
    served = [one for one, reason in zip(candidates, reasons, strict=True) if reason is None]
    left_out = [
        Trial(name=one.name, why_out=reason)
        for one, reason in zip(candidates, reasons, strict=True)
        if reason is not None
    ]
    if all(one.name == default.name for one in served):
        return Choice(name=default.name, kernel=default.kernel, reason=in_words(left_out), trials=tuple(left_out))
    tried = []
    with torch.inference_mode():
        for one in served:
            made = [case for subject in subjects for case in cases(subject, one.kernel)]
            tried.append(run_trial(one.name + one.variant, made, stopwatch or stopwatch_of(device), one.tolerance))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what is free decides the size of the KV cache
    trials, best = [*tried, *left_out], fastest(tried)
    if best is None:
        return Choice(name=default.name, kernel=default.kernel, reason=in_words(trials), trials=tuple(trials))
    taken = served[tried.index(best)]
    others = [trial for trial in trials if trial is not best]
    reason = f"fastest that agrees with the plain form: {in_words([best, *others])}"
    return Choice(name=taken.name, kernel=taken.kernel, reason=reason, trials=tuple(trials))


def in_words(trials: Sequence[Trial]) -> str:
    """All trials in one line, the same words once."""
    return "; ".join(dict.fromkeys(str(trial) for trial in trials))
