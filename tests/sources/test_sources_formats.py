"""Formats of logs, APIs and benchmark tools, each against a reading worked out by hand; and none taken for another."""

from __future__ import annotations

import base64
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.sources.formats import READERS, read_trace, sniff, write_trace
from moeprof.sources.formats.file import Reading, open_source
from tests.helpers.shared_data import shared

Row = dict[str, Any]
USER = {"role": "user", "content": "Hi"}


def lines(*rows: Row) -> str:
    return "\n".join(map(json.dumps, rows))


def read(folder: Path, text: str, name: str = "trace.jsonl", **how: Any) -> Trace:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    format = how.pop("format", None)
    return read_trace(path, format, Reading(**how))


def codes(trace: Trace) -> dict[str, int]:
    return {note.code: note.count for note in trace.notes}


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(TraceError) as caught:
        read(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# OpenAI


def test_batch_requests_ask_for_their_limit_and_other_endpoints_are_counted(tmp_path: Path) -> None:
    chat = {"model": "m", "messages": [{"role": "developer", "content": "Be brief."}, USER], "max_completion_tokens": 9}
    trace = read(
        tmp_path,
        lines(
            {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat},
            {"custom_id": "2", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}},
        ),
    )
    assert trace.source == "openai"
    assert trace.messages == ((("system", "Be brief."), ("user", "Hi")),)
    assert trace.output_tokens.tolist() == [9]
    assert codes(trace) == {"limit_as_length": 1, "dropped_other_calls": 1, "no_times": 1}


def test_batch_results_have_only_lengths_and_failures_are_not_replayed(tmp_path: Path) -> None:
    good = {"status_code": 200, "body": {"usage": {"prompt_tokens": 22, "completion_tokens": 2}}}
    trace = read(
        tmp_path,
        lines(
            {"id": "a", "custom_id": "1", "response": good, "error": None},
            {"id": "b", "custom_id": "2", "response": {"status_code": 429, "body": {}}, "error": None},
        ),
    )
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([22], [2])
    assert codes(trace)["dropped_failed"] == 1


def test_a_chat_that_ends_with_the_assistant_gives_its_last_answer(tmp_path: Path) -> None:
    said = [USER, {"role": "assistant", "content": "Hello"}, USER, {"role": "assistant", "content": "Bye"}]
    trace = read(tmp_path, lines({"messages": said}))
    assert trace.messages == ((("user", "Hi"), ("assistant", "Hello"), ("user", "Hi")),)
    assert trace.output_text == ("Bye",)
    assert codes(trace) == {"no_times": 1}


