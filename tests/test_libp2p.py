"""Real sockets on loopback: two nodes, and what one may do to the other.

Also here: what `node.p2p.library` relies on in this version of py-libp2p.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID

from node.bridge import Bridge
from node.p2p import library
from node.rpc import CallRefused, Refused, Rpc
from protocol import codec, frame, rpc
from protocol.envelope import Signer
from protocol.errors import ConfigError, PeerUnavailable, RemoteProtocolError
from protocol.frame import PART_BYTES, FrameKind, FrameReader, Refusal
from protocol.ids import Digest, PeerId, RunId, digest_of
from protocol.rpc import (
    BLOB,
    HELLO,
    RECORDS,
    BlobCall,
    FetchCall,
    Hello,
    Lane,
    RecordCall,
    Welcome,
)

pytestmark = pytest.mark.libp2p

ALICE, BOB = Signer(b"a" * 32), Signer(b"b" * 32)
RUN = RunId(b"r" * 32)
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
HELLO_CALL = Hello(RUN, b"n" * 16, b"")
WELCOME = Welcome(b"spec", b"s" * 64, b"p" * 64)
FETCH = dataclasses.replace(rpc.FETCH, max_answer_bytes=32 << 20, per_peer=2)
"""With answers that take a while."""
FETCH_CALL = FetchCall(RUN, Digest(b"d" * 32), 0, 1)
PAYLOAD = random.Random(7).randbytes(5_000_003)


class Node:
    """A bridge, its calls, and what it heard."""

    def __init__(self, bridge: Bridge, rpc: Rpc, blamed: list[tuple[PeerId, str]]) -> None:
        self.bridge = bridge
        self.rpc = rpc
        self.blamed = blamed

    async def hello(self, peer: PeerId, **options: Any) -> Welcome:
        return await self.rpc.call(peer, HELLO, HELLO_CALL, **options)


@asynccontextmanager
async def node(
    signer: Signer,
    listen: list[str] = LOOPBACK,
    on_peer: Callable[[PeerId, bool], None] | None = None,
) -> AsyncIterator[Node]:
    blamed: list[tuple[PeerId, str]] = []
    async with (
        Bridge(signer, listen=listen, on_peer=on_peer) as bridge,
        Rpc(bridge, on_blame=lambda *args: blamed.append(args)) as rpc,
    ):
        rpc.serve(HELLO, welcome)
        yield Node(bridge, rpc, blamed)


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Node, Node]]:
    """Alice, who knows where Bob is, and Bob."""
    async with node(ALICE) as alice, node(BOB) as bob:
        alice.bridge.add_addrs(BOB.peer, bob.bridge.addrs())
        yield alice, bob


async def welcome(peer: PeerId, request: Hello) -> Welcome:
    return WELCOME


async def fetch(peer: PeerId, request: FetchCall) -> bytes:
    return PAYLOAD


async def never(peer: PeerId, request: Any) -> Any:
    await asyncio.Event().wait()


def within(seconds: float) -> Any:
    return asyncio.timeout(seconds)


# --- the bridge ------------------------------------------------------------------------------


async def test_the_peer_id_of_libp2p_is_the_signers() -> None:
    async with two() as (alice, bob):
        (addr,) = bob.bridge.addrs()
        assert addr.startswith("/ip4/127.0.0.1/tcp/")
        assert addr.endswith(f"/p2p/{BOB.peer}")
        assert await alice.bridge.connect(addr, 5) == BOB.peer
        assert alice.bridge.connected() == (BOB.peer,)


async def test_it_ends_and_leaves_no_thread_and_no_socket() -> None:
    before = threading.active_count()
    async with two() as (alice, bob):
        await alice.hello(BOB.peer)
        port = int(bob.bridge.addrs()[0].split("/")[4])
    assert threading.active_count() == before
    assert not library.port_is_taken("127.0.0.1", port)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_a_call_cancels_it_on_the_other_side() -> None:
    begun, ended = asyncio.Event(), threading.Event()

    async with two() as (alice, _):

        async def forever() -> None:
            alice.bridge._to_loop(begun.set)
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

        call = asyncio.ensure_future(alice.bridge.call(forever))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert ended.is_set()


async def test_connecting_to_nobody_says_why() -> None:
    async with node(ALICE) as alice:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        addr = f"/ip4/127.0.0.1/tcp/{port}/p2p/{BOB.peer}"
        with pytest.raises(PeerUnavailable, match=f"cannot be dialled: {addr}: .*refused"):
            await alice.bridge.connect(addr, 5)
        with pytest.raises(PeerUnavailable, match="is this node itself"):
            await alice.bridge.connect(alice.bridge.addrs()[0], 5)
        with pytest.raises(ValueError, match="no address that ends in /p2p/ID"):
            await alice.bridge.connect("/ip4/127.0.0.1/tcp/1", 5)


async def test_a_peer_that_accepts_and_says_nothing_is_given_up() -> None:
    async with node(ALICE) as alice:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            addr = f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}/p2p/{BOB.peer}"
            with pytest.raises(PeerUnavailable, match=r"no connection within 0\.2 s"):
                await alice.bridge.connect(addr, 0.2)


async def test_another_peer_at_the_address_is_not_taken_for_the_one_meant() -> None:
    async with two() as (alice, bob):
        carol = Signer(b"c" * 32).peer
        addr = bob.bridge.addrs()[0].replace(BOB.peer, carol)
        with pytest.raises(PeerUnavailable, match="cannot be dialled"):
            await alice.bridge.connect(addr, 5)
        assert alice.bridge.connected() == ()


async def test_a_port_in_use_is_the_operators_fault() -> None:
    async with node(ALICE) as alice:
        port = alice.bridge.addrs()[0].split("/")[4]
        with pytest.raises(ConfigError, match=f"found port {port} of 127.0.0.1 in use"):
            await Bridge(BOB, listen=[f"/ip4/127.0.0.1/tcp/{port}"]).__aenter__()


@pytest.mark.parametrize("listen", ["/ip4/203.0.113.7/tcp/4001", "nonsense", "/ip4/1.2.3.4"])
async def test_an_address_that_is_not_ours_is_the_operators_fault(listen: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        await Bridge(BOB, listen=[listen]).__aenter__()


async def test_a_wildcard_is_advertised_as_addresses_that_others_can_dial() -> None:
    async with node(ALICE, ["/ip4/0.0.0.0/tcp/0"]) as alice:
        assert not [addr for addr in alice.bridge.addrs() if "/0.0.0.0/" in addr]


async def test_coming_and_going_is_told_once() -> None:
    told: asyncio.Queue[tuple[PeerId, bool]] = asyncio.Queue()
    async with (
        node(ALICE, on_peer=lambda peer, is_here: told.put_nowait((peer, is_here))) as alice,
        node(BOB) as bob,
    ):
        await alice.bridge.connect(bob.bridge.addrs()[0], 5)
        assert await told.get() == (BOB.peer, True)
        await alice.bridge.disconnect(BOB.peer)
        assert await told.get() == (BOB.peer, False)
        assert alice.bridge.connected() == ()
    assert told.empty()


# --- calls -----------------------------------------------------------------------------------


async def test_a_call_dials_and_brings_the_answer() -> None:
    async with two() as (alice, bob):
        assert await alice.hello(BOB.peer) == WELCOME
        assert await bob.hello(ALICE.peer) == WELCOME  # over the connection that is there


async def test_bulk_goes_both_ways_at_once_and_is_whole() -> None:
    async with two() as (alice, bob):
        alice.rpc.serve(FETCH, fetch)
        bob.rpc.serve(FETCH, fetch)
        await alice.hello(BOB.peer)
        into = bytearray(len(PAYLOAD))
        with_memory, assembled = await asyncio.gather(
            alice.rpc.call(BOB.peer, FETCH, FETCH_CALL, into=memoryview(into)),
            bob.rpc.call(ALICE.peer, FETCH, FETCH_CALL),
        )
        assert with_memory == b""
        assert digest_of(into) == digest_of(assembled) == digest_of(PAYLOAD)


async def test_a_request_of_many_parts_is_whole() -> None:
    async def sum_up(peer: PeerId, request: RecordCall) -> RecordCall:
        return RecordCall(RUN, hashlib.sha256(request.body).digest() + request.body)

    async with two() as (alice, bob):
        bob.rpc.serve(RECORDS, sum_up)
        body = PAYLOAD[:200_000]
        answer = await alice.rpc.call(BOB.peer, RECORDS, RecordCall(RUN, body))
        assert answer == RecordCall(RUN, hashlib.sha256(body).digest() + body)


@pytest.mark.parametrize("wrong_by", [-1, 1])
async def test_an_answer_of_another_length_than_expected_is_the_peers_fault(wrong_by: int) -> None:
    async with two() as (alice, bob):
        bob.rpc.serve(FETCH, fetch)
        into = bytearray(len(PAYLOAD) + wrong_by)
        with pytest.raises(RemoteProtocolError, match="an answer of"):
            await alice.rpc.call(BOB.peer, FETCH, FETCH_CALL, into=memoryview(into))
        assert [peer for peer, _ in alice.blamed] == [BOB.peer]
        assert await alice.rpc.call(BOB.peer, FETCH, FETCH_CALL) == PAYLOAD


async def test_an_unknown_method_or_version_is_refused_politely() -> None:
    async with two() as (alice, bob):
        with pytest.raises(CallRefused, match="as unknown: no method fetch/1 here"):
            await alice.rpc.call(BOB.peer, FETCH, FETCH_CALL)
        payload = b"\x07hello/9" + (1000).to_bytes(4, "big") + bytes(4)
        (answer,) = await raw_call(alice, Lane.CONTROL, payload, 1)
        assert frame.parse_refusal(answer.payload) == Refusal(
            "unknown", "no method hello/9 here, but hello/1"
        )
        assert await alice.hello(BOB.peer) == WELCOME
        assert bob.blamed == []


async def test_one_call_too_many_is_refused_as_busy() -> None:
    async with two() as (alice, bob):
        bob.rpc.serve(HELLO, never)
        waiting = [asyncio.ensure_future(alice.hello(BOB.peer)) for _ in range(HELLO.per_peer + 1)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        with pytest.raises(CallRefused, match="as busy: hello/1 is served 4 times"):
            refused.result()
        await end(*waiting)


async def test_cancelling_a_call_frees_the_peer() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def forever(peer: PeerId, request: Hello) -> Welcome:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return WELCOME

    async with two() as (alice, bob):
        bob.rpc.serve(HELLO, forever)
        call = asyncio.ensure_future(alice.hello(BOB.peer))
        await begun.wait()
        await end(call)
        async with within(2):
            await ended.wait()
        bob.rpc.serve(HELLO, welcome)
        assert await alice.hello(BOB.peer) == WELCOME


async def test_cancelling_a_transfer_leaves_the_memory_alone_and_the_stream_whole() -> None:
    async with two() as (alice, bob):
        bob.rpc.serve(FETCH, fetch)
        into = bytearray(len(PAYLOAD))
        call = asyncio.ensure_future(
            alice.rpc.call(BOB.peer, FETCH, FETCH_CALL, into=memoryview(into))
        )
        async with within(2):
            while not into[0]:
                await alice.hello(BOB.peer)
        await end(call)
        seen = bytes(into)
        assert await alice.rpc.call(BOB.peer, FETCH, FETCH_CALL) == PAYLOAD
        assert bytes(into) == seen


async def test_a_deadline_is_kept_and_frees_the_peer() -> None:
    async with two() as (alice, bob):
        bob.rpc.serve(FETCH, never)
        await alice.hello(BOB.peer)
        with pytest.raises(PeerUnavailable, match=r"within 0\.05 s"):
            await alice.rpc.call(BOB.peer, FETCH, FETCH_CALL, deadline_s=0.05)
        bob.rpc.serve(FETCH, fetch)
        pair = [alice.rpc.call(BOB.peer, FETCH, FETCH_CALL) for _ in range(FETCH.per_peer)]
        assert await asyncio.gather(*pair) == [PAYLOAD, PAYLOAD]


async def test_a_small_call_does_not_wait_for_a_large_one() -> None:
    async with two() as (alice, bob):
        large = bytes(FETCH.max_answer_bytes)

        async def fetch_large(peer: PeerId, request: FetchCall) -> bytes:
            return large

        bob.rpc.serve(FETCH, fetch_large)
        await alice.hello(BOB.peer)
        transfer = asyncio.ensure_future(alice.rpc.call(BOB.peer, FETCH, FETCH_CALL))
        for _ in range(3):
            await alice.hello(BOB.peer)
        assert not transfer.done()
        assert await transfer == large


async def test_two_answers_on_one_stream_take_turns() -> None:
    async with two() as (alice, bob):
        bob.rpc.serve(FETCH, fetch)
        payload = b"\x07fetch/1" + (60_000).to_bytes(4, "big")
        body = codec.encode(FETCH_CALL)
        payload += len(body).to_bytes(4, "big") + body
        items = await raw_call(alice, Lane.BULK, payload, 60, requests=2)
        calls = [item.call for item in items[-40:]]
        assert calls in ([0, 1] * 20, [1, 0] * 20)


async def test_a_peer_that_vanishes_fails_its_calls_at_once() -> None:
    async with node(ALICE) as alice:
        async with AsyncExitStack() as stack:
            bob = await stack.enter_async_context(node(BOB))
            begun = asyncio.Event()

            async def forever(peer: PeerId, request: Hello) -> Welcome:
                begun.set()
                await never(peer, request)
                return WELCOME

            bob.rpc.serve(HELLO, forever)
            alice.bridge.add_addrs(BOB.peer, bob.bridge.addrs())
            call = asyncio.ensure_future(alice.hello(BOB.peer))
            await begun.wait()
        with pytest.raises(PeerUnavailable):
            await call


async def test_calls_go_on_after_the_peer_restarted_with_its_key_and_port() -> None:
    async with node(ALICE) as alice:
        async with node(BOB) as bob:
            addrs = bob.bridge.addrs()
            alice.bridge.add_addrs(BOB.peer, addrs)
            assert await alice.hello(BOB.peer) == WELCOME
        with pytest.raises(PeerUnavailable):
            await alice.hello(BOB.peer)
        port = addrs[0].split("/")[4]
        async with node(BOB, [f"/ip4/127.0.0.1/tcp/{port}"]):
            assert await alice.hello(BOB.peer) == WELCOME


# --- a peer that breaks the protocol ---------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((1 << 30).to_bytes(4, "big") + b"\x01" + bytes(60), "a frame of 1073741824 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of"),
        (frame.refusal_frame(0, "busy", "x"), "ERROR where requests are expected"),
        (frame.cancel_frame(3), "a CANCEL of call 3, next is 0"),
        (b"".join(frame.answer_frames(0, b"x")), "ANSWER where requests"),
        (2 * next(frame.request_frames(5, "nope/1", 9, b"")), "call 5, expected 6 or later"),
        (next(frame.request_frames(0, "hello/1", 9, bytes(9000))), "a hello/1 of 9000 bytes"),
    ],
)
async def test_nonsense_on_a_stream_is_blamed_and_costs_only_that_stream(
    data: bytes, reason: str
) -> None:
    async with two() as (alice, bob):
        await alice.bridge.connect(BOB.peer, 5)
        await alice.bridge.call(write_until_reset, alice.bridge, Lane.CONTROL, data)
        async with within(2):
            while not bob.blamed:
                await bob.hello(ALICE.peer)
        ((peer, found),) = bob.blamed
        assert (peer, found.startswith(reason)) == (ALICE.peer, True)
        assert await alice.hello(BOB.peer) == WELCOME


@pytest.mark.parametrize(
    "data",
    [
        (1 << 31).to_bytes(4, "big") + b"\x03" + bytes(60),
        frame.cancel_frame(0),
        b"".join(frame.answer_frames(9, b"x")),
        frame.HEADER_BYTES.to_bytes(4, "big") + b"\x04" + bytes(8),
    ],
)
async def test_nonsense_for_an_answer_is_blamed(data: bytes) -> None:
    async def nonsense(stream: Any) -> None:
        await stream.read(100)
        await stream.write(data)
        await trio.sleep_forever()

    async with two() as (alice, bob):
        bob.bridge._host._host.set_stream_handler(TProtocol(Lane.CONTROL.value), nonsense)
        with pytest.raises(PeerUnavailable):
            await alice.hello(BOB.peer)
        assert [peer for peer, _ in alice.blamed] == [BOB.peer]


async def test_who_never_reads_is_cut_off_and_disturbs_nobody() -> None:
    request = next(frame.request_frames(0, "nope/1", 1000, b""))

    async def flood(bridge: Bridge) -> int:
        stream = await open_stream(bridge, Lane.CONTROL)
        sent = 0
        try:
            with trio.move_on_after(10):
                while True:
                    batch = [with_call(request, sent + n) for n in range(100)]
                    await stream.write(b"".join(batch))
                    sent += len(batch)
        except Exception:  # noqa: BLE001  # however it ends
            return sent
        return -1

    async with two() as (alice, bob), node(Signer(b"c" * 32)) as carol:
        carol.bridge.add_addrs(BOB.peer, bob.bridge.addrs())
        await alice.bridge.connect(BOB.peer, 5)
        flooding = asyncio.ensure_future(alice.bridge.call(flood, alice.bridge))
        assert await carol.hello(BOB.peer) == WELCOME
        assert await flooding > 0
        assert [peer for peer, _ in bob.blamed] in ([], [ALICE.peer])
        assert await carol.hello(BOB.peer) == WELCOME


async def test_a_caller_that_stays_beyond_its_deadline_loses_its_place() -> None:
    async with two() as (alice, bob):
        bob.rpc.serve(FETCH, fetch)
        payload = b"\x07fetch/1" + (1).to_bytes(4, "big") + (100).to_bytes(4, "big")
        (item,) = await raw_call(alice, Lane.BULK, payload, 1)  # a body that never comes
        assert frame.parse_refusal(item.payload).code == "late"


async def test_a_peer_has_only_so_many_streams() -> None:
    async with two() as (alice, bob), node(Signer(b"c" * 32)) as carol:
        await alice.bridge.connect(BOB.peer, 5)
        streams = [await alice.bridge.call(hold_stream, alice.bridge) for _ in range(6)]
        assert streams == [True] * 4 + [False] * 2
        carol.bridge.add_addrs(BOB.peer, bob.bridge.addrs())
        assert await carol.hello(BOB.peer) == WELCOME


# --- bytes -----------------------------------------------------------------------------------


async def test_bytes_by_kind_are_the_closed_form_on_both_sides() -> None:
    chunk = bytes(PART_BYTES * 2 + 5)

    async def blob(peer: PeerId, request: BlobCall) -> bytes:
        if request.offset:
            raise Refused("gone", "no such blob")
        return chunk

    async with two() as (alice, bob):
        bob.rpc.serve(BLOB, blob)
        call = BlobCall(RUN, Digest(b"d" * 32), 0, len(chunk))
        await alice.rpc.call(BOB.peer, BLOB, call)
        await alice.hello(BOB.peer)
    asked, served = alice.bridge.counters(), bob.bridge.counters()
    requests = {
        "blob": frame.request_bytes("blob/1", len(codec.encode(call))),
        "hello": frame.request_bytes("hello/1", len(codec.encode(HELLO_CALL))),
    }
    answers = {
        "blob": frame.answer_bytes(len(chunk)),
        "hello": frame.answer_bytes(len(codec.encode(WELCOME))),
    }
    assert {kind: asked.up[kind] for kind in requests} == requests
    assert {kind: served.down[kind] for kind in requests} == requests
    assert {kind: asked.down[kind] for kind in answers} == answers
    assert {kind: served.up[kind] for kind in answers} == answers
    for traffic in (asked, served):
        assert sum(traffic.up.values()) == traffic.raw_up
        assert sum(traffic.down.values()) == traffic.raw_down
        assert traffic.up["transport"] > 0 < traffic.down["transport"]


async def test_raw_bytes_are_what_the_sockets_carried() -> None:
    """Pins `CountedTcp`: both ends of the only connection agree once it is closed."""
    async with node(ALICE) as alice:
        async with node(BOB) as bob:
            await alice.bridge.connect(bob.bridge.addrs()[0], 5)
            await alice.hello(BOB.peer)
            bob_bridge = bob.bridge
        served, asked = bob_bridge.counters(), alice.bridge.counters()
        assert served.raw_up >= asked.raw_down > 0
        assert asked.raw_up >= served.raw_down > 0


# --- the DHT ---------------------------------------------------------------------------------


async def have_peers(bridge: Bridge, number: int) -> None:
    """Wait until so many have identified, so that it can name them to others."""

    async def size() -> int:
        return int(bridge._host.dht._dht.routing_table.size())

    async with within(10):
        while await bridge.call(size) < number:
            pass


async def is_told_of(bridge: Bridge, key: bytes, number: int) -> None:
    """Wait until so many have said that they provide it: who says so does not wait for us."""

    async def told() -> int:
        return len(bridge._host.dht._dht.provider_store.providers.get(key, ()))

    async with within(10):
        while await bridge.call(told) < number:
            pass


async def test_providers_are_found_once_each_and_a_later_one_too() -> None:
    signers = [Signer(bytes([n]) * 32) for n in range(10, 14)]
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(node(signer)) for signer in signers]
        first, second, third, fourth = nodes
        for other in nodes[1:]:
            await other.bridge.connect(first.bridge.addrs()[0], 5)
        await have_peers(first.bridge, 3)
        key = b"k" * 32
        assert await fourth.bridge.find_providers(key) == []
        assert await second.bridge.provide(key)
        found = await fourth.bridge.find_providers(key)
        assert found == [(signers[1].peer, list(second.bridge.addrs()))]
        assert await third.bridge.provide(key)
        # In a large swarm the third would not have told the fourth; here it has.
        await is_told_of(fourth.bridge, key, 2)
        kept = fourth.bridge._host.dht._dht.provider_store.providers[key]
        for name in [name for name in kept if kept[name].peer_id.to_base58() == signers[2].peer]:
            del kept[name]
        for asker, expected in ((fourth, {1, 2}), (first, {1, 2}), (second, {2})):
            found = await asker.bridge.find_providers(key)
            assert sorted(peer for peer, _ in found) == sorted(signers[n].peer for n in expected)


# --- what is relied on in the library --------------------------------------------------------


async def test_the_library_still_has_what_library_py_reaches_for() -> None:
    async with node(ALICE) as alice:
        dht = alice.bridge._host.dht._dht
        assert isinstance(dht, KadDHT)
        assert dht.provider_store.providers == {}
        network = alice.bridge._host._network
        assert network.retry_config.max_retries == 0
        assert list(network.upgrader.security_multistream.transports) == ["/noise"]


async def test_cancelled_writes_leave_the_connection_whole() -> None:
    """Pins `CountedStream.write`: half a Noise message would end the connection."""

    async def sink(stream: Any) -> None:
        with contextlib.suppress(BaseLibp2pError):
            while await stream.read(1 << 16):
                pass

    async def write_and_cancel(bridge: Bridge) -> None:
        stream = await open_stream(bridge, Lane.BULK)
        for _ in range(30):
            with trio.move_on_after(0.003):
                await stream.write(bytes(8 << 20))

    told: list[bool] = []
    async with (
        node(ALICE, on_peer=lambda _, is_here: told.append(is_here)) as alice,
        node(BOB) as bob,
    ):
        bob.bridge._host._host.set_stream_handler(TProtocol(Lane.BULK.value), sink)
        await alice.bridge.connect(bob.bridge.addrs()[0], 5)
        await alice.bridge.call(write_and_cancel, alice.bridge)
        assert await alice.hello(BOB.peer) == WELCOME
        assert told == [True]


async def test_more_unread_bytes_than_the_bound_close_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pins `BoundedYamux`: the library alone would keep them all."""
    monkeypatch.setattr(library, "MAX_UNREAD_BYTES", 100_000)

    async def deaf(stream: Any) -> None:
        await trio.sleep_forever()

    async def push(bridge: Bridge) -> str:
        stream = await open_stream(bridge, Lane.BULK)
        try:
            while True:
                await stream.write(bytes(10_000))
        except Exception as error:  # noqa: BLE001  # whichever the library raises
            return type(error).__name__

    told: asyncio.Queue[bool] = asyncio.Queue()
    async with (
        node(ALICE, on_peer=lambda _, is_here: told.put_nowait(is_here)) as alice,
        node(BOB) as bob,
    ):
        await alice.bridge.connect(bob.bridge.addrs()[0], 5)
        assert await told.get()
        bob.bridge._host._host.set_stream_handler(TProtocol(Lane.BULK.value), deaf)
        async with within(4):  # a full window alone would be waited for 5 s
            await alice.bridge.call(push, alice.bridge)
            assert not await told.get()
            assert [peer for peer, _ in bob.blamed] == [ALICE.peer]


