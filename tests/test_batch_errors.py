"""What is wrong with a batch, and with which of its problems."""

import re

import numpy as np
import pytest
from problems import random_graph

import ssot
from ssot import ConvergenceError, ConvergenceWarning, Status
from ssot.batch import SolutionBatch

PROBLEMS, SAMPLES, CLASSES = 3, 12, 4
COST = np.random.default_rng(0).random((PROBLEMS, SAMPLES, CLASSES))
GRAPH = random_graph(0, SAMPLES)

# Failures

FAILING = {"semantic_weight": [0.0, 30.0, 20.0], "rho": 0.5, "max_steps": 1}


def test_a_failure_is_raised_with_the_whole_batch():
    with pytest.raises(ConvergenceError, match=r"^2 of 3 problems failed, first 1: ") as caught:
        ssot.solve(COST, GRAPH, on_failure="raise", **FAILING)
    batch = caught.value.solution
    assert isinstance(batch, SolutionBatch)
    assert batch.status == (Status.CONVERGED, Status.MAX_STEPS, Status.MAX_STEPS)
    assert Status.MAX_STEPS.advice in str(caught.value)
    gap = re.search(r"stationarity gap (\S+),", str(caught.value)).group(1)
    assert float(gap) == pytest.approx(batch[1].certificate.stationarity_gap, rel=0.1)


@pytest.mark.parametrize("entry", [ssot.solve, ssot.sp2ot_plan])
def test_one_warning_tells_how_many_failed(entry):
    with pytest.warns(ConvergenceWarning) as caught:
        entry(COST, GRAPH, **FAILING)
    (warning,) = caught
    assert str(warning.message).startswith("2 of 3 problems failed, first 1: ")
    assert warning.filename == __file__


def test_failures_can_be_returned():
    batch = ssot.solve(COST, GRAPH, on_failure="return", **FAILING)
    assert [status.is_success for status in batch.status] == [True, False, False]


# Refusals

SHAPES = {
    "rho": (),
    "epsilon": (),
    "semantic_weight": (),
    "kl_weight": (CLASSES,),
    "prior": (CLASSES,),
    "sample_weight": (SAMPLES,),
    "graph": (SAMPLES, SAMPLES),
    "init": (CLASSES + 1,),
}


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_another_number_of_problems_is_refused(name, length):
    given = {"graph": GRAPH, name: np.ones((length, *SHAPES[name])) / 2}
    with pytest.raises(ValueError, match=rf"^{name} must have a first dimension of 3.* {length}$"):
        ssot.solve(COST, **given)


@pytest.mark.parametrize("part", [0, 1])
def test_neighbours_of_another_number_of_problems_are_refused(part):
    graph = [np.zeros((PROBLEMS, SAMPLES, 1), int), np.ones((PROBLEMS, SAMPLES, 1))]
    graph[part] = graph[part][:2]
    with pytest.raises(ValueError, match=rf"^graph\[{part}\] must have a first dimension of 3"):
        ssot.solve(COST, tuple(graph))


def spoilt(array, where, value):
    array = np.array(array, float)
    array[where] = value
    return array


EVEN = np.full((PROBLEMS, CLASSES), 0.25)
SPOILT = {
    "cost": (1, {"cost": spoilt(COST, (1, 0, 0), np.nan)}),
    "logits": (2, {"cost": None, "logits": spoilt(COST, (2, 0, 0), np.inf)}),
    "rho": (2, {"rho": [0.5, 1.0, 2.0]}),
    "epsilon": (0, {"epsilon": [0.0, 0.1, 0.1]}),
    "semantic_weight": (1, {"semantic_weight": [0.0, -1.0, 0.0]}),
    "kl_weight": (1, {"kl_weight": spoilt(EVEN, (1, 0), -1.0)}),
    "prior": (2, {"prior": spoilt(EVEN, (2, 0), 1.0)}),
    "sample_weight": (0, {"sample_weight": spoilt(np.ones((3, SAMPLES)) / SAMPLES, (0, 0), -1)}),
    "graph": (2, {"graph": [GRAPH, GRAPH, GRAPH[1:, 1:]]}),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_wrong_entry_is_said_to_be_in_its_problem(name):
    index, wrong = SPOILT[name]
    given = {"cost": COST, "graph": GRAPH} | wrong
    with pytest.raises(ValueError, match=rf"^in problem {index} of the batch: {name} "):
        ssot.solve(**given)


def test_an_argument_of_the_wrong_type_stays_a_type_error():
    with pytest.raises(TypeError, match=r"^in problem 0 of the batch: rho must be a number"):
        ssot.solve(COST, rho="half")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"cost": COST[None]},
            r"cost must be a two-dimensional array .* got shape \(1, 3, 12, 4\)",
        ),
        ({"cost": COST[:0]}, r"cost must hold at least one problem, got shape \(0, 12, 4\)"),
        ({"logits": COST[:0]}, r"logits must hold at least one problem, got shape \(0, 12, 4\)"),
        ({"cost": COST, "logits": COST}, "exactly one of cost and logits must be given, got both"),
        ({"cost": COST[0], "rho": [0.1, 0.2]}, "rho must be one number"),
        ({"cost": COST[0], "prior": EVEN}, r"prior must have shape \(4,\)"),
        ({"cost": COST, "prior": EVEN[None]}, r"prior must have a first dimension of 3"),
    ],
    ids=["4 dimensions", "none", "no logits", "both", "rho of one", "prior of one", "prior"],
)
def test_what_is_no_batch_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ssot.solve(**given)


@pytest.mark.parametrize("kind", [list, tuple, lambda solutions: solutions])
@pytest.mark.parametrize("length", [1, 2])
def test_a_start_for_another_number_of_problems_is_refused(kind, length):
    init = kind(ssot.solve(COST)[:length])
    message = rf"init must hold one solution for each of the 3 problems, got {length}"
    with pytest.raises(ValueError, match=message):
        ssot.solve(COST, init=init)


@pytest.mark.parametrize("init", [np.zeros(3), np.zeros((3, 3)), "cold"])
def test_other_starts_are_refused(init):
    with pytest.raises((TypeError, ValueError), match="init must be a Solution"):
        ssot.solve(COST, init=init)


def test_a_start_with_other_classes_is_refused():
    with pytest.raises(ValueError, match="init must have the classes"):
        ssot.solve(COST, init=ssot.solve(COST[:, :, 1:]))


def test_a_batch_is_no_start_for_one_problem():
    with pytest.raises(TypeError, match="init must be a Solution"):
        ssot.solve(COST[0], init=ssot.solve(COST))


@pytest.mark.parametrize(
    ("other", "named"), [(COST[1][:5], "shape"), (COST[1].astype(np.float32), "dtype")]
)
def test_problems_that_are_unlike_are_refused(other, named):
    with pytest.raises(ValueError, match=f"^cost must have one {named} in all problems"):
        ssot.solve([COST[0], other])
