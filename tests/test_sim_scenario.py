"""Scenario files: what a person writes becomes a scenario, or one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.sim.scenario import Scenario, read_scenario
from node.sim.settings import GroupConfig, HappeningConfig
from protocol.algorithms import StreamingConfig
from protocol.errors import ConfigError

FILES = sorted((Path(__file__).parents[1] / "examples/scenarios").glob("*.toml"))
LEAST = "rounds = 3\n[[peers]]\ncount = 4\n"


def read(tmp_path: Path, text: str, *, seed: int | None = None) -> Scenario:
    path = tmp_path / "small.toml"
    path.write_text(text)
    return read_scenario(path, seed=seed)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_scenario_that_comes_with_shoal_is_one(path: Path) -> None:
    scenario = read_scenario(path)
    assert scenario.name == path.stem
    assert scenario.learner == "toy"


def test_they_are_all_there() -> None:
    names = (
        "big churn-spsa churn-streaming churn half-leaves home-dsl lan lossy partition-2-2-spsa "
        "partition-2-2-streaming partition-2-2 partition spsa-1mbit straggler"
    )
    assert [path.stem for path in FILES] == names.split()


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    scenario = read(tmp_path, LEAST)
    assert scenario.groups == (GroupConfig(name="0", count=4),)
    assert (scenario.name, scenario.seed, scenario.spec.rounds) == ("small", 0, 3)
    assert scenario.conditions.fetch_deadline_s == scenario.spec.exchange_deadline_s


def test_the_trainer_is_set_as_in_a_run_file(tmp_path: Path) -> None:
    scenario = read(tmp_path, f'{LEAST}[trainer]\nkind = "streaming"\nmix = 0.25\n', seed=7)
    assert scenario.spec.trainer == StreamingConfig(mix=0.25)
    assert (scenario.seed, scenario.spec.seed) == (7, 7)


def test_what_happens_is_read(tmp_path: Path) -> None:
    scenario = read(tmp_path, f'{LEAST}[[happens]]\nwhat = "cut"\nat_s = 5\nshare = 0.5\n')
    assert scenario.happens == (HappeningConfig(what="cut", at_s=5.0, share=0.5),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rounds = 3\n", "peers are 0 in all, expected 1 to 20000"),
        ("[[peers]]\ncount = 4\n", "rounds and time_s are 0, expected one of them, or both"),
        (f"speed = 3\n{LEAST}", "unknown key speed, expected one of "),
        (f"peers = 4\n{LEAST.split('[')[0]}", "peers is 4, expected tables [[peers]]"),
        (f"{LEAST}step = 1.0\n", "unknown key peers[0].step, expected one of name, count, "),
        (f"{LEAST}[[peers]]\ncount = -1\n", "peers[1].count is -1, expected a whole number from 0"),
        (f"{LEAST}step_s = 0\n", "peers[0].step_s is 0.0, expected a number from 0.001 to 10000"),
        (f'{LEAST}step_s = "1"\n', "peers[0].step_s is '1', expected a number"),
        (f"{LEAST}latency_s = [1.0]\n", "peers[0].latency_s has 1 numbers, expected two"),
        (
            f"{LEAST}latency_s = [0.2, 0.1]\n",
            "peers[0].latency_s[1] is 0.1, expected a number",
        ),
        (f"{LEAST}[network]\nloss = 2\n", "network.loss is 2.0, expected a number from 0 to 1"),
        (f"{LEAST}[network]\nview = 0\n", "network.view is 0, expected a whole number from 1"),
        (f"{LEAST}[churn]\nkills = -1\n", "churn.kills is -1.0, expected a number from 0"),
        (f"{LEAST}[toy]\nnumbers = 0\n", "toy.numbers is 0, expected a whole number from 1"),
        (f"{LEAST}[trainer]\nkind = 'x'\n", "trainer.kind is 'x', expected one of noloco, "),
        (f"{LEAST}[trainer]\ngamma = 9\n", "trainer.gamma is 9.0, expected a number from 0 to 4"),
        (f"{LEAST}[model]\nlayers = 0\n", "model.layers is 0, expected a whole number from 1"),
        (f"model = 3\n{LEAST}", "model is 3, expected a table [model]"),
        (f"{LEAST}[[happens]]\nwhat = 'cut'\n", "happens[0].at_s is missing, expected a value"),
        (
            f"{LEAST}[[happens]]\nat_s = 1\nwhat = 'rain'\n",
            "happens[0].what is 'rain', expected one of kill, wipe, leave, join",
        ),
        (
            f"{LEAST}[[happens]]\nat_s = 1\nwhat = 'kill'\n",
            "happens[0].share is 0 and count is 0 of what = 'kill', expected one of them above 0",
        ),
        (
            f"{LEAST}[[happens]]\nat_s = 1\nwhat = 'freeze'\ncount = 1\n",
            "happens[0].for_s is 0 of what = 'freeze', expected above 0",
        ),
        (
            f"{LEAST}[[happens]]\nat_s = 1\nwhat = 'kill'\ncount = 1\ngroup = 'x'\n",
            "happens.group is 'x', expected one of 0",
        ),
        (
            f"{LEAST}[[happens]]\nat_s = 1\nwhat = 'wipe'\ncount = 1\n",
            "happens[0].for_s is 0 of what = 'wipe', expected above 0",
        ),
        (f"{LEAST}[churn]\nwipes = 1\n", "churn.back_s is 0 with wipes = 1, expected above 0"),
        (f"{LEAST}clock_s = [-1e6, 0]\n", "peers[0].clock_s[0] is -1000000.0, expected a number"),
        (
            "rounds = 1\nrecords = true\n[[peers]]\ncount = 65\n",
            "peers are 65 in all, expected 1 to 64 with records = true",
        ),
        (f"records = 1\n{LEAST}", "records is 1, expected"),
        (f"{LEAST}[[peers]]\nname = '0'\n", "peers have the names 0, 0, expected no two alike"),
        (f"learner = 'cat'\n{LEAST}", "learner is 'cat', expected one of toy, model"),
        (
            "rounds = 1\nlearner = 'model'\n[[peers]]\ncount = 65\n",
            "peers are 65 in all, expected 1 to 64",
        ),
        (
            f"time_s = 1e6\nsample_s = 1\n{LEAST}",
            "sample_s is 1, expected 100 or more",
        ),
        ("rounds = \n", "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(ConfigError) as found:
        read(tmp_path, text)
    file, _, said = str(found.value).partition(": ")
    assert file == str(tmp_path / "small.toml")
    assert said.startswith(sentence)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: No such file or directory"):
        read_scenario(tmp_path / "no.toml")
