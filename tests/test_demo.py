"""The demo's own parts: accounts, run file, and the end of its processes."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from status_sample import rendered, status

from node import demo
from node.local_swarm import LocalSwarm, NodeFailed
from node.report import Measured, NodeResult, Report, tables
from node.run_file import read_run_file
from protocol.errors import ConfigError

MEASURED = Measured(start=2.97, mean=2.0, nodes={"node1": 2.1, "node2": 2.2}, consensus=0.5)

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, sys, time;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"],
    stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(60)
"""


def node(
    name: str, val_end: float | None, *, killed: bool = False, **changes: object
) -> NodeResult:
    return NodeResult(name=name, status=status(**changes), val_end=val_end, killed=killed)


def report(**changes: object) -> Report:
    two = Report(
        ok=True,
        seconds=61.23,
        nodes=(node("node1", 2.1), node("node2", 2.2)),
        measured=MEASURED,
        baseline=None,
    )
    return replace(two, **changes)  # type: ignore[arg-type]


def test_the_json_has_the_documented_keys_and_adds_up_the_nodes() -> None:
    assert json.loads(json.dumps(report().as_json())) == {
        "ok": True,
        "seconds": 61.2,
        "val_start": 2.97,
        "val_end": 2.0,
        "val_end_nodes": [2.1, 2.2],
        "rounds": 7,
        "exchanges_made": 10,
        "exchanges_missed": 2,
        "half_exchanges": 2,
        "consensus": 0.5,
        "bytes_sent": 20_218_000,
        "bytes_closed_form": 20_018_000,
        "bytes_sent_by_kind": {"payload": 20_200_000, "presence": 10_000, "round": 18_000},
        "bytes_closed_form_by_kind": {"payload": 20_000_000, "round": 18_000},
        "bytes_data_parallel": 2 * 74 * 4_000_000,
        "val_end_baseline": None,
    }


def test_a_demo_that_failed_at_once_still_has_every_key() -> None:
    empty = report(ok=False, nodes=(), measured=None).as_json()
    assert empty.keys() == report().as_json().keys()
    found = [empty[key] for key in ("ok", "val_start", "val_end", "rounds", "bytes_sent")]
    assert found == [False, None, None, 0, 0]


def test_a_killed_node_counts_for_bytes_but_not_for_losses() -> None:
    found = report(nodes=(node("node1", 2.1), node("node2", None, killed=True))).as_json()
    assert found["val_end_nodes"] == [2.1]
    assert found["bytes_sent"] == 20_218_000


def test_data_parallel_training_sends_nothing_with_one_node() -> None:
    assert report(nodes=(node("node1", 2.1),)).bytes_data_parallel() == 0


def test_data_parallel_training_counts_each_node_for_the_steps_that_it_made() -> None:
    four = tuple(node(f"node{index}", 2.0, inner_step=index) for index in range(4))
    assert report(nodes=four).bytes_data_parallel() == 6 * 4_000_000 * 6 // 4


def test_learning_means_that_the_mean_weights_got_better() -> None:
    assert report().has_learned()
    assert not report(measured=replace(MEASURED, mean=2.97)).has_learned()
    assert not report(measured=None).has_learned()


def test_the_last_table_shows_losses_beside_step_0_and_bytes_beside_the_closed_form() -> None:
    nodes = (node("node1", 2.1), node("node2", None, killed=True))
    lines = rendered(tables(report(nodes=nodes, baseline=2.5)))
    words = [line.split() for line in lines]
    for line in (
        "node1 2.970 2.100 0.870 74 7 5 1 1",
        "node2 (killed) 2.970 - - 74 7 5 1 1",
        "mean weights 2.970 2.000 0.970",
        "one node alone 2.970 2.500 0.470",
        "payload 20,200,000 20,000,000 +1.00 %",
        "presence 10,000 - -",
    ):
        assert line.split() in words


def test_the_run_file_that_the_demo_writes_says_what_its_draft_says(tmp_path: Path) -> None:
    draft = replace(read_run_file(demo.RUN_FILES["noloco"]), rounds=3, min_members=4)
    path = tmp_path / "run.toml"
    path.write_text(demo.run_file_text(draft))
    assert read_run_file(path) == draft


def test_a_directory_that_is_in_use_is_not_kept_into(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with (
        pytest.raises(ConfigError, match="is in use, expected a new or empty directory"),
        demo._directory(tmp_path),
    ):
        pass


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"  # an orphan that the machine's first process has not collected yet


@pytest.mark.libp2p
async def test_everything_ends_even_what_ignores_sigterm(
    tmp_path: Path,
) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    async with LocalSwarm(tmp_path) as swarm:
        task = asyncio.create_task(swarm.output_of("stubborn", "-c", STUBBORN, str(pipe)))
        grandchild = int(await asyncio.to_thread(pipe.read_text))
        assert is_alive(grandchild)
        task.cancel()
    assert not is_alive(grandchild)


@pytest.mark.libp2p
async def test_a_node_that_ends_on_its_own_is_a_failure_with_the_end_of_its_log(
    tmp_path: Path,
) -> None:
    async with LocalSwarm(tmp_path) as swarm:
        child = await swarm.start("node1", "join", "nonsense")
        await child.process.wait()
        with pytest.raises(NodeFailed) as failed:
            swarm.check()
        await swarm.poll()
    assert str(failed.value).startswith("node1 ended with status 2; the end of its log:\n")
    assert "found 'nonsense', expected a line that begins with shoal1" in str(failed.value)
