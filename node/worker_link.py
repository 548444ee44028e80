"""The worker's end of the socket to its node."""

from __future__ import annotations

import contextlib
import os
import socket

from node import worker_wire as wire
from node.arena import SealableMemory
from node.worker_wire_save import Saved
from protocol import codec


class Link:
    """The socket to the node; answers may be sent from any thread."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)

    def receive(self) -> tuple[int, wire.Command, tuple[int, ...]] | None:
        """The next command, or None when the node is gone."""
        received = wire.receive(self._socket, wire.ToWorker)
        return None if received is None else (received[0].id, received[0].body, received[1])

    def answer(self, id: int, event: wire.Event, *fds: int) -> None:
        """Send it; a node that is gone is noticed by who receives."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(self._socket, wire.FromWorker(id, event), fds)

    def hand_over(self, id: int, event: wire.Event, memory: SealableMemory) -> None:
        """Send an answer and its memory, which is the node's from then on."""
        fd = memory.seal()
        try:
            self.answer(id, event, fd)
        finally:
            os.close(fd)

    def report(self, news: wire.Progress | Saved) -> None:
        """Send it if there is room: nothing here waits for a node that does not read."""
        packet = codec.encode(wire.FromWorker(wire.NO_ID, news))
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._socket.send(packet, socket.MSG_DONTWAIT)

    def hang_up(self) -> None:
        """Let `receive` return None."""
        with contextlib.suppress(OSError):  # the node was faster
            self._socket.shutdown(socket.SHUT_RD)
