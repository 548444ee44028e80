from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_run import SmallRun, small_run

from node.worker.files import checkpoint_bytes
from node.worker.materials import initial_slow
from node.yardstick import measure
from protocol.errors import Malformed
from protocol.ids import Round, RunId
from trainers.state import Slow


def snapshot(run: SmallRun, name: str, shift: float, of_run: RunId | None = None) -> Path:
    """Initial weights plus `shift` everywhere, as a file."""
    phi_P = initial_slow(run.spec).phi_P + shift
    slow = Slow(Round(3), phi_P, torch.zeros_like(phi_P))
    path = run.root / name
    path.write_bytes(checkpoint_bytes(of_run or run.spec.run, slow))
    return path


def found(run: SmallRun, paths: list[Path]) -> dict[str, object]:
    return measure(run.spec, str(run.root / "tokenizer"), str(run.root / "validation"), paths)


def test_the_mean_of_opposite_snapshots_is_the_start_and_the_consensus_is_exact(
    tmp_path: Path,
) -> None:
    run = small_run(tmp_path)
    result = found(run, [snapshot(run, "a", 0.01), snapshot(run, "b", -0.01)])
    assert result["mean"] == pytest.approx(result["start"], rel=1e-5)
    count = len(initial_slow(run.spec).phi_P)
    assert result["consensus"] == pytest.approx(count * 0.01**2, rel=1e-3)
    assert result["rounds"] == [3, 3]
    nodes = result["nodes"]
    assert isinstance(nodes, list)
    assert nodes[0] != nodes[1]


def test_a_snapshot_of_another_run_is_not_measured(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    stranger = snapshot(run, "a", 0.0, RunId(b"\x07" * 32))
    with pytest.raises(Malformed, match="belongs to run 07070707"):
        found(run, [stranger])
