"""How a paged engine runs."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.capture.engines.paged.graphs import GraphBackend
from moeprof.capture.engines.paged.kernels import Chooser, plain_kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedOptions:
    """How a paged engine runs; see TransformersSettings.

    Attributes:
        kv_tokens: token slots of the cache.
        max_batch_tokens: tokens in a step.
        max_sequences: sequences in flight.
        prefix_cache: requests share the pages of common prefixes.
        eos_ids: ids that end an output where the request says so.
        run_ahead: launch a step while the one before runs.
        graphs: captures decode steps, or None.
        kernels: chooses how layers attend.
        experts: experts implementation of large steps, where it is not the one that the config names.
        decode_experts: that of decode steps, where it is another.
        compiled: what of the model is compiled, for the facts.
        notes: for the facts.
    """

    kv_tokens: int
    max_batch_tokens: int
    max_sequences: int = 256
    prefix_cache: bool = False
    eos_ids: tuple[int, ...] = ()
    run_ahead: bool = False
    graphs: GraphBackend | None = None
    kernels: Chooser = plain_kernels
    experts: str | None = None
    decode_experts: str | None = None
    compiled: str | None = None
    notes: tuple[str, ...] = ()
