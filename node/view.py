"""What a node says of itself and its run, as tables for a terminal.  Pure: values in, tables out.

Names, addresses and states come from strangers: what they wrote is shown, and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from node.api import Contributions, PeerStatus, Reachable, Status
from node.telemetry import harmless, short_peers
from protocol.ids import PeerId, short
from protocol.limits import KIB

COUNTED = {"rounds": "rounds", "exchanges": "made", "alone": "alone", "half": "half"}
"""Columns of the ledger that are numbers as they are, and their heads."""
WIDE = 140
"""Columns of a terminal that has room for all that is known of a peer."""
NAME_WIDTH = 12
"""Characters of a name in a table."""
LEFT = (
    "author",
    "peer",
    "name",
    "status",
    "state",
    "standing",
    "link",
    "address",
    "node",
    "waits for",
)
"""Columns of words; numbers stand on the right."""


def status_table(status: Status, now_unix_s: float) -> Table:
    """What `shoal status` shows of one node, a fact a line; see `copied` for the rest."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    exchanges = status["exchanges"]
    rows = {
        "node": f"{status['name']} {short(status['peer'])}".strip(),
        "run": status["run"][:8] or "none",
        "state": status["state"],
        "round": f"{status['round']} of {status['rounds']}",
        "inner step": f"{status['inner_step']} ({status['step_in_round']} of "
        f"{status['inner_steps']} in this round)",
        "loss": f"{status['loss']:.3f} nats/token",
        "validation": f"{nats(status['val']['start'])} at the start, "
        f"{nats(status['val']['end'])} now, nats/byte",
        "speed": f"{status['tokens_per_s']:.0f} tokens/s",
        "members": str(status["members"]),
        "reachable": reachable(status["reachable"]),
        "partner": short(status["partner"] or "") or "none",
        "exchanges": f"{exchanges['made']} made, {exchanges['missed']} missed, "
        f"{exchanges['half']} half",
        "sent": by_kind(status["bytes"]["up"]),
        "received": by_kind(status["bytes"]["down"]),
        "waits for": waiting(status, now_unix_s, {}) or "nothing",
    }
    if status["changes"]:
        changed = [f"{name} {value}" for name, value in sorted(status["changes"].items())]
        rows["changed"] = ", ".join(changed)
    if shown := protection(status["protection"]):
        rows["protected"] = shown
    if status["trouble"]:
        rows["trouble"] = status["trouble"]
    for name, text in rows.items():
        _add(table, name, text)
    return table


