"""What a conversation costs, waits and shares: numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis.metrics.conversations import conversations, price, reuse, turn_samples
from moeprof.analysis.metrics.load.overload import requested_rate
from moeprof.analysis.metrics.summary import summarise
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.metrics.throughput import throughput_metrics
from moeprof.analysis.report.run import build_document
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from moeprof.core.record.saturation import judge_requests, open_times
from tests.helpers.records import make_facts, make_pass, make_requests, write_record

NAN = None


def chats(number: int = 0, *, status: tuple[str, ...] = ("done",) * 5) -> PassTables:
    """Conversation 0-1-3 with a parallel call 2, and conversation 4 of one request; 10 s at a dollar an hour."""
    requests = make_requests(
        5,
        arrival_s=[0, 3, 4, 6, 8],
        ttft_s=[0.1, 0.2, 0.3, 0.4, 0.5],
        input_tokens=[40, 56, 50, 67, 33],
        cached_tokens=[0, 48, 32, 48, 0],
        reusable_tokens=[0, 48, 48, 48, 0],
        session=["a", "a", "a/x", "a", "b"],
        turn=[1, 2, 2, 3, 1],
        after=[NAN, 0, 0, 1, NAN],
        delay_s=[NAN, 0.5, 1.5, 0.0, NAN],
        status=list(status),
    )
    return make_pass(name=f"round-{number}", requests=requests, window_s=(0.0, 10.0))


def test_turns_are_first_second_and_later_ones() -> None:
    assert turn_samples(chats(), "1").values.tolist() == pytest.approx([0.1, 0.5])
    assert turn_samples(chats(), "2").values.tolist() == pytest.approx([0.2, 0.3])
    assert turn_samples(chats(), "3+").values.tolist() == pytest.approx([0.4])


def test_a_conversation_is_a_tree_and_done_when_every_turn_is() -> None:
    assert (conversations(chats()).all, conversations(chats()).done) == (2, 2)
    lost = conversations(chats(status=("done", "failed", "done", "not_sent", "done")))
    assert (lost.all, lost.done, lost.rows) == (2, 1, frozenset({4}))
    table = chats().requests.assign(after=np.nan, session=["a", "a", "a", "a", "b"])
    open_sessions = make_pass(requests=table, window_s=(0.0, 10.0))
    assert (conversations(open_sessions).all, conversations(open_sessions).done) == (2, 2)


def test_a_conversations_price_is_the_bill_over_those_that_were_done() -> None:
    # 0.30 for 3 and 0.10 for 2: 0.40 / 5, not the mean of 0.10 and 0.05.
    value = price([(0.30, 3), (0.10, 2), (0.2, 0)], {"traffic": "open"})
    assert value.value == pytest.approx(0.08)
    with_interval = price([(0.3, 3), (0.33, 3), (0.27, 3)], {})
    assert with_interval.value == pytest.approx(0.1)
    assert with_interval.ci_low is not None and with_interval.ci_low < 0.1 < (with_interval.ci_high or 0)
    nothing = price([(0.3, 0)], {})
    assert (nothing.value, nothing.reasons) == (None, ("no conversation ended well",))


def test_reuse_that_was_had_stands_beside_what_was_possible() -> None:
    possible, had, share = reuse([chats()], {})
    assert (possible.value, had.value) == (144, 128)
    assert share.value == pytest.approx(128 / 144)
    silent = chats().requests.assign(cached_tokens=[np.nan] * 5)
    _, had, share = reuse([make_pass(requests=silent, window_s=(0.0, 10.0))], {})
    assert (had.value, had.reasons) == (None, ("the engine does not tell what its prefix cache had",))
    assert (share.value, share.reasons) == (None, had.reasons)


def test_first_turns_alone_have_a_rate() -> None:
    assert requested_rate(chats()) == pytest.approx(1 / 8)  # two first turns, 0 and 8 s
    arrival_s, _ = open_times(chats().requests)
    assert arrival_s.tolist() == [0, 8]
    counts = {value.name: value.value for value in throughput_metrics([chats()], None)}
    assert (counts["num_requests"], counts["num_requests_not_sent"]) == (5, 0)


def test_later_turns_that_come_ever_faster_are_no_overload() -> None:
    """20 first turns a second apart, each done in half a second; 200 later ones at the end that never end."""
    arrival = [*range(20), *np.linspace(10, 19, 200)]
    requests = make_requests(
        220,
        arrival_s=arrival,
        ttft_s=0.2,
        itl_s=0.1,
        status=["done"] * 20 + ["unfinished"] * 200,
        after=[NAN] * 20 + [0] * 200,
    )
    assert judge_requests(requests, "open", 20.0).saturated is False
    assert judge_requests(requests.assign(after=np.nan), "open", 20.0).saturated is not False


def test_the_section_is_there_only_with_sessions(tmp_path: Path) -> None:
    rounds = [chats(number) for number in range(3)]
    plain = [make_pass(name=f"round-{i}", requests=make_requests(5), window_s=(0.0, 10.0)) for i in range(3)]
    pages = {}
    for name, passes in (("sessions", rounds), ("plain", plain)):
        path = write_record(tmp_path / name, {"dense": (make_facts(num_experts=0), [passes])})
        summary = summarise(open_record(path), Pricing(usd_per_device_hour=1.0))
        pages[name] = {section.name for section in build_document(summary).sections}
        values = {(v.name, v.labels.get("turn")): v for v in summary.models[0].metrics}
        if name == "sessions":
            cost = values["usd_per_conversation", None]
            # 10 s at a dollar an hour, two conversations a round; two are too few for a price that means anything.
            assert cost.value == pytest.approx(10 / 3600 / 2)
            assert (cost.valid, cost.reasons[-1][:26]) == (False, "2 conversations ended, and")
            assert values["num_conversations_done", None].value == 6
            assert values["turn_ttft_mean_s", "2"].value == pytest.approx(0.25)
        else:
            assert not [name for name, _ in values if "conversation" in name]
    assert "conversations" in pages["sessions"]
    assert "conversations" not in pages["plain"]
