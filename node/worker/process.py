"""The worker: the process that owns torch, the model and the processor.

    python -m node.worker.process --socket PATH

It connects to its node and does what it is told (`node.worker.wire`).  The training thread
runs inner steps; this thread takes commands in the order in which they came and does the
outer work, beside training; three more save, answer with what takes long, and evaluate, so that
none holds up an exchange.  The inner loop waits for none of them, but for a copy or a sum at a
step boundary.

The node owns the worker's life: when the socket closes, because the node is gone or wants
it so (SIGTERM does the same), the worker saves a snapshot and exits.  SIGINT is the node's
business alone.  Whatever goes wrong unforeseen ends the process; the node starts another
from the last snapshot.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn, assert_never

import torch

from node.snapshots import NoSnapshot, remove_unfinished
from node.worker import spsa as worker_spsa
from node.worker import wire
from node.worker.files import load_newest
from node.worker.link import Link
from node.worker.materials import Materials, from_checkpoint, initial_slow
from node.worker.session import Session
from node.worker.shared import split_moments
from node.worker.sketch import sketch_of_checkpoint
from node.worker.spsa import SpsaSession
from node.worker.wire_join import MakeSketch
from protocol.algorithms import SpsaConfig
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from trainers.inner import Moments
from trainers.state import Fast, Slow

REASON_CHARS = 300
"""Of what torch says when it fails; the whole is in the log."""
EXIT_CRASHED = 70
"""EX_SOFTWARE of sysexits.h."""


def serve(link: Link) -> None:
    """One worker's life: set up, start, do what the node says, save."""
    received = link.receive()
    if received is None:
        return
    id, setup, _ = received
    if not isinstance(setup, wire.Setup):
        link.answer(id, wire.Failed("Setup comes first"))
        return
    os.nice(setup.nice)
    torch.set_num_threads(setup.threads)
    try:
        materials = Materials.read(setup)
    except (ValueError, OSError) as error:
        link.answer(id, wire.Failed(str(error)))
        return
    link.answer(id, wire.Prepared(len(materials.tokens_N)))
    if session := _started_session(link, setup, materials):
        session.serve()


def _started_session(
    link: Link, setup: wire.Setup, materials: Materials
) -> Session | SpsaSession | None:
    """The worker once a start has succeeded; None: the node is gone."""
    with contextlib.closing(link.commands()) as commands:
        for id, start, fds in commands:
            if isinstance(start, MakeSketch):
                link.answer(id, sketch_of_checkpoint(start, fds, materials))
                continue
            if not isinstance(start, wire.Start):
                link.answer(id, wire.Failed(f"{type(start).__name__} before a start"))
                continue
            try:
                session, ready = _session(link, setup, materials, start, fds)
            except (Malformed, ValueError, NoSnapshot, OSError) as error:
                link.answer(id, wire.Failed(str(error)))
                continue
            link.answer(id, ready)
            return session
    return None


def _session(
    link: Link,
    setup: wire.Setup,
    materials: Materials,
    start: wire.Start,
    fds: tuple[int, ...],
) -> tuple[Session | SpsaSession, wire.Ready]:
    """The started worker, and where it stands."""
    directory = Path(setup.directory)
    remove_unfinished(directory)
    is_on_disk = isinstance(start, wire.StartFromDisk)
    if isinstance(materials.spec.trainer, SpsaConfig):
        saved, note = worker_spsa.started(start, fds, materials, directory)
        spsa = SpsaSession(link, setup, materials, saved, is_on_disk=is_on_disk)
        return spsa, spsa.ready(note)
    slow, fast, note = _started(start, fds, materials, directory)
    session = Session(link, setup, materials, slow, fast, is_on_disk=is_on_disk)
    return session, wire.Ready(slow.round, fast.inner_step, slow.digest(), note)


def _started(
    start: wire.Start, fds: tuple[int, ...], materials: Materials, directory: Path
) -> tuple[Slow, Fast, str]:
    """Where the worker begins, and a note."""
    count = num_parameters(materials.spec.model)
    moments = None
    match start:
        case wire.StartFresh():
            slow = initial_slow(materials.spec)
        case wire.StartFromDisk():
            return load_newest(directory, materials.run, count)
        case wire.StartFromCheckpoint(checkpoint):
            slow, moments = split_moments(
                from_checkpoint(checkpoint, fds, materials), materials.spec
            )
        case _:
            assert_never(start)
    none = Moments(torch.zeros(count), torch.zeros(count), 0)
    return slow, Fast(slow.phi_P.clone(), moments or none, 0, 0), ""


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m node.worker.process")
    parser.add_argument("--socket", required=True, help="the node's unix socket")
    path: str = parser.parse_args().socket
    for from_terminal in (signal.SIGINT, signal.SIGHUP):  # the node ends us
        signal.signal(from_terminal, signal.SIG_IGN)
    link = Link(path)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: link.hang_up())

    def crash(args: threading.ExceptHookArgs) -> None:
        traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
        reason = f"{args.exc_type.__name__}: {' '.join(str(args.exc_value).split())}"
        link.answer(wire.NO_ID, wire.Failed(reason[:REASON_CHARS]))
        os._exit(EXIT_CRASHED)

    threading.excepthook = crash
    try:
        serve(link)
    except (RuntimeError, OSError, ValueError, MemoryError) as error:
        crash(threading.ExceptHookArgs((type(error), error, error.__traceback__, None)))
    sys.stderr.flush()
    os._exit(0)  # an evaluation may still be under way: nobody waits for it


if __name__ == "__main__":
    main()
