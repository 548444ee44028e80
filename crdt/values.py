"""A content as it lies in the author's document: the only file that knows its keys.

    "member"             Member
    "progress"           Progress
    "totals"             Totals
    "closed/<round>"     ClosedRound without its round
    "checkpoint/<round>" Checkpoint
    "blame/<peer>"       BlamedPeer without its peer
    "control"            Control

Each value is the codec's encoding of a class, so that types, ranges and the one spelling of a
value are checked where all messages are, and neither pycrdt's floats nor its order of keys comes
further than here.  What is written every round is kept short: no value repeats its key, and a
partner is its 32 bytes of public key.

A content that does not read is a `NoView` with a reason, never an exception and never half of a
content.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crdt import document
from crdt.schema import (
    BlamedPeer,
    ClosedRound,
    Content,
    Control,
    Member,
    NoView,
    Progress,
    Totals,
    View,
)
from protocol import check, codec
from protocol.errors import Malformed
from protocol.ids import Digest, PeerId, Round, peer_id, public_key
from protocol.messages import Checkpoint

MAX_KEY_BYTES = 80
"""Of the longest key, "blame/" and a peer id of 52 characters, with room to spare."""
MAX_VALUE_BYTES = 1024
"""Of the largest value, a control with all its changes: 596 bytes."""
KEY_BYTES = 32
"""Of an Ed25519 public key."""
KNOWN_PEERS = 4096
"""Ids kept of the keys read last, some 200 bytes each: base58 is slow, and all views name the same
partners."""

_SINGLE = {"member": Member, "progress": Progress, "totals": Totals, "control": Control}
_MANY = ("closed", "checkpoint", "blame")


@dataclass(frozen=True, slots=True)
class _Closed:
    """The value of "closed/<round>"."""

    tokens: int
    partner: bytes | None
    mine: Digest | None
    theirs: Digest | None
    their_tokens: int


@dataclass(frozen=True, slots=True)
class _Blame:
    """The value of "blame/<peer>"."""

    count: int
    reason: str


def view(updates: Sequence[bytes]) -> View:
    """What the updates of a chain say together; never raises."""
    if not updates:
        return NoView("no snapshot yet")
    try:
        return parsed(document.read(updates))
    except Malformed as error:
        return NoView(f"unreadable: {error}")


def keyed(content: Content) -> dict[str, bytes]:
    """The content as keys and bytes, as it lies in the document."""
    values: dict[str, object] = {"totals": content.totals}
    values |= {"member": content.member} if content.member else {}
    values |= {"progress": content.progress} if content.progress else {}
    values |= {"control": content.control} if content.control else {}
    values |= {f"closed/{closed.round}": _of_closed(closed) for closed in content.closed}
    values |= {f"checkpoint/{checkpoint.round}": checkpoint for checkpoint in content.checkpoints}
    for blamed in content.blamed:
        values[f"blame/{blamed.peer}"] = _Blame(blamed.count, blamed.reason)
    return {key: codec.encode(value) for key, value in sorted(values.items())}


def parsed(values: Mapping[str, bytes]) -> Content:
    """The content that `keyed` makes these keys and bytes of.

    Raises:
        Malformed: there is none.
    """
    single: dict[str, Any] = {}
    many: dict[str, list[Any]] = {name: [] for name in _MANY}
    for key, value in values.items():
        name, slash, rest = key.partition("/")
        if slash and name in many:
            many[name].append(_item(name, rest, value))
        elif not slash and name in _SINGLE:
            single[name] = codec.decode(_SINGLE[name], value, max_bytes=MAX_VALUE_BYTES)
        else:
            raise Malformed(f"unknown key {key!r:.{MAX_KEY_BYTES}}")
    try:
        content = Content(
            **single,
            closed=_by("round", many["closed"]),
            checkpoints=_by("round", many["checkpoint"]),
            blamed=_by("peer", many["blame"]),
        )
    except ValueError as error:
        raise Malformed(str(error)) from error
    if keyed(content) != dict(values):
        raise Malformed("a value under the key of another one")
    return content


def _of_closed(closed: ClosedRound) -> _Closed:
    partner = public_key(closed.partner) if closed.partner else None
    return _Closed(closed.tokens, partner, closed.mine, closed.theirs, closed.their_tokens)


def _item(name: str, rest: str, value: bytes) -> object:
    """One of many, from what its key ends with and its value."""
    try:
        if name == "checkpoint":
            return codec.decode(Checkpoint, value, max_bytes=MAX_VALUE_BYTES)
        if name == "closed":
            return _closed(rest, codec.decode(_Closed, value, max_bytes=MAX_VALUE_BYTES))
        blame = codec.decode(_Blame, value, max_bytes=MAX_VALUE_BYTES)
        return BlamedPeer(peer=PeerId(rest), count=blame.count, reason=blame.reason)
    except ValueError as error:
        raise Malformed(str(error)) from error


def _closed(round: str, value: _Closed) -> ClosedRound:
    if not (round.isascii() and round.isdecimal() and len(round) < MAX_KEY_BYTES):
        raise ValueError(f"closed.round is {round!r:.40}, expected a whole number")
    return ClosedRound(
        round=Round(int(round)),
        tokens=value.tokens,
        partner=None if value.partner is None else _peer(value.partner),
        mine=value.mine,
        theirs=value.theirs,
        their_tokens=value.their_tokens,
    )


@functools.lru_cache(KNOWN_PEERS)
def _peer(key: bytes) -> PeerId:
    check.raw("closed.partner", key, KEY_BYTES, KEY_BYTES)
    return peer_id(key)


def _by(name: str, items: list[Any]) -> tuple[Any, ...]:
    return tuple(sorted(items, key=lambda item: getattr(item, name)))
