"""The creator's word in this node: obeyed, and, where this node is the creator's, given.

The word is in the creator's record (`crdt.schema.Control`), so it reaches everybody, is on the
disk of everybody, and holds whether the creator is there or not.  `Control` looks at it whenever
records changed and tells the trainer, which obeys between two rounds (`trainers.control`).  A
change that the run does not allow is refused with one sentence in the log and changes nothing.

A pause ends by itself after `PAUSE_S`: nothing waits for ever, for the creator may be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from crdt import schema
from crdt.schema import Content
from node.journal import PAUSE_S, Journal
from node.records.records import Records
from node.training import Training
from protocol.changes import Change, checked
from protocol.errors import ConfigError
from protocol.ids import PeerId, Round, short
from protocol.messages import HAS_WEIGHTS, Presence
from protocol.spec import RunSpec
from trainers.events import ControlChanged

log = logging.getLogger(__name__)

WRITTEN_S = 4.0
"""For our own record to be signed and on disk; less than who asked waits (api.CALL_DEADLINE_S)."""
HEARD_S = 6.0
"""How long a joiner waits for a sign of life, and one to whom the run seems to be over for the
creator's record: a few comparisons of records, and one that was lost."""
LOOK_S = 0.2
"""Between two looks at who is alive."""
ACTIONS = ("pause", "resume", "stop", "set")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the creator asks of its node."""

    action: str
    name: str = ""
    """Of the setting to set."""
    value: str = ""
    from_round: int | None = None
    """None: the next round of the creator's node."""

    def __post_init__(self) -> None:
        """Raises ConfigError: nobody can mean that."""
        if self.action not in ACTIONS:
            raise ConfigError(f"found {self.action!r:.40}, expected one of {', '.join(ACTIONS)}")


def order_of(fields: Mapping[str, object]) -> Order:
    """An order as it came through the API.

    Raises:
        ConfigError: it is none.
    """
    kinds = {"action": str, "name": str, "value": str, "from_round": int | None}
    for key, value in fields.items():
        if key not in kinds or not isinstance(value, kinds[key]):
            raise ConfigError(
                f"found {key!r:.40} = {value!r:.40} in an order, expected {', '.join(kinds)}"
            )
    return Order(**{"action": "", **fields})  # type: ignore[arg-type]  # checked above


