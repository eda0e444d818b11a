"""What a workload says of a server: ``engine: {kind: openai, url: http://127.0.0.1:8000/v1, devices: 1}``. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import SplitResult, urlsplit

from moeprof.core.errors import WorkloadError
from moeprof.core.workload.engine import EngineSettings
from moeprof.core.workload.models import ModelSpec
from moeprof.core.yamlfile import at_least, more_than_zero

EXAMPLE = "http://127.0.0.1:8000/v1"
LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings(EngineSettings):
    """A server that runs already, one process or a cluster behind a router.

    Attributes:
        kind: the row of the table.
        url: where the API starts; a model may have its own.
        devices: of the whole deployment, all of them billed; None: unknown, so that no hour can be billed.
        replicas: how many servers stand behind the address, for the record.
        endpoint: ``auto`` takes completions where the server has it.
        api_key_env: name of the environment variable that holds the key; the key itself stands nowhere.
        request_timeout_s: a request that has not ended by then has failed.
        metrics: addresses of the deployment's own counters (Prometheus text); not stated: ``/metrics`` of the server.
    """

    kind: Literal["openai"] = "openai"
    is_local: ClassVar[bool] = False
    url: str | None = None
    devices: int | None = None
    replicas: int | None = None
    endpoint: Literal["auto", "completions", "chat"] = "auto"
    api_key_env: str | None = None
    request_timeout_s: float = 600.0
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(1, devices=self.devices, replicas=self.replicas)
        more_than_zero(request_timeout_s=self.request_timeout_s)
        if self.url is not None:
            _address("url", self.url)
        for url in self.metrics:
            _address("metrics", url)
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            # A key that was put here by mistake is not printed.
            raise WorkloadError("api_key_env: found no name of an environment variable; OPENAI_API_KEY is one")

    def check_models(self, models: tuple[ModelSpec, ...]) -> None:
        """Refuse what can be told before the server is asked.

        Raises:
            WorkloadError: a model without an address, or whose address is none; or the key is not in the environment.
        """
        for spec in models:
            if spec.url is None and self.url is None:
                raise WorkloadError(f"engine.url: missing; say where the server is ({EXAMPLE}), here or as models.url")
            if spec.url is not None:
                _address(f"model {spec.name}: url", spec.url)
        self.key()

    def where(self, models: tuple[ModelSpec, ...]) -> str:
        """Host and port of each server."""
        return ", ".join(dict.fromkeys(host_of(self.address_of(spec)) for spec in models))

    def address_of(self, spec: ModelSpec) -> str:
        """Where the API of a model starts, without a slash at its end; ``/v1`` where the address has no path."""
        url = spec.url or self.url
        assert url is not None, "check_models came before"
        url = url.rstrip("/")
        return url if urlsplit(url).path else f"{url}/v1"

    def key(self, environment: Callable[[str], str | None] = os.environ.get) -> str | None:
        """The key, or None where none is asked for.

        Raises:
            WorkloadError: it is not in the environment, or cannot stand in a header.
        """
        if self.api_key_env is None:
            return None
        key = (environment(self.api_key_env) or "").strip()
        if not key:
            raise WorkloadError(f"engine.api_key_env: {self.api_key_env} is not set in the environment; export it")
        if not key.isascii() or not key.isprintable():
            raise WorkloadError(
                f"engine.api_key_env: {self.api_key_env} holds characters that no HTTP header can have; set it again"
            )
        return key


def host_of(url: str) -> str:
    """Host and port of an address, for people."""
    return urlsplit(url).netloc


def is_local(url: str) -> bool:
    """Whether the server is on this machine."""
    return LOOPBACK.fullmatch(urlsplit(url).hostname or "") is not None


def root_of(url: str) -> str:
    """The server of an API: its address without ``/v1``."""
    return url.rstrip("/").removesuffix("/v1")


def _address(key: str, text: str) -> None:
    try:
        url = urlsplit(text)
        has_port = url.port is None or url.port > 0
    except ValueError:
        url, has_port = SplitResult("", "", "", "", ""), False
    if url.username is not None or url.password is not None or "@" in text:
        raise WorkloadError(f"{key}: credentials do not belong in an address; name their variable in api_key_env")
    if url.scheme not in ("http", "https") or not url.hostname or not has_port:
        raise WorkloadError(f"{key}: found {text!r}, which is no address; {EXAMPLE} is one")
    if url.query or url.fragment:
        raise WorkloadError(f"{key}: the address has a query or fragment; give it without")
