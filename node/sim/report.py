"""What a simulation found: figures, curves, and how a person reads them.

Pure: values in, values out.  Equal scenarios give equal reports, to the last digit; how long
the simulation itself took is not part of it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from node.view import size
from protocol.ids import PeerId, short

MAX_AUTHORS_SHOWN = 16
"""Lines of a table that a person reads."""


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
    record_bytes: int
    """Sent about records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """Peers that could reach each other, and nobody else."""

    peers: int
    rounds: int
    """Closed while the cut lasted, of all its peers together."""
    rounds_least: int
    """Of one of them."""
    rounds_after: int
    """Closed from the heal to the end."""
    rounds_after_least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutReport:
    """One cut of the swarm."""

    at_s: float
    healed_at_s: float | None
    parts: tuple[PartReport, ...]
    equal_after_s: float | None
    """From the heal until all peers held equal records; None: never, or there are no records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorReport:
    """What one peer trained on, in tokens."""

    peer: PeerId
    claimed: int
    """By its record, as it is at the peer that knows least of it."""
    closed: int
    """In rounds that it closed."""
    trained: int
    """In all, with what a crash, or another history of the group, made worthless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReport:
    """The records of the run at the end."""

    equal_after_s: float | None
    """From the end until all peers held equal ones; None: not in half a minute."""
    bytes: int
    """Sent about them, by all peers."""
    authors: tuple[AuthorReport, ...]


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
    cuts: tuple[CutReport, ...]
    records: RecordReport | None
    """None: peers kept none."""
    curves: Curves

    def as_json(self) -> dict[str, object]:
        """The object that `--json` writes."""
        return asdict(self)


def tables(report: Report) -> RenderableType:
    """The end of a simulation, for a terminal."""
    parts: list[RenderableType] = [_groups(report), "", _reasons(report), "", _summary(report)]
    for cut in report.cuts:
        parts += ["", *_cut(cut)]
    if report.records:
        parts += ["", *_records(report.records)]
    return Group(*parts)


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
        f"{size(int(links.all_bytes))}, {size(links.payload_bytes)} of it payloads, "
        f"{size(links.record_bytes)} records; {links.messages:,} messages",
    )
    if report.loss_wanted:
        when = "never" if report.time_to_loss_s is None else f"{report.time_to_loss_s:,.0f} s"
        table.add_row(f"time to a loss of {report.loss_wanted:g}", when)
    table.add_row("loss at the end", f"{report.loss:.4g}")
    table.add_row("consensus distance", f"{report.consensus:.4g}")
    if report.blamed:
        table.add_row("peers blamed", f"{report.blamed:,} times")
    return table


def _cut(cut: CutReport) -> list[RenderableType]:
    healed = "not healed" if cut.healed_at_s is None else f"healed at {cut.healed_at_s:,.0f} s"
    table = Table(
        title=f"cut at {cut.at_s:,.0f} s, {healed}", title_justify="left", box=None, padding=(0, 2)
    )
    for name in ("part", "peers", "rounds", "of one, least", "after the heal", "of one, least"):
        table.add_column(name, justify="right")
    for n, part in enumerate(cut.parts):
        cells = (part.peers, part.rounds, part.rounds_least, part.rounds_after)
        table.add_row(f"{n}", *(f"{cell:,}" for cell in (*cells, part.rounds_after_least)))
    if cut.equal_after_s is None:
        return [table]
    return [table, f"records equal {cut.equal_after_s:.1f} s after the heal"]


def _records(records: RecordReport) -> list[RenderableType]:
    """All authors if they are few, else those whose record does not say what they trained."""
    table = Table(title="tokens", title_justify="left", box=None, padding=(0, 2))
    for name in ("author", "in records", "in closed rounds", "trained"):
        table.add_column(name, justify="left" if name == "author" else "right")
    authors = records.authors
    differ = [author for author in authors if author.claimed != author.closed]
    for author in authors if len(authors) <= MAX_AUTHORS_SHOWN else differ[:MAX_AUTHORS_SHOWN]:
        cells = (author.claimed, author.closed, author.trained)
        table.add_row(short(author.peer), *(f"{cell:,}" for cell in cells))
    sums = [
        sum(getattr(author, name) for author in authors)
        for name in ("claimed", "closed", "trained")
    ]
    table.add_row(f"{len(authors)} authors", *(f"{sum:,}" for sum in sums))
    equal = "not equal in the end"
    if records.equal_after_s is not None:
        equal = f"equal {records.equal_after_s:.1f} s after the end"
    return [table, f"records {equal}; {len(differ)} say less than was closed"]


def _most(median: float, most: float, unit: str = "") -> str:
    return f"{size(int(median))}{unit} (median), {size(int(most))}{unit} at most"