class Control:
    """One per node and run; belongs to the node's event loop."""

    def __init__(
        self,
        spec: RunSpec,
        me: PeerId,
        records: Records,
        live: Callable[[], Sequence[Presence]],
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        """Args: live: the members that are alive now."""
        self._spec = spec
        self._me = me
        self._records = records
        self._live = live
        self._journal = journal
        self._clock = clock
        self._training: Training | None = None
        self._seen = schema.Control()
        self._is_known = False
        """The creator's record is here."""
        self._news = asyncio.Event()
        self._is_overdue = False
        """The pause has lasted too long."""
        self.said = ControlChanged()
        """What the trainer is to obey."""
        self.look()

    def look(self) -> None:
        """Records have changed, perhaps the creator's.  What cannot be read says nothing."""
        view = self._records.views().get(self._spec.creator)
        if not isinstance(view, Content):
            return
        self._is_known = True
        control = view.control or schema.Control()
        if control != self._seen:
            self._take(control)
        self._news.set()

    def _take(self, control: schema.Control) -> None:
        before, self._seen = self._seen, control
        valid = []
        for change in control.changes:
            try:
                checked(self._spec, change)
                valid.append(change)
            except ValueError as error:
                if change not in before.changes:
                    log.warning("change of the creator refused: %s", error)
        if control.stopped and not before.stopped:
            log.info("the creator has stopped the run")
        elif control.paused != before.paused:
            self._is_overdue = False
            log.info("the creator has %s the run", "paused" if control.paused else "resumed")
        self._records.save_soon()  # the creator may be gone when we start again
        self._say(tuple(valid))

    def _say(self, changes: tuple[Change, ...]) -> None:
        self.said = ControlChanged(
            is_paused=self._seen.paused and not self._is_overdue,
            is_stopped=self.said.is_stopped or self._seen.stopped,
            changes=changes,
        )
        if self._training:
            self._training.control_changed(self.said)

    async def run(self) -> None:
        """End a pause that lasts too long; until cancelled."""
        while True:
            await self._until(lambda: self.said.is_paused)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_S):
                    await self._until(lambda: not self.said.is_paused)
            if self.said.is_paused:
                log.warning("goes on: the creator has not resumed the run within_s=%g", PAUSE_S)
                self._is_overdue = True
                self._say(self.said.changes)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._news.clear()
            await self._news.wait()

    # --- the beginning ----------------------------------------------------------------------

    async def admit(self, *, has_snapshot: bool) -> None:
        """Before anything is fetched: a node that was no member yet needs a run to join.

        Its record says whether it was, on its disk or, if that is lost, at its peers.

        Raises:
            ConfigError: the run has ended.
        """
        if has_snapshot or self._is_member():
            return
        until = self._clock() + HEARD_S
        with self._journal.waits.on("members that can be joined", "any member", HEARD_S):
            while not self._begun() and self._clock() < until:  # noqa: ASYNC110  they expire, too
                await asyncio.sleep(LOOK_S)
        live = self._begun()
        if self.said.is_stopped or (live and all(one.state == "finished" for one in live)):
            await self._records.until_known()  # peers may know a member that lost its disk
            if not self._is_member():
                await self._check_goes_on(live)

    async def _check_goes_on(self, live: Sequence[Presence]) -> None:
        """As `admit`, of a run that seems to be over."""
        if not self.said.is_stopped:
            if all(one.round >= self._spec.rounds for one in live):
                raise self._ended(f"all its {self._spec.rounds} rounds are closed")
            with (
                self._journal.waits.on("the creator's record", "any member", HEARD_S),
                contextlib.suppress(TimeoutError),
            ):
                async with asyncio.timeout(HEARD_S):
                    await self._until(lambda: self._is_known)
        if self.said.is_stopped and not self._is_member():
            raise self._ended("its creator has stopped it")

    def _is_member(self) -> bool:
        own = self._records.views().get(self._me)
        return isinstance(own, Content) and own.member is not None

    def _begun(self) -> list[Presence]:
        """Not those that want to join like us."""
        return [presence for presence in self._live() if presence.state in HAS_WEIGHTS]

    def begin(self, training: Training) -> None:
        """From now on this training obeys."""
        self._training = training
        training.control_changed(self.said)

    def _ended(self, why: str) -> ConfigError:
        return ConfigError(
            f"ticket: run {short(self._spec.run)} ({self._spec.name}) has ended, {why}; expected "
            "one that is under way, so ask for the ticket of another run"
        )

    # --- the creator ------------------------------------------------------------------------

    async def order(self, order: Order) -> str:
        """Do what the creator asks for; a sentence about it.

        Raises:
            ConfigError: it cannot be done; nothing was changed.
        """
        self._check_may()
        change, said = self._meaning(order)

        def write(content: Content) -> Content:
            return replace(content, control=change(content.control or schema.Control()))

        def is_written() -> bool:
            return change(self._seen) == self._seen

        self._records.write(write)
        with (
            self._journal.waits.on("our own record", "the disk", WRITTEN_S),
            contextlib.suppress(TimeoutError),
        ):
            async with asyncio.timeout(WRITTEN_S):
                await self._until(is_written)
        if not is_written():
            return f"{said} as soon as our record can be written; the log says what hinders it"
        return said

    def _check_may(self) -> None:
        spec = self._spec
        if self._me != spec.creator:
            raise ConfigError(
                f"run {short(spec.run)}: found node {short(self._me)}, expected that of the "
                f"creator, {short(spec.creator)}: nobody else can pause, resume, stop or change it"
            )
        if self._seen.stopped:
            raise ConfigError(
                f"run {short(spec.run)}: it is stopped for good, expected one that is under way; "
                "make a new one with `shoal run create`"
            )

    def _meaning(self, order: Order) -> tuple[Callable[[schema.Control], schema.Control], str]:
        """What becomes of our word, and what to tell of it."""
        match order.action:
            case "pause":
                return (lambda word: replace(word, paused=True)), (
                    "paused: each member ends the round that it is in, and waits"
                )
            case "resume":
                return (lambda word: replace(word, paused=False)), "resumed: the members go on"
            case "stop":
                return (lambda word: replace(word, stopped=True)), (
                    "stopped for good: each member ends the round that it is in, and has finished"
                )
        change = self._change(order)
        return (lambda word: word.with_change(change)), (
            f"{change.name} is {change.value} from round {change.round} on, or from when a member "
            "hears of it"
        )

    def _change(self, order: Order) -> Change:
        last = self._spec.rounds - 1
        following = min(self._journal.round + 1, last)
        since = following if order.from_round is None else order.from_round
        if not 0 <= since <= last:
            raise ConfigError(
                f"--from-round: found {since}, expected a round of this run, 0 to {last}"
            )
        try:
            change = Change(name=order.name, value=order.value, round=Round(since))
            checked(self._spec, change)
        except ValueError as error:
            raise ConfigError(f"{error}; nothing was changed") from None
        return change
