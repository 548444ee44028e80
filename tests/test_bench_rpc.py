"""The bench of calls: what it says of figures, and that its processes understand each other."""

from __future__ import annotations

import pytest

from node.bench import rpc
from node.bench.child import Failed
from node.bench.rpc_pair import Place, pair
from node.bench.rpc_peer import quantiles


def samples(link: str, **figures: tuple[float, float]) -> rpc.Samples:
    """Of shoal and Lattica; three runs, of which the middle one counts."""
    made = rpc.Samples(link)
    for name, values in figures.items():
        for contestant, value in zip(rpc.CALLERS, values, strict=True):
            for factor in (0.1, 1.0, 7.0):
                made.add(contestant, name.replace("__", " "), factor * value)
    return made


def test_an_aim_that_is_missed_is_said_to_be() -> None:
    here = samples("loopback", p50_ms__1=(1.7, 1.0), mb_per_s_64=(130.0, 100.0))
    slow = samples("100 ms", mb_per_s_64=(9.9, 5.0))
    fast = samples("20 ms", mb_per_s_64=(10.0, 5.0))
    told = {row["aim"]: (row["found"], row["met"]) for row in rpc.aims([here, slow, fast])}
    assert told == {
        "time of a call / Lattica's": (1.7, "no"),
        "MB/s of 64 MiB / Lattica's": (pytest.approx(1.3), "yes"),
        "share of the line, 100 ms": (pytest.approx(0.792), "no"),
        "share of the line, 20 ms": (pytest.approx(0.8), "yes"),
    }


def test_who_was_left_out_has_no_row() -> None:
    here = samples("loopback", p50_ms__1=(1.7, 1.0), calls_per_s__1=(9.0, 9.0))
    assert [row["contestant"] for row in rpc.call_rows(here)] == ["shoal", "lattica"]
    assert rpc.bulk_rows(here) == []


def test_quantiles_are_milliseconds() -> None:
    found = quantiles([0.001 * n for n in range(101)])
    assert found == {"p50_ms": pytest.approx(50), "p99_ms": pytest.approx(99), "count": 101}


@pytest.mark.libp2p
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["shoal", "libp2p", "tcp"])
async def test_the_processes_of_a_contestant_do_as_they_are_told(name: str) -> None:
    is_caller = name == "shoal"
    async with pair(name, [Place(), Place()], both=is_caller) as made:
        found = await made.order("calls", in_flight=1, count=3)
        assert found["count"] == 3
        assert float((await made.order("fetch", size_bytes=300_000))["seconds"]) > 0
        if is_caller:
            assert float((await made.order("fetch", back=True, size_bytes=10))["seconds"]) > 0
            assert float((await made.order("mixed", size_bytes=3_000_000))["count"]) > 0


@pytest.mark.libp2p
@pytest.mark.timeout(60)
async def test_a_process_that_ends_is_named() -> None:
    with pytest.raises(Failed, match="a process of tcp has ended"):
        async with pair("tcp", [Place(host="nowhere.invalid"), Place()], both=False):
            pass
