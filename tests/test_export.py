"""`shoal export`: what is written, what is refused, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from trained_run import TrainedRun, trained_run

from node import export as export_module
from node import trained as trained_module
from node.config import load_node_config
from node.export import Exported, Options, export_model, write_folder
from node.files import settle
from node.local_swarm import ROOT
from node.trained import read_trained
from node.worker.files import read_weights
from node.worker.materials import initial_slow
from node.worker.sums import SavedSum, save_sum
from protocol.algorithms import SpsaConfig
from protocol.errors import ConfigError
from protocol.ids import Round, RunId, digest_of, short
from trainers.model import Gpt, views
from trainers.summed import Summed

FAR = 99
"""A round after all others."""


def export(run: TrainedRun, target: Path, **changes: object) -> Exported:
    fields: dict[str, object] = {
        "config": load_node_config(run.directory.root, {}),
        "target": target,
        "format": "safetensors",
        "round": "newest",
        "force": False,
        "evaluate": False,
    }
    return export_model(Options(**(fields | changes)))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flat(run: TrainedRun, folder: Path) -> Tensor:
    """The exported parameters, in the order of the flat vector."""
    tensors = load_file(folder / "model.safetensors")
    return torch.cat([tensors[name].flatten() for name in views(run.spec.model, run.weights(0))])


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_parameters_are_those_of_the_newest_snapshot_bit_for_bit(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3, 4)
    done = export(run, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    model = Gpt(run.spec.model)
    assert {name: part.shape for name, part in tensors.items()} == {
        name: part.shape for name, part in model.named_parameters()
    }
    model.load_state_dict(tensors)
    assert torch.equal(flat(run, tmp_path / "out"), run.weights(4))
    size_bytes = sum(len(data) for data in contents(tmp_path / "out").values())
    assert done == Exported(tmp_path / "out", size_bytes, run.spec.run, Round(4), None, "")


def test_the_file_says_of_which_run_round_and_weights_it_is(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    export(run, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"shoal"}
    assert json.loads(metadata["shoal"]) == {
        "run": run.spec.run.hex(),
        "round": 3,
        "weights": digest_of(run.weights(3).numpy().tobytes()).hex(),
        "model": {"layers": 2, "heads": 2, "width": 16, "context": 96, "vocab": 300},
    }
    tokenizer = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert tokenizer == run.blob("tokenizer").read_bytes()


@pytest.mark.parametrize("format", ["hf", "safetensors"])
def test_equal_snapshots_give_equal_bytes(tmp_path: Path, format: str) -> None:
    run = trained_run(tmp_path, 3)
    export(run, tmp_path / "a", format=format)
    export(run, tmp_path / "b", format=format)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_round_that_is_asked_for_is_exported(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3, 4)
    assert export(run, tmp_path / "out", round="3").round == 3
    assert torch.equal(flat(run, tmp_path / "out"), run.weights(3))


def test_the_weights_of_an_spsa_run_are_the_start_less_the_sum(tmp_path: Path) -> None:
    run = trained_run(tmp_path, trainer=SpsaConfig(inner_steps=20))
    start_P = initial_slow(run.spec).phi_P
    summed = Summed(run.spec, start_P)
    sum_Q = torch.arange(len(summed.sum_Q), dtype=torch.int64) << 20
    summed.take_over(sum_Q, {})
    weights_P = summed.weights_P
    assert not torch.equal(weights_P, start_P)
    save_sum(run.directory.worker, run.spec.run, SavedSum(Round(2), 40, sum_Q, {}), weights_P)
    assert export(run, tmp_path / "out").round == 2
    assert torch.equal(flat(run, tmp_path / "out"), weights_P)


def test_the_loss_is_measured_if_it_is_asked_for(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    loss = export(run, tmp_path / "out", format="hf", evaluate=True).loss
    assert loss is not None
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| validation loss | {loss:.4f} nats per byte |" in card


def test_force_replaces_an_earlier_export_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    export(run, tmp_path / "out", format="hf")
    export(run, tmp_path / "out", force=True)
    assert names(tmp_path / "out") == ["model.safetensors", "tokenizer.json"]
    assert names(tmp_path) == ["files", "node", "out"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out")
    assert names(tmp_path / "out") == ["model.safetensors", "tokenizer.json"]
    assert names(tmp_path) == ["files", "node", "out"]


def test_a_snapshot_that_the_node_removes_meanwhile_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node goes on between our look at the directory and our opening of the file."""
    run = trained_run(tmp_path, 3)

    def after_the_node_went_on(path: Path, of: RunId, count: int) -> tuple[Round, Tensor]:
        if path.name.startswith("snapshot-00000003"):
            path.unlink()
            run.save(4)
        return read_weights(path, of, count)

    monkeypatch.setattr(trained_module, "read_weights", after_the_node_went_on)
    assert export(run, tmp_path / "out").round == 4


def test_a_directory_whose_snapshots_all_vanish_is_given_up(tmp_path: Path) -> None:
    run = trained_run(tmp_path)
    gone = run.directory.worker / "snapshot-00000005-0000000000005.safetensors"
    gone.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="10 snapshots in a row were gone before"):
        export(run, tmp_path / "out")