def test_tools_become_text_and_images_are_counted(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    said = [
        {"role": "user", "content": [*parts, {"type": "input_audio", "input_audio": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "18 C"},
    ]
    trace = read(tmp_path, lines({"messages": said, "tools": [{"name": "f"}], "max_tokens": 4}))
    assert trace.messages == (
        (("system", '[{"name": "f"}]'), ("user", "Look"), ("assistant", json.dumps([call])), ("tool", "18 C")),
    )
    assert codes(trace) == {"limit_as_length": 1, "media_left_out": 1, "tools_as_text": 1, "no_times": 1}
    assert "1 audio, 1 image items" in next(note.text for note in trace.notes if note.code == "media_left_out")


def test_completion_prompts_and_token_ids_are_told_apart(tmp_path: Path) -> None:
    url, ids = "/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 2}
    text = read(tmp_path, lines({"custom_id": "1", "url": url, "body": {"prompt": "Once", "max_tokens": 3}}))
    assert (text.prompt_text, text.output_tokens.tolist()) == (("Once",), [3])
    counted = read(tmp_path, lines({"custom_id": "1", "url": url, "body": ids}))
    assert (counted.input_tokens.tolist(), codes(counted)["token_ids"]) == ([3], 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, ":1: messages is []"),
        ({"messages": [{"role": "user"}]}, ":1: messages.content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, ":1: messages.content is 3"),
        ({"messages": [{"content": "x"}]}, ":1: messages.role is missing"),
        ({"messages": [USER], "max_tokens": -1}, ":1: max_tokens is -1"),
        ({"custom_id": "1", "body": 3}, ":1: body is 3"),
        ({"custom_id": "1", "body": {}}, ":1: messages or prompt is missing"),
    ],
)
def test_a_bad_request_is_refused_with_its_row(tmp_path: Path, row: Row, said: str) -> None:
    assert said in refusal(tmp_path, lines(row))


# Gateway logs

LITELLM = {
    "id": "x",
    "call_type": "acompletion",
    "startTime": "2025-01-24 09:20:46.500000",
    "prompt_tokens": 10,
    "completion_tokens": 20,
}


def test_litellm_payloads_keep_text_and_counts_and_sort_by_start(tmp_path: Path) -> None:
    response = {"choices": [{"message": {"role": "assistant", "content": "hi"}}]}
    trace = read(
        tmp_path,
        lines(
            LITELLM | {"messages": [USER], "response": response, "session_id": "s"},
            LITELLM | {"startTime": 1737710445.25, "messages": [USER], "response": "yo", "trace_id": "t"},
            LITELLM | {"status": "failure"},
            LITELLM | {"cache_hit": True},
            LITELLM | {"call_type": "aembedding"},
        ),
    )
    assert trace.source == "litellm"
    assert trace.arrival_s.tolist() == [0.0, 1.25]  # 1737710445.25 is 2025-01-24 09:20:45.25 UTC
    assert trace.session == ("t", "s")
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([10, 10], [20, 20])
    assert trace.output_text == ("yo", "hi")
    assert codes(trace) == {"dropped_other_calls": 1, "dropped_cached": 1, "dropped_failed": 1}


def test_litellm_spend_logs_are_lengths_even_where_cells_hold_json(tmp_path: Path) -> None:
    text = (
        "request_id,call_type,startTime,prompt_tokens,completion_tokens,messages,status\n"
        'a,acompletion,2025-01-24 09:20:46,7,8,"{""a"": [1,\nMORE",success\n'
        "b,acompletion,2025-01-24 09:20:48.5,9,1,{},success\n"
    )
    trace = read(tmp_path, text.replace("MORE", "9" * 200_000), "spend.csv")
    assert trace.source == "litellm"
    assert (trace.arrival_s.tolist(), trace.input_tokens.tolist()) == ([0.0, 2.5], [7, 9])


def test_langfuse_updates_complete_their_generation(tmp_path: Path) -> None:
    start = {"id": "g", "traceId": "t", "startTime": "2025-01-16T11:28:54.5-08:00", "input": [USER]}
    late = {"id": "h", "traceId": "t", "startTime": "2025-01-16T19:28:56Z", "input": "Go", "level": "DEFAULT"}
    usage = {"input": 4, "input_cached": 6, "output": 2}
    batch = [
        {"type": "trace-create", "body": {"id": "t", "sessionId": "s"}},
        {"type": "generation-create", "body": start},
        {"type": "span-create", "body": {"id": "p"}},
        {
            "type": "generation-update",
            "body": {
                "id": "g",
                "output": {"content": "Yes"},
                "usageDetails": usage,
            },
        },
        {"type": "generation-create", "body": late | {"usage": {"promptTokens": 3, "completionTokens": 1}}},
        {"type": "generation-create", "body": start | {"id": "i", "level": "ERROR"}},
    ]
    trace = read(tmp_path, json.dumps({"batch": batch}))
    assert trace.source == "langfuse"
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.session == ("s", "s")
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([10, 3], [2, 1])
    assert trace.messages == ((("user", "Hi"),), (("user", "Go"),))
    assert codes(trace) == {"other_events": 1, "dropped_failed": 1, "prompt_as_chat": 1}


def test_langfuse_exported_observations_are_read_by_row(tmp_path: Path) -> None:
    row = {"id": "a", "traceId": "t", "type": "GENERATION", "startTime": "2025-01-16T19:28:56Z"}
    trace = read(tmp_path, lines(row | {"usage": {"input": 5, "output": 6}}, row | {"type": "SPAN"}))
    assert (trace.source, trace.input_tokens.tolist(), trace.session) == ("langfuse", [5], ("t",))


def _captured(seconds: int, body: Any, answer: Any, encoding: str = "JSON") -> Row:
    def side(data: Any) -> Row:
        text = data if isinstance(data, str) else json.dumps(data)
        return {
            "data": base64.b64encode(text.encode()).decode() if encoding == "BASE64" else text,
            "encoding": encoding,
        }

    return {
        "captureData": {"endpointInput": side(body), "endpointOutput": side(answer)},
        "eventMetadata": {"eventId": "e", "inferenceTime": f"2026-03-05T10:00:{seconds:02d}Z"},
    }


def test_sagemaker_bodies_are_text_base64_or_streamed(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 14, "completion_tokens": 3}
    events = [{"choices": [{"delta": {"content": word}}]} for word in ("Pa", "ris.")]
    trace = read(
        tmp_path,
        lines(
            _captured(0, {"messages": [USER]}, {"choices": [{"message": {"content": "Paris."}}], "usage": usage}),
            _captured(2, {"messages": [USER]}, "\n\n".join(f"data: {json.dumps(event)}" for event in events), "BASE64"),
            _captured(5, {"inputs": "Hey", "parameters": {"max_new_tokens": 7}}, [{"generated_text": "Oh"}]),
        ),
    )
    assert trace.source == "sagemaker"
    assert trace.arrival_s.tolist() == [0.0, 2.0, 5.0]
    assert trace.output_text == ("Paris.", "Paris.", "Oh")
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([14, -1, -1], [3, -1, -1])


def _otlp(name: str, start_ns: int, attributes: Row, code: int = 0) -> Row:
    pairs = [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
        for key, value in attributes.items()
    ]
    return {"name": name, "startTimeUnixNano": str(start_ns), "attributes": pairs, "status": {"code": code}}


def test_spans_in_otlp_count_only_calls_of_models(tmp_path: Path) -> None:
    chat = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 4}
    start = 1_700_000_000_000_000_000
    spans = [
        _otlp("invoke_agent", start, chat | {"gen_ai.operation.name": "invoke_agent"}),
        _otlp("chat", start + 250_000_000, chat | {"gen_ai.conversation.id": "c"}),
        _otlp("chat", start + 750_000_000, chat, code=2),
        _otlp("chat", start + 1_250_000_000, chat),
    ]
    trace = read(tmp_path, lines({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}))
    assert trace.source == "otel"
    assert trace.arrival_s.tolist() == [0.0, 1.0]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([30, 30], [4, 4])
    assert trace.session == ("c", "")
    assert codes(trace) == {"other_spans": 1, "dropped_failed": 1}


def test_spans_with_messages_in_parts_are_text(tmp_path: Path) -> None:
    said = [{"role": "user", "parts": [{"type": "text", "content": "Hi"}, {"type": "blob", "modality": "image"}]}]
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": "Yes"}], "finish_reason": "stop"}]
    attributes = {"gen_ai.input.messages": json.dumps(said), "gen_ai.output.messages": answer}
    row = {"name": "chat", "start_time": "2026-02-25T10:00:00.5", "attributes": attributes, "trace_id": "t"}
    older = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "Ho", "gen_ai.completion.0.content": "No"}
    trace = read(tmp_path, lines(row, row | {"start_time": "2026-02-25T10:00:02Z", "attributes": older}))
    assert trace.messages == ((("user", "Hi"),), (("user", "Ho"),))
    assert trace.output_text == ("Yes", "No")
    assert (trace.arrival_s.tolist(), trace.session) == ([0.0, 1.5], ("t", "t"))
    assert codes(trace)["media_left_out"] == 1


