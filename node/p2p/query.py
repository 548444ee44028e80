"""One question to one peer of the DHT: who is closer to a key, and what it keeps under it.

The library asks in three ways that differ in what they make of the answer: some tell nobody
where the peers are that they name, others check twenty signatures for it, and none tells a peer
that knows nobody from one that does not answer.  Here an answer is an answer.  What it names is
a hint: who is dialled has to prove its id anyway.  Trio side.

Source: https://github.com/libp2p/specs/blob/master/kad-dht/README.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from libp2p.kad_dht.common import BUCKET_SIZE, PROTOCOL_ID
from libp2p.kad_dht.kad_dht import KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import env_to_send_in_RPC
from libp2p.utils.varint import encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from node.p2p.addrs import readable
from node.p2p.dialling import root
from protocol.limits import MAX_ADDRS

MAX_ANSWER_BYTES = 1 << 18
"""Of one answer; twenty peers, twenty providers and a value are some 40 kB."""
ADDRS_S = 3600.0
"""How long it is remembered where a peer is that an answer named, as the library does."""


class Silent(Exception):
    """The peer did not answer, or nothing that is an answer, and why."""


async def closer_at(dht: KadDHT, peer: ID, key: bytes) -> list[ID]:
    """Whom a peer knows close to `key`.  Keys are of at most 50 bytes.

    Raises:
        Silent: it did not answer.
    """
    return _closer(dht, await _ask(dht, peer, Message.FIND_NODE, key))


async def providers_at(dht: KadDHT, peer: ID, key: bytes) -> tuple[list[PeerInfo], list[ID]]:
    """Whom a peer knows to provide `key`, and whom close to it.

    Raises:
        Silent: it did not answer.
    """
    answer = await _ask(dht, peer, Message.GET_PROVIDERS, key)
    return list(_infos(answer.providerPeers)), _closer(dht, answer)


async def value_at(dht: KadDHT, peer: ID, key: bytes) -> tuple[bytes | None, list[ID]]:
    """What a peer keeps under `key`, not validated, and whom it knows close to it.

    Raises:
        Silent: it did not answer.
    """
    answer = await _ask(dht, peer, Message.GET_VALUE, key)
    value = bytes(answer.record.value) if answer.HasField("record") else None
    return value or None, _closer(dht, answer)


async def _ask(dht: KadDHT, peer: ID, kind: Message.MessageType, key: bytes) -> Message:
    sender, _ = env_to_send_in_RPC(dht.host)  # so that the peer can name us to others
    request = Message(type=kind, key=key, senderRecord=sender)
    try:
        stream = await dht.host.new_stream(peer, [PROTOCOL_ID])
        try:
            await stream.write(encode_varint_prefixed(request.SerializeToString()))
            coded = await read_varint_prefixed_bytes_limited(stream, MAX_ANSWER_BYTES)
        finally:
            await stream.close()
        answer = Message.FromString(coded)
    except Exception as error:  # a stranger's bytes and dials pass through all of the library
        raise Silent(root(error)) from error
    if answer.type != kind:
        raise Silent(f"answered {answer.type} to {kind}")
    return answer


def _closer(dht: KadDHT, answer: Message) -> list[ID]:
    found = []
    for info in _infos(answer.closerPeers):
        if info.peer_id != dht.local_peer_id:
            found.append(info.peer_id)
            if info.addrs:
                dht.host.get_peerstore().add_addrs(info.peer_id, info.addrs, int(ADDRS_S))
    return found


def _infos(peers: Sequence[Message.Peer]) -> Iterable[PeerInfo]:
    for peer in peers[:BUCKET_SIZE]:
        addrs = readable(Multiaddr(addr) for addr in peer.addrs[:MAX_ADDRS])
        yield PeerInfo(ID(peer.id), [Multiaddr(addr) for addr in addrs])
