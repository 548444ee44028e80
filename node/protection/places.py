"""Which member holds which shard: distinct hosts first, then those that are reached directly.

Pure.  Two holders behind one address are often one machine, or one line, and are lost together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from node.addr_text import host_of as host_of_addr
from node.addr_text import is_relayed
from protocol.ids import PeerId, RunId, digest_of
from protocol.messages import HAS_WEIGHTS, Presence


def new_holders(
    missing: Iterable[int],
    members: Sequence[Presence],
    *,
    taken: Collection[PeerId],
    owner: PeerId,
    owner_host: str,
    run: RunId,
    is_relayed: Callable[[PeerId], bool],
) -> Mapping[int, PeerId]:
    """A holder for each missing shard, as far as there are members.

    Args:
        members: that may be asked.
        taken: peers that hold other shards of this snapshot: one each.
        owner_host: as `host_of` says it.
    """
    free = {p.peer: p for p in members if p.peer not in taken and p.state in HAS_WEIGHTS}
    hosts = Counter([owner_host, *(host_of(p) for p in members if p.peer in taken)])
    found: dict[int, PeerId] = {}
    for index in sorted(missing):
        if not free:
            break

        def rank(peer: PeerId) -> tuple[int, bool, bytes]:
            name = digest_of(b"shards|" + run + f"{owner}|{peer}".encode())
            return hosts[host_of(free[peer])], is_relayed(peer), name

        best = found[index] = min(free, key=rank)
        hosts[host_of(free.pop(best))] += 1
    return found


def host_of(presence: Presence) -> str:
    """Where a member is: `/ip4/HOST`; itself where nobody can tell."""
    return host_in(presence.addrs) or presence.peer


def host_in(addrs: Sequence[str]) -> str:
    """Of the first address that is no relay's; empty: there is none."""
    direct = (addr for addr in addrs if not is_relayed(addr))
    return host_of_addr(next(direct, ""))
