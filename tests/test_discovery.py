"""Discovery under virtual time: minutes of dialling and looking up pass in no time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from samples import CREATOR, OTHER, PRESENCE, spec
from virtual_time import in_virtual_time
from wire import carried

from node.bootstrap import KEPT
from node.discovery import ENOUGH_PEERS, FEW, Discovery, provider_key
from node.greeting import MAX_GREETINGS, MAX_REMEMBERED
from node.peer_cache import PeerCache
from node.rpc import Refused
from node.telemetry import Waits
from protocol import hello, rpc
from protocol.envelope import Signer
from protocol.errors import ConfigError, PeerUnavailable
from protocol.ids import PeerId
from protocol.messages import Presence
from protocol.peer_record import PeerRecord, open_peer_record, record_key, sign_peer_record
from protocol.spec import sign_spec

ME, MEMBER, STRANGER, GATE = OTHER, CREATOR, Signer(b"\x03" * 32), Signer(b"\x04" * 32)
SECRET = b"s" * 16

Answers = Callable[[PeerId, rpc.Hello], rpc.Welcome]


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer caches of these worlds go with the directory of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def addr_of(signer: Signer) -> str:
    return f"/ip4/127.0.0.1/tcp/4001/p2p/{signer.peer}"


class World:
    """Who listens, who answers hello and how, what the DHT says; and what this node did."""

    def __init__(self, secret: bytes = b"") -> None:
        """Args: secret: of a private run."""
        self.spec = spec(join_secret=hello.join_secret(secret))
        self.secret = secret
        self.listening: set[PeerId] = set()
        self.answers: dict[PeerId, Answers] = {}
        self.providers: list[tuple[PeerId, list[str]]] = []
        self.dht_hangs = False
        self.view: tuple[Presence, ...] = ()
        self.dials: list[float] = []
        self.hellos: list[tuple[PeerId, float]] = []
        self.lookups: list[float] = []
        self.provided: list[float] = []
        self.announced: tuple[str, ...] = (addr_of(ME),)
        self.put: list[PeerRecord] = []
        self.records: dict[str, bytes] = {}
        self.record_lookups: list[tuple[str, float]] = []
        self.left: list[PeerId] = []
        self.cache = PeerCache(Path(tempfile.mkdtemp()) / "peers")
        self.addrs: dict[PeerId, Sequence[str]] = {}
        self.found: list[PeerId] = []
        self.blamed: list[PeerId] = []
        self._connected: set[PeerId] = set()

    def add_member(self, member: Signer) -> None:
        """`member` listens and proves itself to whoever proves to know the secret."""

        def answer(caller: PeerId, asked: rpc.Hello) -> rpc.Welcome:
            if not hello.is_admitted(asked, self.secret, caller, member.peer):
                raise Refused("not-admitted", "refused")
            return hello.welcome(sign_spec(self.spec, CREATOR), asked, self.secret, caller, member)

        self.listening.add(member.peer)
        self.answers[member.peer] = answer

    def discovery(self, *addrs: str, secret: bytes = b"", serving: bool = True) -> Discovery:
        made = Discovery(
            run=self.spec.run,
            signer=ME,
            secret=secret,
            addrs=addrs,
            announced=lambda: self.announced,
            lan=False,
            cache=self.cache,
            bridge=self,
            rpc=self,
            live=lambda: self.view,
            found=self._find,
            blame=lambda peer, _: self.blamed.append(peer),
            waits=Waits(now),
            clock=now,
            unix_s=unix_now,
            rng=random.Random(1),
        )
        if serving:
            made.announce()
        return made

    async def _find(self, peer: PeerId) -> None:
        self.found.append(peer)
        if peer not in {seen.peer for seen in self.view}:
            self.view += (presence(peer),)

    # --- the bridge and the calls

    def add_addrs(self, peer: PeerId, addrs: Sequence[str]) -> None:
        self.addrs[peer] = addrs

    async def connect(self, target: str, deadline_s: float) -> PeerId:
        self.dials.append(now())
        peer = PeerId(target.rpartition("/")[2])
        if peer not in self.listening:
            raise PeerUnavailable(peer, "connection refused")
        self._connected.add(peer)
        return peer

    def connected(self) -> tuple[PeerId, ...]:
        self._connected &= self.listening
        return tuple(sorted(self._connected))

    async def provide(self, key: bytes) -> bool:
        assert key == provider_key(self.spec.run)
        self.provided.append(now())
        return bool(self.connected())

    async def find_providers(self, key: bytes) -> list[tuple[PeerId, list[str]]]:
        self.lookups.append(now())
        if self.dht_hangs:
            await asyncio.Event().wait()
        return self.providers if self.connected() else []

    async def put_record(self, key: str, value: bytes) -> bool:
        self.put.append(open_peer_record(key, value, unix_now()))
        return bool(self.connected())

    async def find_record(self, key: str) -> bytes | None:
        self.record_lookups.append((key, now()))
        return self.records.get(key)

    async def disconnect(self, peer: PeerId) -> None:
        self.left.append(peer)
        self._connected.discard(peer)

    async def call(self, peer: PeerId, method: Any, request: Any, **terms: Any) -> Any:
        assert method is rpc.HELLO
        self.hellos.append((peer, now()))
        if peer not in self.answers or peer not in self.listening:
            raise PeerUnavailable(peer, "refused")

        async def answered(caller: PeerId, asked: rpc.Hello) -> rpc.Welcome:
            return self.answers[peer](caller, asked)

        return await carried(ME.peer, peer, method, request, answered, **terms)


def presence(peer: PeerId, boot: bytes = b"boot 1..") -> Presence:
    fields = {name: getattr(PRESENCE, name) for name in Presence.__slots__}
    return Presence(**(fields | {"peer": peer, "boot": boot}))


def now() -> float:
    return asyncio.get_running_loop().time()


def unix_now() -> float:
    return 1_800_000_000 + now()


def record_of(member: Signer, *addrs: str, seq: int = 1, left_s: int = 600) -> dict[str, bytes]:
    """What the DHT keeps when `member` says that it is at `addrs`."""
    run = spec().run
    until = int(unix_now()) + left_s
    record = PeerRecord(peer=member.peer, run=run, addrs=addrs, seq=seq, expires_unix_s=until)
    return {record_key(member.peer, run): sign_peer_record(record, member)}


async def during(seconds: float, discovery: Discovery) -> None:
    """Let it search for so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await discovery.run()


