"""The handlers, called as `node.rpc` calls them, and the proofs of `hello`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from samples import CREATOR, OTHER, SIGNED_STAMP, spec
from wire import carried

from node.blobs.store import Held
from node.donors import ask_checkpoint
from node.rpc import Refused
from node.services import MAX_ADMITTED, Services
from protocol import codec, hello, rpc
from protocol.envelope import Domain, Signer
from protocol.errors import Malformed, RemoteProtocolError
from protocol.ids import Digest, PeerId, Round, RunId, digest_of
from protocol.messages import Abort, Checkpoint, SignedMessage
from protocol.shards import Holding, Offers, ProtectCall, ShardCall, ShardsCall
from protocol.spec import SignedSpec, sign_spec
from protocol.witness import SKETCH_BYTES, Sketch, SketchCall, Weights, WeightsCall
from trainers.events import Received

ME, ALICE, BOB = CREATOR, OTHER, Signer(b"\x03" * 32)
SECRET, WRONG_SECRET = b"s" * 16, b"w" * 16
NONCE = b"n" * 16
PAYLOAD = b"payload in flight"
BLOB = b"blob on disk"
WEIGHTS = digest_of(b"weights")
OFFER = Checkpoint(Round(3), digest_of(b"checkpoint"), 10, digest_of(b"weights"))


class Arena:
    """One payload in flight."""

    def __contains__(self, digest: Digest) -> bool:
        return digest == digest_of(PAYLOAD)

    def view(self, digest: Digest) -> memoryview:
        assert digest in self
        return memoryview(PAYLOAD)


class Blobs:
    """One blob on disk."""

    def held(self, digest: Digest) -> Held | None:
        return Held(b"manifest", b"\x01") if digest == digest_of(BLOB) else None

    async def read(self, digest: Digest, offset: int, length: int) -> bytes | None:
        return BLOB[offset : offset + length] if digest == digest_of(BLOB) else None


class Shards:
    """One shard, for whoever asks."""

    async def protect(self, peer: PeerId, call: ProtectCall) -> Holding:
        return Holding("held")

    async def shards(self, peer: PeerId, call: ShardsCall) -> Offers:
        return Offers(())

    async def shard(self, peer: PeerId, call: ShardCall) -> memoryview:
        return memoryview(BLOB)[call.offset : call.offset + call.length]


class Node:
    """Services and what reached the rest of the node."""

    def __init__(self, secret: bytes = b"") -> None:
        made = spec(join_secret=hello.join_secret(secret))
        self.run = made.run
        self.spec = sign_spec(made, ME)
        self.received: list[Received] = []
        self.offer: Checkpoint | None = OFFER
        self.services = Services(
            run=self.run,
            spec=self.spec,
            secret=secret,
            signer=ME,
            received=self._receive,
            presence=self._echo,
            records=self._echo,
            checkpoint=self._checkpoint,
            sketch=self._sketch,
            weights={Round(4): WEIGHTS}.get,
            arena=Arena(),
            blobs=Blobs(),
            protection=Shards(),
        )

    async def _receive(self, event: Received) -> None:
        self.received.append(event)

    async def _sketch(self, nonce: int) -> Sketch | None:
        return Sketch(Round(4), WEIGHTS, None, bytes(SKETCH_BYTES)) if nonce else None

    async def _echo(self, peer: PeerId, call: Any) -> Any:
        return call

    async def _checkpoint(self, at_base: bool) -> Checkpoint | None:
        return self.offer

    async def call(
        self, peer: PeerId, method: rpc.Method[rpc.Q, rpc.A], request: rpc.Q, **_: Any
    ) -> rpc.A:
        """As `node.rpc` would, from `peer`'s side: the answer of this node."""
        handlers: dict[str, Callable[[PeerId, Any], Awaitable[Any]]] = {}
        self.services.serve_on(Handlers(handlers))
        answer: rpc.A = await handlers[method.name](peer, request)
        return answer


