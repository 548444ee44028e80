"""What a simulation found: figures, curves, and how a person reads them.

Pure: values in, values out.  Equal scenarios give equal reports, to the last digit; how long
the simulation itself took is not part of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from node.view import size


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """Peers that are alike.  Those that left or died count as long as they were there."""

    name: str
    peers: int
    rounds: int
    """Closed, of all its peers together."""
    tokens: int
    made: int
    """Exchanges, or averages; of one exchange both peers count."""
    alone: int
    half: int
    standstills: int
    """Times that training stood still for more than a second."""
    still_s: float
    """How long, of all peers together."""
    longest_still_s: float
    overdue: int
    """Waits that lasted past their end."""
    overdue_s: float
    up_median_bytes: float
    """What a peer sent."""
    down_median_bytes: float
    """What a peer received."""
    peak_bytes_per_s: float
    """Most that one peer sent, or received, in a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReport:
    """The lines of all peers: bytes passed, and most of them in a second."""

    up_max_bytes: float
    up_median_bytes: float
    down_max_bytes: float
    down_median_bytes: float
    peak_max_bytes_per_s: float
    """Of either direction."""
    peak_median_bytes_per_s: float
    all_bytes: float
    """Received by all together."""
    payload_bytes: int
    """Of these, payloads and scalars; the others are messages and states of joiners."""
    state_bytes: int
    messages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What was seen at points in virtual time."""

    time_s: tuple[float, ...]
    peers: tuple[int, ...]
    """That train."""
    loss: tuple[float, ...]
    consensus: tuple[float, ...]
    bytes_per_s: tuple[float, ...]
    """Of all peers together, since the point before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole simulation."""

    scenario: str
    trainer: str
    learner: str
    seed: int
    peers_start: int
    peers_end: int
    virtual_s: float
    events: int
    """That the machines were told."""
    rounds_closed: int
    round_max: int
    """How far the run's clock came."""
    made: int
    alone: int
    half: int
    reasons: dict[str, int]
    """Why alone."""
    blamed: int
    standstills: int
    still_s: float
    longest_still_s: float
    still_share: float
    """Of the time of all peers."""
    overdue: int
    overdue_s: float
    links: LinkReport
    loss_wanted: float
    time_to_loss_s: float | None
    """When the swarm was that good; None: never, or nobody asked."""
    loss: float
    """At the end."""
    consensus: float
    groups: tuple[GroupReport, ...]
    curves: Curves

    def as_json(self) -> dict[str, object]:
        """The object that `--json` writes."""
        return asdict(self)


def tables(report: Report) -> RenderableType:
    """The end of a simulation, for a terminal."""
    return Group(_groups(report), "", _reasons(report), "", _summary(report))


def _groups(report: Report) -> Table:
    table = Table(title=f"{report.scenario}: {report.trainer}", title_justify="left", box=None)
    for name in ("peers", "", "rounds", "made", "alone", "stood", "sent", "received", "peak"):
        table.add_column(name, justify="left" if name == "peers" else "right", no_wrap=True)
    for group in report.groups:
        table.add_row(
            group.name,
            f"{group.peers:,}",
            f"{group.rounds:,}",
            f"{group.made:,}",
            f"{group.alone:,}",
            f"{group.still_s:,.0f} s",
            size(int(group.up_median_bytes)),
            size(int(group.down_median_bytes)),
            f"{size(int(group.peak_bytes_per_s))}/s",
        )
    table.caption = (
        "stood: training stood still; sent, received: the median peer; peak: the busiest"
    )
    table.caption_justify = "left"
    return table


def _reasons(report: Report) -> Table:
    table = Table(title="exchanges", title_justify="left", box=None, show_header=False)
    total = max(1, report.made + report.alone)
    table.add_row("made", f"{report.made:,}", f"{100 * report.made / total:.1f} %")
    for reason, count in report.reasons.items():
        table.add_row(f"alone: {reason}", f"{count:,}", f"{100 * count / total:.1f} %")
    table.add_row("half (of those alone)", f"{report.half:,}", f"{100 * report.half / total:.1f} %")
    return table


def _summary(report: Report) -> Table:
    links = report.links
    table = Table.grid(padding=(0, 2))
    table.add_row("peers", f"{report.peers_start:,} at the start, {report.peers_end:,} at the end")
    table.add_row("virtual time", f"{report.virtual_s:,.0f} s")
    table.add_row("rounds", f"{report.rounds_closed:,} closed, clock at {report.round_max:,}")
    table.add_row(
        "training stood still",
        f"{report.standstills:,} times, {report.still_s:,.0f} s ({100 * report.still_share:.1f} % "
        f"of the time of all), {report.longest_still_s:.1f} s at most",
    )
    table.add_row("waits past their end", f"{report.overdue:,}, {report.overdue_s:,.0f} s")
    table.add_row("sent by a peer", _most(links.up_median_bytes, links.up_max_bytes))
    table.add_row("received by a peer", _most(links.down_median_bytes, links.down_max_bytes))
    peaks = _most(links.peak_median_bytes_per_s, links.peak_max_bytes_per_s, "/s")
    table.add_row("peak of a peer", f"{peaks} ({8e-6 * links.peak_max_bytes_per_s:.2f} Mbit/s)")
    table.add_row(
        "all together",
        f"{size(int(links.all_bytes))}, {size(links.payload_bytes)} of it payloads; "
        f"{links.messages:,} messages",
    )
    if report.loss_wanted:
        when = "never" if report.time_to_loss_s is None else f"{report.time_to_loss_s:,.0f} s"
        table.add_row(f"time to a loss of {report.loss_wanted:g}", when)
    table.add_row("loss at the end", f"{report.loss:.4g}")
    table.add_row("consensus distance", f"{report.consensus:.4g}")
    if report.blamed:
        table.add_row("peers blamed", f"{report.blamed:,} times")
    return table


def _most(median: float, most: float, unit: str = "") -> str:
    return f"{size(int(median))}{unit} (median), {size(int(most))}{unit} at most"
