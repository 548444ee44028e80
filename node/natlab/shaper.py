"""One link of the lab: two network devices, and between them a delay and a rate, each way.

A program of its own, one for each link, because `tc netem` is missing from many kernels:

    python -m node.natlab.shaper NAME NAME DELAY_MS RATE_MBIT

makes two TAP devices where it runs, prints a line when they are there, and carries what one of
them sends to the other until it is killed.  TCP segments of up to 64 KiB cross in one piece, as
they do between virtual machines, so that a frame in Python costs little.  A rate of 0 is none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
CHECKSUM_AND_TSO = 0x01 | 0x02 | 0x04
"""Numbers of <linux/if_tun.h>: the devices take unfinished checksums and long TCP segments, and
each frame begins with a virtio header that says so; it is handed on as it is."""

HEADER_BYTES = 10
"""The virtio header, which is on no wire."""
MAX_FRAME_BYTES = 65_536 + 512
"""The longest segment, with Ethernet and virtio headers and some to spare."""
QUEUE_S = 0.2
"""What a rate would make wait for longer is dropped at the tail: a home router's buffer."""
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Without a rate, what is under way in one direction: 1.3 GB/s at 50 ms, more than was measured."""
BATCH = 32
"""Frames that are read from one side before the other has its turn."""


class Direction:
    """Frames on their way from one device to the other, each with the instant it arrives."""

    def __init__(self, source: int, sink: int, *, delay_s: float, bytes_per_s: float) -> None:
        self._source = source
        self._sink = sink
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._line_free_s = 0.0

    def take(self, now_s: float) -> None:
        """Read what the source has sent, but for what finds the queue full."""
        for _ in range(BATCH):
            try:
                frame = os.read(self._source, MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            sent_s = max(now_s, self._line_free_s)
            if self._bytes_per_s:
                if sent_s - now_s > QUEUE_S:
                    continue
                sent_s += (len(frame) - HEADER_BYTES) / self._bytes_per_s
                self._line_free_s = sent_s
            if self._waiting_bytes + len(frame) <= MAX_WAITING_BYTES:
                self._waiting_bytes += len(frame)
                self._under_way.append((sent_s + self._delay_s, frame))

    def deliver(self, now_s: float) -> None:
        """Write what has arrived by now."""
        while self._under_way and self._under_way[0][0] <= now_s:
            _, frame = self._under_way.popleft()
            self._waiting_bytes -= len(frame)
            with contextlib.suppress(OSError):  # a device that is down loses it, as a cable would
                os.write(self._sink, frame)

    def next_s(self) -> float | None:
        """When the next frame arrives."""
        return self._under_way[0][0] if self._under_way else None


def make_device(name: str) -> int:
    """A TAP device in this network namespace; it is there as long as the descriptor is open."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP_NO_PI_VNET_HDR))
    fcntl.ioctl(device, TUNSETOFFLOAD, CHECKSUM_AND_TSO)
    return device


def main(one_name: str, other_name: str, delay_ms: str, rate_mbit: str) -> None:
    """Carry frames until a device is gone, or somebody kills us."""
    one, other = make_device(one_name), make_device(other_name)
    delay_s, bytes_per_s = float(delay_ms) / 1e3, float(rate_mbit) * 1e6 / 8
    ways = {
        one: Direction(one, other, delay_s=delay_s, bytes_per_s=bytes_per_s),
        other: Direction(other, one, delay_s=delay_s, bytes_per_s=bytes_per_s),
    }
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        due = [at for way in ways.values() if (at := way.next_s()) is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select(list(ways), [], [], wait_s)
        now_s = time.monotonic()
        for device in readable:
            ways[device].take(now_s)
        for way in ways.values():
            way.deliver(now_s)


if __name__ == "__main__":
    main(*sys.argv[1:])
