"""The toy learners: the same outer steps as real peers take, exact enough to compare bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_sim import FAST_SPSA, name, spec_of

from node.sim.toy import PULL, Part, ToyLearner
from node.sim.toy_scalars import ScalarToys, boot_of
from node.sim.worker import Refused
from protocol.algorithms import DilocoConfig, LocalConfig, NolocoConfig, StreamingConfig
from protocol.ids import Digest, Round
from protocol.spsa import Frame
from trainers.effects import ApplyOuter, Share

DILOCO = DilocoConfig(inner_steps=10, outer_lr=0.7, outer_momentum=0.9)
NOLOCO = NolocoConfig(inner_steps=10, alpha=0.3, beta=0.7, gamma=0.5)


def learner(
    n: int, config: DilocoConfig | NolocoConfig | LocalConfig, *, fragments: int = 1
) -> ToyLearner:
    target = np.random.default_rng(n).normal(size=6)
    return ToyLearner(name(n), target, config, fragments=fragments)


def averaged(learners: list[ToyLearner], round: int, *, fragment: int = 0, late: int = 0) -> None:
    """All take the mean of what all but the last `late` have made; those have made nothing."""
    made = [toy.snapshot(Round(round), fragment) for toy in learners[: len(learners) - late]]
    weight = 1 / len(made)
    shares = tuple(Share(digest, Round(round), weight) for digest, _, _ in made)
    contents = {digest: content for digest, _, content in made}
    for n, toy in enumerate(learners):
        mine = made[n][0] if n < len(made) else None
        toy.outer(ApplyOuter(Round(round + 1), fragment, mine, shares), contents)


def alone(toy: ToyLearner, round: int, *, fragment: int = 0) -> None:
    digest, _, content = toy.snapshot(Round(round), fragment)
    toy.outer(ApplyOuter(Round(round + 1), fragment, digest, ()), {digest: content})


def test_peers_that_average_the_same_shares_have_equal_bits() -> None:
    toys = [learner(n, DILOCO, fragments=2) for n in range(4)]
    for round in range(6):
        for n, toy in enumerate(toys):
            toy.train(Round(round), 3 + n)
        averaged(toys, round, fragment=round % 2, late=round % 3)
        assert len({toy.weights() for toy in toys}) == 1
    assert toys[0].weights() != learner(0, DILOCO).weights()


def test_a_diloco_peer_takes_torchs_nesterov_step_and_starts_there() -> None:
    toy = learner(1, DILOCO)
    phi, momentum = np.zeros(6), np.zeros(6)
    for round in range(3):
        toy.train(Round(round), 10)
        gradient = phi - toy.theta_P
        momentum = 0.9 * momentum + gradient
        phi = phi - 0.7 * (gradient + 0.9 * momentum)
        alone(toy, round)
        assert np.allclose(toy.phi_P, phi, atol=1e-12)
        assert np.array_equal(toy.theta_P, toy.phi_P)


def test_a_noloco_peer_alone_takes_a_heavy_ball_step_and_keeps_steps_made_since() -> None:
    toy = learner(1, NOLOCO)
    toy.train(Round(0), 10)
    snapshot = toy.theta_P
    digest, _, content = toy.snapshot(Round(0), 0)
    toy.train(Round(1), 5)
    since = toy.theta_P - snapshot
    toy.outer(ApplyOuter(Round(1), 0, digest, ()), {digest: content})
    assert np.allclose(toy.phi_P, 0.7 * snapshot, atol=1e-12)
    assert np.allclose(toy.theta_P, toy.phi_P + since, atol=1e-12)


def test_a_pair_with_gamma_one_and_no_momentum_is_equal_after_one_exchange() -> None:
    config = replace(NOLOCO, alpha=0.0, gamma=1.0)
    toys = [learner(n, config) for n in (1, 2)]
    for n, toy in enumerate(toys):
        toy.load((np.full(6, float(n)), np.zeros(6)))
        toy.train(Round(0), 10)
    averaged(toys, 0)
    assert np.allclose(toys[0].phi_P, toys[1].phi_P, atol=1e-12)


def test_a_fragment_leaves_the_others_alone() -> None:
    for config in (NOLOCO, DILOCO):
        toy = learner(1, config, fragments=3)
        toy.train(Round(0), 10)
        theta = toy.theta_P
        alone(toy, 1, fragment=1)
        moved = toy.phi_P != 0
        assert list(moved) == [False, True, False, False, True, False]
        assert np.array_equal(toy.theta_P[~moved], theta[~moved])


def test_who_made_no_snapshot_keeps_its_inner_steps() -> None:
    early, late = learner(1, DILOCO), learner(2, DILOCO)
    early.train(Round(0), 10)
    late.train(Round(0), 2)
    theta = late.theta_P
    averaged([early, late], 0, late=1)
    assert np.allclose(late.theta_P, theta + late.phi_P, atol=1e-12)


def test_streaming_mixes_what_was_trained_meanwhile() -> None:
    config = StreamingConfig(inner_steps=10, overlap_steps=1, mix=0.25)
    toy = learner(1, config)
    toy.train(Round(0), 10)
    digest, _, content = toy.snapshot(Round(0), 0)
    toy.train(Round(1), 1)
    theta = toy.theta_P
    shares = (Share(digest, Round(0), 1.0),)
    toy.outer(ApplyOuter(Round(1), 0, digest, shares), {digest: content})
    assert np.allclose(toy.theta_P, 0.25 * theta + 0.75 * toy.phi_P, atol=1e-12)


def test_local_is_one_uninterrupted_training() -> None:
    toy = learner(1, LocalConfig(inner_steps=5))
    for round in range(4):
        toy.train(Round(round), 5)
        toy.outer(ApplyOuter(Round(round + 1), 0, None, ()), {})
    assert np.allclose(toy.phi_P, toy.target_P * (1 - (1 - PULL) ** 20), atol=1e-12)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("nonsense", "no vector"),
        (Part(Round(8), 0, np.ones(6)), "expected round 7, fragment 0"),
        (Part(Round(7), 1, np.ones(6)), "expected round 7, fragment 0"),
        (Part(Round(7), 0, np.ones(5)), "not 6 finite numbers"),
        (Part(Round(7), 0, np.array([1, 2, np.nan, 4, 5, 6])), "not 6 finite numbers"),
    ],
)
def test_a_share_that_is_another_thing_is_refused_and_changes_nothing(
    content: object, reason: str
) -> None:
    toy = learner(1, DILOCO)
    toy.train(Round(7), 10)
    mine, _, own = toy.snapshot(Round(7), 0)
    theirs = Digest(bytes(32))
    shares = (Share(mine, Round(7), 0.5), Share(theirs, Round(7), 0.5))
    before = toy.weights()
    with pytest.raises(Refused, match=reason) as refused:
        toy.outer(ApplyOuter(Round(8), 0, mine, shares), {mine: own, theirs: content})
    assert (refused.value.culprit, toy.weights()) == (theirs, before)


def test_a_payload_is_as_long_as_the_run_says_for_its_fragment() -> None:
    toy = learner(1, NOLOCO, fragments=2)
    sized = ToyLearner(name(1), np.ones(6), NOLOCO, fragments=2, sizes=(10, 20))
    assert [toy.snapshot(Round(f), f)[1] for f in (0, 1)] == [500_000, 500_000]
    assert [sized.snapshot(Round(f), f)[1] for f in (0, 1)] == [10, 20]


def frames(toys: ScalarToys, authors: int, each: int) -> list[Frame]:
    found = []
    for n in range(authors):
        toy = toys.learner(name(n), n)
        for first in range(0, 4 * each, 4):
            frame = Frame(
                author=name(n),
                boot=boot_of(name(n)),
                first=first,
                step=first,
                base=Digest(bytes(32)),
                authors=authors,
                scalars=toy.sample(boot_of(name(n)), first, 4),
            )
            toy.add((frame,))
            found.append(frame)
    return found


def test_scalars_give_equal_bits_in_any_order() -> None:
    toys = ScalarToys(spec_of(FAST_SPSA), lambda number: np.arange(5.0) + number)
    made = frames(toys, 3, 4)
    one, other = toys.learner(name(8), 8), toys.learner(name(9), 9)
    one.add(tuple(made))
    other.add(tuple(sorted(made, key=lambda frame: frame.first)))
    other.add(tuple(made))  # once more
    assert one.save().weights == other.save().weights
    assert one.sum_without(tuple(made[3:])) == other.sum_without(tuple(made[3:]))
    assert one.sum_without(tuple(made)) == toys.learner(name(7), 7).save().weights


def test_scalars_bring_the_swarm_to_its_optimum() -> None:
    toys = ScalarToys(spec_of(FAST_SPSA), lambda _: np.ones(4))
    toy = toys.learner(name(0), 0)
    before = toys.measure([name(0)]).loss
    for step in range(0, 400, 4):
        toy.add((frame_of(toy.sample(boot_of(name(0)), step, 4), step),))
    assert toys.measure([name(0)]).loss < 0.1 * before


def frame_of(scalars: bytes, first: int) -> Frame:
    return Frame(
        author=name(0),
        boot=boot_of(name(0)),
        first=first,
        step=first,
        base=Digest(bytes(32)),
        authors=1,
        scalars=scalars,
    )
