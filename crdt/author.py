"""Our own record: from the content we want to the next signed entry.

Nothing is kept between two calls: the document is rebuilt from our own chain, so memory,
disk and what peers hold cannot drift apart.  An entry must be on disk before any peer sees
it; an author that forgot what it signed would sign the same place twice and convict itself.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from crdt import document
from crdt.record import Entry, Record, first_entry, next_entry
from crdt.schema import Content, keyed
from protocol.envelope import Signer
from protocol.errors import Malformed
from protocol.ids import RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who writes, where, and under which pycrdt client id."""

    signer: Signer
    run: RunId
    client_id: int
    """32 fresh random bits for every start of the process, from `secrets`."""
    first_epoch: int
    """Of the very first record: random too, so that an author that lost its disk and finds
    nobody to ask does not sign the places of its old record again."""

    def next(self, record: Record, content: Content) -> Entry | None:
        """The entry that makes our record say `content`; None if it does, or is frozen."""
        if record.proof:
            return None
        if record.chain and not record.ahead:
            with contextlib.suppress(Malformed):  # then it is as good as a lost disk
                return self._following(record, content)
        return self._opening(record, content)

    def _following(self, record: Record, content: Content) -> Entry | None:
        update = document.written(record.updates, keyed(content), client_id=self.client_id)
        if not update:
            return None
        entry = next_entry(self.signer, self.run, record.chain[-1], update)
        return entry or self._opening(record, content)

    def _opening(self, record: Record, content: Content) -> Entry:
        snapshot = document.written((), keyed(content), client_id=self.client_id)
        epoch = record.newest_epoch + 1 if record.newest_epoch else self.first_epoch
        return first_entry(self.signer, self.run, epoch, snapshot)
