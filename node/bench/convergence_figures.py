"""Figures of convergence, one for each text: loss against inner steps, and against bytes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from node.bench.convergence_cells import EXTRA, VARIANTS, Cell
from node.bench.convergence_run import Point, Result

PEERS = 4
"""Shown: the number that all variants were run with."""
INCHES = (11.0, 4.5)
DPI = 130
COLOURS = {
    "local": "0.5", "sync": "black", "diloco": "tab:blue", "diloco-h60": "tab:cyan",
    "streaming-tau0": "tab:olive", "streaming-tau1": "tab:green", "streaming-tau5": "tab:brown",
    "noloco": "tab:red", "noloco-fragments": "tab:orange",
}  # fmt: skip


def draw(results: Mapping[Cell, Result], stem: Path) -> list[Path]:
    """PNG and SVG for each text: STEM-TEXT.png, .svg."""
    written = []
    for text in dict.fromkeys(cell.text for cell in results):
        figure = Figure(figsize=INCHES, layout="constrained")
        steps, received = figure.subplots(1, 2, sharey=True)
        for variant in VARIANTS:
            curves = [
                result.curve
                for cell, result in results.items()
                if (cell.text, cell.variant, cell.peers) == (text, variant, PEERS)
            ]
            if curves and variant not in EXTRA:
                _line(steps, received, variant, _median(curves))
        steps.set_xlabel("inner steps of a peer")
        steps.set_ylabel("validation loss of a peer, nats per byte")
        received.set_xlabel("payload bytes received by a peer (MB)")
        received.set_xscale("log")
        steps.legend(fontsize="small")
        figure.suptitle(f"{text}, {PEERS} peers")
        for kind in ("png", "svg"):
            file = stem.with_name(f"{stem.name}-{text}.{kind}")
            figure.savefig(file, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
            written.append(file)
    return written


def _line(steps: Axes, received: Axes, variant: str, curve: list[Point]) -> None:
    colour, losses = COLOURS[variant], [point.loss for point in curve]
    steps.plot([point.steps for point in curve], losses, ".-", color=colour, label=variant)
    megabytes = [point.payload_bytes / 1e6 for point in curve]
    if any(megabytes):
        received.plot(megabytes, losses, ".-", color=colour)


def _median(curves: list[list[Point]]) -> list[Point]:
    """Of several seeds, point by point."""
    return [
        Point(
            steps=points[0].steps,
            payload_bytes=round(statistics.median(point.payload_bytes for point in points)),
            loss=statistics.median(point.loss for point in points),
        )
        for points in zip(*curves, strict=True)
    ]
