"""What a node gives to its run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.blobs.store import BlobStore
from node.bridge import Bridge
from node.config import NodeConfig
from node.keys import DataDir
from node.rpc import Rpc
from node.telemetry import Waits
from protocol.envelope import Signer


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The parts of a node that outlive its run."""

    config: NodeConfig
    directory: DataDir
    signer: Signer
    is_key_new: bool
    """The key was made by this process."""
    bridge: Bridge
    rpc: Rpc
    addrs: Callable[[], tuple[str, ...]]
    """Where others may dial this node now, the best first."""
    store: BlobStore
    waits: Waits
    clock: Callable[[], float]
    """Monotonic seconds."""
