"""What the demo found, as one JSON object and as tables.  Pure: values in, values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table

from node.api import Status
from node.view import nats, size

FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResult:
    """One node at the end, or when it was last heard of."""

    name: str
    status: Status
    val_end: float | None
    """Nats per byte; None: the node was killed."""
    killed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the yardstick found in the snapshots of the nodes that were left."""

    start: float
    """Validation loss of the run's initial weights, nats per byte."""
    mean: float
    """The same of the mean of the nodes' weights."""
    nodes: dict[str, float]
    """The same of each node's own weights, by name."""
    consensus: float
    """Consensus distance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole demo."""

    ok: bool
    seconds: float
    nodes: tuple[NodeResult, ...]
    measured: Measured | None
    """None: it failed before."""
    baseline: float | None
    """Validation loss of one node alone after the same steps."""

    @property
    def val_start(self) -> float | None:
        """At step 0."""
        return self.measured.start if self.measured else None

    @property
    def val_end(self) -> float | None:
        """Of the mean weights."""
        return self.measured.mean if self.measured else None

    def has_learned(self) -> bool:
        """The mean weights are better than those that everybody started from."""
        start, end = self.val_start, self.val_end
        return start is not None and end is not None and end < start

    def as_json(self) -> dict[str, object]:
        """The object that `--json` writes.

        `rounds` is how far the run's clock came; a node that skips ahead closes fewer itself.
        `exchanges_*` count each node's own rounds, so one exchange counts at both its peers.
        `bytes_sent` and `bytes_closed_form` cover the kinds that have a closed form.
        """
        sent, closed_form = self.bytes_sent(), self.bytes_closed_form()
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "val_start": self.val_start,
            "val_end": self.val_end,
            "val_end_nodes": [node.val_end for node in self.nodes if not node.killed],
            "rounds": max((node.status["round"] for node in self.nodes), default=0),
            "exchanges_made": self._exchanges("made"),
            "exchanges_missed": self._exchanges("missed"),
            "half_exchanges": self._exchanges("half"),
            "consensus": self.measured.consensus if self.measured else None,
            "bytes_sent": sum(sent[kind] for kind in closed_form),
            "bytes_closed_form": sum(closed_form.values()),
            "bytes_sent_by_kind": dict(sorted(sent.items())),
            "bytes_closed_form_by_kind": dict(sorted(closed_form.items())),
            "bytes_data_parallel": self.bytes_data_parallel(),
            "val_end_baseline": self.baseline,
        }

    def bytes_sent(self) -> Counter[str]:
        """By kind, of all nodes together."""
        return _sum(node.status["bytes"]["up"] for node in self.nodes)

    def bytes_closed_form(self) -> Counter[str]:
        """What the formula says for the kinds that have one."""
        return _sum(node.status["closed_form"] for node in self.nodes)

    def bytes_data_parallel(self) -> int:
        """What a ring all-reduce of fp32 gradients in every inner step would have sent.

        2 (N - 1) / N of the gradient a peer and step, N the number of nodes.
        """
        count = len(self.nodes)
        return sum(
            2
            * (count - 1)
            * FP32_BYTES
            * node.status["parameters"]
            * node.status["inner_step"]
            // count
            for node in self.nodes
        )

    def _exchanges(self, outcome: str) -> int:
        return sum(
            count
            for node in self.nodes
            for name, count in node.status["exchanges"].items()
            if name == outcome and isinstance(count, int)
        )


def tables(report: Report) -> RenderableType:
    """The end of the demo, for a terminal."""
    return Group(_losses(report), "", _traffic(report), "", _summary(report))


def _losses(report: Report) -> Table:
    table = Table(title="validation loss, nats per byte", title_justify="left", box=None)
    for name in ("node", "step 0", "end", "fell by", "steps", "rounds"):
        table.add_column(name, justify="left" if name == "node" else "right")
    for name in ("made", "missed", "half"):
        table.add_column(name, justify="right")
    start = report.val_start
    for node in report.nodes:
        status, exchanges = node.status, node.status["exchanges"]
        table.add_row(
            f"{node.name} (killed)" if node.killed else node.name,
            nats(start),
            nats(node.val_end),
            _fall(start, node.val_end),
            str(status["inner_step"]),
            str(status["rounds_closed"]),
            *(str(exchanges[name]) for name in ("made", "missed", "half")),
        )
    table.add_row("mean weights", nats(start), nats(report.val_end), _fall(start, report.val_end))
    if report.baseline is not None:
        fall = _fall(start, report.baseline)
        table.add_row("one node alone", nats(start), nats(report.baseline), fall)
    return table


def _traffic(report: Report) -> Table:
    table = Table(title="bytes sent by all nodes", title_justify="left", box=None)
    for name in ("kind", "counted", "closed form", "difference"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    sent, closed_form = report.bytes_sent(), report.bytes_closed_form()
    for kind in sorted(sent.keys() | closed_form.keys(), key=lambda kind: (-sent[kind], kind)):
        expected = closed_form.get(kind)
        table.add_row(
            kind,
            f"{sent[kind]:,}",
            "-" if expected is None else f"{expected:,}",
            f"{100 * (sent[kind] - expected) / expected:+.2f} %" if expected else "-",
        )
    return table


def _summary(report: Report) -> Table:
    all_sent = sum(report.bytes_sent().values())
    parallel = report.bytes_data_parallel()
    table = Table.grid(padding=(0, 2))
    consensus = f"{report.measured.consensus:.4g}" if report.measured else "-"
    table.add_row("consensus distance", consensus)
    table.add_row("sent in all", size(all_sent))
    less = f", {parallel / all_sent:.1f} times as much" if all_sent else ""
    table.add_row("data-parallel training would have sent", size(parallel) + less)
    table.add_row("time", f"{report.seconds:.0f} s")
    table.add_row("result", "ok" if report.ok else "FAILED")
    return table


def _fall(start: float | None, end: float | None) -> str:
    return "-" if start is None or end is None else f"{start - end:.3f}"


def _sum(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