def test_evalscope_traces_replay_the_answers_length_not_the_limit(tmp_path: Path) -> None:
    body = {"messages": [USER], "max_tokens": 500}
    trace = read(
        tmp_path,
        lines(
            {"body": body, "timestamp": 100.5, "completion_tokens": 12},
            {"body": json.dumps(body), "timestamp": "1970-01-01T00:01:42Z"},
        ),
    )
    assert trace.source == "evalscope"
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.output_tokens.tolist() == [12, 500]
    assert codes(trace) == {"limit_as_length": 1}


# Benchmark tools


def test_aiperf_lengths_of_later_turns_are_additions_and_delays_are_kept(tmp_path: Path) -> None:
    rows = [
        {"session_id": "a", "timestamp": 1000, "input_length": 1100, "output_length": 20, "hash_ids": [1, 2, 3]},
        {"session_id": "a", "delay": 500, "input_length": 30, "output_length": 7, "hash_ids": [9]},
        {"session_id": "a", "delay": 250, "input_length": 10, "output_length": 5, "hash_ids": [10]},
    ]
    trace = read(tmp_path, lines(*rows))
    assert trace.source == "aiperf"
    assert trace.arrival_s.tolist() == [0.0, 0.5, 0.75]
    assert trace.input_tokens.tolist() == [1100, 1100 + 20 + 30, 1150 + 7 + 10]
    assert trace.prefix_block_tokens == 512
    # 1100 tokens fill two blocks of 512; the third id stood for a part of one, which the answer now fills up.
    assert trace.prefix_blocks is not None
    assert trace.prefix_blocks[0] == (1, 2, 3)
    assert trace.prefix_blocks[1][:2] == (1, 2)
    assert trace.prefix_blocks[2][:2] == (1, 2)
    assert len(trace.prefix_blocks[2]) == 3
    assert trace.delay_s is not None
    assert math.isnan(trace.delay_s[0])
    assert trace.delay_s[1:].tolist() == [0.5, 0.25]
    assert codes(trace) == {"turns_add_up": 2}


