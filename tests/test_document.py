"""Updates come from strangers: what is no map of byte strings never reaches yrs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycrdt import Array, Doc, Map
from record_samples import update_of

from crdt.document import _hostile, read, written
from protocol.errors import Malformed

contents = st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=6)


@given(st.lists(contents, min_size=1, max_size=6))
def test_each_update_takes_the_document_to_the_next_content(
    history: list[dict[str, bytes]],
) -> None:
    updates: list[bytes] = []
    for start, content in enumerate(history):
        if update := written(updates, content, client_id=start % 2 + 1):
            updates.append(update)
        assert list(read(updates).items()) == sorted(content.items())
        assert written(updates, content, client_id=9) == b""


def test_an_overwritten_key_costs_no_more_than_its_value_and_20_bytes() -> None:
    """The trace of what was overwritten does not pile up in the updates."""
    updates, sizes = [update_of({"a": b"first", "b": b"."})], []
    for round in range(30):
        updates.append(update_of({"a": bytes([round]) * 100, "b": b"."}, *updates))
        sizes.append(len(updates[-1]))
    assert max(sizes) <= 120


def struct(body: str) -> bytes:
    """An update with one item of client 9: info, parent, key and value as given."""
    return bytes.fromhex("01 01 09 00" + body + "00")


PARENT = "01 01 72 01 61"
"""The map "r", the key "a"."""
BYTES = "01 74 02 6869"
GOOD = struct("28" + PARENT + BYTES)

NO_ITEMS = bytes.fromhex("01 00 09 00 00")

HOSTILE = {
    "found 0, at least 1": NO_ITEMS,
    "found 268435456, at most": bytes.fromhex("808080800100000000"),  # 9 bytes, 532 MB in yrs
    "no byte string": struct("28" + PARENT + "01" + "7501" * 8000 + "7e"),  # 16 kB, stack overflow
    "found 0, at most 1|no byte string": struct("28" + PARENT + "00"),  # panic: unwrap on None
    "an item of kind 7": struct("27" + PARENT + "01"),  # a nested map
    "outside of 'r'": struct("28 01 05 6f74686572 01 61" + BYTES),
    "without a key": struct("08 01 01 72" + BYTES),
    "no UTF-8": struct("28 01 01 72 01 ff" + BYTES),
    "ends too early": GOOD[:-6],
    "1 bytes after": GOOD + b"\0",
    "more than nine bytes": b"\xff" * 16_000,
    "found 1, at most 1|at most": bytes.fromhex("8100") + GOOD[1:],  # 1 in two bytes
    "found 2147483649": bytes.fromhex("00 01 09 01 8180808008 01"),  # a clock near 2**32
}


@pytest.mark.parametrize(("reason", "update"), HOSTILE.items(), ids=HOSTILE)
def test_refuses_before_yrs_sees_it(reason: str, update: bytes) -> None:
    with pytest.raises(Malformed, match=reason):
        read([GOOD, update])


def test_the_update_that_the_hostile_ones_are_made_of_is_good() -> None:
    assert read([GOOD]) == {"a": b"hi"}


def test_refuses_other_types_of_the_same_library() -> None:
    doc: Doc[Any] = Doc(client_id=1)
    root: Map[Any] = doc.get("r", type=Map)
    for value in ("text", 3, 0.5, True, None, [b"a"], {"a": 1}, Map({"a": b"b"}), Array([1])):
        before = doc.get_state()
        root["a"] = value
        with pytest.raises(Malformed):
            read([doc.get_update(before)])


FITTING = [update_of({"a": b"1" * 9, "b": b"2" * 9, "c": b"3"})]
FITTING.append(update_of({"a": b"1" * 9, "b": b"4" * 9}, *FITTING, client_id=8))
FITTING.append(update_of({"a": b"5" * 9}, *FITTING, client_id=9))


@given(
    st.integers(0, 2),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=4),
    st.integers(0, 3),
)
def test_a_mutated_update_is_refused_or_harmless(
    which: int, changes: list[tuple[int, int]], cut: int
) -> None:
    """Whatever shape a change leaves intact may still fail or panic inside of yrs."""
    broken = bytearray(FITTING[which])
    for at, byte in changes:
        broken[at % len(broken)] = byte
    hostile = bytes(broken[: len(broken) - cut])
    with suppress(Malformed):
        read([*FITTING[:which], hostile, *FITTING[which + 1 :]])
    assert read(FITTING) == {"a": b"5" * 9}


def test_a_panic_of_rust_is_a_malformed_update() -> None:
    """It is a BaseException.  yrs panics on a client that it knows without any items."""
    doc: Doc[Any] = Doc()
    doc.get("r", type=Map)
    doc.apply_update(GOOD)
    with pytest.raises(Malformed, match="panic: called"), _hostile():
        doc.apply_update(NO_ITEMS)


@given(st.binary(max_size=300))
def test_junk_is_refused(junk: bytes) -> None:
    with suppress(Malformed):
        assert read([junk]) == {}
