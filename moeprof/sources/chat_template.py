"""A model's chat template, in a process of its own: it is a stranger's, and a few words of it can run for ever.

The template runs in Jinja's sandbox, where it reaches nothing but its values. What a sandbox does not bound, the kernel
does: each conversation has ``MOST_SECONDS`` of processor time and ``MOST_MEMORY`` to become a prompt of at most
``MOST_CHARACTERS`` more than what it was made of. Started as a module, this file is that process: a line of JSON in
(first the template, then a conversation each), a line out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any

MOST_SECONDS = 0.5
MOST_MEMORY = 256 * 2**20
MOST_CHARACTERS = 2**20
BUDGET = f"it needs more than {MOST_SECONDS:g} s of processor time or {MOST_MEMORY // 2**20} MiB for one conversation"


class TemplateRefusesError(Exception):
    """No prompt came out; why."""


class ChatTemplate:
    """A template, ready to make prompts of conversations."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._process)
        self._send({"source": source, "special_tokens": dict(special_tokens)})

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt for the assistant's turn.

        Raises:
            TemplateRefusesError: the template is broken, refuses these messages, or takes too much.
        """
        try:
            self._send(list(messages))
            assert self._process.stdout is not None
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise TemplateRefusesError(BUDGET)
        answer: dict[str, str] = json.loads(line)
        if "refused" in answer:
            raise TemplateRefusesError(answer["refused"])
        return answer["prompt"]

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with suppress(BrokenPipeError):
            stream.close()


@lru_cache(maxsize=8)
def _started(source: str, special_tokens: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(special_tokens))


def render(source: str, special_tokens: Mapping[str, str], messages: Sequence[tuple[str, str]]) -> str:
    """A conversation through a template; its process is kept for the next one.

    Raises:
        TemplateRefusesError: see :meth:`ChatTemplate.render`.
    """
    try:
        return _started(source, tuple(special_tokens.items())).render(messages)
    except TemplateRefusesError as error:
        if str(error) == BUDGET:
            _started.cache_clear()  # that process is gone
        raise


# -- in the process of its own -----------------------------------------------------------------------------------------


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Answer every line until the parent goes away."""
    given = json.loads(orders.readline())
    template: Any = None
    _limit_memory()
    for line in orders:
        messages = [{"role": role, "content": content} for role, content in json.loads(line)]
        try:
            with _Budget():
                template = template or _template(given["source"])
                prompt = template.render(
                    messages=messages, add_generation_prompt=True, raise_exception=_refuse, tools=None, documents=None,
                    **given["special_tokens"],
                )  # fmt: skip
            said = sum(len(message["content"]) for message in messages)
            too_long = len(prompt) > MOST_CHARACTERS + 8 * said
            answer = {"refused": BUDGET} if too_long else {"prompt": prompt}
        except MemoryError:
            answer = {"refused": BUDGET}
        except Exception as error:  # a template can fail in any way that Python can
            answer = {"refused": str(error)[:160] or type(error).__name__}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _refuse(message: str) -> None:
    raise TemplateRefusesError(message)


def _limit_memory() -> None:
    """What Python takes already does not count."""
    import resource

    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_MEMORY, taken + MOST_MEMORY))


class _Budget:
    """The kernel ends the process where a conversation takes longer, whatever its code is busy with."""

    def __enter__(self) -> None:
        import signal

        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)

    def __exit__(self, *_: object) -> None:
        import signal

        signal.setitimer(signal.ITIMER_PROF, 0)


def _template(source: str) -> Any:
    import re
    from datetime import datetime

    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    # A fixed day: a prompt that holds today's date would make another schedule tomorrow.
    environment.globals["strftime_now"] = lambda form: datetime(2026, 1, 1).strftime(form)
    # Marks for training masks, known to one library only; they print nothing.
    return environment.from_string(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source))


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
