"""The model of a data directory, as a snapshot has it, whether its node runs or not.

A running node writes snapshots whole and removes all but the newest (`node.snapshots.KEPT`), so a
file that was listed may be gone when it is opened: then the directory is looked at again.
Everything that is wrong is a `ConfigError` in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from node.keys import DataDir
from node.snapshots import snapshot_files, snapshot_place
from node.worker.files import read_weights
from node.worker.materials import read_validation
from protocol.errors import ConfigError, Malformed
from protocol.fragments import num_parameters
from protocol.ids import Round, short
from protocol.limits import MAX_ROUND
from protocol.manifest import manifest_of
from protocol.spec import BlobRef, RunSpec, SignedSpec
from trainers.model import model_on

LOOKS = 10
"""How often the directory is looked at while files vanish from it.  A node writes a snapshot a
round, so that twice in a row is rare already."""
NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class Trained:
    """Weights, and what is needed to use them."""

    spec: RunSpec
    round: Round
    weights_P: Tensor
    """Slow weights, float32 (P,)."""
    tokenizer: bytes
    """JSON."""
    note: str
    """Newer snapshots that were not usable, and why; empty: there are none."""


def read_trained(directory: DataDir, round: str = NEWEST) -> Trained:
    """The model of a data directory.

    Args:
        round: its number, or "newest".

    Raises:
        ConfigError: there is no run, no such snapshot, or a file is broken.
    """
    wanted = None if round == NEWEST else _number(round)
    spec = _spec(directory)
    tokenizer = _blob(directory, spec.data.tokenizer, "the tokenizer")
    for _ in range(LOOKS):
        try:
            found, weights_P, note = _snapshot(directory.worker, spec, wanted)
        except FileNotFoundError:
            continue
        return Trained(spec, found, weights_P, tokenizer, note)
    raise ConfigError(
        f"{directory.worker}: {LOOKS} snapshots in a row were gone before they were read, expected "
        "one that stays; stop the node or try again"
    )


def validation_loss(directory: DataDir, trained: Trained) -> float:
    """Of the weights on the run's validation text, nats per byte.

    Raises:
        ConfigError: the text is not here, or not usable.
    """
    spec = trained.spec
    _blob(directory, spec.data.validation, "the validation text")
    paths = [_path(directory, ref) for ref in (spec.data.tokenizer, spec.data.validation)]
    try:
        validation = read_validation(spec, str(paths[0]), str(paths[1]))
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"validation text of run {short(spec.run)}: {error}, expected text of the run's "
            "tokenizer; export without --evaluate"
        ) from error
    return validation.loss(model_on(spec.model, trained.weights_P))


def _number(round: str) -> Round:
    if not (round.isascii() and round.isdigit()) or len(round) > 8 or int(round) > MAX_ROUND:
        raise ConfigError(
            f"command line: --round is {round!r:.20}, expected {NEWEST} or a number from 0 to "
            f"{MAX_ROUND}"
        )
    return Round(int(round))


def _spec(directory: DataDir) -> RunSpec:
    run = directory.claimed_run()
    if run is None:
        raise ConfigError(
            f"data directory {directory.root}: no run in it, expected one that was trained; give "
            "its directory with --data-dir, or begin with `shoal run create FILE` or "
            "`shoal join TICKET`"
        )
    try:
        return SignedSpec(directory.spec.read_bytes(), directory.signature.read_bytes()).open(run)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.filename}: not there yet, expected the spec of run {short(run)}; start the "
            "node with `shoal up` and wait until it trains"
        ) from error
    except (Malformed, OSError) as error:
        raise ConfigError(
            f"{directory.spec}: {_reason(error)}, expected the spec of run {short(run)}; start the "
            "node with `shoal up`, which asks a member for it"
        ) from error


def _blob(directory: DataDir, ref: BlobRef, what: str) -> bytes:
    """The verified bytes of a blob of the spec."""
    path = _path(directory, ref)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: {_reason(error)}, expected {what} of the run; start the node with "
            "`shoal up` and wait until it trains"
        ) from error
    if not data or manifest_of(data).name != ref.digest:
        raise ConfigError(
            f"{path}: found {len(data)} bytes that are not {what} of the run, expected "
            f"{ref.size_bytes} with that digest; start the node with `shoal up`, which fetches "
            "them again"
        )
    return data


def _path(directory: DataDir, ref: BlobRef) -> Path:
    return directory.blobs / ref.digest.hex()


def _snapshot(folder: Path, spec: RunSpec, wanted: Round | None) -> tuple[Round, Tensor, str]:
    """Round and slow weights of the newest usable snapshot, and a note about newer ones.

    Raises:
        FileNotFoundError: one has gone meanwhile.
        ConfigError: none is usable.
    """
    files, count, notes = _candidates(folder, wanted), num_parameters(spec.model), []
    for path in files:
        try:
            round, weights_P = read_weights(path, spec.run, count)
        except FileNotFoundError:
            raise
        except (Malformed, OSError) as error:
            notes.append(f"{path.name}: {_reason(error)}")
            continue
        return round, weights_P, "; ".join(notes)
    raise ConfigError(
        f"no usable snapshot in {folder}: {'; '.join(notes)}; expected a whole one of run "
        f"{short(spec.run)}: start the node with `shoal up`, which begins anew from a member"
    )


def _candidates(folder: Path, wanted: Round | None) -> list[Path]:
    """Newest first, one at least."""
    try:
        files = snapshot_files(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder}: {error.strerror}, expected a directory of snapshots; correct its rights"
        ) from error
    if not files:
        raise ConfigError(
            f"no snapshot in {folder} yet, expected one, which the node writes when its training "
            "starts; start it with `shoal up` and wait until it trains"
        )
    if wanted is None:
        return files
    rounds = {path: place.round for path in files if (place := snapshot_place(path))}
    if wanted not in rounds.values():
        held = ", ".join(str(round) for round in sorted(set(rounds.values())))
        raise ConfigError(
            f"command line: --round is {wanted}, expected one of those that {folder} has a "
            f"snapshot of: {held}"
        )
    return [path for path in files if rounds.get(path) == wanted]


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
