"""Changes of settings in the middle of a run: what the creator may say, and the spec that follows.

A run's spec never changes; it names the settings that its creator may give another value later.
A `Change` says which, what, and from which round on.  Each peer decides from which round on it
obeys: from the one that is named, or from the first that it has not begun when it hears of it.
So peers that hear of it at different times have different settings for a while, and only those
may be changeable with which that breaks nothing: see `changeable` of each trainer in
`protocol.algorithms`.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from protocol import check
from protocol.algorithms import MAX_CHANGEABLE
from protocol.ids import Round
from protocol.limits import MAX_ROUND
from protocol.spec import RunSpec

MAX_NAME_BYTES = 32
MAX_VALUE_BYTES = 32
MAX_CHANGES = MAX_CHANGEABLE
"""The newest of each setting counts, and no trainer has more."""
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,20})?([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting, its new value as a run file has it, and from which round on.

    A claim of the creator: `checked` says whether it can be obeyed.
    """

    name: str
    """The table of the run file and the key: inner.lr, trainer.inner_steps, ..."""
    value: str
    """The number, or the text without its quotes."""
    round: Round

    def __post_init__(self) -> None:
        check.text("change.name", self.name, MAX_NAME_BYTES, least=1)
        check.text("change.value", self.value, MAX_VALUE_BYTES, least=1)
        check.integer("change.round", self.round, 0, MAX_ROUND)


@dataclass(frozen=True, slots=True)
class InForce:
    """A change that one peer obeys."""

    change: Change
    since: Round
    """From this round on: the change's, or a later one."""


def checked(spec: RunSpec, change: Change) -> RunSpec:
    """The spec with this change alone.

    Raises:
        ValueError: the run does not let its creator change that, or not to that.
    """
    if change.name not in spec.changeable:
        names = ", ".join(spec.changeable) or "none: no setting of this run is"
        raise ValueError(f"{change.name} is not changeable in this run, expected one of {names}")
    table, key = change.name.split(".")
    settings: Any = getattr(spec, table)
    return replace(spec, **{table: replace(settings, **{key: _typed(settings, key, change)})})


def value_of(spec: RunSpec, name: str) -> str:
    """What a changeable setting is in a spec, as a change would have it."""
    table, key = name.split(".")
    value = getattr(getattr(spec, table), key)
    return f"{value:g}" if isinstance(value, float) else str(value)


def spec_in(spec: RunSpec, changes: Iterable[InForce], round: Round) -> RunSpec:
    """The settings of a round; its `run` is none, the run's name is that of `spec`.

    Args:
        changes: valid ones, see `checked`.
    """
    for one in sorted(changes, key=lambda one: one.since):
        if one.since <= round:
            spec = checked(spec, one.change)
    return spec


def _typed(settings: object, key: str, change: Change) -> int | float | str:
    kind = typing.get_type_hints(type(settings))[key]
    if kind is str:
        return change.value
    if kind is int and re.fullmatch(r"\d{1,9}", change.value, re.ASCII):
        return int(change.value)
    if kind is float and _NUMBER.fullmatch(change.value):
        return float(change.value)
    expected = "a whole number" if kind is int else "a number such as 0.001 or 1e-3"
    raise ValueError(f"{change.name} is {change.value!r:.40}, expected {expected}")
