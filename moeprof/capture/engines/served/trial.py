"""How this server is asked: tried with a few tokens, because names and versions promise more than they hold.

Each thing that was tried, and what came of it, stands in the record as an assumption.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import aiohttp

from moeprof.capture.engines.served.events import NO_USAGE, Answer, Lines, TokensFrom, json_reader
from moeprof.capture.engines.served.kinds import FixedLength
from moeprof.capture.engines.served.probe import WANTS_KEY, Server, why
from moeprof.capture.engines.served.settings import OpenAISettings
from moeprof.core.errors import InputError
from moeprof.sources.proxy.answers import short_word

TRIED_TOKENS, TRIED_PROMPT = 3, 16
PATHS = {"completions": "completions", "chat": "chat/completions"}
AT_END = {"include_usage": True}
EACH = {"include_usage": True, "continuous_usage_stats": True}
MAX_ERROR = 2**16
NO_SUCH_ENDPOINT = (400, 404, 405, 422, 501)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How requests are put.

    Attributes:
        endpoint: ``completions`` or ``chat``.
        prompts: token ids, or their text.
        length_key: what the number of tokens is called.
        fixed_length: how outputs get the length that was asked for; None: they may end earlier.
        tokens_from: what tells how many tokens came.
        fields: of every body.
        assumptions: what was tried, and what came of it.
    """

    endpoint: Literal["completions", "chat"] = "completions"
    prompts: Literal["ids", "text"] = "text"
    length_key: str = "max_tokens"
    fixed_length: FixedLength | None = None
    tokens_from: TokensFrom = "usage at the end"
    fields: dict[str, Any] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()

    def body(
        self, model: str, ids: Sequence[int], num_tokens: int, decode: Callable[[Sequence[int]], str], *, fixed: bool
    ) -> dict[str, Any]:
        """Of one request; ``fixed``: it goes on to its length."""
        prompt: Any = list(ids) if self.prompts == "ids" else decode(ids)
        asked = {"prompt": prompt}
        if self.endpoint == "chat":
            asked = {"messages": [{"role": "user", "content": prompt}]}
        length = self.fixed_length.fields(num_tokens) if fixed and self.fixed_length is not None else {}
        return {"model": model, "stream": True, self.length_key: num_tokens, **asked, **self.fields, **length}

    def noting(self, text: str, **changes: Any) -> Dialect:
        """Another dialect, with one assumption more."""
        return replace(self, assumptions=(*self.assumptions, text), **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of a request: its status, a short word of the server's, and the answer where it was 200."""

    status: int
    word: str
    answer: Answer

    @property
    def is_good(self) -> bool:
        """Whether it was answered to the end; how its tokens are counted is another question."""
        return self.status == 200 and (self.answer.failed is None or self.answer.failed[0] == NO_USAGE)

    @property
    def tokens(self) -> int:
        """Output tokens that it told."""
        return self.answer.total if self.answer.total is not None else self.answer.tokens


class Trials:
    """Requests of a few tokens to one server."""

    def __init__(
        self, session: aiohttp.ClientSession, server: Server, ids: Sequence[int], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self._session, self._server = session, server
        self._ids, self._decode = list(ids)[:TRIED_PROMPT], decode
        self._read = json_reader()

    async def settle(self, settings: OpenAISettings, *, name: str) -> Dialect:
        """The dialect that it takes.

        Raises:
            InputError: it answers nothing, does not stream, or tells nothing that counts tokens.
        """
        dialect = await self._endpoint(settings, name)
        dialect = await self._ids_prompt(dialect)
        dialect = await self._counting(dialect, name)
        dialect = await self._length(dialect)
        return await self._greedy(dialect)

    async def _endpoint(self, settings: OpenAISettings, name: str) -> Dialect:
        wanted: tuple[Literal["completions", "chat"], ...] = ("completions", "chat")
        if settings.endpoint != "auto":
            wanted = (settings.endpoint,)
        last: Tried | None = None
        for endpoint in wanted:
            for options, key in ((AT_END, "max_tokens"), (None, "max_tokens"), (AT_END, "max_completion_tokens")):
                fields = {} if options is None else {"stream_options": options}
                dialect = Dialect(endpoint=endpoint, length_key=key, fields=fields)
                last = await self._ask(dialect)
                if last.is_good:
                    told = f"/{PATHS[endpoint]} answers in a stream"
                    return dialect.noting(told + ("" if options else "; it refuses stream_options"))
                if last.status not in (400, 422):
                    break
            if last is not None and last.status not in NO_SUCH_ENDPOINT:
                break
        assert last is not None
        raise InputError(f"model {name}: {self._refusal(last, settings)}")

    def _refusal(self, last: Tried, settings: OpenAISettings) -> str:
        where = self._server.host
        if last.status in WANTS_KEY:
            variable = settings.api_key_env or "the variable that api_key_env names"
            return f"{where} refuses to answer ({last.status}); is the key in {variable} right?"
        if last.status == 200:
            kind, word = last.answer.failed or ("", "")
            return f"{where} does not stream as OpenAI's API does ({kind}{': ' if word else ''}{word})"
        return f"{where} does not answer a completion of {TRIED_TOKENS} tokens (status {last.status}, {last.word})"

    async def _ids_prompt(self, dialect: Dialect) -> Dialect:
        if dialect.endpoint == "chat":
            return dialect.noting("a chat takes text, in one message of the user; the server adds its template")
        tried = await self._ask(replace(dialect, prompts="ids"))
        seen = tried.answer.input_tokens
        if tried.is_good and seen in (None, len(self._ids)):
            return dialect.noting("prompts go as token ids", prompts="ids")
        found = f"status {tried.status}" if not tried.is_good else f"{seen} tokens for {len(self._ids)} ids"
        return dialect.noting(f"prompts go as text, because ids are not taken ({found})")

    async def _length(self, dialect: Dialect) -> Dialect:
        """Told by acceptance: whether a model would have ended earlier does not show in a few tokens."""
        for way in self._server.kind.fixed_length:
            tried = await self._ask(replace(dialect, fixed_length=way), fixed=True)
            if tried.is_good and tried.tokens == TRIED_TOKENS:
                return dialect.noting(f"length is fixed by {way.name}: accepted", fixed_length=way)
            found = f"status {tried.status}" if not tried.is_good else f"{tried.tokens} of {TRIED_TOKENS} tokens"
            dialect = dialect.noting(f"{way.name}: not taken ({found})")
        return dialect.noting("outputs may end before the length that was asked for")

    async def _greedy(self, dialect: Dialect) -> Dialect:
        greedy = replace(dialect, fields=dialect.fields | {"temperature": 0})
        if (await self._ask(greedy, fixed=True)).is_good:
            return greedy.noting("temperature 0")
        return dialect.noting("the server's own temperature: 0 is refused")

    async def _counting(self, dialect: Dialect, name: str) -> Dialect:
        """Usage with each chunk before ids: they are as exact, and ids would repeat the prompt in the first chunk."""
        each = replace(dialect, fields=dialect.fields | {"stream_options": EACH})
        tried = await self._ask(each)
        if tried.is_good and tried.answer.tokens and not tried.answer.uncounted:
            return each.noting("tokens are counted by the usage of each chunk", tokens_from="usage")
        with_ids = replace(dialect, tokens_from="ids", fields=dialect.fields | {"return_token_ids": True})
        tried = await self._ask(with_ids)
        if tried.is_good and tried.answer.tokens and not tried.answer.uncounted:
            return with_ids.noting("tokens are counted by the ids that come back")
        tried = await self._ask(dialect)
        if tried.is_good and tried.answer.total is not None:
            return dialect.noting("tokens are counted by the usage at the end of an answer, chunks are no tokens")
        raise InputError(
            f"model {name}: {self._server.host} tells neither usage nor token ids, so output tokens cannot be counted"
        )

    async def _ask(self, dialect: Dialect, *, fixed: bool = False) -> Tried:
        answer = Answer(read=self._read, lines=Lines())
        body = dialect.body(self._server.served_as, self._ids, TRIED_TOKENS, self._decode, fixed=fixed)
        url = f"{self._server.url}/{PATHS[dialect.endpoint]}"
        try:
            async with self._session.post(url, json=body, allow_redirects=False) as response:
                if response.status != 200:
                    return Tried(
                        status=response.status, word=_word(await response.content.read(MAX_ERROR)), answer=answer
                    )
                async for piece in response.content.iter_any():
                    answer.feed(piece, 0.0)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise InputError(
                f"{self._server.host}: a completion of {TRIED_TOKENS} tokens failed ({why(error)})"
            ) from None
        answer.close(0.0)
        return Tried(status=200, word="", answer=answer)


def _word(content: bytes) -> str:
    try:
        held = json.loads(content)
    except ValueError:
        return "no JSON"
    return short_word(held.get("error") or held) if isinstance(held, dict) else "error"
