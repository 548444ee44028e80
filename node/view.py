"""Status and peers of a node as tables for a terminal.  Pure: values in, tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from node.api import Contributions, PeerStatus, Reachable, Status
from node.telemetry import short_peers
from protocol.ids import short

KIB = 1024
COUNTED = ("rounds", "exchanges", "alone", "half", "confirmed", "contradicted", "unconfirmed")
"""Columns of the ledger that are numbers as they are."""


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
    if shown := protection(status["protection"]):
        rows["protected"] = shown
    if status["trouble"]:
        rows["trouble"] = status["trouble"]
    for name, text in rows.items():
        table.add_row(name, text)
    return table


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


def peers_table(peers: Sequence[PeerStatus]) -> Table:
    """The members that a node sees, one a line."""
    table = Table(box=None, pad_edge=False)
    for name in ("peer", "name", "state", "round", "inner step", "loss", "tokens/s", "tokens"):
        table.add_column(name, justify="left" if name in ("peer", "name", "state") else "right")
    for name in ("link", "rtt", "up", "down", "standing", "address"):
        table.add_column(name, justify="right" if name in ("rtt", "up", "down") else "left")
    for peer in peers:
        table.add_row(
            short(peer["peer"]),
            peer.get("name", ""),
            peer.get("state", ""),
            str(peer.get("round", "")),
            str(peer.get("inner_step", "")),
            f"{peer.get('loss', 0.0):.3f}",
            f"{peer.get('tokens_per_s', 0.0):.0f}",
            f"{peer.get('tokens', 0):,}",
            peer.get("link", ""),
            *_crossing(peer),
            peer.get("standing", ""),
            (peer.get("addrs") or [""])[0].split("/p2p/")[0],
        )
    return table


def contributions_table(ledger: Contributions) -> Table:
    """Who trained how much, an author a line, and the sum."""
    table = Table(box=None, pad_edge=False)
    for name in ("author", "name", "status"):
        table.add_column(name)
    for name in ("tokens", "share", *COUNTED):
        table.add_column(name, justify="right")
    whole = int(ledger["sum"]["tokens"])
    for row in (*ledger["authors"], ledger["sum"]):
        tokens = int(row["tokens"])
        table.add_row(
            short(str(row["peer"])) or "sum",
            str(row["name"]),
            str(row["status"]),
            f"{tokens:,}",
            f"{100 * tokens / whole:.1f} %" if whole else "-",
            *(f"{row[name]:,}" for name in COUNTED),
        )
    return table


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
    table = Table(box=None, pad_edge=False)
    for name in ("node", "round", "step", "loss", "tokens/s", "partner", "up", "down", "waits for"):
        table.add_column(name, justify="left" if name in ("node", "waits for") else "right")
    names = {status["peer"]: name for name, status in nodes if status}
    for name, status in nodes:
        if status is None:
            table.add_row(name, *["-"] * 7, "its start")
            continue
        partner = status["partner"] or ""
        table.add_row(
            name,
            f"{status['round']}/{status['rounds']}",
            str(status["inner_step"]),
            f"{status['loss']:.3f}",
            f"{status['tokens_per_s']:.0f}",
            names.get(partner, short(partner)) or "-",
            size(sum(status["bytes"]["up"].values())),
            size(sum(status["bytes"]["down"].values())),
            waiting(status, now_unix_s, names) or status["state"],
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
