"""`shoal export`: a snapshot's slow weights into a folder that other programs read.

Two formats: `hf` is what `from_pretrained` of transformers loads, `safetensors` the parameters
under the names that `trainers.model` gives them.  The folder is written beside, flushed and
renamed, so under its name it is whole or as it was before.  Only where an earlier export is
replaced, there is none for an instant: if the process is killed in it, the next export to that
name puts the earlier one back before anything else, and removes what else was left.
Source: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as serialized

from node import hugging_face
from node.config import NodeConfig
from node.files import settle
from node.keys import DataDir
from node.snapshots import METADATA_KEY
from node.trained import Trained, read_trained, validation_loss
from protocol.errors import ConfigError
from protocol.ids import Round, RunId, digest_of
from protocol.limits import MIB
from trainers.model import views

FORMATS = ("hf", "safetensors")
OURS = frozenset(
    ("README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
     "tokenizer_config.json")
)  # fmt: skip
"""What an export consists of: a folder with anything else in it is never replaced."""
NEW, OLD = "new", "old"
"""Folders in the hidden one: what is being written, and what it replaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line."""

    config: NodeConfig
    target: Path
    """The folder to make."""
    format: str
    round: str
    """A number, or "newest"."""
    force: bool
    """Replace an earlier export."""
    evaluate: bool
    """Measure the validation loss."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    folder: Path
    size_bytes: int
    run: RunId
    round: Round
    loss: float | None
    """Nats per byte; None: not asked for."""
    note: str
    """Newer snapshots that were not usable, and why; empty: there are none."""


def export_model(options: Options) -> Exported:
    """Write the folder.

    Raises:
        ConfigError: no usable snapshot, a folder that must not be replaced, or no room.
    """
    if options.format not in FORMATS:
        raise ConfigError(
            f"command line: --format is {options.format!r:.40}, expected one of "
            f"{', '.join(FORMATS)}"
        )
    target = options.target.expanduser().absolute()
    check_target(target, force=options.force)
    torch.set_num_threads(options.config.threads)  # the node may be training meanwhile
    directory = DataDir(options.config.data_dir)
    trained = read_trained(directory, options.round)
    loss = validation_loss(directory, trained) if options.evaluate else None
    is_hf = options.format == "hf"
    files = hugging_face.folder(trained, loss) if is_hf else plain_folder(trained)
    write_folder(target, files, force=options.force)
    size_bytes = sum(len(data) for data in files.values())
    return Exported(target, size_bytes, trained.spec.run, trained.round, loss, trained.note)


def plain_folder(trained: Trained) -> dict[str, bytes]:
    """Parameters under their own names, what they are as JSON in the metadata, the tokenizer."""
    spec, model = trained.spec, trained.spec.model
    about = {
        "run": spec.run.hex(),  # the digest of the spec
        "round": trained.round,
        "weights": digest_of(trained.weights_P.numpy().data.cast("B")).hex(),
        "model": {
            "layers": model.layers,
            "heads": model.heads,
            "width": model.width,
            "context": model.context,
            "vocab": model.vocab,
        },
    }
    tensors = views(model, trained.weights_P)
    return {
        "model.safetensors": serialized(tensors, {METADATA_KEY: json.dumps(about)}),
        "tokenizer.json": trained.tokenizer,
    }


def check_target(target: Path, *, force: bool) -> None:
    """A folder may be made there.

    Raises:
        ConfigError: there is something that must not be replaced, or no folder to make it in.
    """
    if not target.parent.is_dir():
        raise ConfigError(
            f"{target}: there is no directory {target.parent}, expected one to write to; make it "
            "first"
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConfigError(
            f"{target}: found a file or a link, expected no such name yet; choose another one"
        )
    if not target.is_dir():
        return
    found = sorted(path.name for path in target.iterdir())
    if found and not force:
        raise ConfigError(
            f"{target}: found a folder with {len(found)} files, expected none; choose another "
            "name, or replace an earlier export with --force"
        )
    if strange := [name for name in found if name not in OURS]:
        raise ConfigError(
            f"{target}: found {strange[0]!r:.80} in it, expected only files of an export, for "
            "--force replaces the whole folder; choose another name"
        )


def write_folder(target: Path, files: Mapping[str, bytes], *, force: bool) -> None:
    """Make the folder, all of it or nothing.

    Raises:
        ConfigError: as `check_target`, or the disk has no room or refuses.
    """
    size_bytes = sum(len(data) for data in files.values())
    try:
        with _workplace(target) as work:
            free_bytes = shutil.disk_usage(target.parent).free
            if free_bytes < size_bytes:
                raise ConfigError(
                    f"disk: {free_bytes / MIB:.1f} MiB are free in {target.parent}, expected room "
                    f"for {size_bytes / MIB:.1f} MiB; free some space or choose another folder"
                )
            (work / NEW).mkdir()
            for name, data in files.items():
                beside = work / f"{name}.new"
                beside.write_bytes(data)
                settle(beside, work / NEW / name)
            _put(work, target, force=force)
    except OSError as error:
        raise ConfigError(
            f"disk: {error.strerror} at {target}, expected to write {size_bytes / MIB:.1f} MiB "
            "there; free some space or choose another folder"
        ) from error


@contextlib.contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target`, ours alone and gone at the end.

    Raises:
        ConfigError: another export to the same name is under way.
        OSError: it cannot be made.
    """
    work = target.with_name(f".{target.name}.export")
    work.mkdir(exist_ok=True)
    with (work / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{target}: another export to it is under way, expected none; wait until that has "
                "ended or choose another name"
            ) from None
        try:
            _put_back(work, target)
            shutil.rmtree(work / NEW, ignore_errors=True)
            yield work
        finally:
            _put_back(work, target)
            shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, target: Path, *, force: bool) -> None:
    """Give the new folder its name; an earlier export is in `work` until that is done."""
    check_target(target, force=force)  # whatever came there while we were writing
    if target.exists():
        target.rename(work / OLD)
    settle(work / NEW, target)


def _put_back(work: Path, target: Path) -> None:
    """An earlier export that was moved away gets its name again, if no other took it."""
    if (work / OLD).is_dir() and not os.path.lexists(target):
        (work / OLD).rename(target)
    shutil.rmtree(work / OLD, ignore_errors=True)