def test_aiperf_turns_that_begin_alike_state_whole_prompts(tmp_path: Path) -> None:
    row = {"session_id": "a", "output_length": 20}
    trace = read(
        tmp_path,
        lines(
            row | {"timestamp": 0, "input_length": 1024, "hash_ids": [1, 2]},
            row | {"delay": 100, "input_length": 1500, "hash_ids": [1, 2, 3]},
        ),
    )
    assert trace.input_tokens.tolist() == [1024, 1500]
    assert trace.prefix_blocks == ((1, 2), (1, 2, 3))


def test_aiperf_turns_add_to_what_was_said_before(tmp_path: Path) -> None:
    turns = [{"text": "One"}, {"texts": ["Two", "Three"], "image": "x.png", "delay": 1000}]
    trace = read(tmp_path, lines({"session_id": "c", "turns": turns}, {"turns": [{"text": "Alone"}]}))
    assert trace.source == "aiperf"
    assert (trace.stated, trace.prompt_text) == ("added", ("One", "Alone", "\n\nTwo\nThree"))
    assert trace.waits.tolist() == [-1, -1, 0]
    assert trace.session == ("c", "2", "c")
    assert trace.arrival_s.tolist() == [0.0, 0.0, 1.0]
    assert codes(trace) == {"sorted": 1, "turns_add_up": 1, "media_left_out": 1}


def test_aiperf_messages_are_whole_prompts(tmp_path: Path) -> None:
    row = {"session_id": "s", "messages": [{"role": "user", "content": "Hi", "name": "n"}], "output_length": 3}
    trace = read(tmp_path, lines(row, row | {"delay": 2000}))
    assert (trace.source, trace.messages) == ("aiperf", ((("user", "Hi"),), (("user", "Hi"),)))
    assert (trace.output_tokens.tolist(), trace.arrival_s.tolist()) == ([3, 3], [0.0, 2.0])


def test_an_aiperf_export_leaves_out_failures_and_warm_up(tmp_path: Path) -> None:
    def row(start_ns: int, **metadata: Any) -> Row:
        metrics = {"input_sequence_length": {"value": 550}, "output_sequence_length": {"value": 193}}
        return {
            "metadata": {"conversation_id": "c", "request_start_ns": start_ns, **metadata},
            "metrics": metrics,
            "error": None,
        }

    start = 1_759_522_419_159_192_408
    trace = read(
        tmp_path,
        lines(
            row(start + 500_000_000),
            row(start),
            row(start, credit_phase="warmup"),
            row(start, was_cancelled=True),
            row(start) | {"metrics": {}, "error": {"code": 500}},
        ),
    )
    assert trace.arrival_s.tolist() == [0.0, 0.5]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([550, 550], [193, 193])
    assert codes(trace) == {"dropped_warmup": 1, "dropped_failed": 2}


def test_guidellm_prompts_ask_for_their_count(tmp_path: Path) -> None:
    trace = read(tmp_path, 'prompt,output_tokens_count,other\n"Hello, you",5,x\nName?,3,y\n', "d.csv")
    assert trace.source == "guidellm"
    assert trace.prompt_text == ("Hello, you", "Name?")
    assert trace.output_tokens.tolist() == [5, 3]


