"""What a node shows of itself: the values of its parts, gathered for the API.

Pure reading: nothing here changes anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from crdt.schema import Content
from node.api import LinkTraffic, PeerStatus, Reachable, Status
from node.exchange import ScalarTraffic
from node.founding import with_addrs
from node.keys import DataDir
from node.member import Member
from node.p2p.counters import PeerTraffic, Traffic
from node.p2p.links import Link
from node.pieces import DIRECT, cuts
from node.records.contributions import told
from node.snapshots import snapshots_seen
from node.telemetry import Rounds, Waits
from protocol import codec, rpc
from protocol.algorithms import GroupConfig
from protocol.changes import InForce, spec_in, value_of
from protocol.envelope import SIGNATURE_BYTES
from protocol.fragments import num_parameters
from protocol.frame import answer_bytes, request_bytes
from protocol.ids import Digest, PeerId, Round, RunId
from protocol.labels import possible_sizes
from protocol.messages import SignedMessage
from protocol.spec import RunSpec
from protocol.spsa import FRAME_BYTES, Frames

PAYLOAD = rpc.Kind.PAYLOAD.value


def status_of(
    *,
    peer: PeerId,
    name: str,
    addrs: tuple[str, ...],
    reachable: Reachable,
    traffic: Traffic,
    waits: Waits,
    directory: DataDir,
    member: Member | None,
) -> Status:
    """The status of a node, with or without a run."""
    journal = member.journal if member else None
    training = member.training if member else None
    spec = training.spec if training else None
    round = journal.round if journal else Round(0)
    changes = journal.changes if journal else ()
    settings = spec and spec_in(spec, changes, round)
    progress = training.learner.progress if training else None
    wait = waits.current
    scalars = training.exchange.scalars if training else ScalarTraffic()
    heard = member.services.heard if member and member.services else 0
    snapshots = snapshots_seen(directory.worker)
    rounds = journal.rounds if journal else Rounds()
    fetched = training.exchange.fetched if training else {}
    served = member.services.served if member and member.services else {}
    return Status(
        peer=peer,
        run=member.held.run.hex() if member else "",
        name=name,
        state=journal.state if journal else "serving",
        ticket=str(with_addrs(member.held, addrs).ticket) if member else "",
        addrs=list(addrs),
        reachable=reachable,
        pid=os.getpid(),
        worker_pid=training.learner.pid if training else None,
        round=round,
        rounds=spec.rounds if spec else 0,
        inner_step=progress.inner_step if progress else 0,
        step_in_round=progress.step_in_round if progress else 0,
        inner_steps=settings.round_steps(round) if settings else 0,
        loss=progress.loss if progress else 0.0,
        tokens_per_s=progress.tokens_per_s if progress else 0.0,
        partner=journal.partner if journal else None,
        waiting=wait.as_status() if wait else None,
        trouble=trouble_of(member),
        exchanges={"made": rounds.made, "missed": rounds.missed, "half": rounds.half},
        rounds_closed=rounds.closed,
        consensus=consensus(journal.spreads) if journal else None,
        changes=changed(settings, changes),
        val={
            "start": training.val_start if training else None,
            "end": training.val_end if training else None,
        },
        bytes={"up": traffic.up, "down": traffic.down},
        protection=member.protection.status() if member and member.protection else None,
        closed_form=closed_form(spec, sent=served, asked=fetched, scalars=scalars, heard=heard),
        parameters=num_parameters(spec.model) if spec else 0,
        members=1 + len(member.presence.live()) if member else 0,
        records=member.records.root().hex() if member and member.records else "",
        snapshot=str(snapshots[0]) if snapshots else None,
        spec=str(directory.spec) if directory.spec.exists() else None,
        blobs=blobs(directory, spec),
    )


def trouble_of(member: Member | None) -> str | None:
    """What the operator should see to: of the training first."""
    if member is None:
        return None
    training, protection = member.training, member.protection
    return (
        member.journal.trouble
        or (training.offers.trouble if training else None)
        or (protection.trouble if protection else None)
    )


def changed(settings: RunSpec | None, changes: Sequence[InForce]) -> dict[str, str]:
    """The settings that were changed at some time, as they are."""
    names = sorted({one.change.name for one in changes})
    return {name: value_of(settings, name) for name in names} if settings else {}


def peers_of(
    member: Member | None,
    links: Sequence[Link],
    traffic_of: Callable[[PeerId], PeerTraffic | None],
) -> Sequence[PeerStatus]:
    """The other members, those that are alive and those that only have a record."""
    if member is None:
        return []
    live = {presence.peer: presence for presence in member.presence.live()}
    views = member.records.views() if member.records else {}
    by_peer = {link.peer: link for link in links}
    found = []
    for peer, reason in member.standings():
        presence, view, link = live.get(peer), views.get(peer), by_peer.get(peer)
        content = view if isinstance(view, Content) else Content()
        found.append(
            PeerStatus(
                peer=peer,
                name=(content.member and content.member.name) or "",
                state=presence.state if presence else "gone",
                standing=reason,
                round=presence.round if presence else 0,
                inner_step=presence.inner_step if presence else 0,
                loss=presence.loss if presence else 0.0,
                tokens_per_s=presence.tokens_per_s if presence else 0.0,
                addrs=list(presence.addrs) if presence else [],
                link=link.kind.value if link else "",
                link_addr=link.addr if link else "",
                traffic=_traffic(traffic_of(peer)),
                tokens=content.totals.tokens,
                rounds=content.totals.rounds,
            )
        )
    return found


def contributions_of(member: Member | None) -> Mapping[str, object]:
    """The ledger of the run, by the records that this node holds."""
    if member is None or member.records is None:
        return told({}, Digest(b""), is_group=False)
    is_group = isinstance(member.held.spec().trainer, GroupConfig)
    return told(member.records.views(), member.records.root(), is_group=is_group)


def _traffic(found: PeerTraffic | None) -> LinkTraffic:
    if found is None:
        return LinkTraffic(rtt_ms=None, up_per_s=0.0, down_per_s=0.0, up={}, down={})
    return LinkTraffic(
        rtt_ms=None if found.rtt_s is None else 1000 * found.rtt_s,
        up_per_s=found.up_per_s,
        down_per_s=found.down_per_s,
        up=found.up,
        down=found.down,
    )


def consensus(spreads: list[float]) -> float | None:
    """The mean spread of the last pairs; an estimate of the variance across peers."""
    return sum(spreads) / len(spreads) if spreads else None


def closed_form(
    spec: RunSpec | None,
    *,
    sent: Mapping[int, int],
    asked: Mapping[int, int],
    scalars: ScalarTraffic,
    heard: int,
) -> dict[str, int]:
    """Bytes sent as payload, by the formula, with their frames.

    An exchange that is made is one payload and one request each way; one that is given up may
    be, too, and is counted by what crossed.

    Args:
        sent: bytes of payloads, by the length of the payload; lengths that are none of this
            run's count nothing.
        asked: payloads that were asked for, by length.
        scalars: what was sent of an spsa run's scalars.
        heard: messages with scalars that were received, each of which is answered.
    """
    if spec is None:
        return {PAYLOAD: 0}
    sizes = {size for of_fragment in possible_sizes(spec) for size in of_fragment} - {0}
    digest = spec.data.tokenizer.digest
    payloads = sum(sent.get(size, 0) * answers(size) // size for size in sizes)
    requests = sum(asked.get(size, 0) * asking(size, digest) for size in sizes)
    return {PAYLOAD: payloads + requests + scalar_bytes(scalars, heard)}


def answers(size_bytes: int) -> int:
    """What the answers take that bring a payload of this length over a direct link."""
    return sum(answer_bytes(piece) for piece in cuts(size_bytes, DIRECT.piece_bytes))


def asking(size_bytes: int, digest: Digest) -> int:
    """What the requests for them take."""
    taken = offset = 0
    for piece in cuts(size_bytes, DIRECT.piece_bytes):
        call = codec.encode(rpc.FetchCall(RunId(bytes(32)), digest, offset, piece))
        taken += request_bytes(rpc.FETCH.name, len(call))
        offset += piece
    return taken


def scalar_bytes(sent: ScalarTraffic, heard: int) -> int:
    """The same of an spsa run's scalars."""
    message = SignedMessage(codec.encode(Frames((), False)), bytes(SIGNATURE_BYTES))
    call = codec.encode(rpc.RoundCall(RunId(bytes(32)), message))
    each = request_bytes(rpc.SCALARS.name, len(call))
    done = answer_bytes(len(codec.encode(rpc.Done())))
    return sent.messages * each + sent.frames * FRAME_BYTES + sent.scalars + heard * done


def blobs(directory: DataDir, spec: RunSpec | None) -> dict[str, str]:
    """Where the blobs that a person may want to look at lie."""
    if spec is None:
        return {}
    named = {"tokenizer": spec.data.tokenizer, "validation": spec.data.validation}
    return {name: str(directory.blobs / ref.digest.hex()) for name, ref in named.items()}
