"""Payloads of a group: what is held, what is being fetched and from whom next, what may go.

Whoever contributed is asked first, so that everybody sends its own payload to each other member
and nobody sends them all; then the others that should have it, one after the other.  When all
have failed the payload waits for `retry`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from protocol.ids import Digest, PeerId
from trainers.effects import Effect, Fetch, Release


class Holding:
    """The payloads that one peer holds; belongs to one machine."""

    def __init__(self, out: list[Effect]) -> None:
        self._out = out
        self._held: set[Digest] = set()
        self._under_way: dict[Digest, PeerId] = {}
        self._tried: dict[Digest, set[PeerId]] = {}
        self._failures: dict[Digest, int] = {}

    def has(self, digest: Digest) -> bool:
        """It is here."""
        return digest in self._held

    def failures(self, digest: Digest) -> int:
        """How often it could not be had."""
        return self._failures.get(digest, 0)

    def add(self, digest: Digest) -> None:
        """It is here: made by our worker, or fetched."""
        self._under_way.pop(digest, None)
        self._held.add(digest)

    def want(self, digest: Digest, size_bytes: int, sources: Iterable[PeerId]) -> None:
        """Fetch it from the first of these that was not tried, unless it is here or comes."""
        if digest in self._held or digest in self._under_way:
            return
        tried = self._tried.setdefault(digest, set())
        for source in sources:
            if source not in tried:
                self._under_way[digest] = source
                self._out.append(Fetch(digest, size_bytes, source))
                return

    def failed(self, digest: Digest) -> None:
        """The source that was asked does not give it."""
        source = self._under_way.pop(digest, None)
        if source is not None:
            self._tried.setdefault(digest, set()).add(source)
            self._failures[digest] = self.failures(digest) + 1

    def retry(self) -> None:
        """Sources that failed may be asked again."""
        self._tried.clear()

    def keep(self, needed: Collection[Digest]) -> None:
        """Release all the rest, and give up what is under way of it."""
        for digest in sorted((self._held | self._under_way.keys()) - set(needed)):
            self._held.discard(digest)
            self._under_way.pop(digest, None)
            self._out.append(Release(digest))
        for digest in self._tried.keys() - set(needed):
            del self._tried[digest]
        for digest in self._failures.keys() - set(needed):
            del self._failures[digest]
