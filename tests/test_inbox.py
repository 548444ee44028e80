"""Unread bytes: in order, and without more memory than is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.p2p.inbox import SMALL_BYTES, Inbox


@given(
    st.lists(st.integers(1, 3 * SMALL_BYTES), max_size=20),
    st.lists(st.integers(1, 4 * SMALL_BYTES), min_size=1),
)
def test_bytes_come_out_in_order_however_they_are_put_and_taken(
    puts: list[int], takes: list[int]
) -> None:
    data = bytes(n % 251 for n in range(sum(puts)))
    inbox, at, out = Inbox(), 0, b""
    for size in puts:
        inbox.put(memoryview(data)[at : at + size])
        at += size
    assert len(inbox) == len(data)
    for number in range(len(data) + 1):
        if not inbox:
            break
        piece = inbox.take(takes[number % len(takes)])
        assert 0 < len(piece) <= takes[number % len(takes)]
        out += piece
    assert out == data


def test_a_large_piece_is_not_copied_and_dribs_are_put_together() -> None:
    inbox = Inbox()
    message = bytes(10 * SMALL_BYTES)
    inbox.put(memoryview(message)[12:])
    piece = inbox.take(len(message))
    assert isinstance(piece, memoryview)
    assert piece.obj is message
    for _ in range(1000):
        inbox.put(memoryview(b"x"))
    assert len(inbox._pieces) == 1


def test_a_small_part_does_not_keep_the_message_around_it() -> None:
    inbox = Inbox()
    message = bytes(10 * SMALL_BYTES)
    inbox.put(memoryview(message)[:SMALL_BYTES])
    assert isinstance(inbox.take(SMALL_BYTES), bytes)
