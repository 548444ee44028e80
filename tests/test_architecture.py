"""Rules about the code itself: which way imports point, who may touch what, and size."""

from __future__ import annotations

import ast
import functools
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "protocol": ("protocol",),
    "crdt": ("protocol", "crdt"),
    "trainers": ("protocol", "trainers"),
    "node": ("protocol", "crdt", "trainers", "node"),
}
"""Direction of imports between the packages.  Nothing imports tests or scripts."""

CORE_MAY_NOT = {
    "aiohttp", "anyio", "argparse", "asyncio", "libp2p", "logging", "multiprocessing", "os",
    "signal", "socket", "subprocess", "threading", "time", "trio",
}  # fmt: skip
"""Outside node/ nothing asks the world anything."""

DOORS = {
    "libp2p": ("node/bench/rpc_libp2p.py", "node/p2p/*.py"),
    "multiaddr": ("node/bench/rpc_libp2p.py", "node/p2p/*.py"),
    "trio": ("node/bench/rpc_libp2p.py", "node/p2p/*.py", "node/bridge.py"),
    "torch": (
        "trainers/compact.py", "trainers/compress.py", "trainers/data.py",
        "trainers/fragments.py", "trainers/inner.py", "trainers/model.py", "trainers/outer*.py",
        "trainers/perturb.py", "trainers/probe.py", "trainers/quantize.py", "trainers/scalars.py",
        "trainers/sketch.py", "trainers/state.py", "trainers/subspace.py", "trainers/summed.py",
        "trainers/topk.py", "node/bench/*.py", "node/sim/model.py", "node/sim/spsa.py",
        "node/worker/*.py", "node/yardstick.py", "node/export.py", "node/hugging_face.py",
        "node/sample.py", "node/trained.py", "trainers/sampling.py",
    ),
    "pycrdt": ("crdt/document.py",),
    "pyeclib": ("node/protection/erasure.py",),
    "aiohttp": ("node/api.py",),
    "zeroconf": ("node/lan.py",),
    "miniupnpc": ("node/upnp.py",),
    "tomllib": ("node/config.py",),
    "os.environ": ("node/config.py",),
    "os.getenv": (),
    "msgpack": ("protocol/codec.py", "protocol/frame.py"),
    "subprocess": (),
    "asyncio.create_subprocess_exec": (
        "node/worker/life.py", "node/local_swarm.py", "node/corpus.py", "node/bench/*.py",
        "node/natlab/*.py",
    ),
    "asyncio.create_subprocess_shell": (),
    "multiprocessing": (),
    "pickle": (), "marshal": (), "shelve": (), "dill": (), "cloudpickle": (),
}  # fmt: skip
"""Each of these has one door, so that it can be replaced or watched there."""

BANNED_CALLS = {
    "asyncio.create_task": "a task has a TaskGroup",
    "asyncio.gather": "a task has a TaskGroup",
    "asyncio.wait_for": "asyncio.timeout says it better",
    "eval": "code from data",
    "exec": "code from data",
    "os.system": "a command line from data",
    "random.choice": "the generator is an argument",
    "random.random": "the generator is an argument",
    "random.seed": "the generator is an argument",
    "torch.load": "unpickles; torch.save files are not ours",
    "torch.manual_seed": "the generator is an argument",
}
AT_IMPORT = (
    ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.AsyncFunctionDef,
    ast.ClassDef, ast.Assert,
)  # fmt: skip
"""What may stand at the top of a module, besides strings and `if __name__ == "__main__"`."""
AT_IMPORT_TOO = {
    "node/cli.py": ("app.add_typer",),
    "node/p2p/idle.py": ("NetStream.close = _close",),
    "node/p2p/library.py": ("value_store.MAX_VALUE_STORE_SIZE = MAX_VALUES",),
    "node/p2p/yamux.py": ("muxer_multistream.Yamux = QuickYamux",),
}
"""How a line begins: typer knows its commands no other way, and libp2p takes no setting for it."""
LATE_IMPORTS = {
    "node/cli.py": ("node.node", "node.sim.command"),
    "node/cli_model.py": ("node.export", "node.sample"),
    "node/sim/command.py": ("node.sim.figure", "node.sim.model"),
}
"""A client of the daemon starts without libp2p and numpy, which take half a second; a simulation
without matplotlib, which a node has no need of, and of toys without torch."""

MOST_LINES = 350
MOST_FUNCTION_LINES = 70

FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(tree: ast.AST) -> set[str]:
    """Every module that is imported, and for `from a import b` also `a.b`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def used(tree: ast.AST) -> set[str]:
    """Imports, and dotted names such as `os.environ`."""
    dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return imported(tree) | dotted


def opens(name: str, door: str) -> bool:
    return name == door or name.startswith(door + ".")


@EACH_FILE
def test_imports_point_one_way(path: Path) -> None:
    layer = place(path).split("/")[0]
    for name in imported(parsed(path)):
        package = name.split(".")[0]
        assert package not in ("tests", "scripts"), f"imports {name}"
        if package in MAY_IMPORT:
            assert package in MAY_IMPORT[layer], f"{layer} imports {name}"
        elif layer != "node":
            assert package not in CORE_MAY_NOT, f"the core imports {name}"


@EACH_FILE
def test_each_library_has_one_door(path: Path) -> None:
    names = used(parsed(path))
    for door, keepers in DOORS.items():
        if not any(fnmatch(place(path), keeper) for keeper in keepers):
            assert not [name for name in names if opens(name, door)], f"{door} has another door"


def reaches_elsewhere(node: ast.stmt) -> bool:
    """Whether it assigns to a part of something: of another module, perhaps."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    parts = (part for target in targets if target for part in ast.walk(target))
    return any(isinstance(part, ast.Attribute | ast.Subscript) for part in parts)


@EACH_FILE
def test_nothing_happens_at_import(path: Path) -> None:
    for node in parsed(path).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        is_known = ast.unparse(node).startswith(AT_IMPORT_TOO.get(place(path), "\0"))
        is_ours = isinstance(node, AT_IMPORT) and not reaches_elsewhere(node)
        assert is_ours or is_text or is_main or is_known, f"line {node.lineno}"


@EACH_FILE
def test_imports_stand_on_top_and_name_what_they_take(path: Path) -> None:
    tree = parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.names[0].name != "*", f"line {node.lineno}"
            if node.module in LATE_IMPORTS.get(place(path), ()):
                continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert node in tree.body, f"line {node.lineno}: an import inside a function"


@EACH_FILE
def test_banned_calls(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            why = BANNED_CALLS.get(ast.unparse(node.func))
            assert why is None, f"line {node.lineno}: {why}"


@EACH_FILE
def test_a_file_says_what_it_is_for_and_is_short(path: Path) -> None:
    source, tree = path.read_text(), parsed(path)
    if path.name == "__init__.py":
        assert not source.strip(), "import from the file that defines"
        return
    assert ast.get_docstring(tree), "says nothing about itself"
    assert source.isascii(), "plain ASCII prose"
    assert source.count("\n") <= MOST_LINES, "split it"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{node.name} has {lines} lines"


def reachable(start: str) -> set[str]:
    """The modules of ours that `start` imports as it starts, as paths without suffix."""
    todo, seen = [start], {start}
    while todo:
        file = f"{todo.pop()}.py"
        for name in imported(parsed(ROOT / file)) - set(LATE_IMPORTS.get(file, ())):
            module = name.replace(".", "/")
            if (ROOT / f"{module}.py").is_file() and module not in seen:
                seen.add(module)
                todo.append(module)
    return seen


@pytest.mark.parametrize("start", ["node/cli", "node/node", "node/sim/world", "trainers/machines"])
def test_what_starts_in_a_second_imports_no_torch(start: str) -> None:
    for module in sorted(reachable(start)):
        names = imported(parsed(ROOT / f"{module}.py"))
        assert not [name for name in names if opens(name, "torch")], module


@pytest.mark.parametrize("start", ["node/sim/world", "trainers/machines"])
def test_a_simulation_imports_no_network(start: str) -> None:
    for module in sorted(reachable(start)):
        names = imported(parsed(ROOT / f"{module}.py"))
        assert not [n for n in names if opens(n, "libp2p") or opens(n, "trio")], module


def test_the_readme_has_a_line_for_every_module() -> None:
    """And for nothing that is gone."""
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1]
    folder, listed = "", []
    for line in tree.splitlines():
        if line.startswith("      "):
            listed.append(folder + line.split()[0])
        elif line.startswith("    "):
            folder = line.split()[0]
    modules = [place(path) for path in FILES if path.name != "__init__.py"]
    assert sorted(name for name in listed if name.split("/")[0] in MAY_IMPORT) == modules
