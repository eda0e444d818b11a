"""A model runner of vLLM and what is listened to there: in this process, or one on each rank that shares the model.

Under tensor parallel every rank is a process of vLLM's own. What :class:`Here` does beside its runner is then done
there by methods that vLLM mixes into its workers (:class:`RankMethods`), called over vLLM's own queue: when a request
comes or ends, and once after each step. All ranks sample and must take the same forced ids; rank 0 tells, because each
of them routes all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from moeprof.capture.engines.deployment import ShownLayer
from moeprof.capture.engines.vllm.forcing import Forcing
from moeprof.capture.engines.vllm.plugin import KEPT, Kept

METHODS = "moeprof.capture.engines.vllm.runner.RankMethods"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerFacts:
    """What a runner holds.

    Attributes:
        runs_v2: whether it is the second model runner: it forces ids by itself, and keeps its batch elsewhere.
        attention: names of the attention backends.
        experts: name of the experts' kernels, or None without any.
        kv_bytes, weights_bytes: allocated.
        layers: the MoE layers whose picks can be seen.
        picks: where they are seen, in words; None where they are not.
        no_picks: why the picks of a model with experts are not seen.
        moves: whether executed picks can be moved, for a check.
    """

    runs_v2: bool
    attention: str
    experts: str | None
    kv_bytes: int | None
    weights_bytes: int | None
    layers: tuple[ShownLayer, ...] = ()
    picks: str | None = None
    no_picks: str | None = None
    moves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a runner knows of its last forward.

    Attributes:
        order: internal ids, row by row.
        chosen: internal id -> what the model itself would have taken; empty where it does not tell.
        picks: per MoE layer ids [tokens, k] or None; empty while nobody watches.
    """

    order: Sequence[str]
    chosen: Mapping[str, int] = field(default_factory=dict)
    picks: Sequence[Any] = ()


class Runner(Protocol):
    """See ``Here``."""

    facts: RunnerFacts

    def add(self, request: str, prompt_tokens: int, ids: Sequence[int]) -> None:
        """A request is to have these ids."""

    def forget(self, request: str | None) -> None:
        """It has ended; None: all have."""

    def told(self, num_tokens: int) -> Told:
        """Of the last forward, which had so many tokens."""

    def watch(self, on: bool) -> None:
        """Whether picks are told."""

    def move(self, by: int) -> None:
        """Move every executed pick so many experts on."""


class Here:
    """A runner in this process.

    Args:
        runner: vLLM's ``GPUModelRunner`` or ``CPUModelRunner``.
        is_cpu: picks come through our operation there, and from vLLM's capturer on CUDA.
        kept: what the operation keeps.
    """

    def __init__(self, runner: Any, *, is_cpu: bool = True, kept: Kept = KEPT) -> None:
        self._runner, self._kept, self._watched = runner, kept, False
        self._forcing, self._order = Forcing(), list[str]()
        self._layers = _moe_layers(runner.get_model())
        self.facts = self._facts(is_cpu)
        if self.facts.runs_v2:
            self._note_batches()
        else:
            self._forcing.put_on(runner)

    def add(self, request: str, prompt_tokens: int, ids: Sequence[int]) -> None:
        """Its ids, for the first runner; the second was given them with the request."""
        if not self.facts.runs_v2:
            self._forcing.add(request, prompt_tokens, ids)

    def forget(self, request: str | None) -> None:
        """Its row is free again."""
        if request is None:
            self._forcing.clear()
        else:
            self._forcing.forget(request)

    def told(self, num_tokens: int) -> Told:
        """Read between two steps, so nothing is in flight."""
        picks = self._picks(num_tokens) if self._watched else ()
        if self.facts.runs_v2:
            return Told(order=self._order, picks=picks)
        return Told(order=self._runner.input_batch.req_ids, chosen=self._forcing.chosen, picks=picks)

    def watch(self, on: bool) -> None:
        """Keep picks from now on, or no longer."""
        self._watched = self._kept.watched = on
        self._kept.take(0)  # what was seen until now is of another forward

    def move(self, by: int) -> None:
        """What is passed on is moved, what is kept is not."""
        self._kept.moved_by = by

    # -- inside ----------------------------------------------------------------------------------------------------

    def _note_batches(self) -> None:
        prepare = self._runner.prepare_inputs

        def preparing(*args: Any, **kwargs: Any) -> Any:
            batch = prepare(*args, **kwargs)
            self._order = list(batch.req_ids)
            return batch

        self._runner.prepare_inputs = preparing

    def _picks(self, num_tokens: int) -> list[Any]:
        if self.facts.moves:
            taken = self._kept.take(num_tokens)
            return [taken[module.router.moeprof_layer] for _, module in self._layers]
        # vLLM's buffer [tokens, layers, k]: rows of the last forward, dense layers numbered too. No GPU has run this.
        rows = self._runner.aux_output_connector._capturer.device_buffer[:num_tokens]
        return [
            rows[:, int(module.layer_id), : layer.top_k].clone()
            for (_, module), layer in zip(self._layers, self.facts.layers, strict=True)
        ]

    def _facts(self, is_cpu: bool) -> RunnerFacts:
        runner, model = self._runner, self._runner.get_model()
        groups: Sequence[Any] = getattr(runner, "attn_groups", None) or ()
        names = sorted({str(group.backend.get_name()) for each in groups for group in each})
        picks, no_picks = self._source(is_cpu)
        return RunnerFacts(
            runs_v2=not hasattr(runner, "input_batch"),
            attention=", ".join(names) or "unknown",
            experts=_kernels(self._layers[0][1]) if self._layers else None,
            kv_bytes=_bytes(getattr(runner, "kv_caches", ())),
            weights_bytes=_bytes(model.parameters()),
            layers=tuple(_shown(name, module.router) for name, module in self._layers),
            picks=picks,
            no_picks=no_picks,
            moves=is_cpu and picks is not None,
        )

    def _source(self, is_cpu: bool) -> tuple[str | None, str | None]:
        """Where picks are seen, or why they are not; neither for a dense model."""
        if not self._layers:
            return None, None
        if not is_cpu:
            if getattr(self._runner, "aux_output_connector", None) is not None:
                return "vLLM's own capturer of routed experts, read after each step", None
            return None, (
                "on CUDA vLLM keeps its picks (enable_return_routed_experts) with its second model runner alone, and "
                "that is not what runs here"
            )
        unseen = next((pair for pair in self._layers if not hasattr(pair[1].router, "moeprof_layer")), None)
        if unseen is not None:
            return None, f"vLLM's {type(unseen[1].router).__name__} of {unseen[0]} is not built as the tap knows it"
        return "ids pass through an operation of moeprof's in vLLM's graph, eager and compiled", None