def test_of_a_broken_newest_snapshot_the_older_one_is_taken_and_that_is_said(
    tmp_path: Path,
) -> None:
    run = trained_run(tmp_path, 3, 4)
    newest = max(run.directory.worker.glob("snapshot-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    done = export(run, tmp_path / "out")
    assert done.round == 3
    assert done.note.startswith(f"{newest.name}: broken: ")
    assert newest.exists()  # the directory is the node's


def unclaimed(run: TrainedRun) -> None:
    run.directory.run.unlink()


def without_spec(run: TrainedRun) -> None:
    run.directory.spec.unlink()


def broken_spec(run: TrainedRun) -> None:
    run.directory.spec.write_bytes(b"x")


def without_snapshot(run: TrainedRun) -> None:
    for path in run.directory.worker.iterdir():
        path.unlink()


def broken_snapshot(run: TrainedRun) -> None:
    for path in run.directory.worker.iterdir():
        path.write_bytes(b"x" * 100)


def without_tokenizer(run: TrainedRun) -> None:
    run.blob("tokenizer").unlink()


def wrong_tokenizer(run: TrainedRun) -> None:
    run.blob("tokenizer").write_bytes(b"{}")


def without_validation(run: TrainedRun) -> None:
    run.blob("validation").unlink()


@pytest.mark.parametrize(
    ("spoil", "found", "to_do"),
    [
        (unclaimed, "node: no run in it, expected one that", "begin with `shoal run create"),
        (without_spec, "spec: not there yet, expected the spec of run", "wait until it trains"),
        (broken_spec, "spec: the spec of another run, expected the", "which asks a member for it"),
        (without_snapshot, "no snapshot in ", "start it with `shoal up`"),
        (broken_snapshot, "no usable snapshot in ", "start the node with `shoal up`"),
        (without_tokenizer, "No such file or directory, expected the tok", "wait until it trains"),
        (wrong_tokenizer, "found 2 bytes that are not the tokenizer", "which fetches them again"),
        (without_validation, "expected the validation text", "wait until it trains"),
    ],
)
def test_what_a_data_directory_lacks_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, spoil: Callable[[TrainedRun], None], found: str, to_do: str
) -> None:
    run = trained_run(tmp_path, 3)
    spoil(run)
    with pytest.raises(ConfigError) as refused:
        export(run, tmp_path / "out", evaluate=True)
    sentence = str(refused.value)
    assert (found in sentence, to_do in sentence, "\n" in sentence) == (True, True, False)
    assert names(tmp_path) == ["files", "node"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"round": "5"}, r"--round is 5, expected one of those that .* has a snapshot of: 3$"),
        ({"round": "-1"}, "--round is '-1', expected newest or a number from 0 to 10000000$"),
        ({"round": "last"}, "--round is 'last', expected newest or a number"),
        ({"round": "\u0663"}, "--round is .*, expected newest or a number"),
        ({"round": "99999999"}, "--round is '99999999', expected newest or a number"),
        ({"format": "onnx"}, "--format is 'onnx', expected one of hf, safetensors$"),
        ({"target": Path("/none/out")}, "^/none/out: there is no directory /none, expected one"),
    ],
)
def test_an_option_out_of_range_is_one_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    run = trained_run(tmp_path, 3)
    with pytest.raises(ConfigError, match=sentence):
        export(run, **{"target": tmp_path / "out", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        ("file", "out: found a file or a link, expected no such name yet; choose another one$"),
        ("link", "out: found a file or a link, expected no such name yet; choose another one$"),
        ("folder", "out: found (a folder with 2 files, expected none|'diary.txt' in it, expected)"),
    ],
)
def test_what_is_no_export_is_never_replaced(
    tmp_path: Path, there: str, sentence: str, force: bool
) -> None:
    run, out = trained_run(tmp_path, 3), tmp_path / "out"
    if there == "file":
        out.write_text("mine")
    elif there == "link":
        out.symlink_to(tmp_path / "node")
    else:
        out.mkdir()
        (out / "config.json").write_text("theirs")
        (out / "diary.txt").write_text("mine")
    with pytest.raises(ConfigError, match=sentence):
        export(run, out, force=force)
    assert names(tmp_path) == ["files", "node", "out"]
    assert out.is_symlink() or out.is_file() or names(out) == ["config.json", "diary.txt"]


