"""The NAT laboratory: routers do what their kind says, and nothing stays behind.

Then shoal's own network in it: who reaches whom, and how.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.natlab import leftovers
from node.natlab.lab import ROOT, Lab
from node.natlab.matrix import pairs
from node.natlab.pair import cut_pair, try_pair
from node.natlab.plan import kind_of
from node.natlab.rules import MAPPED_PORT, MAPPED_TO, Kind
from protocol.errors import ConfigError

WITHOUT_ROOT = (os.geteuid() != 0 or sys.platform != "linux") and not os.environ.get("CI")
"""Such tests are skipped on a person's machine; where CI is set they fail instead."""

pytestmark = [
    pytest.mark.natlab,
    pytest.mark.skipif(WITHOUT_ROOT, reason="network namespaces need root, and Linux"),
]

SOCKETS = (sys.executable, str(Path(__file__).with_name("lab_sockets.py")))
PAIR_S = 360
"""For a pair: 5 s, and 15 more where a direct connection is hoped for in vain; its own deadlines,
which say what went wrong, add up to 300."""


@dataclass(frozen=True)
class Seen:
    """What a server saw of who asked it, and how long that took."""

    ip: str
    port: int
    connected_s: float
    all_s: float


@asynccontextmanager
async def serving(lab: Lab, machine: str, port: int, num_bytes: int = 0) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *lab.enter(machine), *SOCKETS, "serve", str(port), str(num_bytes),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        await process.wait()


async def asked(lab: Lab, machine: str, ip: str, source: int = 0) -> Seen | str:
    """What came of asking the port 4001 of an address."""
    said = await lab.run(machine, *SOCKETS, "ask", ip, str(MAPPED_PORT), str(source))
    return Seen(*json.loads(said)) if said.startswith("[") else said.strip()


async def seen(lab: Lab, machine: str, ip: str, source: int = 0) -> Seen:
    found = await asked(lab, machine, ip, source)
    assert isinstance(found, Seen), found
    return found


async def ports_of(kind: Kind) -> tuple[int, int]:
    """Which port the relay and h2 see when the host of `kind` asks from 4001."""
    async with (
        Lab([kind, Kind.NONE]) as lab,
        serving(lab, "relay", MAPPED_PORT),
        serving(lab, "h2", MAPPED_PORT),
    ):
        one = await seen(lab, "h1", lab.ip("relay"), MAPPED_PORT)
        other = await seen(lab, "h1", lab.ip("h2"), MAPPED_PORT)
    return one.port, other.port


async def knocked(kind: Kind) -> Seen | str:
    """What a stranger finds at the public address of a host of `kind` that serves 4001."""
    async with Lab([kind]) as lab, serving(lab, "h1", MAPPED_PORT):
        door = "h1" if kind.is_public else "r1"
        return await asked(lab, "relay", lab.ip(door))


# --- routers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.FW, Kind.CONE, Kind.EIM, Kind.SYM, Kind.SHIFT, Kind.LAN2])
async def test_new_inbound_is_dropped(kind: Kind) -> None:
    assert await knocked(kind) == "silence"


async def test_cone_rst_answers_new_inbound_with_a_reset() -> None:
    assert await knocked(Kind.CONE_RST) == "refused"


@pytest.mark.parametrize("kind", [Kind.NONE, Kind.FULLCONE])
async def test_new_inbound_reaches_the_host(kind: Kind) -> None:
    found = await knocked(kind)
    assert isinstance(found, Seen)
    assert found.ip == "11.22.33.10"


@pytest.mark.parametrize("kind", [Kind.FW, Kind.FULLCONE, Kind.CONE, Kind.CONE_RST, Kind.LAN2])
async def test_a_port_is_kept(kind: Kind) -> None:
    if kind.num_hosts == 2:
        async with Lab([kind]) as lab, serving(lab, "relay", MAPPED_PORT):
            assert (await seen(lab, "h1", lab.ip("relay"), MAPPED_PORT)).port == MAPPED_PORT
    else:
        assert await ports_of(kind) == (MAPPED_PORT, MAPPED_PORT)


