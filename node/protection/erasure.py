"""Erasure coding: n = data + parity shards, any `data` of which give the content back.

Reed-Solomon with a Cauchy matrix over GF(256), by ISA-L through PyECLib: every square part of a
Cauchy matrix can be inverted, which does not hold for the Vandermonde codes of the same library.
Content is coded in segments, so that it is worked on in the cache and the interpreter is never
held up for long; shard i is fragment i of each segment, one after the other, with the 80 bytes
that liberasurecode puts before each.

Trap: liberasurecode ends the process (assert) over fragments that are none.  So only shards
that have been checked against their hash go in.
Source: https://opendev.org/openstack/pyeclib, https://github.com/intel/isa-l
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyeclib.ec_iface import ECDriver, ECDriverError

CODE = "isa_l_rs_cauchy"
SEGMENT_BYTES = 1024 * 1024
"""256 KiB to 1 MiB are the fastest; docs/results/protection.md."""

Memory = bytes | bytearray | memoryview


class NotDecodable(Exception):
    """The shards do not give the content back; the sentence says why."""


class ErasureCode:
    """k + m.  Its functions may be called from any thread, one at a time."""

    def __init__(self, data: int, parity: int, code: str = CODE) -> None:
        """Args: code: another of the library's, to compare with; shards say nothing of it."""
        self.data = data
        self.parity = parity
        self._driver = ECDriver(k=data, m=parity, ec_type=code)

    def shard_bytes(self, size_bytes: int) -> int:
        """How long each shard of so many bytes is."""
        whole, rest = divmod(size_bytes, SEGMENT_BYTES)
        return whole * self._fragment_bytes(SEGMENT_BYTES) + self._fragment_bytes(rest)

    def cut(self, content: Memory, into: Sequence[memoryview]) -> None:
        """Fill n memories of `shard_bytes(len(content))` each; the content is left alone."""
        place = 0
        with memoryview(content) as view:
            for start in range(0, len(view), SEGMENT_BYTES):
                fragments = self._driver.encode(bytes(view[start : start + SEGMENT_BYTES]))
                end = place + len(fragments[0])
                for shard, fragment in zip(into, fragments, strict=True):
                    shard[place:end] = fragment
                place = end

    def joined(self, shards: Mapping[int, Memory], size_bytes: int) -> bytes:
        """The content of so many bytes, from `data` or more of its shards by index.

        Args:
            shards: each checked against its hash.

        Raises:
            NotDecodable: they are too few, or of another length, or of no content of this size.
        """
        if len(shards) < self.data:
            raise NotDecodable(f"{len(shards)} shards, expected {self.data} or more")
        chosen = [memoryview(shards[index]) for index in sorted(shards)[: self.data]]
        length = self.shard_bytes(size_bytes)
        for shard in chosen:
            if len(shard) != length:
                raise NotDecodable(f"a shard of {len(shard)} bytes, expected {length}")
        content, place = bytearray(size_bytes), 0  # so that each segment's memory is used again
        for start in range(0, size_bytes, SEGMENT_BYTES):
            segment_bytes = min(SEGMENT_BYTES, size_bytes - start)
            end = place + self._fragment_bytes(segment_bytes)
            fragments = [bytes(shard[place:end]) for shard in chosen]
            content[start : start + segment_bytes] = self._segment(fragments, segment_bytes)
            place = end
        return bytes(content)

    def _segment(self, fragments: list[bytes], size_bytes: int) -> bytes:
        try:
            segment = self._driver.decode(fragments)
        except ECDriverError as error:
            raise NotDecodable(f"shards that do not belong together: {error}") from error
        if len(segment) != size_bytes:
            raise NotDecodable(f"a segment of {len(segment)} bytes, expected {size_bytes}")
        return bytes(segment)

    def _fragment_bytes(self, size_bytes: int) -> int:
        if size_bytes == 0:
            return 0
        found: int = self._driver.get_segment_info(size_bytes, size_bytes)["fragment_size"]
        return found
