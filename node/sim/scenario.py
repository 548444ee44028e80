"""A scenario: a run, who takes part in it, how they are connected, what happens to them.

Read from a TOML file, whose tables [model], [inner] and [trainer] are those of a run file.
Whatever is wrong with a file is one `ConfigError`: file, key, found, expected, what to do.
docs/simulator.md explains the keys; examples/scenarios/ has files to start from.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from node.config import read_toml
from node.settings import section, table_of, trainer_section, values
from node.sim import records as sim_records
from node.sim.peer import Conditions
from node.sim.settings import (
    MAX_PEERS,
    MAX_TIME_S,
    ChurnConfig,
    GroupConfig,
    HappeningConfig,
    NetworkConfig,
    ToyConfig,
)
from protocol import check
from protocol.errors import ConfigError
from protocol.ids import Digest, peer_id
from protocol.model import GptConfig, InnerConfig
from protocol.spec import BlobRef, DataConfig, RunSpec

T = TypeVar("T")

LEARNERS = ("toy", "model")
MAX_MODELS = 64
"""Peers that hold the real model: some GB, and hours of this processor."""
MAX_GROUPS = 64
MAX_HAPPENINGS = 256
MAX_SAMPLES = 10_000
"""Points of a curve: each looks at all peers."""
SAMPLES = 100
"""Points of a curve, unless told otherwise."""
DEFAULT_SAMPLE_S = 5.0
"""Between two points where no time says when it ends."""
ENDLESS_ROUNDS = 1_000_000
"""Of a run that ends by the clock."""
STATE_DEADLINE_S = 60.0
"""Of a transfer in a run that exchanges no payloads: the state that a joiner starts from."""
_TABLES = ("model", "inner", "trainer", "toy", "network", "churn", "peers", "happens")
_KEYS = {"name", "learner", "seed", "rounds", "time_s", "sample_s", "loss", "records"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that a simulation depends on: equal scenarios have equal reports."""

    name: str
    learner: str = "toy"
    seed: int = 0
    rounds: int = 0
    """Where the run ends; 0: by the clock."""
    time_s: float = 0.0
    """When the simulation ends at the latest, in virtual seconds; 0: with the run."""
    sample_s: float = 0.0
    """Between two points of the curves; 0: a hundredth of the time."""
    loss: float = 0.0
    """When was the swarm's loss this good?  0: nobody asks."""
    records: bool = False
    """Whether peers keep the run's records, as nodes do: for tens of them."""
    spec: RunSpec
    toy: ToyConfig
    network: NetworkConfig
    churn: ChurnConfig
    groups: tuple[GroupConfig, ...]
    happens: tuple[HappeningConfig, ...]

    def __post_init__(self) -> None:
        check.one_of("learner", self.learner, LEARNERS)
        check.integer("seed", self.seed, 0, (1 << 63) - 1)
        check.integer("rounds", self.rounds, 0, ENDLESS_ROUNDS)
        check.number("time_s", self.time_s, 0.0, MAX_TIME_S)
        check.number("sample_s", self.sample_s, 0.0, MAX_TIME_S)
        check.number("loss", self.loss, 0.0, 1e6)
        check.items("peers", self.groups, MAX_GROUPS)
        check.items("happens", self.happens, MAX_HAPPENINGS)
        if not (self.rounds or self.time_s):
            raise ValueError("rounds and time_s are 0, expected one of them, or both")
        if self.time_s / self.every_s > MAX_SAMPLES:
            least = self.time_s / MAX_SAMPLES
            raise ValueError(f"sample_s is {self.sample_s:g}, expected {least:g} or more")
        self._check_peers()

    def _check_peers(self) -> None:
        most = MAX_MODELS if self.learner == "model" else MAX_PEERS
        if not 1 <= self.size <= most:
            raise ValueError(
                f"peers are {self.size} in all, expected 1 to {most} with learner = "
                f'"{self.learner}": a table [[peers]] for each group'
            )
        if self.records and self.size > sim_records.MAX_PEERS:
            raise ValueError(
                f"peers are {self.size} in all, expected 1 to {sim_records.MAX_PEERS} with "
                "records = true: each takes in the records of all"
            )
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise ValueError(f"peers have the names {', '.join(names)}, expected no two alike")
        for happening in self.happens:
            if happening.group and happening.group not in names:
                raise ValueError(
                    f"happens.group is {happening.group!r:.40}, expected one of {', '.join(names)}"
                )

    @property
    def size(self) -> int:
        """Peers at the start."""
        return sum(group.count for group in self.groups)

    @property
    def conditions(self) -> Conditions:
        """What the world does to all peers; a transfer has the time that the run gives it."""
        return replace(
            self.network.conditions(),
            fetch_deadline_s=self.spec.exchange_deadline_s or STATE_DEADLINE_S,
        )

    @property
    def end_s(self) -> float:
        """When the simulation ends, whatever happens."""
        return self.time_s or MAX_TIME_S

    @property
    def every_s(self) -> float:
        """Between two points of the curves."""
        return self.sample_s or (self.time_s / SAMPLES if self.time_s else DEFAULT_SAMPLE_S)


