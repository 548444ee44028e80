"""The worker's end of the socket to its node."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
from collections.abc import Callable, Generator

from node.arena import SealableMemory
from node.worker import wire
from node.worker.wire_save import Saved
from protocol import codec
from protocol.ids import Digest, Round
from protocol.manifest import manifest_of
from protocol.messages import Checkpoint


class Link:
    """The socket to the node; answers may be sent from any thread."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def receive(self) -> tuple[int, wire.Command, tuple[int, ...]] | None:
        """The next command, or None when the node is gone."""
        received = wire.receive(self._socket, wire.ToWorker)
        return None if received is None else (received[0].id, received[0].body, received[1])

    def commands(
        self, meanwhile: Callable[[], float | None] = lambda: None
    ) -> Generator[tuple[int, wire.Command, tuple[int, ...]], None, None]:
        """Ids, commands and their descriptors, until the node is gone.

        The descriptors are closed when the next command is asked for, or none any more.

        Args:
            meanwhile: called before each wait for a command, and again if none has come after as
                many seconds as it says; None: not before there was one.
        """
        while (received := self._awaited(meanwhile)) is not None:
            try:
                yield received
            finally:
                for fd in received[2]:
                    os.close(fd)

    def _awaited(
        self, meanwhile: Callable[[], float | None]
    ) -> tuple[int, wire.Command, tuple[int, ...]] | None:
        while (left_s := meanwhile()) is not None:
            if self._poll.poll(math.ceil(left_s * 1000)):
                break
        return self.receive()

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

    def hand_over_checkpoint(self, id: int, round: Round, weights: Digest, data: bytes) -> None:
        """Answer with what a joiner starts from."""
        memory = SealableMemory(len(data))
        memory.view[:] = data
        checkpoint = Checkpoint(round, manifest_of(data).name, len(data), weights)
        self.hand_over(id, wire.Exported(checkpoint), memory)

    def report(self, news: wire.Progress | Saved) -> None:
        """Send it if there is room: nothing here waits for a node that does not read."""
        packet = codec.encode(wire.FromWorker(wire.NO_ID, news))
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._socket.send(packet, socket.MSG_DONTWAIT)

    def hang_up(self) -> None:
        """Let `receive` return None."""
        with contextlib.suppress(OSError):  # the node was faster
            self._socket.shutdown(socket.SHUT_RD)
