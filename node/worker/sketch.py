"""The worker's side of sketches: of its own slow weights, and of a checkpoint before it is used."""

from __future__ import annotations

from collections.abc import Sequence

from node.worker import wire
from node.worker.materials import Materials, from_checkpoint
from node.worker.wire_join import MakeSketch, Sketched
from protocol.errors import Malformed
from trainers.sketch import sketch
from trainers.state import Slow


def sketched(slow: Slow, nonce: int) -> Sketched:
    """The sketch of these slow weights."""
    numbers = sketch(slow.phi_P, nonce).cpu().numpy().astype("<f4").tobytes()
    return Sketched(slow.round, slow.digest(), numbers)


def sketch_of_checkpoint(
    command: MakeSketch, fds: Sequence[int], materials: Materials
) -> Sketched | wire.Failed:
    """The sketch of the checkpoint that came with the command, or why it is none of this run."""
    try:
        if command.checkpoint is None:
            raise Malformed("no checkpoint to sketch")
        return sketched(from_checkpoint(command.checkpoint, fds, materials), command.nonce)
    except (Malformed, OSError) as error:
        return wire.Failed(str(error))
