"""What is cut into shards has all that is private, and a snapshot comes of it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shard_peers import COUNT, World, protected, state

from node.protection.files import most_bytes, place_of, private_part, whole_again
from node.snapshots import SnapshotPlace, snapshot_files, snapshot_name, snapshot_place
from node.worker.files import checkpoint_bytes, load_newest, save_snapshot
from protocol.algorithms import DilocoConfig, NolocoConfig, StreamingConfig
from protocol.errors import Malformed
from protocol.ids import Round, digest_of
from protocol.messages import Checkpoint
from protocol.spec import RunSpec
from trainers.state import Fast, Slow

GROUP = protected(trainer=DilocoConfig())
NONE = digest_of(b"others")


def checkpoint_of(slow: Slow, spec: RunSpec = GROUP) -> tuple[bytes, Checkpoint]:
    """The bytes of a member's checkpoint, and what the member says of them."""
    data = checkpoint_bytes(spec.run, slow)
    return data, Checkpoint(slow.round, digest_of(data), len(data), slow.digest())


def saved(root: Path, spec: RunSpec, seed: int, round: int) -> bytes:
    root.mkdir(exist_ok=True)
    return save_snapshot(root, spec.run, *state(seed, round, 60)).read_bytes()


def loaded(root: Path, spec: RunSpec, place: SnapshotPlace, content: bytes) -> tuple[Slow, Fast]:
    """What a worker finds in it."""
    root.mkdir()
    (root / snapshot_name(place)).write_bytes(content)
    slow, fast, note = load_newest(root, spec.run, COUNT)
    assert note == ""
    return slow, fast


def facts(slow: Slow, fast: Fast) -> dict[str, object]:
    """All of a state as values that can be compared."""
    vectors = {"phi": slow.phi_P, "delta": slow.delta_P, "theta": fast.theta_P}
    vectors |= {"first": fast.moments.first_P, "second": fast.moments.second_P}
    vectors |= {f"own {name}": kept for name, kept in slow.own.items()}
    vectors |= {f"shared {name}": kept for name, kept in slow.shared.items()}
    numbers = (slow.round, fast.inner_step, fast.step_in_round, fast.moments.steps)
    return {"numbers": numbers, **{name: kept.tolist() for name, kept in vectors.items()}}


def test_of_noloco_the_whole_file_is_protected(tmp_path: Path) -> None:
    spec = protected(trainer=NolocoConfig())
    snapshot = saved(tmp_path, spec, 1, 3)
    assert private_part(spec, snapshot) == snapshot
    assert place_of(snapshot) == SnapshotPlace(3, 60)
    assert len(snapshot) <= most_bytes(spec)


@pytest.mark.parametrize("trainer", [DilocoConfig(), StreamingConfig(fragment_layers=1)])
def test_of_a_group_what_all_share_is_left_out_and_comes_from_a_member_of_the_same_round(
    tmp_path: Path, trainer: DilocoConfig
) -> None:
    spec = protected(trainer=trainer)
    slow, fast = state(1, 3, 60)
    snapshot = saved(tmp_path / "a", spec, 1, 3)
    private = private_part(spec, snapshot)
    assert len(snapshot) - len(private) == pytest.approx(3 * 4 * COUNT, abs=600)
    place, content = whole_again(private, *checkpoint_of(replace(slow, own={}), spec))
    assert place == SnapshotPlace(3, 60)
    assert facts(*loaded(tmp_path / "b", spec, place, content)) == facts(slow, fast)


def test_at_another_round_the_fast_weights_begin_anew_and_moments_and_counters_stay(
    tmp_path: Path,
) -> None:
    private = private_part(GROUP, saved(tmp_path / "a", GROUP, 1, 3))
    (ours, fast), (theirs, _) = state(1, 3, 60), state(2, 7, 0)
    place, content = whole_again(private, *checkpoint_of(theirs))
    assert place == SnapshotPlace(7, 60)
    expected = facts(
        replace(theirs, own=ours.own), replace(fast, theta_P=theirs.phi_P, step_in_round=0)
    )
    assert facts(*loaded(tmp_path / "b", GROUP, place, content)) == expected


def test_what_is_no_snapshot_is_refused_in_a_sentence(tmp_path: Path) -> None:
    snapshot = saved(tmp_path, GROUP, 1, 3)
    private = private_part(GROUP, snapshot)
    slow, _ = state(2, 3, 0)
    good, said = checkpoint_of(slow)
    other, _ = checkpoint_of(slow, protected())
    for bad in (b"", good[:-4], good[:40], b"\xff" * 100, private, other):
        with pytest.raises(Malformed):
            whole_again(private, bad, said)
    with pytest.raises(Malformed):
        private_part(GROUP, snapshot[:-4])
    with pytest.raises(Malformed):
        place_of(b"no snapshot")


@pytest.mark.parametrize("wrong", ["round", "weights"])
def test_a_checkpoint_that_is_another_than_its_donor_said_is_refused(
    tmp_path: Path, wrong: str
) -> None:
    """A second member stood up for the weights that were said, not for the bytes."""
    private = private_part(GROUP, saved(tmp_path, GROUP, 1, 3))
    data, said = checkpoint_of(state(2, 3, 0)[0])
    false = {"round": replace(said, round=Round(4)), "weights": replace(said, weights=NONE)}
    with pytest.raises(Malformed, match="of another round or with other weights than it says"):
        whole_again(private, data, false[wrong])


def test_the_name_of_a_snapshot_says_where_it_was_taken(tmp_path: Path) -> None:
    place = SnapshotPlace(12, 3456)
    assert snapshot_place(tmp_path / snapshot_name(place)) == place
    assert snapshot_place(tmp_path / "snapshot-1-x.safetensors") is None
    assert snapshot_place(tmp_path / "snapshot.safetensors") is None


async def test_a_member_of_a_group_comes_back_with_its_own_state_and_the_groups_weights(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, 4, GROUP)
    async with world as (owner, *_):
        snapshot = owner.save(1, round=3, inner_step=60)
        await owner.protect()
        assert owner.protection.status() is not None
        back = await world.comes_back(0)
        assert not await back.recover()  # nobody gives what all share
        assert snapshot_files(back.directory) == []
        theirs, _ = state(1, 3, 0)
        world.swarm.shared = theirs
        assert await back.recover()
        (file,) = snapshot_files(back.directory)
        recovered = load_newest(back.directory, GROUP.run, COUNT)[:2]
        (owner.directory / file.name).write_bytes(snapshot)
        assert facts(*recovered) == facts(*load_newest(owner.directory, GROUP.run, COUNT)[:2])
        assert torch.equal(recovered[0].phi_P, state(1, Round(3), 0)[0].phi_P)
