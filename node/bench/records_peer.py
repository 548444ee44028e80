"""`scripts/bench records`: one process with the records of a run, which it serves or fetches.

python -m node.bench.records_peer FOLDER [ADDR ROOT]

Without an address it prints its own and serves the records in FOLDER until its standard input
ends.  With one it begins with an empty FOLDER, connects, becomes a member that knows nothing, and
prints what it took until its records' root is ROOT and all of them are read.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path

from crdt.author import Author
from crdt.replica import Replica
from crdt.schema import Content
from node.bench.records_authors import RUN
from node.bridge import Bridge
from node.records.files import RecordFiles
from node.records.records import Records
from node.rpc import Rpc
from node.telemetry import Waits
from protocol.envelope import Signer
from protocol.ids import PeerId
from protocol.rpc import RECORDS, Kind, RecordCall

CONNECT_S = 10.0
DEADLINE_S = 60.0
LOOK_S = 0.002
"""Between two looks whether all is there: the error of the time."""


class Peer:
    """A node of which only the records work."""

    def __init__(self, signer: Signer, folder: Path, bridge: Bridge, rpc: Rpc) -> None:
        self._bridge = bridge
        self._rpc = rpc
        self.calls = 0
        self.records = Records(
            author=Author(signer=signer, run=RUN, client_id=1, jump=1),
            replica=Replica(RUN, reserved=[signer.peer]),
            files=RecordFiles(folder),
            rpc=rpc,
            peers=bridge.connected,
            changed=lambda authors: None,
            blame=lambda peer, reason: sys.exit(f"{peer} blamed: {reason}"),
            waits=Waits(time.time),
            rng=random.Random(1),
        )
        rpc.serve(RECORDS, self._answer)

    async def _answer(self, peer: PeerId, call: RecordCall) -> RecordCall:
        self.calls += 1
        return await self.records.handle(peer, call)

    async def serve(self) -> None:
        """Until standard input ends."""
        tell({"addr": self._bridge.addrs()[0], "root": self.records.root().hex()})
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    async def join(self, addr: str, root: str) -> None:
        """Connect, and become equal."""
        await self._bridge.connect(addr, CONNECT_S)
        before, began, cpu = self._bridge.counters(), time.perf_counter(), time.process_time()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.records.run())
            while self.records.root().hex() != root:  # noqa: ASYNC110  changes have no event
                await asyncio.sleep(LOOK_S)
            views = self.records.views()
            seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
            running.cancel()
        after, kind = self._bridge.counters(), Kind.RECORD.value
        read = sum(isinstance(view, Content) for view in views.values())
        tell(
            {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "authors": read,
                "bytes_down": after.down.get(kind, 0) - before.down.get(kind, 0),
                "bytes_up": after.up.get(kind, 0) - before.up.get(kind, 0),
                "raw_down": after.raw_down - before.raw_down,
            }
        )


def tell(said: dict[str, str] | dict[str, float]) -> None:
    """One line to who started this process."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


async def main(folder: Path, addr: str = "", root: str = "") -> None:
    signer = Signer(os.urandom(32))
    async with Bridge(signer, listen=["/ip4/127.0.0.1/tcp/0"]) as bridge, Rpc(bridge) as rpc:
        peer = Peer(signer, folder, bridge, rpc)
        await (peer.join(addr, root) if addr else peer.serve())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
