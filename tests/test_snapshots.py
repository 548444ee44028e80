"""Files of snapshots: what a node finds on a disk that was full, or bad, or somebody else's."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from disks import mounted, unlistable
from safetensors.torch import save, save_file

from node import snapshots
from node.files import MAX_SET_ASIDE
from node.snapshots import (
    METADATA_KEY,
    SPARE_BYTES,
    UNFINISHED,
    NoSnapshot,
    SnapshotPlace,
    remove_given_up,
    remove_unfinished,
    sealed,
    snapshot_files,
    snapshot_name,
    snapshots_seen,
)
from node.worker.files import load_newest, save_snapshot
from protocol.errors import Malformed
from protocol.ids import Round, RunId
from trainers.inner import Moments
from trainers.state import Fast, Slow

RUN, OTHER_RUN = RunId(b"\x01" * 32), RunId(b"\x02" * 32)
COUNT = 5


def state(round: int, count: int = COUNT) -> tuple[Slow, Fast]:
    """Every number says which round it is of."""
    parts = [torch.full((count,), round + tenths / 10) for tenths in range(5)]
    phi_P, delta_P, theta_P, first_P, second_P = parts
    slow = Slow(Round(round), phi_P, delta_P, own={"residual": phi_P + 0.5})
    return slow, Fast(theta_P, Moments(first_P, second_P, round), 10 * round, 3)


def saved(directory: Path, *rounds: int, run: RunId = RUN, count: int = COUNT) -> list[Path]:
    return [save_snapshot(directory, run, *state(round, count)) for round in rounds]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def is_whole(directory: Path, round: int) -> bool:
    """Whether what is loaded is this round's state, to the bit."""
    found = load_newest(directory, RUN, COUNT)
    slow, fast = state(round)
    pairs = [
        (found[0].phi_P, slow.phi_P),
        (found[0].delta_P, slow.delta_P),
        (found[0].own["residual"], slow.own["residual"]),
        (found[1].theta_P, fast.theta_P),
        (found[1].moments.first_P, fast.moments.first_P),
        (found[1].moments.second_P, fast.moments.second_P),
    ]
    numbers = (found[0].round, found[1].inner_step, found[1].moments.steps, found[1].step_in_round)
    return numbers == (round, 10 * round, round, 3) and all(a.equal(b) for a, b in pairs)


# --- what is found broken -----------------------------------------------------------------------