class Handlers:
    """A server that only remembers."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self.handlers = handlers

    def serve(self, method: Any, handler: Any) -> None:
        self.handlers[method.name] = handler


def hello_of(caller: Signer, run: RunId, secret: bytes = b"") -> rpc.Hello:
    return hello.hello(run, secret, caller.peer, ME.peer, NONCE)


def signed_round(signer: Signer, run: RunId, domain: Domain = Domain.ROUND) -> SignedMessage:
    body = codec.encode(Abort(digest_of(b"mine")))
    return SignedMessage(body, signer.sign(domain, run, body))


def calls(run: RunId) -> list[tuple[rpc.Method[Any, Any], Any]]:
    """One valid call of each method but hello."""
    return [
        (rpc.ROUND, rpc.RoundCall(run, signed_round(ALICE, run))),
        (rpc.PRESENCE, rpc.PresenceCall(run, ())),
        (rpc.RECORDS, rpc.RecordCall(run, b"")),
        (rpc.CHECKPOINT, rpc.CheckpointCall(run)),
        (rpc.SKETCH, SketchCall(run, 7)),
        (rpc.WEIGHTS, WeightsCall(run, Round(4))),
        (rpc.FETCH, rpc.FetchCall(run, digest_of(PAYLOAD), 0, len(PAYLOAD))),
        (rpc.BLOB_INFO, rpc.BlobInfoCall(run, digest_of(BLOB), is_manifest_wanted=True)),
        (rpc.BLOB, rpc.BlobCall(run, digest_of(BLOB), 0, 4)),
        (rpc.PROTECT, ProtectCall(run, SIGNED_STAMP, 1, False)),
        (rpc.SHARDS, ShardsCall(run)),
        (rpc.SHARD, ShardCall(run, digest_of(BLOB), 0, 4)),
    ]


async def refusal(node: Node, caller: Signer, method: Any, request: Any) -> str:
    with pytest.raises(Refused) as refused:
        await node.call(caller.peer, method, request)
    assert len(refused.value.sentence) > 10
    return refused.value.code


def test_every_method_of_the_table_has_a_handler() -> None:
    handlers: dict[str, Any] = {}
    Node().services.serve_on(Handlers(handlers))
    node = {method.name for method in (rpc.REACH, rpc.DIAL, rpc.SEEN)}  # of node.reach
    assert set(handlers) == {method.name for method in rpc.METHODS} - node


async def test_hello_proves_membership_and_brings_the_spec() -> None:
    node = Node()
    asked = hello_of(ALICE, node.run)
    answer = await node.call(ALICE.peer, rpc.HELLO, asked)
    signed, made = hello.open_welcome(answer, asked, b"", ALICE.peer, ME.peer)
    assert (signed, made.run) == (node.spec, node.run)


async def test_a_welcome_is_worth_nothing_for_another_nonce_peer_or_run() -> None:
    node = Node()
    asked = hello_of(ALICE, node.run)
    answer = await node.call(ALICE.peer, rpc.HELLO, asked)
    fresh = rpc.Hello(node.run, b"m" * 16, b"")
    for question, callee in ((fresh, ME.peer), (asked, BOB.peer)):
        with pytest.raises(Malformed, match="not signed by"):
            hello.open_welcome(answer, question, b"", ALICE.peer, callee)
    other = sign_spec(spec(seed=2), ME)
    stuffed = rpc.Welcome(other.body, other.signature, answer.proof)
    with pytest.raises(Malformed, match="the spec of another run"):
        hello.open_welcome(stuffed, asked, b"", ALICE.peer, ME.peer)


async def test_a_spec_that_its_creator_did_not_sign_is_refused() -> None:
    node = Node()
    asked = hello_of(ALICE, node.run)
    forged = SignedSpec(node.spec.body, ALICE.sign(Domain.SPEC, node.run, node.spec.body))
    answer = hello.welcome(forged, asked, b"", ALICE.peer, ME)
    with pytest.raises(Malformed, match="as spec"):
        hello.open_welcome(answer, asked, b"", ALICE.peer, ME.peer)


async def test_calls_of_another_run_are_refused_whatever_they_are() -> None:
    node, other = Node(), RunId(b"o" * 32)
    for method, request in [(rpc.HELLO, hello_of(ALICE, other)), *calls(other)]:
        assert await refusal(node, ALICE, method, request) == "other-run"
    assert node.received == []


async def test_in_a_private_run_everything_waits_for_a_hello_with_the_right_proof() -> None:
    node = Node(SECRET)
    for proof in (b"", WRONG_SECRET):
        assert await refusal(node, ALICE, rpc.HELLO, hello_of(ALICE, node.run, proof)) == (
            "not-admitted"
        )
    for method, request in calls(node.run):
        assert await refusal(node, ALICE, method, request) == "not-admitted"
    await node.call(ALICE.peer, rpc.HELLO, hello_of(ALICE, node.run, SECRET))
    for method, request in calls(node.run):
        await node.call(ALICE.peer, method, request)
    assert await refusal(node, BOB, rpc.CHECKPOINT, rpc.CheckpointCall(node.run)) == "not-admitted"


async def test_a_proof_that_was_overheard_admits_nobody_else() -> None:
    node = Node(SECRET)
    overheard = hello_of(ALICE, node.run, SECRET)
    assert await refusal(node, BOB, rpc.HELLO, overheard) == "not-admitted"


async def test_a_peer_that_proved_itself_when_we_greeted_it_is_admitted() -> None:
    node = Node(SECRET)
    node.services.admit(ALICE.peer)
    await node.call(ALICE.peer, rpc.CHECKPOINT, rpc.CheckpointCall(node.run))


async def test_the_admitted_are_bounded_and_the_first_is_forgotten() -> None:
    node = Node(SECRET)
    node.services.admit(ALICE.peer)
    for number in range(MAX_ADMITTED):
        node.services.admit(PeerId(f"peer {number}"))
    call = rpc.CheckpointCall(node.run)
    assert await refusal(node, ALICE, rpc.CHECKPOINT, call) == "not-admitted"


async def test_in_a_private_run_the_callee_proves_the_secret_too() -> None:
    made = spec(join_secret=hello.join_secret(SECRET))
    asked = hello_of(ALICE, made.run, SECRET)
    knows_only_the_spec = hello.welcome(sign_spec(made, ME), asked, b"", ALICE.peer, ME)
    with pytest.raises(Malformed, match="not signed by"):
        hello.open_welcome(knows_only_the_spec, asked, SECRET, ALICE.peer, ME.peer)


async def test_a_round_message_reaches_the_trainer_with_its_sender() -> None:
    node = Node()
    call = rpc.RoundCall(node.run, signed_round(ALICE, node.run))
    assert await node.call(ALICE.peer, rpc.ROUND, call) == rpc.Done()
    assert node.received == [Received(ALICE.peer, Abort(digest_of(b"mine")))]


async def test_a_round_message_that_the_caller_did_not_sign_is_malformed() -> None:
    node = Node()
    noise = b"\xc1"
    for message in (
        signed_round(BOB, node.run),
        signed_round(ALICE, RunId(b"o" * 32)),
        signed_round(ALICE, node.run, Domain.HELLO),
        SignedMessage(noise, ALICE.sign(Domain.ROUND, node.run, noise)),
    ):
        with pytest.raises(Malformed):
            await node.call(ALICE.peer, rpc.ROUND, rpc.RoundCall(node.run, message))
    assert node.received == []


async def test_a_checkpoint_is_offered_under_the_members_signature() -> None:
    node = Node()
    call = rpc.CheckpointCall(node.run)
    assert await ask_checkpoint(Asking(node, ALICE), ME.peer, call) == OFFER
    with pytest.raises(RemoteProtocolError, match="a bad checkpoint"):
        await ask_checkpoint(Asking(node, ALICE), BOB.peer, call)
    node.offer = None
    assert await refusal(node, ALICE, rpc.CHECKPOINT, call) == "not-here"


class Asking:
    """`caller`'s calls: whoever is asked, `node` answers."""

    def __init__(self, node: Node, caller: Signer) -> None:
        self._node = node
        self._caller = caller

    async def call(
        self,
        peer: PeerId,
        method: rpc.Method[rpc.Q, rpc.A],
        request: rpc.Q,
        *,
        deadline_s: float | None = None,
        into: memoryview | None = None,
    ) -> rpc.A:
        async def answered(caller: PeerId, call: rpc.Q) -> rpc.A:
            return await self._node.call(caller, method, call)

        return await carried(
            *(self._caller.peer, peer, method, request, answered), deadline_s=deadline_s, into=into
        )


