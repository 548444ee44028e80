"""The figure of a simulation: loss, consensus and traffic over virtual time, as PNG and SVG.

The only file of the simulator that needs matplotlib, which is not needed to run a node; so it
is imported only where a figure is asked for.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from node.sim.line import MBIT
from node.sim.report import Report

INCHES = (7.0, 8.0)
DOTS_PER_INCH = 150


def write_figure(report: Report, stem: Path) -> tuple[Path, Path]:
    """Draw it into STEM.png and STEM.svg."""
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    loss, consensus, traffic = figure.subplots(3, 1, sharex=True)
    curves = report.curves
    words = "nats per byte" if report.learner == "model" else "distance to the optimum"
    _plot(loss, curves.time_s, curves.loss, f"loss\n({words})")
    if report.time_to_loss_s is not None:
        loss.axhline(report.loss_wanted, color="grey", linewidth=0.8, linestyle=":")
        loss.axvline(report.time_to_loss_s, color="grey", linewidth=0.8, linestyle=":")
    _plot(consensus, curves.time_s, curves.consensus, "consensus distance")
    megabits = tuple(rate / MBIT for rate in curves.bytes_per_s)
    _plot(traffic, curves.time_s, megabits, "all together, Mbit/s")
    traffic.set_xlabel("virtual seconds")
    figure.suptitle(f"{report.scenario}: {report.trainer}, {report.peers_start:,} peers")
    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    figure.savefig(png, dpi=DOTS_PER_INCH)
    figure.savefig(svg, metadata={"Date": None})
    return png, svg


def _plot(axes: Axes, times: tuple[float, ...], values: tuple[float, ...], label: str) -> None:
    axes.plot(times, values, linewidth=1.2)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
