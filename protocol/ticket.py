"""A ticket: run id and first addresses in one checksummed line, all a person needs to join.

shoal1<base58 of (msgpack fields, then 4 bytes of their blake2b-256)>
"""

from __future__ import annotations

from dataclasses import dataclass

import base58

from protocol import check, codec
from protocol.errors import ConfigError, Malformed
from protocol.ids import RunId, digest_of

PREFIX = "shoal1"
CHECKSUM_BYTES = 4
MAX_TICKET_CHARS = 4096
SECRET_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a joiner is given."""

    run: RunId
    addrs: tuple[str, ...]
    """Multiaddrs ending in /p2p/PEER; at least one."""
    secret: bytes
    """Of a private run; empty: anyone may join."""

    def __post_init__(self) -> None:
        check.digest("run", self.run)
        check.addrs("addrs", self.addrs)
        if not self.addrs:
            raise ValueError("a ticket needs an address")
        if self.secret:
            check.raw("secret", self.secret, SECRET_BYTES, SECRET_BYTES)

    def __str__(self) -> str:
        body = codec.encode(self)
        return PREFIX + base58.b58encode(body + _checksum(body)).decode("ascii")


def parse(line: str) -> Ticket:
    """The ticket that `line` spells; spaces and line breaks around and inside are ignored.

    Raises:
        ConfigError: what is wrong with it and what to do.
    """
    line = "".join(line.split())
    if not line.startswith(PREFIX):
        raise ConfigError(
            f"ticket: found {line[:12]!r}, expected a line that begins with {PREFIX}; "
            "copy the whole ticket"
        )
    if len(line) > MAX_TICKET_CHARS:
        raise ConfigError(
            f"ticket: {len(line)} characters, expected at most {MAX_TICKET_CHARS}; "
            "copy only the ticket"
        )
    try:
        raw = base58.b58decode(line[len(PREFIX) :])
    except ValueError as error:
        raise ConfigError(f"ticket: {error}, expected only base58; copy it again") from None
    body, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise ConfigError(
            "ticket: the checksum does not match, so a character is wrong or "
            "missing; copy the whole ticket again"
        )
    try:
        return codec.decode(Ticket, body, max_bytes=MAX_TICKET_CHARS)
    except Malformed as error:
        raise ConfigError(f"ticket: {error}; it is of another version of shoal") from None


def _checksum(body: bytes) -> bytes:
    return digest_of(b"ticket" + body)[:CHECKSUM_BYTES]
