"""The command line as a person meets it: output, exit status, and what is not imported."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from samples import CREATOR
from status_sample import ALICE, BOB, FakeNode, rendered, status

from node import cli, view
from node.api import PeerStatus, Reachable, serving
from node.handover import read_lines
from node.keys import DataDir
from protocol.ids import RunId, short
from protocol.ticket import Ticket

ROOT = Path(__file__).parents[1]
TICKET = "shoal1nonsense"
RUN = RunId(b"r" * 32)
ADDR = f"/ip4/127.0.0.1/tcp/1/p2p/{CREATOR.peer}"


class Result(NamedTuple):
    code: int
    out: str
    err: str


def shoal(*arguments: str) -> Result:
    """Run the command in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "node.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    return Result(found.returncode, found.stdout, found.stderr)


def in_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Result:
    """Run the entry point here: quicker."""
    monkeypatch.setattr(sys, "argv", ["shoal", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, printed.out, printed.err)


async def asked(path: Path, *arguments: str) -> Result:
    """Run the command against a node that is served from here."""
    async with serving(path / "api.sock", FakeNode()):
        return await asyncio.to_thread(shoal, *arguments, "--data-dir", str(path))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("join", TICKET), "shoal: ticket: the checksum does not match, so a character is wrong"),
        (("join", "hello"), "shoal: ticket: found 'hello', expected a line that begins with"),
        (("join", TICKET[:-1], "--listen", "here"), "shoal: ticket: "),
        (("bootstrap", "--listen", "here"), "shoal: command line: listen is 'here', expected a"),
        (("bootstrap", "--bootstrap", "/ip4/1.2.3.4/tcp/1"), "shoal: command line: bootstrap is"),
        (("up", "--auto-run", "x"), "shoal: command line: found one of --auto-run and"),
        (("status",), "shoal: no node runs on the data directory "),
        (("peers",), "shoal: no node runs on the data directory "),
        (("contributions",), "shoal: no node runs on the data directory "),
        (("leave",), "shoal: no node runs on the data directory "),
        (("pause",), "shoal: no node runs on the data directory "),
        (("set", "inner.lr", "0.1"), "shoal: no node runs on the data directory "),
        (("data", "fetch", "poems"), "shoal: corpus: found 'poems', expected one of shakespeare"),
        (("demo", "--nodes", "0"), "shoal: command line: --nodes is 0, expected 1 to 16"),
        (("demo", "--nodes", "1", "--kill-one"), "shoal: command line: --nodes is 1, expected 2"),
        (("demo", "--json", "/none/x"), "shoal: /none/x: there is no such directory"),
        (("set", "inner.lr", "-1"), "shoal: command line: no such option: -1; --help tells what"),
        (("sample", "--tokens", "abc"), "shoal: command line: invalid value for '--tokens': "),
        (("join",), "shoal: command line: missing argument 'ticket'; --help tells what is"),
        (("jion", "\x1b[2J\n"), "shoal: command line: no such command 'jion'"),
        (("status", "--data-dir", "x" * 300), "shoal: data directory /"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOAL_DATA", str(tmp_path))
    code, out, err = in_process(capsys, monkeypatch, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(sentence)


def test_without_a_command_all_of_them_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = in_process(capsys, monkeypatch)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: shoal [OPTIONS] COMMAND [ARGS]...\n")
    assert "  join " in err
    assert in_process(capsys, monkeypatch, "--help") == (0, err, "")


async def test_the_creators_commands_ask_its_node_and_tell_what_it_says(tmp_path: Path) -> None:
    node = FakeNode()
    orders = [
        ("pause",),
        ("resume",),
        ("stop",),
        ("set", "inner.lr", "1e-4"),
        ("set", "trainer.codec", "int8", "--from-round", "7"),
    ]
    async with serving(tmp_path / "api.sock", node):
        found = [
            await asyncio.to_thread(shoal, *order, "--data-dir", str(tmp_path)) for order in orders
        ]
    done = Result(0, "paused\n", "")
    assert found == [done, done, Result(2, "", "shoal: it is stopped for good\n"), done, done]
    assert node.orders == [
        {"action": "pause"},
        {"action": "resume"},
        {"action": "stop"},
        {"action": "set", "name": "inner.lr", "value": "1e-4", "from_round": None},
        {"action": "set", "name": "trainer.codec", "value": "int8", "from_round": 7},
    ]


def test_an_unknown_command_is_refused_without_a_traceback() -> None:
    code, out, err = shoal("jion")
    assert (code, out) == (2, "")
    assert err.startswith("shoal: command line: no such command 'jion'")
    assert "Traceback" not in err


def test_a_broken_node_file_is_named_by_a_command_that_only_asks(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("x = = 1")
    code, out, err = shoal("status", "--data-dir", str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"shoal: {tmp_path}/node.toml: not valid TOML: ")


def test_asking_a_node_imports_neither_torch_nor_libp2p() -> None:
    code = (
        "import sys, node.cli; print([m for m in ('torch', 'libp2p', 'trio') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


async def test_status_as_json_is_what_the_node_says(tmp_path: Path) -> None:
    found = await asked(tmp_path, "status", "--json")
    assert (found.code, json.loads(found.out)) == (0, status())


async def test_status_quiet_says_by_its_exit_status_that_a_node_runs(tmp_path: Path) -> None:
    assert await asked(tmp_path, "status", "--quiet") == Result(0, "", "")


async def test_status_for_a_person_ends_with_addresses_and_ticket_unwrapped(
    tmp_path: Path,
) -> None:
    found = await asked(tmp_path, "status")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[-2:] == [f"/ip4/127.0.0.1/tcp/4001/p2p/{ALICE}", "shoal1abc"]


def test_the_status_table_tells_a_friend_what_the_node_does() -> None:
    assert rendered(view.status_table(status(), 1000.0)) == [
        f"node        node1 {ALICE[-8:]}",
        "run         abababab",
        "state       training",
        "round       7 of 12",
        "inner step  74 (4 of 10 in this round)",
        "loss        5.123 nats/token",
        "validation  2.970 at the start, 2.250 now, nats/byte",
        "speed       6000 tokens/s",
        "members     4",
        "reachable   unknown",
        f"partner     {BOB[-8:]}",
        "exchanges   5 made, 1 missed, 1 half",
        "sent        9.6 MiB payload, 8.8 KiB round, 4.9 KiB presence",
        "received    8.6 MiB payload",
        f"waits for   the payload from {BOB[-8:]}, 30 s at most",
    ]


def test_the_status_table_ends_with_what_the_operator_should_see_to() -> None:
    lines = rendered(view.status_table(status(trouble="the disk is full"), 1000.0))
    assert lines[-1] == "trouble     the disk is full"


def test_the_status_table_has_the_settings_that_the_creator_changed() -> None:
    lines = rendered(view.status_table(status(changes={"inner.lr": "0.0005"}), 1000.0))
    assert lines[-1] == "changed     inner.lr 0.0005"


def test_how_a_node_is_reached_and_what_it_carries_is_told() -> None:
    private: Reachable = {
        "verdict": "private",
        "relays": [ALICE, BOB],
        "circuits": 0,
        "carried_bytes": 0,
    }
    public: Reachable = {
        "verdict": "public",
        "relays": [],
        "circuits": 2,
        "carried_bytes": 3 << 20,
    }
    assert view.reachable(private) == f"private, through {ALICE[-8:]}, {BOB[-8:]}"
    assert view.reachable(public) == "public; carried for others: 3.0 MiB"


def test_the_swarm_table_calls_partners_by_name_and_names_what_each_waits_for() -> None:
    nodes = [
        ("node1", status()),
        ("node2", status(peer=BOB, partner=None, waiting=None)),
        ("node3", None),
    ]
    table = [line.split() for line in rendered(view.swarm_table(nodes, 1000.0))]
    assert table[1:] == [
        [
            *("node1", "7/12", "74", "5.123", "6000", "node2", "9.6", "MiB", "8.6", "MiB"),
            *("the", "payload", "from", "node2,", "30", "s", "at", "most"),
        ],
        ["node2", "7/12", "74", "5.123", "6000", "-", "9.6", "MiB", "8.6", "MiB", "training"],
        ["node3", *"-" * 7, "its", "start"],
    ]


def test_the_swarm_line_says_all_that_the_table_says() -> None:
    nodes = [
        ("node1", status()),
        ("node2", status(peer=BOB, partner=None, waiting=None)),
        ("node3", status(peer=BOB, state="serving")),
        ("node4", None),
    ]
    assert view.swarm_line(nodes, 1000.0).split("; ") == [
        "node1: round 7 step 74 loss 5.123 6000 tokens/s with node3 up 9.6 MiB down 8.6 MiB, "
        "waits for the payload from node3, 30 s at most",
        "node2: round 7 step 74 loss 5.123 6000 tokens/s with - up 9.6 MiB down 8.6 MiB",
        "node3: serving, waits for the payload from node3, 30 s at most",
        "node4: starts",
    ]


def test_peers_are_shown_one_a_line() -> None:
    peer: PeerStatus = {
        "peer": BOB,
        "name": "node2",
        "state": "training",
        "standing": "alive",
        "round": 3,
        "inner_step": 31,
        "loss": 5.5,
        "tokens_per_s": 6000.0,
        "addrs": [f"/ip4/127.0.0.1/tcp/1/p2p/{BOB}"],
        "link": "punched",
        "traffic": {
            "rtt_ms": 41.2,
            "up_per_s": 2.0 * 1024,
            "down_per_s": 1.5 * 1024 * 1024,
            "up": {},
            "down": {},
        },
        "tokens": 20480,
        "rounds": 2,
    }
    lines = rendered(view.peers_table([peer, {"peer": ALICE}], 160))
    assert [line.split() for line in lines[1:]] == [
        [
            *(BOB[-8:], "node2", "training", "3", "31", "5.500", "6000", "20,480", "punched"),
            *("41", "ms", "2.0", "KiB/s", "1.5", "MiB/s", "alive", "/ip4/127.0.0.1/tcp/1"),
        ],
        [ALICE[-8:], "0.000", "0", "0"],
    ]
    narrow = rendered(view.peers_table([peer], 80), 80)
    assert [line.split() for line in narrow] == [
        ["peer", "name", "state", "round", "loss", "tokens/s", "link", "rtt", "standing"],
        [BOB[-8:], "node2", "training", "3", "5.500", "6000", "punched", "41", "ms", "alive"],
    ]


def test_what_strangers_call_themselves_is_shown_and_does_nothing() -> None:
    names = ("[/b]evil", "[link=http://x]y", ":smile:", "a\x1b[31m\nfake")
    peers: list[PeerStatus] = [{"peer": BOB, "name": name} for name in names]
    lines = rendered(view.peers_table(peers, 80), 80)
    shown = [line.split()[1] for line in lines[1:]]
    assert shown == ["[/b]evil", "[link=htt...", ":smile:", "a\ufffd[31m\ufffdfake"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 40, "5120 GiB")],
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert view.size(count) == text


@pytest.mark.libp2p
def test_nodes_that_were_all_stopped_hand_over_the_ticket_of_their_own_run(tmp_path: Path) -> None:
    ticket = str(Ticket(run=RUN, addrs=(ADDR,), secret=b""))
    (tmp_path / "ticket").write_text(f"{ticket}\n")
    DataDir(tmp_path).load_key()
    DataDir(tmp_path).claim_run(RUN)
    (tmp_path / "node.toml").write_text("first_contact_s = 0.1\n")
    shared = tmp_path / "shared" / "ticket"
    ended = shoal(
        *("up", "--auto-run", "examples/shakespeare.toml", "--ticket-file", str(shared)),
        *("--data-dir", str(tmp_path), "--listen", "/ip4/127.0.0.1/tcp/0"),
    )
    assert (ended.code, read_lines(shared)) == (2, (ticket,))
    assert f"no member of run {short(RUN)} answered" in ended.err
