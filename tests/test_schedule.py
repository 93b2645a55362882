"""Schedules: published values, and the laws every ramp obeys."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssot.schedule import cosine_ramp, linear_ramp, semantic_weight, sigmoid_ramp

RAMPS = [sigmoid_ramp, linear_ramp, cosine_ramp]
STARTS = st.floats(min_value=0, max_value=1, exclude_min=True)
PROGRESS = st.floats(min_value=0, max_value=1)
FEW_ROUNDINGS = 1e-15

every_ramp = pytest.mark.parametrize("ramp", RAMPS)


@pytest.mark.parametrize(
    ("ramp", "progress", "expected"),
    [
        (sigmoid_ramp, 0, 0.1 + 0.9 * math.exp(-5)),
        (sigmoid_ramp, 0.5, 0.1 + 0.9 * math.exp(-1.25)),
        (linear_ramp, 0, 0.1),
        (linear_ramp, 0.5, 0.55),
        (cosine_ramp, 0, 0.1),
        (cosine_ramp, 1 / 3, 0.1 + 0.9 * 0.25),
        (cosine_ramp, 0.5, 0.55),
    ],
)
def test_known_values(ramp, progress, expected):
    assert ramp(progress) == pytest.approx(expected, rel=1e-14)


@every_ramp
@given(start=STARTS)
def test_a_ramp_ends_at_exactly_one_and_stays_there(ramp, start):
    assert [ramp(progress, start) for progress in (1, 1.0, 1.5, 1e300, math.inf)] == [1.0] * 5


@every_ramp
@given(first=PROGRESS, second=PROGRESS, start=STARTS)
def test_a_ramp_never_falls_and_stays_between_start_and_one(ramp, first, second, start):
    low, high = ramp(min(first, second), start), ramp(max(first, second), start)
    assert type(low) is float
    assert start <= low <= high + FEW_ROUNDINGS
    assert high <= 1.0


@every_ramp
@given(progress=PROGRESS)
def test_a_ramp_from_one_is_constant(ramp, progress):
    assert ramp(progress, start=1) == 1.0


@given(progress=PROGRESS, start=STARTS)
def test_the_cosine_ramp_is_symmetric_about_its_middle(progress, start):
    pair_sum = cosine_ramp(progress, start) + cosine_ramp(1.0 - progress, start)
    assert pair_sum == pytest.approx(1.0 + start, rel=1e-14)


def test_numpy_numbers_are_accepted():
    assert sigmoid_ramp(np.float32(0.5), np.float64(0.1)) == sigmoid_ramp(0.5, 0.1)
    assert linear_ramp(np.int64(1)) == 1.0
    assert semantic_weight(np.float64(0.5), np.int32(10)) == semantic_weight(0.5, 10)


@every_ramp
@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"progress": -1e-9}, ValueError, "progress"),
        ({"progress": math.nan}, ValueError, "progress"),
        ({"progress": "0.5"}, TypeError, "progress"),
        ({"progress": None}, TypeError, "progress"),
        ({"progress": 0.5, "start": 0.0}, ValueError, "start"),
        ({"progress": 0.5, "start": 1.1}, ValueError, "start"),
        ({"progress": 0.5, "start": math.nan}, ValueError, "start"),
        ({"progress": 0.5, "start": [0.1]}, TypeError, "start"),
    ],
)
def test_a_ramp_refuses_bad_arguments_by_name(ramp, arguments, error, name):
    with pytest.raises(error, match=f"^{name} must be"):
        ramp(**arguments)


def test_the_published_semantic_weight():
    assert semantic_weight(0.1, 5120) == pytest.approx(1000 * 0.9, rel=0.03)
    assert semantic_weight(0.25, 10, strength=2) == 15.0


@given(rho=STARTS, samples=st.integers(1, 10**9), strength=st.floats(0, 1e6))
def test_the_semantic_weight_grows_with_the_samples_and_ends_at_zero(rho, samples, strength):
    weight = semantic_weight(rho, samples, strength)
    assert weight >= 0
    assert weight * 2 == pytest.approx(semantic_weight(rho, 2 * samples, strength), rel=1e-12)
    assert semantic_weight(1, samples, strength) == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"rho": 0, "n_samples": 10}, ValueError, "rho"),
        ({"rho": 1.5, "n_samples": 10}, ValueError, "rho"),
        ({"rho": math.nan, "n_samples": 10}, ValueError, "rho"),
        ({"rho": "1", "n_samples": 10}, TypeError, "rho"),
        ({"rho": 0.5, "n_samples": 0}, ValueError, "n_samples"),
        ({"rho": 0.5, "n_samples": 10.0}, TypeError, "n_samples"),
        ({"rho": 0.5, "n_samples": 10, "strength": -1}, ValueError, "strength"),
        ({"rho": 0.5, "n_samples": 10, "strength": math.inf}, ValueError, "strength"),
        ({"rho": 0.5, "n_samples": 10, "strength": None}, TypeError, "strength"),
    ],
)
def test_the_semantic_weight_refuses_bad_arguments_by_name(arguments, error, name):
    with pytest.raises(error, match=f"^{name} must be"):
        semantic_weight(**arguments)
