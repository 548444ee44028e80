"""Bounds that several kinds of message share."""

from __future__ import annotations

MAX_ROUND = 10_000_000
MAX_FRAGMENT = 4096
MAX_PARAMETERS = 1 << 31
"""Bounds what a payload may claim: 4 GiB in bf16."""
MAX_TOKENS = 1 << 48
MAX_PAYLOAD_BYTES = 1 << 33
