"""Payloads in pieces: what a link that dies costs, and what ends a fetch at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from virtual_time import in_virtual_time
from wire import carried

from node import exchange, pieces
from node.arena import Arena
from node.pieces import DIRECT, RELAYED, UNREACHABLE_S
from node.rpc import CallRefused, Refused
from protocol import rpc
from protocol.envelope import Signer
from protocol.errors import PeerError, PeerUnavailable, RemoteProtocolError
from protocol.ids import Digest, PeerId, RunId, digest_of
from protocol.limits import KIB, MAX_PIECE_BYTES
from protocol.rpc import A, Method, Q

ME, BOB = Signer(b"m" * 32), Signer(b"b" * 32).peer
RUN = RunId(b"r" * 32)
PAYLOAD = bytes(n * 7 % 251 for n in range(5 * DIRECT.piece_bytes // 2))
PIECE_S = 0.5
"""What one piece takes."""


@dataclass
class Peer:
    """Bob over a link that one can cut."""

    payload: bytes = PAYLOAD
    refusals: list[str] = field(default_factory=list)
    """How the next calls are refused."""
    down_from_s: float = float("inf")
    down_until_s: float = float("inf")
    relayed: bool = False
    asked: list[tuple[int, int]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def call(
        self,
        peer: PeerId,
        method: Method[Q, A],
        request: Q,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> A:
        assert isinstance(request, rpc.FetchCall)
        assert into is not None
        assert method.name == "fetch/1"
        self.asked.append((request.offset, request.length))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._check("cannot be dialled")
            answer: A = await carried(
                ME.peer, peer, method, request, self._answer, deadline_s=deadline_s, into=into
            )
            self._check("the stream broke")
        finally:
            self.at_once -= 1
        return answer

    def _check(self, why: str) -> None:
        if self.down_from_s <= asyncio.get_running_loop().time() < self.down_until_s:
            raise PeerUnavailable(BOB, why)

    async def _answer(self, _: PeerId, request: Q) -> bytes:
        assert isinstance(request, rpc.FetchCall)
        if self.refusals:
            raise Refused(self.refusals.pop(0), "so it is")
        await asyncio.sleep(PIECE_S)
        return self.payload[request.offset : request.offset + request.length]


async def fetched(peer: Peer, deadline_s: float = 60.0) -> tuple[Arena, list[str]]:
    """The arena after Bob's payload was fetched, and what he was blamed for."""
    arena, blamed = Arena(), list[str]()
    port = exchange.Exchange(
        run=RUN,
        signer=ME,
        caller=peer,
        arena=arena,
        fetch_deadline_s=deadline_s,
        blame=lambda _, reason: blamed.append(reason),
        is_relayed=lambda _: peer.relayed,
    )
    try:
        await port.fetch(DIGEST, len(PAYLOAD), BOB)
    finally:
        assert peer.at_once == 0  # nobody writes into the memory any more
        assert len(arena) == (DIGEST in arena)  # and none is left behind
    return arena, blamed


DIGEST: Digest = digest_of(PAYLOAD)


def test_a_payload_comes_in_pieces_a_few_at_once() -> None:
    async def main() -> None:
        peer = Peer()
        arena, _ = await fetched(peer)
        assert arena.view(DIGEST) == PAYLOAD
        size = DIRECT.piece_bytes
        assert sorted(peer.asked) == [(0, size), (size, size), (2 * size, size // 2)]
        assert peer.most_at_once == 3 <= DIRECT.in_flight

    in_virtual_time(main())


def test_through_a_relay_pieces_are_smaller_and_fewer_at_once() -> None:
    async def main() -> None:
        peer = Peer(relayed=True)
        arena, _ = await fetched(peer)
        assert arena.view(DIGEST) == PAYLOAD
        assert {length for _, length in peer.asked} == {RELAYED.piece_bytes}
        assert peer.most_at_once == RELAYED.in_flight

    in_virtual_time(main())


def test_a_link_that_dies_costs_only_the_pieces_under_way() -> None:
    async def main() -> None:
        peer = Peer(relayed=True, down_from_s=1.2, down_until_s=8.0)  # two pairs are here by then
        arena, blamed = await fetched(peer)
        assert arena.view(DIGEST) == PAYLOAD
        size = RELAYED.piece_bytes
        count = {start: peer.asked.count((start, size)) for start in range(0, len(PAYLOAD), size)}
        again = [start for start, times in count.items() if times > 1]
        assert again == [4 * size, 5 * size]
        assert blamed == []

    in_virtual_time(main())


def test_a_peer_that_stays_away_is_given_up_long_before_the_deadline() -> None:
    async def main() -> None:
        peer = Peer(down_from_s=0.0)
        with pytest.raises(PeerUnavailable, match="cannot be dialled"):
            await fetched(peer, deadline_s=3600.0)
        assert UNREACHABLE_S < asyncio.get_running_loop().time() < 2 * UNREACHABLE_S

    in_virtual_time(main())


def test_the_deadline_ends_it_with_a_sentence_that_says_how_far_it_came() -> None:
    async def main() -> None:
        peer = Peer(relayed=True, down_from_s=1.2)
        here = 4 * RELAYED.piece_bytes
        told = f"{here} of {len(PAYLOAD)} bytes within 5 s; cannot be dialled"
        with pytest.raises(PeerUnavailable, match=told):
            await fetched(peer, deadline_s=5.0)

    in_virtual_time(main())


@pytest.mark.parametrize("code", ["not-here", "bad-range", "other-run", "failed"])
def test_a_refusal_ends_it_at_once(code: str) -> None:
    async def main() -> None:
        peer = Peer(refusals=[code])
        with pytest.raises(CallRefused, match=f"as {code}"):
            await fetched(peer)
        assert asyncio.get_running_loop().time() < PIECE_S

    in_virtual_time(main())


def test_a_busy_peer_is_asked_again() -> None:
    async def main() -> None:
        arena, _ = await fetched(Peer(refusals=["busy", "busy", "late"]))
        assert arena.view(DIGEST) == PAYLOAD

    in_virtual_time(main())


def test_other_bytes_than_announced_are_the_peers_fault() -> None:
    async def main() -> None:
        peer = Peer(payload=bytes(len(PAYLOAD)))
        with pytest.raises(RemoteProtocolError, match="a payload with hash"):
            await fetched(peer)
        assert len(peer.asked) == 3  # and are not asked for again

    in_virtual_time(main())


def test_cancelling_it_leaves_no_memory_behind() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await fetched(Peer())

    in_virtual_time(main())


def test_a_bug_is_not_taken_for_a_peers_failure() -> None:
    async def main() -> None:
        async def ask(offset: int, into: memoryview, deadline_s: float) -> None:
            raise ZeroDivisionError if offset else PeerUnavailableAtOnce(BOB, "x")

        view = memoryview(bytearray(len(PAYLOAD)))
        with pytest.raises(ExceptionGroup) as found:
            await pieces.fetch_pieces(BOB, view, ask, deadline_s=9.0, is_relayed=lambda _: False)
        assert found.group_contains(ZeroDivisionError)

    in_virtual_time(main())


class PeerUnavailableAtOnce(PeerError):
    """One that is not tried again."""


def test_a_piece_is_no_more_than_a_call_may_bring() -> None:
    assert max(DIRECT.piece_bytes, RELAYED.piece_bytes) <= MAX_PIECE_BYTES
    assert DIRECT.in_flight * 2 <= rpc.FETCH.per_peer  # two payloads at once of one peer
    assert DIRECT.piece_bytes % KIB == 0
