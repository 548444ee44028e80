from __future__ import annotations

import pytest
import torch
from samples import spec

from node.worker.shared import check_shared, split_moments, with_moments
from protocol.algorithms import DilocoConfig, NolocoConfig, StreamingConfig, SyncConfig
from protocol.errors import Malformed
from protocol.fragments import num_parameters
from protocol.ids import Round
from protocol.model import GptConfig
from protocol.spec import RunSpec
from trainers.inner import Moments
from trainers.model import views
from trainers.state import Slow

MODEL = GptConfig(layers=2, heads=1, width=8, context=8, vocab=257)
COUNT = num_parameters(MODEL)
SYNC = spec(model=MODEL, trainer=SyncConfig())
NOLOCO = spec(model=MODEL, trainer=NolocoConfig())
GAP = spec(model=MODEL, trainer=StreamingConfig(inner_steps=6, fragment_layers=1, gap_penalty=True))


def slow(**sizes: int) -> Slow:
    """A checkpoint that shares vectors of these sizes."""
    shared = {name: torch.zeros(size) for name, size in sizes.items()}
    return Slow(Round(1), torch.zeros(COUNT), torch.zeros(COUNT), shared)


def test_the_optimizer_of_a_sync_run_goes_into_a_checkpoint_and_comes_out() -> None:
    moments = Moments(torch.full((COUNT,), 1.0), torch.full((COUNT,), 2.0), 7)
    checkpoint = with_moments(slow(), moments, SYNC)
    check_shared(checkpoint, SYNC)
    rest, found = split_moments(checkpoint, SYNC)
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


@pytest.mark.parametrize("trainer", [DilocoConfig(), DilocoConfig(stale=True)])
def test_most_groups_share_nothing(trainer: DilocoConfig) -> None:
    with pytest.raises(Malformed, match=r"expected \{\}"):
        check_shared(slow(gap=2), spec(model=MODEL, trainer=trainer))


@pytest.mark.parametrize("steps", [-1.0, 1e9])
def test_optimizer_steps_that_no_run_makes_are_refused(steps: float) -> None:
    checkpoint = slow(first=COUNT, second=COUNT, steps=1)
    checkpoint.shared["steps"][0] = steps
    with pytest.raises(Malformed, match="optimizer steps"):
        check_shared(checkpoint, SYNC)


def test_a_noloco_checkpoint_has_second_moments_in_short_and_no_first_ones() -> None:
    rows_of = torch.rand(COUNT, generator=torch.Generator().manual_seed(1))
    checkpoint = with_moments(slow(), Moments(torch.ones(COUNT), rows_of, 7), NOLOCO)
    check_shared(checkpoint, NOLOCO)
    assert sum(len(kept) for kept in checkpoint.shared.values()) < COUNT / 2
    rest, found = split_moments(checkpoint, NOLOCO)
    assert found is not None
    assert (found.first_P.abs().max().item(), found.steps, rest.shared) == (0.0, 7, {})
    for name, part in views(MODEL, found.second_P).items():
        whole = views(MODEL, rows_of)[name]
        if whole.dim() == 1:
            assert torch.equal(part, whole), name
        else:  # a product of means has the same means
            assert torch.allclose(part.mean(dim=0), whole.mean(dim=0)), name
            assert torch.allclose(part.mean(dim=1), whole.mean(dim=1)), name


def test_moments_of_a_part_without_a_gradient_are_zero_and_not_nan() -> None:
    checkpoint = with_moments(slow(), Moments(torch.ones(COUNT), torch.zeros(COUNT), 7), NOLOCO)
    _, found = split_moments(checkpoint, NOLOCO)
    assert found is not None
    assert found.second_P.abs().max().item() == 0.0


@pytest.mark.parametrize(("run", "name"), [(SYNC, "second"), (NOLOCO, "compact")])
def test_second_moments_below_zero_are_refused(run: RunSpec, name: str) -> None:
    checkpoint = with_moments(slow(), Moments(torch.ones(COUNT), torch.ones(COUNT), 7), run)
    checkpoint.shared[name][3] = -1.0
    with pytest.raises(Malformed, match="below zero"):
        check_shared(checkpoint, run)
