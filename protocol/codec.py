"""Dataclasses to bytes and back.  The only file that knows the encoding.

A dataclass travels as the msgpack array of its fields in order, nested dataclasses and
tuples as nested arrays; a class with a `TAG` puts the tag first, so that a union of such
classes is decoded by tag.  `decode` is total and canonical: for any bytes at all it either
raises `Malformed` or returns the one value that encodes to exactly those bytes.  Ranges are
the constructors' business: a value that exists is valid.

Source: msgpack, https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

import msgpack

from protocol.errors import Malformed

T = TypeVar("T")

MAX_ITEMS = 4096
"""Longest tuple in any value: the bucket table of the record sync is 256, a push 64."""


def encode(value: object) -> bytes:
    """The value as bytes; equal values give equal bytes."""
    data: bytes = msgpack.packb(_plain(value))
    return data


def decode(kind: type[T], data: bytes, *, max_bytes: int) -> T:
    """The value of type `kind` (a dataclass, or a union of tagged ones) that `data` encodes.

    Raises:
        Malformed: anything else, or more than `max_bytes`.
    """
    if len(data) > max_bytes:
        raise Malformed(f"{len(data)} bytes, at most {max_bytes}")
    try:
        raw = msgpack.unpackb(data, max_array_len=MAX_ITEMS, max_map_len=0, max_ext_len=0)
        value: T = _typed(kind, raw)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.StackError) as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error
    if encode(value) != data:
        raise Malformed("not in canonical form")
    return value


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        fields = [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
        return [value.TAG, *fields] if hasattr(value, "TAG") else fields
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _typed(kind: Any, raw: object) -> Any:
    """`raw` as a value of the annotation `kind`, or ValueError / TypeError."""
    kind = getattr(kind, "__supertype__", kind)  # a NewType is what it wraps
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, raw)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if type(raw) is not list:
            raise TypeError(f"{type(raw).__name__}, not an array")
        (item, _) = typing.get_args(kind)  # only tuple[X, ...] is used
        return tuple(_typed(item, element) for element in raw)
    if origin in (types.UnionType, typing.Union):
        return _union(typing.get_args(kind), raw)
    if kind is type(None):
        kind = types.NoneType
    if type(raw) is not kind:  # `type`, for True is an int
        raise TypeError(f"{type(raw).__name__}, not {getattr(kind, '__name__', kind)}")
    return raw


def _union(options: tuple[Any, ...], raw: object) -> Any:
    """Of tagged classes the one with the tag; else None or the other option."""
    if raw is None and type(None) in options:
        return None
    tagged = {option.TAG: option for option in options if hasattr(option, "TAG")}
    if tagged:
        if type(raw) is not list or not raw or type(raw[0]) is not int or raw[0] not in tagged:
            raise ValueError(
                f"unknown tag {raw[0]!r:.20}" if raw and type(raw) is list else "no tag"
            )
        return _dataclass(tagged[raw[0]], raw)
    (only,) = (option for option in options if option is not type(None))
    return _typed(only, raw)


def _dataclass(cls: type[Any], raw: object) -> Any:
    if type(raw) is not list:
        raise TypeError(f"{type(raw).__name__}, not an array")
    values = raw
    if hasattr(cls, "TAG"):
        if not raw or type(raw[0]) is not int or raw[0] != cls.TAG:
            raise ValueError(f"not tagged as {cls.__name__}")
        values = raw[1:]
    kinds = _field_types(cls)  # type: ignore[arg-type]  # a class is hashable
    if len(values) != len(kinds):
        raise ValueError(f"{cls.__name__} has {len(kinds)} fields, found {len(values)}")
    return cls(
        **{name: _typed(kind, item) for (name, kind), item in zip(kinds, values, strict=True)}
    )


@functools.cache
def _field_types(cls: type) -> tuple[tuple[str, Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((field.name, hints[field.name]) for field in dataclasses.fields(cls))