async def test_a_member_says_what_its_weights_look_like_and_were() -> None:
    node = Node()
    sketch = await node.call(ALICE.peer, rpc.SKETCH, SketchCall(node.run, 7))
    assert sketch == Sketch(Round(4), WEIGHTS, None, bytes(SKETCH_BYTES))
    assert await refusal(node, ALICE, rpc.SKETCH, SketchCall(node.run, 0)) == "not-here"
    for round, digest in ((4, WEIGHTS), (5, None)):
        call = WeightsCall(node.run, Round(round))
        assert await node.call(ALICE.peer, rpc.WEIGHTS, call) == Weights(digest)


async def test_payloads_and_blobs_are_served_by_digest() -> None:
    node = Node()
    part = rpc.BlobCall(node.run, digest_of(BLOB), 3, 5)
    assert await node.call(ALICE.peer, rpc.BLOB, part) == BLOB[3:8]
    for wanted, manifest in ((True, b"manifest"), (False, b"")):
        call = rpc.BlobInfoCall(node.run, digest_of(BLOB), is_manifest_wanted=wanted)
        info = await node.call(ALICE.peer, rpc.BLOB_INFO, call)
        assert info == rpc.BlobInfo(manifest, b"\x01")
    piece = rpc.FetchCall(node.run, digest_of(PAYLOAD), 3, 5)
    answer = await node.call(ALICE.peer, rpc.FETCH, piece)
    assert bytes(answer) == PAYLOAD[3:8]
    assert node.services.served == {len(PAYLOAD): 5}


