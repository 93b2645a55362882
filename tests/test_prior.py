"""The class sizes of a training loop: fixed ones, and those that follow the plans."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROFILE, SEEDS
from training_batches import CLASSES, batches, torch

from ssot.training import AdaptivePrior, PseudoLabeler


def test_a_fixed_prior_is_that_of_the_solve():
    logits, ids = next(batches(1, leading=(2,)))
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    labels = PseudoLabeler(4, ramp=0.5, prior=shares, kl_weight=np.inf, tol=1e-9)(logits, ids)
    sizes = labels.targets.mean(dim=-2)
    assert np.allclose(sizes, 0.5 * shares, atol=1e-6)


@PROFILE
@given(
    seed=SEEDS,
    heads=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.5, 0.99]),
    uniform=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_class_shares_follow_their_formula(seed, heads, momentum, uniform):
    prior = AdaptivePrior(CLASSES, heads=heads, momentum=momentum, uniform=uniform)
    shares = np.full((heads, CLASSES), 1 / CLASSES)
    assert np.allclose(prior.value, shares)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        masses = rng.random((heads, 2, CLASSES))
        prior.update(torch.from_numpy(masses))
        seen = masses.mean(axis=1)
        shares = momentum * shares + (1 - momentum) * seen / seen.sum(axis=1, keepdims=True)
    assert np.allclose(prior.value, (1 - uniform) * shares + uniform / CLASSES)
    assert np.allclose(prior.value.sum(dim=1), 1)


def test_an_adaptive_prior_learns_the_sizes_of_each_head():
    sizes = np.array([0.55, 0.25, 0.15, 0.05])
    classes = np.repeat(np.arange(CLASSES), (60 * sizes).round().astype(int))
    logits = 6.0 * torch.eye(CLASSES)[torch.from_numpy(classes)].double()
    logits = torch.stack([logits, logits.flip(-1)]).unsqueeze(1).repeat(1, 3, 1, 1)
    prior = AdaptivePrior(CLASSES, heads=2, momentum=0.5, uniform=0.0)
    labeler = PseudoLabeler(20, ramp=0.8, prior=prior)
    for _ in range(20):
        labels = labeler(logits, torch.arange(60))
    assert np.allclose(prior.value, [sizes, sizes[::-1]], atol=0.02)
    given_priors = [solution.problem.prior for solution in labels.solutions]
    assert np.array_equal(given_priors[0], given_priors[2])
    assert np.allclose(given_priors[0], given_priors[3][::-1])


@pytest.mark.parametrize(
    ("masses", "message"),
    [
        (torch.ones(CLASSES), "heads, K"),
        (torch.ones(2, CLASSES), "heads, K"),
        (-torch.ones(1, CLASSES), "0 or above"),
        (torch.full((1, CLASSES), np.nan), "finite"),
        (torch.full((1, CLASSES), np.inf), "finite"),
    ],
)
def test_masses_that_are_refused(masses, message):
    prior = AdaptivePrior(CLASSES)
    with pytest.raises(ValueError, match=message):
        prior.update(masses)
    assert np.allclose(prior.value, 1 / CLASSES)


def test_only_plans_of_successes_are_learnt_from():
    prior = AdaptivePrior(CLASSES, heads=2, momentum=0.5, uniform=0.0)
    prior.update(torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    before = prior.value
    logits, ids = next(batches(1, leading=(2, 2)))
    # One sample alone may join class 0, of a hard size: in both views of head 0, and in one of 1.
    logits[[0, 0, 1], [0, 1, 0], 1:, 0] = -np.inf
    hard = [np.inf, 1.0, 1.0, 1.0]
    labeler = PseudoLabeler(4, ramp=1.0, kl_weight=hard, prior=prior, on_failure="return")
    solutions = labeler(logits, ids).solutions
    assert [status.is_success for status in solutions.status] == [False, False, False, True]
    assert torch.equal(prior.value[0], before[0])
    assert torch.allclose(prior.value[1], (before[1] + solutions[3].plan.sum(dim=0)) / 2)
    assert not torch.allclose(prior.value[1], before[1])


def test_settings_of_a_prior_that_are_refused():
    with pytest.raises(ValueError, match="momentum"):
        AdaptivePrior(3, momentum=1.0)
    with pytest.raises(TypeError, match="momentum must be a number"):
        AdaptivePrior(3, momentum="high")
    with pytest.raises(ValueError, match="uniform"):
        AdaptivePrior(3, uniform=-0.1)
    with pytest.raises(ValueError, match=r"\(1, 3\), got one of \(2, 3\)"):
        AdaptivePrior(3).load_state_dict(AdaptivePrior(3, heads=2).state_dict())
