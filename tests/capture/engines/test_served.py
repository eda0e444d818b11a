"""The client of servers, without a run: streams with faults, what is tried, failures, and what is never written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moeprof.capture.engines.base import ListenerSet, TokenEvent
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.engines.served import client as clients
from moeprof.capture.engines.served import open as opening
from moeprof.capture.engines.served.counters import WENT_BACK, differences, samples
from moeprof.capture.engines.served.events import Answer, Lines, json_reader
from moeprof.capture.engines.served.kinds import GENERIC, KINDS, VLLM, Answers, kind_of
from moeprof.capture.engines.served.settings import OpenAISettings
from moeprof.core.errors import InputError, WorkloadError
from moeprof.core.trace import Request, Schedule
from moeprof.core.workload.models import ModelSpec
from tests.helpers.mock_served import TRIAL, ServedMock, served
from tests.helpers.tiny_run import write_models

KEY = "sk-plantedKey0123456789"


# -- streams -----------------------------------------------------------------------------------------------------------


def read(pieces: list[bytes]) -> Answer:
    answer = Answer(read=json_reader(), lines=Lines())
    for number, piece in enumerate(pieces):
        answer.feed(piece, float(number))
    answer.close(float(len(pieces)))
    return answer


def event(**held: Any) -> bytes:
    return f"data: {json.dumps(held, ensure_ascii=False)}\n\n".encode()


def text(word: str = " a", **more: Any) -> bytes:
    return event(choices=[{"index": 0, "text": word, "finish_reason": None}], **more)


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 5, "completion_tokens": tokens}


END = event(choices=[], usage=usage(3)) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_pieces_may_end_anywhere(size: int) -> None:
    whole = b": ping\r\n\r\n" + text(" ☃") + text(" ü").replace(b"\n", b"\r\n") + b"event: x\n" + text() + END
    answer = read([whole[i : i + size] for i in range(0, len(whole), size)])
    assert (answer.failed, answer.total, answer.chunks, answer.complete) == (None, 3, 3, True)


def test_usage_of_each_chunk_counts_its_tokens() -> None:
    answer = Answer(read=json_reader(), lines=Lines())
    assert answer.feed(text("", usage=usage(0)), 1.0) == 0
    assert answer.feed(text(usage=usage(1)), 2.0) == 1
    assert answer.feed(text(usage=usage(4)), 3.0) == 3
    assert answer.feed(text("", usage=usage(5)), 4.0) == 1, "a token whose text is not whole yet"
    assert (answer.first_s, answer.last_s, answer.chunks, answer.tokens) == (2.0, 4.0, 2, 5)
    answer.feed(event(choices=[], usage=usage(5)) + b"data: [DONE]\n\n", 5.0)
    assert answer.late_tokens() == ([], True)


def test_ids_count_where_they_come_back() -> None:
    two, none = ({"text": word, "token_ids": ids} for word, ids in ((" a b", [4, 5]), ("", [])))
    last = event(choices=[{"text": "", "finish_reason": "length"}]) + END
    answer = read([event(choices=[two]), event(choices=[none]), last])
    assert (answer.tokens, answer.uncounted, answer.finish_reason) == (2, [], "length")


def test_chunks_are_tokens_only_where_there_are_as_many() -> None:
    same = read([text(), text(), text(), END])
    assert same.late_tokens() == ([0.0, 1.0, 2.0], True)
    fewer = read([text(), text(), event(choices=[], usage=usage(9)) + b"data: [DONE]\n\n"])
    times, are_known = fewer.late_tokens()
    assert (times, are_known) == ([0.0] + 8 * [1.0], False)


def test_a_last_chunk_with_the_whole_usage_is_not_the_last_token() -> None:
    last = event(choices=[{"index": 0, "text": " d", "finish_reason": "length"}], usage=usage(4))
    answer = read([text(), text(), text(), last])
    assert (answer.failed, answer.tokens) == (None, 0)
    assert answer.late_tokens() == ([0.0, 1.0, 2.0, 3.0], True)


def test_reasoning_is_output_and_no_answer() -> None:
    thought = event(choices=[{"delta": {"reasoning_content": "hm"}}])
    said = event(choices=[{"delta": {"content": "so"}, "finish_reason": "stop"}])
    role = event(choices=[{"delta": {"role": "assistant", "content": ""}}])
    told = {"prompt_tokens": 5, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}
    answer = read([role, thought, thought, said, event(choices=[], usage=told)])
    assert (answer.first_s, answer.first_answer_s, answer.reasoning_tokens, answer.chunks) == (1.0, 3.0, 2, 3)


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([text(), event(error={"message": "rosebud", "code": 500})], ("error in the stream", "500")),
        ([text(), text()], ("cut short", "")),
        ([text(), b"data: [DONE]\n\n"], ("no usage", "")),
        ([b"data: {not json\n\n"], ("bad answer", "no JSON object")),
    ],
)
def test_a_broken_stream_has_its_kind(pieces: list[bytes], kind: tuple[str, str]) -> None:
    assert read(pieces).failed == kind


# -- workload ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"url": "127.0.0.1:8000"},
            "url: found '127.0.0.1:8000', which is no address; http://127.0.0.1:8000/v1 is one",
        ),
        ({"url": "http://me:secret@host/v1"}, "url: credentials do not belong in an address"),
        ({"url": "http://host/v1?key=secret"}, "url: the address has a query or fragment"),
        ({"url": "http://host/v1", "devices": 0}, "devices: found 0; 1 or more is allowed"),
        ({"url": "http://host/v1", "request_timeout_s": 0}, "request_timeout_s: found 0; more than 0 is allowed"),
        ({"url": "http://host/v1", "api_key_env": KEY}, "api_key_env: found no name of an environment variable"),
    ],
)
def test_a_wrong_key_gets_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadError) as error:
        OpenAISettings(**settings)
    assert said in str(error.value)
    assert "secret" not in str(error.value) and KEY not in str(error.value)


def test_addresses_and_keys() -> None:
    settings = OpenAISettings(url="http://127.0.0.1:8000/", api_key_env="MOEPROF_TEST_KEY")
    spec = ModelSpec(name="a", path="x")
    assert settings.address_of(spec) == "http://127.0.0.1:8000/v1"
    assert settings.address_of(replace(spec, url="https://host/api/v1/")) == "https://host/api/v1"
    assert settings.key({"MOEPROF_TEST_KEY": f" {KEY}\n"}.get) == KEY
    with pytest.raises(WorkloadError, match="MOEPROF_TEST_KEY is not set in the environment"):
        settings.key({}.get)
    with pytest.raises(WorkloadError, match="holds characters that no HTTP header can have"):
        settings.key({"MOEPROF_TEST_KEY": "a\nb"}.get)
    with pytest.raises(WorkloadError, match=r"engine\.url: missing"):
        OpenAISettings().check_models((spec,))


# -- kinds -------------------------------------------------------------------------------------------------------------


def listed(owner: str) -> dict[str, Any]:
    return {"data": [{"id": "m", "owned_by": owner}]}


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"/v1/models": listed("vllm"), "/version": {"version": "0.33.0"}}, "vllm"),
        ({"/v1/models": listed("sglang")}, "sglang"),
        ({"/v1/models": listed("llamacpp"), "/props": {"build_info": "b1"}}, "llama.cpp"),
        ({"/v1/models": listed("tensorrt_llm"), "/version": {"version": "1.0"}}, "tensorrt-llm"),
        ({"/v1/models": listed("vllm"), "/metrics": "dynamo_frontend_inflight_requests 1\n"}, "dynamo"),
        ({"/v1/models": listed("openai"), "/health/readiness": {"litellm_version": "1.1"}}, "litellm"),
        ({"/v1/models": listed("vllm"), "/-/healthz": "success"}, "ray"),
        ({"/v1/models": {"data": []}, "/health": {"status": "ok"}}, "transformers"),
        ({"/v1/models": listed("somebody")}, "generic"),
    ],
)
def test_servers_are_told_by_what_they_answer(said: dict[str, Any], name: str) -> None:
    assert kind_of(Answers(said=said)).name == name


def test_each_kind_stands_once_and_says_how_it_is_known() -> None:
    names = [kind.name for kind in (*KINDS, GENERIC)]
    assert len(set(names)) == len(names)


# -- a server ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return ModelSpec(name="moe", path=str(folder / "moe"), served_as="served")


def schedule(outputs: str = "forced_length") -> Schedule:
    return Schedule(
        pattern="offline", concurrency=None, request_id=("w",), arrival_s=np.zeros(1),
        input_ids=(np.arange(5, 13, dtype=np.int32),), output_tokens=np.array([4]), output_ids=None,
        request_class=("all",), session=("",), prefix_blocks=((),), outputs=outputs,  # type: ignore[arg-type]
        num_characters=np.array([-1]),
    )  # fmt: skip


def opened(mock: ServedMock, model: ModelSpec, outputs: str = "forced_length", **settings: Any) -> Deployment:
    return opening.open(model, OpenAISettings(url=mock.url, **settings), None, warmup=schedule(outputs))


def engine_of(deployment: Deployment, mock: ServedMock, **settings: Any) -> clients.Client:
    built = deployment.build(OpenAISettings(url=mock.url, **settings), ListenerSet())
    assert isinstance(built, clients.Client)
    return built


def request(index: int = 0, tokens: int = 6, *, free: bool = False) -> Request:
    return Request(
        index=index, request_id=f"r{index}", arrival_s=0.0, input_ids=[5, 6, 7, 8], output_tokens=tokens,
        output_ids=None, request_class="all", stop_at_eos=free,
    )  # fmt: skip


def answers(engine: clients.Client, requests: list[Request], seconds: float = 20.0) -> dict[int, list[TokenEvent]]:
    for one in requests:
        engine.submit(one)
    found: dict[int, list[TokenEvent]] = {one.index: [] for one in requests}
    end_s, ended = time.perf_counter() + seconds, 0
    while ended < len(requests) and time.perf_counter() < end_s:
        told = engine.poll(0.05)
        ended += told.num_ended
        for one in told.events:
            found[one.request].append(one)
    assert ended == len(requests)
    return found


FACTS: dict[str, dict[str, Any]] = {
    "vllm": {"software": "vllm", "endpoint": "completions", "prompts": "ids", "tokens_from": "usage",
             "fixed_length": "ignore_eos, min_tokens", "version": "0.32.0"},
    "transformers": {"software": "transformers", "endpoint": "completions", "prompts": "text",
                     "tokens_from": "usage at the end", "fixed_length": "generation_config without end ids",
                     "version": None},
    "hosted": {"software": "generic", "endpoint": "chat", "prompts": "text", "tokens_from": "usage at the end",
               "fixed_length": None},
}  # fmt: skip


@pytest.mark.parametrize("flavour", list(FACTS))
def test_what_a_server_takes_is_tried(flavour: Any, model: ModelSpec) -> None:
    with served(
        ServedMock(flavour=flavour, ttft_s=0.0, itl_s=0.0, at_end_after=2 if flavour == "hosted" else None)
    ) as mock:
        deployment = opened(mock, model)
        facts = deployment.launch["server"]
        assert FACTS[flavour].items() <= facts.items(), facts
        assert deployment.fixes_length == (facts["fixed_length"] is not None)
        assert set(deployment.lacks) == {"module", "steps", "routing", "memory", "energy", "forced ids"}
        assert "routing not visible" in deployment.lacks["routing"]
        assert all(body.get("max_tokens", body.get("max_completion_tokens")) == TRIAL for body in mock.bodies)
        engine = engine_of(deployment, mock)
        try:
            (told,) = answers(engine, [request(tokens=8)]).values()
        finally:
            engine.close()
        got = sum(one.num_tokens for one in told)
        assert got == (2 if flavour == "hosted" else 8)
        assert told[-1].told is not None and told[-1].error is None
        if flavour == "transformers":
            assert told[-1].told.chunks == 7 and not told[-1].told.token_times
        else:
            assert told[-1].told.token_times
        assert "chat" not in facts["assumptions"][0] or flavour == "hosted"


def test_what_a_server_lacks_is_named(model: ModelSpec) -> None:
    with served(ServedMock(flavour="silent")) as mock, pytest.raises(InputError) as error:
        opened(mock, model)
    assert "tells neither usage nor token ids, so output tokens cannot be counted" in str(error.value)
    with served(ServedMock(models=("a", "b"))) as mock:
        with pytest.raises(InputError, match=r"served_as: the server has no model 'served'; it has a, b"):
            opened(mock, model)
        with pytest.raises(InputError, match=r"served_as: missing, and the server has 2: a, b"):
            opened(mock, replace(model, served_as=None))
    with served(ServedMock(flavour="hosted")) as mock, pytest.raises(InputError, match=r"status 404"):
        opened(mock, model, endpoint="completions")
    with pytest.raises(InputError, match=r"127.0.0.1:9 cannot be reached \(Connection refused\)"):
        opening.open(model, OpenAISettings(url="http://127.0.0.1:9/v1"), None)


def test_the_only_model_is_taken(model: ModelSpec) -> None:
    with served(ServedMock(models=("alone",))) as mock:
        assert opened(mock, replace(model, served_as=None)).launch["server"]["served_as"] == "alone"


@pytest.fixture
def failing(model: ModelSpec) -> Iterator[tuple[ServedMock, clients.Client]]:
    with served(ServedMock(ttft_s=0.005, itl_s=0.001)) as mock:
        deployment = opened(mock, model)
        engine = engine_of(deployment, mock, request_timeout_s=2.0)
        yield mock, engine
        engine.close()


FAULTS = {
    "429": ("rate limited: status 429, busy", 0),
    "500": ("server error: status 500, busy", 0),
    "disconnect": ("disconnected: ", 2),
    "error": ("error in the stream: engine_dead", 2),
    "cut": ("cut short", 2),
    "hang": ("timed out", 0),
}
HARMLESS = ("split", "two", "no done", "crlf", "no usage")  # the usage of each chunk has counted by then


def test_failures_have_kinds_and_nothing_is_sent_twice(failing: tuple[ServedMock, clients.Client]) -> None:
    mock, engine = failing
    mock.faults = dict(enumerate((*FAULTS, *HARMLESS)))
    num = len(mock.faults)
    for index, fault in mock.faults.items():
        told = answers(engine, [request(index)])[index]
        error, tokens = FAULTS.get(fault, (None, 6))
        last = told[-1]
        assert sum(one.num_tokens for one in told) == tokens, fault
        if error is None:
            assert last.error is None, fault
        else:
            assert last.error is not None and last.error.startswith(error), (fault, last.error)
            assert last.error.partition(":")[0] in clients.KINDS
            assert "rosebud" not in last.error
    assert mock.measured == num


def test_free_outputs_end_where_the_model_ends_them(model: ModelSpec) -> None:
    with served(ServedMock(ttft_s=0.0, itl_s=0.0, at_end_after=4)) as mock:
        deployment = opened(mock, model, "free")
        engine = engine_of(deployment, mock)
        found = answers(engine, [request(0, 9, free=True), request(1, 9)])
        engine.close()
    assert [sum(one.num_tokens for one in told) for told in found.values()] == [4, 9]
    assert "outputs end where the model ends them" in deployment.lacks["forced ids"]


def test_what_is_under_way_is_broken_off_between_passes(failing: tuple[ServedMock, clients.Client]) -> None:
    mock, engine = failing
    mock.itl_s = 0.2
    engine.submit(request(0, 50))
    time.sleep(0.3)
    engine.reset()
    assert engine.poll(0.0).events == () and engine.drain()[0].events == ()
    mock.itl_s = 0.001
    assert sum(one.num_tokens for one in answers(engine, [request(1)])[1]) == 6


def test_connections_are_there_before_the_first_request(failing: tuple[ServedMock, clients.Client]) -> None:
    mock, engine = failing
    before = len(mock.headers)
    assert engine.prepare(8, 100) == 0
    assert len(mock.headers) == before + 8


def test_the_key_goes_into_the_header_alone(model: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(ServedMock(key=KEY, itl_s=0.0)) as mock:
        with pytest.raises(InputError, match=r"wants a key \(401\); name its variable in engine.api_key_env"):
            opened(mock, model)
        monkeypatch.setenv("MOEPROF_TEST_KEY", "sk-anotherOne")
        with pytest.raises(InputError, match=r"refused the key that MOEPROF_TEST_KEY holds \(401\)") as error:
            opened(mock, model, api_key_env="MOEPROF_TEST_KEY")
        assert "sk-another" not in str(error.value) and KEY not in str(error.value)
        monkeypatch.setenv("MOEPROF_TEST_KEY", KEY)
        deployment = opened(mock, model, api_key_env="MOEPROF_TEST_KEY")
        assert KEY not in json.dumps(deployment.launch)
        assert all(KEY not in json.dumps(body) for body in mock.bodies)


# -- counters ----------------------------------------------------------------------------------------------------------


def test_counters_are_differences_summed_over_engines() -> None:
    first = samples(b'vllm:generation_tokens_total{engine="0"} 10\nvllm:generation_tokens_total{engine="1"} 5\n', VLLM)
    text = b"""# HELP vllm:request_queue_time_seconds x
vllm:generation_tokens_total{engine="0"} 30
vllm:generation_tokens_total{engine="1"} 9.0
vllm:request_queue_time_seconds_sum 4.5
vllm:request_queue_time_seconds_count 9
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.1
vllm:num_requests_running{engine="0"} 2
vllm:num_requests_running{engine="1"} 1
"""
    last = samples(text, VLLM)
    assert last == {"output_tokens": 39.0, "queue_s": 4.5, "queue_requests": 9.0, "kv_use_ratio": 0.3, "running": 3.0}
    found = differences([[(1.0, first), (3.5, last)]])
    assert (found["output_tokens"], found["window_s"], found["queue_s"], found["reason"]) == (24.0, 2.5, None, None)
    two = differences([[(1.0, first), (3.5, last)], [(1.0, last), (3.5, last)]])
    assert two["output_tokens"] == 24.0
    with pytest.raises(ValueError, match=WENT_BACK):
        differences([[(0.0, last), (1.0, first)]])
