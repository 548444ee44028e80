"""One worker process, from its start to its end, as the node sees it.

The process is started the way a person's own script would be: it gets the path of a unix
socket and connects.  Every call has a deadline, counted in slices, so that a machine that
was suspended, or a node that was stopped, does not find all its deadlines passed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from node.api_socket import listening
from node.uncancelled import is_done_within
from node.worker import wire
from node.worker.wire_join import MakeSketch
from node.worker.wire_save import Save
from node.worker.wire_spsa import AddScalars, NameSum, Sample
from protocol.errors import Malformed, WorkerLost
from protocol.ids import short

log = logging.getLogger(__name__)

E = TypeVar("E", bound=wire.Event)

SPAWN_S = 60.0
"""Importing torch takes 2 s, on a busy machine with a cold disk ten times that."""
DEADLINE_S: dict[type[wire.Command], float] = {
    wire.Setup: 300.0,  # 64 MiB of text are tokenized in 15 s
    wire.StartFresh: 120.0,
    wire.StartFromDisk: 120.0,
    wire.StartFromCheckpoint: 120.0,
    MakeSketch: 120.0,
    Sample: 300.0,
    AddScalars: 120.0,
    NameSum: 120.0,
    wire.RunInner: 300.0,  # since anything was heard: no inner step should take minutes
    wire.Snapshot: 120.0,
    wire.ApplyOuter: 120.0,
    wire.Evaluate: 600.0,
    wire.Export: 120.0,
    Save: 600.0,  # of the disk: one snapshot may be on its way, and then comes this one
}
"""Generous, for what takes milliseconds with the default model: past it the worker hangs."""
SLICES = 4
"""A deadline has passed when so many quarters of it have been waited for."""
TERM_S = 0.9
"""From SIGTERM to SIGKILL: the worker saves a snapshot meanwhile; see `node.node.LEAVE_S`."""


class WorkerLife:
    """A process, its socket, and the calls that wait for an answer."""

    def __init__(self, socket_path: Path, news: Callable[[wire.Event], None]) -> None:
        self._path = socket_path
        self._news = news
        self._process: asyncio.subprocess.Process | None = None
        self._link: socket.socket | None = None
        self._next_id = wire.NO_ID + 1
        self._waiting: dict[int, asyncio.Future[tuple[wire.Event, tuple[int, ...]]]] = {}
        """As many as there are calls under way: a handful."""
        self._heard = 0
        """Packets received."""
        self._last_words = ""
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done, with the reason, once the worker is of no use any more."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def status(self) -> str:
        """How the process ended, for the log."""
        code = self._process.returncode if self._process else None
        if code is None:
            return "running"
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    async def spawn(self) -> None:
        """Start the process and wait until it has connected.

        Raises:
            WorkerLost: it ended, or did not connect in time.
            ConfigError: the path is too long for a unix socket.
        """
        listener = listening(self._path, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            listener.listen(1)
            self._process = await asyncio.create_subprocess_exec(
                *("env", "OMP_NUM_THREADS=1", "RAYON_NUM_THREADS=1", sys.executable),
                *("-m", "node.worker.process", "--socket", str(self._path)),
                stdin=asyncio.subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
            )
            self._link = await self._accepted(listener)
        finally:
            listener.close()
            self._path.unlink(missing_ok=True)
        self._link.setblocking(False)
        asyncio.get_running_loop().add_reader(self._link, self._on_readable)

    async def call(
        self, command: wire.Command, *, fds: Sequence[int] = ()
    ) -> tuple[wire.Event, tuple[int, ...]]:
        """The answer to `command` and its descriptors, which are the caller's.

        Args:
            fds: go with the command and stay the caller's.

        Raises:
            WorkerLost: it died, or the command's deadline passed, whereupon it is lost.
        """
        deadline_s = DEADLINE_S[type(command)]
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[wire.Event, tuple[int, ...]]] = loop.create_future()
        id, self._next_id = self._next_id, self._next_id + 1
        self._send(wire.ToWorker(id, command), fds)
        self._waiting[id] = answer
        try:
            waited, heard = 0, self._heard
            while waited < SLICES:
                await asyncio.wait((answer, self.lost), timeout=deadline_s / SLICES,
                                   return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
                if answer.done():
                    return answer.result()
                if self.lost.done():
                    raise WorkerLost(self.lost.result())
                if isinstance(command, wire.RunInner) and heard != self._heard:
                    waited, heard = 0, self._heard
                else:
                    waited += 1
            self.lose(f"no answer to {type(command).__name__} within {deadline_s:g} s")
            raise WorkerLost(self.lost.result())
        finally:
            del self._waiting[id]

    async def ask(self, command: wire.Command, kind: type[E]) -> tuple[E, tuple[int, ...]]:
        """`call`, where only an answer of `kind` will do: after any other the worker is lost."""
        event, fds = await self.call(command)
        return self.expect(command, event, kind), fds

    def expect(self, command: wire.Command, event: wire.Event, kind: type[E]) -> E:
        """`event`, which has to be of `kind`.

        Raises:
            WorkerLost: it is not, so the worker is not where we think, and is lost.
        """
        if isinstance(event, kind):
            return event
        reason = event.reason if isinstance(event, wire.Failed) else f"answered {event}"
        self.lose(f"{type(command).__name__}: {reason}")
        raise WorkerLost(self.lost.result())

    def tell(self, command: wire.Command) -> None:
        """Send a command that has no answer; lost with a worker that is."""
        try:
            self._send(wire.ToWorker(wire.NO_ID, command), ())
        except WorkerLost as lost:
            log.info("not told: command=%s reason=%s", type(command).__name__, lost)

    def lose(self, reason: str) -> None:
        """The worker is of no use any more; the first reason counts."""
        if not self.lost.done():
            self.lost.set_result(reason)

    async def end(self) -> None:
        """No process, socket or file is left; safe to call at any time, also twice."""
        self.lose("ended by this node")
        if self._link:
            asyncio.get_running_loop().remove_reader(self._link)
        process = self._process
        try:
            if process and process.returncode is None:
                process.send_signal(signal.SIGTERM)
                if not await is_done_within(process.wait(), TERM_S):
                    log.warning("worker killed: pid=%d after_s=%g", process.pid, TERM_S)
        finally:
            if process and process.returncode is None:
                process.kill()
                await process.wait()
            if self._link:
                self._link.close()
                self._link = None

    async def _accepted(self, listener: socket.socket) -> socket.socket:
        assert self._process is not None
        loop = asyncio.get_running_loop()
        accept = asyncio.ensure_future(loop.sock_accept(listener))
        ended = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait(
                (accept, ended), timeout=SPAWN_S, return_when=asyncio.FIRST_COMPLETED
            )
            if accept.done():
                return accept.result()[0]
        finally:
            accept.cancel()
            ended.cancel()
            await asyncio.wait((accept, ended))  # they let go of the descriptor
        ended_early = self._process.returncode is not None
        self.lose("ended early" if ended_early else f"not connected within {SPAWN_S:g} s")
        raise WorkerLost(self.lost.result())

    def _send(self, packet: wire.ToWorker, fds: Sequence[int]) -> None:
        if self._link is None or self.lost.done():
            raise WorkerLost(self.lost.result() if self.lost.done() else "not connected")
        try:
            wire.send(self._link, packet, fds)
        except OSError as error:  # BlockingIOError: it has long not read its commands
            self.lose(f"takes no commands: {error}")
            raise WorkerLost(self.lost.result()) from error

    def _on_readable(self) -> None:
        assert self._link is not None
        loop = asyncio.get_running_loop()
        try:
            received = wire.receive(self._link, wire.FromWorker)
        except BlockingIOError:
            return
        except Malformed as error:
            loop.remove_reader(self._link)
            self.lose(f"sent what is no packet: {error}")
            return
        if received is None:
            loop.remove_reader(self._link)
            self.lose(self._last_words or "the process ended")
            return
        packet, fds = received
        self._heard += 1
        answer = self._waiting.get(packet.id)
        if answer and not answer.done():
            answer.set_result((packet.body, fds))
            return
        for fd in fds:  # nobody waits for this answer any more
            os.close(fd)
        if isinstance(packet.body, wire.Failed):
            self._last_words = packet.body.reason
        elif packet.id == wire.NO_ID:
            self._news(packet.body)


def log_ready(ready: wire.Ready, pid: int | None) -> None:
    """Where a worker stands."""
    log.info(
        "worker ready: round=%d inner_step=%d weights=%s pid=%s",
        *(ready.round, ready.inner_step, short(ready.weights), pid),
    )
    if ready.note:
        log.warning("snapshot passed over: %s", ready.note)
