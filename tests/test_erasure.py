"""Any k of n shards give the content back to the bit; fewer, or others, fail loudly."""

from __future__ import annotations

import itertools
import random

import pytest

from node.protection import erasure
from node.protection.erasure import SEGMENT_BYTES, ErasureCode, NotDecodable

LAYOUTS = [(k, n - k) for n in range(2, 9) for k in range(1, n)]


def some_bytes(count: int) -> bytes:
    return random.Random(count).randbytes(count)


def cut(code: ErasureCode, content: bytes) -> list[bytearray]:
    length = code.shard_bytes(len(content))
    shards = [bytearray(length) for _ in range(code.data + code.parity)]
    code.cut(content, [memoryview(shard) for shard in shards])
    return shards


@pytest.mark.parametrize(("data", "parity"), LAYOUTS)
def test_every_k_shards_of_n_give_back_the_same_bytes(
    data: int, parity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REFT R1, exhaustive for n <= 8; with one byte, whole segments, and a last one that is not."""
    monkeypatch.setattr(erasure, "SEGMENT_BYTES", 4096)
    code = ErasureCode(data, parity)
    for size in (1, 4096, 2 * 4096 + 777):
        content = some_bytes(size)
        shards = cut(code, content)
        for chosen in itertools.combinations(range(data + parity), data):
            assert code.joined({i: shards[i] for i in chosen}, size) == content, (size, chosen)


def test_segments_of_the_real_size_are_put_together_in_order() -> None:
    content = some_bytes(2 * SEGMENT_BYTES + 12_345)
    code = ErasureCode(4, 2)
    shards = cut(code, content)
    assert code.joined({i: shards[i] for i in (1, 2, 4, 5)}, len(content)) == content
    assert len(shards[0]) * 4 - len(content) < 1024  # headers: 80 bytes a fragment, and padding


@pytest.mark.parametrize(("data", "parity"), LAYOUTS)
def test_fewer_than_k_shards_fail_loudly(data: int, parity: int) -> None:
    """R2."""
    code = ErasureCode(data, parity)
    shards = cut(code, some_bytes(999))
    few = {i: shards[i] for i in range(data - 1)}
    with pytest.raises(NotDecodable, match=f"{data - 1} shards, expected {data} or more"):
        code.joined(few, 999)


def test_shards_of_content_of_another_size_fail_loudly() -> None:
    code = ErasureCode(2, 1)
    mixed = {0: cut(code, some_bytes(999))[0], 1: cut(code, some_bytes(2000))[1]}
    with pytest.raises(NotDecodable, match="a shard of 1080 bytes, expected 580"):
        code.joined(mixed, 999)
