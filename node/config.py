"""What a person sets: this node's own settings, and what the node shall do.

The only reader of the environment (`SHOAL_DATA`, `SHOAL_CACHE`) and of TOML.  What is local
is `NodeConfig`, from `<data dir>/node.toml` and flags, flags first; what must be equal on all
peers is in a run file (node/run_file.py).  Whatever is wrong with a file is one `ConfigError`:
file, key, found, expected, what to do.
"""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from node.settings import check_addr, values
from protocol import check
from protocol.errors import ConfigError
from protocol.limits import MIB
from protocol.ticket import Ticket

MAX_FILE_BYTES = 64 * 1024
"""A settings file is a page or two; more is another kind of file."""
MAX_GIVEN_ADDRS = 16
"""Addresses in one setting; a ticket carries eight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything local.  Each field but `data_dir` is a key of node.toml."""

    data_dir: Path
    """Key, records, blobs, snapshots and sockets of this node; one node at a time."""
    cache_dir: Path
    """Fetched corpora; several nodes may share it."""
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")
    """Where to listen; port 0: any free one.  4001 is libp2p's usual port.  /ip6/:: is left out
    where there is no IPv6."""
    announce: tuple[str, ...] = ()
    """Published instead of the bound addresses, where those are not what others can reach."""
    reachable: str = "auto"
    """Whether others can dial this node: auto: it finds out; yes or no: take my word."""
    bootstrap: tuple[str, ...] = ()
    """Peers to enter the DHT through, besides those of the ticket."""
    lan: bool = True
    """Find nodes on the LAN by multicast DNS."""
    upnp: bool = True
    """Ask the router to open a port."""
    relay: bool = True
    """Carry connections for those that cannot be reached, if this node can be."""
    relay_mbit: float = 32.0
    """Megabits a second for that, each way.  A third of a common server's line.  A guess."""
    up_mbit: float = 0.0
    """Megabits a second to all peers; 0: as the line carries.  Small calls do not wait for it."""
    down_mbit: float = 0.0
    """The same from all peers."""
    device: str = "auto"
    """Where the worker trains; auto: a GPU where there is one."""
    threads: int = 1
    """Of the worker.  One is polite: a node shares the machine with its owner."""
    nice: int = 10
    """Niceness of the worker."""
    memory_mib: int = 1024
    """For payloads in flight.  A 125 M model's payload is 250 MB in bf16: two and two."""
    protection_mib: int = 512
    """For shards of others' snapshots, and of our own; nothing unless the run is protected.  A
    guess: a node holds about 2 n / k times its snapshot for others, and n / k of its own."""
    disk_mib: int = 10 * 1024
    """For blobs; the worker's three snapshots come on top.  A guess: far above any run's texts."""
    first_contact_s: float = 60.0
    """How long a new joiner looks for a member before it gives up and says so; one that has
    been in the run keeps looking.  A guess: a node and its DHT are up in ten seconds."""
    own_data: tuple[Path, ...] = ()
    """UTF-8 text files to train on in a run whose data is each peer's own."""
    name: str = ""
    """What `status` calls this node."""
    log_level: str = "info"
    log_json: bool = False
    """One JSON object a line instead of text."""

    def __post_init__(self) -> None:
        for addr in _bounded("listen", self.listen):
            check_addr("listen", addr, peer=False)
        if not self.listen:
            raise ValueError("listen is empty, expected an address such as /ip4/0.0.0.0/tcp/4001")
        for addr in _bounded("announce", self.announce):
            check_addr("announce", addr, peer=False)
        for addr in _bounded("bootstrap", self.bootstrap):
            check_addr("bootstrap", addr, peer=True)
        check.one_of("reachable", self.reachable, ("auto", "yes", "no"))
        check.number("relay_mbit", self.relay_mbit, 0.1, 1e6)
        check.number("up_mbit", self.up_mbit, 0.0, 1e6)
        check.number("down_mbit", self.down_mbit, 0.0, 1e6)
        check.one_of("device", self.device, ("auto", "cpu", "cuda"))
        check.integer("threads", self.threads, 1, 1024)
        check.integer("nice", self.nice, 0, 19)
        check.integer("memory_mib", self.memory_mib, 16, 1 << 20)
        check.integer("protection_mib", self.protection_mib, 1, 1 << 20)
        check.integer("disk_mib", self.disk_mib, 16, 1 << 24)
        check.number("first_contact_s", self.first_contact_s, 0.1, 86400.0)
        check.items("own_data", self.own_data, 4096)
        check.line("name", self.name, 64)
        check.one_of("log_level", self.log_level, ("debug", "info", "warning", "error"))

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB

    @property
    def protection_bytes(self) -> int:
        return self.protection_mib * MIB

    @property
    def disk_bytes(self) -> int:
        return self.disk_mib * MIB

    @property
    def api_socket(self) -> Path:
        return self.data_dir / "api.sock"


