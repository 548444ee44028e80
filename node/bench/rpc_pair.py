"""The two processes of one contestant in `scripts/bench rpc`, as who started them sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from node.bench.child import Child, Command, Told, children

ORDER_S = 120.0
"""One order, also on the slowest line: 64 MiB at 100 Mbit/s take 6 s."""
START_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process runs: what is put in front of its command, and its address there."""

    enter: Sequence[str] = ()
    host: str = "127.0.0.1"


class Pair:
    """One that listens and one that has dialled it."""

    def __init__(self, name: str, listener: Child, dialler: Child) -> None:
        self.name = name
        self._listener, self._dialler = listener, dialler

    async def meet(self, *, both: bool) -> None:
        """Connect them; `both`: either may ask the other then."""
        listens = await self._listener.answer(START_S)
        await self._dialler.answer(START_S)
        dialled = await self.order("connect", addr=str(listens["addr"]))
        if both:
            await self.order("connect", back=True, addr=str(dialled["addr"]))

    async def order(self, what: str, *, back: bool = False, **terms: int | str) -> Told:
        """What came of it.  Args: back: the listener is to ask the dialler."""
        child = self._listener if back else self._dialler
        return await child.order(what, ORDER_S, **terms)


@asynccontextmanager
async def pair(name: str, places: Sequence[Place], *, both: bool) -> AsyncIterator[Pair]:
    """Start both and connect them; end them afterwards."""
    commands = [
        Command(
            name=f"a process of {name}",
            module=f"node.bench.rpc_{name}",
            words=(place.host,),
            enter=place.enter,
        )
        for place in places
    ]
    async with children(commands) as (listener, dialler):
        made = Pair(name, listener, dialler)
        await made.meet(both=both)
        yield made
