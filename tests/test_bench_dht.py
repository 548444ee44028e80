"""scripts/bench dht: what it reports, on made-up figures."""

from __future__ import annotations

import pytest

from node.bench.dht import growth, p95

ROW = {
    "lookup_p95_s": 0.2,
    "lookup_cpu_s": 0.1,
    "rest_bytes_per_min": 100.0,
    "run_bytes_per_min": 0.0,
    "memory_mb": 2.0,
}


def test_growth_is_from_the_first_size_to_the_last() -> None:
    rows = [
        {"nodes": 50, **ROW},
        {"nodes": 100, **ROW, "memory_mb": 9.0},
        {"nodes": 200, **ROW, "lookup_p95_s": 0.3},
    ]
    assert growth(rows) == (
        "From 50 to 200 nodes: lookup_p95_s x1.50, lookup_cpu_s x1.00, rest_bytes_per_min x1.00, "
        "run_bytes_per_min from nothing, memory_mb x1.00."
    )


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (20, 19.0), (40, 38.0), (100, 95.0)])
def test_p95_is_within_the_slowest_twentieth(count: int, expected: float) -> None:
    assert p95([float(n) for n in reversed(range(count))]) == expected
