"""The API on its unix socket, asked with its own client and with a plain one."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from pathlib import Path

import aiohttp
import pytest
from status_sample import FakeNode, status

from node.api import ApiClient, serving
from protocol.errors import ConfigError, LocalProtocolError


async def test_the_client_gets_what_the_node_says(tmp_path: Path) -> None:
    node, path = FakeNode(), tmp_path / "api.sock"
    async with serving(path, node), ApiClient(path) as client:
        assert await client.status() == status()
        assert await client.peers() == [{"peer": "p", "round": 3}]
        assert await client.contributions() == node.contributions()
        await client.leave()
    assert node.left


async def test_an_order_is_carried_out_or_refused_with_the_nodes_own_sentence(
    tmp_path: Path,
) -> None:
    node, path = FakeNode(), tmp_path / "api.sock"
    async with serving(path, node), ApiClient(path) as client:
        assert await client.order({"action": "pause"}) == "paused"
        with pytest.raises(ConfigError, match=r"^it is stopped for good$"):
            await client.order({"action": "stop"})
        for nonsense in ("[]", "{"):
            async with (
                aiohttp.UnixConnector(path=str(path)) as line,
                aiohttp.ClientSession(connector=line) as plain,
                plain.post("http://node/order", data=nonsense) as answer,
            ):
                assert answer.status == 400
    assert node.orders == [{"action": "pause"}, {"action": "stop"}]


async def test_only_the_owner_may_connect_and_the_socket_goes_with_the_node(
    tmp_path: Path,
) -> None:
    path = tmp_path / "api.sock"
    async with serving(path, FakeNode()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_the_socket_of_a_dead_node_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(path, FakeNode()), ApiClient(path) as client:
        assert await client.status() == status()


async def test_a_path_too_long_for_a_socket_is_named_before_anything_starts(
    tmp_path: Path,
) -> None:
    path = tmp_path / ("x" * 107) / "api.sock"
    with pytest.raises(ConfigError, match="expected at most 107; choose a shorter data directory"):
        async with serving(path, FakeNode()):
            pass


async def test_a_node_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    for place in (path, tmp_path / "none.sock"):
        async with ApiClient(place) as client:
            with pytest.raises(ConfigError, match="no node runs on the data directory"):
                await client.status()


async def test_a_question_that_breaks_the_node_is_an_error_not_a_status(tmp_path: Path) -> None:
    node, path = FakeNode(), tmp_path / "api.sock"
    node.now = {"loss": object()}
    async with serving(path, node), ApiClient(path) as client:
        with pytest.raises(LocalProtocolError, match="/status: 500"):
            await client.status()


async def test_watchers_get_a_line_for_each_change_and_the_end_of_the_node(
    tmp_path: Path,
) -> None:
    node, path = FakeNode(), tmp_path / "api.sock"
    connector = aiohttp.UnixConnector(path=str(path))
    lines = []
    async with asyncio.timeout(10), aiohttp.ClientSession(connector=connector) as session:
        async with serving(path, node):
            response = await session.get("http://node/events")
            lines.append(await response.content.readline())
            node.now = status(round=8)
            lines.append(await response.content.readline())
        lines.append(await response.content.readline())
    assert [json.loads(line)["round"] for line in lines[:2]] == [status()["round"], 8]
    assert lines[2] == b""


async def test_more_watchers_than_the_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    connector = aiohttp.UnixConnector(path=str(path))
    async with (
        asyncio.timeout(10),
        serving(path, FakeNode()),
        aiohttp.ClientSession(connector=connector) as session,
    ):
        watchers = [await session.get("http://node/events") for _ in range(9)]
        assert [watcher.status for watcher in watchers] == [200] * 8 + [503]
        for watcher in watchers:
            watcher.close()