async def test_eim_maps_the_port_to_another_one_for_every_destination() -> None:
    assert await ports_of(Kind.EIM) == (MAPPED_TO, MAPPED_TO)


async def test_sym_has_another_port_for_every_destination() -> None:
    one, other = await ports_of(Kind.SYM)
    assert len({one, other, MAPPED_PORT}) == 3


async def test_shift_takes_another_port_of_its_range_for_every_destination() -> None:
    one, other = await ports_of(Kind.SHIFT)
    assert one != other
    assert {one // 10_000, other // 10_000} == {4}


async def test_two_hosts_behind_one_router_see_each_other_and_look_alike_from_outside() -> None:
    async with (
        Lab([Kind.LAN2]) as lab,
        serving(lab, "h2", MAPPED_PORT),
        serving(lab, "relay", MAPPED_PORT),
    ):
        assert (await seen(lab, "h1", lab.ip("h2"))).ip == lab.ip("h1")
        outside = [(await seen(lab, host, lab.ip("relay"))).ip for host in lab.hosts]
    assert outside == ["11.22.33.101"] * 2


async def test_lans_of_two_routers_do_not_see_each_other() -> None:
    async with Lab([Kind.CONE, Kind.CONE]) as lab, serving(lab, "h2", MAPPED_PORT):
        assert await asked(lab, "h1", lab.ip("h2")) == "silence"


async def test_public_hosts_have_ipv6_and_a_firewall_there_too() -> None:
    async with (
        Lab([Kind.NONE, Kind.FW]) as lab,
        serving(lab, "h1", MAPPED_PORT),
        serving(lab, "h2", MAPPED_PORT),
    ):
        ip6 = lab.ip6("h1"), lab.ip6("h2")
        assert ip6 == ("2a0f:ff00::101", "2a0f:ff00::102")
        assert (await seen(lab, "h2", ip6[0] or "")).ip == ip6[1]
        assert await asked(lab, "h1", ip6[1] or "") == "silence"


# --- lines -------------------------------------------------------------------------------------


async def test_a_delay_is_added_four_times_to_a_round_trip_of_two_hosts() -> None:
    async with Lab([Kind.CONE, Kind.NONE], delay_ms=10) as lab, serving(lab, "h2", MAPPED_PORT):
        await seen(lab, "h1", lab.ip("h2"))  # who has that address? That is a round trip, too.
        tries = [await seen(lab, "h1", lab.ip("h2")) for _ in range(5)]
    fastest_s = min(found.connected_s for found in tries)
    assert 0.040 <= fastest_s < 0.080  # the others say how busy the machine is


async def test_a_rate_bounds_what_a_line_carries() -> None:
    kinds, num_bytes = [Kind.NONE, Kind.NONE], 1_000_000
    async with Lab(kinds, rate_mbit=10) as lab, serving(lab, "h2", MAPPED_PORT, num_bytes):
        found = await seen(lab, "h1", lab.ip("h2"))
        counted = await lab.traffic("h2")
    assert found.all_s >= 0.8
    assert num_bytes < counted.sent_bytes < 1.2 * num_bytes


# --- nothing stays behind ----------------------------------------------------------------------


def left_of(lab: str) -> list[str]:
    files = [claim.name for claim in leftovers.claims() if claim.name == lab]
    return files + leftovers.namespaces(lab)


async def test_two_labs_at_once_do_not_meet_and_both_are_gone_afterwards() -> None:
    async with Lab([Kind.NONE]) as one, Lab([Kind.NONE]) as other:
        async with serving(one, "h1", MAPPED_PORT):
            assert await asked(other, "relay", other.ip("h1")) == "refused"
        assert left_of(one.name) == [
            one.name, f"{one.name}-h1", f"{one.name}-relay", f"{one.name}-wires",
        ]  # fmt: skip
    assert left_of(one.name) + left_of(other.name) == []


async def test_a_lab_is_gone_after_an_error_with_what_still_ran_in_it() -> None:
    lab = Lab([Kind.CONE], delay_ms=1)

    async def failing() -> None:
        async with lab:
            await asyncio.create_subprocess_exec(*lab.enter("h1"), "sleep", "1000")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()
    assert left_of(lab.name) == []


@asynccontextmanager
async def command(*words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.natlab.command", *words,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def name_of(process: asyncio.subprocess.Process) -> str:
    """The lab that `up` made."""
    assert process.stdout
    while line := (await process.stdout.readline()).decode():
        if line.startswith(leftovers.PREFIX):
            return line.split()[0]
    raise AssertionError("no lab came up")


async def test_sigterm_takes_a_lab_down() -> None:
    async with command("up", "cone", "--delay", "1") as process:
        lab = await name_of(process)
        assert left_of(lab) != []
        process.terminate()
        assert await process.wait() == 130
    assert left_of(lab) == []


async def test_down_removes_the_labs_of_the_dead_and_no_others() -> None:
    async with Lab([Kind.NONE]) as living, command("up", "cone", "--delay", "1") as process:
        lab = await name_of(process)
        process.kill()
        await process.wait()
        assert left_of(lab) != []
        async with command("down") as down:
            assert await down.wait() == 0
        assert left_of(lab) == []
        assert left_of(living.name) != []


def test_what_no_lab_can_be_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match="found the kind 'tor', expected one of none, fw"):
        kind_of("tor")
    with pytest.raises(ConfigError, match="found a delay of -1 ms, expected 0 to"):
        Lab([Kind.NONE], delay_ms=-1)


def test_a_matrix_has_every_pair_both_ways_round_and_lan2_once() -> None:
    assert pairs([Kind.NONE, Kind.CONE, Kind.LAN2]) == [
        (Kind.NONE, Kind.NONE),
        (Kind.NONE, Kind.CONE),
        (Kind.CONE, Kind.NONE),
        (Kind.CONE, Kind.CONE),
        (Kind.LAN2,),
    ]


# --- shoal in the lab --------------------------------------------------------------------------

NO_DELAY, HOME = 0.0, 10.0
"""One way, per uplink, ms: HOME is 40 ms of round trip.  Without any delay the resets of two
`cone-rst` routers overtake the packets that would have opened them."""


@pytest.mark.timeout(PAIR_S)
@pytest.mark.parametrize(
    ("kinds", "delay_ms", "how"),
    [
        ("none none", NO_DELAY, "direct"),
        ("cone none", NO_DELAY, "direct"),
        ("fullcone none", NO_DELAY, "direct"),
        ("lan2", NO_DELAY, "direct"),
        ("none cone", HOME, "direct or punched"),
        ("fw fw", HOME, "punched"),
        ("cone cone", NO_DELAY, "punched"),
        ("cone cone", HOME, "punched"),
        ("cone-rst cone-rst", HOME, "punched"),
        ("eim eim", HOME, "punched"),
        ("cone sym", NO_DELAY, "relayed"),
        ("sym sym", HOME, "relayed"),
    ],
)
async def test_a_pair_is_connected(kinds: str, delay_ms: float, how: str) -> None:
    pair = tuple(Kind(kind) for kind in kinds.split())
    outcome = await try_pair(pair, delay_ms=delay_ms, rate_mbit=0)
    assert outcome.dialed.how in how.split(" or "), outcome
    carried_by_relay = sum(outcome.dialed.mb_per_s) and outcome.relay_bytes > 16_000_000
    assert carried_by_relay == (how == "relayed"), outcome


@pytest.mark.timeout(PAIR_S)
async def test_a_hole_that_closes_costs_no_call() -> None:
    before, after = await cut_pair((Kind.CONE, Kind.EIM), rate_mbit=20)
    assert (before.how, after.how, after.why) == ("punched", "relayed", ""), after
