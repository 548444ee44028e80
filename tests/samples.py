"""One valid value of each kind that travels, for tests of the wire and of its users."""

from __future__ import annotations

from protocol.envelope import Signer
from protocol.ids import Digest, Round, RunId, digest_of
from protocol.messages import (
    Abort,
    Accept,
    Checkpoint,
    Commit,
    Decision,
    Exchange,
    Have,
    Presence,
    PresenceEntry,
    Propose,
    Refuse,
    SignedMessage,
)
from protocol.rpc import (
    BlobCall,
    CheckpointCall,
    Done,
    FetchCall,
    Hello,
    PresenceCall,
    RecordCall,
    RoundCall,
    SignedCheckpoint,
    Welcome,
)
from protocol.spec import BlobRef, DataConfig, GptConfig, InnerConfig, NolocoConfig, RunSpec

CREATOR = Signer(b"\x01" * 32)
OTHER = Signer(b"\x02" * 32)
DIGEST = digest_of(b"payload")
REF = BlobRef(digest=DIGEST, size_bytes=7)


def spec(**changes: object) -> RunSpec:
    """A small valid run spec."""
    fields: dict[str, object] = {
        "name": "sample",
        "creator": CREATOR.peer,
        "seed": 1,
        "rounds": 9,
        "min_members": 1,
        "start_deadline_s": 1.0,
        "join_secret": None,
        "model": GptConfig(),
        "inner": InnerConfig(),
        "trainer": NolocoConfig(),
        "data": DataConfig(tokenizer=REF, validation=REF, corpus=REF),
    }
    return RunSpec(**(fields | changes))  # type: ignore[arg-type]


RUN: RunId = spec().run
EXCHANGE = Exchange(
    round=Round(3),
    fragment=0,
    proposer=CREATOR.peer,
    partner=OTHER.peer,
    proposer_digest=DIGEST,
    partner_digest=digest_of(b"other"),
    proposer_tokens=400,
    partner_tokens=300,
)
PRESENCE = Presence(
    peer=CREATOR.peer,
    boot=b"12345678",
    seq=4,
    started_unix_s=1_700_000_000,
    ttl_ms=15_000,
    addrs=("/ip4/127.0.0.1/tcp/4001",),
    state="training",
    round=Round(3),
    inner_step=60,
    tokens_per_s=6000.0,
    loss=4.5,
    decisions=(Decision(DIGEST, digest_of(b"other")),),
)
ENTRY = PresenceEntry(b"body", b"s" * 64, 14_000)

VALUES: dict[str, object] = {
    "propose": Propose(Round(3), 0, DIGEST, 1000, 400, 5.0),
    "accept": Accept(DIGEST, Round(3), digest_of(b"other"), 1000, 300),
    "refuse": Refuse(DIGEST, "later", 2.5),
    "have": Have(EXCHANGE),
    "commit": Commit(EXCHANGE),
    "abort": Abort(DIGEST),
    "presence": PRESENCE,
    "presence-call": PresenceCall(RUN, (ENTRY,)),
    "round-call": RoundCall(RUN, SignedMessage(b"body", b"s" * 64)),
    "record-call": RecordCall(RUN, b"body"),
    "hello": Hello(RUN, b"n" * 16, b""),
    "welcome": Welcome(b"spec", b"s" * 64, b"p" * 64),
    "checkpoint": Checkpoint(Round(3), DIGEST, 1000, Digest(DIGEST)),
    "checkpoint-call": CheckpointCall(RUN),
    "signed-checkpoint": SignedCheckpoint(b"body", b"s" * 64),
    "fetch-call": FetchCall(RUN, DIGEST),
    "blob-call": BlobCall(RUN, DIGEST, 0, 1024),
    "done": Done(),
    "spec": spec(),
}
