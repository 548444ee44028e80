"""Blobs from many donors at once: carries out what `protocol.transfer` decides.

    who has it? > manifest > pieces into memory > chunks checked and on disk > the whole blob

What has come stays on disk when a fetch ends without the rest, and the next one goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path

from node.blobs.donor_search import NO_WORD, DonorSearch, Holders, Peers
from node.blobs.receiving import Receiving
from node.blobs.store import BlobStore
from node.ports import Rpc
from node.rpc import CallRefused
from protocol import rpc
from protocol import transfer_steps as steps
from protocol.errors import PeerError, RemoteProtocolError, ShoalError
from protocol.ids import Digest, PeerId, RunId, short
from protocol.manifest import CHUNK_BYTES, Manifest
from protocol.spec import BlobRef
from protocol.transfer import Transfer

log = logging.getLogger(__name__)

FETCH_S = 3600.0
"""Deadline of a whole fetch: 64 MiB at 20 KB/s.  A guess at the slowest line worth joining."""
MAX_LIARS = 256
"""Peers that sent wrong bytes of a blob, remembered with it; the first is forgotten."""

Progress = Callable[[int, int, int], None]
"""Told bytes held, bytes in all, and from how many donors some came."""


class NotFetched(ShoalError):
    """Nobody gave the blob: nobody's fault, try again later."""


class Transfers:
    """All that this node fetches into its store.  For one event loop."""

    def __init__(
        self,
        *,
        run: RunId,
        caller: Rpc,
        store: BlobStore,
        blame: Callable[[PeerId, str], None],
        is_relayed: Callable[[PeerId], bool],
        rng: random.Random,
        holders: Holders | None = None,
    ) -> None:
        """Args: holders: asked when few live members have a blob; None: there is no DHT."""
        self.store = store
        self.run = run
        self.caller = caller
        self.is_relayed = is_relayed
        self.holders = holders
        self.rng = rng
        self._blame = blame
        self._liars: dict[tuple[Digest, PeerId], None] = {}
        self._turns: dict[Digest, asyncio.Lock] = {}
        """One fetch at a time for each blob: whose turn it is."""
        self._users: Counter[Digest] = Counter()
        """Who fetches a blob, or waits for its turn."""

    async def fetch(
        self,
        ref: BlobRef,
        peers: Peers,
        *,
        is_lasting: bool = True,
        deadline_s: float = FETCH_S,
        progress: Progress | None = None,
    ) -> Path:
        """The file of a blob, fetched from whichever of `peers` and the DHT have it.

        Args:
            peers: asked again and again, so that who comes later helps, too.
            is_lasting: False: held for the caller to release.

        Raises:
            NotFetched: not all of it came; what came is gone on with the next time.
            NoSpace: it does not fit.
        """
        turn = self._turns.setdefault(ref.digest, asyncio.Lock())
        self._users[ref.digest] += 1
        try:
            async with asyncio.timeout(deadline_s), turn:
                if path := await self.store.hold(ref.digest):
                    return path
                return await _Fetch(self, ref, progress).run(peers, is_lasting=is_lasting)
        except TimeoutError:
            raise NotFetched(
                f"blob {short(ref.digest)} of {ref.size_bytes} bytes: not all of it came within "
                f"{deadline_s:g} s"
            ) from None
        finally:
            self._users[ref.digest] -= 1
            if not self._users[ref.digest]:
                del self._users[ref.digest], self._turns[ref.digest]

    def is_liar(self, digest: Digest, peer: PeerId) -> bool:
        """`peer` sent wrong bytes of this blob before."""
        return (digest, peer) in self._liars

    def accuse(self, digest: Digest, peer: PeerId, reason: str) -> None:
        """Blame `peer`, and never ask it for this blob again."""
        if len(self._liars) >= MAX_LIARS:
            del self._liars[next(iter(self._liars))]
        self._liars[digest, peer] = None
        self._blame(peer, f"blob {short(digest)}: {reason}")


