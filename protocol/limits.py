"""Bounds that several kinds of message share."""

from __future__ import annotations

MAX_ROUND = 10_000_000
MAX_FRAGMENT = 4096
MAX_PARAMETERS = 1 << 31
"""Bounds what a payload may claim: 4 GiB in bf16."""
MAX_TOKENS = 1 << 48
MAX_PAYLOAD_BYTES = 1 << 33
MAX_ADDRS = 8
"""Addresses of one peer that are told, kept and tried."""
MAX_ADDR_BYTES = 256
"""One through a relay, with both ids, has 180 characters at most."""
MAX_PIECE_BYTES = 1024 * 1024
"""The most that one request brings of a payload or a shard, which is verified as a whole."""