def test_guidellm_turns_add_up(tmp_path: Path) -> None:
    row = {"prefix": "P", "prompt_0": "A", "output_tokens_count_0": 50, "prompt_1": "B", "output_tokens_count_1": 40}
    text = read(tmp_path, lines(row))
    assert (text.stated, text.prompt_text) == ("added", ("P\n\nA", "\n\nB"))
    assert text.output_tokens.tolist() == [50, 40]
    counts = {"prompt_tokens_count_0": 100, "output_tokens_count_0": 50, "prompt_tokens_count_1": 10}
    lengths = read(tmp_path, lines(counts | {"output_tokens_count_1": 5}))
    assert lengths.input_tokens.tolist() == [100, 160]
    assert lengths.session == ("1", "1")


def test_weka_conversations_keep_their_ids_to_themselves_and_agents_are_sessions(tmp_path: Path) -> None:
    request = {"type": "s", "in": 130, "out": 5, "hash_ids": [1, 2]}
    agent = {"type": "subagent", "t": 3.0, "agent_id": "x", "requests": [request | {"t": 0.5}]}
    rows = [
        {"id": "a", "block_size": 64, "requests": [request | {"t": 0.0}, agent, request | {"t": 9, "think_time": 2.5}]},
        {"id": "b", "block_size": 64, "requests": [request | {"t": 1.0}]},
    ]
    trace = read(tmp_path, lines(*rows))
    assert trace.source == "weka"
    assert trace.arrival_s.tolist() == [0.0, 1.0, 3.5, 9.0]
    assert trace.session == ("a", "b", "a/x", "a")
    assert trace.prefix_block_tokens == 64
    blocks = trace.prefix_blocks
    assert blocks is not None
    assert blocks[0] == blocks[2] == blocks[3]
    assert not set(blocks[0]) & set(blocks[1])
    assert trace.delay_s is not None
    assert trace.delay_s[3] == 2.5
    assert codes(trace) == {"conversation_starts": 2, "agents": 1, "sorted": 1}
    assert read(tmp_path, lines(*rows), timestamp_unit="ms").arrival_s.tolist() == [0.0, 0.001, 0.0035, 0.009]
    shared_ids = read(tmp_path, lines(*(row | {"hash_id_scope": "global"} for row in rows)))
    assert shared_ids.prefix_blocks is not None
    assert shared_ids.prefix_blocks[0] == shared_ids.prefix_blocks[1]


def test_sglang_custom_conversations_are_one_prompt_and_its_answer(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, USER]
    trace = read(tmp_path, lines({"conversations": said}, {"conversations": said[:1]}, {"conversations": said[:2]}))
    assert trace.source == "sglang"
    assert (trace.prompt_text, trace.output_text) == (("Q", "Q"), ("A", "A"))
    assert codes(trace) == {"dropped_conversations": 1, "first_turn_only": 1, "no_times": 2}


def test_sglang_agentic_turns_add_messages(tmp_path: Path) -> None:
    turns = [{"messages": [USER], "prompt_tokens": 30}, {"messages": [{"role": "user", "content": "More"}]}]
    trace = read(tmp_path, json.dumps({"metadata": {}, "conversations": [turns]}, indent=1), "agentic.json")
    assert (trace.stated, trace.messages) == ("added", ((("user", "Hi"),), (("user", "More"),)))
    assert trace.input_tokens.tolist() == [30, -1]
    assert codes(trace) == {"turns_add_up": 1, "no_times": 2}


def test_sglang_token_traces_keep_lengths_and_shared_beginnings(tmp_path: Path) -> None:
    start = list(range(20))
    trace = read(
        tmp_path,
        lines(
            {"input_tokens": start + [7] * 20, "output_tokens": [1, 2], "ts": 10.0},
            {"input_tokens": start + [8] * 20, "num_output_tokens": 9, "ts": 10.5},
        ),
    )
    assert trace.arrival_s.tolist() == [0.0, 0.5]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([40, 40], [2, 9])
    assert trace.prefix_blocks == ((0, 1), (0, 2))  # the first 16 ids are the same, the next 16 are not
    assert trace.prefix_block_tokens == 16


def test_vllm_timed_traces_are_seconds_and_sixteen_tokens_unless_said(tmp_path: Path) -> None:
    row = {"input_length": 32, "output_length": 5, "hash_ids": [1, 2]}
    text = lines(row | {"timestamp": 0}, row | {"timestamp": 30})
    trace = read(tmp_path, text, format="vllm")
    assert (trace.arrival_s.tolist(), trace.prefix_block_tokens) == ([0.0, 30.0], 16)
    said = read(tmp_path, text, format="vllm", timestamp_unit="ms", block_tokens=24)
    assert (said.arrival_s.tolist(), said.prefix_block_tokens) == ([0.0, 0.03], 24)


