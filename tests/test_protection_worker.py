"""A real worker goes on from a snapshot that came out of shards as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import SmallRun, small_run
from test_learner import alone, peer

from node.protection.erasure import ErasureCode
from node.protection.files import place_of, private_part
from node.snapshots import snapshot_files, snapshot_name
from node.worker import wire
from protocol.ids import Round
from protocol.shards import ProtectionConfig
from protocol.spec import RunSpec

pytestmark = [pytest.mark.libp2p, pytest.mark.timeout(120)]

ROUNDS = 6
CUT_AT = 3


def only(directory: Path, content: bytes | None) -> None:
    """The directory has this snapshot and no other."""
    for file in snapshot_files(directory):
        file.unlink()
    if content is not None:
        (directory / snapshot_name(place_of(content))).write_bytes(content)


async def trained(run: SmallRun, how: wire.Start, rounds: range) -> bytes:
    """The snapshot that a worker leaves that started so and trained these rounds alone."""
    async with peer(run) as me:
        ready = await me.learner.start(how)
        assert (ready.round, ready.inner_step, ready.note) == (rounds.start, 4 * rounds.start, "")
        for round in rounds:
            await me.learner.inner(Round(round), 4)
            digest, _ = await me.learner.snapshot(Round(round), 0)
            await me.learner.outer(alone(round, digest))
            me.arena.release(digest)
    return snapshot_files(me.directory)[0].read_bytes()


def through_shards(spec: RunSpec, snapshot: bytes, lost: set[int]) -> bytes:
    """What `data` holders give back."""
    config = ProtectionConfig(data=2, parity=2)
    code = ErasureCode(config.data, config.parity)
    content = private_part(spec, snapshot)
    shards = [bytearray(code.shard_bytes(len(content))) for _ in range(config.shards)]
    code.cut(content, [memoryview(shard) for shard in shards])
    left = {index: shards[index] for index in range(config.shards) if index not in lost}
    return code.joined(left, len(content))


@pytest.mark.parametrize("lost", [{0, 1}, {2, 3}, {1, 2}])
async def test_training_from_a_recovered_snapshot_is_the_training_that_was_not_interrupted(
    tmp_path: Path, lost: set[int]
) -> None:
    """REFT R5: weights, moments, counters and data position end equal to the bit.

    From parity alone, from data alone, and from one of each.
    """
    run = small_run(tmp_path)
    directory = Path(run.setup().directory)
    uninterrupted = await trained(run, wire.StartFresh(), range(ROUNDS))
    only(directory, None)
    saved = await trained(run, wire.StartFresh(), range(CUT_AT))
    only(directory, through_shards(run.spec, saved, lost))
    assert await trained(run, wire.StartFromDisk(), range(CUT_AT, ROUNDS)) == uninterrupted
