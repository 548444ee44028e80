from __future__ import annotations

import pytest
import torch
from samples import spec

from node.worker_shared import check_shared, split_moments, with_moments
from protocol.algorithms import DilocoConfig, NolocoConfig, StreamingConfig, SyncConfig
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.ids import Round
from protocol.model import GptConfig
from trainers.inner import Moments
from trainers.state import Slow

MODEL = GptConfig(layers=2, heads=1, width=8, context=8, vocab=257)
COUNT = num_parameters(MODEL)
SYNC = spec(model=MODEL, trainer=SyncConfig())
GAP = spec(model=MODEL, trainer=StreamingConfig(inner_steps=6, fragment_layers=1, gap_penalty=True))


def slow(**sizes: int) -> Slow:
    """A checkpoint that shares vectors of these sizes."""
    shared = {name: torch.zeros(size) for name, size in sizes.items()}
    return Slow(Round(1), torch.zeros(COUNT), torch.zeros(COUNT), shared)


def test_the_optimizer_of_a_sync_run_goes_into_a_checkpoint_and_comes_out() -> None:
    moments = Moments(torch.full((COUNT,), 1.0), torch.full((COUNT,), 2.0), 7)
    checkpoint = with_moments(slow(), moments)
    check_shared(checkpoint, SYNC)
    rest, found = split_moments(checkpoint)
    assert found is not None
    assert (found.first_P[0].item(), found.second_P[0].item(), found.steps) == (1.0, 2.0, 7)
    assert rest.shared == {}


def test_what_a_trainer_shares_is_taken_and_so_is_nothing() -> None:
    check_shared(slow(gap=6), GAP)
    check_shared(slow(first=COUNT, second=COUNT, steps=1), SYNC)
    for run in (GAP, SYNC, spec(model=MODEL, trainer=NolocoConfig())):
        check_shared(slow(), run)


@pytest.mark.parametrize(
    "sizes",
    [
        {"first": COUNT, "second": COUNT},
        {"first": COUNT - 1, "second": COUNT, "steps": 1},
        {"first": COUNT, "second": COUNT, "steps": 2},
        {"first": COUNT, "second": COUNT, "steps": 1, "more": 1},
        {"gap": 6},
    ],
)
def test_a_checkpoint_that_shares_anything_else_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(Malformed, match="a checkpoint that shares"):
        check_shared(slow(**sizes), SYNC)


@pytest.mark.parametrize("trainer", [NolocoConfig(), DilocoConfig(), DilocoConfig(stale=True)])
def test_most_trainers_share_nothing(trainer: NolocoConfig | DilocoConfig) -> None:
    with pytest.raises(Malformed, match=r"expected \{\}"):
        check_shared(slow(gap=2), spec(model=MODEL, trainer=trainer))


@pytest.mark.parametrize("steps", [-1.0, 1e9])
def test_optimizer_steps_that_no_run_makes_are_refused(steps: float) -> None:
    checkpoint = slow(first=COUNT, second=COUNT, steps=1)
    checkpoint.shared["steps"][0] = steps
    with pytest.raises(Malformed, match="optimizer steps"):
        check_shared(checkpoint, SYNC)
