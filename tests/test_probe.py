from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from protocol.model import GptConfig
from protocol.scalar import Draw
from trainers.model import initial_weights, model_on, views
from trainers.perturb import signs
from trainers.probe import Batch, Probe
from trainers.subspace import Subspace, model_subspace, subspace

MODEL = GptConfig(layers=1, heads=2, width=16, context=8, vocab=300)


def weights() -> Tensor:
    return initial_weights(MODEL, Generator().manual_seed(0))


def batch(seed: int) -> Batch:
    windows = torch.randint(0, 300, (4, 9), generator=Generator().manual_seed(seed))
    return windows[:, :-1], windows[:, 1:]


def draws(count: int) -> list[Draw]:
    return [Draw(key=1, step=0, sample=sample) for sample in range(count)]


def names_of(chosen: Subspace) -> list[str]:
    """The parameters that writing into the subspace reaches."""
    vector = torch.zeros_like(weights())
    chosen.scatter(torch.ones(chosen.size), vector)
    parts = views(MODEL, vector)
    reached = [name for name, part in parts.items() if part.any()]
    assert all(parts[name].all() for name in reached), "a part of a parameter"
    return reached


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["norm.*"], ["norm.weight", "norm.bias"]),
        (["*norm1.weight", "blocks.0.up.*"],
         ["blocks.0.up.weight", "blocks.0.norm1.weight", "blocks.0.up.bias"]),
        (["positions.weight"], ["positions.weight"]),
        (["*.bias", "*out.bias", "norm.bias"],
         ["blocks.0.norm1.bias", "blocks.0.qkv.bias", "blocks.0.attention_out.bias",
          "blocks.0.norm2.bias", "blocks.0.up.bias", "blocks.0.perceptron_out.bias",
          "norm.bias"]),
    ],
)  # fmt: skip
def test_a_subspace_is_the_parameters_whose_names_match(
    patterns: list[str], names: list[str]
) -> None:
    assert names_of(model_subspace(MODEL, patterns)) == names


def test_neighbours_are_one_range_and_all_is_one() -> None:
    everything = model_subspace(MODEL, ["*"])
    assert everything == Subspace(((0, len(weights())),))
    assert len(model_subspace(MODEL, ["norm.*"]).ranges) == 1
    assert len(model_subspace(MODEL, ["norm.*", "tokens.*"]).ranges) == 2


def test_a_pattern_that_matches_nothing_is_named_with_names_that_there_are() -> None:
    sentence = (
        r'trainer.trainable has "head.\*", which matches no parameter; there are for instance '
        r"norm.bias, norm.weight, tokens.weight"
    )
    with pytest.raises(ValueError, match=sentence):
        model_subspace(MODEL, ["*.bias", "head.*"])
    with pytest.raises(ValueError, match="NORM"):
        model_subspace(MODEL, ["NORM.*"])


def test_adapters_of_any_model_are_found_by_name() -> None:
    vector = torch.arange(10.0)
    parts = {"up.lora_a": vector[6:10], "up.weight": vector[2:6], "down.lora_b": vector[0:2]}
    adapters = subspace(parts, ["*lora*"])
    assert adapters.gather(vector).tolist() == [0, 1, 6, 7, 8, 9]
    adapters.scatter(-torch.arange(6.0), vector)
    assert vector.tolist() == [0, -1, 2, 3, 4, 5, -2, -3, -4, -5]


def test_gathering_copies() -> None:
    vector = weights()
    model_subspace(MODEL, ["*"]).gather(vector).zero_()
    assert torch.equal(vector, weights())


def test_the_weights_of_the_run_are_not_touched() -> None:
    weights_P = weights()
    chosen = model_subspace(MODEL, ["*norm*", "*.bias"])
    theta_Q = chosen.gather(weights_P)
    Probe(MODEL, weights_P, chosen).slopes(theta_Q, draws(3), 1e-2, [batch(0)] * 3)
    assert torch.equal(weights_P, weights())
    assert torch.equal(theta_Q, chosen.gather(weights()))


def test_a_probe_remembers_nothing_of_earlier_losses() -> None:
    chosen = model_subspace(MODEL, ["*norm*", "*.bias"])
    theta_Q, elsewhere_Q = chosen.gather(weights()), torch.ones(chosen.size)
    probe = Probe(MODEL, weights(), chosen)
    first = probe.loss(batch(0), theta_Q)
    probe.loss(batch(0), elsewhere_Q)
    inputs, targets = batch(0)
    logits = model_on(MODEL, weights())(inputs)
    assert probe.loss(batch(0), theta_Q) == first
    assert first == pytest.approx(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item())


def test_slopes_are_the_gradient_along_each_perturbation_each_on_its_own_batch() -> None:
    chosen = model_subspace(MODEL, ["*norm*", "*.bias"])
    theta_Q = chosen.gather(weights())
    batches = [batch(0), batch(1), batch(0)]
    found = Probe(MODEL, weights(), chosen).slopes(theta_Q, draws(3), 1e-3, batches)
    expected = []
    for z_Q, (inputs, targets) in zip(signs(draws(3), chosen.size), batches, strict=True):
        model = model_on(MODEL, weights())
        F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()  # type: ignore[no-untyped-call]
        gradient = torch.zeros_like(weights())
        for name, part in views(MODEL, gradient).items():
            part.copy_(model.get_parameter(name).grad)  # type: ignore[arg-type]
        expected.append((chosen.gather(gradient) @ z_Q.float()).item())
    assert found == pytest.approx(expected, rel=0.02, abs=1e-3)
