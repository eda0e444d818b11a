"""How a paged engine runs."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.capture.engine.paged.graphs import GraphBackend
from moeprof.capture.kernels.decode_attention import DecodeKernel, torch_decode


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedKernel:
    """A kernel of decode steps and what the record calls it."""

    name: str
    kernel: DecodeKernel


TORCH_DECODE = NamedKernel(name="torch", kernel=torch_decode)


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedOptions:
    """How a paged engine runs; see EngineSettings.

    Attributes:
        kv_tokens: token slots of the cache.
        max_batch_tokens: tokens in a step.
        max_sequences: sequences in flight.
        eos_ids: ids that end an output where the request says so.
        run_ahead: launch a step while the one before runs.
        graphs: captures decode steps, or None.
        decode_attention: kernel of decode steps, and its name.
        compiled: what of the model is compiled, for the facts.
        notes: for the facts.
    """

    kv_tokens: int
    max_batch_tokens: int
    max_sequences: int = 256
    eos_ids: tuple[int, ...] = ()
    run_ahead: bool = False
    graphs: GraphBackend | None = None
    decode_attention: NamedKernel = TORCH_DECODE
    compiled: str | None = None
    notes: tuple[str, ...] = ()
