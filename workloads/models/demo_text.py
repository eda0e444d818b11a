"""The text of the demo models: every Python carries it, so nothing is downloaded.

Code is the standard library's own source; prose is the help topics of `pydoc_data` and the longer docstrings. A source
file is wholly train or wholly held-out, decided by a hash of its name, so the split is the same on every machine and
nearly the same on every Python. The byte-level BPE tokenizer and the bigram baseline see the train side only.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT_CLASSES = ("code", "prose")
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data"}
)
EXCLUDED_PREFIXES = (
    "_sysconfigdata",
    "config-",
)  # written at build time: they hold the paths of the machine that built Python
HELD_OUT_ONE_IN = 10
MIN_DOCSTRING_CHARS = 200
VOCAB_SIZE = 2048
MAX_POSITION = 4096
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
BIGRAM_PRIOR_TOKENS = (3.0, 10.0, 30.0, 100.0)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text, with the name that decides on which side of the split it is."""

    text_class: str
    source: str
    text: str

    @property
    def is_held_out(self) -> bool:
        """True when the hash of the source name falls in the held-out tenth."""
        return int(hashlib.sha256(self.source.encode()).hexdigest()[:8], 16) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStreams:
    """The tokenised corpus: one stream per text class and side; an end-of-text token stands before each document."""

    train: dict[str, Ids]
    held_out: dict[str, Ids]
    bytes_per_token: npt.NDArray[np.int64]


def find_stdlib_files() -> list[tuple[str, Path]]:
    """Name (relative to the library folder, with forward slashes) and path of each source file used, sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if EXCLUDED_FOLDERS.isdisjoint(parts) and not any(part.startswith(EXCLUDED_PREFIXES) for part in parts):
            found.append(("/".join(parts), path))
    return sorted(found)


def list_docstrings(source: str) -> Iterator[str]:
    """Docstrings of at least `MIN_DOCSTRING_CHARS` characters of one source file, in the order of the syntax tree."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) >= MIN_DOCSTRING_CHARS:
                yield docstring


def read_documents() -> list[Document]:
    """All documents of both classes; a text that occurs twice is kept once."""
    documents = []
    for topic, text in sorted(topics.items()):
        documents.append(Document(text_class="prose", source=f"pydoc_data/topics/{topic}", text=text))
    for name, path in find_stdlib_files():
        source = path.read_text(encoding="utf-8")
        documents.append(Document(text_class="code", source=name, text=source))
        documents.extend(Document(text_class="prose", source=name, text=text) for text in list_docstrings(source))
    unique = {document.text: document for document in reversed(documents) if document.text.strip()}
    return [document for document in documents if unique.get(document.text) is document]


def hash_documents(documents: list[Document]) -> str:
    """SHA-256 over class, source and text of all documents, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.text_class}\0{document.source}\0{document.text}\0".encode())
    return digest.hexdigest()


def train_tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCAB_SIZE` entries, learnt from the train side only."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((document.text for document in documents if not document.is_held_out), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=MAX_POSITION,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(documents: list[Document], tokenizer: Any) -> TokenStreams:
    """Tokenise the corpus; each document is preceded by the end-of-text token, which counts no bytes."""
    backend = tokenizer.backend_tokenizer
    sides: dict[bool, dict[str, Ids]] = {False: {}, True: {}}
    for held_out in (False, True):
        for text_class in TEXT_CLASSES:
            texts = [d.text for d in documents if d.text_class == text_class and d.is_held_out == held_out]
            ids = [i for encoding in backend.encode_batch(texts) for i in (END_OF_TEXT_ID, *encoding.ids)]
            sides[held_out][text_class] = np.array(ids, dtype=np.int64)
    # Byte-level BPE spells each byte as one printable character, so the length of an entry is its number of bytes.
    lengths = [len(backend.id_to_token(i)) for i in range(backend.get_vocab_size())]
    lengths[END_OF_TEXT_ID] = 0
    return TokenStreams(train=sides[False], held_out=sides[True], bytes_per_token=np.array(lengths, dtype=np.int64))


def cut_windows(stream: Ids, length: int, limit: int | None = None) -> Ids:
    """Windows of `length` + 1 tokens that share one token with the next, so each token but the first is predicted once.

    With a limit, that many windows are taken at even distances. The rest of the stream, shorter than a window, is
    dropped.
    """
    count = (len(stream) - 1) // length
    starts = np.arange(count) * length
    if limit is not None and limit < count:
        starts = starts[np.arange(limit) * count // limit]
    windows: Ids = stream[starts[:, None] + np.arange(length + 1)]
    return windows


def measure_bigram_bits(streams: TokenStreams, windows: dict[str, Ids]) -> dict[str, float]:
    """Total bits per text class under an interpolated bigram model of the train side.

    p(b | a) = (n(a, b) + c p(b)) / (n(a) + c), p(b) = (n(b) + 1) / (N + V). The prior weight c is the best of a few on
    the held-out text itself, which flatters the baseline.
    """
    size = len(streams.bytes_per_token)
    flat = np.zeros(size * size)
    for ids in streams.train.values():
        flat += np.bincount(ids[:-1] * size + ids[1:], minlength=size * size)
    pairs = flat.reshape(size, size)
    unigram = (pairs.sum(axis=0) + 1) / (pairs.sum() + size)
    results = []
    for prior in BIGRAM_PRIOR_TOKENS:
        probability = (pairs + prior * unigram) / (pairs.sum(axis=1, keepdims=True) + prior)
        results.append({name: float(-np.log2(probability[w[:, :-1], w[:, 1:]]).sum()) for name, w in windows.items()})
    return min(results, key=lambda bits: sum(bits.values()))
