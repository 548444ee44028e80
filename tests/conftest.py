"""What holds for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from node.telemetry import QUIET_LIBRARIES

settings.register_profile(
    "shoal",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
"""How long an example takes says how busy the machine is.  New examples are for people, who can
look at what they find; what CI says of a change is of that change."""
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
