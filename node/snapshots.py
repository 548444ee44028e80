"""Where a worker's snapshots lie: for whoever looks at the directory without torch."""

from __future__ import annotations

import os
from pathlib import Path

SNAPSHOTS = "snapshot-*.safetensors"


def snapshot_files(directory: Path) -> list[Path]:
    """The snapshots in a directory, newest first: their names sort by round and step."""
    return sorted(directory.glob(SNAPSHOTS), key=os.fspath, reverse=True)
