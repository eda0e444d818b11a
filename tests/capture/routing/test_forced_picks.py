"""Where a model sends a fixed text: the same picks as in the engine, every time, and how near they were to others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from moeprof.analysis.metrics.routing.picks import NOT_RECORDED, UNEXPLAINED, margin_metrics, picks_margins
from moeprof.capture.coverage import tiny_model
from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.instrumented import Launched, RoutingInstrument
from moeprof.capture.measure import owed
from moeprof.capture.measure.teacher_forced import measure
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.protocol import Order, WorkerPlan
from moeprof.capture.routing.teacher_forced import NO_PICKS, forced_texts, record_forced_picks
from moeprof.capture.worker import solo as solo_module
from moeprof.capture.worker.session import Session
from moeprof.capture.worker.solo import SoloModel
from moeprof.core.errors import RecordError
from moeprof.core.record.headers import to_json
from moeprof.core.record.layout import LaunchRecord
from moeprof.core.record.picks import FILE_NAME, ForcedPicks, load_forced_picks, load_picks, save_forced_picks
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec, RoutingPolicy
from moeprof.core.workload.workload import Instruments, Warmup
from tests.capture.routing.test_routing_replay import write_pass
from tests.helpers.plain_moe import PlainExperts
from tests.helpers.plans import solo_plan
from tests.helpers.tiny_run import NUM_EXPERTS, NUM_LAYERS, TOP_K, Ran

CLASSES = ("code", "prose")


def schedule(
    num: int = 12, prompt: int = 20, output: int = 6, *, forced: bool = True, vocabulary: int = 120
) -> Schedule:
    random = np.random.default_rng(7)

    def ids(length: int) -> tuple[np.ndarray[Any, np.dtype[np.int32]], ...]:
        return tuple(random.integers(3, vocabulary, length).astype(np.int32) for _ in range(num))

    return Schedule(
        pattern="offline", concurrency=None, request_id=tuple(f"r{i}" for i in range(num)), arrival_s=np.zeros(num),
        input_ids=ids(prompt), output_tokens=np.full(num, output), output_ids=ids(output) if forced else None,
        request_class=tuple(CLASSES[i % 2] for i in range(num)), session=("",) * num, prefix_blocks=((),) * num,
        outputs="forced" if forced else "free", num_characters=np.full(num, -1),
    )  # fmt: skip


def recorded(model: Any, requests: Schedule, **more: Any) -> ForcedPicks:
    found = record_forced_picks(model, find_moe_layers(model), requests, CLASSES, **more)
    assert isinstance(found, ForcedPicks), found
    return found


# -- which tokens ------------------------------------------------------------------------------------------------------


def test_the_text_is_prompt_and_output_without_its_last_token_which_nobody_feeds_back() -> None:
    (text,) = forced_texts(schedule(1, prompt=4, output=3))
    requests = schedule(1, prompt=4, output=3)
    assert requests.output_ids is not None
    assert text.ids.tolist() == [*requests.input_ids[0].tolist(), *requests.output_ids[0].tolist()[:2]]
    assert (text.row, text.prompt_tokens) == (0, 4)


def test_requests_follow_until_there_are_enough_tokens_and_the_last_is_cut() -> None:
    texts = list(forced_texts(schedule(5, prompt=8, output=3), max_tokens=24))
    assert [len(text.ids) for text in texts] == [10, 10, 4]
    assert [text.prompt_tokens for text in texts] == [8, 8, 4]
    assert [len(text.ids) for text in forced_texts(schedule(2, prompt=8, output=3), longest=9)] == [9, 9]


def test_without_forced_outputs_the_prompts_alone_are_the_text() -> None:
    assert [len(text.ids) for text in forced_texts(schedule(2, prompt=8, forced=False))] == [8, 8]


# -- the same picks as in the engine -----------------------------------------------------------------------------------


def plan_of(folder: Path, tiny: Path, requests: Schedule, name: str = "moe", **more: Any) -> WorkerPlan:
    """One launch of a tiny model, without the instruments that take seconds."""
    requests.save(folder / "schedule.parquet")
    routing = more.pop("routing", RoutingPolicy())
    more = {"instruments": Instruments(save_detailed=True, peaks=False, power=False)} | more
    return solo_plan(
        ModelSpec(name=name, path=str(tiny / name), routing=routing), folder,
        TransformersSettings(kv_tokens=512, dtype="float32"), folder=folder / "launch-0", facts_folder=folder,
        warmup=Warmup(num_requests=1, max_seconds=0.1), class_names=CLASSES, **more,
    )  # fmt: skip


def record(model: Any, routing: RoutingInstrument, plan: WorkerPlan, requests: Schedule) -> Any:
    """What launch.json keeps, of a model without an engine."""
    deployment = SimpleNamespace(module=model)
    bare: Any = SimpleNamespace(deployment=deployment, routing=routing, without_engine=nullcontext)
    return measure(
        Launched(model=bare, plan=plan, schedule=requests, warmup=requests, output_bytes=(), should_stop=lambda: False)
    )


@pytest.fixture(scope="module")
def launch(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchRecord]:
    """A session in this process: one round with every pick kept, then the forced picks, then another round."""
    folder = tmp_path_factory.mktemp("forced")
    plan, patch = plan_of(folder, tiny, schedule()), pytest.MonkeyPatch()
    patch.setattr(solo_module, "CALIBRATION_S", 0.1)
    with Session(plan, lambda: False, lambda report: None) as session:
        solo = SoloModel(session)
        solo.prepare(Order(command="prepare"))
        solo.run_pass(Order(command="pass", name="round-0"))
        solo.measure(Order(command="measure", name="forced_picks", extra={"output_bytes": []}))
        solo.run_pass(Order(command="pass", name="round-1"))
        solo.finish()
    patch.undo()
    yield LaunchRecord(plan.folder)


def test_every_token_goes_where_the_engine_sent_it(launch: LaunchRecord) -> None:
    forced = launch.forced_picks
    assert forced is not None
    assert forced.picks_TLK.shape == (12 * 25, NUM_LAYERS, TOP_K)
    alone = {
        (request, position): picks.tolist()
        for request, position, picks in zip(
            forced.request_T.tolist(), forced.position_T.tolist(), forced.picks_TLK, strict=True
        )
    }
    for name in ("round-0", "round-1"):  # the engine is whole again afterwards
        batched = load_picks(launch.path / name)
        assert batched is not None and len(batched.request_T) == len(alone)
        for request, position, picks in zip(
            batched.request_T.tolist(), batched.position_T.tolist(), batched.picks_TLK, strict=True
        ):
            assert alone[request, position] == picks.tolist()


def test_launch_json_says_how_much_text_it_was(launch: LaunchRecord) -> None:
    forced = launch.forced_picks
    assert forced is not None
    assert to_json(launch.info.forced_picks) == {"tokens": 300, "requests": 12, "sha256": forced.tokens_sha256}


def test_phases_and_classes_are_those_of_the_schedule(launch: LaunchRecord) -> None:
    forced = launch.forced_picks
    assert forced is not None and forced.classes == CLASSES
    assert forced.is_output_T.sum() == 12 * 5
    assert (forced.is_output_T == (forced.position_T >= 20)).all()
    assert (forced.class_T == forced.request_T % 2).all()


def test_the_same_text_gives_the_same_picks_and_other_text_another_hash(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny / "moe").eval()
    first, again, other = (recorded(model, schedule(num)) for num in (3, 3, 2))
    assert first.picks_TLK.tolist() == again.picks_TLK.tolist()
    assert first.margin_TL.tolist() == again.margin_TL.tolist()
    assert first.tokens_sha256 == again.tokens_sha256 != other.tokens_sha256


def test_it_stops_between_requests_when_told_to_or_when_it_took_too_long(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny / "moe").eval()
    times = iter([0.0, 10.0, 61.0])
    late = recorded(model, schedule(), clock=lambda: next(times))
    stopped = recorded(model, schedule(), should_stop=lambda: True)
    assert (late.num_requests, stopped.num_requests) == (2, 1)
    assert late.tokens_sha256 == stopped.tokens_sha256 == recorded(model, schedule()).tokens_sha256  # of one text


# -- routing that is not the model's own -------------------------------------------------------------------------------


def overridden(tmp_path: Path, tiny: Path, policy: RoutingPolicy) -> ForcedPicks:
    plan = plan_of(tmp_path, tiny, schedule(4), routing=policy)
    plan.folder.mkdir(exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tiny / "moe").eval()
    routing = RoutingInstrument(model, plan)
    try:
        told = record(model, routing, plan, schedule(4))
        again = record(model, routing, plan, schedule(4))
    finally:
        routing.close()
    assert told == again
    found = LaunchRecord(plan.folder).forced_picks
    assert found is not None and np.isnan(found.margin_TL).all()
    return found


def test_an_override_shows_and_has_no_margins(tmp_path: Path, tiny: Path) -> None:
    found = overridden(tmp_path, tiny, RoutingPolicy(policy="concentrated"))
    assert (found.picks_TLK == [0, 1]).all()
    assert [value.reasons for value in picks_margins(found)] == [(UNEXPLAINED,)] * 2


def test_overridden_picks_are_a_fact_of_the_text(tmp_path: Path, tiny: Path) -> None:
    found = overridden(tmp_path, tiny, RoutingPolicy(policy="balanced"))  # recorded twice, alike
    for request in np.unique(found.request_T):
        picks_TLK = found.picks_TLK[found.request_T == request]
        assert ((picks_TLK[1:, :, 0] - picks_TLK[:-1, :, 0]) % NUM_EXPERTS == 2).all()  # the next two experts
        load = np.bincount(picks_TLK[:, 1].flatten(), minlength=NUM_EXPERTS)
        assert load.max() - load.min() <= 1


def test_replayed_routing_goes_where_it_was_recorded(tmp_path: Path, tiny: Path) -> None:
    planted = write_pass(tmp_path / "pass", schedule(4))  # token p of request r: experts (r + p) mod 8, and the next
    plan = plan_of(tmp_path, tiny, schedule(4), routing=RoutingPolicy(policy="replay", path=str(planted)))
    plan.folder.mkdir()
    model, listeners = AutoModelForCausalLM.from_pretrained(tiny / "moe").eval(), ListenerSet()
    engine, routing = build_engine(model, plan.engine, listeners), RoutingInstrument(model, plan)
    try:
        routing.replay_recorded(schedule(4), engine, listeners)
        engine.close()
        record(model, routing, plan, schedule(4))
    finally:
        routing.close()
    found = load_forced_picks(plan.folder / FILE_NAME)
    first_T = (found.request_T + found.position_T) % NUM_EXPERTS
    assert (found.picks_TLK == np.stack([first_T, (first_T + 1) % NUM_EXPERTS], axis=1)[:, None]).all()


# -- margins -----------------------------------------------------------------------------------------------------------


class PlantedGate(nn.Module):
    """Gives logits whose softmax is (0.4, 0.3, 0.3 - m, m): the second pick leads the third by m, m = token / 1000."""

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        lead = token.double() / 1000
        shares = torch.stack([torch.full_like(lead, 0.4), torch.full_like(lead, 0.3), 0.3 - lead, lead], dim=-1)
        return (shares + 1e-12).log().float()


class PlantedBlock(nn.Module):
    def __init__(self, shift: int) -> None:
        super().__init__()
        self.gate, self.experts, self.top_k, self.shift = PlantedGate(), PlainExperts(), 2, shift

    def forward(self, token: torch.Tensor) -> None:
        weights, picks = self.gate(token).softmax(-1).topk(2, dim=-1)
        self.experts(torch.ones(len(token), 3), (picks + self.shift) % 4, weights / weights.sum(-1, keepdim=True))


class Planted(nn.Module):
    """Two layers; the picks of the second are not the top-k of its gate when ``shift`` is not 0."""

    class config:  # noqa: N801
        _attn_implementation = "sdpa"

        @staticmethod
        def get_text_config(decoder: bool = True) -> Any:
            class Text:
                max_position_embeddings = None

                def to_dict(self) -> dict[str, Any]:
                    return {}

            return Text()

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList([PlantedBlock(0), PlantedBlock(shift)])

    def forward(self, ids: torch.Tensor, use_cache: bool = True) -> None:
        for layer in self.layers:
            layer(ids[0])


def planted_schedule() -> Schedule:
    """Two prompts, each with margins of 0.000, 0.001, ..., 0.100 once."""
    ids = tuple(np.arange(101, dtype=np.int32) for _ in range(2))
    return replace(schedule(2, forced=False), input_ids=ids)


def test_the_5th_percentile_of_a_planted_gate_is_what_the_head_computes() -> None:
    found = recorded(Planted(), planted_schedule())
    assert found.margin_TL == pytest.approx(np.tile(np.arange(101) / 1000, 2)[:, None].repeat(2, axis=1), abs=1e-6)
    values = {(v.name, *sorted(v.labels.items())): v for v in picks_margins(found)}
    whole = values["router_margin_p05", ("phase", "all")]
    assert whole.value == pytest.approx(0.005, abs=1e-6)
    assert values["router_margin_p50", ("phase", "all")].value == pytest.approx(0.050, abs=1e-6)
    assert (whole.n, whole.reasons) == (2, ("no interval: fewer than ten requests",))
    assert values["router_margin_p05", ("layer", "layers.1"), ("phase", "all")].value == pytest.approx(0.005, abs=1e-6)
    assert values["router_margin_p05", ("phase", "decode")].reasons == ("0 tokens, 130 are needed",)


def test_a_layer_whose_scores_do_not_give_the_picks_has_no_margin_and_the_rest_says_so() -> None:
    found = recorded(Planted(shift=1), planted_schedule())
    assert np.isfinite(found.margin_TL).mean(axis=0).tolist() == [1.0, 0.0]
    whole = picks_margins(found)[0]
    assert whole.value == pytest.approx(0.005, abs=1e-6)
    assert whole.reasons[-1] == f"1 of 2 layers left out: {UNEXPLAINED}"


def test_intervals_resample_requests_and_hold_the_value() -> None:
    found = recorded(tiny_model("qwen3_moe"), schedule(30))
    whole = picks_margins(found)[0]
    assert whole.value is not None and whole.ci_low is not None and whole.ci_high is not None
    assert whole.n == 30 and whole.ci_low < whole.value < whole.ci_high


@pytest.mark.parametrize(
    ("model_type", "share"),
    [("qwen3_moe", torch.softmax), ("olmoe", torch.softmax), ("deepseek_v3", lambda x, dim: x.sigmoid())],
)
def test_scores_are_in_the_form_that_the_gate_selects_by(model_type: str, share: Any) -> None:
    model, seen = tiny_model(model_type), []
    gate = find_moe_layers(model)[0].block.gate
    with torch.no_grad():
        gate.weight.normal_(generator=torch.Generator().manual_seed(3))
        bias = getattr(gate, "e_score_correction_bias", torch.zeros(1))
        bias.copy_(torch.linspace(-0.2, 0.2, len(bias)))
    handle = gate.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    found = recorded(model, schedule(1))
    handle.remove()
    top = (share(seen[0].float(), dim=-1) + bias).sort(dim=-1, descending=True).values
    assert found.margin_TL[:, 0] == pytest.approx((top[:, 1] - top[:, 2]).detach().numpy(), abs=1e-6)


def test_a_gate_in_bfloat16_has_margins_too() -> None:
    found = recorded(tiny_model("qwen3_moe").to(torch.bfloat16), schedule(4))
    assert np.isfinite(found.margin_TL).all()


def test_group_limits_are_explained_by_no_score() -> None:
    model = tiny_model("deepseek_v3")
    for layer in find_moe_layers(model):
        layer.block.gate.num_group, layer.block.gate.topk_group = 4, 1  # both picks come from one group of two
    found = recorded(model, schedule(4))
    assert (found.picks_TLK[:, :, 0] // 2 == found.picks_TLK[:, :, 1] // 2).all()
    assert np.isnan(found.margin_TL).all()


# -- the file, and what there is none of -------------------------------------------------------------------------------


def test_the_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    before = recorded(tiny_model("zaya"), schedule(2))
    save_forced_picks(tmp_path / FILE_NAME, before)
    after = load_forced_picks(tmp_path / FILE_NAME)
    for name in ("picks_TLK", "request_T", "position_T", "class_T", "is_output_T", "margin_TL"):
        assert np.array_equal(getattr(before, name), getattr(after, name), equal_nan=name == "margin_TL"), name
    assert (after.layers, after.classes, after.tokens_sha256) == (before.layers, before.classes, before.tokens_sha256)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    save_forced_picks(path, recorded(tiny_model("mixtral"), schedule(2)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RecordError, match=r"forced.npz: damaged picks of forced tokens"):
        load_forced_picks(path)
    path.write_bytes(whole)
    with np.load(path) as data:
        arrays = dict(data)
    np.savez(path, **(arrays | {"position_T": arrays["position_T"][1:]}))
    with pytest.raises(RecordError, match=r"\(position_T does not fit the rest\)"):
        load_forced_picks(path)
    np.savez(path, **(arrays | {"class_T": arrays["class_T"] + 9}))
    with pytest.raises(RecordError, match=r"\(class_T does not fit the rest\)"):
        load_forced_picks(path)


def test_where_there_are_none_the_reason_is_said(tmp_path: Path, tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny / "moe").eval()
    off = plan_of(tmp_path, tiny, schedule(2), instruments=Instruments(routing=False))
    assert RoutingInstrument(model, off).unseen == "the routing tap is off (instruments.routing)"
    assert RoutingInstrument(model, plan_of(tmp_path, tiny, schedule(2))).unseen is None
    layers = [replace(layer, tapped=nn.Identity()) for layer in find_moe_layers(model)]
    assert record_forced_picks(model, layers, schedule(2), CLASSES) == NO_PICKS

    def too_large(module: nn.Module, args: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    handle = model.register_forward_pre_hook(too_large)
    full = record_forced_picks(model, find_moe_layers(model), schedule(2), CLASSES)
    handle.remove()
    assert full == "no memory for one forward pass of 25 tokens"


def test_a_real_run_keeps_them_of_the_moe_and_says_that_the_dense_model_has_no_router(
    tiny_run: tuple[Path, Ran],
) -> None:
    folder, _ = tiny_run
    moe, dense = (LaunchRecord(folder / name / "launch-0") for name in ("moe", "dense"))
    assert moe.forced_picks is not None and moe.forced_picks.num_requests == 24
    assert dense.forced_picks is None
    assert dense.info.forced_picks.reason == "a dense model has no router"
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in (("moe", margin_metrics([moe])[0].value), ("dense", None)):
        found = [v for v in summary["models"][name]["metrics"] if v["name"] == "router_margin_p05"]
        assert found[0]["value"] == value


@pytest.mark.parametrize(
    ("instruments", "numbers"),
    [
        (Instruments(), [0]),
        (Instruments(forced_picks=False), []),
        (Instruments(skip=("forced_picks",)), []),
    ],
)
def test_the_first_launch_records_them_unless_the_workload_says_no(
    instruments: Instruments, numbers: list[int]
) -> None:
    names = [[row.name for row in owed(instruments, number)] for number in range(3)]
    assert [number for number in range(3) if "forced_picks" in names[number]] == numbers
    assert all("overhead" in row for row in names)


def test_an_old_record_has_none_and_says_so(tmp_path: Path) -> None:
    old = LaunchRecord(tmp_path)
    assert old.forced_picks is None
    assert margin_metrics([old])[0].reasons == (NOT_RECORDED,)