def test_vllm_prompts_with_images_keep_their_text(tmp_path: Path) -> None:
    trace = read(tmp_path, lines({"prompt": "How many?", "image_files": ["a.jpg", "b.jpg"], "output_tokens": 8}))
    assert (trace.source, trace.prompt_text, trace.output_tokens.tolist()) == ("vllm", ("How many?",), [8])
    assert "2 image items" in next(note.text for note in trace.notes if note.code == "media_left_out")


def test_splitwise_batches_are_as_many_requests(tmp_path: Path) -> None:
    header = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    trace = read(tmp_path, header + "0,2,0,1,1,4096,32\n1,2,0,3,2,2048,8\n", "t.csv")
    assert trace.source == "splitwise"
    assert trace.arrival_s.tolist() == [0.0, 2.0, 2.0]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([4096, 2048, 2048], [32, 8, 8])
    assert codes(trace)["batches"] == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (LITELLM | {"startTime": "yesterday"}, ":1: startTime is 'yesterday'"),
        (LITELLM | {"startTime": None}, ":1: startTime is missing"),
        (LITELLM | {"prompt_tokens": 1.5}, ":1: prompt_tokens is 1.5"),
        (LITELLM | {"status": "failure"}, ": none of its 1 calls"),
        ({"batch": 3}, ":1: batch is 3"),
        ({"captureData": {}, "eventMetadata": {"inferenceTime": 1}}, ":1: endpointInput.data is null"),
        ({"resourceSpans": [3]}, ":1: resourceSpans is [3]"),
        ({"body": "no", "timestamp": 1}, ":1: body is"),
        ({"id": "a", "requests": [3]}, ":1: requests is [3]"),
        ({"id": "a", "requests": []}, ": none of its conversations"),
        ({"turns": 3}, ":1: turns is 3"),
        ({"text_input": "a", "delay": -1}, ":1: delay is -1"),
        ({"output_tokens_count": 3}, ":1: neither prompt nor prompt_tokens_count"),
        ({"input_tokens": ["a"], "output_tokens": []}, ":1: input_tokens is"),
    ],
)
def test_a_bad_row_is_refused_in_one_line(tmp_path: Path, row: Row, said: str) -> None:
    assert said in refusal(tmp_path, lines(row))


# Detection

LENGTHS = {"input_length": 32, "output_length": 5}
SAMPLES: dict[str, tuple[str, ...]] = {
    "recording": (
        '{"moeprof_recording": 1, "recording": "r", "prefix_block_characters": 512, "prefix_block_ids": 128}\n'
        '{"arrival_s": 0.0, "input_tokens": 4, "output_tokens": 2, "status": "ok"}',
    ),
    "azure": ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"),
    "burstgpt": ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n",),
    "vidur": ("arrived_at,num_prefill_tokens,num_decode_tokens\n",),
    "splitwise": ("request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n",),
    "litellm": (
        "request_id,call_type,startTime,prompt_tokens,completion_tokens,messages,response,status\n",
        lines(LITELLM | {"messages": [USER], "response": {}}),
    ),
    "langfuse": (
        lines({"batch": []}),
        lines({"id": "a", "traceId": "t", "type": "GENERATION", "startTime": "x", "input": "y", "output": "z"}),
    ),
    "sagemaker": (lines(_captured(0, {}, {})),),
    "otel": (
        lines({"resourceSpans": []}),
        lines({"trace_id": "t", "span_count": 0, "spans": []}),
        lines(_otlp("chat", 0, {})),
        lines({"name": "chat", "start_time": "x", "attributes": {}, "trace_id": "t"}),
    ),
    "evalscope": (lines({"body": {"messages": [USER]}, "timestamp": 1, "completion_tokens": 3}),),
    "weka": (lines({"id": "a", "requests": []}), lines({"id": "a", "t": 0, "in": 1, "out": 1, "hash_ids": []})),
    "bailian": (lines(LENGTHS | {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0, "type": "text", "turn": 1}),),
    "guidellm": ("prompt,output_tokens_count\n", lines({"prompt": "a", "output_tokens_count": 3})),
    "sglang": (
        lines({"conversations": [USER, USER]}),
        lines({"metadata": {}, "conversations": [[{"messages": [USER]}]]}),
        lines({"input_tokens": [1], "output_tokens": [2]}),
    ),
    "vllm": (lines({"prompt": "a", "image_files": ["x"]}),),
    "aiperf": (
        lines({"text": "a", "timestamp": 1}),
        lines({"text": "a", "session_id": "s", "output_length": 3}),
        lines({"session_id": "s", "turns": []}),
        lines({"text_input": "a"}),
        lines({"input_length": 10, "hash_ids": [1]}),
        lines(LENGTHS | {"timestamp": 0, "session_id": "s", "hash_ids": [1]}),
        lines({"messages": [USER], "session_id": "s", "output_length": 3}),
        lines({"metadata": {}, "metrics": {}, "error": None}),
    ),
    "mooncake": (lines(LENGTHS | {"timestamp": 0, "hash_ids": [1]}), lines(LENGTHS | {"hash_ids": [1]})),
    "sharegpt": (lines({"id": "a", "conversations": [{"from": "human", "value": "x"}]}),),
    "openai": (
        lines({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}),
        lines({"id": "b", "custom_id": "1", "response": {}, "error": None}),
        lines({"messages": [USER], "max_tokens": 3, "tools": []}),
    ),
    "jsonl": (
        lines({"arrival_s": 0, "input_tokens": 1, "output_tokens": 1}),
        lines({"prompt": "a", "output_tokens": 1}),
        lines({"messages": [USER], "output": "x", "session": "s"}),
    ),
}