async def test_more_streams_than_the_bound_close_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pins `BoundedYamux.accept_stream`: the library alone has one bound for all peers."""
    monkeypatch.setattr(library, "MAX_STREAMS", 20)

    async def greedy(bridge: Bridge) -> None:
        with contextlib.suppress(BaseLibp2pError):
            for _ in range(10_000):
                connection = bridge._host._network.get_connections(ID.from_base58(BOB.peer))[0]
                await connection.new_stream()

    told: asyncio.Queue[bool] = asyncio.Queue()
    async with (
        node(ALICE, on_peer=lambda _, is_here: told.put_nowait(is_here)) as alice,
        node(BOB) as bob,
    ):
        await alice.bridge.connect(bob.bridge.addrs()[0], 5)
        assert await told.get()
        await alice.bridge.call(greedy, alice.bridge)
        assert not await told.get()
        assert bob.blamed == [(ALICE.peer, "opened over 20 streams")]


async def test_both_may_dial_at_once() -> None:
    async with two() as (alice, bob):
        bob.bridge.add_addrs(ALICE.peer, alice.bridge.addrs())
        answers = await asyncio.gather(alice.hello(BOB.peer), bob.hello(ALICE.peer))
        assert list(answers) == [WELCOME, WELCOME]


async def test_what_ends_the_network_is_raised_where_it_is_used() -> None:
    async def crash() -> None:
        raise ZeroDivisionError

    async def use() -> None:
        async with Bridge(ALICE, listen=LOOPBACK) as bridge:
            bridge.post(bridge._host._nursery.start_soon, crash)
            await bridge.wait_ended()

    with pytest.raises(ZeroDivisionError):
        await use()


# --- helpers: a peer that speaks frames by hand ----------------------------------------------


async def open_stream(bridge: Bridge, lane: Lane) -> Any:
    return await bridge._host._host.new_stream(ID.from_base58(BOB.peer), [TProtocol(lane.value)])


async def hold_stream(bridge: Bridge) -> bool:
    """Whether a further stream to Bob is answered on; it stays open."""
    try:
        stream = await open_stream(bridge, Lane.CONTROL)
        await stream.write(next(frame.request_frames(0, "nope/1", 1000, b"")))
        return bool(await stream.read(100))
    except BaseLibp2pError:
        return False


async def write_until_reset(bridge: Bridge, lane: Lane, data: bytes) -> None:
    """Write it, and read until Bob resets the stream."""
    stream = await open_stream(bridge, lane)
    with contextlib.suppress(StreamError), trio.fail_after(5):
        await stream.write(data)
        while True:
            await stream.read(1000)


async def raw_call(
    alice: Node, lane: Lane, payload: bytes, count: int, *, requests: int = 1
) -> list[frame.Frame]:
    """The first `count` frames that come for `requests` requests with this payload."""

    async def talk() -> list[frame.Frame]:
        stream = await open_stream(alice.bridge, lane)
        for call in range(requests):
            await stream.write(frame._frame(FrameKind.REQUEST, call, payload))
        reader = FrameReader()
        items: list[frame.Frame] = []
        while len(items) < count:
            reader.feed(await stream.read(1 << 16))
            while (item := reader.next()) is not None:
                items.append(item)
        await stream.reset()
        return items[:count]

    await alice.bridge.connect(BOB.peer, 5)
    return await alice.bridge.call(talk)


def with_call(data: bytes, call: int) -> bytes:
    return data[:5] + call.to_bytes(4, "big") + data[9:]


async def end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
