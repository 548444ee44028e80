"""Settings and run files: what a person writes becomes a value, or one clear sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from node.config import NodeConfig, load_node_config
from node.run_file import NamedCorpus, OwnData, RunDraft, TextCorpus, read_run_file
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
from protocol.ids import Digest, peer_id
from protocol.model import GptConfig, InnerConfig
from protocol.shards import ProtectionConfig
from protocol.spec import BlobRef, DataConfig

PEER = peer_id(bytes(32))
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


def run_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def node_toml(tmp_path: Path, text: str) -> Path:
    (tmp_path / "node.toml").write_text(text)
    return tmp_path


def sentence_about(tmp_path: Path, text: str) -> str:
    """What is said about this run file, without its name."""
    path = run_file(tmp_path, text)
    with pytest.raises(ConfigError) as found:
        read_run_file(path)
    assert str(found.value).startswith(f"{path}: ")
    return str(found.value).removeprefix(f"{path}: ")


def draft(**changes: object) -> RunDraft:
    default = RunDraft(
        name="run",
        data=NamedCorpus("shakespeare"),
        rounds=100,
        seed=0,
        min_members=1,
        start_deadline_s=60.0,
        private=False,
        model=GptConfig(),
        inner=InnerConfig(),
        trainer=NolocoConfig(),
        changeable=("inner.lr", "trainer.codec", "trainer.inner_steps"),
    )
    return replace(default, **changes)  # type: ignore[arg-type]


def test_an_empty_run_file_is_a_run_with_every_default_named_after_its_file(tmp_path: Path) -> None:
    assert read_run_file(run_file(tmp_path, "")) == draft()


def test_every_table_of_a_run_file_reaches_its_settings(tmp_path: Path) -> None:
    text = """
        name = "small"
        data = "pydoc"
        rounds = 7
        private = true
        [model]
        width = 64
        [inner]
        batch = 4
        [trainer]
        kind = "noloco"
        inner_steps = 10
        codec = "fp32"
        [protection]
        parity = 3
    """
    assert read_run_file(run_file(tmp_path, text)) == draft(
        name="small",
        data=NamedCorpus("pydoc"),
        rounds=7,
        private=True,
        model=GptConfig(width=64),
        inner=InnerConfig(batch=4),
        trainer=NolocoConfig(inner_steps=10, codec="fp32"),
        protection=ProtectionConfig(parity=3),
    )


def test_a_run_file_says_what_its_creator_may_change_later(tmp_path: Path) -> None:
    one = read_run_file(run_file(tmp_path, 'changeable = ["trainer.codec", "inner.lr"]'))
    assert one.changeable == ("inner.lr", "trainer.codec")
    none = read_run_file(run_file(tmp_path, "changeable = []"))
    assert none.changeable == ()
    assert read_run_file(run_file(tmp_path, '[trainer]\nkind = "spsa"')).changeable == ()
    assert sentence_about(tmp_path, 'changeable = ["trainer.beta"]') == (
        "changeable names 'trainer.beta', which no noloco run can change in the middle; expected "
        "some of inner.lr, trainer.inner_steps, trainer.codec; correct it and start again"
    )


@pytest.mark.parametrize(
    ("text", "trainer"),
    [
        ('kind = "noloco"\nfragment_layers = 2', NolocoConfig(fragment_layers=2)),
        ('kind = "diloco"\nstale = true', DilocoConfig(stale=True)),
        ('kind = "streaming"\nmix = 0', StreamingConfig(mix=0.0)),
        ('kind = "spsa"\ntrainable = ["norm.*"]', SpsaConfig(trainable=("norm.*",))),
        ('kind = "sync"\nround_deadline_s = 2', SyncConfig(round_deadline_s=2.0)),
        ('kind = "local"\ninner_steps = 3', LocalConfig(inner_steps=3)),
    ],
)
def test_the_kind_says_which_trainer_the_other_settings_are_of(
    tmp_path: Path, text: str, trainer: TrainerConfig
) -> None:
    found = read_run_file(run_file(tmp_path, f"[trainer]\n{text}")).trainer
    assert (type(found), found) == (type(trainer), trainer)


def test_protection_is_off_without_its_table_and_on_with_an_empty_one(tmp_path: Path) -> None:
    assert read_run_file(run_file(tmp_path, "")).protection is None
    found = read_run_file(run_file(tmp_path, "[protection]")).protection
    assert found == ProtectionConfig(data=2, parity=1, every_rounds=10)


@pytest.mark.parametrize("kind", ["spsa", "sync"])
def test_what_has_no_private_state_is_not_protected(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"protection, but trainer.kind is {kind}, expected"):
        read_run_file(run_file(tmp_path, f'[trainer]\nkind = "{kind}"\n[protection]'))


def test_a_whole_number_is_taken_where_a_number_is_expected(tmp_path: Path) -> None:
    found = read_run_file(run_file(tmp_path, "start_deadline_s = 5\n[inner]\nlr = 1"))
    assert (found.start_deadline_s, found.inner.lr) == (5.0, 1.0)
    assert (type(found.start_deadline_s), type(found.inner.lr)) == (float, float)


def test_a_text_file_is_seen_from_the_run_file_not_from_where_the_person_is(
    tmp_path: Path,
) -> None:
    (tmp_path / "poems.txt").write_text("a rose")
    path = run_file(tmp_path, 'data = "text:poems.txt"')
    assert read_run_file(path).data == TextCorpus(tmp_path / "poems.txt")
    assert read_run_file(run_file(tmp_path, 'data = "text:."')).data == TextCorpus(tmp_path)


def test_own_data_comes_with_a_validation_text_for_all(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("a rose")
    path = run_file(tmp_path, 'data = "own"\nvalidation = "text:v.txt"')
    assert read_run_file(path).data == OwnData(tmp_path / "v.txt")


def test_a_draft_becomes_the_spec_of_its_creator() -> None:
    blob = BlobRef(digest=Digest(bytes(32)), size_bytes=3)
    data = DataConfig(tokenizer=blob, validation=blob, corpus=blob)
    spec = draft(rounds=9).spec(creator=PEER, join_secret=Digest(bytes(32)), data=data)
    found = (spec.creator, spec.join_secret, spec.data, spec.rounds, spec.name)
    assert found == (PEER, Digest(bytes(32)), data, 9, "run")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_run(path: Path) -> None:
    assert read_run_file(path).name == path.stem


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "rounds = = 3",
            "not valid TOML: Invalid value (at line 1, column 10); correct that place",
        ),
        (
            "round = 3",
            "unknown key round, expected one of name, data, validation, rounds, seed, "
            "min_members, start_deadline_s, private, changeable, model, inner, trainer, "
            "protection; correct or remove it",
        ),
        (
            "[model]\nlayer = 3",
            "unknown key model.layer, expected one of layers, heads, width, context, vocab; "
            "correct or remove it",
        ),
        ('rounds = "3"', "rounds is '3', expected a whole number; change it"),
        ("rounds = true", "rounds is True, expected a whole number; change it"),
        ("private = 1", "private is 1, expected true or false; change it"),
        (
            "rounds = 0",
            "rounds is 0, expected a whole number from 1 to 10000000; correct it and start again",
        ),
        (
            "[inner]\nlr = nan",
            "inner.lr is nan, expected a number from 1e-08 to 10; correct it and start again",
        ),
        (
            "[trainer]\nkind = 'adam'",
            "trainer.kind is 'adam', expected one of noloco, diloco, streaming, spsa, sync, local; "
            "correct it and start again",
        ),
        (
            "[trainer]\nkind = 'local'\nbeta = 0.7",
            "unknown key trainer.beta, expected one of inner_steps; correct or remove it",
        ),
        (
            "[trainer]\nkind = 'sync'\ncodec = 7",
            "trainer.codec is 7, expected text in quotes; change it",
        ),
        ("model = 3", "model is 3, expected a table [model]; correct it and start again"),
        (
            "[trainer]\nalpha = 0.9\ngamma = 0.7",
            "trainer.gamma is 0.7 with trainer.alpha 0.9: peers would diverge from each other; "
            "expected gamma below 2 (1 - alpha^2) = 0.38, so lower alpha or gamma; "
            "correct it and start again",
        ),
        (
            'data = "shakespear"',
            'data is \'shakespear\', expected shakespeare, pydoc, "own" or "text:PATH"; '
            "correct it and start again",
        ),
        (
            'data = "own"',
            "data is 'own' and validation is None, expected data = \"own\" together with "
            'validation = "text:PATH", or no validation; correct it and start again',
        ),
    ],
)
def test_a_wrong_run_file_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence_about(tmp_path, text) == sentence


def test_a_text_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert sentence_about(tmp_path, 'data = "text:poems.txt"') == (
        f"data is 'text:poems.txt', but there is no file {tmp_path}/poems.txt; "
        "correct it and start again"
    )


def test_a_run_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; give a file that can be"):
        read_run_file(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_run_file(tmp_path)


def test_a_file_that_is_no_text_or_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_run_file(path)
    path.write_bytes(b"#" * 70_000)
    with pytest.raises(ConfigError, match="70000 bytes, expected at most 65536"):
        read_run_file(path)


def test_flags_beat_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    node_toml(tmp_path, 'name = "file"\nthreads = 3\ncache_dir = "c"\nown_data = ["a.txt"]')
    found = load_node_config(tmp_path, {"name": "flag", "listen": ["/ip4/127.0.0.1/tcp/0"]})
    assert found == NodeConfig(
        data_dir=tmp_path,
        cache_dir=tmp_path / "c",
        listen=("/ip4/127.0.0.1/tcp/0",),
        threads=3,
        own_data=(tmp_path / "a.txt",),
        name="flag",
    )


def test_a_flag_that_is_not_given_changes_nothing(tmp_path: Path) -> None:
    assert load_node_config(tmp_path, {"name": None}) == load_node_config(tmp_path, {})


def test_the_environment_says_where_data_and_cache_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "c"))
    found = load_node_config(None, {})
    assert (found.data_dir, found.cache_dir) == (tmp_path / "d", tmp_path / "c")
    assert load_node_config(tmp_path / "e", {}).data_dir == tmp_path / "e"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("device = 'gpu'", "device is 'gpu', expected one of auto, cpu, cuda; correct it"),
        ("threads = 0", "threads is 0, expected a whole number from 1 to 1024; correct it"),
        ("listen = []", "listen is empty, expected an address such as /ip4/0.0.0.0/tcp/4001"),
        ("listen = '/ip4/0.0.0.0/tcp/1'", "expected a list in brackets; change it"),
        ("own_data = [1]", "own_data is 1, expected a path in quotes; change it"),
        ("data_dir = 'x'", "unknown key data_dir, expected one of cache_dir, listen, announce"),
    ],
)
def test_a_wrong_node_file_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    node_toml(tmp_path, text)
    with pytest.raises(ConfigError) as found:
        load_node_config(tmp_path, {})
    assert str(found.value).startswith(f"{tmp_path}/node.toml: ")
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    "addr",
    [
        "/ip4/1.2.3.4/tcp/4001",
        "/ip6/::1/tcp/0",
        "/dns4/bootstrap/tcp/65535",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}",
    ],
)
def test_a_tcp_multiaddr_is_taken(tmp_path: Path, addr: str) -> None:
    assert load_node_config(tmp_path, {"listen": [addr]}).listen == (addr,)


@pytest.mark.parametrize(
    "addr",
    [
        "1.2.3.4:4001",
        "/ip4/1.2.3.4/udp/4001",
        "/ip4/1.2.3/tcp/4001",
        "/ip6/1.2.3.4/tcp/4001",
        "/ip4/1.2.3.4/tcp/70000",
        "/ip4/1.2.3.4/tcp/",
        "/dns4//tcp/1",
        "x/ip4/1.2.3.4/tcp/1",
        "/ip4/1.2.3.4/tcp/1/p2p/QmX",
        "/ip4/1.2.3.4/tcp/\u0661",
    ],
)
def test_another_address_is_refused_from_the_command_line(tmp_path: Path, addr: str) -> None:
    with pytest.raises(ConfigError, match=r"command line: listen is .* expected a multiaddr"):
        load_node_config(tmp_path, {"listen": [addr]})


def test_a_bootstrap_address_names_its_peer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="such as /ip4/HOST/tcp/PORT/p2p/PEER"):
        load_node_config(tmp_path, {"bootstrap": ["/ip4/1.2.3.4/tcp/4001"]})
