"""Processes that benches give orders to: they answer in turn, and nothing is left of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.bench.child import Command, Failed, children

PROGRAM = """
import json, sys, tempfile, time
handle, path = tempfile.mkstemp()
print(json.dumps({"left": path}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "end":
        break
    if order["do"] != "hang":
        print(json.dumps(order), flush=True)
"""
LONG_S = 15.0


@pytest.fixture
def command(tmp_path: Path) -> Command:
    (tmp_path / "obeying.py").write_text(PROGRAM)
    path = ("env", f"PYTHONPATH={tmp_path}")
    return Command(name="the process", module="obeying", enter=path)


async def test_what_a_process_leaves_among_temporary_files_goes_with_it(command: Command) -> None:
    async with children([command, command]) as made:
        left = [Path(str((await child.answer(LONG_S))["left"])) for child in made]
        assert [path.exists() for path in left] == [True, True]
        found = [await made[n].order("say", LONG_S, number=n) for n in (1, 0)]
        assert found == [{"do": "say", "number": 1}, {"do": "say", "number": 0}]
    assert [path.exists() for path in left] == [False, False]


async def test_an_order_without_an_answer_is_named(command: Command) -> None:
    async with children([command]) as (child,):
        await child.answer(LONG_S)
        with pytest.raises(Failed, match=r"^the process: no end of hang within 0\.001 s$"):
            await child.order("hang", 0.001)
        with pytest.raises(Failed, match=r"^the process has ended during end; "):
            await child.order("end", LONG_S)
