"""Servers of known behaviour on 127.0.0.1, each on a thread of its own, so that workers in other processes reach them.

The first token comes ``ttft_s`` after the request, each next one ``itl_s`` later, at fixed times. ``flavour`` says whom
it is like; ``faults`` what it does wrong with the n-th request that is no trial (trials ask for 3 tokens).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Flavour = Literal["vllm", "transformers", "hosted", "silent"]
TRIAL = 3
SNOWMAN = "☃".encode()


@dataclass
class ServedMock:
    """What it is, and what it got."""

    flavour: Flavour = "vllm"
    ttft_s: float = 0.02
    itl_s: float = 0.005
    models: tuple[str, ...] = ("served",)
    key: str | None = None
    version: str = "0.32.0"
    faults: dict[int, str] = field(default_factory=dict)
    at_end_after: int | None = None  # the model ends there unless it is told to ignore that
    reasoning: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    measured: int = 0
    made_tokens: int = 0
    read_tokens: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": f"wrong {self.key}", "code": "invalid_api_key"}}, status=401)
        if request.method == "GET":
            return self.look(request.path)
        asked = json.loads(await request.read())
        self.bodies.append(asked)
        if request.path == "/v1/completions" and self.flavour == "hosted":
            return web.json_response({"error": {"message": "no", "type": "invalid_request_error"}}, status=404)
        refused = self.refusal(asked)
        if refused is not None:
            return refused
        num = asked.get("max_tokens") or asked["max_completion_tokens"]
        fault = None
        if num != TRIAL:
            fault = self.faults.get(self.measured)
            self.measured += 1
        return await self.answer(request, asked, num, fault)

    def look(self, path: str) -> web.Response:
        rows = [{"id": name, "owned_by": self.flavour, "max_model_len": 4096} for name in self.models]
        if path == "/v1/models":
            return web.json_response({"data": [] if self.flavour == "transformers" else rows})
        if path == "/health" and self.flavour == "transformers":
            return web.json_response({"status": "ok"})
        if path == "/version" and self.flavour == "vllm":
            return web.json_response({"version": self.version})
        if path == "/metrics" and self.flavour == "vllm":
            return web.Response(text=self.counters())
        return web.json_response({"detail": "Not Found"}, status=404)

    def counters(self) -> str:
        """Two engines, whose sums are what counts."""
        lines = ["# TYPE vllm:generation_tokens counter"]
        for engine, tokens in enumerate((self.made_tokens // 2, self.made_tokens - self.made_tokens // 2)):
            lines.append(f'vllm:generation_tokens_total{{engine="{engine}",model_name="served"}} {tokens}.0')
        lines += [
            f'vllm:prompt_tokens_total{{engine="0",model_name="served"}} {self.read_tokens}.0',
            f'vllm:request_queue_time_seconds_sum{{engine="0"}} {0.25 * self.measured}',
            f'vllm:request_queue_time_seconds_count{{engine="0"}} {self.measured}.0',
            f'vllm:iteration_tokens_total_sum{{engine="0"}} {self.made_tokens}.0',
            f'vllm:iteration_tokens_total_count{{engine="0"}} {self.made_tokens / 2}',
            f'vllm:prefix_cache_queries_total{{engine="0"}} {self.read_tokens}.0',
            f'vllm:prefix_cache_hits_total{{engine="0"}} {self.read_tokens / 4}',
            'vllm:num_preemptions_total{engine="0"} 0.0',
            'vllm:num_requests_running{engine="0"} 3.0',
            'vllm:num_requests_waiting{engine="0"} 1.0',
            'vllm:kv_cache_usage_perc{engine="0"} 0.5',
            'vllm:kv_cache_usage_perc{engine="1"} 0.25',
        ]
        return "\n".join(lines) + "\n"

    def refusal(self, asked: dict[str, Any]) -> web.Response | None:
        def no(status: int) -> web.Response:
            return web.json_response({"error": {"message": "rosebud", "code": status}}, status=status)

        if self.flavour == "transformers":
            if not isinstance(asked.get("prompt", ""), str):
                return no(400)
            if "ignore_eos" in asked:
                return no(422)
        if self.flavour == "hosted" and asked.keys() & {"max_tokens", "ignore_eos", "temperature", "generation_config"}:
            return no(400)
        return None

    def usage(self, asked: dict[str, Any], number: int) -> dict[str, Any]:
        prompt = asked.get("prompt") or " ".join(message["content"] for message in asked["messages"])
        read = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
        return {
            "prompt_tokens": read, "completion_tokens": number, "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": min(self.reasoning, number)},
        }  # fmt: skip

    async def answer(
        self, request: web.BaseRequest, asked: dict[str, Any], num: int, fault: str | None
    ) -> web.StreamResponse:
        if fault in ("429", "500"):
            return web.json_response({"error": {"message": "rosebud", "code": "busy"}}, status=int(fault))
        if fault == "hang":
            await asyncio.sleep(30)
        start_s = asyncio.get_running_loop().time()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        options = asked.get("stream_options") or {}
        each = self.flavour == "vllm" and options.get("continuous_usage_stats")
        can_end = not (asked.get("ignore_eos") or "generation_config" in asked)
        if self.at_end_after is not None and can_end:
            num = min(num, self.at_end_after)
        if num != TRIAL:
            self.read_tokens += self.usage(asked, 0)["prompt_tokens"]
        merged = self.flavour == "transformers"
        sent = b": a comment\n\n" if fault == "split" else b""
        if "messages" in asked:
            await self.send(response, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}, False)
        for number in range(1, num + 1):
            due_s = start_s + self.ttft_s + (number - 1) * self.itl_s
            await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
            self.made_tokens += num != TRIAL
            if fault == "disconnect" and number == 3:
                assert request.transport is not None
                request.transport.abort()
                return response
            if fault == "error" and number == 3:
                await self.send(response, {"error": {"message": "rosebud", "code": "engine_dead"}}, False)
                return response
            if fault == "cut" and number == 3:
                await response.write_eof()
                return response
            if merged and number == 2:
                continue  # incomplete UTF-8: its text comes with the next token
            text = " ☃"
            choice: dict[str, Any] = {"index": 0, "finish_reason": None}
            if "messages" in asked:
                key = "reasoning_content" if number <= self.reasoning else "content"
                choice["delta"] = {key: text}
            else:
                choice["text"] = text
            if asked.get("return_token_ids") and self.flavour == "vllm":
                choice["token_ids"] = [7]
            event: dict[str, Any] = {"choices": [choice]}
            if each:
                event["usage"] = self.usage(asked, number)
            sent += f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
            if fault == "two" and number % 2 and number < num:
                continue  # two events in one piece
            if fault == "split":  # in the middle of a character
                at = sent.rfind(SNOWMAN) + 1
                await response.write(sent[:at])
                await asyncio.sleep(0.001)
                sent = sent[at:]
            await response.write(sent)
            sent = b""
        last: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": "length"}]}
        last["choices"][0] |= {"delta": {}} if "messages" in asked else {"text": ""}
        told = self.flavour != "silent" and fault != "no usage"
        if merged and told:
            last["usage"] = self.usage(asked, num)
        await self.send(response, last, False)
        if options.get("include_usage") and not merged and told:
            await self.send(response, {"choices": [], "usage": self.usage(asked, num)}, fault == "crlf")
        if not merged and fault != "no done":
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def send(self, response: web.StreamResponse, event: Any, crlf: bool) -> None:
        end = "\r\n\r\n" if crlf else "\n\n"
        await response.write(f"data: {json.dumps(event)}{end}".encode())


@contextmanager
def served(mock: ServedMock) -> Iterator[ServedMock]:
    """It answers inside."""
    loop = asyncio.new_event_loop()
    ready: Future[str] = Future()
    over = asyncio.Event()

    async def serve() -> None:
        runner = web.ServerRunner(
            web.Server(mock.handle, access_log=None, handler_cancellation=True),
            handle_signals=False,
            shutdown_timeout=0.1,
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        ready.set_result(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        mock.url = ready.result(10)
        yield mock
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()
