"""A laboratory of NAT routers: network namespaces on this machine, made and removed by one object.

    async with Lab([Kind.CONE, Kind.SYM], delay_ms=10) as lab:
        await lab.run("h1", "ping", "-c1", lab.ip("relay"))

Hosts are h1, h2...; the router of site 1, if it has one, is r1; `relay` is a public machine
(node.natlab.plan).  Every uplink may have a delay and a rate, each way: two hosts with a delay of
10 ms are 40 ms of round trip apart.  Whatever ends the block, nothing of the lab stays behind; if
this process is killed, `scripts/natlab down` removes it.  Two labs at once do not meet.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from node.natlab import leftovers
from node.natlab.commands import LabFailed, check_machine, run
from node.natlab.plan import INTERNET, PROVIDER, WIRES, Machine, Port, machines
from node.natlab.rules import Kind
from protocol.errors import ConfigError

ROOT = Path(__file__).parents[2]
"""Where `python -m node.natlab.shaper` finds the package."""
SHAPER_S = 20.0
"""For a shaper to start, 0.1 s; a busy machine takes longer."""
MAX_DELAY_MS = 10_000.0
"""TCP gives up on a connection attempt of that round trip."""
MAX_RATE_MBIT = 10_000.0
"""More than a shaper carries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of IP packets that a machine took and sent itself."""

    received_bytes: int
    sent_bytes: int


class Lab:
    """`async with` builds it and removes it."""

    def __init__(
        self, kinds: Sequence[Kind], *, delay_ms: float = 0.0, rate_mbit: float = 0.0
    ) -> None:
        """
        Args:
            delay_ms: one way, on every uplink; the relay has one, too.
            rate_mbit: each way, on every uplink, with a queue of 0.2 s; 0: no limit.
        """
        if not 0 <= delay_ms <= MAX_DELAY_MS:
            raise ConfigError(f"natlab: found a delay of {delay_ms:g} ms, expected 0 to 10 000")
        if not 0 <= rate_mbit <= MAX_RATE_MBIT:
            raise ConfigError(f"natlab: found a rate of {rate_mbit:g} Mbit/s, expected 0 to 10 000")
        self.name = f"{leftovers.PREFIX}{secrets.token_hex(4)}"
        self.kinds = tuple(kinds)
        self._machines = {machine.name: machine for machine in machines(kinds)}
        self._shaping = (f"{delay_ms}", f"{rate_mbit}") if delay_ms or rate_mbit else None
        self._shapers: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        """Build it.

        Raises:
            ConfigError: this machine cannot have one, and why.
            LabFailed: a command did not do its work; nothing is left of the lab.
        """
        check_machine(with_tunnels=self._shaping is not None)
        self._claim = leftovers.claim(self.name, tuple(kind.value for kind in self.kinds))
        try:
            await self._build()
        except BaseException:
            await self._remove()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End what runs inside, and remove everything."""
        await self._remove()

    @property
    def hosts(self) -> tuple[str, ...]:
        """h1, h2..."""
        return tuple(name for name in self._machines if name.startswith("h"))

    @property
    def machines(self) -> tuple[str, ...]:
        """The relay, and routers and hosts."""
        return tuple(self._machines)

    def ip(self, machine: str) -> str:
        """The IPv4 address of a machine: a host's behind a router is private."""
        return self._named(machine).ports[0].ip.partition("/")[0]

    def ip6(self, machine: str) -> str | None:
        """Its IPv6 address; only machines with a public address of their own have one."""
        ip6 = self._named(machine).ports[0].ip6
        return ip6.partition("/")[0] if ip6 else None

    def enter(self, machine: str) -> tuple[str, ...]:
        """What to put in front of a command that is to run on a machine."""
        return enter(self.name, self._named(machine).name)

    async def run(self, machine: str, *command: str) -> str:
        """What `command` prints on a machine.

        Raises:
            LabFailed: it ended with another status than 0.
        """
        return await run(*self.enter(machine), *command)

    async def traffic(self, machine: str) -> Traffic:
        """What passed so far, as nftables counts; routers count nothing."""
        listed = await self.run(
            machine, "nft", "-j", "list", "counters", "table", "inet", "account"
        )
        found = {
            item["counter"]["name"]: item["counter"]["bytes"]
            for item in json.loads(listed)["nftables"]
            if "counter" in item
        }
        return Traffic(received_bytes=found["received"], sent_bytes=found["sent"])

    def _named(self, name: str) -> Machine:
        if name not in self._machines:
            known = ", ".join(self._machines)
            raise ConfigError(f"natlab: found no machine {name!r:.40}, expected one of {known}")
        return self._machines[name]

    # --- building --------------------------------------------------------------------------

    async def _build(self) -> None:
        """Namespaces, cables, what each machine has; last the switches."""
        await _batch(f"netns add {self._space(name)}" for name in (WIRES, *self._machines))
        ports = [(machine, port) for machine in self._machines.values() for port in machine.ports]
        if self._shaping:
            uplinks = [(machine, port) for machine, port in ports if port.switch == INTERNET]
            ports = [(machine, port) for machine, port in ports if port.switch != INTERNET]
            await self._start_shapers(uplinks)
        await _batch(
            f"link add {port.device} netns {self._space(machine.name)} type veth "
            f"peer name {_far_end(machine, port)} netns {self._space(WIRES)}"
            for machine, port in ports
        )
        async with asyncio.TaskGroup() as group:
            for machine in self._machines.values():
                group.create_task(self._set_up(machine))
        await self._switch_on()

    def _space(self, machine: str) -> str:
        return f"{self.name}-{machine}"

    async def _start_shapers(self, uplinks: Sequence[tuple[Machine, Port]]) -> None:
        """A shaper for each cable: one device stays with it, the other goes to the machine."""
        assert self._shaping
        for machine, port in uplinks:
            process = await asyncio.create_subprocess_exec(
                *enter(self.name, WIRES), sys.executable, "-m", "node.natlab.shaper",
                _far_end(machine, port), machine.name, *self._shaping,
                cwd=ROOT, stdout=asyncio.subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            self._shapers.append(process)
        for (machine, _), process in zip(uplinks, self._shapers, strict=True):
            assert process.stdout
            async with asyncio.timeout(SHAPER_S):
                if not await process.stdout.readline():
                    raise LabFailed(f"natlab: the shaper of {machine.name} did not start")
        moves = (
            f"link set {machine.name} netns {self._space(machine.name)} name {port.device}"
            for machine, port in uplinks
        )
        await _batch(moves, self._space(WIRES))

    async def _switch_on(self) -> None:
        """The switches, with all cables in them.

        In this order, when all that is at the other ends is up: a switch carries nothing of a
        cable that comes up later for a second, because the kernel looks again only then.
        """
        ports = [(machine, port) for machine in self._machines.values() for port in machine.ports]
        lines = []
        for switch in sorted({port.switch for _, port in ports}):
            lines += [f"link add {switch} type bridge", f"link set {switch} up"]
        for machine, port in ports:
            end = _far_end(machine, port)
            lines += [f"link set {end} up", f"link set {end} master {port.switch}"]
        lines.append(f"addr add {PROVIDER}/24 dev {INTERNET}")
        await self._sysctl(WIRES, "net.ipv4.ip_forward=0")
        await _batch(lines, self._space(WIRES))

    async def _set_up(self, machine: Machine) -> None:
        """Addresses, route and rules of one machine."""
        if machine.is_router:
            await self._sysctl(machine.name, "net.ipv4.ip_forward=1")
        if not any(port.ip6 for port in machine.ports):
            await self._sysctl(machine.name, "net.ipv6.conf.all.disable_ipv6=1")
        lines = ["link set lo up"]
        for port in machine.ports:
            lines.append(f"addr add {port.ip} dev {port.device}")
            if port.ip6:
                lines.append(f"addr add {port.ip6} dev {port.device} nodad")
            lines.append(f"link set {port.device} up")
        lines.append(f"route add default via {machine.gateway}")
        await _batch(lines, self._space(machine.name))
        await run(*self.enter(machine.name), "nft", "-f", "-", text=machine.rules)

    async def _sysctl(self, machine: str, setting: str) -> None:
        await run(*enter(self.name, machine), "sysctl", "-qw", setting)

    async def _remove(self) -> None:
        await leftovers.remove(self._claim)
        for process in self._shapers:
            await process.wait()


def enter(lab: str, machine: str) -> tuple[str, ...]:
    """What to put in front of a command that is to run on a machine of a lab."""
    return ("ip", "netns", "exec", f"{lab}-{machine}")


def _far_end(machine: Machine, port: Port) -> str:
    """What a cable's device is called at the switch."""
    return f"{machine.name}-{port.device}"


async def _batch(lines: Iterable[str], space: str | None = None) -> None:
    """Carry out lines of `ip`, in a namespace or outside of all, with one process."""
    where = ("-n", space) if space else ()
    await run("ip", *where, "-batch", "-", text="".join(f"{line}\n" for line in lines))
