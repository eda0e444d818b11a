"""How the bench talks to its rivals: each is a process that loads once, then runs one round whenever it is told.

Only the standard library: the rival may live in another environment. Messages are lines of JSON. What libraries print
goes to stderr, so the answers stay readable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Message = dict[str, Any]


def serve(get_ready: Callable[[Message], tuple[Message, Callable[..., Message]]]) -> None:
    """The rival's side: get ready as ``argv[1]`` (a JSON file) asks, then a round for each line until the end.

    ``get_ready`` returns what to tell about itself, and the function that runs a round; it gets the words of the line.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    about, run_round = get_ready(json.loads(Path(sys.argv[1]).read_text()))
    tell(about)
    for line in sys.stdin:
        tell(run_round(*line.split()[1:]))


class Rival:
    """The bench's side of one rival.

    Attributes:
        kind: what it is, as in the table.
        about: what it told when it was ready.
        reason: why it does not take part, or None.
    """

    def __init__(self, kind: str, command: list[str], environment: dict[str, str], log: Path) -> None:
        """Start it and wait until it is ready; ``log`` gets what it prints."""
        self.kind, self._log = kind, log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, cwd=ROOT,
                env=os.environ | environment,
            )  # fmt: skip
        self.about = self._hear()
        self.reason = None if self.about else self._last_words()

    def run(self, *words: str) -> Message:
        """One round; ``words`` say which of several.

        Raises:
            RuntimeError: it died.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(("round", *words)) + "\n")
        self._process.stdin.flush()
        answer = self._hear()
        if not answer:
            raise RuntimeError(f"{self.kind} died in a round: {self._last_words()}")
        return answer

    def close(self) -> None:
        """No more rounds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _hear(self) -> Message:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        message: Message = json.loads(line) if line else {}
        return message

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text().splitlines() if line.strip()]
        told = [line for line in lines if "Error" in line]
        return (told or lines or ["it said nothing"])[-1][:200]
