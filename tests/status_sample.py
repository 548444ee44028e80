"""A node that only says what it is told to, for the tests of what asks and shows it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType

from node.api import Status
from protocol.errors import ConfigError
from protocol.ids import peer_id

ALICE, BOB = peer_id(bytes(32)), peer_id(bytes([1]) * 32)


def status(**changes: object) -> Status:
    """A node in the middle of its seventh round, with these fields changed."""
    recorded: Status = {
        "peer": ALICE,
        "run": "ab" * 32,
        "name": "node1",
        "state": "training",
        "ticket": "shoal1abc",
        "addrs": [f"/ip4/127.0.0.1/tcp/4001/p2p/{ALICE}"],
        "reachable": {"verdict": "unknown", "relays": [], "circuits": 0, "carried_bytes": 0},
        "pid": 10,
        "worker_pid": 11,
        "round": 7,
        "rounds": 12,
        "inner_step": 74,
        "step_in_round": 4,
        "inner_steps": 10,
        "loss": 5.1234,
        "tokens_per_s": 6000.4,
        "partner": BOB,
        "waiting": {"what": "the payload", "from": BOB, "until_unix_s": 1030.0},
        "trouble": None,
        "exchanges": {"made": 5, "missed": 1, "half": 1},
        "rounds_closed": 7,
        "consensus": 0.25,
        "val": {"start": 2.97, "end": 2.25},
        "bytes": {
            "up": {"payload": 10_100_000, "round": 9_000, "presence": 5_000},
            "down": {"payload": 9_000_000},
        },
        "protection": None,
        "changes": {},
        "closed_form": {"payload": 10_000_000, "round": 9_000},
        "parameters": 1_000_000,
        "records": "",
        "members": 4,
        "snapshot": "/data/snapshot",
        "spec": "/data/spec",
        "blobs": {"tokenizer": "/data/t", "validation": "/data/v"},
    }
    recorded.update(changes)  # type: ignore[typeddict-item]
    return recorded


class FakeNode:
    """A node that says what it is told to."""

    def __init__(self) -> None:
        self.now: Mapping[str, object] = status()
        self.left = False
        self.orders: list[dict[str, object]] = []

    def status(self) -> Mapping[str, object]:
        return self.now

    def peers(self) -> Sequence[Mapping[str, object]]:
        return [{"peer": "p", "round": 3}]

    def contributions(self) -> Mapping[str, object]:
        return {"records": "", "authors": [], "sum": {"tokens": 0}}

    async def leave(self) -> None:
        self.left = True

    async def order(self, order: Mapping[str, object]) -> str:
        self.orders.append(dict(order))
        if order["action"] == "stop":
            raise ConfigError("it is stopped for good")
        return "paused"


def rendered(table: RenderableType, width: int = 160) -> list[str]:
    """The lines of a table as a terminal of so many columns shows them."""
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]