def _columns(*names: str) -> Table:
    """A table without lines; names give way where there is no room for all."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in names:
        gives_way = name in ("name", "address", "waits for")
        justify: Any = "left" if name in LEFT else "right"
        table.add_column(name, justify=justify, no_wrap=not gives_way, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """A row.  Strings would be read as markup, and may have characters that move the cursor."""
    table.add_row(*(Text(harmless(cell)) for cell in cells))


def reachable(found: Reachable) -> str:
    """How others get at a node, and what it carries for them."""
    through = ", ".join(short(relay) for relay in found["relays"])
    told = f"{found['verdict']}, through {through}" if through else found["verdict"]
    if found["carried_bytes"]:
        told += f"; carried for others: {size(found['carried_bytes'])}"
    return told


def protection(told: Mapping[str, Any] | None) -> str:
    """What of ours peers hold, and what is held for them; empty: the run is not protected."""
    if told is None:
        return ""
    ours = "nothing yet"
    if told["shards"]:
        ours = f"round {told['round']}, {told['shards']} of {told['of']} shards held by peers"
    return f"{ours}; held for others: {told['holds']} shards, {size(told['holds_bytes'])}"


def copied(status: Status) -> str:
    """What people copy, and no terminal may wrap: addresses and ticket, each on a line."""
    ticket = status["ticket"]
    return "\n".join([*status["addrs"], ticket] if ticket else status["addrs"])


def peers_table(peers: Sequence[PeerStatus], width: int) -> Table:
    """The members that a node sees, one a line.

    Args:
        width: of the terminal; a narrow one gets the half of it, `--json` all.
    """
    shown = [_peer_row(peer) for peer in peers]
    less = ("inner step", "tokens", "up", "down", "address") if width < WIDE else ()
    names = [name for name in _peer_row({"peer": PeerId("")}) if name not in less]
    table = _columns(*names)
    for row in shown:
        _add(table, *(row[name] for name in names))
    return table


def _peer_row(peer: PeerStatus) -> dict[str, str]:
    rtt, up, down = _crossing(peer)
    return {
        "peer": short(peer["peer"]),
        "name": cut(peer.get("name", "")),
        "state": peer.get("state", ""),
        "round": str(peer.get("round", "")),
        "inner step": str(peer.get("inner_step", "")),
        "loss": f"{peer.get('loss', 0.0):.3f}",
        "tokens/s": f"{peer.get('tokens_per_s', 0.0):.0f}",
        "tokens": f"{peer.get('tokens', 0):,}",
        "link": peer.get("link", ""),
        "rtt": rtt,
        "up": up,
        "down": down,
        "standing": peer.get("standing", ""),
        "address": (peer.get("addrs") or [""])[0].split("/p2p/")[0],
    }


def contributions_table(ledger: Contributions) -> Table:
    """Who trained how much, an author a line, and the sum."""
    whole = int(ledger["sum"]["tokens"])
    is_disputed = int(ledger["sum"]["contradicted"]) > 0
    names = ("author", "name", "status", "tokens", "share", *COUNTED.values(), "checked")
    table = _columns(*names, *(["disputed"] if is_disputed else []))
    for row in (*ledger["authors"], ledger["sum"]):
        tokens = int(row["tokens"])
        _add(
            table,
            short(str(row["peer"])) or "sum",
            cut(str(row["name"])),
            str(row["status"]),
            f"{tokens:,}",
            f"{100 * tokens / whole:.1f} %" if whole else "-",
            *(f"{row[name]:,}" for name in COUNTED),
            _checked(row),
            *([f"{row['contradicted']} of {_checks(row)}"] if is_disputed else []),
        )
    return table


def _checked(row: Mapping[str, Any]) -> str:
    """How many of the last rounds others confirm."""
    return f"{row['confirmed']} of {_checks(row)}" if _checks(row) else "-"


def _checks(row: Mapping[str, Any]) -> int:
    return int(row["confirmed"]) + int(row["contradicted"]) + int(row["unconfirmed"])


def cut(name: str) -> str:
    """A name that leaves room for other columns; `--json` has it whole."""
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."


def _crossing(peer: PeerStatus) -> tuple[str, str, str]:
    """Round trip, and what is sent and received a second."""
    traffic = peer.get("traffic")
    if traffic is None or not peer.get("link"):
        return "", "", ""
    rtt_ms = traffic["rtt_ms"]
    up, down = size(traffic["up_per_s"]), size(traffic["down_per_s"])
    return "" if rtt_ms is None else f"{rtt_ms:.0f} ms", f"{up}/s", f"{down}/s"


def swarm_table(nodes: Sequence[tuple[str, Status | None]], now_unix_s: float) -> Table:
    """Several nodes of one run, one a line: what the demo shows while it runs."""
    names = ("node", "round", "step", "loss", "tokens/s", "partner", "up", "down", "waits for")
    table = _columns(*names)
    called = {status["peer"]: name for name, status in nodes if status}
    for name, status in nodes:
        if status is None:
            _add(table, name, *["-"] * 7, "its start")
            continue
        partner = status["partner"] or ""
        _add(
            table,
            name,
            f"{status['round']}/{status['rounds']}",
            str(status["inner_step"]),
            f"{status['loss']:.3f}",
            f"{status['tokens_per_s']:.0f}",
            called.get(partner, short(partner)) or "-",
            size(sum(status["bytes"]["up"].values())),
            size(sum(status["bytes"]["down"].values())),
            waiting(status, now_unix_s, called) or status["state"],
        )
    return table


def swarm_line(nodes: Sequence[tuple[str, Status | None]], now_unix_s: float) -> str:
    """The same as one line, for a log."""
    names = {status["peer"]: name for name, status in nodes if status}
    parts = []
    for name, status in nodes:
        if status is None:
            parts.append(f"{name}: starts")
            continue
        facts = progress(status, names) if status["state"] == "training" else status["state"]
        wait = waiting(status, now_unix_s, names)
        parts.append(f"{name}: {facts}" + (f", waits for {wait}" if wait else ""))
    return "; ".join(parts)


def progress(status: Status, names: Mapping[str, str]) -> str:
    """A node that trains, in a few words."""
    partner = status["partner"] or ""
    return (
        f"round {status['round']} step {status['inner_step']} loss {status['loss']:.3f} "
        f"{status['tokens_per_s']:.0f} tokens/s with {names.get(partner, short(partner)) or '-'} "
        f"up {size(sum(status['bytes']['up'].values()))} "
        f"down {size(sum(status['bytes']['down'].values()))}"
    )


def waiting(status: Status, now_unix_s: float, names: Mapping[str, str]) -> str:
    """What the node waits for, from whom and for how long at most; empty: for nothing."""
    wait = status["waiting"]
    if not wait:
        return ""
    left_s = max(0.0, wait["until_unix_s"] - now_unix_s)
    source = names.get(wait["from"]) or short_peers(wait["from"])
    return f"{wait['what']} from {source}, {left_s:.0f} s at most"


def by_kind(counts: dict[str, int]) -> str:
    """`1.9 MiB payload, 12 KiB round`, the largest first."""
    parts = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{size(count)} {kind}" for kind, count in parts if count) or "nothing"


def size(count: float) -> str:
    """A number of bytes with three digits at least."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < KIB or unit == "GiB":
            break
        count /= KIB
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"


def nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