def test_an_earlier_export_is_not_replaced_without_force(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    export(run, tmp_path / "out")
    before = contents(tmp_path / "out")
    run.save(4)
    with pytest.raises(ConfigError, match=r"found a folder with 2 files, .* --force"):
        export(run, tmp_path / "out")
    assert contents(tmp_path / "out") == before


@contextmanager
def full_disk(at_bytes: int) -> Iterator[None]:
    """No file of this process may grow further: the nearest thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_leaves_the_earlier_export_as_it_was(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    export(run, tmp_path / "out")
    before = contents(tmp_path / "out")
    run.save(4)
    with (
        full_disk(10_000),
        pytest.raises(ConfigError, match=r"^disk: File too large at .*out, expected .*; free some"),
    ):
        export(run, tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == before
    assert names(tmp_path) == ["files", "node", "out"]


def test_a_disk_that_fails_at_the_last_step_leaves_the_earlier_export_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_folder(out, {"README.md": b"earlier"}, force=False)

    def full(partial: Path, path: Path) -> None:
        if path == out:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        settle(partial, path)

    monkeypatch.setattr(export_module, "settle", full)
    with pytest.raises(ConfigError, match=r"^disk: No space left on device at "):
        write_folder(out, {"README.md": b"later"}, force=True)
    assert (contents(out), names(tmp_path)) == ({"README.md": b"earlier"}, ["out"])


def killed_while_it_replaces(target: Path) -> None:
    """A process of its own, between the two renames."""
    if pid := os.fork():
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        return
    try:

        def killed(partial: Path, path: Path) -> None:
            if path == target:
                os.kill(os.getpid(), signal.SIGKILL)
            settle(partial, path)

        export_module.settle = killed  # type: ignore[attr-defined]
        write_folder(target, {"README.md": b"never seen"}, force=True)
    finally:
        os._exit(1)


@pytest.mark.parametrize("force", [False, True])
def test_what_a_killed_export_was_about_to_replace_is_put_back_by_the_next_one(
    tmp_path: Path, force: bool
) -> None:
    out = tmp_path / "out"
    write_folder(out, {"README.md": b"earlier"}, force=False)
    killed_while_it_replaces(out)
    assert names(tmp_path) == [".out.export"]
    if force:
        write_folder(out, {"README.md": b"later"}, force=True)
    else:
        with pytest.raises(ConfigError, match="found a folder with 1 files, expected none"):
            write_folder(out, {"README.md": b"later"}, force=False)
    assert contents(out) == {"README.md": b"later" if force else b"earlier"}
    assert names(tmp_path) == ["out"]


def test_two_exports_to_one_name_do_not_touch_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    refused: list[str] = []

    def meanwhile(partial: Path, path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            write_folder(out, {"README.md": b"second"}, force=True)
        refused.append(str(caught.value))
        settle(partial, path)

    monkeypatch.setattr(export_module, "settle", meanwhile)
    write_folder(out, {"README.md": b"first"}, force=True)
    assert refused == 2 * [
        f"{out}: another export to it is under way, expected none; wait until that has ended or "
        "choose another name"
    ]
    assert (contents(out), names(tmp_path)) == ({"README.md": b"first"}, ["out"])


def test_nothing_of_the_data_directory_is_changed(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    files = [path for path in run.directory.root.rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    export(run, tmp_path / "out", format="hf", evaluate=True)
    assert sorted(path for path in run.directory.root.rglob("*") if path.is_file()) == sorted(files)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before


def test_a_trained_model_has_the_tokenizer_of_its_run(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    found = read_trained(run.directory)
    assert (found.spec, found.round, found.note) == (run.spec, 3, "")
    assert found.tokenizer == run.blob("tokenizer").read_bytes()


# --- the command in a process of its own ------------------------------------------------

WITHOUT_ROOT = os.geteuid() != 0 and not os.environ.get("CI")
"""Such tests are skipped on a person's machine; where CI is set they fail instead."""
SHOAL = (sys.executable, "-m", "node.cli")


def shoal(*command: str) -> tuple[int, str, str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.libp2p
@pytest.mark.timeout(180)
def test_the_command_says_what_it_wrote_and_a_second_one_is_refused(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    command = (*SHOAL, "export", str(tmp_path / "out"), "--data-dir", str(run.directory.root))
    code, out, err = shoal(*command, "--evaluate")
    written, loss = out.splitlines()
    assert (code, err) == (0, "")
    assert written.startswith(f"{tmp_path}/out: ")
    assert written.endswith(f"round 3 of run {short(run.spec.run)}")
    assert loss.startswith("validation loss: ")
    code, out, err = shoal(*command)
    assert (code, out) == (2, "")
    assert err.startswith(f"shoal: {tmp_path}/out: found a folder with 6 files, expected none")
    assert err.count("\n") == 1


@pytest.mark.libp2p
@pytest.mark.timeout(180)
@pytest.mark.skipif(WITHOUT_ROOT, reason="mounting a small disk needs root")
def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path: Path) -> None:
    """A disk of 8 KiB in a mount namespace that ends with the command."""
    run = trained_run(tmp_path, 3)
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f'mount -t tmpfs -o size=8k none "{disk}" && "$@"; status=$?; ls -A "{disk}"; exit $status'
    )
    code, out, err = shoal(
        "unshare", "--mount", "sh", "-c", script, "sh", *SHOAL,
        "export", str(disk / "out"), "--data-dir", str(run.directory.root),
    )  # fmt: skip
    assert (code, out) == (2, "")
    assert err.startswith(f"shoal: disk: 0.0 MiB are free in {disk}, expected room for 0.1 MiB")
