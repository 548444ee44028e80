"""One valid value of each kind that travels, for tests of the wire and of its users."""

from __future__ import annotations

from protocol.algorithms import TRAINERS, NolocoConfig
from protocol.envelope import Signer
from protocol.ids import Digest, Round, RunId, digest_of
from protocol.manifest import Manifest
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
from protocol.model import GptConfig, InnerConfig
from protocol.rosters import Contribution, Entry, Later, Roster, sign_roster
from protocol.rpc import (
    BlobCall,
    BlobInfo,
    BlobInfoCall,
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
from protocol.shards import (
    Holding,
    Offer,
    Offers,
    ProtectCall,
    ProtectionConfig,
    ShardCall,
    ShardsCall,
    Stamp,
    sign_stamp,
)
from protocol.spec import BlobRef, DataConfig, RunSpec
from protocol.spsa import (
    Base,
    Behind,
    Frame,
    Frames,
    SignedBase,
    SignedFrame,
    Want,
    log_id,
    packed,
)

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
    fragment=0,
    proposer=CREATOR.peer,
    partner=OTHER.peer,
    proposer_round=Round(3),
    partner_round=Round(2),
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
    unix_s=1_700_003_600,
    ttl_ms=15_000,
    addrs=("/ip4/127.0.0.1/tcp/4001",),
    state="training",
    round=Round(3),
    inner_step=60,
    tokens_per_s=6000.0,
    loss=4.5,
    decisions=(Decision(DIGEST, digest_of(b"other")),),
)
ROSTER = Roster(
    round=Round(3),
    fragment=1,
    term=2,
    leader=CREATOR.peer,
    anchor=DIGEST,
    entries=tuple(
        Entry(peer, digest_of(peer.encode()), 1000, 400)
        for peer in sorted((CREATOR.peer, OTHER.peer))
    ),
)
BOOT = b"bootboot"
FRAME = Frame(
    author=CREATOR.peer,
    boot=BOOT,
    first=64,
    step=32,
    base=DIGEST,
    authors=3,
    scalars=bytes([0, 1, 127, 129, 255]),
)
HORIZON = packed({log_id(RUN, CREATOR.peer, BOOT): 69, log_id(RUN, OTHER.peer, BOOT): 5})
BASE = Base(index=2, leader=OTHER.peer, horizon=HORIZON, authors=2, sum=DIGEST)
ENTRY = PresenceEntry(b"body", b"s" * 64, 14_000)

MANIFEST = Manifest(1024 * 1024 + 1, DIGEST + digest_of(b"other"))

STAMP = Stamp(
    owner=CREATOR.peer,
    boot=BOOT,
    serial=1_700_000_000_000,
    round=Round(3),
    inner_step=60,
    data=2,
    parity=1,
    size_bytes=1000,
    digest=DIGEST,
    shard_bytes=580,
    shards=tuple(digest_of(bytes([index])) for index in range(3)),
)
SIGNED_STAMP = sign_stamp(STAMP, RUN, CREATOR)

VALUES: dict[str, object] = {
    "propose": Propose(Round(3), 0, DIGEST, 1000, 400, 5.0),
    "accept": Accept(DIGEST, Round(3), digest_of(b"other"), 1000, 300),
    "refuse": Refuse(DIGEST, "later", 2.5),
    "have": Have(EXCHANGE),
    "commit": Commit(EXCHANGE),
    "abort": Abort(DIGEST),
    "contribution": Contribution(
        round=Round(3),
        fragment=1,
        anchor=DIGEST,
        anchor_tokens=700,
        digest=digest_of(b"gradient"),
        size_bytes=1000,
        tokens=400,
    ),
    "later": Later(round=Round(4), anchor=DIGEST, anchor_tokens=1100, is_coming=True),
    "roster": ROSTER,
    "signed-roster": sign_roster(ROSTER, RUN, CREATOR),
    "frame": FRAME,
    "frames": Frames((SignedFrame(b"body", b"s" * 64),), True),
    "want": Want(HORIZON, 2),
    "behind": Behind(),
    "base": BASE,
    "signed-base": SignedBase(b"body", b"s" * 64),
    "presence": PRESENCE,
    "presence-call": PresenceCall(RUN, (ENTRY,)),
    "round-call": RoundCall(RUN, SignedMessage(b"body", b"s" * 64)),
    "record-call": RecordCall(RUN, b"body"),
    "hello": Hello(RUN, b"n" * 16, b""),
    "welcome": Welcome(b"spec", b"s" * 64, b"p" * 64),
    "checkpoint": Checkpoint(Round(3), DIGEST, 1000, Digest(DIGEST)),
    "checkpoint-call": CheckpointCall(RUN),
    "signed-checkpoint": SignedCheckpoint(b"body", b"s" * 64),
    "fetch-call": FetchCall(RUN, DIGEST, 1 << 20, 1 << 19),
    "blob-info-call": BlobInfoCall(RUN, DIGEST, is_manifest_wanted=True),
    "blob-info": BlobInfo(b"manifest", b"\x05"),
    "manifest": MANIFEST,
    "blob-call": BlobCall(RUN, DIGEST, 0, 1024),
    "done": Done(),
    "stamp": STAMP,
    "protect-call": ProtectCall(RUN, SIGNED_STAMP, 1, False),
    "holding": Holding("coming"),
    "shards-call": ShardsCall(RUN),
    "offers": Offers((Offer(SIGNED_STAMP, 1),)),
    "shard-call": ShardCall(RUN, DIGEST, 0, 580),
    "spec-protected": spec(protection=ProtectionConfig()),
    **{f"spec-{kind}": spec(trainer=config()) for kind, config in TRAINERS.items()},
}
