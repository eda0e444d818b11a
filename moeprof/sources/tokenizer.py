"""A model's tokenizer without torch: ids from ``tokenizer.json``, the chat template, and a hash of which it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import ModelError, TraceError
from moeprof.core.files import MIB, UnreadableError, read_bytes, read_json_value, read_text
from moeprof.sources.chat_template import TemplateRefusesError, render

MOST_TOKENIZER_BYTES = 128 * MIB  # the largest have about 35
MOST_TEMPLATE_BYTES = MIB

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTokenizer:
    """Text to ids and back.

    Attributes:
        name: for messages: the folder it came from.
        sha256: of tokenizer.json; models with the same hash get the same ids.
        vocab_size: ids run from 0 to this, added tokens included.
        leading_ids: what the tokenizer puts before every prompt by itself (often one begin-of-text id), maybe empty.
        special_ids: ids of special tokens, which random prompts avoid.
        chat_template: Jinja source, or None.
        special_tokens: texts such as ``bos_token`` that templates use.
        backend: the ``tokenizers.Tokenizer``.
    """

    name: str
    sha256: str
    vocab_size: int
    leading_ids: tuple[int, ...]
    special_ids: frozenset[int]
    chat_template: str | None
    special_tokens: dict[str, str] = field(default_factory=dict)
    backend: Any = field(repr=False, compare=False)

    def encode(self, text: str) -> Ids:
        """Ids of plain text, without anything added; text that spells a special token stays text."""
        self.backend.encode_special_tokens = True
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def encode_prompt(self, text: str) -> Ids:
        """Ids of a prompt: plain text after the tokenizer's own leading ids."""
        return np.concatenate([np.array(self.leading_ids, dtype=np.int32), self.encode(text)])

    def encode_template(self, text: str) -> Ids:
        """Ids of a rendered chat template: its special tokens are meant as such, and nothing is added."""
        self.backend.encode_special_tokens = False
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def decode(self, many: Sequence[Ids]) -> tuple[str, ...]:
        """Text of each id sequence, special tokens left out."""
        return tuple(self.backend.decode_batch([ids.tolist() for ids in many], skip_special_tokens=True))


def bundled_tokenizer() -> Path:
    """The file of the tokenizer for models that have none."""
    return Path(str(resources.files("moeprof").joinpath("data/tokenizer/tokenizer.json")))


def load_tokenizer(path: Path) -> TextTokenizer:
    """Read a tokenizer from a model folder (or its tokenizer.json).

    Raises:
        ModelError: no tokenizer.json there, or it is damaged.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"{file}: no such file; a model folder needs a tokenizer.json (other forms are not read)")
    try:
        content = read_bytes(file, MOST_TOKENIZER_BYTES)
    except UnreadableError as fault:
        raise ModelError(str(fault)) from fault
    config = _config(file.parent)
    return from_backend(
        _backend(file, content),
        name=str(file.parent),
        sha256=hashlib.sha256(content).hexdigest(),
        chat_template=_chat_template(file.parent, config),
        special_tokens=_special_tokens(config),
    )


def from_backend(
    backend: Any,
    *,
    name: str,
    sha256: str,
    chat_template: str | None = None,
    special_tokens: dict[str, str] | None = None,
) -> TextTokenizer:
    """Wrap a ``tokenizers.Tokenizer`` that is already loaded."""
    # A tokenizer.json may carry the padding and truncation of whoever saved it; both would change lengths silently.
    backend.no_padding()
    backend.no_truncation()
    plain = backend.encode("a", add_special_tokens=False).ids
    dressed = backend.encode("a", add_special_tokens=True).ids
    lead = next((i for i in range(len(dressed)) if plain and dressed[i : i + len(plain)] == plain), 0)
    added = backend.get_added_tokens_decoder()
    return TextTokenizer(
        name=name,
        sha256=sha256,
        vocab_size=backend.get_vocab_size(with_added_tokens=True),
        leading_ids=tuple(dressed[:lead]),
        special_ids=frozenset(i for i, token in added.items() if token.special),
        chat_template=chat_template,
        special_tokens=special_tokens or {},
        backend=backend,
    )


def _backend(file: Path, content: bytes) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises nothing finer for a damaged file
        raise ModelError(f"{file}: damaged tokenizer ({str(error)[:160]})") from error


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        config = read_json_value(file, non_finite="keep")
    except UnreadableError as fault:
        raise ModelError(f"{file}: damaged ({fault.why})") from fault
    if not isinstance(config, dict):
        raise ModelError(f"{file}: damaged (a JSON object is expected)")
    return config


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return read_text(file, MOST_TEMPLATE_BYTES)
        except UnreadableError as fault:
            raise ModelError(str(fault)) from fault
    found = config.get("chat_template")
    if isinstance(found, list):  # named templates: the default one is for plain chat
        found = {str(t.get("name")): t.get("template") for t in found if isinstance(t, dict)}.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            tokens[key] = value
    return tokens


def render_chat(tokenizer: TextTokenizer, messages: Sequence[tuple[str, str]]) -> str:
    """Messages through the model's chat template, ready for the assistant's turn; ``role: content`` without one.

    The template is data from a model: it runs in Jinja's sandbox, in a process of its own (see chat_template.py).

    Raises:
        TraceError: the template is broken, or refuses these messages.
    """
    if tokenizer.chat_template is None:
        return "".join(f"{role}: {content}\n\n" for role, content in messages) + "assistant:"
    try:
        return render(tokenizer.chat_template, tokenizer.special_tokens, messages)
    except TemplateRefusesError as error:
        raise TraceError(f"the chat template of {tokenizer.name} refuses the messages ({error})") from error
