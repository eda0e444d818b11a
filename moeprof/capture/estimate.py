"""Bytes of a model's weights before they load: file sizes, or the parameters of the config counted without memory."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from moeprof.capture.fit import DTYPE_BYTES
from moeprof.capture.model_source import ModelSource
from moeprof.core.workload import EngineSettings, ModelSpec

PATIENCE_S = 180.0


def estimate_weights_bytes(spec: ModelSpec, source: ModelSource, settings: EngineSettings) -> int | None:
    """Bytes on the device, or None when only loading will tell.

    Random weights are counted in a short-lived process, because that needs torch and the parent stays without.
    """
    asked = spec.dtype or settings.dtype
    stored = str(source.config.get("dtype") or source.config.get("torch_dtype") or "float32")
    factor = 1.0 if asked == "auto" else DTYPE_BYTES[asked] / DTYPE_BYTES.get(stored, 4)
    if source.weights_bytes is not None:
        return int(source.weights_bytes * factor)
    if spec.weights == "random":
        params = _count_in_process(source.config)
        return None if params is None else int(params * DTYPE_BYTES.get(stored, 4) * factor)
    return None


def _count_in_process(config: dict[str, Any]) -> int | None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_count, args=(json.dumps(config), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        return int(ours.recv()) if ours.poll(PATIENCE_S) else None
    except EOFError:
        return None  # the architecture is unknown; loading will say so by name
    finally:
        process.kill()
        process.join()


def _count(config_json: str, connection: Connection) -> None:
    import os
    import sys

    from moeprof.core.errors import MoeprofError

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - a failure here is told by silence, loading tells it in words
    from moeprof.capture.meta_models import facts_from_config

    values = json.loads(config_json)
    try:
        from transformers import AutoConfig

        config = AutoConfig.for_model(values.pop("model_type"), **values)
        connection.send(facts_from_config(config, name="", source="").total_params)
    except (MoeprofError, ValueError, KeyError):
        return
