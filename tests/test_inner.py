from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from protocol.model import GptConfig, InnerConfig
from trainers.inner import Inner, lr_at
from trainers.model import initial_weights, model_on, num_decayed

MODEL = GptConfig(layers=1, heads=2, width=16, context=8, vocab=300)


def start() -> Tensor:
    return initial_weights(MODEL, Generator().manual_seed(0))


def tokens(step: int) -> Tensor:
    return torch.randint(0, 300, (4, 9), generator=Generator().manual_seed(step))


def train(inner: Inner, steps: range) -> list[float]:
    return [inner.step(tokens(step)[:, :-1], tokens(step)[:, 1:], 1e-2).item() for step in steps]


def test_steps_equal_torchs_adamw_with_clipping_and_decay_on_matrices() -> None:
    config = InnerConfig(clip=0.5)
    ours = Inner(MODEL, config, start())
    train(ours, range(5))

    theirs_P = start()
    model = model_on(MODEL, theirs_P)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
    )
    for step in range(5):
        logits = model(tokens(step)[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens(step)[:, 1:].flatten())
        adamw.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adamw.step()
    torch.testing.assert_close(ours.theta_P, theirs_P, rtol=0, atol=5e-5)  # key biases: no gradient


def test_the_loss_falls_on_a_batch_seen_again_and_again() -> None:
    inner = Inner(MODEL, InnerConfig(), start())
    losses = [inner.step(tokens(0)[:, :-1], tokens(0)[:, 1:], 1e-2).item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_bf16_autocast_keeps_weights_in_fp32_and_learns() -> None:
    inner = Inner(MODEL, InnerConfig(precision="bf16"), start())
    losses = [inner.step(tokens(0)[:, :-1], tokens(0)[:, 1:], 1e-2).item() for _ in range(30)]
    assert inner.theta_P.dtype == torch.float32
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_at_rate_zero_changes_nothing() -> None:
    inner = Inner(MODEL, InnerConfig(), start())
    inner.step(tokens(0)[:, :-1], tokens(0)[:, 1:], 0.0)
    assert torch.equal(inner.theta_P, start())


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_whole_batch(parts: int) -> None:
    whole = Inner(MODEL, InnerConfig(batch=4), start())
    cut = Inner(MODEL, InnerConfig(batch=4, accumulate=parts), start())
    inputs, targets = tokens(0)[:, :-1], tokens(0)[:, 1:]
    loss = whole.backward(inputs, targets)
    assert cut.backward(inputs, targets).item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(cut.gradient_P, whole.gradient_P, rtol=0, atol=1e-6)


def test_a_gradient_does_not_grow_from_batch_to_batch() -> None:
    inner = Inner(MODEL, InnerConfig(), start())
    inner.backward(tokens(0)[:, :-1], tokens(0)[:, 1:])
    first_P = inner.gradient_P.clone()
    inner.backward(tokens(0)[:, :-1], tokens(0)[:, 1:])
    assert torch.equal(inner.gradient_P, first_P)


def test_a_restored_optimizer_goes_on_to_the_bit() -> None:
    unbroken = Inner(MODEL, InnerConfig(), start())
    train(unbroken, range(3))
    restored = Inner(MODEL, InnerConfig(), unbroken.theta_P.clone())
    restored.restore(unbroken.moments())
    assert train(restored, range(3, 6)) == train(unbroken, range(3, 6))
    assert torch.equal(restored.theta_P, unbroken.theta_P)


def test_moments_are_a_copy() -> None:
    inner = Inner(MODEL, InnerConfig(), start())
    train(inner, range(1))
    moments = inner.moments()
    first = moments.first_P.clone()
    train(inner, range(1, 2))
    assert torch.equal(moments.first_P, first)
    assert (moments.steps, inner.moments().steps) == (1, 2)


def test_only_matrices_decay() -> None:
    """With no gradient worth the name, decay alone moves the weights."""
    inner = Inner(MODEL, InnerConfig(weight_decay=10.0, clip=1e-6), torch.ones_like(start()))
    decayed = num_decayed(MODEL)
    inner.gradient_P.zero_()
    for group in inner._optimizer.param_groups:
        group["lr"] = 0.01
    inner._optimizer.step()
    assert inner.theta_P[:decayed].tolist() == pytest.approx([0.9] * decayed)
    assert bool((inner.theta_P[decayed:] == 1.0).all())


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (5.5, 0.55), (10.0, 0.1), (12.0, 0.1)],
)
def test_the_rate_warms_up_then_follows_a_cosine_and_stays(progress: float, rate: float) -> None:
    config = InnerConfig(lr=1.0, min_lr_ratio=0.1, warmup_rounds=1.0)
    assert lr_at(config, progress, 10) == pytest.approx(rate)


def test_a_run_without_warm_up_begins_at_the_full_rate() -> None:
    assert lr_at(InnerConfig(lr=1.0, warmup_rounds=0.0), 0.0, 10) == 1.0


def test_a_run_shorter_than_its_warm_up_has_rates() -> None:
    config = InnerConfig(lr=1.0, warmup_rounds=5.0)
    assert [lr_at(config, p, 2) for p in (1.0, 2.0)] == [0.2, 0.4]
