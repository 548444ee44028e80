"""A node's directory, and a disk that is small enough to be filled."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.keys import DataDir


def data_dir(root: Path) -> DataDir:
    """A new one."""
    made = DataDir(root / "node")
    made.create()
    return made


def unlistable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As a folder of mode 000 is for everybody but root."""
    real = os.scandir

    def scandir(path: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@contextmanager
def mounted(root: Path, mib: int) -> Iterator[Path]:
    """A file system of so many MiB; skips the test where this process may mount none."""
    folder = root / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs takes rights that this process has not")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