async def test_what_is_not_here_is_refused_and_so_is_a_range_outside() -> None:
    node = Node()
    unknown = digest_of(b"unknown")
    for method, request, code in (
        (rpc.FETCH, rpc.FetchCall(node.run, unknown, 0, 1), "not-here"),
        (rpc.FETCH, rpc.FetchCall(node.run, digest_of(PAYLOAD), 1, len(PAYLOAD)), "bad-range"),
        (rpc.BLOB_INFO, rpc.BlobInfoCall(node.run, unknown, is_manifest_wanted=True), "not-here"),
        (rpc.BLOB, rpc.BlobCall(node.run, unknown, 0, 1), "not-here"),
        (rpc.BLOB, rpc.BlobCall(node.run, digest_of(PAYLOAD), 0, 1), "not-here"),
        (rpc.BLOB, rpc.BlobCall(node.run, digest_of(BLOB), 0, len(BLOB) + 1), "bad-range"),
    ):
        assert await refusal(node, ALICE, method, request) == code


def test_a_proof_names_both_peers_the_run_and_the_nonce_and_has_a_direction() -> None:
    run = RunId(b"r" * 32)
    proofs = {
        hello.proof(SECRET, run, ALICE.peer, BOB.peer, NONCE),
        hello.proof(SECRET, run, BOB.peer, ALICE.peer, NONCE),
        hello.proof(SECRET, run, ALICE.peer, ME.peer, NONCE),
        hello.proof(SECRET, run, ALICE.peer, BOB.peer, b"m" * 16),
        hello.proof(SECRET, RunId(b"o" * 32), ALICE.peer, BOB.peer, NONCE),
        hello.proof(WRONG_SECRET, run, ALICE.peer, BOB.peer, NONCE),
    }
    assert len(proofs) == 6
