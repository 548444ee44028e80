"""Conditions that constructors check, each with one clear sentence.

A condition that fails raises ValueError: from the wire it becomes `Malformed`, from a
person's file `ConfigError`, at the layer that knows which.
"""

from __future__ import annotations

import math

from protocol.ids import DIGEST_BYTES, public_key
from protocol.limits import MAX_ADDR_BYTES, MAX_ADDRS


def integer(name: str, value: object, least: int, most: int) -> None:
    """`value` is an int (True is none) within [least, most]."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}, expected a whole number from {least} to {most}")


def number(name: str, value: object, least: float, most: float) -> None:
    """`value` is a finite float within [least, most]."""
    if type(value) is not float or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.40}, expected a number from {least:g} to {most:g}")


def text(name: str, value: object, most: int, *, least: int = 0) -> None:
    """`value` is a str of `least` to `most` UTF-8 bytes."""
    if type(value) is not str or not least <= len(value.encode("utf-8", "replace")) <= most:
        raise ValueError(f"{name} is {value!r:.60}, expected text of {least} to {most} bytes")


def line(name: str, value: object, most: int, *, least: int = 0) -> None:
    """`value` is a str of `least` to `most` UTF-8 bytes that all print, on one line."""
    text(name, value, most, least=least)
    if not str(value).isprintable():
        raise ValueError(f"{name} is {value!r:.60}, expected characters that print, on one line")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """`value` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r:.40}, expected one of {', '.join(choices)}")


def raw(name: str, value: object, least: int, most: int) -> None:
    """`value` is bytes of a length within [least, most]."""
    if type(value) is not bytes or not least <= len(value) <= most:
        size = len(value) if type(value) is bytes else type(value).__name__
        raise ValueError(f"{name} has {size} bytes, expected {least} to {most}")


def digest(name: str, value: object) -> None:
    """`value` is a blake2b-256 hash."""
    raw(name, value, DIGEST_BYTES, DIGEST_BYTES)


def peer(name: str, value: object) -> None:
    """`value` is the id of an Ed25519 key."""
    try:
        public_key(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def items(name: str, value: object, most: int) -> None:
    """`value` is a tuple of at most `most` items."""
    if type(value) is not tuple or len(value) > most:
        raise ValueError(f"{name} has too many items or is no tuple, expected at most {most}")


def addr(name: str, value: object) -> None:
    """`value` is a text as long as a multiaddr may be; whether it is one, the dialler finds out."""
    text(name, value, MAX_ADDR_BYTES, least=1)


def addrs(name: str, value: tuple[object, ...]) -> None:
    """`value` is a tuple of as many addresses as a peer may have."""
    items(name, value, MAX_ADDRS)
    for item in value:
        addr("addr", item)