@pytest.mark.parametrize(("format", "text"), [(format, text) for format, texts in SAMPLES.items() for text in texts])
def test_no_format_is_taken_for_another(tmp_path: Path, format: str, text: str) -> None:
    path = tmp_path / "sample"
    path.write_text(text, encoding="utf-8")
    assert sniff(open_source(path)) == format


def _spoilt(rng: random.Random, value: Any) -> Any:
    """A sample with values left out, doubled, or changed for odd ones."""
    if rng.random() < 0.12:
        return rng.choice(ODD)
    if isinstance(value, dict):
        return {key: _spoilt(rng, inside) for key, inside in value.items() if rng.random() > 0.04}
    if isinstance(value, list):
        return [_spoilt(rng, inside) for inside in value] * rng.choice([1, 1, 1, 2])
    return value


ODD = [None, True, -1, 0, 2.5, 1e400, 10**30, "", "x", "9" * 50, "0001-01-01T00:00:00+23:59", "\ud800", "[", "{}"]
ODD += [[], [[]], {}, [{}], [None], [1, 2], ["a"], USER, [USER], {"content": [{}]}, [{"role": "user", "content": None}]]
WHOLE = [
    _captured(0, {"messages": [USER]}, {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 1}}),
    {"resourceSpans": [{"scopeSpans": [{"spans": [_otlp("chat", 5, {"gen_ai.usage.output_tokens": 3})]}]}]},
    {"batch": [{"type": "generation-create", "body": {"startTime": "2025-01-01", "input": [USER], "output": "x"}}]},
    {"id": "a", "requests": [{"t": 0, "in": 3, "out": 2, "hash_ids": [1]}, {"t": 1, "requests": []}]},
    {"session_id": "a", "turns": [{"text": "x"}, {"texts": ["y"], "image": "z", "delay": 3}]},
    {"metadata": {"request_start_ns": 5}, "metrics": {"input_sequence_length": {"value": 3}}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], "tools": [{}]},
    {"prompt_0": "a", "output_tokens_count_0": 3, "prompt_1": "b", "prefix": "q"},
]