def test_a_ticket_alone_leads_to_a_member_and_the_spec() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        discovery = world.discovery(addr_of(MEMBER))
        await during(2, discovery)
        assert (await discovery.spec()).open(spec().run) == spec()
        assert world.found == [MEMBER.peer]
        assert discovery.is_greeted(MEMBER.peer)

    in_virtual_time(scenario())


def test_a_member_found_before_this_node_serves_is_handed_over_once_it_does() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        discovery = world.discovery(addr_of(MEMBER), serving=False)
        searching = asyncio.create_task(discovery.run())
        await discovery.spec()
        await asyncio.sleep(1)
        assert world.found == []
        discovery.announce()
        await asyncio.sleep(1)
        assert world.found == [MEMBER.peer]
        searching.cancel()

    in_virtual_time(scenario())


def test_a_bootstrap_that_is_no_member_leads_to_the_members_in_the_dht() -> None:
    async def scenario() -> None:
        world = World()
        world.listening.add(GATE.peer)
        world.add_member(MEMBER)
        world.providers = [(ME.peer, []), (MEMBER.peer, [addr_of(MEMBER)])]
        await during(3, world.discovery(addr_of(GATE)))
        assert world.found == [MEMBER.peer]
        assert world.addrs == {MEMBER.peer: (addr_of(MEMBER),)}
        assert world.blamed == []

    in_virtual_time(scenario())


