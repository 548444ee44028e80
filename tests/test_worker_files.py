from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node.snapshots import UNFINISHED, NoSnapshot
from node.worker.files import (
    NotFinite,
    checkpoint_bytes,
    load_newest,
    read_slow,
    save_snapshot,
)
from protocol.errors import Malformed
from protocol.ids import Round, RunId
from trainers.inner import Moments
from trainers.state import Fast, Slow

RUN, OTHER_RUN = RunId(b"\x01" * 32), RunId(b"\x02" * 32)
COUNT = 5


def vector(value: float) -> Tensor:
    return torch.full((COUNT,), value)


def slow(round: int) -> Slow:
    return Slow(Round(round), vector(round + 0.1), vector(round + 0.2))


def fast(step: int, in_round: int = 3) -> Fast:
    return Fast(vector(0.3), Moments(vector(0.4), vector(0.5), step), step, in_round)


def plain(found: Slow) -> tuple[int, list[float], list[float]]:
    return found.round, found.phi_P.tolist(), found.delta_P.tolist()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_snapshot_comes_back_whole(tmp_path: Path) -> None:
    save_snapshot(tmp_path, RUN, slow(7), fast(42))
    found_slow, found_fast, note = load_newest(tmp_path, RUN, COUNT)
    assert (plain(found_slow), note) == (plain(slow(7)), "")
    assert (found_fast.inner_step, found_fast.step_in_round) == (42, 3)
    assert found_fast.moments.steps == 42
    found = (found_fast.theta_P, found_fast.moments.first_P, found_fast.moments.second_P)
    assert [part[0].item() for part in found] == pytest.approx([0.3, 0.4, 0.5])


def test_what_a_trainer_keeps_beside_the_weights_comes_back(tmp_path: Path) -> None:
    """Fewer numbers than parameters are as good."""
    keeping = replace(slow(7), shared={"gap": torch.ones(2)}, own={"residual": vector(0.6)})
    save_snapshot(tmp_path, RUN, keeping, fast(42))
    found, _, _ = load_newest(tmp_path, RUN, COUNT)
    assert {name: kept.tolist() for name, kept in found.shared.items()} == {"gap": [1.0, 1.0]}
    assert {name: kept.tolist() for name, kept in found.own.items()} == {
        "residual": vector(0.6).tolist()
    }


def test_a_checkpoint_has_what_is_shared_and_nothing_of_its_makers_own(tmp_path: Path) -> None:
    keeping = replace(slow(3), shared={"gap": torch.ones(2)}, own={"residual": vector(0.6)})
    (tmp_path / "checkpoint").write_bytes(checkpoint_bytes(RUN, keeping))
    found = read_slow(tmp_path / "checkpoint", RUN, COUNT)
    assert (list(found.shared), list(found.own)) == (["gap"], [])
    taken = save_snapshot(tmp_path, RUN, keeping, fast(42))
    assert read_slow(taken, RUN, COUNT).own == {}  # the same of a whole snapshot


@pytest.mark.parametrize(
    ("shared", "reason"),
    [
        ({"gap": torch.ones(COUNT + 1)}, r"shared.gap is F32 \[6\], expected"),
        ({"gap": torch.ones(1, 2)}, "shared.gap is F32"),
        ({"gap": torch.full((2,), float("inf"))}, "shared.gap has values that are not finite"),
        ({f"kept{n}": torch.ones(1) for n in range(9)}, "9 vectors beside the weights, at most 8"),
    ],
)
def test_what_a_stranger_shares_is_bounded(
    tmp_path: Path, shared: dict[str, Tensor], reason: str
) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(checkpoint_bytes(RUN, replace(slow(3), shared=shared)))
    with pytest.raises(Malformed, match=reason):
        read_slow(path, RUN, COUNT)


