"""What is it that answers there? A few GET requests, before anything is sent to a model. No torch.

Servers are told apart by what they answer, never by an address. What is asked of them is tried (trial.py).
"""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass
from typing import Any

import aiohttp

from moeprof.capture.engines.served.kinds import PATHS, Answers, ServerKind, kind_of
from moeprof.capture.engines.served.settings import OpenAISettings, host_of, is_local, root_of
from moeprof.core.errors import InputError
from moeprof.core.workload.models import ModelSpec
from moeprof.core.workload.workload import Workload
from moeprof.sources.proxy.server import reason

LOOK_S, CONNECT_S = 10.0, 30.0
IDLE_S = 3.0  # idle connections are given up before servers close them (uvicorn: 5 s), so that none breaks in use
MAX_LOOK = 4 * 2**20
WANTS_KEY = (401, 403)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What was found at an address.

    Attributes:
        url: where the API starts.
        kind: the row of the table that it fits.
        version: as it tells it, or None.
        served_as: what it calls the model.
        models: all that it lists.
        max_sequence_tokens: longest prompt + output, where it tells.
        metrics: addresses of its counters; empty where it has none.
    """

    url: str
    kind: ServerKind
    version: str | None
    served_as: str
    models: tuple[str, ...]
    max_sequence_tokens: int | None
    metrics: tuple[str, ...]

    @property
    def host(self) -> str:
        """Where it is, for people."""
        return host_of(self.url) + ("" if is_local(self.url) else " (another machine)")


def session_for(settings: OpenAISettings, *, total_s: float | None) -> aiohttp.ClientSession:
    """A client that verifies certificates, follows no redirect, and uses nothing of this machine but the named key."""
    key = settings.key()
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
        timeout=aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
    )


def check(workload: Workload) -> None:
    """Look at the servers of a workload before a run has a folder.

    Raises:
        InputError: one cannot be reached, wants a key, or does not have the model.
    """
    settings = workload.engine
    assert isinstance(settings, OpenAISettings)
    settings.check_models(workload.models)

    async def look_at_all() -> None:
        for spec in workload.models:
            await look(settings, spec)

    asyncio.run(look_at_all())


async def look(settings: OpenAISettings, spec: ModelSpec) -> Server:
    """What is there for a model.

    Raises:
        InputError: as :func:`check`.
    """
    url, where = settings.address_of(spec), f"model {spec.name}"
    async with session_for(settings, total_s=LOOK_S) as session:
        said: dict[str, Any] = {}
        listed, name = await _get(session, f"{url}/models", where)
        _refuse_without_key(listed[0], settings, where)
        if listed[0] == 200:
            said["/v1/models"] = listed[1]
        for path in PATHS[1:]:
            (status, answer), _ = await _get(session, root_of(url) + path, where)
            if status == 200:
                said[path] = answer
    answers = Answers(said=said, server=name)
    kind, rows = kind_of(answers), _rows(said.get("/v1/models"))
    served_as = spec.served_as or _only(tuple(rows), where, listed[0])
    if rows and served_as not in rows:
        there = ", ".join(sorted(rows)[:8])
        raise InputError(f"{where}: served_as: the server has no model {served_as!r}; it has {there}")
    longest = rows.get(served_as, {}).get("max_model_len")
    has_counters = bool(kind.counters) and any(text in answers.metrics for text in kind.counters.values())
    return Server(
        url=url,
        kind=kind,
        version=_short(kind.version(answers)),
        served_as=served_as,
        models=tuple(rows),
        max_sequence_tokens=longest if type(longest) is int and longest > 0 else None,
        metrics=settings.metrics or ((f"{root_of(url)}/metrics",) if has_counters else ()),
    )


async def _get(session: aiohttp.ClientSession, url: str, where: str) -> tuple[tuple[int, Any], str]:
    """Status and content (JSON where it is some), and what the server calls itself.

    Raises:
        InputError: nothing answers there.
    """
    try:
        async with session.get(url, allow_redirects=False) as answer:
            content = await answer.content.read(MAX_LOOK)
            text = content.decode("utf-8", "replace")
            try:
                return (answer.status, json.loads(text)), answer.headers.get("Server", "")
            except ValueError:
                return (answer.status, text), answer.headers.get("Server", "")
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise InputError(f"{where}: {host_of(url)} cannot be reached ({why(error)}); is the server up?") from None


def why(error: BaseException) -> str:
    """In a few words; never text of the request, whose headers hold the key."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorError):
        return reason(error.os_error)
    if isinstance(error, ssl.SSLError):
        return "TLS failed"
    return reason(error) if isinstance(error, OSError) else type(error).__name__


def _refuse_without_key(status: int, settings: OpenAISettings, where: str) -> None:
    if status not in WANTS_KEY:
        return
    if settings.api_key_env is None:
        raise InputError(f"{where}: the server wants a key ({status}); name its variable in engine.api_key_env")
    raise InputError(f"{where}: the server refused the key that {settings.api_key_env} holds ({status})")


def _rows(listed: Any) -> dict[str, dict[str, Any]]:
    """Models by name, adapters left out where the server tells whose they are."""
    data = listed.get("data") if isinstance(listed, dict) else None
    rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
    return {str(row["id"]): row for row in rows if row.get("id") and not row.get("parent")}


def _only(names: tuple[str, ...], where: str, status: int) -> str:
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(
            f"{where}: served_as: missing, and the server has {len(names)}: {', '.join(sorted(names)[:8])}"
        )
    listed = "an empty list" if status == 200 else f"status {status}"
    raise InputError(f"{where}: served_as: missing, and /v1/models of the server names none ({listed}); say it")


def _short(version: Any) -> str | None:
    text = "" if version is None else "".join(c for c in str(version) if c.isprintable())[:64]
    return text or None
