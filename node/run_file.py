"""The run file: what must be equal on all peers, as a person writes it.

One TOML file with few dials, read into a `RunDraft` that becomes a `RunSpec` once the blobs are
known.  Whatever is wrong with it is one `ConfigError`: file, key, found, expected, what to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.config import read_toml
from node.settings import section, table_of, trainer_section, values
from protocol.algorithms import TrainerConfig
from protocol.errors import ConfigError
from protocol.ids import Digest, PeerId, peer_id
from protocol.model import GptConfig, InnerConfig
from protocol.shards import ProtectionConfig
from protocol.spec import BlobRef, DataConfig, RunSpec

CORPORA = ("shakespeare", "pydoc")
"""Corpora that a node can fetch by name, see node/corpus.py."""
_RUN_KEYS: dict[str, Any] = {
    "name": str,
    "data": str,
    "validation": str,
    "rounds": int,
    "seed": int,
    "min_members": int,
    "start_deadline_s": float,
    "private": bool,
    "changeable": tuple[str, ...],
}
_RUN_TABLES = ("model", "inner", "trainer", "protection")


@dataclass(frozen=True, slots=True)
class NamedCorpus:
    """One of `CORPORA`, fetched by its pinned hash."""

    name: str


@dataclass(frozen=True, slots=True)
class TextCorpus:
    """A person's own text, which becomes the run's corpus and validation text."""

    path: Path
    """A UTF-8 file, or a folder of .txt files."""


@dataclass(frozen=True, slots=True)
class OwnData:
    """Each peer trains on files of its own; this one text is everybody's yardstick."""

    validation: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDraft:
    """A run file, checked: everything of the `RunSpec` but creator, secret and blobs."""

    name: str
    data: NamedCorpus | TextCorpus | OwnData
    rounds: int
    seed: int
    min_members: int
    start_deadline_s: float
    private: bool
    model: GptConfig
    inner: InnerConfig
    trainer: TrainerConfig
    protection: ProtectionConfig | None = None
    changeable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._blank()  # for its checks

    @property
    def num_fragments(self) -> int:
        """P of the run."""
        return self._blank().num_fragments

    def _blank(self) -> RunSpec:
        """The spec of this run, but for who makes it and on which text."""
        blob = BlobRef(digest=Digest(bytes(32)), size_bytes=1)
        blobs = DataConfig(tokenizer=blob, validation=blob, corpus=None)
        return self.spec(creator=peer_id(bytes(32)), join_secret=None, data=blobs)

    def spec(self, *, creator: PeerId, join_secret: Digest | None, data: DataConfig) -> RunSpec:
        """The spec of this run, as `creator` makes it."""
        return RunSpec(
            name=self.name,
            creator=creator,
            seed=self.seed,
            rounds=self.rounds,
            min_members=self.min_members,
            start_deadline_s=self.start_deadline_s,
            join_secret=join_secret,
            model=self.model,
            inner=self.inner,
            trainer=self.trainer,
            data=data,
            protection=self.protection,
            changeable=self.changeable,
        )


def read_run_file(path: Path) -> RunDraft:
    """The run that a person's TOML file describes.

    Raises:
        ConfigError: what is wrong in the file and what to do.
    """
    table = read_toml(path)
    top = {key: value for key, value in table.items() if key not in _RUN_TABLES}
    given = values(path, "", _RUN_KEYS, top, also=_RUN_TABLES)
    try:
        data = _data(path, given.pop("data", CORPORA[0]), given.pop("validation", None))
        draft: dict[str, Any] = {
            "name": path.stem,
            "rounds": 100,
            "seed": 0,
            "min_members": 1,
            "start_deadline_s": 60.0,
            "private": False,
        }
        tables = {name: table_of(name, table.get(name, {})) for name in _RUN_TABLES}
        trainer = trainer_section(path, tables["trainer"])
        given["changeable"] = tuple(sorted(given.get("changeable", trainer.changeable)))
        return RunDraft(
            **(draft | given),
            data=data,
            model=section(path, "model", GptConfig, tables["model"]),
            inner=section(path, "inner", InnerConfig, tables["inner"]),
            trainer=trainer,
            protection=_protection(path, table.get("protection")),
        )
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; correct it and start again") from None


def _protection(path: Path, table: object) -> ProtectionConfig | None:
    """Off unless there is a table [protection], if only an empty one."""
    if table is None:
        return None
    return section(path, "protection", ProtectionConfig, table_of("protection", table))


def _data(path: Path, data: str, validation: str | None) -> NamedCorpus | TextCorpus | OwnData:
    if (validation is not None) != (data == "own"):
        raise ValueError(
            f'data is {data!r:.60} and validation is {validation!r:.60}, expected data = "own" '
            'together with validation = "text:PATH", or no validation'
        )
    if data in CORPORA:
        return NamedCorpus(data)
    if data == "own":
        return OwnData(_text_path(path, "validation", str(validation)))
    return TextCorpus(_text_path(path, "data", data))


def _text_path(path: Path, key: str, value: str) -> Path:
    """What "text:PATH" names; a relative PATH is seen from the run file."""
    scheme, _, name = value.partition(":")
    if scheme != "text" or not name:
        choices = f'{", ".join(CORPORA)}, "own" or ' if key == "data" else ""
        raise ValueError(f'{key} is {value!r:.60}, expected {choices}"text:PATH"')
    file = path.parent / Path(name).expanduser()
    if not file.is_file() and (key == "validation" or not file.is_dir()):
        raise ValueError(f"{key} is {value!r:.200}, but there is no file {file}")
    return file.resolve()
