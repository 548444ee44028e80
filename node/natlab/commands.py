"""Runs `ip`, `nft` and what else a lab is made with, and says clearly what failed."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from protocol.errors import ConfigError, ShoalError

COMMAND_S = 30.0
"""One of them takes a few milliseconds."""
TOOLS = {"ip": "iproute2", "nft": "nftables", "sysctl": "procps"}
"""Each with the package of Debian and Ubuntu that has it."""

TUNNELS = Path("/dev/net/tun")


class LabFailed(ShoalError):
    """A command that the lab needs did not do its work."""


def check_machine(*, with_tunnels: bool) -> None:
    """This machine can have a lab; `with_tunnels`: one with delays or rates.

    Raises:
        ConfigError: it cannot, and what to do.
    """
    if os.geteuid() != 0:
        raise ConfigError(
            f"natlab: found user id {os.geteuid()}, expected root, who may make network "
            "namespaces; start it with sudo"
        )
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise ConfigError(
            f"natlab: {', '.join(missing)} not found on this system; get it with: "
            f"apt-get install {' '.join(missing)}"
        )
    if with_tunnels and not TUNNELS.exists():
        raise ConfigError(
            f"natlab: {TUNNELS} not found, which a delay or a rate needs; make it with: "
            f"mkdir -p {TUNNELS.parent} && mknod {TUNNELS} c 10 200"
        )


async def run(*command: str, text: str = "") -> str:
    """What `command` prints, with `text` as its input.

    Raises:
        LabFailed: it ended with another status than 0, or not at all.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            printed, complaint = await process.communicate(text.encode())
    except TimeoutError:
        raise LabFailed(f"{' '.join(command)}: not done within {COMMAND_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = complaint.decode(errors="replace").strip()
        raise LabFailed(f"{' '.join(command)}: ended with status {process.returncode}: {said}")
    return printed.decode()
