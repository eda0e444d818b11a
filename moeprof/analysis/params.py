"""What follows from a model's shape alone: bytes, FLOPs, devices, twins. Arithmetic on ModelFacts, nothing measured.

Formulas: docs/metrics.md. Where tokens choose experts evenly, T tokens of a step touch
E[U] = E * (1 - (1 - k/E)^T) of a layer's E experts; real routing touches fewer, so these bytes are an upper estimate.

Bytes and FLOPs that a model's shape promises, before anything runs. See docs/metrics.md#work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from moeprof.analysis.metrics.resources.memory import USABLE_SHARE
from moeprof.analysis.metrics.resources.work import ALWAYS_READ
from moeprof.analysis.metrics.routing.nulls import uniform_distinct
from moeprof.core.hardware import Datasheet
from moeprof.core.known_models import CONVENTIONS, CountedModel, convention_of
from moeprof.core.model_facts import GROUPS, KV_UNKNOWN, OTHER_MODALITIES, ModelFacts, MoeLayerFacts


def weights_bytes(facts: ModelFacts, bits: int) -> int:
    """Bytes of all parameters at so many bits each, scales not counted."""
    return math.ceil(facts.total_params * bits / 8)


def flops_per_token(facts: ModelFacts, context: int) -> int:
    """FLOPs of one decoded token: 2 per parameter it passes, and attention over what each layer sees of ``context``.

    Where the shape of attention is not known it is left out. Norms and the look-up of the embedding are not counted;
    code that runs all experts counts all.
    """
    through = sum(facts.params_by_group.get(group, 0) for group in ALWAYS_READ if group != "norm")
    experts = sum(_executed(layer) * layer.expert_params for layer in facts.moe_layers)
    head = facts.params_by_group.get(_head(facts), 0)
    return 2 * (through + experts + head) + (facts.decode_attention_flops(context) or 0)


def weights_bytes_per_step(facts: ModelFacts, batch: int, bits: int) -> float:
    """Bytes of weights that one decode step of ``batch`` tokens reads, experts chosen evenly (docs/metrics.md#work).

    Every matrix outside of the experts once, each distinct expert once, the head once; embedding rows are not counted.
    """
    resident = sum(facts.params_by_group.get(group, 0) for group in ALWAYS_READ)
    experts = sum(touched(layer, batch) * layer.expert_params for layer in facts.moe_layers)
    return (resident + experts + facts.params_by_group.get(_head(facts), 0)) * bits / 8


def _head(facts: ModelFacts) -> str:
    return "embedding" if facts.tied_embeddings else "lm_head"


def _executed(layer: MoeLayerFacts) -> int:
    return layer.num_experts if layer.executes_all_experts else layer.top_k


def touched(layer: MoeLayerFacts, batch: int) -> float:
    """Distinct experts of a layer that ``batch`` tokens touch when they choose evenly: E * (1 - (1 - k/E)^batch)."""
    if layer.executes_all_experts:
        return float(layer.num_experts)
    return float(uniform_distinct(layer.num_experts, layer.top_k, batch))


BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "fp8": 8, "int8": 8, "int4": 4}
SHOWN_WEIGHTS = (("bfloat16", 16), ("8 bits", 8), ("4 bits", 4))
MARGIN = 1 - USABLE_SHARE  # of a device's memory left for activations, buffers and fragmentation
TWO_STACKS = "encoder and decoder: a token passes one of the two, so a step's work needs both lengths"
_CONVENTION_LABELS = {"A": "active (A)", "B": "active (B), no embedding", "C": "active (C), no head either"}
NOT_SAID = "not said"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to work out.

    Attributes:
        batches: sequences that decode together, each one token a step.
        context: tokens of context per sequence.
        dtype: of the weights read, a key of BITS; keys and values stay as the config's dtype.
        devices: which devices to fill.
    """

    batches: tuple[int, ...] = (1, 8, 64)
    context: int = 1024
    dtype: str = "bfloat16"
    devices: tuple[Datasheet, ...] = ()

    @property
    def rules(self) -> tuple[str, ...]:
        """How the figures come about, in sentences."""
        batch = max(self.batches)
        return (
            "active: A is all parameters but those of idle experts, B is A without the input embedding (kept where it "
            "is also the head), C is B without the head",
            f"weights read: {self.dtype}, {BITS[self.dtype]} bits per parameter, scales not counted; at batch B a "
            "layer's E experts are touched as if tokens chose evenly, E(1-(1-k/E)^B); real routing touches fewer",
            f"devices: the smallest whole number whose memory less {MARGIN:.0%} holds the weights and what is kept of "
            f"{batch} sequences of {self.context} tokens; not how to split the model over them",
            "keys and values: each layer keeps and reads the tokens that it sees, at most its window; constant states "
            "are read and written in every step; layers that keep latents work on them as they lie",
            "twins: the active or the total count without the routers (experts become one MLP of their joint width)",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number.

    Attributes:
        name: as in docs/metrics.md.
        value: a number, a text, or None with the reason in ``remark``.
        unit: as on the card of its name.
        section: heading it stands under.
        label: for people.
        labels: what tells figures of one name apart.
        remark: why there is no value, or what is left out of it.
    """

    name: str
    value: float | int | str | None
    unit: str
    section: str
    label: str
    labels: dict[str, str] = field(default_factory=dict)
    remark: str = ""


def figures(model: CountedModel, question: Question) -> list[Figure]:
    """Every figure of a model, always the same ones in the same order; without a value for a routing scheme."""
    if model.facts is None:
        why = model.status
        blank = _all(CountedModel(name=model.name, facts=_NO_FACTS, system=model.system), question)
        return [replace(figure, value=None, remark=why) for figure in blank]
    return list(_all(model, question))


def notes_of(model: CountedModel) -> list[str]:
    """What a reader should know of a model, most important first."""
    notes = []
    if model.system is not None:
        row = model.system
        if row.kind != "model":
            notes.append(row.status.upper() if row.kind == "rumour" else row.status)
        if row.published_as:
            notes.append(f"published: {row.published_as}")
        notes.append(f"source: {row.source}")
        if row.note:
            notes.append(row.note)
    if model.facts is not None:
        notes += model.facts.notes
    if model.stored_bytes is not None:
        notes.append(f"as stored: {model.stored_reason}")
    return notes


def _all(model: CountedModel, question: Question) -> Iterator[Figure]:
    assert model.facts is not None
    yield from _parameters(model.facts)
    yield from _published(model)
    yield from _shape(model.facts)
    yield from _weights(model)
    yield from _per_token(model.facts, question)
    for batch in question.batches:
        yield from _per_step(model.facts, question, batch)
    for device in question.devices:
        yield devices_needed(model.facts, question, device)
    yield from _twins(model.facts)


def _parameters(facts: ModelFacts) -> Iterator[Figure]:
    section, is_whole = "Parameters", "embedding" in facts.params_by_group
    yield Figure(name="total_params", value=facts.total_params, unit="parameters", section=section, label="total")
    for letter, name in CONVENTIONS.items():
        known = letter == "A" or is_whole
        yield Figure(
            name=name,
            value=getattr(facts, name) if known else None,
            unit="parameters",
            section=section,
            label=_CONVENTION_LABELS[letter],
            remark="" if known else NOT_SAID,
        )
    share = facts.active_params / facts.total_params if facts.total_params else None
    yield Figure(name="active_params_ratio", value=share, unit="share", section=section, label="active / total")
    for group in (*GROUPS, OTHER_MODALITIES):
        count = facts.params_by_group.get(group, 0 if group == OTHER_MODALITIES and is_whole else None)
        yield Figure(
            name="params", value=count, unit="parameters", section="By group", label=group.replace("_", " "),
            labels={"group": group}, remark="" if count is not None else NOT_SAID,
        )  # fmt: skip


def _published(model: CountedModel) -> Iterator[Figure]:
    section, row = "Published", model.system
    none = "not in the built-in list" if row is None else "nothing published"
    total = round(row.published_total_params) if row is not None and row.published_total_params else None
    active = round(row.published_active_params) if row is not None and row.published_active_params else None
    follows = convention_of(row, model.facts) if row is not None and model.facts is not None else None
    for name, value, label in (("total", total, "total"), ("active", active, "active")):
        yield Figure(
            name=f"published_{name}_params", value=value, unit="parameters", section=section, label=label,
            remark="" if value is not None else none,
        )  # fmt: skip
    text = None if follows is None else follows.letter if follows.is_settled else f"nearest {follows.letter}"
    remark = none if active is None else "none of the three comes within 10 %" if text is None else ""
    yield Figure(
        name="published_convention", value=text, unit="convention", section=section, label="counted as", remark=remark
    )
    error = None if total is None or model.facts is None else model.facts.total_params / total - 1
    yield Figure(name="published_total_error_ratio", value=error, unit="ratio", section=section,
                 label="our total off by", remark="" if error is not None else none)  # fmt: skip
    error = None if follows is None else follows.error_ratio
    yield Figure(name="published_active_error_ratio", value=error, unit="ratio", section=section,
                 label="our active off by", remark="" if error is not None else remark)  # fmt: skip


def _shape(facts: ModelFacts) -> Iterator[Figure]:
    layers = facts.moe_layers
    dense = "dense model"
    values: tuple[tuple[str, int | None, str, str, str], ...] = (
        ("num_layers", facts.num_layers or None, "layers", "layers", NOT_SAID),
        ("num_moe_layers", (facts.num_layers and len(layers)) or None, "layers", "layers with experts",
         dense if facts.num_layers else NOT_SAID),
        ("num_experts", max((x.num_experts for x in layers), default=None), "experts", "experts per layer", dense),
        ("top_k", max((x.top_k for x in layers), default=None), "experts", "experts per token", dense),
        ("expert_params", max((x.expert_params for x in layers), default=None), "parameters", "one expert", dense),
    )  # fmt: skip
    for name, value, unit, label, why in values:
        remark = why if value is None else ""
        yield Figure(name=name, value=value, unit=unit, section="Shape", label=label, remark=remark)


def _weights(model: CountedModel) -> Iterator[Figure]:
    assert model.facts is not None
    section = "Weights"
    for label, bits in SHOWN_WEIGHTS:
        size = weights_bytes(model.facts, bits)
        yield Figure(name="weights_bytes", value=size, unit="B", section=section, label=label, labels={"dtype": label})
    yield Figure(
        name="weights_bytes", value=model.stored_bytes, unit="B", section=section, label="as stored",
        labels={"dtype": "as stored"}, remark=model.stored_reason,
    )  # fmt: skip


def _kv_reason(facts: ModelFacts) -> str:
    """Why keys and values are unknown; empty where they are known."""
    layers = facts.layers_of_attention
    return layers.removeprefix(f"{KV_UNKNOWN}: ") if isinstance(layers, str) else ""


def _has_two_stacks(facts: ModelFacts) -> bool:
    return _kv_reason(facts) == "encoder and decoder"


def _per_token(facts: ModelFacts, question: Question) -> Iterator[Figure]:
    section = "Per token"
    kv = facts.kv_bytes_per_token
    why = _kv_reason(facts)
    yield Figure(name="kv_bytes_per_token", value=kv, unit="B", section=section, label="keys and values", remark=why)
    remark = "attention over the context not counted, its shape is not known"
    value: int | None = flops_per_token(facts, question.context)
    if _has_two_stacks(facts):
        value, remark = None, TWO_STACKS
    elif not why:
        remark = ""
    at = {"context": str(question.context)}
    yield Figure(
        name="flops_per_token", value=value, unit="FLOP", section=section,
        label=f"FLOPs at {question.context} of context", labels=at, remark=remark,
    )  # fmt: skip
    yield Figure(
        name="kept_bytes_per_sequence", value=facts.kept_bytes(question.context), unit="B", section=section,
        label=f"kept of {question.context} tokens", labels=at, remark=why,
    )  # fmt: skip


def _per_step(facts: ModelFacts, question: Question, batch: int) -> Iterator[Figure]:
    section, labels = f"Per step at batch {batch}", {"batch": str(batch), "context": str(question.context)}
    dense, layers = "dense model", facts.moe_layers
    distinct = sum(touched(layer, batch) for layer in layers) / len(layers) if layers else None
    two = _has_two_stacks(facts)
    weights = None if two else weights_bytes_per_step(facts, batch, BITS[question.dtype])
    one = facts.decode_bytes(question.context)
    kv_bytes = None if one is None else one * batch
    both = None if weights is None or kv_bytes is None else (weights + kv_bytes) / batch
    no_weights, no_kv = TWO_STACKS if two else "", _kv_reason(facts)
    rows: tuple[tuple[str, float | None, str, str, str], ...] = (
        ("distinct_experts_per_step", distinct, "experts", "distinct experts", "" if layers else dense),
        ("weights_bytes_per_step", weights, "B", "weights read", no_weights),
        ("kv_bytes_per_step", kv_bytes, "B", "keys and values", no_kv),
        ("weights_bytes_per_token", None if weights is None else weights / batch, "B", "weights / token",
         no_weights),
        ("bytes_per_token", both, "B", "all bytes / token", no_weights or no_kv),
    )  # fmt: skip
    for name, value, unit, label, remark in rows:
        yield Figure(name=name, value=value, unit=unit, section=section, label=label, labels=labels, remark=remark)


def devices_needed(facts: ModelFacts, question: Question, device: Datasheet) -> Figure:
    """The smallest number of devices that holds weights and what the largest batch keeps, a tenth of memory free."""
    kept = facts.kept_bytes(question.context)
    needed = weights_bytes(facts, BITS[question.dtype]) + (kept or 0) * max(question.batches)
    return Figure(
        name="devices_needed",
        value=math.ceil(needed / (USABLE_SHARE * device.memory_bytes)),
        unit="devices",
        section="Devices needed",
        label=f"{device.name} ({device.memory_bytes / 1e9:.0f} GB)",
        labels={"device": device.name, "dtype": question.dtype},
        remark="weights alone, KV bytes are not known" if kept is None else "",
    )


def _twins(facts: ModelFacts) -> Iterator[Figure]:
    router = facts.params_by_group.get("router", 0)
    for match, params in (("active", facts.active_params), ("total", facts.total_params)):
        yield Figure(
            name="twin_params",
            value=params - router if facts.is_moe else None,
            unit="parameters",
            section="Dense twins",
            label=f"{match}-matched",
            labels={"match": match},
            remark="" if facts.is_moe else "dense model",
        )


_NO_FACTS = ModelFacts(
    name="", source="", model_type="", architecture="", dtype="", total_params=0, active_params=0,
    active_params_no_embedding=0, active_params_no_embedding_no_head=0, params_by_group={}, bytes_by_group={},
    tied_embeddings=False, moe_layers=(), num_layers=0, hidden_size=0, vocab_size=0, kv_bytes_per_token=None,
    attention_flops_per_pair=None,
)  # fmt: skip
