"""An author's document: pycrdt updates to keyed bytes, and the update that changes them.

A document is one map of text keys to byte strings.  It is never kept: `read` rebuilds it
from the author's chain, on a scratch document that is dropped afterwards, so that half of a
bad update can stay nowhere.  The updates come from strangers.  Signed is not harmless, and
yrs under pycrdt 0.14.13 must not see whatever its author liked to sign:

* 9 bytes that claim 2**28 clients cost 0.8 s and 532 MB;
* an array nested 16,000 deep (32 kB; with a stack of 2 MiB 8,000, 16 kB) overflows the stack: the
  process dies with a segmentation fault;
* other nonsense raises RuntimeError halfway through, or panics, which is a BaseException.

Therefore `_check_shape` reads the update first and lets through only what this file itself
writes: byte strings set in, or deleted from, one map.  No count is believed, nothing nests.

Source: the update format v1, https://github.com/yjs/yjs/blob/main/INTERNALS.md and
https://github.com/y-crdt/y-crdt/blob/main/yrs/src/update.rs
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pycrdt import Doc, Map

from protocol.errors import Malformed

ROOT = "r"
"""One letter: the name is in every value that is set."""
MAX_CLOCK = 1 << 31
"""Ranges end below this: no sum of two overflows yrs's 32 bits."""
MAX_CLIENT = 1 << 53
MAX_CLIENTS = 1
"""Whose items are in one update: `written` adds those of one start of a process.  A thousand
clients that set one key at once cost 46 ms, for each finds its place among the others."""

_KIND = 0x1F
_ANY = 8
_FROM_LEFT, _FROM_RIGHT, _HAS_KEY = 0x80, 0x40, 0x20
_NAMED_PARENT = 1
_BUFFER = 0x74


def read(updates: Sequence[bytes]) -> dict[str, bytes]:
    """What the updates say together, sorted by key.

    Raises:
        Malformed: one of them is no update that `written` makes, or does not fit.
    """
    with _hostile():
        return _values(_rebuilt(updates, Doc()))


def written(updates: Sequence[bytes], content: Mapping[str, bytes], *, client_id: int) -> bytes:
    """The update that takes the document of `updates` to `content`; empty if it is there.

    Args:
        client_id: 32 random bits, fresh for every start of the process and every epoch: two
            histories under one client id do not merge.

    Raises:
        Malformed: as `read`.
    """
    doc: Doc[Any] = Doc(client_id=client_id)
    with _hostile():
        root = _rebuilt(updates, doc)
        held = _values(root)
    gone = sorted(held.keys() - content.keys())
    fresh = sorted(key for key, value in content.items() if held.get(key) != value)
    if not gone and not fresh and updates:
        return b""
    before = doc.get_state()
    with doc.transaction():
        for key in gone:
            del root[key]
        for key in fresh:
            root[key] = content[key]
    return doc.get_update(before)


def _rebuilt(updates: Sequence[bytes], doc: Doc[Any]) -> Map[Any]:
    root: Map[Any] = doc.get(ROOT, type=Map)
    for update in updates:
        _check_shape(update)
        doc.apply_update(update)
    return root


def _values(root: Map[Any]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for key in sorted(root.keys()):
        value = root[key]
        if type(value) is not bytearray:
            raise Malformed(f"{key!r:.40} is a {type(value).__name__}, expected bytes")
        found[key] = bytes(value)
    return found


@contextlib.contextmanager
def _hostile() -> Iterator[None]:
    """Around what makes yrs read a stranger's bytes, or what they became.

    The one place where a panic of Rust is caught: pyo3 derives it from BaseException, so
    that it would end the task group, and does not export it by name.
    """
    try:
        yield
    except Malformed:
        raise
    except (ValueError, RuntimeError) as error:
        raise Malformed(f"{error}"[:200]) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Malformed(f"panic: {error}"[:200]) from error


def _check_shape(update: bytes) -> None:
    """Refuse all that is no update of one map of byte strings, before yrs reads it."""
    reader = _Reader(update)
    try:
        for _ in range(reader.number(MAX_CLIENTS)):
            items = reader.count(1)  # yrs panics on a client without items that it knows
            reader.number(MAX_CLIENT)
            reader.number(MAX_CLOCK)
            for _ in range(items):
                _check_item(reader)
        for _ in range(reader.count()):  # what is deleted: ranges of clocks by client
            reader.number(MAX_CLIENT)
            for _ in range(reader.count(1)):
                reader.number(MAX_CLOCK)
                reader.number(MAX_CLOCK)
    except IndexError as error:
        raise Malformed("the update ends too early") from error
    if reader.left:
        raise Malformed(f"{reader.left} bytes after the update")


def _check_item(reader: _Reader) -> None:
    info = reader.byte()
    if info & _KIND != _ANY:
        raise Malformed(f"an item of kind {info & _KIND}, expected a value ({_ANY})")
    for flag in (_FROM_LEFT, _FROM_RIGHT):
        if info & flag:
            reader.number(MAX_CLIENT)
            reader.number(MAX_CLOCK)
    if not info & (_FROM_LEFT | _FROM_RIGHT):
        if reader.number(_NAMED_PARENT) != _NAMED_PARENT or reader.raw() != ROOT.encode():
            raise Malformed(f"an item outside of {ROOT!r}")
        if not info & _HAS_KEY:
            raise Malformed("a value without a key")
        _check_text(reader.raw())
    if reader.number(1) != 1 or reader.byte() != _BUFFER:
        raise Malformed("a value that is no byte string")
    reader.raw()


def _check_text(key: bytes) -> None:
    try:
        key.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a key that is no UTF-8") from error


class _Reader:
    """Takes numbers and strings off the front of an update; IndexError at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def number(self, most: int) -> int:
        """An unsigned LEB128 number in its shortest form: yrs must read the same one."""
        value = shift = 0
        while (byte := self.byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise Malformed("a number of more than nine bytes")
        value |= byte << shift
        if value > most or (shift and not byte):
            raise Malformed(f"found {value}, at most {most}")
        return value

    def count(self, least: int = 0) -> int:
        """A number of things that take a byte each at least: the claim must be paid for."""
        found = self.number(self.left)
        if found < least:
            raise Malformed(f"found {found}, at least {least}")
        return found

    def raw(self) -> bytes:
        size = self.number(self.left)
        if size > self.left:  # less than before: the number took some
            raise Malformed("the update ends too early")
        self._at += size
        return self._data[self._at - size : self._at]