def test_any_bit_that_flipped_is_noticed(tmp_path: Path) -> None:
    """In the length, the header, the metadata or a weight; safetensors alone reads most of them.

    One bit of every third byte; all 14,000 were tried once.
    """
    (path,) = saved(tmp_path, 1)
    good = path.read_bytes()
    assert is_whole(tmp_path, 1)
    for place in range(0, len(good), 3):
        bad = bytearray(good)
        bad[place] ^= 1 << (place // 3 % 8)
        path.write_bytes(bad)
        with pytest.raises(NoSnapshot):
            load_newest(tmp_path, RUN, COUNT)
        aside = next(tmp_path.glob("*.unusable-1"))
        assert aside.read_bytes() == bad, place
        aside.unlink()


def test_a_file_cut_off_anywhere_is_noticed(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    good = path.read_bytes()
    for length in range(0, len(good), 61):
        path.write_bytes(good[:length])
        with pytest.raises(NoSnapshot, match="broken: "):
            load_newest(tmp_path, RUN, COUNT)
        next(tmp_path.glob("*.unusable-1")).unlink()


def without_seal(path: Path) -> None:
    """A file of another program: whole, and with metadata of its own."""
    path.write_bytes(save({"phi": torch.zeros(COUNT)}, {METADATA_KEY: json.dumps({"round": 1})}))


def with_nonsense(path: Path) -> None:
    path.write_bytes(save({"phi": torch.zeros(COUNT)}, {METADATA_KEY: "[" * 5000}))


def with_other_numbers(path: Path) -> None:
    """As the seal is no signature, whoever wants can make one; then the numbers are looked at."""
    numbers = {"run": RUN.hex(), "round": -1, "inner_step": True}
    tensors = {name: torch.zeros(COUNT) for name in ("phi", "delta", "theta", "first", "second")}
    data = {name: tensor.numpy().data.cast("B") for name, tensor in tensors.items()}
    save_file(tensors, path, sealed(numbers, data))


def not_finite(path: Path) -> None:
    tensors = {
        name: torch.full((COUNT,), float("nan"))
        for name in ("phi", "delta", "theta", "first", "second")
    }
    data = {name: tensor.numpy().data.cast("B") for name, tensor in tensors.items()}
    save_file(tensors, path, sealed({"run": RUN.hex(), "round": 2}, data))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_seal, "no file of shoal: its metadata do not say of which run it is"),
        (with_nonsense, "no file of shoal"),
        (with_other_numbers, "moment_steps is None"),
        (not_finite, "phi has values that are not finite"),
        (lambda path: path.write_text("my thesis"), "broken: "),
        (lambda path: saved(path.parent, 2, run=OTHER_RUN), "run 02020202, expected 01010101"),
        (lambda path: saved(path.parent, 2, count=7), r"phi is F32 \[7\], expected F32 \[5\]"),
    ],
)
def test_what_cannot_be_used_is_named_and_kept_and_the_older_one_is_used(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    _, bad = saved(tmp_path, 1, 2)
    spoil(bad)
    before = bad.read_bytes()
    _, _, note = load_newest(tmp_path, RUN, COUNT)
    assert re.search(reason, note), note
    assert note.endswith(f"kept as {bad.name}.unusable-1")
    assert is_whole(tmp_path, 1)
    saved(tmp_path, 2, 3, 4, 5, 6)  # the same name is taken again, and old ones go
    assert (tmp_path / f"{bad.name}.unusable-1").read_bytes() == before
    assert len(snapshot_files(tmp_path)) == snapshots.KEPT


def test_an_older_file_of_another_run_is_kept_too_and_never_taken_for_ours(tmp_path: Path) -> None:
    (theirs,) = saved(tmp_path, 1, run=OTHER_RUN)
    before = theirs.read_bytes()
    saved(tmp_path, 2)
    assert is_whole(tmp_path, 2)
    assert (tmp_path / f"{theirs.name}.unusable-1").read_bytes() == before
    assert [path.name[9:17] for path in snapshot_files(tmp_path)] == ["00000002"]


def test_with_nothing_usable_every_file_is_named_and_none_is_lost(tmp_path: Path) -> None:
    for path in saved(tmp_path, 1, 2):
        path.write_bytes(path.read_bytes()[:-1])
    before = sorted(contents(tmp_path).values())
    with pytest.raises(NoSnapshot) as caught:
        load_newest(tmp_path, RUN, COUNT)
    assert str(caught.value).count("broken: ") == 2
    assert sorted(contents(tmp_path).values()) == before
    assert snapshot_files(tmp_path) == []  # so the node goes the joiner's way at once
    with pytest.raises(NoSnapshot, match="no snapshot in"):
        load_newest(tmp_path, RUN, COUNT)


@pytest.mark.parametrize("round", [2, 9])
def test_what_the_disk_does_not_give_is_left_as_it_is_and_the_reason_is_its_own(
    tmp_path: Path, round: int
) -> None:
    """The newest is read, of an older one only what it says of itself."""
    (good,) = saved(tmp_path, 5)
    refused = tmp_path / snapshot_name(SnapshotPlace(round, 0))
    refused.symlink_to(refused)
    _, _, note = load_newest(tmp_path, RUN, COUNT)
    assert note == f"{refused.name}: Too many levels of symbolic links; left as it is"
    assert {path.name for path in tmp_path.iterdir()} == {good.name, refused.name}


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    unlistable(monkeypatch, tmp_path)
    with pytest.raises(PermissionError):
        load_newest(tmp_path, RUN, COUNT)
    assert snapshots_seen(tmp_path) == []
    monkeypatch.undo()
    assert snapshots_seen(tmp_path) == snapshot_files(tmp_path) != []
    assert snapshot_files(tmp_path / "none") == []


def test_so_many_bad_files_are_kept_and_no_more(tmp_path: Path) -> None:
    for round in range(MAX_SET_ASIDE + 1):
        (path,) = saved(tmp_path, round)
        path.write_bytes(b"bad")
        with pytest.raises(NoSnapshot) as caught:
            load_newest(tmp_path, RUN, COUNT)
    assert "left as it is, for 9 others are kept already" in str(caught.value)
    assert len(list(tmp_path.glob("*.unusable-*"))) == MAX_SET_ASIDE


def test_what_is_named_as_newer_costs_no_new_snapshot_its_place(tmp_path: Path) -> None:
    """It could not be read when the node started, so it stays: the disk may come back."""
    saved(tmp_path, 7, 8, 9)
    saved(tmp_path, 2, 3, 4, 5, 6)
    assert [int(path.name[9:17]) for path in snapshot_files(tmp_path)] == [9, 8, 7, 6, 5, 4]


def test_of_a_history_that_was_given_up_only_what_cannot_be_told_is_kept(tmp_path: Path) -> None:
    _, taken_over, _ = saved(tmp_path, 1, 2, 3)
    (theirs,) = saved(tmp_path, 4, run=OTHER_RUN)
    refused = tmp_path / snapshot_name(SnapshotPlace(5, 50))
    refused.symlink_to(refused)
    note = remove_given_up(taken_over, RUN)
    assert [sentence.split(": ", 1)[0] for sentence in note.split("; ")] == [
        *(theirs.name, f"kept as {theirs.name}.unusable-1"),
        *(refused.name, f"kept as {refused.name}.unusable-2"),
    ]
    assert [path.name[9:17] for path in snapshot_files(tmp_path)] == ["00000002"]
    assert is_whole(tmp_path, 2)
    kept = {path.name for path in tmp_path.glob("*.unusable-*")}
    assert kept == {f"{theirs.name}.unusable-1", f"{refused.name}.unusable-2"}


# --- what is being written ----------------------------------------------------------------------


def test_snapshots_are_looked_at_without_torch() -> None:
    told = "import sys, node.snapshots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for pid in (1, 2):
        (tmp_path / f"{UNFINISHED}{pid}").mkdir()
        (tmp_path / f"{UNFINISHED}{pid}" / ".tmpAb12Cd").write_bytes(b"half")
    remove_unfinished(tmp_path)
    assert list(contents(tmp_path)) == ["snapshot-00000001-0000000000010.safetensors"]


def test_a_file_gets_its_name_when_it_is_whole_and_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    path = tmp_path / "snapshot-00000001-0000000000010.safetensors"

    def fsync(fd: int) -> None:
        flushed.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with snapshots.being_written(path, 1) as partial:
        partial.write_bytes(b"whole")
        assert list(tmp_path.glob("*.safetensors")) == []
    assert contents(tmp_path) == {path.name: b"whole"}
    assert flushed == [(path.name, False), (tmp_path.name, True)]  # the file, then its name


# --- a disk that is full ------------------------------------------------------------------------


def test_without_room_nothing_is_written_and_the_sentence_says_how_much_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    before = contents(tmp_path)
    monkeypatch.setattr(snapshots, "SPARE_BYTES", 1 << 60)
    with pytest.raises(OSError, match=r"\d+ MiB are free in .*, expected \d+ MiB; free some space"):
        saved(tmp_path, 2)
    assert contents(tmp_path) == before
    monkeypatch.setattr(snapshots, "SPARE_BYTES", SPARE_BYTES)
    saved(tmp_path, 3)
    assert is_whole(tmp_path, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path, 1) as disk:
        yield disk


def test_a_disk_that_fills_while_a_file_is_written_keeps_the_older_ones(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was free when we looked is taken by another program meanwhile."""
    monkeypatch.setattr(snapshots, "SPARE_BYTES", -(1 << 40))
    saved(small_disk, 1)
    before = contents(small_disk)
    count = 50_000  # six vectors of 200 kB
    with pytest.raises(OSError, match="No space left on device"):
        saved(small_disk, 2, count=count)
    assert contents(small_disk) == before
    saved(small_disk, 3)  # there is room for less
    assert is_whole(small_disk, 3)


def test_a_process_that_may_write_no_file_so_large_keeps_the_older_ones(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    before = contents(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            saved(tmp_path, 2, count=5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert contents(tmp_path) == before


def test_a_seal_says_whether_it_is_of_the_run() -> None:
    metadata = sealed({"run": RUN.hex(), "round": 3}, {"phi": b"bytes"})
    numbers = snapshots.unsealed(metadata, RUN)
    assert (numbers["round"], list(snapshots.digests(numbers))) == (3, ["phi"])
    assert sealed(numbers, {"phi": b"bytes"}) == metadata  # who changes a file seals it anew
    for metadata_of_others in ({}, None, {METADATA_KEY: "{}"}, {METADATA_KEY: "nonsense"}):
        with pytest.raises(Malformed, match="no file of shoal"):
            snapshots.unsealed(metadata_of_others, RUN)