class _Fetch:
    """One fetch of one blob."""

    def __init__(self, transfers: Transfers, ref: BlobRef, progress: Progress | None) -> None:
        self._transfers = transfers
        self._ref = ref
        self._progress = progress
        self._events: asyncio.Queue[steps.Event] = asyncio.Queue()
        """Bounded by what is under way."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._pieces: dict[int, tuple[steps.Ask, bytearray]] = {}
        """Came, and the machine has not said yet what becomes of them."""
        self._chunks: dict[int, bytearray] = {}
        self._links: dict[PeerId, bool] = {}
        """Who gave a piece, and whether its link is relayed."""
        self._wake: asyncio.TimerHandle | None = None
        self._held_bytes = 0
        self._manifest: Manifest
        self._receiving: Receiving
        self._search: DonorSearch
        self._group = asyncio.TaskGroup()
        self._loop = asyncio.get_running_loop()

    async def run(self, peers: Peers, *, is_lasting: bool) -> Path:
        """Fetch it; see `Transfers.fetch`."""
        transfers, digest = self._transfers, self._ref.digest
        self._search = DonorSearch(
            self._ref,
            run=transfers.run,
            caller=transfers.caller,
            peers=peers,
            holders=transfers.holders,
            is_relayed=transfers.is_relayed,
            is_banned=lambda peer: transfers.is_liar(digest, peer),
            blame=lambda peer, reason: transfers.accuse(digest, peer, reason),
            tell=self._events.put_nowait,
            rng=transfers.rng,
        )
        try:
            async with self._group:
                self._start(self._search.run())
                try:
                    return await self._fetch(is_lasting)
                finally:
                    self._end()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _fetch(self, is_lasting: bool) -> Path:
        self._manifest, found = await self._first_manifest()
        self._receiving = await self._transfers.store.receive(self._manifest, is_lasting=is_lasting)
        try:
            held = self._receiving.held
            self._told(*(self._manifest.length(chunk) for chunk in held))
            machine = Transfer(self._manifest, held, self._transfers.rng)
            self._carry_out(machine.start(self._loop.time()))
            for event in found:
                self._carry_out(machine.handle(event, self._loop.time()))
            while not machine.is_over:
                event = await self._events.get()
                self._carry_out(machine.handle(event, self._loop.time()))
            if machine.failure is not None:
                raise NotFetched(self._nobody(machine.failure))
            return await self._receiving.finish()
        finally:
            self._receiving.close()

    async def _first_manifest(self) -> tuple[Manifest, list[steps.Event]]:
        """From the first who has it, and what else was found until then."""
        found: list[steps.Event] = []
        while (manifest := self._search.manifest) is None:
            found.append(await self._events.get())
            if isinstance(found[-1], steps.SearchOver) and self._search.manifest is None:
                raise NotFetched(self._nobody("nobody has it"))
        return manifest, found

    def _carry_out(self, effects: list[steps.Effect]) -> None:
        for effect in effects:
            match effect:
                case steps.Ask(request):
                    self._calls[request] = self._start(self._piece(effect))
                case steps.Cancel(request):
                    if call := self._calls.get(request):
                        call.cancel()
                    self._pieces.pop(request, None)
                case steps.Keep(request):
                    self._keep(*self._pieces.pop(request))
                case steps.Check(chunk):
                    self._start(self._check(chunk))
                case steps.Poll(peer):
                    self._start(self._search.poll(peer))
                case steps.WakeAt(at):
                    if self._wake:
                        self._wake.cancel()
                    self._wake = self._loop.call_at(at, self._events.put_nowait, steps.Woke())
                case steps.Blame(peer, reason):
                    self._transfers.accuse(self._ref.digest, peer, reason)

    def _keep(self, ask: steps.Ask, data: bytearray) -> None:
        """Part of its chunk now."""
        start = ask.offset % CHUNK_BYTES
        if ask.chunk not in self._chunks:
            self._chunks[ask.chunk] = bytearray(self._manifest.length(ask.chunk))
        self._chunks[ask.chunk][start : start + len(data)] = data

    async def _piece(self, ask: steps.Ask) -> None:
        """Ask for it, into memory of its own: another donor may be asked for the same."""
        transfers, donor = self._transfers, ask.donor
        call = rpc.BlobCall(transfers.run, self._ref.digest, ask.offset, ask.length)
        data = bytearray(ask.length)
        try:
            with memoryview(data) as into:
                await transfers.caller.call(
                    donor, rpc.BLOB, call, deadline_s=ask.deadline_s, into=into
                )
        except PeerError as error:
            self._events.put_nowait(steps.PieceFailed(ask.request, _why(error), str(error)))
        else:
            is_relayed = transfers.is_relayed(donor)
            if self._links.setdefault(donor, not is_relayed) is not is_relayed:
                self._links[donor] = is_relayed
                self._events.put_nowait(steps.LinkChanged(donor, is_relayed))
            self._pieces[ask.request] = ask, data
            self._events.put_nowait(steps.PieceCame(ask.request))
        finally:
            self._calls.pop(ask.request, None)

    async def _check(self, chunk: int) -> None:
        is_right = await self._receiving.write(chunk, self._chunks.pop(chunk))
        if is_right:
            self._told(self._manifest.length(chunk))
        self._events.put_nowait(steps.ChunkChecked(chunk, is_right))

    # --- the rest -----------------------------------------------------------------------------

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _end(self) -> None:
        """Nothing goes on."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._wake:
            self._wake.cancel()

    def _told(self, *more_bytes: int) -> None:
        self._held_bytes += sum(more_bytes)
        if self._progress:
            self._progress(self._held_bytes, self._ref.size_bytes, len(self._links))

    def _nobody(self, reason: str) -> str:
        reasons = [reason, *self._search.reasons.values()]
        return f"blob {short(self._ref.digest)} of {self._ref.size_bytes} bytes: " + "; ".join(
            reasons if len(reasons) > 1 else [reason, "there was no other peer to ask"]
        )


def _why(error: PeerError) -> steps.Why:
    if isinstance(error, RemoteProtocolError):
        return steps.Why.WRONG
    if isinstance(error, CallRefused):
        return steps.Why.BUSY if error.code in NO_WORD else steps.Why.REFUSED
    return steps.Why.GONE
