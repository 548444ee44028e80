"""What a node shows of itself: the values of its parts, gathered for the API.

Pure reading: nothing here changes anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from crdt.schema import Content
from node import worker_wire as wire
from node.api import PeerStatus, Status
from node.founding import with_addrs
from node.keys import DataDir
from node.member import Member
from node.p2p.counters import Traffic
from node.telemetry import Rounds, Waits
from protocol import codec, rpc
from protocol.frame import answer_bytes, request_bytes
from protocol.ids import PeerId, RunId
from protocol.payload import num_parameters, payload_bytes
from protocol.spec import RunSpec

PAYLOAD = rpc.Kind.PAYLOAD.value


def status_of(
    *,
    peer: PeerId,
    name: str,
    addrs: tuple[str, ...],
    traffic: Traffic,
    waits: Waits,
    directory: DataDir,
    member: Member | None,
) -> Status:
    """The status of a node, with or without a run."""
    journal = member.journal if member else None
    training = member.training if member else None
    spec = training.spec if training else None
    progress = training.learner.progress if training else None
    wait = waits.current
    snapshots = wire.snapshot_files(directory.worker)
    rounds = journal.rounds if journal else Rounds()
    fetched = training.exchange.fetched if training else 0
    served = member.services.served if member and member.services else 0
    return Status(
        peer=peer,
        run=member.held.run.hex() if member else "",
        name=name,
        state=journal.state if journal else "serving",
        ticket=str(with_addrs(member.held, addrs).ticket) if member else "",
        addrs=list(addrs),
        pid=os.getpid(),
        worker_pid=training.learner.pid if training else None,
        round=journal.round if journal else 0,
        rounds=spec.rounds if spec else 0,
        inner_step=progress.inner_step if progress else 0,
        step_in_round=progress.step_in_round if progress else 0,
        inner_steps=spec.trainer.inner_steps if spec else 0,
        loss=progress.loss if progress else 0.0,
        tokens_per_s=progress.tokens_per_s if progress else 0.0,
        partner=journal.partner if journal else None,
        waiting=wait.as_status() if wait else None,
        trouble=journal.trouble if journal else None,
        exchanges={"made": rounds.made, "missed": rounds.missed, "half": rounds.half},
        rounds_closed=rounds.closed,
        consensus=consensus(journal.spreads) if journal else None,
        val={
            "start": training.val_start if training else None,
            "end": training.val_end if training else None,
        },
        bytes={"up": traffic.up, "down": traffic.down},
        closed_form={
            "up": closed_form(spec, answers=served, requests=fetched),
            "down": closed_form(spec, answers=fetched, requests=served),
        },
        parameters=num_parameters(spec.model) if spec else 0,
        members=1 + len(member.presence.live()) if member else 0,
        records=member.records.root().hex() if member and member.records else "",
        snapshot=str(snapshots[0]) if snapshots else None,
        spec=str(directory.spec) if directory.spec.exists() else None,
        blobs=blobs(directory, spec),
    )


def peers_of(member: Member | None) -> Sequence[PeerStatus]:
    """The other members, those that are alive and those that only have a record."""
    if member is None:
        return []
    live = {presence.peer: presence for presence in member.presence.live()}
    views = member.records.views() if member.records else {}
    found = []
    for peer, reason in member.standings():
        presence, view = live.get(peer), views.get(peer)
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
                tokens=content.totals.tokens,
                rounds=content.totals.rounds,
            )
        )
    return found


def consensus(spreads: list[float]) -> float | None:
    """The mean spread of the last pairs; an estimate of the variance across peers."""
    return sum(spreads) / len(spreads) if spreads else None


def closed_form(spec: RunSpec | None, *, answers: int, requests: int) -> dict[str, int]:
    """Bytes one way of so many payloads and of so many requests for one, with their frames.

    An exchange that is made is one payload and one request each way; one that is given up may
    be, too, and is counted by what crossed.
    """
    if spec is None:
        return {PAYLOAD: 0}
    size = payload_bytes(spec.trainer.codec, num_parameters(spec.model))
    call = rpc.FetchCall(RunId(bytes(32)), spec.data.tokenizer.digest)
    asked = request_bytes(rpc.FETCH.name, len(codec.encode(call)))
    return {PAYLOAD: answers * answer_bytes(size) + requests * asked}


def blobs(directory: DataDir, spec: RunSpec | None) -> dict[str, str]:
    """Where the blobs that a person may want to look at lie."""
    if spec is None:
        return {}
    named = {"tokenizer": spec.data.tokenizer, "validation": spec.data.validation}
    return {name: str(directory.blobs / ref.digest.hex()) for name, ref in named.items()}
