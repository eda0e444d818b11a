"""Is a record's JSON of the shape that readers rely on? A damaged file is then named in one line, never a crash.

Only what readers index without asking is checked; keys that are not known here belong to whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from moeprof.core.errors import RecordError
from moeprof.core.model_facts import ModelFacts, MoeLayerFacts

# key -> types allowed where the key is present
EXPERIMENT: dict[str, tuple[type, ...]] = {
    "status": (str,),
    "workload": (dict,),
    "workload_text": (str,),
    "environment": (dict,),
    "models": (list,),
    "schedules": (dict,),
    "pricing": (dict, type(None)),
    "fit": (dict, type(None)),
    "notes": (list,),
    "idle_power_w": (int, float, type(None)),
    "device_at_start": (dict, type(None)),
    "device_at_end": (dict, type(None)),
}
MODEL = {"name": (str,), "folder": (str,), "status": (str,), "error": (str, type(None))}
LAUNCH = {
    key: (dict, type(None)) for key in ("engine", "memory", "warmup", "self_check", "peaks", "forced_picks", "gap")
}
PASS: dict[str, tuple[type, ...]] = {
    "traffic": (str,),
    "status": (str,),
    "duration_s": (int, float, type(None)),
    "invariants": (dict, type(None)),
    "memory": (dict, type(None)),
    "reference_kernel_s": (int, float, type(None)),
}
SLO = dict.fromkeys(("ttft_s", "tpot_s", "e2e_s"), (int, float, type(None)))
TRAFFIC = ("open", "closed", "offline")


def check_experiment(file: Path, value: Mapping[str, Any]) -> None:
    """Check experiment.json.

    Raises:
        RecordError: a key is missing or of another kind; the message names it.
    """
    missing = [key for key in ("format_version", "workload", "environment", "models") if key not in value]
    if missing:
        raise RecordError(f"{file}: damaged, without {', '.join(missing)}")
    _check(file, "", value, EXPERIMENT)
    for number, model in enumerate(value["models"]):
        _check(file, f"models[{number}]", model, MODEL, needed=("name", "folder"))
        if Path(model["folder"]).name != model["folder"]:
            raise RecordError(f"{file}: damaged, models[{number}].folder {model['folder']!r} is outside of the record")
    for name, schedule in value.get("schedules", {}).items():
        _check(file, f"schedules.{name}", schedule, {"notes": (list,)})
    slo = value["workload"].get("slo") or {}
    _check(file, "workload.slo", slo, SLO)
    unknown = sorted(set(slo) - set(SLO))
    if unknown:
        raise RecordError(f"{file}: damaged, workload.slo.{unknown[0]} is not known; {', '.join(SLO)} are")


def check_launch(file: Path, value: Mapping[str, Any]) -> None:
    """Check launch.json.

    Raises:
        RecordError: as :func:`check_experiment`.
    """
    _check(file, "", value, LAUNCH)


def check_pass(file: Path, value: Mapping[str, Any]) -> None:
    """Check pass.json.

    Raises:
        RecordError: as :func:`check_experiment`.
    """
    _check(file, "", value, PASS)
    if value.get("traffic", TRAFFIC[0]) not in TRAFFIC:
        raise RecordError(f"{file}: damaged, traffic is {value['traffic']!r}; {', '.join(TRAFFIC)} are known")
    for name, check in (value.get("invariants") or {}).items():
        _check(file, f"invariants.{name}", check, {"passed": (bool,), "text": (str,)}, needed=("passed", "text"))


def check_facts(file: Path, value: Mapping[str, Any]) -> None:
    """Check model.json.

    Raises:
        RecordError: as :func:`check_experiment`.
    """
    _check(file, "", value, {"moe_layers": (list,), "params_by_group": (dict,), "bytes_by_group": (dict,)})
    _fields(file, "", value, ModelFacts)
    for number, layer in enumerate(value["moe_layers"]):
        _check(file, f"moe_layers[{number}]", layer, {})
        _fields(file, f"moe_layers[{number}].", layer, MoeLayerFacts)
        unknown = sorted(set(layer) - {f.name for f in fields(MoeLayerFacts)})
        if unknown:
            raise RecordError(f"{file}: damaged, moe_layers[{number}].{unknown[0]} is not known")


def _fields(file: Path, where: str, value: Mapping[str, Any], kind: type[Any]) -> None:
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in value]
    if missing:
        raise RecordError(f"{file}: damaged, without {where}{missing[0]}")


def _check(
    file: Path, where: str, value: Any, kinds: Mapping[str, tuple[type, ...]], *, needed: tuple[str, ...] = ()
) -> None:
    if not isinstance(value, dict):
        raise RecordError(f"{file}: damaged, {where} is {_kind(value)}; keys and values belong there")
    prefix = f"{where}." if where else ""
    for key in needed:
        if key not in value:
            raise RecordError(f"{file}: damaged, without {prefix}{key}")
    for key, allowed in kinds.items():
        if key in value and not isinstance(value[key], allowed):
            raise RecordError(f"{file}: damaged, {prefix}{key} is {_kind(value[key])}")


def _kind(value: Any) -> str:
    return {dict: "keys and values", list: "a list", str: "a text", type(None): "null"}.get(type(value), repr(value))
