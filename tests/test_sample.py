"""`shoal sample`: text that comes piece by piece, whole characters, the same under a seed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from disks import unlistable
from small_run import TEXT
from tokenizers import pre_tokenizers
from trained_run import TrainedRun, trained_run

from node.config import load_node_config
from node.local_swarm import ROOT
from node.sample import (
    MAX_PROMPT_BYTES,
    Options,
    _byte_of_char,
    read_prompt,
    sample_model,
    text_of,
)
from node.snapshots import SnapshotPlace, snapshot_name
from protocol.errors import ConfigError
from trainers.tokenizer import encode, load_tokenizer, train_tokenizer

FISH = "h\u00e9llo \u65e5\u672c \U0001f41f\n"
UNKNOWN = "\ufffd"


def options(run: TrainedRun, **changes: object) -> Options:
    fields: dict[str, object] = {
        "config": load_node_config(run.directory.root, {}),
        "prompt": "the dog",
        "tokens": 20,
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 1,
    }
    return Options(**(fields | changes))  # type: ignore[arg-type]


def sampled(run: TrainedRun, **changes: object) -> str:
    return "".join(sample_model(options(run, **changes)).pieces)


def test_a_seed_gives_one_text_and_another_seed_another(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    assert sampled(run) == sampled(run)
    assert sampled(run) != sampled(run, seed=2)
    assert sampled(run, seed=None) != sampled(run, seed=None)


def test_the_prompt_comes_first_and_then_so_many_tokens(tmp_path: Path) -> None:
    """At temperature 0 a longer text begins with the shorter one."""
    run = trained_run(tmp_path, 3)
    short, long = (sampled(run, temperature=0.0, tokens=count) for count in (5, 150))
    assert short.startswith("the dog")
    assert long.startswith(short.rstrip(UNKNOWN))
    assert len(long) > len(short)


def test_an_empty_prompt_is_begun_after_a_line_end_that_is_not_shown(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    assert "\n" + sampled(run, prompt="") == sampled(run, prompt="\n")


def test_text_comes_as_soon_as_its_characters_are_whole() -> None:
    bpe = load_tokenizer(train_tokenizer(TEXT, 300), 300)
    ids = list(encode(bpe, FISH))
    assert len(ids) > len(FISH)  # so there are halves of characters among them
    pieces = list(text_of(bpe, ids))
    assert "".join(pieces) == FISH
    assert [piece for piece in pieces if UNKNOWN in piece] == []
    assert len(pieces) > 5


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    bpe = load_tokenizer(train_tokenizer(TEXT, 300), 300)
    fish = encode(bpe, "\U0001f41f")
    assert "".join(text_of(bpe, fish[:-1])) == UNKNOWN  # cut off at the end
    assert "".join(text_of(bpe, [fish[-1], *encode(bpe, "a")])) == f"{UNKNOWN}a"


def test_every_byte_has_one_character_in_the_spelling_of_tokens() -> None:
    byte_of = _byte_of_char()
    assert set(byte_of) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_of.values()) == list(range(256))


def test_a_prompt_is_read_from_standard_input_if_it_is_a_dash() -> None:
    stdin = io.BytesIO(FISH.encode())
    assert read_prompt("word", stdin) == "word"
    assert read_prompt("-", stdin) == FISH


@pytest.mark.parametrize(
    ("argument", "stdin", "sentence"),
    [
        ("-", b"\xff", r"^prompt: not UTF-8 text \(.*\), expected UTF-8; convert it first$"),
        ("\udcff", b"", r"^prompt: not UTF-8 text \(.*\), expected UTF-8; convert it first$"),
        ("-", b"x" * (MAX_PROMPT_BYTES + 1), "^prompt: over 1048576 bytes, expected fewer"),
    ],
)
def test_a_prompt_that_is_no_text_is_one_sentence(
    argument: str, stdin: bytes, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_prompt(argument, io.BytesIO(stdin))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": 0}, "command line: tokens is 0, expected a whole number from 1 to 1000000"),
        ({"temperature": -1.0}, "command line: temperature is -1.0, expected a number from 0"),
        ({"top_k": -1}, "command line: top_k is -1, expected a whole number from 0"),
        ({"top_p": 1.5}, "command line: top_p is 1.5, expected a number from 0 to 1"),
        ({"seed": -1}, "command line: seed is -1, expected a whole number from 0"),
    ],
)
def test_an_option_out_of_range_is_one_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        sample_model(options(trained_run(tmp_path, 3), **changes))


def test_a_newest_snapshot_that_cannot_be_opened_is_told_and_the_one_before_is_used(
    tmp_path: Path,
) -> None:
    run = trained_run(tmp_path, 3)
    newest = run.directory.worker / snapshot_name(SnapshotPlace(4, 80))
    newest.symlink_to(newest)
    found = sample_model(options(run))
    assert found.note == f"{newest.name}: Too many levels of symbolic links"
    newest.unlink()
    assert "".join(found.pieces) == sampled(run)


def test_a_folder_of_snapshots_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained_run(tmp_path, 3)
    unlistable(monkeypatch, run.directory.worker)
    with pytest.raises(ConfigError) as error:
        sample_model(options(run))
    assert str(error.value) == (
        f"{run.directory.worker}: Permission denied, expected a directory of snapshots; correct "
        "its rights"
    )


@pytest.mark.libp2p
@pytest.mark.timeout(180)
def test_the_command_goes_on_with_standard_input_and_repeats_itself(tmp_path: Path) -> None:
    run = trained_run(tmp_path, 3)
    command = (sys.executable, "-m", "node.cli", "sample", "-", "--seed", "7", "--tokens", "60")

    def said(*more: str, root: Path = run.directory.root) -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            (*command, *more, "--data-dir", str(root)),
            cwd=ROOT, input=FISH.encode(), capture_output=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    code, out, err = said()
    assert (code, err) == (0, b"")
    assert out.decode().startswith(FISH)
    assert out.decode() == sampled(run, prompt=FISH, seed=7, tokens=60) + "\n"
    assert said() == (code, out, err)
    code, out, err = said(root=tmp_path / "nowhere")
    assert (code, out) == (2, b"")
    assert err.startswith(f"shoal: data directory {tmp_path}/nowhere: no run in it".encode())
