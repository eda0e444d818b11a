"""The workloads of the evidence as they are run: paths that hold, what is missing replaced and said, or made tiny.

Tiny means the same file with tiny models of the same architectures, lengths divided by 16, a few requests and the CPU,
so that everything between a workload and a published page can be tested without a card.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.steps import ROOT

WORKLOADS = ROOT / "workloads" / "gpu"
TINY_LAYERS = 2
TINY_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": TINY_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 2048,
}
SHORTER = 16
MOST_REQUESTS = 4
# Where nobody's counts are at hand: max over mean of Mixtral's 8 experts is about 1.3, of OLMoE's 64 about 2.7.
INSTEAD = {"mixtral": 0.2, "olmoe": 0.33}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A workload to run.

    Attributes:
        path: the file, or None with the reason why it cannot be run.
        notes: what was replaced.
    """

    path: Path | None
    notes: tuple[str, ...] = ()


def full_size(name: str, folder: Path) -> Ready:
    """The workload for the card; popularity that is not there is replaced by Zipf's law, and that is said."""
    source = WORKLOADS / f"{name}.yaml"
    content, notes = _read(source), []
    trace = content["traffic"].get("trace")
    if trace is not None and not _there(source, trace["path"]):
        return Ready(path=None, notes=(f"{trace['path']} is not there; `make gpu-carry` writes it",))
    for model in content["models"]:
        routing = model.get("routing", {})
        if routing.get("policy") == "profile" and not _there(source, routing["path"]):
            exponent = INSTEAD["mixtral" if "mixtral" in str(model["config"]) else "olmoe"]
            model["routing"] = {"policy": "zipf", "exponent": exponent}
            notes.append(
                f"{routing['path']} is not there: picks are drawn with popularity ~ 1/rank^{exponent:g} instead"
            )
    if not notes:
        return Ready(path=source)
    _moved(content, source, folder)
    return Ready(path=_write(content, folder / f"{name}.yaml"), notes=tuple(notes))


def tiny(name: str, folder: Path) -> Ready:
    """The same workload for a CPU and some seconds."""
    content = _read(WORKLOADS / f"{name}.yaml")
    for model in content["models"]:
        _shrink_model(model, WORKLOADS, folder)
    content["models"] = [_single(model) for model in content["models"]][:2]  # the MoE and the first dense one
    content |= {
        "device": "cpu",
        "threads": 1,
        "warmup": {"num_requests": 2, "max_seconds": 1},
        "prices": {"usd_per_device_hour": 0.1, "source": "made up for a test"},
    }
    content["engine"] = {"dtype": "float32", "max_batch_tokens": 256}
    content["instruments"] = content.get("instruments", {}) | {"overhead": False, "peaks": "roofline" in name}
    _shrink_traffic(content["traffic"], folder)
    if sweep := content.get("sweep"):
        sweep |= {"concurrency": sweep["concurrency"][:2], "max_seconds": 2, "num_requests": MOST_REQUESTS}
        sweep |= {"input_tokens": [8, 24]} if "input_tokens" in sweep else {}
        sweep.pop("models", None)
    for key in ("lockstep", "ladder"):
        if key in content:
            content[key] |= {"concurrency": [1, 2], "num_requests": MOST_REQUESTS, "max_seconds": 1.5}
    return Ready(path=_write(content, folder / f"{name}.yaml"))


def _single(model: dict[str, Any]) -> dict[str, Any]:
    """The largest twin alone in the place of a ladder of them."""
    ladder = model.get("ladder")
    if ladder is None:
        return model
    return {"name": f"{model['name']}-{max(ladder):g}x", "twin_of": model["twin_of"], "match": "total"}


def _shrink_model(model: dict[str, Any], source: Path, folder: Path) -> None:
    if "config" not in model:
        return
    config = tiny_config(_config(model["config"], source))
    file = folder / f"{Path(str(model['config'])).stem}-tiny.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config), encoding="utf-8")
    model["config"] = str(file)
    if model.get("routing", {}).get("policy") == "profile":
        experts = int(config.get("num_local_experts") or config["num_experts"])
        counts = folder / f"{file.stem}-popularity.json"
        counts.write_text(json.dumps({"counts": [list(range(1, experts + 1))] * TINY_LAYERS}), encoding="utf-8")
        model["routing"]["path"] = str(counts)
        model["routing"].pop("layers", None)


def tiny_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture, experts and top-k, at the widths of a test."""
    return {key: TINY_SIZES.get(key, value) for key, value in config.items()} | {"dtype": "float32"}


def _config(named: Any, source: Path) -> dict[str, Any]:
    from moeprof.capture.models.find import named_configs

    if str(named).endswith(".json"):
        found: dict[str, Any] = json.loads((source / str(named)).read_text(encoding="utf-8"))
        return found
    return named_configs()[str(named)]


def _shrink_traffic(traffic: dict[str, Any], folder: Path) -> None:
    traffic["prompts"] = {"source": "packaged"}
    if "trace" in traffic:
        minute = folder / "minute.csv"
        rows = [f"2023-11-16 18:15:{46 + i // 4:02d}.{25 * (i % 4):02d}00000,{40 + 10 * i},{8 + i}" for i in range(8)]
        minute.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n", encoding="utf-8")
        traffic["trace"]["path"] = str(minute)
        return
    traffic["num_requests"] = MOST_REQUESTS
    traffic["arrivals"]["concurrency"] = 2
    _walk(traffic["lengths"], lambda value: max(4, int(value) // SHORTER))


def _walk(value: dict[str, Any], change: Callable[[Any], Any]) -> None:
    for key, item in value.items():
        if isinstance(item, dict):
            _walk(item, change)
        elif isinstance(item, int):
            value[key] = change(item)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _write(content: dict[str, Any], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _there(source: Path, path: str) -> bool:
    return (source.parent / path).exists()


def _moved(content: dict[str, Any], source: Path, folder: Path) -> None:
    """Paths that start at the workload's folder, for a copy in ``folder``: relative, because records tell the text."""

    def moved(path: str) -> str:
        return os.path.relpath(source.parent / path, folder)

    trace = content["traffic"].get("trace")
    if trace is not None:
        trace["path"] = moved(trace["path"])
    for model in content["models"]:
        if str(model.get("config", "")).endswith(".json"):
            model["config"] = moved(model["config"])
        if "path" in model.get("routing", {}):
            model["routing"]["path"] = moved(model["routing"]["path"])
