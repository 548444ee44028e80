"""The bench of convergence: texts are covered once, results are kept, figures are put together."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.bench import common
from node.bench.convergence import Planned, compute_missing, read_result, write_result
from node.bench.convergence_cells import (
    Cell,
    all_cells,
    chosen,
    closed_form_bytes,
    key_of,
    named,
    spec_of,
    steps_before,
)
from node.bench.convergence_figures import draw
from node.bench.convergence_report import page, rows_of
from node.bench.convergence_run import Point, Result
from node.bench.texts import Text
from protocol.algorithms import DilocoConfig, NolocoConfig, StreamingConfig, SyncConfig
from protocol.errors import ConfigError
from protocol.ids import Round
from protocol.payload import payload_bytes

CELL = Cell(text="shakespeare", variant="noloco", peers=4, seed=1)
TEXT = Text("sample", b"a few words to train on " * 40, b"others to measure with", by_era=False)
RESULT = Result(
    loss_peer=2.0,
    loss_mean=1.9,
    curve=[Point(steps=20, payload_bytes=10, loss=2.5), Point(steps=180, payload_bytes=90, loss=2)],
    payload_bytes=90,
    closed_form_bytes=100,
    peak_bytes_per_s=50,
    rounds=9,
    exchanges_made=35,
    exchanges_missed=1,
    steps=180.0,
    virtual_s=20.0,
    seconds=100.0,
)


def cell(variant: str, *, seed: int = 1, peers: int = 4) -> Cell:
    return replace(CELL, variant=variant, seed=seed, peers=peers)


# --- texts ---------------------------------------------------------------------------------------


@given(st.text(max_size=200), st.integers(1, 9))
def test_shards_by_era_cover_the_text_once_and_cut_no_character(text: str, peers: int) -> None:
    shards = Text("sample", text.encode(), b"", by_era=True).shards(peers)
    assert len(shards) == peers
    assert "".join(shard.decode() for shard in shards) == text
    assert max(map(len, shards)) - min(map(len, shards)) <= 7


def test_without_eras_everybody_has_the_whole_text() -> None:
    assert TEXT.shards(3) == (TEXT.train,) * 3


def test_a_tokenizer_is_trained_once(tmp_path: Path) -> None:
    trained = TEXT.tokenizer(300, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(b"kept")
    assert TEXT.tokenizer(300, tmp_path) == b"kept" != trained


# --- cells ---------------------------------------------------------------------------------------


def test_the_cells_are_those_of_the_figures() -> None:
    cells = all_cells()
    assert len({each.name for each in cells}) == len(cells)
    assert all(named(each.name) == each for each in cells)
    assert sum(each.peers == 8 for each in cells) == 8
    for text in ("shakespeare", "state-of-the-union"):
        assert len(chosen(f"{text}/sync/4/*,{text}/streaming-tau1/4/*")) == 6
        assert len(chosen(f"{text}/local/4/*")) == 1


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'--cells has "nonsense", which matches no cell'):
        chosen("shakespeare/*,nonsense")


@pytest.mark.parametrize("variant", ["sync", "noloco", "noloco-fragments", "streaming-tau5"])
def test_every_cell_has_equal_tokens(variant: str, tmp_path: Path) -> None:
    spec = spec_of(cell(variant), 180, TEXT, tmp_path)
    assert steps_before(spec, Round(spec.rounds)) == 180
    warm = round(spec.inner.warmup_rounds)
    assert steps_before(spec, Round(warm)) == 40


def test_steps_that_are_no_whole_round_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--steps is 30, expected a multiple of the 20"):
        spec_of(CELL, 30, TEXT, tmp_path)


def test_a_key_names_all_that_a_result_depends_on(tmp_path: Path) -> None:
    spec = spec_of(CELL, 180, TEXT, tmp_path)
    other_text = replace(TEXT, validation=b"another text")
    keys = [
        key_of(CELL, spec),
        key_of(cell("noloco", seed=2), spec_of(cell("noloco", seed=2), 180, TEXT, tmp_path)),
        key_of(cell("noloco", peers=8), spec_of(cell("noloco", peers=8), 180, TEXT, tmp_path)),
        key_of(CELL, spec_of(CELL, 160, TEXT, tmp_path)),
        key_of(CELL, spec_of(CELL, 180, other_text, tmp_path)),
        key_of(CELL, replace(spec, trainer=NolocoConfig(inner_steps=20, gamma=0.6))),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of(CELL, spec_of(CELL, 180, TEXT, tmp_path)) == keys[0]


def test_closed_forms_are_functions_of_peers_and_rounds(tmp_path: Path) -> None:
    spec = spec_of(CELL, 180, TEXT, tmp_path)
    count = 940_800
    assert closed_form_bytes(spec, 8) == 9 * payload_bytes("bf16", count)
    assert closed_form_bytes(spec, 1) == 0
    diloco = replace(spec, trainer=DilocoConfig(inner_steps=20))
    assert closed_form_bytes(diloco, 8) == 7 * 9 * payload_bytes("bf16", count)
    sync = replace(spec, trainer=SyncConfig(), rounds=180)
    assert closed_form_bytes(sync, 4) == 3 * 180 * payload_bytes("fp32", count)
    streaming = replace(spec, trainer=StreamingConfig(inner_steps=20, fragment_layers=2), rounds=27)
    per_cycle = sum(payload_bytes("e3m0", part) for part in streaming.fragment_counts())
    assert closed_form_bytes(streaming, 4) == 3 * 9 * per_cycle


# --- what is computed, and what is kept ----------------------------------------------------------


def planned(folder: Path, variants: list[str]) -> list[Planned]:
    return [
        Planned(
            cell=cell(variant),
            spec=spec_of(cell(variant), 180, TEXT, folder),
            kept=folder / f"{variant}.result.json",
        )
        for variant in variants
    ]


class Computer:
    """Computes nothing; remembers what it was asked for."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.fails = fails

    async def __call__(self, each: Planned) -> str:
        self.asked.append(each.cell.variant)
        if each.cell.variant in self.fails:
            return "no memory"
        write_result(each.kept, RESULT)
        return ""

    def compute(self, cells: list[Planned]) -> int:
        return asyncio.run(compute_missing(cells, 2, self, self.said.append))