def test_the_newest_three_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for round, step in ((9, 90), (9, 95), (10, 100), (10, 105)):
        save_snapshot(tmp_path, RUN, slow(round), fast(step))
    assert names(tmp_path) == [
        "snapshot-00000009-0000000000095.safetensors",
        "snapshot-00000010-0000000000100.safetensors",
        "snapshot-00000010-0000000000105.safetensors",
    ]
    assert load_newest(tmp_path, RUN, COUNT)[1].inner_step == 105


def test_a_broken_file_is_passed_over_for_the_older_one_and_named(tmp_path: Path) -> None:
    save_snapshot(tmp_path, RUN, slow(1), fast(10))
    broken = save_snapshot(tmp_path, RUN, slow(2), fast(20))
    broken.write_bytes(broken.read_bytes()[:-1])
    found, _, note = load_newest(tmp_path, RUN, COUNT)
    assert found.round == 1
    assert note.startswith(f"{broken.name}: broken: ")


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 100])
def test_what_is_no_snapshot_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "snapshot-00000001-0000000000001.safetensors").write_bytes(data)
    with pytest.raises(NoSnapshot, match="no usable snapshot"):
        load_newest(tmp_path, RUN, COUNT)


def test_a_snapshot_of_another_run_is_refused_with_both_runs(tmp_path: Path) -> None:
    save_snapshot(tmp_path, OTHER_RUN, slow(1), fast(10))
    with pytest.raises(NoSnapshot, match="belongs to run 02020202, expected 01010101"):
        load_newest(tmp_path, RUN, COUNT)


def test_a_snapshot_of_another_model_is_refused(tmp_path: Path) -> None:
    save_snapshot(tmp_path, RUN, slow(1), fast(10))
    with pytest.raises(NoSnapshot, match=r"phi is F32 \[5\], expected F32 \[6\]"):
        load_newest(tmp_path, RUN, COUNT + 1)


def test_an_empty_directory_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(NoSnapshot, match="no snapshot in"):
        load_newest(tmp_path, RUN, COUNT)


def test_a_save_that_fails_leaves_the_older_files_and_no_other(tmp_path: Path) -> None:
    kept = save_snapshot(tmp_path, RUN, slow(1), fast(10))
    (tmp_path / f"{UNFINISHED}{os.getpid()}").write_bytes(b"")  # where it would be written
    with pytest.raises(OSError, match="File exists"):
        save_snapshot(tmp_path, RUN, slow(2), fast(20))
    assert kept.name in names(tmp_path)
    assert load_newest(tmp_path, RUN, COUNT)[0].round == 1


def test_equal_states_give_equal_checkpoints() -> None:
    assert checkpoint_bytes(RUN, slow(3)) == checkpoint_bytes(RUN, slow(3))


def test_a_checkpoint_holds_slow_weights_and_momentum(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(checkpoint_bytes(RUN, slow(3)))
    assert plain(read_slow(tmp_path / "checkpoint", RUN, COUNT)) == plain(slow(3))


def test_a_diverged_state_is_not_saved_over_the_good_ones(tmp_path: Path) -> None:
    save_snapshot(tmp_path, RUN, slow(1), fast(10))
    with pytest.raises(NotFinite, match="theta has values that are not finite"):
        save_snapshot(tmp_path, RUN, slow(2), replace(fast(20), theta_P=vector(float("inf"))))
    assert names(tmp_path) == ["snapshot-00000001-0000000000010.safetensors"]


def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    bad = Slow(Round(1), vector(float("nan")), vector(0.0))
    (tmp_path / "checkpoint").write_bytes(checkpoint_bytes(RUN, bad))
    with pytest.raises(Malformed, match="not finite"):
        read_slow(tmp_path / "checkpoint", RUN, COUNT)


def test_the_digest_names_the_slow_weights_alone() -> None:
    one, other = slow(1), Slow(Round(9), slow(1).phi_P, vector(9.0))
    assert one.digest() == other.digest() != slow(2).digest()