@pytest.mark.parametrize("seed", range(10))
def test_spoilt_samples_are_a_trace_or_an_error_in_one_line(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole = [
        json.loads(text) for texts in SAMPLES.values() for text in texts if text.startswith("{") and "\n" not in text
    ]
    path = tmp_path / "trace"
    for sample in [*whole, *WHOLE]:
        rows = [_spoilt(rng, sample) for _ in range(rng.randint(1, 3))]
        path.write_text(lines(*(row if isinstance(row, dict) else sample for row in rows)))
        for format in (None, rng.choice(list(READERS))):
            try:
                trace = read_trace(path, format)
            except TraceError as error:
                assert "\n" not in str(error)
            else:
                assert len(trace) > 0
                assert trace.arrival_s[0] == 0


def test_delays_are_written_and_read_back(tmp_path: Path) -> None:
    turns = [{"text": "One"}, {"text": "Two", "delay": 1500}]
    trace = read(tmp_path, lines({"session_id": "c", "turns": turns}))
    write_trace(trace, tmp_path / "own.jsonl")
    again = read_trace(tmp_path / "own.jsonl")
    assert again.delay_s is not None
    assert math.isnan(again.delay_s[0])
    assert (again.delay_s[1], again.session, again.arrival_s.tolist()) == (1.5, ("c", "c"), [0.0, 1.5])


def test_every_format_has_a_sample() -> None:
    assert set(SAMPLES) == set(READERS)


def test_images_of_sharegpt_conversations_go_with_their_marks(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    trace = read(tmp_path, json.dumps([{"id": "a", "image": "x.jpg", "conversations": said}]), "s.json")
    assert trace.messages == ((("user", "What is it?"),),)
    assert codes(trace) == {"media_left_out": 1, "no_times": 1}


# The cases beside the repository


@pytest.mark.parametrize(
    ("case", "source", "arrival_s", "input_tokens", "output_tokens"),
    [
        ("openai-shapes/openai_batch_vllm.jsonl", "openai", [0, 0], [-1, -1], [1000, 1000]),
        ("openai-shapes/openai_chat_maxtokens.jsonl", "openai", [0], [-1], [16]),
        ("openai-shapes/openai_chat_parts.jsonl", "openai", [0], [-1], [64]),
        ("openai-shapes/openai_chat_tools.jsonl", "openai", [0], [-1], [64]),
        ("openai-shapes/openai_finetune.jsonl", "openai", [0, 0], [-1, -1], [-1, -1]),
        ("gateway-logs/aiperf_profile_export.jsonl", "aiperf", [0], [550], [193]),
        ("gateway-logs/langfuse_ingest.json", "langfuse", [0], [10], [20]),
        ("gateway-logs/litellm_spend_logs.csv", "litellm", [0, 2], [10, 10], [20, 20]),
        ("gateway-logs/litellm_spend_logs.jsonl", "litellm", [0], [10], [20]),
        ("gateway-logs/litellm_standard_logging.jsonl", "litellm", [0], [10], [20]),
        ("gateway-logs/sagemaker.jsonl", "sagemaker", [0], [14], [3]),
        ("json-object-called-broken/otel_simple_chain.json", "otel", [0, 3, 6], [-1] * 3, [-1] * 3),
        ("guidellm-seconds/guidellm_docs.jsonl", "mooncake", [0, 0.5], [256, 512], [128, 64]),
        ("guidellm-weka/guidellm_weka.jsonl", "weka", [0], [10], [5]),
        ("session-dropped/all_stamps.jsonl", "aiperf", [0, 0.2, 0.5], [100, 80, 160], [10, 20, 10]),
        ("session-dropped/with_delay.jsonl", "aiperf", [0, 0.2, 0.5], [100, 80, 160], [10, 20, 10]),
        ("aiperf-text/aiperf_text_input.jsonl", "aiperf", [0, 1], [-1, -1], [-1, -1]),
        ("aiperf-text/aiperf_mixed.jsonl", "aiperf", [0, 1, 2], [100, -1, -1], [-1, -1, -1]),
        ("aiperf-text/aiperf_multi_turn.jsonl", "aiperf", [0, 1], [-1, -1], [-1, -1]),
    ],
)
def test_the_cases_give_their_values(
    case: str, source: str, arrival_s: list[float], input_tokens: list[int], output_tokens: list[int]
) -> None:
    trace = read_trace(shared(f"cases/{case}"))
    assert trace.source == source
    assert trace.arrival_s.tolist() == pytest.approx(arrival_s)
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == (input_tokens, output_tokens)


def test_the_inference_day_counts_delays_from_the_previous_turn() -> None:
    trace = read_trace(shared("cases/aiperf-multiturn-delay/inference_day_head.jsonl"))
    first = [i for i, session in enumerate(trace.session or ()) if session == "sess-ff14c6c4aab3"]
    assert trace.arrival_s[first].tolist() == pytest.approx([0, 0.614, 7.1876, 36.0657, 42.8419])
    # 44083 + 987 + 578, and so on: each prompt is the one before it, its answer, and the addition.
    assert trace.input_tokens[first].tolist() == [44083, 45648, 47857, 49593, 58709]
    assert trace.prefix_block_tokens == 512
