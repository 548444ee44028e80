"""Calls between peers of a test keep the limits that calls between nodes keep."""

from __future__ import annotations

from typing import Any

import pytest
from wire import carried

from node.rpc import CallRefused, Refused
from protocol.envelope import Signer
from protocol.errors import LocalProtocolError, Malformed, RemoteProtocolError
from protocol.ids import Digest, PeerId, RunId
from protocol.limits import KIB
from protocol.rpc import CHECKPOINT, FETCH, RECORDS, CheckpointCall, FetchCall, RecordCall

ALICE, BOB = (Signer(bytes([n]) * 32).peer for n in (1, 2))
RUN = RunId(b"r" * 32)
ASKED = RecordCall(RUN, b"asked")


async def echoed(_: PeerId, call: RecordCall) -> RecordCall:
    return call


async def test_a_call_and_its_answer_go_through_the_codec() -> None:
    async def answered(caller: PeerId, call: RecordCall) -> RecordCall:
        assert (caller, call) == (ALICE, ASKED)
        assert call is not ASKED
        return RecordCall(RUN, b"answered")

    found = await carried(ALICE, BOB, RECORDS, ASKED, answered)
    assert found == RecordCall(RUN, b"answered")


async def test_a_message_that_is_too_long_is_found_here() -> None:
    long = RecordCall(RUN, bytes(RECORDS.max_answer_bytes - 70))
    assert await carried(ALICE, BOB, RECORDS, long, echoed) == long
    with pytest.raises(LocalProtocolError, match=r"a records/1 of"):
        await carried(ALICE, BOB, RECORDS, RecordCall(RUN, bytes(256 * KIB)), echoed)

    async def much(_: PeerId, call: FetchCall) -> bytes:
        return bytes(FETCH.max_answer_bytes + 1)

    call = FetchCall(RUN, Digest(bytes(32)), 0, 7)
    with pytest.raises(LocalProtocolError, match="an answer to fetch/1 of"):
        await carried(ALICE, BOB, FETCH, call, much)


@pytest.mark.parametrize("size", [6, 8])
async def test_an_answer_of_another_length_than_asked_for_is_the_others_fault(size: int) -> None:
    async def sent(_: PeerId, call: FetchCall) -> bytes:
        return bytes(size)

    blamed: list[PeerId] = []
    call = FetchCall(RUN, Digest(bytes(32)), 0, 7)
    with pytest.raises(RemoteProtocolError, match="an answer of"):
        await carried(
            *(ALICE, BOB, FETCH, call, sent),
            into=memoryview(bytearray(7)),
            blame=lambda peer, _: blamed.append(peer),
        )
    assert blamed == [BOB]


async def test_what_the_handler_raises_is_a_refusal_at_the_caller() -> None:
    blamed: list[PeerId] = []

    async def raising(_: PeerId, call: CheckpointCall) -> Any:
        raise failures.pop()

    failures = [Malformed("no records"), Refused("none", "no checkpoint yet")]
    for code in ("none", "malformed"):
        with pytest.raises(CallRefused) as refused:
            await carried(
                *(ALICE, BOB, CHECKPOINT, CheckpointCall(RUN), raising),
                blamed_there=lambda peer, _: blamed.append(peer),
            )
        assert refused.value.code == code
    assert blamed == [ALICE]
