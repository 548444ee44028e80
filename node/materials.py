"""What a member fetches before it can train: the run's spec, and the files that its worker reads.

From disk if they are there, else from whichever member has them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from node.blobs.progress import Report
from node.blobs.transfers import FETCH_S, NotFetched, Transfers
from node.config import NodeConfig
from node.founding import HeldRun
from node.keys import DataDir
from node.telemetry import Waits
from node.worker import wire
from protocol.errors import ConfigError
from protocol.ids import PeerId, short
from protocol.spec import BlobRef, SignedSpec

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Until members are asked again for a blob that none of them gave."""


class Finder(Protocol):
    """What is needed of `node.discovery.Discovery`."""

    async def spec(self) -> SignedSpec:
        """The spec, from the first member that proves to be one; waits as long as it takes."""


class Troubled(Protocol):
    """What is needed of `node.journal.Journal`."""

    trouble: str | None
    """What the operator should see to, until it is over."""


async def first_contact(
    held: HeldRun, config: NodeConfig, finder: Finder, waits: Waits
) -> SignedSpec:
    """The spec of a run that this node has never been in.

    Raises:
        ConfigError: no member answered in time.
    """
    deadline_s = config.first_contact_s
    addrs = (*held.ticket.addrs, *config.bootstrap)
    try:
        with waits.on("the run's spec", ", ".join(addrs), deadline_s):
            async with asyncio.timeout(deadline_s):
                return await finder.spec()
    except TimeoutError:
        raise ConfigError(
            f"ticket: no member of run {short(held.run)} answered within "
            f"{deadline_s:g} s at {' or '.join(addrs)}, expected one that does; is its node "
            "running, and is its port open to this machine? the lines above say why each "
            "dial failed"
        ) from None


async def worker_setup(
    held: HeldRun,
    me: PeerId,
    *,
    config: NodeConfig,
    directory: DataDir,
    transfers: Transfers,
    peers: Callable[[], Sequence[PeerId]],
    waits: Waits,
    journal: Troubled,
) -> wire.Setup:
    """Fetch what the worker needs, and say where it lies.

    Args:
        peers: the members that are alive now.

    Raises:
        ConfigError: this node lacks text of its own, or there is no room.
    """
    assert held.signed is not None
    data = held.spec().data
    own = [str(path) for path in config.own_data]
    if data.corpus is None and not own:
        raise ConfigError(
            "own_data is empty, but in this run each peer trains on text of its own; "
            'name your files in node.toml: own_data = ["PATH"]'
        )

    async def blob(what: str, ref: BlobRef) -> Path:
        return await fetch_blob(
            what, ref, transfers=transfers, peers=peers, waits=waits, journal=journal
        )

    tokenizer = await blob("the tokenizer", data.tokenizer)
    validation = await blob("the validation text", data.validation)
    if data.corpus is not None:
        if own:
            log.warning("own_data is not used: this run has a corpus, the same for all")
        own = [str(await blob("the corpus", data.corpus))]
    return wire.Setup(
        spec_body=held.signed.body,
        peer=me,
        tokenizer=str(tokenizer),
        validation=str(validation),
        corpus=tuple(own),
        directory=str(directory.worker),
        device=config.device,
        threads=config.threads,
        nice=config.nice,
    )


async def fetch_blob(
    what: str,
    ref: BlobRef,
    *,
    transfers: Transfers,
    peers: Callable[[], Sequence[PeerId]],
    waits: Waits,
    journal: Troubled,
) -> Path:
    """The file of a blob of the spec, from disk or from whichever members have it.

    Raises:
        NoSpace: it does not fit.
    """
    if path := await transfers.store.path(ref.digest):
        return path
    while True:
        report = Report(what, "any member", FETCH_S, waits)
        fetching = transfers.fetch(ref, peers, deadline_s=FETCH_S, progress=report.told)
        try:
            path = await report.on(fetching)
        except NotFetched as error:
            log.info("not fetched yet: what=%s reason=%s", what, error)
            journal.trouble = (
                f"{what}: {transfers.store.what_is_here(ref.digest)}, and no other member gave "
                f"what is missing: {error}; start a member that has it, or put a good copy in its "
                "place and start this node again"
            )
        else:
            log.info("fetched: what=%s bytes=%d", what, ref.size_bytes)
            journal.trouble = None
            return path
        with waits.on(f"a member that has {what}", "any member", AGAIN_S):
            await asyncio.sleep(AGAIN_S)
