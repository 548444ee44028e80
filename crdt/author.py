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
from crdt.schema import Content
from crdt.values import keyed
from protocol.envelope import Signer
from protocol.errors import Malformed
from protocol.ids import RunId

MAX_JUMP = 1 << 20
"""Two jumps from one epoch meet once in a million times; 2**28 jumps reach the last epoch."""
SOFT_RECORD_BYTES = 1880
"""A record that would pass this goes on in a new epoch, long before the limits of the wire ask
for it: 32 records with all that is around them stay below 64 KiB."""
TAIL_SHARE = 4
"""A content whose snapshot alone is about as large, for it blames many, may have a tail of a
quarter of it: else each round would send all of it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who writes, where, and under which pycrdt client id."""

    signer: Signer
    run: RunId
    client_id: int
    """32 fresh random bits for every start of the process, from `secrets`."""
    jump: int
    """1 to `MAX_JUMP`, drawn from `secrets` at every start.  How far to go beyond the newest
    epoch that anyone remembers, when our own disk does not: peers may not know our last."""

    def next(self, record: Record, content: Content, *, is_lost: bool) -> Entry | None:
        """The entry that makes our record say `content`; None if it does, or is frozen.

        Args:
            is_lost: we may have signed more than `record` holds, so its chain is not ours
                to go on with.
        """
        if record.proof:
            return None
        if record.chain and not record.ahead and not is_lost:
            with contextlib.suppress(Malformed):  # then a fresh document mends it
                return self._following(record, content)
        gap = self.jump if is_lost or not record.chain else 1
        return self._opening(record.newest_epoch + gap, content)

    def _following(self, record: Record, content: Content) -> Entry | None:
        update = document.written(record.updates, keyed(content), client_id=self.client_id)
        if not update:
            return None
        entry = next_entry(self.signer, self.run, record.chain[-1], update)
        size_bytes = record.size_bytes + entry.size_bytes if entry else 0
        if entry and size_bytes <= SOFT_RECORD_BYTES:
            return entry
        opening = self._opening(record.epoch + 1, content)
        is_cheaper = size_bytes * TAIL_SHARE > opening.size_bytes * (TAIL_SHARE + 1)
        return opening if entry is None or is_cheaper else entry

    def _opening(self, epoch: int, content: Content) -> Entry:
        snapshot = document.written((), keyed(content), client_id=self.client_id)
        return first_entry(self.signer, self.run, epoch, snapshot)
