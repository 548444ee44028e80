"""The peers last heard of: bounded, newest first, and never a reason for a node not to start."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from node import peer_cache
from node.files import write_atomically
from node.peer_cache import MAX_FILE_BYTES, MAX_PEERS, NEWS_S, SAVE_S, PeerCache
from protocol.envelope import Signer
from protocol.ids import PeerId

PEERS = [Signer(bytes([1, n]) * 16).peer for n in range(MAX_PEERS + 3)]


def addr_of(peer: PeerId) -> str:
    return f"/ip4/192.0.2.1/tcp/4001/p2p/{peer}"


def filled(path: Path, number: int) -> PeerCache:
    cache = PeerCache(path)
    for at, peer in enumerate(PEERS[:number]):
        cache.answered(peer, (addr_of(peer),), at)
    return cache


async def test_what_was_saved_is_there_again_newest_first(tmp_path: Path) -> None:
    cache = filled(tmp_path / "peers", 3)
    cache.answered(PEERS[0], (addr_of(PEERS[0]),), 9)
    await cache.save()
    again = PeerCache(tmp_path / "peers")
    assert [entry.peer for entry in again.peers()] == [PEERS[0], PEERS[2], PEERS[1]]
    assert again.peers() == cache.peers()


async def test_who_answered_longest_ago_makes_room_and_the_file_stays_small(tmp_path: Path) -> None:
    cache = filled(tmp_path / "peers", MAX_PEERS + 3)
    assert [entry.peer for entry in cache.peers()] == PEERS[:2:-1]
    longest = "/" + "a" * 255
    for at, peer in enumerate(PEERS):
        cache.answered(peer, (longest,) * 20 + ("a" * 300,), (1 << 33) + at)
    await cache.save()
    assert len(PeerCache(tmp_path / "peers").peers()) == MAX_PEERS
    assert (tmp_path / "peers").stat().st_size <= MAX_FILE_BYTES


def test_a_peer_without_an_address_is_not_kept(tmp_path: Path) -> None:
    cache = PeerCache(tmp_path / "peers")
    cache.answered(PEERS[0], (), 1)
    cache.answered(PEERS[1], ("a" * 300, ""), 1)
    assert cache.peers() == []


async def test_it_is_written_soon_when_somebody_is_new_and_rarely_for_times_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "peers"
    cache = PeerCache(path)
    await cache.save_sometimes(0.0)
    assert not path.exists()
    cache.answered(PEERS[0], (addr_of(PEERS[0]),), 1)
    await cache.save_sometimes(1.0)
    first = path.stat().st_ino
    cache.answered(PEERS[1], (addr_of(PEERS[1]),), 1)
    await cache.save_sometimes(NEWS_S)
    assert path.stat().st_ino == first
    await cache.save_sometimes(NEWS_S + 1.0)
    assert len(PeerCache(path).peers()) == 2
    second = path.stat().st_ino
    await cache.save()
    assert path.stat().st_ino == second
    cache.answered(PEERS[1], (addr_of(PEERS[1]),), 9)
    await cache.save_sometimes(SAVE_S)
    assert path.stat().st_ino == second
    await cache.save_sometimes(SAVE_S + NEWS_S + 1.0)
    assert [entry.answered_unix_s for entry in PeerCache(path).peers()] == [9, 1]


async def test_a_disk_that_hangs_holds_up_neither_the_loop_nor_who_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on, written = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def write(path: Path, data: bytes) -> None:
        loop.call_soon_threadsafe(writing.set)
        assert go_on.wait(10.0)
        write_atomically(path, data)
        written.append(path)

    monkeypatch.setattr(peer_cache, "write_atomically", write)
    monkeypatch.setattr(peer_cache, "WRITE_S", 0.001)
    monkeypatch.setattr(peer_cache, "CLOSE_S", 0.001)
    cache = filled(tmp_path / "peers", 1)
    saving = asyncio.create_task(cache.save_sometimes(0.0))
    await writing.wait()
    await saving
    cache.answered(PEERS[1], (addr_of(PEERS[1]),), 2)
    await cache.save_sometimes(SAVE_S)  # the disk has not come back: not asked once more
    await cache.save()
    assert written == []
    go_on.set()
    monkeypatch.setattr(peer_cache, "CLOSE_S", 10.0)
    await cache.save()
    assert written == [tmp_path / "peers"] * 2
    assert PeerCache(tmp_path / "peers").peers() == cache.peers()


@pytest.mark.parametrize("cut", [0, 1, 2, 50, 200, -1])
async def test_a_damaged_file_is_an_empty_cache_and_a_warning(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "peers"
    await filled(path, 3).save()
    path.write_bytes(path.read_bytes()[:cut])
    cache = PeerCache(path)
    assert cache.peers() == []
    assert [text[:48] for text in caplog.messages] == [
        "peers forgotten: found a file that cannot be rea"
    ]
    cache.answered(PEERS[0], (addr_of(PEERS[0]),), 1)
    await cache.save()
    assert len(PeerCache(path).peers()) == 1


def test_a_file_of_any_size_is_read_within_the_bound(tmp_path: Path) -> None:
    (tmp_path / "peers").write_bytes(bytes(10 * MAX_FILE_BYTES))
    assert PeerCache(tmp_path / "peers").peers() == []


async def test_a_disk_that_takes_nothing_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(tmp_path / "missing" / "peers", 2)
    with caplog.at_level(logging.WARNING):
        await cache.save()
        await cache.save()
    (warning,) = caplog.messages
    assert warning.startswith("peers not remembered: reason=disk: No such file or directory")
    (tmp_path / "missing").mkdir()
    await cache.save()
    assert len(PeerCache(tmp_path / "missing" / "peers").peers()) == 2