class RankMethods:
    """Mixed into vLLM's workers (``worker_extension_cls``): a rank's side of :class:`Ranks`."""

    def moeprof_start(self, is_cpu: bool) -> RunnerFacts:
        """Listen to this rank's runner."""
        self._moeprof_here = Here(self.model_runner, is_cpu=is_cpu)  # type: ignore[attr-defined]
        return self._moeprof_here.facts

    def moeprof_do(self, method: str, *args: Any) -> Any:
        """Call a method of ``Here``; what it tells is cut loose from tensors, because it goes over a queue."""
        found = getattr(self._moeprof_here, method)(*args)
        if not isinstance(found, Told):
            return found
        picks = [None if one is None else one.cpu().numpy() for one in found.picks]
        return Told(order=list(found.order), chosen=dict(found.chosen), picks=picks)


class Ranks:
    """Runners of several ranks; see ``Here``.

    Args:
        call: ``collective_rpc`` of vLLM's executor.
        is_cpu: as for Here.
    """

    def __init__(self, call: Callable[..., Any], *, is_cpu: bool) -> None:
        self._call = call
        each: list[RunnerFacts] = call("moeprof_start", args=(is_cpu,))
        first = each[0]
        self.facts = RunnerFacts(
            runs_v2=first.runs_v2, attention=first.attention, experts=first.experts,
            kv_bytes=_sum(one.kv_bytes for one in each), weights_bytes=_sum(one.weights_bytes for one in each),
            layers=first.layers, picks=first.picks and f"{first.picks}; of rank 0, which routes all tokens",
            no_picks=first.no_picks, moves=first.moves,
        )  # fmt: skip

    def add(self, request: str, prompt_tokens: int, ids: Sequence[int]) -> None:
        """On every rank."""
        if not self.facts.runs_v2:
            self._call("moeprof_do", args=("add", request, prompt_tokens, list(ids)))

    def forget(self, request: str | None) -> None:
        """On every rank."""
        if not self.facts.runs_v2:
            self._call("moeprof_do", args=("forget", request))

    def told(self, num_tokens: int) -> Told:
        """By rank 0."""
        told: Told = self._call("moeprof_do", args=("told", num_tokens), unique_reply_rank=0)
        picks = [None if one is None else torch.from_numpy(one) for one in told.picks]
        return Told(order=told.order, chosen=told.chosen, picks=picks)

    def watch(self, on: bool) -> None:
        """On every rank."""
        self._call("moeprof_do", args=("watch", on))

    def move(self, by: int) -> None:
        """On every rank."""
        self._call("moeprof_do", args=("move", by))


def _sum(values: Any) -> int | None:
    found = list(values)
    return None if None in found else sum(found)


def _moe_layers(model: Any) -> list[tuple[str, Any]]:
    """In the order of the model: path and module."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "router") and hasattr(module, "layer_id") and hasattr(module.router, "top_k")
    ]


def _shown(path: str, router: Any) -> ShownLayer:
    name = path.removesuffix(".experts")
    return ShownLayer(name=name, num_experts=int(router.global_num_experts), top_k=int(router.top_k))


def _kernels(layer: Any) -> str | None:
    """The experts' kernels, by the name of their class."""
    method = getattr(layer, "_quant_method", None)
    kernel = getattr(getattr(method, "moe_kernel", None), "impl", None)
    found = getattr(kernel, "fused_experts", None) or method
    return None if found is None else type(found).__name__


def _bytes(tensors: Any) -> int | None:
    """Bytes of different memory behind some tensors, None where there are none."""
    flat = [one for each in tensors for one in (each if isinstance(each, list | tuple) else (each,))]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in flat}
    return sum(storages.values()) or None
