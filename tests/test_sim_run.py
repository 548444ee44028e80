"""Simulations of the scenarios that come with shoal, scaled down: each keeps its promise."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from node.sim.command import Options, learners_of, main
from node.sim.report import GroupReport, Report
from node.sim.run import Simulation
from node.sim.scenario import Scenario, read_scenario
from node.sim.settings import ChurnConfig, GroupConfig
from protocol.algorithms import (
    DilocoConfig,
    LocalConfig,
    NolocoConfig,
    SpsaConfig,
    StreamingConfig,
    SyncConfig,
    TrainerConfig,
)
from protocol.errors import ConfigError

pytestmark = pytest.mark.sim

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "examples/scenarios"
MBIT = 125_000


def scenario(name: str, *, scale: float = 1.0, rounds: int = 0, time_s: float = 0.0) -> Scenario:
    """The file's, with fewer peers for a shorter time."""
    found = read_scenario(SCENARIOS / f"{name}.toml")
    groups = [replace(group, count=max(1, round(scale * group.count))) for group in found.groups]
    happens = [
        replace(happening, count=round(scale * happening.count)) for happening in found.happens
    ]
    spec = replace(found.spec, rounds=rounds or found.spec.rounds)
    return replace(
        found,
        groups=tuple(groups),
        happens=tuple(happens),
        spec=spec,
        rounds=rounds or found.rounds,
        time_s=time_s or found.time_s,
    )


def run(scenario: Scenario) -> Report:
    return Simulation(scenario, learners_of(scenario)).run()


def small(trainer: TrainerConfig, *, rounds: int = 6, count: int = 6) -> Scenario:
    lan = scenario("lan", rounds=rounds)
    group = replace(lan.groups[0], count=count, step_spread=0.0)
    return replace(lan, groups=(group,), spec=replace(lan.spec, trainer=trainer), time_s=400.0)


def group(report: Report, name: str) -> GroupReport:
    return next(group for group in report.groups if group.name == name)


def test_on_a_lan_nearly_every_round_is_an_exchange_and_training_never_stands_still() -> None:
    found = run(scenario("lan", scale=0.25, rounds=12))
    assert found.made > 0.97 * found.rounds_closed
    assert (found.half, found.standstills, found.overdue, found.blamed) == (0, 0, 0, 0)
    assert found.time_to_loss_s is not None
    assert found.time_to_loss_s < 0.8 * found.virtual_s


def test_at_home_relays_make_exchanges_slow_but_training_goes_on() -> None:
    found = run(scenario("home-dsl", scale=0.4, rounds=12))
    assert found.made > 0.8 * found.rounds_closed
    assert found.still_share < 0.01
    assert group(found, "dsl").peak_bytes_per_s < 1.01 * 2 * 10 * MBIT


def test_nobody_waits_for_a_straggler_and_it_takes_part() -> None:
    found = run(scenario("straggler", time_s=300.0))
    fast, slow = group(found, "fast"), group(found, "straggler")
    assert fast.rounds >= 0.9 * 15 * 300 / 20
    assert slow.made >= 3
    assert (fast.standstills, found.half) == (0, 0)


def test_a_fifth_of_the_exchanges_lost_costs_bytes_and_hardly_a_round() -> None:
    clean = scenario("lossy", scale=0.3, rounds=12)
    lossy = run(clean)
    perfect = run(replace(clean, network=replace(clean.network, broken=0.0)))
    assert lossy.made > 0.93 * lossy.rounds_closed
    assert lossy.half == 0
    more = lossy.links.all_bytes / lossy.made / (perfect.links.all_bytes / perfect.made)
    assert 1.03 < more < 1.3


def test_when_half_of_the_swarm_goes_the_others_go_on() -> None:
    small = scenario("half-leaves", scale=0.4)
    found = run(small)
    there = dict(zip(found.curves.time_s, found.curves.peers, strict=True))
    assert (there[294.0], there[306.0], found.peers_end) == (24, 12, 16)
    assert found.made > 0.9 * found.rounds_closed
    assert found.still_share < 0.01
    assert found.links.state_bytes == 4 * 8 * sum(small.spec.fragment_counts())
    assert found.loss < 0.1


