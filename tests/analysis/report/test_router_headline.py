"""What the headline says of a router, no further than its decode steps speak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis.metrics.summary import summarise
from moeprof.analysis.report.headline import findings
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from tests.helpers.records import (
    draw_step_counts,
    make_facts,
    make_pass,
    make_requests,
    make_routing,
    make_steps,
    write_record,
)


@pytest.mark.parametrize(
    ("num_pure", "keep", "said"),
    [
        (60, True, "a decode step of moe touches"),
        (30, True, "a decode step of moe (steps without prefill, which hold 50 % of its decode tokens) touches"),
        (6, True, "the decode tokens of a step of moe, mixed ones too, touch"),
        (6, False, "is not known, since steps of decode alone hold 10 % of its decode tokens"),
    ],
)
def test_a_sentence_on_decode_steps_says_what_it_speaks_for(
    tmp_path: Path, num_pure: int, keep: bool, said: str
) -> None:
    """60 steps with 4 decode tokens each; ``num_pure`` of them hold no prompt."""
    prefill = np.where(np.arange(60) < num_pure, 0, 32)
    counts = draw_step_counts(np.stack([prefill, np.full(60, 4)], axis=1), num_layers=2, num_experts=16, top_k=2)
    phase = np.where(prefill > 0, "mixed", "decode")
    steps = make_steps(60, phase=phase, prefill_tokens=prefill, decode_tokens=np.full(60, 4))
    routing = make_routing(counts, keep_step_counts=keep)
    tables = make_pass(traffic="offline", requests=make_requests(12), steps=steps, routing=routing)
    facts = make_facts(num_layers=2, num_experts=16)
    record = open_record(write_record(tmp_path, {"moe": (facts, [[tables]])}))
    (sentence,) = [text for text in findings(summarise(record, Pricing(usd_per_device_hour=3.6))) if "busiest" in text]
    assert said in sentence
