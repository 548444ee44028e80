"""What set-up, image and compose file rely on, read from the files themselves."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*")
"""One exact version.  No local suffix, `+cpu`: an index may hold the same version without it."""


def name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def lines(file: str) -> list[str]:
    text = (ROOT / file).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_every_version_is_exact_and_no_line_names_an_index() -> None:
    assert [line for line in lines("constraints.txt") if not PIN.fullmatch(line)] == []


def test_every_dependency_of_the_project_has_its_exact_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["hf"]]
    pinned = {name(line) for line in lines("constraints.txt")}
    assert [item for item in wanted if name(item) not in pinned] == []


def test_the_image_gets_every_package_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {pattern.rstrip("*") for pattern in patterns}
    copied = {line.split()[1] for line in lines("Dockerfile") if line.startswith("COPY ")}
    let_in = {line[1:] for line in lines(".dockerignore") if line.startswith("!")}
    assert (packages - copied, packages - let_in) == (set(), set())


@pytest.mark.parametrize("script", ["setup", "demo", "test", "bench", "compose-test"])
def test_a_script_may_be_started_and_stops_at_the_first_error(script: str) -> None:
    path = ROOT / "scripts" / script
    assert path.stat().st_mode & 0o111
    assert "set -euo pipefail" in path.read_text()