def read_scenario(path: Path, *, seed: int | None = None) -> Scenario:
    """The scenario that a person's TOML file describes; `seed` instead of the file's.

    Raises:
        ConfigError: what is wrong in the file and what to do.
    """
    table = read_toml(path)
    kinds = {key: kind for key, kind in typing.get_type_hints(Scenario).items() if key in _KEYS}
    top = {key: value for key, value in table.items() if key not in _TABLES}
    given = {"name": path.stem, **values(path, "", kinds, top, also=_TABLES)}
    if seed is not None:
        given["seed"] = seed
    try:
        return Scenario(
            **given,
            spec=_spec(path, given, table),
            toy=_section(path, "toy", ToyConfig, table.get("toy", {})),
            network=_section(path, "network", NetworkConfig, table.get("network", {})),
            churn=_section(path, "churn", ChurnConfig, table.get("churn", {})),
            groups=_named(_sections(path, "peers", GroupConfig, table)),
            happens=_sections(path, "happens", HappeningConfig, table),
        )
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; correct it and start again") from None


def _spec(path: Path, given: Mapping[str, Any], table: Mapping[str, object]) -> RunSpec:
    """The run that is simulated; nobody made it, and its texts are nowhere."""
    blob = BlobRef(digest=Digest(bytes(32)), size_bytes=1)
    return RunSpec(
        name=given["name"],
        creator=peer_id(bytes(32)),
        seed=given.get("seed", 0),
        rounds=given.get("rounds") or ENDLESS_ROUNDS,
        min_members=1,
        start_deadline_s=0.0,
        join_secret=None,
        model=section(path, "model", GptConfig, table_of("model", table.get("model", {}))),
        inner=section(path, "inner", InnerConfig, table_of("inner", table.get("inner", {}))),
        trainer=trainer_section(path, table_of("trainer", table.get("trainer", {}))),
        data=DataConfig(tokenizer=blob, validation=blob, corpus=None),
    )


def _sections(path: Path, name: str, kind: type[T], table: Mapping[str, object]) -> tuple[T, ...]:
    """The tables [[name]] of a file."""
    found = table.get(name, [])
    if type(found) is not list:
        raise ValueError(f"{name} is {found!r:.40}, expected tables [[{name}]]")
    return tuple(_section(path, f"{name}[{n}]", kind, each) for n, each in enumerate(found))


def _section(path: Path, name: str, kind: type[T], found: object) -> T:
    """A table whose settings class names its fields without it."""
    table = table_of(name, found)
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        if each.default is dataclasses.MISSING and each.name not in table:
            raise ValueError(f"{name}.{each.name} is missing, expected a value for it")
    try:
        return section(path, name, kind, table)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from None


def _named(groups: tuple[GroupConfig, ...]) -> tuple[GroupConfig, ...]:
    """A group without a name is called by its number."""
    return tuple(replace(group, name=group.name or f"{n}") for n, group in enumerate(groups))
