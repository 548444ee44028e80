"""Table and page of the convergence figures: one row for each text, variant and number of peers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from node.bench import common
from node.bench.convergence_cells import BATCH, INNER_STEPS, KINDS, VARIANTS, WARMUP_STEPS, Cell
from node.bench.convergence_run import Result

HEADINGS = {
    "variant": "trainer",
    "peers": "n",
    "seeds": "seeds",
    "loss": "loss",
    "spread": "spread",
    "of_mean": "of mean",
    "over_sync": "to sync",
    "mb": "MB",
    "of_form": "of form",
    "peak_mb_s": "MB/s",
    "missed": "alone",
}
NOTE = (
    "loss: nats per byte of a peer's slow weights, median over seeds; spread: highest less lowest; "
    "of mean: loss of the mean of all peers' weights; MB: payloads received by a peer; of form: "
    "the same over the closed form; MB/s: most in one virtual second; alone: rounds without an "
    "exchange, of all peers and seeds"
)
"""Under the table."""


def rows_of(results: Mapping[Cell, Result]) -> list[common.Row]:
    """The figures, in the order of texts, peers and variants."""
    groups: dict[tuple[str, int, str], list[Result]] = {}
    for cell, result in results.items():
        groups.setdefault((cell.text, cell.peers, cell.variant), []).append(result)
    order = list(VARIANTS)
    keys = sorted(groups, key=lambda key: (key[0], key[1], order.index(key[2])))
    return [_row(*key, groups[key], groups.get((*key[:2], "sync"))) for key in keys]


def _row(
    text: str, peers: int, variant: str, results: list[Result], sync: list[Result] | None
) -> common.Row:
    losses = [result.loss_peer for result in results]
    loss = statistics.median(losses)
    base = statistics.median(result.loss_peer for result in sync) if sync else None
    received = statistics.median(result.payload_bytes for result in results)
    form = results[0].closed_form_bytes
    return {
        "text": text,
        "peers": peers,
        "variant": variant,
        "seeds": len(results),
        "loss": loss,
        "spread": max(losses) - min(losses),
        "of_mean": statistics.median(result.loss_mean for result in results),
        "over_sync": None if base is None else loss / base - 1.0,
        "mb": received / 1e6,
        "form_mb": form / 1e6,
        "of_form": received / form if form else None,
        "peak_mb_s": max(result.peak_bytes_per_s for result in results) / 1e6,
        "rounds": results[0].rounds,
        "missed": sum(result.exchanges_missed for result in results),
        "steps": statistics.fmean(result.steps for result in results),
        "seconds": sum(result.seconds for result in results),
    }


def show(rows: list[common.Row]) -> None:
    """On the terminal, a table for each text."""
    for text in dict.fromkeys(str(row["text"]) for row in rows):
        told = [_told(row) for row in rows if row["text"] == text]
        common.report(f"{text} ({KINDS[text]})", told, HEADINGS, NOTE)


def page(rows: list[common.Row], results: Mapping[Cell, Result]) -> list[str]:
    """What docs/results/convergence.md has between its head and its notes."""
    seconds = sum(result.seconds for result in results.values())
    steps = max(result.steps for result in results.values())
    lines = [
        f"{len(results)} cells, {seconds / 60:.0f} minutes of one core. A GPT of 0.94 M "
        f"parameters, BPE-1024, context 128, batch {BATCH}, AdamW 2e-3 with {WARMUP_STEPS} steps "
        f"of warm-up and a cosine; equal tokens: {steps:.0f} inner steps a peer, "
        f"H = {INNER_STEPS} unless the name says another. Peers run the machines of the node "
        "in the simulator, on a LAN of 1 Gbit/s where an inner step takes 0.1 s.",
        "",
    ]
    for text in dict.fromkeys(str(row["text"]) for row in rows):
        told = [_told(row) for row in rows if row["text"] == text]
        lines += [f"## {text} ({KINDS[text]})", "", *common.markdown(told, HEADINGS)]
        lines += ["", f"![loss of {text}](convergence-{text}.png)", ""]
    return [*lines, NOTE[0].upper() + NOTE[1:] + "."]


def _told(row: common.Row) -> dict[str, str]:
    """A row as people read it."""

    def number(name: str, form: str) -> str:
        value = row[name]
        return "-" if value is None else format(value, form)

    return {
        "variant": str(row["variant"]),
        "peers": str(row["peers"]),
        "seeds": str(row["seeds"]),
        "loss": number("loss", ".4f"),
        "spread": number("spread", ".4f") if row["seeds"] != 1 else "-",
        "of_mean": number("of_mean", ".4f"),
        "over_sync": number("over_sync", "+.1%"),
        "mb": number("mb", ".2f"),
        "of_form": number("of_form", ".3f"),
        "peak_mb_s": number("peak_mb_s", ".2f"),
        "missed": str(row["missed"]),
    }
