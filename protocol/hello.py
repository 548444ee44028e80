"""Who belongs to a run: the proofs inside `Hello` and `Welcome`.

An open run admits whoever asks.  In a private run both sides prove that they know the
ticket's secret, and neither shows it: a proof is keyed by the secret and names who proves
to whom and for which nonce, so it is worth nothing to anybody else, at any other time, or in
the other direction.  The callee's proof is inside the bytes that it signs.

Source: keyed BLAKE2, RFC 7693, section 2.1.
"""

from __future__ import annotations

import hashlib
import hmac

from protocol.envelope import Domain, Signer, verify
from protocol.errors import Malformed
from protocol.ids import DIGEST_BYTES, Digest, PeerId, RunId, digest_of, public_key
from protocol.rpc import Hello, Welcome
from protocol.spec import RunSpec, SignedSpec


def join_secret(secret: bytes) -> Digest | None:
    """What the spec of a run says about the secret in its tickets; None without one."""
    return digest_of(secret) if secret else None


def proof(secret: bytes, run: RunId, prover: PeerId, verifier: PeerId, nonce: bytes) -> bytes:
    """That `prover` knows the secret; empty in an open run."""
    if not secret:
        return b""
    named = run + public_key(prover) + public_key(verifier) + nonce
    return hashlib.blake2b(named, key=secret, digest_size=DIGEST_BYTES).digest()


def hello(run: RunId, secret: bytes, caller: PeerId, callee: PeerId, nonce: bytes) -> Hello:
    """What `caller` asks `callee` with a fresh nonce."""
    return Hello(run, nonce, proof(secret, run, caller, callee, nonce))


def is_admitted(asked: Hello, secret: bytes, caller: PeerId, callee: PeerId) -> bool:
    """`caller` may enter the run: it is open, or the caller knows the secret."""
    expected = proof(secret, asked.run, caller, callee, asked.nonce)
    return not secret or hmac.compare_digest(asked.proof, expected)


def welcome(spec: SignedSpec, asked: Hello, secret: bytes, caller: PeerId, me: Signer) -> Welcome:
    """The answer to an admitted caller."""
    body = _signed(asked.run, secret, caller, me.peer, asked.nonce)
    return Welcome(spec.body, spec.signature, me.sign(Domain.HELLO, asked.run, body))


def open_welcome(
    answer: Welcome, asked: Hello, secret: bytes, caller: PeerId, callee: PeerId
) -> tuple[SignedSpec, RunSpec]:
    """The spec of the run, from a member.

    Raises:
        Malformed: the callee does not prove that it is one, or the spec is another run's.
    """
    body = _signed(asked.run, secret, caller, callee, asked.nonce)
    verify(callee, Domain.HELLO, asked.run, body, answer.proof)
    signed = SignedSpec(answer.spec_body, answer.spec_signature)
    spec = signed.open(asked.run)
    if spec.join_secret != join_secret(secret):
        raise Malformed("the ticket's secret is not the secret of the run")
    return signed, spec


def _signed(run: RunId, secret: bytes, caller: PeerId, callee: PeerId, nonce: bytes) -> bytes:
    return nonce + proof(secret, run, callee, caller, nonce)