def test_a_cell_that_is_there_is_not_computed_again(tmp_path: Path) -> None:
    cells = planned(tmp_path, ["sync", "diloco", "noloco"])
    write_result(cells[1].kept, RESULT)
    computer = Computer()
    assert computer.compute(cells) == 0
    assert computer.asked == ["sync", "noloco"]
    assert computer.compute(cells) == 0
    assert computer.asked == ["sync", "noloco"]
    assert [read_result(each.kept) for each in cells] == [RESULT] * 3


def test_a_cell_that_fails_is_told_and_the_others_are_computed(tmp_path: Path) -> None:
    cells = planned(tmp_path, ["sync", "diloco", "noloco"])
    computer = Computer(fails=("sync",))
    assert computer.compute(cells) == 1
    assert sorted(computer.asked) == ["diloco", "noloco", "sync"]
    assert any("shakespeare/sync/4/1: FAILED: no memory" in line for line in computer.said)
    assert [each.kept.is_file() for each in cells] == [False, True, True]


# --- the report ----------------------------------------------------------------------------------


def test_a_row_has_median_and_spread_over_seeds_and_the_gap_to_sync() -> None:
    results = {cell("sync"): replace(RESULT, loss_peer=1.6, payload_bytes=400)}
    for seed, loss in ((1, 2.0), (2, 2.4), (3, 2.1)):
        results[cell("diloco", seed=seed)] = replace(RESULT, loss_peer=loss)
    sync, diloco = rows_of(results)
    assert (sync["variant"], sync["seeds"], sync["over_sync"]) == ("sync", 1, 0.0)
    assert (diloco["loss"], diloco["seeds"], diloco["missed"]) == (2.1, 3, 3)
    assert diloco["spread"] == pytest.approx(0.4)
    assert diloco["over_sync"] == pytest.approx(2.1 / 1.6 - 1.0)
    assert diloco["of_form"] == pytest.approx(0.9)


def test_the_page_has_the_command_a_line_for_each_row_and_the_notes_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {cell("sync"): RESULT, cell("local"): replace(RESULT, closed_form_bytes=0)}
    file = tmp_path / "convergence.md"
    file.write_text("# Convergence\n\n| old |\n\n## Notes\n\n* What was tried.\n")
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--out", "docs/results"])
    common.write_page(tmp_path, "convergence", "Convergence", page(rows_of(results), results))
    told = file.read_text()
    assert "    scripts/bench convergence --out docs/results\n" in told
    assert [line.split(" | ")[0] for line in told.splitlines() if line.startswith("| ")] == [
        "| trainer",
        "| ---",
        "| local",
        "| sync",
    ]
    assert told.endswith("\n\n## Notes\n\n* What was tried.\n")


def test_a_figure_is_drawn_for_each_text(tmp_path: Path) -> None:
    results = {cell("sync"): RESULT, cell("local"): replace(RESULT, payload_bytes=0)}
    files = draw(results, tmp_path / "convergence")
    assert [file.name for file in files] == [
        "convergence-shakespeare.png",
        "convergence-shakespeare.svg",
    ]
    assert all(file.stat().st_size > 1000 for file in files)
