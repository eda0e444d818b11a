"""The rivals that run in our own environment: our engine as a run drives it, ``generate`` and ``generate_batch``.

Each tries its settings when it gets ready, keeps the fastest, and then runs one round at a time.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rival_talk import Message, serve

TRIES = 2


def get_ready(spec: Message) -> tuple[Message, Callable[[], Message]]:
    """Load the model, find the best settings of the kind that is asked for, run once."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    import numpy as np
    import torch

    from benchmarks import contenders
    from benchmarks.models import load
    from moeprof.core.trace import Schedule

    torch.set_num_threads(spec["threads"])
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    model, schedule = load(Path(spec["model"])), Schedule.load(Path(spec["schedule"]))
    if spec["outputs"] is not None:
        schedule = replace(schedule, output_ids=tuple(np.array(ids, dtype=np.int32) for ids in spec["outputs"]))
    best = _best(_makers(spec, model, schedule))
    best.run()

    def run_round() -> Message:
        cpu_s = time.process_time()
        seconds, tokens = best.run()
        return {"seconds": seconds, "cpu_s": time.process_time() - cpu_s, "tokens": tokens}

    about: Message = {"name": best.name}
    if isinstance(best, contenders.Generate):
        about["outputs"] = [ids.tolist() for ids in best.outputs()]
    return about, run_round


def _makers(spec: Message, model: Any, schedule: Any) -> list[Callable[[], Any]]:
    """All settings to try."""
    from benchmarks.contenders import Generate, GenerateBatch, Ours

    if spec["kind"] == "moeprof":
        options = [{"max_batch_tokens": most} | extra for extra in spec["settings"] for most in spec["steps"]]
        return [partial(Ours, model, schedule, settings=option) for option in options]
    if spec["kind"] == "generate":
        return [partial(Generate, model, schedule, batch=batch, attn="sdpa") for batch in spec["batches"]]
    # With sdpa like all others here; earlier tables of this bench tried "paged|eager" too and chose sdpa.
    return [
        partial(GenerateBatch, model, schedule, page=page, max_batch_tokens=most, attn="sdpa")
        for page in (16, 256)
        for most in spec["steps"]
    ]


def _best(makers: Sequence[Callable[[], Any]]) -> Any:
    """The fastest contender by the median of some calls after a first one; one alive at a time."""
    rates = []
    for make in makers if len(makers) > 1 else ():
        contender = make()
        contender.run()
        rates.append(median(tokens / seconds for seconds, tokens in (contender.run() for _ in range(TRIES))))
        print(f"{contender.name}: {rates[-1]:.0f} tok/s", file=sys.stderr, flush=True)
        contender.close()
    return makers[rates.index(max(rates)) if rates else 0]()


if __name__ == "__main__":
    serve(get_ready)