# --- what the node shall do --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateRun:
    """Make the run that `spec_file` describes and be its first member."""

    spec_file: Path
    on_ticket: Callable[[Ticket], None]
    """Called once, as soon as the ticket is known and others can reach this node."""


@dataclass(frozen=True, slots=True)
class JoinRun:
    """Become a member of the ticket's run, or go on, if the data directory already has it."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with the run of the data directory."""


@dataclass(frozen=True, slots=True)
class BootstrapOnly:
    """Serve the DHT, train nothing."""

    on_addrs: Callable[[tuple[str, ...]], None]
    """Called once, with this node's full multiaddrs, as soon as it listens."""


Mode = CreateRun | JoinRun | Resume | BootstrapOnly


# --- this node's settings ----------------------------------------------------------------


def load_node_config(data_dir: Path | None, flags: Mapping[str, object]) -> NodeConfig:
    """This node's settings: defaults, then `node.toml` of the data directory, then flags.

    Args:
        data_dir: None: `SHOAL_DATA`, else ~/.local/share/shoal.
        flags: by the keys of node.toml; None: not given.

    Raises:
        ConfigError: what is wrong in which of them and what to do.
    """
    home = Path.home()
    directory = data_dir or Path(os.environ.get("SHOAL_DATA") or home / ".local/share/shoal")
    directory = directory.expanduser().absolute()
    config = NodeConfig(
        data_dir=directory,
        cache_dir=Path(os.environ.get("SHOAL_CACHE") or home / ".cache/shoal").absolute(),
    )
    file = directory / "node.toml"
    try:
        is_there = file.exists()
    except OSError as error:
        raise ConfigError(
            f"data directory {directory}: {error.strerror}, expected one that can be read; correct "
            "its rights or choose another one"
        ) from error
    if is_there:
        config = _updated(config, file, directory, read_toml(file))
    set_flags = {key: value for key, value in flags.items() if value is not None}
    return _updated(config, "command line", Path.cwd(), set_flags)


def _updated(
    config: NodeConfig, source: Path | str, base: Path, table: Mapping[str, object]
) -> NodeConfig:
    kinds = typing.get_type_hints(NodeConfig)
    del kinds["data_dir"]
    given = values(source, "", kinds, table)
    if "own_data" in given:
        given["own_data"] = tuple(base / path for path in given["own_data"])
    if "cache_dir" in given:
        given["cache_dir"] = base / given["cache_dir"]
    try:
        return replace(config, **given)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}; correct it and start again") from None


def _bounded(name: str, addrs: tuple[str, ...]) -> tuple[str, ...]:
    check.items(name, addrs, MAX_GIVEN_ADDRS)
    return addrs


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a small file.

    Raises:
        ConfigError: it cannot be read, or is no TOML.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{path}: {size} bytes, expected at most {MAX_FILE_BYTES}; is it the right file?"
            )
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; correct that place") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 text (byte {error.start}); is it the right file?"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file that can be read") from None
