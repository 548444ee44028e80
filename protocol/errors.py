"""Every exception shoal raises on purpose.

* ShoalError
  * ConfigError              the operator's fault: stop, print, exit 2
  * LocalProtocolError       our fault: a bug, crash the task
  * PayloadRefused           a payload is not what it must be; its maker is blamed by who knows it
  * WorkerLost               nobody's fault: the worker process died; the node restarts it
  * PeerError                a peer's fault or fate; always carries `peer`
    * RemoteProtocolError    it broke the protocol: blame it
    * PeerUnavailable        it is gone, slow or refuses: try another one

Only `RemoteProtocolError` costs a peer its reputation.  Decoders know no peer: they raise
`Malformed`, a ValueError, and the layer that knows the sender blames it.
"""

from __future__ import annotations

from protocol.ids import Digest, PeerId, short


class ShoalError(Exception):
    """Base class: catch this to catch everything shoal means to raise."""


class ConfigError(ShoalError):
    """A setting or an input of the operator is wrong: what was found, expected, to do."""


class NotRunning(ConfigError):
    """No node runs on a data directory."""


class LocalProtocolError(ShoalError):
    """This node tried to do something the protocol forbids."""


class PayloadRefused(ShoalError):
    """The payload `culprit` is not what it must be; nothing was changed."""

    def __init__(self, culprit: Digest, reason: str) -> None:
        super().__init__(reason)
        self.culprit = culprit


class WorkerLost(ShoalError):
    """The worker process died, or did not answer in time: what it was doing is lost."""


class PeerError(ShoalError):
    """Something went wrong between this node and `peer`."""

    def __init__(self, peer: PeerId, reason: str) -> None:
        super().__init__(f"{short(peer)}: {reason}")
        self.peer = peer
        self.reason = reason


class RemoteProtocolError(PeerError):
    """`peer` sent something no honest peer of this version sends."""


class PeerUnavailable(PeerError):
    """`peer` could not be reached, refused, or did not answer in time."""


class Malformed(ValueError):
    """Bytes from outside that are no value of this protocol version."""