def test_a_node_started_before_its_bootstrap_says_so_and_keeps_trying(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        world = World()
        searching = asyncio.create_task(world.discovery(addr_of(MEMBER)).run())
        await asyncio.sleep(600)
        assert 20 <= len(world.dials) <= 35
        world.add_member(MEMBER)
        await asyncio.sleep(31)
        assert world.found == [MEMBER.peer]
        searching.cancel()

    with caplog.at_level(logging.INFO):
        in_virtual_time(scenario())
    reasons = [text for text in caplog.messages if "bootstrap not reached" in text]
    assert len(reasons) == 1
    assert "connection refused" in reasons[0]
    waits = [text for text in caplog.messages if text.startswith("waiting: what=")]
    assert any(f"from={addr_of(MEMBER)} until_unix_s=" in text for text in waits)
    assert any('what="a member of the run" from="the DHT"' in text for text in waits)


def test_a_bootstrap_that_went_away_is_dialled_again_and_then_asked_and_told_at_once() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        discovery = world.discovery(addr_of(MEMBER))
        searching = asyncio.create_task(discovery.run())
        await asyncio.sleep(10)
        world.listening.clear()
        await asyncio.sleep(100)
        world.listening.add(MEMBER.peer)
        await asyncio.sleep(31)
        assert world.connected() == (MEMBER.peer,)
        back = world.dials[-1]
        assert (back in world.lookups, back in world.provided) == (True, True)
        searching.cancel()

    in_virtual_time(scenario())


def test_a_candidate_that_lies_is_blamed_once_and_left_alone_for_ten_minutes() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        world.add_member(GATE)
        world.listening.add(STRANGER.peer)
        # It passes on a member's answer to the same question: right, but for the signer.
        world.answers[STRANGER.peer] = world.answers[MEMBER.peer]
        world.providers = [(STRANGER.peer, []), (MEMBER.peer, [])]
        discovery = world.discovery(addr_of(GATE))
        await during(590, discovery)
        assert world.blamed == [STRANGER.peer]
        assert [peer for peer, _ in world.hellos].count(STRANGER.peer) == 1
        assert not discovery.is_greeted(STRANGER.peer)
        assert sorted(world.found) == sorted([GATE.peer, MEMBER.peer])

    in_virtual_time(scenario())


def test_a_candidate_that_is_away_is_asked_again_at_growing_intervals() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(GATE)
        world.providers = [(STRANGER.peer, [])]
        await during(600, world.discovery(addr_of(GATE)))
        times = [at for peer, at in world.hellos if peer == STRANGER.peer]
        assert 6 <= len(times) <= 14
        assert times[1] - times[0] < 15
        assert all(later - at >= 60 for at, later in itertools.pairwise(times[5:]))
        assert world.blamed == []

    in_virtual_time(scenario())


def test_what_is_remembered_of_bad_candidates_is_bounded() -> None:
    async def scenario() -> None:
        discovery = World().discovery()
        for number in range(MAX_REMEMBERED + 50):
            await discovery._greetings.greet(Signer(number.to_bytes(32, "big")).peer)
        assert len(discovery._greetings._avoided) == MAX_REMEMBERED

    in_virtual_time(scenario())


def test_the_own_record_is_put_after_the_announcement_and_refreshed() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        discovery = world.discovery(addr_of(MEMBER), serving=False)
        searching = asyncio.create_task(discovery.run())
        await asyncio.sleep(100)
        assert world.provided == []
        discovery.announce()
        await asyncio.sleep(1000)
        assert world.provided == [100, 400, 700, 1000]
        searching.cancel()

    in_virtual_time(scenario())


def test_a_record_that_nobody_took_is_put_again_soon() -> None:
    async def scenario() -> None:
        world = World()
        await during(120, world.discovery())
        assert 6 <= len(world.provided) <= 12

    in_virtual_time(scenario())


def test_lookups_are_rare_once_there_are_enough_peers() -> None:
    async def scenario() -> None:
        world = World()
        searching = asyncio.create_task(world.discovery().run())
        await asyncio.sleep(600)
        few = len(world.lookups)
        world.view = tuple(
            presence(Signer(bytes([n]) * 32).peer) for n in range(9, 9 + ENOUGH_PEERS)
        )
        await asyncio.sleep(600)
        assert 20 <= few <= 40
        assert 1 <= len(world.lookups) - few <= 4
        searching.cancel()

    in_virtual_time(scenario())


def test_peers_seen_in_the_view_are_greeted_and_again_after_their_restart() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        searching = asyncio.create_task(world.discovery().run())
        for boot, greetings in ((b"boot 1..", 1), (b"boot 1..", 1), (b"boot 2..", 2)):
            world.view = (presence(MEMBER.peer, boot),)
            await asyncio.sleep(5)
            assert world.found == [MEMBER.peer] * greetings
        searching.cancel()

    in_virtual_time(scenario())


def test_a_member_that_fell_out_of_the_view_is_greeted_again() -> None:
    """Or else two halves of a swarm that was cut in two would never meet."""

    async def scenario() -> None:
        world = World()
        world.listening.add(GATE.peer)
        world.add_member(MEMBER)
        world.providers = [(MEMBER.peer, [])]
        searching = asyncio.create_task(world.discovery(addr_of(GATE)).run())
        await asyncio.sleep(100)
        assert world.found == [MEMBER.peer]
        world.view = ()
        await asyncio.sleep(31)
        assert world.found == [MEMBER.peer, MEMBER.peer]
        searching.cancel()

    in_virtual_time(scenario())


def test_an_address_of_a_ticket_that_is_none_is_a_sentence_for_the_operator() -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match=r"address is '/ip4/a', expected .*; ask for"):
            World().discovery("/ip4/a")

    in_virtual_time(scenario())


