"""Values that a person wrote, checked: types by key, and addresses.

What is wrong is one sentence: where, key, found, expected, what to do.
"""

from __future__ import annotations

import ipaddress
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from protocol import check
from protocol.algorithms import TRAINERS, NolocoConfig, TrainerConfig
from protocol.errors import ConfigError

S = TypeVar("S")

_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_EXPECTED = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


def values(
    source: Path | str,
    prefix: str,
    kinds: Mapping[str, Any],
    table: Mapping[str, object],
    *,
    also: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The table's values in the types that `kinds` gives for its keys."""
    checked = {}
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(
                f"{source}: unknown key {prefix}{key}, expected one of "
                f"{', '.join((*kinds, *also))}; correct or remove it"
            )
        checked[key] = _typed(source, prefix + key, kinds[key], value)
    return checked


def trainer_section(path: Path, table: Mapping[str, object]) -> TrainerConfig:
    """The table [trainer] of a file: `kind` and what that trainer can be told."""
    kind = table.get("kind", NolocoConfig.KIND)
    check.one_of("trainer.kind", kind, tuple(TRAINERS))
    settings = {key: value for key, value in table.items() if key != "kind"}
    return section(path, "trainer", TRAINERS[str(kind)], settings)


def section(path: Path, name: str, kind: type[S], table: Mapping[str, object]) -> S:
    """A table of a file as its settings dataclass."""
    hints = {key: hint for key, hint in typing.get_type_hints(kind).items() if key.islower()}
    return kind(**values(path, f"{name}.", hints, table))


def table_of(name: str, found: object) -> dict[str, object]:
    """What a file has as a table.  Raises `ValueError`: it is none."""
    if type(found) is not dict:
        raise ValueError(f"{name} is {found!r:.40}, expected a table [{name}]")
    return found


def _typed(source: Path | str, key: str, kind: Any, value: object) -> Any:
    """`value` as `kind`; a whole number is a number, and a list of texts may be of paths."""
    if kind is float and type(value) is int:
        return float(value)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if isinstance(value, list | tuple):
            return tuple(_typed(source, key, item, each) for each in value)
    elif kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    elif type(value) is kind:
        return value
    expected = _EXPECTED.get(kind, "a path in quotes" if kind is Path else "a list in brackets")
    raise ConfigError(f"{source}: {key} is {value!r:.60}, expected {expected}; change it")


def check_addr(name: str, addr: str, *, peer: bool) -> None:
    """`addr` is a TCP multiaddr; with `peer`, of a named peer, perhaps through a relay.

    Raises:
        ValueError: what was found and what was expected.
    """
    expected = "/ip4/HOST/tcp/PORT" + ("/p2p/PEER" if peer else "")
    wrong = ValueError(f"{name} is {addr!r:.160}, expected a multiaddr such as {expected}")
    relay, found, target = addr.partition("/p2p-circuit")
    parts = relay.split("/")
    lengths = (7,) if peer else (5, 7)
    if len(parts) not in lengths or parts[0] or parts[3] != "tcp" or (found and not peer):
        raise wrong
    host, port = parts[2], parts[4]
    if parts[1] not in _HOSTS or not host or not _is_port(port):
        raise wrong
    try:
        if parts[1] in ("ip4", "ip6"):
            version = ipaddress.ip_address(host).version
            if parts[1] != f"ip{version}":
                raise wrong
        named = [parts[5:], target.split("/")[1:]] if found else [parts[5:]]
        for item in filter(None, named):
            check.one_of("protocol", item[0], ("p2p",))
            check.peer("peer", "/".join(item[1:]))
    except ValueError:
        raise wrong from None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535