def test_a_partition_drives_weights_apart_and_a_heal_brings_them_together() -> None:
    found = run(scenario("partition"))
    curves = found.curves
    spread = dict(zip(curves.time_s, curves.consensus, strict=True))
    together, apart, healed = (spread[at] for at in (290.0, 600.0, 890.0))
    assert apart > 1.3 * together
    assert healed < 1.1 * together
    assert found.round_max > 40


def test_a_byte_a_sample_fits_through_a_narrow_line() -> None:
    found = run(scenario("spsa-1mbit", scale=0.016, time_s=20.0))
    assert found.links.peak_max_bytes_per_s < MBIT
    assert found.loss < found.curves.loss[0]
    assert found.consensus < 0.1


def test_a_big_swarm_stays_a_swarm_while_peers_come_and_go() -> None:
    found = run(scenario("big", scale=0.03, time_s=90.0))
    assert found.made > 0.85 * found.rounds_closed
    assert sum(group.peers for group in found.groups) > found.peers_start
    assert found.blamed == 0


@pytest.mark.parametrize(
    "config",
    [
        NolocoConfig(inner_steps=20),
        NolocoConfig(inner_steps=40, fragment_layers=2),
        DilocoConfig(inner_steps=20),
        StreamingConfig(inner_steps=40, fragment_layers=2),
        SyncConfig(),
        LocalConfig(inner_steps=20),
        SpsaConfig(inner_steps=20),
    ],
    ids=lambda config: config.KIND,
)
def test_every_trainer_can_be_simulated(config: TrainerConfig) -> None:
    found = run(small(config))
    assert found.rounds_closed >= 6 * 5
    assert (found.loss < found.curves.loss[0], found.blamed) == (True, 0)
    if isinstance(config, DilocoConfig | SyncConfig):
        assert found.consensus < 1e-12
    assert (found.made == 0) == isinstance(config, LocalConfig)


def test_one_seed_gives_one_report_whatever_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "from test_sim_run import *; import json\n"
        "print(json.dumps(run(scenario('big', scale=0.01, time_s=40.0)).as_json()))"
    )
    paths = f"{ROOT}:{ROOT / 'tests'}"
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "77")
    ]
    assert told[0] == told[1]
    other = replace(scenario("big", scale=0.01, time_s=40.0), seed=5)
    assert json.loads(told[0])["events"] != run(other).events


def test_chance_takes_as_many_as_it_says() -> None:
    quiet = small(NolocoConfig(inner_steps=20), rounds=1000, count=40)
    churn = ChurnConfig(joins=12.0, kills=6.0, leaves=6.0, from_s=60.0, until_s=360.0)
    found = run(replace(quiet, churn=churn))
    joined = sum(group.peers for group in found.groups) - 40
    gone = 40 + joined - found.peers_end
    assert 40 < joined < 80
    assert 40 < gone < 80


def test_a_peer_is_the_same_whatever_happens_to_others() -> None:
    one = small(NolocoConfig(inner_steps=20), count=3)
    two = replace(one, groups=(*one.groups, GroupConfig(name="more", count=2)))
    peers = [list(Simulation(each, learners_of(each)).world.peers) for each in (one, two)]
    assert peers[0] == peers[1][:3]


def files(directory: Path) -> Options:
    path = directory / "small.toml"
    path.write_text("time_s = 60\nloss = 0.5\n[[peers]]\ncount = 4\n[trainer]\ninner_steps = 10\n")
    json_file = directory / "found.json"
    return Options(scenario=path, json_file=json_file, figure=directory / "curve", seed=3)


def test_the_command_prints_a_table_and_writes_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = files(tmp_path)
    main(replace(options, figure=None))
    written = json.loads(options.json_file.read_text() if options.json_file else "")
    said = capsys.readouterr().out
    assert (written["scenario"], written["seed"], written["peers_start"]) == ("small", 3, 4)
    assert f"{written['rounds_closed']:,} closed" in said
    assert "events/s" in said


def test_the_command_draws_its_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main(files(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["curve.png", "curve.svg", "found.json", "small.toml"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_directory_that_is_not_there_is_named_before_anything_is_simulated(
    tmp_path: Path,
) -> None:
    options = replace(files(tmp_path), json_file=tmp_path / "no" / "found.json")
    with pytest.raises(ConfigError, match=r"no/found\.json: there is no directory"):
        main(options)