def test_our_own_address_in_the_ticket_is_not_dialled() -> None:
    async def scenario() -> None:
        world = World()
        await during(60, world.discovery(addr_of(ME)))
        assert world.dials == []

    in_virtual_time(scenario())


@pytest.mark.parametrize(("secret", "found"), [(SECRET, [MEMBER.peer]), (b"w" * 16, [])])
def test_a_private_run_is_entered_with_its_secret_only(secret: bytes, found: list[PeerId]) -> None:
    async def scenario() -> None:
        world = World(SECRET)
        world.add_member(MEMBER)
        await during(3, world.discovery(addr_of(MEMBER), secret=secret))
        assert world.found == found
        assert world.blamed == []

    in_virtual_time(scenario())


def test_a_dht_that_hangs_stops_neither_dialling_nor_the_search(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        world.dht_hangs = True
        await during(100, world.discovery(addr_of(MEMBER)))
        assert world.found == [MEMBER.peer]
        assert len(world.lookups) >= 2

    with caplog.at_level(logging.WARNING):
        in_virtual_time(scenario())
    assert "the DHT does not answer: what=members in the DHT after_s=30" in caplog.messages


# --- where a candidate is --------------------------------------------------------------------

NEW, OLD = "/ip4/192.0.2.2/tcp/1", "/ip4/192.0.2.1/tcp/1"


def test_a_candidate_is_dialled_where_its_own_record_says() -> None:
    async def scenario() -> None:
        world = World()
        world.listening.add(GATE.peer)
        world.add_member(MEMBER)
        world.providers = [(MEMBER.peer, [f"{OLD}/p2p/{MEMBER.peer}"])]
        world.records = record_of(MEMBER, f"{NEW}/p2p/{MEMBER.peer}")
        await during(3, world.discovery(addr_of(GATE)))
        assert world.addrs == {MEMBER.peer: (f"{NEW}/p2p/{MEMBER.peer}",)}
        assert world.found == [MEMBER.peer]

    in_virtual_time(scenario())


@pytest.mark.parametrize("fault", ["expired", "signed by another", "of another peer"])
def test_a_record_that_does_not_count_is_not_dialled(fault: str) -> None:
    async def scenario() -> None:
        world = World()
        world.listening.add(GATE.peer)
        world.add_member(MEMBER)
        world.providers = [(MEMBER.peer, [f"{OLD}/p2p/{MEMBER.peer}"])]
        left_s = -1 if fault == "expired" else 600
        world.records = record_of(MEMBER, f"{NEW}/p2p/{MEMBER.peer}", left_s=left_s)
        ((key, value),) = world.records.items()
        if fault == "signed by another":
            world.records = {key: value[:-1] + bytes([value[-1] ^ 1])}
        elif fault == "of another peer":
            (other,) = record_of(STRANGER, f"{NEW}/p2p/{STRANGER.peer}").values()
            world.records = {key: other}
        await during(3, world.discovery(addr_of(GATE)))
        assert world.addrs == {MEMBER.peer: (f"{OLD}/p2p/{MEMBER.peer}",)}

    in_virtual_time(scenario())


def test_an_address_that_failed_is_not_dialled_again_because_another_record_names_it() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(GATE)
        addr, moved = f"{OLD}/p2p/{STRANGER.peer}", f"{NEW}/p2p/{STRANGER.peer}"
        world.cache.answered(STRANGER.peer, (addr,), 1)
        world.providers = [(STRANGER.peer, [addr])]
        world.records = record_of(STRANGER, addr)
        discovery = world.discovery(addr_of(GATE))
        searching = asyncio.create_task(discovery.run())
        await asyncio.sleep(4.9)
        assert [peer for peer, _ in world.hellos].count(STRANGER.peer) == 1
        discovery.suggest(STRANGER.peer, [addr])
        await asyncio.sleep(0)
        assert [peer for peer, _ in world.hellos].count(STRANGER.peer) == 1
        discovery.suggest(STRANGER.peer, [moved])
        await asyncio.sleep(0.05)
        assert [peer for peer, _ in world.hellos].count(STRANGER.peer) == 2
        searching.cancel()

    in_virtual_time(scenario())


def test_a_candidate_that_moved_is_looked_up_once_while_it_is_avoided() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(GATE)
        world.providers = [(STRANGER.peer, [f"{OLD}/p2p/{STRANGER.peer}"])]
        world.records = record_of(STRANGER, f"{NEW}/p2p/{STRANGER.peer}", left_s=3600)
        await during(600, world.discovery(addr_of(GATE)))
        asked = [at for peer, at in world.hellos if peer == STRANGER.peer]
        assert len(world.record_lookups) == len(asked) < 12

    in_virtual_time(scenario())


def test_a_candidate_that_could_not_be_reached_and_calls_us_is_greeted_at_once() -> None:
    async def scenario() -> None:
        world = World()
        world.providers = [(MEMBER.peer, [addr_of(MEMBER)])]
        world.listening.add(GATE.peer)
        discovery = world.discovery(addr_of(GATE))
        searching = asyncio.create_task(discovery.run())
        await asyncio.sleep(300)
        assert world.found == []
        world.add_member(MEMBER)
        world._connected.add(MEMBER.peer)
        world.view = (presence(MEMBER.peer),)
        await asyncio.sleep(1.1)
        assert world.found == [MEMBER.peer]
        searching.cancel()

    in_virtual_time(scenario())


def test_our_address_record_is_put_after_the_announcement_each_newer_than_the_last() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        discovery = world.discovery(addr_of(MEMBER), serving=False)
        searching = asyncio.create_task(discovery.run())
        await asyncio.sleep(100)
        assert world.put == []
        discovery.announce()
        await asyncio.sleep(10)
        world.announced = (f"{NEW}/p2p/{ME.peer}",)
        await asyncio.sleep(1.1)
        assert [record.addrs for record in world.put] == [(addr_of(ME),), world.announced]
        await asyncio.sleep(600)
        numbers = [record.seq for record in world.put]
        assert (len(numbers), sorted(set(numbers))) == (4, numbers)
        searching.cancel()

    in_virtual_time(scenario())


def test_with_enough_members_a_lookup_costs_two_greetings_and_few_members_cost_eight() -> None:
    async def scenario() -> None:
        for number, expected in ((2, MAX_GREETINGS), (ENOUGH_PEERS, FEW)):
            world = World()
            world.listening.add(GATE.peer)
            others = [Signer(bytes([n]) * 32) for n in range(60, 90)]
            world.providers = [(other.peer, [addr_of(other)]) for other in others]
            world.view = members_of([Signer(bytes([n]) * 32) for n in range(9, 9 + number)])
            await during(0.5, world.discovery(addr_of(GATE)))
            assert len(world.record_lookups) == expected  # the first lookup comes before the gate

    in_virtual_time(scenario())


# --- the cache and the LAN -------------------------------------------------------------------


def test_a_restart_finds_the_members_of_the_last_start_with_every_bootstrap_dead() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        world.cache.answered(MEMBER.peer, (addr_of(MEMBER),), 1)
        await during(3, world.discovery(addr_of(GATE)))
        assert world.found == [MEMBER.peer]
        assert world.addrs[MEMBER.peer] == (addr_of(MEMBER),)

    in_virtual_time(scenario())


def test_live_members_that_proved_themselves_are_remembered_and_no_others() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        world.view = (presence(STRANGER.peer),)
        await during(5, world.discovery(addr_of(MEMBER)))
        (kept,) = PeerCache(world.cache._path).peers()
        assert (kept.peer, kept.addrs) == (MEMBER.peer, PRESENCE.addrs)
        assert kept.answered_unix_s == int(unix_now())

    in_virtual_time(scenario())


def test_a_candidate_of_the_lan_is_greeted_while_the_dht_hangs() -> None:
    async def scenario() -> None:
        world = World()
        world.add_member(MEMBER)
        world.dht_hangs = True
        discovery = world.discovery()
        discovery.suggest(MEMBER.peer, [addr_of(MEMBER)])
        await during(1, discovery)
        assert world.found == [MEMBER.peer]

    in_virtual_time(scenario())


# --- bootstrap peers -------------------------------------------------------------------------


def test_with_enough_members_at_most_two_bootstrap_peers_are_kept() -> None:
    async def scenario() -> None:
        world = World()
        gates = [Signer(bytes([n]) * 32) for n in range(40, 45)]
        world.listening |= {gate.peer for gate in gates}
        discovery = world.discovery(*(addr_of(gate) for gate in gates))
        searching = asyncio.create_task(discovery.run())
        await asyncio.sleep(10)
        assert set(world.connected()) == {gate.peer for gate in gates}
        members = [Signer(bytes([n]) * 32) for n in range(9, 9 + ENOUGH_PEERS)]
        world.view = members_of(members)
        await asyncio.sleep(10)
        kept = world.connected()
        assert len(kept) == KEPT
        assert len(world.left) == len(set(world.left)) == len(gates) - KEPT
        world._connected.add(world.left[0])  # the DHT asks it something: let it
        await asyncio.sleep(100)
        assert len(world.left) == len(gates) - KEPT
        world.view = members_of(members[:2])
        await asyncio.sleep(10)
        assert set(world.connected()) == {gate.peer for gate in gates}
        searching.cancel()

    in_virtual_time(scenario())


def members_of(signers: Sequence[Signer]) -> tuple[Presence, ...]:
    return tuple(presence(signer.peer) for signer in signers)


def test_with_enough_members_only_two_dead_bootstrap_addresses_are_dialled() -> None:
    async def scenario() -> None:
        world = World()
        gates = [Signer(bytes([n]) * 32) for n in range(40, 45)]
        world.view = members_of([Signer(bytes([n]) * 32) for n in range(9, 9 + ENOUGH_PEERS)])
        await during(0.5, world.discovery(*(addr_of(gate) for gate in gates)))
        assert len(world.dials) == KEPT

    in_virtual_time(scenario())
