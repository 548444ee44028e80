"""Bounds that several kinds of message share."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
MAX_ROUND = 10_000_000
MAX_FRAGMENT = 4096
MAX_PARAMETERS = 1 << 31
"""Bounds what a payload may claim: 4 GiB in bf16."""
MAX_STEP = 1 << 40
"""Inner steps of a run: 10 million rounds of 100,000.  A counter of the generator has 64 bits."""
MAX_UNIX_S = 1 << 40
"""Seconds since 1970 that a peer may claim."""
NONCE_BYTES = 16
"""Drawn anew for each question, so that no old answer fits."""
MAX_TOKENS = 1 << 48
MAX_PAYLOAD_BYTES = 1 << 33
MAX_ADDRS = 8
"""Addresses of one peer that are told, kept and tried."""
MAX_ADDR_BYTES = 256
"""One through a relay, with both ids, has 180 characters at most."""
MAX_PIECE_BYTES = 1024 * 1024
"""The most that one request brings of a payload or a shard, which is verified as a whole."""
