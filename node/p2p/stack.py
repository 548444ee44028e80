"""Which parts of libp2p a node is made of: TCP, Noise, Yamux, an Ed25519 identity."""

from __future__ import annotations

import libp2p
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.swarm import Swarm
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX

from node.p2p import library
from node.p2p.addrs import advertised
from node.p2p.yamux import QuickYamux
from protocol.envelope import Signer

MAX_CONNECTIONS = 300
"""The library's own default, said here because memory is bounded by it."""


def new_host(signer: Signer, tcp: library.CountedTcp) -> IHost:
    """A host with the signer's identity, not running yet."""
    library.quiet_loggers()
    keys = create_new_key_pair(signer.seed)
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    host = libp2p.new_host(
        key_pair=keys,
        transports=[tcp],
        # Said here because the library's default also accepts plaintext, that is, any identity.
        sec_opt={TProtocol(NOISE): noise},
        addrs_factory=advertised,
        muxer_opt={TProtocol(YAMUX): QuickYamux},
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            high_watermark=MAX_CONNECTIONS,
            min_connections=0,
            low_watermark=0,
        ),
    )
    network = host.get_network()
    assert isinstance(network, Swarm)
    network.auto_connector.maybe_connect = _dial_nobody  # type: ignore[method-assign]
    return host


async def _dial_nobody() -> None:
    """What the library does every 30 s instead of dialling whoever it ever heard of.

    It would have half of `high_watermark` connections, whatever the low one says, so two hundred
    nodes would dial each other anew as soon as they have hung up.
    """
