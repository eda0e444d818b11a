"""Damage: bytes flipped, cut, doubled and put in; in JSON also values that no writer of ours would write."""

from __future__ import annotations

import json
import random
from typing import Any

INSERTS = (
    b"\x00", b"\xff\xfe", b"1e400", b"NaN", b"9" * 5000, b"[" * 2000, b"{" * 2000, b'"', b"\n", b"\r\n", b",,,",
    b"-1", b"null", b"\xed\xa0\x80", b"*x", b"&x", b"\xe2\x80\xa8", b"{{", b"%", b"\x1b[31m",
)  # fmt: skip
# As JSON text, so that what no Python value holds can be put in too.
VALUES = (
    "null", "true", "-1", "0", "1e400", "-1e400", "NaN", '""', '"x"', "[]", "{}", "[[]]", '[{"a": null}]', "1" * 4400,
    "[" * 1500 + "]" * 1500, '"\\ud800"', '".."', '"/etc/passwd"', "1e308", "99999999999999", '"\\u0000"', "2.5",
)  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One or a few kinds of damage; JSON loses its meaning rather than its form half of the time."""
    if rng.random() < 0.5 and (found := with_wrong_value(content, rng)) is not None:
        return found
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice((_flipped, _cut, _doubled, _removed, _put_in))(content, rng)
    return content


def with_wrong_value(content: bytes, rng: random.Random) -> bytes | None:
    """JSON (or its last line) with one value replaced; None for anything else."""
    try:
        value = json.loads(content)
    except ValueError:
        head, _, last = content.rstrip(b"\n").rpartition(b"\n")
        try:
            value = json.loads(last)
        except ValueError:
            return None
        changed = _replaced(value, rng)
        return head + b"\n" + changed + b"\n"
    return _replaced(value, rng)


MARK = "\x01put a value here\x01"


def _replaced(value: Any, rng: random.Random) -> bytes:
    places = list(_places(value))
    if not places:
        return rng.choice(VALUES).encode()
    holder, key = rng.choice(places)
    holder[key] = MARK
    return json.dumps(value).replace(json.dumps(MARK), rng.choice(VALUES)).encode()


def _places(value: Any) -> Any:
    """Every (holder, key) below; the value itself has none."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys)[:200]:
        yield value, key
        yield from _places(value[key])


def _flipped(content: bytes, rng: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice((1, 3, 20))):
        if found:
            found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _doubled(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    piece = content[start : start + rng.randrange(1, 400)]
    return content[:start] + piece * rng.choice((2, 3, 50)) + content[start:]


def _removed(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.randrange(1, 200) :]


def _put_in(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.choice(INSERTS) + content[start:]
