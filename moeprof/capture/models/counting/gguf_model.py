"""A GGUF file counted from its header: parameters, bytes as stored and experts by tensor, attention by block.

llama.cpp names a tensor after what it does, so its group follows from the name. Keys and values are counted as float16
and states as float32, which is how llama.cpp keeps them unless told otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moeprof.capture.models.counting.gguf import Tensor, read_header
from moeprof.core.errors import ModelError
from moeprof.core.known_models import CountedModel
from moeprof.core.model_facts import GROUPS, KV_UNKNOWN, AttentionKind, LayerAttention, ModelFacts, MoeLayerFacts

KV_BYTES, STATE_BYTES = 2, 4
_BLOCK = re.compile(r"^blk\.(\d+)\.(.+)$")
_PART = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$")
# The first that a tensor's name (without its block) matches is its group.
_GROUPS = (
    (r"^token_embd\.", "embedding"),
    (r"^output\.(weight|bias)$", "lm_head"),
    (r"_norm(_[a-z0-9]+)?\.|(^|_)norm\.", "norm"),
    (r"_shexp\.|_chexps\.", "shared_experts"),
    (r"^ffn_gate_inp\.|^exp_probs_b", "router"),
    (r"_exps\.|^ffn_(gate|up|down)\.\d+\.", "routed_experts"),
    (r"^(ffn|channel_mix)_", "dense_mlp"),
    (r"^(attn|ssm|time_mix|shortconv|indexer)", "attention"),
)
# Which layers keep only a window, where the file does not say it and llama.cpp knows it by the architecture: all but
# every n-th (``set_swa_pattern``).
_PERIODS = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4}
_UNKNOWN_STATE = re.compile(r"^(time_mix|indexer)")


def count_gguf(file: Path) -> CountedModel:
    """Count a model from the header of its file, or of all the files that it was split into.

    Raises:
        ModelError: damaged, a part is missing, or no language model.
    """
    files = _parts(file)
    headers = [read_header(part) for part in files]
    values = headers[0].values
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    _refuse_other_kinds(file, values, tensors)
    _refuse_missing_parts(file, values, tensors)
    name = _PART.sub(r"\1", file.name).removesuffix(".gguf")
    facts = _Model(file, values, tensors).facts(name)
    kinds = Counter[str]()
    for tensor in tensors:
        kinds[tensor.kind] += tensor.size
    total = sum(kinds.values())
    parts = ", ".join(f"{kind} {100 * size / total:.3g} %" for kind, size in kinds.most_common())
    where = "the file" if len(files) == 1 else f"{len(files)} files"
    return CountedModel(
        name=name, facts=facts, stored_bytes=total, stored_reason=f"{len(tensors)} tensors of {where} ({parts})"
    )


def gguf_in(folder: Path) -> Path | None:
    """The GGUF file of a folder, of a split one its first part; None without any.

    Raises:
        ModelError: several models lie there.
    """
    files = sorted(folder.glob("*.gguf"))
    models = {_PART.sub(r"\1", path.name): path for path in reversed(files)}
    if len(models) > 1:
        names = ", ".join(path.name for path in files[:4])
        raise ModelError(f"{folder}: {len(models)} GGUF models lie there ({names}...); give the path of one")
    return next(iter(models.values()), None)


def _parts(file: Path) -> list[Path]:
    match = _PART.match(file.name)
    if match is None:
        return [file]
    base, count = match.group(1), int(match.group(3))
    found = [file.with_name(f"{base}-{number:05}-of-{count:05}.gguf") for number in range(1, min(count, 10**4) + 1)]
    missing = [path.name for path in found if not path.is_file()]
    if missing or not found:
        raise ModelError(f"{file}: {len(missing)} of its {count} parts are missing ({', '.join(missing[:3])})")
    return found


def _refuse_missing_parts(file: Path, values: Mapping[str, Any], tensors: tuple[Tensor, ...]) -> None:
    expected = values.get("split.tensors.count")
    if isinstance(expected, int) and expected != len(tensors):
        raise ModelError(f"{file}: {len(tensors)} of the {expected} tensors of a split model; give its first part")
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if twice:
        raise ModelError(f"{file}: the tensor {twice[0]!r} stands in two of its parts")


def _refuse_other_kinds(file: Path, values: Mapping[str, Any], tensors: tuple[Tensor, ...]) -> None:
    kind, architecture = values.get("general.type", "model"), values.get("general.architecture")
    if kind != "model":
        raise ModelError(f"{file}: a GGUF file of type {kind!r}, not a model by itself")
    if not isinstance(architecture, str):
        raise ModelError(f"{file}: it names no general.architecture, so nobody can say what its tensors do")
    if not re.fullmatch(r"[\w.-]{1,64}", architecture):
        raise ModelError(
            f"{file}: general.architecture: found {architecture[:64]!r}; letters, digits, . _ - are allowed"
        )
    if architecture == "clip":
        raise ModelError(f"{file}: the vision or sound part of a model (clip); give the file of its language model")
    if not any(_BLOCK.match(t.name) or t.name.startswith(("enc.blk.", "dec.blk.")) for t in tensors):
        raise ModelError(
            f"{file}: it holds {len(tensors)} tensors and no blk.0: no language model (only a vocabulary?)"
        )


def _group(name: str) -> str:
    own = re.sub(r"^(enc\.|dec\.)?blk\.\d+\.", "", name)
    return next((group for pattern, group in _GROUPS if re.search(pattern, own)), "other")


def _most(tensors: Iterable[Tensor]) -> str:
    """The type that most parameters have."""
    counts = Counter[str]()
    for tensor in tensors:
        counts[tensor.kind] += tensor.params
    return counts.most_common(1)[0][0] if counts else "none"


@dataclass(frozen=True, slots=True)
class _Model:
    """The tensors of a model and what its metadata says."""

    file: Path
    values: Mapping[str, Any]
    tensors: tuple[Tensor, ...]

    def facts(self, name: str) -> ModelFacts:
        """Its count; layers that predict further tokens are left out, as transformers' classes leave them out."""
        predicting = self._predicting()
        used = [tensor for tensor in self.tensors if tensor not in predicting]
        params, size = dict.fromkeys(GROUPS, 0), dict.fromkeys(GROUPS, 0)
        for tensor in used:
            params[_group(tensor.name)] += tensor.params
            size[_group(tensor.name)] += tensor.size
        layers = self._moe_layers(used)
        total, tied = sum(params.values()), not params["lm_head"] and params["embedding"] > 0
        active = total - sum((x.num_experts - x.top_k) * x.expert_params for x in layers)
        no_embedding = active if tied else active - params["embedding"]
        attention, notes = self._attention(used)
        table = next((t.shape for t in used if t.name == "token_embd.weight"), (0, 0))
        if predicting:
            extra = sum(tensor.params for tensor in predicting)
            notes = (
                *notes,
                f"{extra} parameters of layers that predict further tokens are in the bytes as stored only",
            )
        return ModelFacts(
            name=name, source=self.file.name, model_type=str(self.values["general.architecture"]),
            architecture="GGUF file", dtype=_most(used),
            total_params=total, active_params=active, active_params_no_embedding=no_embedding,
            active_params_no_embedding_no_head=no_embedding - (params["embedding"] if tied else params["lm_head"]),
            params_by_group=params, bytes_by_group=size, tied_embeddings=tied, moe_layers=layers,
            num_layers=len(self._blocks(used)), hidden_size=int(self._number("embedding_length") or table[0]),
            vocab_size=table[1] if len(table) > 1 else 0,
            kv_bytes_per_token=sum(x.keeps_bytes_per_token for x in attention) if attention else None,
            attention_flops_per_pair=sum(x.layers * x.flops_per_pair for x in attention) if attention else None,
            notes=("counted from the header of a GGUF file", *notes), attention=attention,
        )  # fmt: skip

    def _key(self, name: str) -> Any:
        return self.values.get(f"{self.values['general.architecture']}.{name}")

    def _number(self, name: str) -> int | None:
        """A count that the metadata names; None where it names none, or a list."""
        found = self._key(name)
        return found if type(found) is int and found >= 0 else None

    def _of_layer(self, name: str, number: int) -> int | None:
        """A count of one layer, where there may be one for each."""
        found = self._key(name)
        if isinstance(found, list):
            found = found[number] if number < len(found) else None
        return int(found) if isinstance(found, int) and found >= 0 else None

    @staticmethod
    def _blocks(tensors: Iterable[Tensor]) -> dict[int, dict[str, Tensor]]:
        """Number of a block -> its tensors, by name without the block."""
        found: dict[int, dict[str, Tensor]] = {}
        for tensor in tensors:
            if (match := _BLOCK.match(tensor.name)) is not None:
                found.setdefault(int(match.group(1)), {})[match.group(2)] = tensor
        return dict(sorted(found.items()))

    def _predicting(self) -> set[Tensor]:
        """Tensors of the blocks behind the model's own, which predict further tokens."""
        blocks, extra = self._number("block_count"), self._number("nextn_predict_layers") or 0
        if not blocks or not extra:
            return set()
        return {
            tensor
            for number, own in self._blocks(self.tensors).items()
            if number >= blocks - extra and any(name.startswith("nextn.") for name in own)
            for tensor in own.values()
        }

    def _moe_layers(self, tensors: Iterable[Tensor]) -> tuple[MoeLayerFacts, ...]:
        found = []
        for number, own in self._blocks(tensors).items():
            experts = [t for name, t in own.items() if _group(f"blk.0.{name}") == "routed_experts"]
            if not experts:
                continue
            count, picks = self._of_layer("expert_count", number), self._of_layer("expert_used_count", number)
            if not count or not picks:
                which = "expert_used_count" if count else "expert_count"
                raise ModelError(
                    f"{self.file}: blk.{number} has experts and no {self.values['general.architecture']}.{which}, so "
                    "active parameters cannot be counted"
                )
            params, size = sum(t.params for t in experts), sum(t.size for t in experts)
            stacked = [t.shape[-1] for t in experts if "_exps." in t.name]
            if params % count or any(last != count for last in stacked):
                raise ModelError(
                    f"{self.file}: the experts of blk.{number} have shape {list(experts[0].shape)}, not that of {count}"
                )
            sums = Counter[str]()
            for name, tensor in own.items():
                sums[_group(f"blk.0.{name}")] += tensor.params
            layer = MoeLayerFacts(
                name=f"blk.{number}", num_experts=count, top_k=min(picks, count), expert_params=params // count,
                expert_bytes=size // count, shared_params=sums["shared_experts"], router_params=sums["router"],
            )  # fmt: skip
            found.append(layer)
        return tuple(found)

    def _attention(self, tensors: Iterable[Tensor]) -> tuple[tuple[LayerAttention, ...], tuple[str, ...]]:
        """Layers by kind and what to know of them; no layers and the reason where they are not understood."""
        blocks = self._blocks(tensors)
        if not blocks:
            return (), (f"{KV_UNKNOWN}: encoder and decoder",)
        if self._number("attention.shared_kv_layers"):
            return (), (f"{KV_UNKNOWN}: layers share keys and values, and the file does not say which",)
        windows, notes = self._windows(list(blocks))
        found = Counter[LayerAttention]()
        for number, own in blocks.items():
            strange = next((name for name in own if _UNKNOWN_STATE.match(name)), None)
            layer = None if strange else self._layer(number, own)
            if layer is None:
                what = f"blk.{number} has {strange or 'attention of a form'} that is not understood"
                return (), (f"{KV_UNKNOWN}: {what}",)
            window = windows.get(number)
            if window and layer.kind == "full":
                layer = replace(layer, kind="window", window=window)
            found[layer] += 1
        layers = tuple(replace(layer, layers=count) for layer, count in found.items())
        if not any(layer.keeps_bytes_per_token or layer.state_bytes for layer in layers):
            return (), (f"{KV_UNKNOWN}: no block keeps keys, values or a state",)
        kept = "keys and values as float16, states as float32 (llama.cpp's defaults)"
        return layers, (kept, *notes)

    def _windows(self, numbers: list[int]) -> tuple[dict[int, int], tuple[str, ...]]:
        """Number of a layer -> its window, and what the file leaves open."""
        window = self._number("attention.sliding_window")
        if not window:
            return {}, ()
        pattern = self._key("attention.sliding_window_pattern")
        if isinstance(pattern, list) and pattern:
            return {number: window for number in numbers if pattern[number % len(pattern)]}, ()
        period = pattern if type(pattern) is int else _PERIODS.get(str(self.values["general.architecture"]))
        if period is None:
            note = (
                f"it names a window of {window} tokens and not of which layers: all counted as seeing all, at most so"
            )
            return {}, (note,)
        return {number: window for number in numbers if not period or number % period < period - 1}, ()

    def _layer(self, number: int, own: Mapping[str, Tensor]) -> LayerAttention | None:
        """What one block keeps and computes; None where that does not follow."""
        state = self._state(own)
        if state is None:
            return None
        shape = self._heads(number, own)
        if shape is None:
            if any(name.startswith("attn_k") or name.startswith("attn_q") for name in own) and not state:
                return None
            return LayerAttention(kind="state" if state else "none", layers=1, state_bytes=state)
        kind, kept, flops, decode = shape
        return LayerAttention(
            kind=kind, layers=1, kv_bytes_per_token=kept * KV_BYTES, flops_per_pair=flops, decode_flops_per_pair=decode,
            state_bytes=state,
        )  # fmt: skip

    def _heads(self, number: int, own: Mapping[str, Tensor]) -> tuple[AttentionKind, int, int, int] | None:
        """(kind, values kept of a token, FLOPs per pair, those in a decode step) of a block with attention."""
        out = own.get("attn_output.weight")
        if "attn_kv_a_mqa.weight" in own:
            return self._latent(number, own)
        if out is None:
            return None
        if "attn_k.weight" in own:
            key = own["attn_k.weight"].outputs
            value = own["attn_v.weight"].outputs if "attn_v.weight" in own else key
            pair = 2 * out.shape[0] + 2 * out.shape[0] * key // value
            return "full", key + value, pair, pair
        heads, kv_heads = (self._of_layer(f"attention.head_count{x}", number) for x in ("", "_kv"))
        width = out.shape[0] // heads if heads else 0
        if (
            "attn_qkv.weight" not in own
            or not heads
            or not kv_heads
            or own["attn_qkv.weight"].outputs != width * (heads + 2 * kv_heads)
        ):
            return None
        return "full", 2 * kv_heads * width, 4 * out.shape[0], 4 * out.shape[0]

    def _latent(self, number: int, own: Mapping[str, Tensor]) -> tuple[AttentionKind, int, int, int] | None:
        """Latents: kept as they are where the file has absorbed projections, else as keys and values of all heads."""
        heads, latent = self._of_layer("attention.head_count", number), self._number("attention.kv_lora_rank")
        key = self._number("attention.key_length_mla") or self._number("attention.key_length")
        value = self._number("attention.value_length_mla") or self._number("attention.value_length")
        if not heads or not latent or not key or not value or own["attn_kv_a_mqa.weight"].outputs < latent:
            return None
        rotary = own["attn_kv_a_mqa.weight"].outputs - latent
        expanded = 2 * heads * (key + value)
        if "attn_k_b.weight" in own:
            return "latent", latent + rotary, expanded, 2 * heads * (2 * latent + rotary)
        return "full", heads * (key + value), expanded, expanded

    def _state(self, own: Mapping[str, Tensor]) -> int | None:
        """Bytes of a block's state: 0 without one, None where its size does not follow."""
        if any(name.startswith("shortconv") for name in own):
            kernel, hidden = self._number("shortconv.l_cache"), self._number("embedding_length")
            return STATE_BYTES * (kernel - 1) * hidden if kernel and hidden else None
        if not any(name.startswith("ssm") for name in own):
            return 0
        kernel, inner, size = (self._number(f"ssm.{x}") for x in ("conv_kernel", "inner_size", "state_size"))
        if not kernel or not inner or not size:
            return None
        groups = self._number("ssm.group_count") or 0
        return STATE_BYTES * ((kernel - 1) * (inner + 2 * groups * size) + size * inner)
