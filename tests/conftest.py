"""What holds for all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from node.telemetry import QUIET_LIBRARIES

settings.register_profile("shoal", deadline=None)
"""How long an example takes says how busy the machine is."""
settings.load_profile("shoal")


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """What a test makes of the log, such as by a command, is not for the next one."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, QUIET_LIBRARIES)]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]
    yield
    root.handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
