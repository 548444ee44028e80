"""A real run across six kinds of NAT, with its relay killed and its bootstrap gone.

The bootstrap node is also the relay that everybody begins with.  When a quarter of the rounds are
over it is killed for good: nodes behind a NAT must find another relay among the members that can
be reached, those with a hole to each other must not notice, and no round may be lost to a wait.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from node.bench.common import write_json
from node.local_swarm import Child, LocalSwarm
from node.natlab.commands import LabFailed
from node.natlab.lab import Lab
from node.natlab.plan import RELAY
from node.natlab.rules import MAPPED_PORT, Kind

Tell = Callable[[str], object]

KINDS = (Kind.NONE, Kind.FULLCONE, Kind.CONE, Kind.EIM, Kind.SYM, Kind.FW)
"""The first creates the run."""
ROUNDS = 20
EXCHANGE_DEADLINE_S = 30
SLACK_S = 10.0
"""Of a round besides its exchange: the inner steps of six nodes on two cores."""
UP_S = 90.0
"""For a node to be up, six of them on a busy machine."""
TRAINED_S = 600.0
"""For all rounds; 100 s on two quiet cores."""
POLL_S = 0.25
RUN_FILE = f"""\
name = "natlab"
data = "pydoc"
rounds = {ROUNDS}
min_members = {len(KINDS)}
start_deadline_s = 60

[model]
layers = 2
width = 64
heads = 2
context = 64

[inner]
batch = 4

[trainer]
kind = "noloco"
inner_steps = 10
exchange_deadline_s = {EXCHANGE_DEADLINE_S}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What one node says at the end."""

    node: str
    kind: str
    rounds: int
    """That it closed itself; who is pulled along by an exchange skips some."""
    made: int
    missed: int
    half: int
    links: dict[str, int]
    """How many peers it reaches directly, through a hole, through a relay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the run came to."""

    nodes: tuple[Trained, ...]
    seconds: float
    killed_after_round: int
    longest_round_s: float
    """Between two rounds of the slowest node."""
    left: tuple[str, ...]
    """Nodes that others saw gone."""


async def main(json_file: Path | None, delay_ms: float) -> int:
    """Let it happen, print what came of it; the exit status."""
    console = Console()
    found = await train(KINDS, delay_ms=delay_ms, say=lambda text: console.print(text))
    for node in found.nodes:
        links = ", ".join(f"{count} {kind}" for kind, count in sorted(node.links.items()))
        console.print(
            f"{node.node} {node.kind:9} {node.rounds} rounds, {node.made} exchanges, "
            f"{node.missed} missed, {node.half} half; links: {links}"
        )
    gone = ", ".join(found.left) or "nobody"
    console.print(
        f"{found.seconds:.0f} s; the relay was killed in round {found.killed_after_round}; the "
        f"longest round took {found.longest_round_s:.1f} s; gone: {gone}"
    )
    if json_file:
        write_json(
            json_file,
            [asdict(node) for node in found.nodes],
            asdict(found) | {"nodes": len(found.nodes)},
        )
    in_time = found.longest_round_s <= EXCHANGE_DEADLINE_S + SLACK_S
    return 0 if in_time and not found.left else 1


async def train(
    kinds: Sequence[Kind], *, delay_ms: float = 0.0, say: Tell = lambda _: None
) -> Found:
    """A run of one node for each kind.

    Raises:
        LabFailed: it did not come to its last round.
        NodeFailed: a node ended.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-natlab-") as folder:
        async with Lab(kinds, delay_ms=delay_ms) as lab, LocalSwarm(Path(folder)) as swarm:
            run_file = Path(folder) / "run.toml"
            run_file.write_text(RUN_FILE)
            listen = f"/ip4/0.0.0.0/tcp/{MAPPED_PORT}"
            relay = await swarm.start(
                "relay", "bootstrap", listen=f"/ip4/{lab.ip(RELAY)}/tcp/{MAPPED_PORT}",
                prefix=lab.enter(RELAY),
            )  # fmt: skip
            await _until(swarm, lambda: relay.status is not None, "the relay is up", UP_S)
            assert relay.status
            through = ("--bootstrap", relay.status["addrs"][0])
            first = await swarm.start(
                "h1", "run", "create", str(run_file), *through,
                listen=listen, prefix=lab.enter("h1"),
            )  # fmt: skip
            await _until(swarm, lambda: bool(_ticket(first)), "the run is created", UP_S)
            nodes = [first]
            for n in range(2, len(kinds) + 1):
                name, command = f"h{n}", ("join", _ticket(first), *through)
                joiner = await swarm.start(name, *command, listen=listen, prefix=lab.enter(name))
                nodes.append(joiner)
            return await _watch(swarm, relay, nodes, kinds, say)


async def _watch(
    swarm: LocalSwarm, relay: Child, nodes: list[Child], kinds: Sequence[Kind], say: Tell
) -> Found:
    began = time.monotonic()
    killed_after = -1
    since: dict[str, tuple[int, float]] = {}
    longest_s = 0.0
    while not all(child.has_finished for child in nodes):
        if time.monotonic() - began > TRAINED_S:
            raise swarm.stalled(f"round {ROUNDS}")
        await asyncio.sleep(POLL_S)
        await swarm.poll()
        swarm.check()
        for child in nodes:
            round = child.status["round"] if child.status else 0
            before, at = since.get(child.name, (-1, time.monotonic()))
            if round != before:
                if before > 0:
                    longest_s = max(longest_s, time.monotonic() - at)
                since[child.name] = (round, time.monotonic())
        slowest = min(child.status["round"] if child.status else 0 for child in nodes)
        if killed_after < 0 and slowest >= ROUNDS // 4:
            say(f"round {slowest}: the relay and bootstrap is killed")
            swarm.kill(relay)
            killed_after = slowest
    trained, left = [], set()
    for child, kind in zip(nodes, kinds, strict=True):
        peers = await child.client.peers()
        left |= {peer["name"] or peer["peer"] for peer in peers if peer["state"] == "gone"}
        trained.append(_trained(child, kind, [peer.get("link") or "none" for peer in peers]))
    return Found(
        nodes=tuple(trained),
        seconds=time.monotonic() - began,
        killed_after_round=killed_after,
        longest_round_s=longest_s,
        left=tuple(sorted(left)),
    )


def _trained(child: Child, kind: Kind, links: list[str]) -> Trained:
    status = child.status
    assert status
    exchanges = status["exchanges"]
    return Trained(
        node=child.name,
        kind=kind.value,
        rounds=status["rounds_closed"],
        made=exchanges["made"],
        missed=exchanges["missed"],
        half=exchanges["half"],
        links={link: links.count(link) for link in set(links)},
    )


def _ticket(child: Child) -> str:
    return child.status["ticket"] if child.status else ""


async def _until(swarm: LocalSwarm, is_so: Callable[[], bool], what: str, for_s: float) -> None:
    try:
        async with asyncio.timeout(for_s):
            while not is_so():
                await asyncio.sleep(POLL_S)
                await swarm.poll()
                swarm.check()
    except TimeoutError:
        raise LabFailed(f"natlab: expected within {for_s:g} s that {what}") from None
