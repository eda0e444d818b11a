"""The pages of a cache: who uses which, and which of them hold what another request needs as well.

Keys and values of a token depend on the token and on all before it, so a full page is known by its tokens and by the
page before: a digest chained over both names it. A request whose prompt begins as another's did uses the same pages.
Only full pages are shared, so a shared page is never written again and nothing is ever copied. A page that its last
user has left keeps what it holds until its room is needed; the one left longest ago goes first.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from hashlib import blake2b
from itertools import takewhile

import numpy as np

SPARE_PAGE = 0  # belongs to nobody: what captured steps write while they are made goes there


class Pages:
    """Every page but the spare one is free, or idle (shareable and without a user), or has users."""

    def __init__(self, num_pages: int) -> None:
        """``num_pages``: the spare one included."""
        self._num_pages = num_pages
        self._free = list(range(num_pages - 1, SPARE_PAGE, -1))
        self._idle: dict[int, None] = {}  # in the order of being left
        self._users: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._num_uses = 0

    @property
    def num_repeats(self) -> int:
        """Uses of pages beyond the first use of each."""
        return self._num_uses - len(self._users)

    def find(self, digests: Many[bytes]) -> list[int]:
        """The pages of a prefix, as far as they are there."""
        return [self._page_of[digest] for digest in takewhile(self._page_of.__contains__, digests)]

    def have_room(self, shared: Many[int], num_new: int) -> bool:
        """Whether so many pages can be had without those that are to be shared."""
        return num_new <= len(self._free) + len(self._idle) - sum(page in self._idle for page in shared)

    def take(self, shared: Many[int], num_new: int) -> list[int]:
        """Use these pages and new ones, in this order; idle pages lose what they hold where no other is free."""
        for page in shared:
            self._idle.pop(page, None)
        pages = [*shared, *(self._new() for _ in range(num_new))]
        for page in pages:
            self._users[page] = self._users.get(page, 0) + 1
        self._num_uses += len(pages)
        return pages

    def _new(self) -> int:
        if self._free:
            return self._free.pop()
        page = next(iter(self._idle))
        del self._idle[page], self._page_of[self._digest_of.pop(page)]
        return page

    def keep(self, page: int, digest: bytes) -> None:
        """The page is full and can be shared from here on, unless another holds the same."""
        if self._page_of.setdefault(digest, page) == page:
            self._digest_of[page] = digest

    def leave(self, pages: Many[int]) -> None:
        """One user less. The last page first: the beginning of a prefix serves more requests than its end."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page]:
                continue
            del self._users[page]
            if page in self._digest_of:
                self._idle[page] = None
            else:
                self._free.append(page)
        self._num_uses -= len(pages)

    def check_all_left(self) -> None:
        """Nobody uses a page, and every page is accounted for."""
        assert not self._users and not self._num_uses, f"{self._num_uses} uses of pages were not given back"
        assert len(self._free) + len(self._idle) == self._num_pages - 1, "pages were lost"
        assert len(self._page_of) == len(self._digest_of) == len(self._idle), "an idle page cannot be found"


def chained_digest(before: bytes, tokens: Many[int]) -> bytes:
    """Of a page's tokens and the digest of the page before; the same in every process."""
    return blake2b(before + np.array(tokens, dtype="<i8").tobytes(), digest_size=16).digest()
