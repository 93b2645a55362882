"""Never NaN, never silent: hostile inputs are refused with a fix, solved, or honestly given up.

A plan is judged by laws, and its optimality by conditions recomputed here from the definition of
the problem, so no expected number below came from the solver.
"""

import pickle
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse
from scipy.special import log_softmax, xlog1py, xlogy
from tolerances import TOLERANCES

import ssot

SAMPLES, CLASSES = 12, 3
ROWS = np.arange(SAMPLES)
F4, F8 = np.float32, np.float64
inf, nan = np.inf, np.nan


def frozen(array):
    """Make an array read-only: writing to an input is an error in every case that uses it."""
    array.setflags(write=False)
    return array


def exponential(seed):
    return np.random.default_rng(seed).exponential(size=(SAMPLES, CLASSES))


COST = frozen(exponential(0))
RANGE = np.ptp(COST)
UNIFORM = frozen(np.full(SAMPLES, 1 / SAMPLES))
NEIGHBOURS = frozen(np.stack([(ROWS + 1) % SAMPLES, (ROWS + 5) % SAMPLES], axis=1))
CLOSENESS = frozen(np.random.default_rng(1).uniform(0.2, 1, size=NEIGHBOURS.shape))
DENSE = np.zeros((SAMPLES, SAMPLES))
DENSE[ROWS[:, None], NEIGHBOURS] = CLOSENESS
DENSE = frozen(DENSE + DENSE.T)
RING = sparse.csr_array(DENSE)


def changed(array, where, value):
    """Return a copy with some entries replaced."""
    array = np.array(array)
    array[where] = value
    return array


# The kinds of cases


@dataclass(frozen=True)
class Refused:
    """An exception that names the argument and matches a pattern for the fix."""

    error: type[Exception]
    argument: str
    fix: str


@dataclass(frozen=True)
class Right:
    """A converged plan that obeys every law."""

    dtype: type


@dataclass(frozen=True)
class Ends:
    """At the limits of floating point or feasibility: a right plan, or a failure that says so."""

    dtype: type
    may_converge: bool


@dataclass(frozen=True)
class Case:
    """Arguments of `solve` and what to expect of it; those that are functions are made late."""

    id: str
    expected: Refused | Right | Ends
    given: dict

    def arguments(self):
        given = self.given if "logits" in self.given else {"cost": COST, **self.given}
        return {name: value() if callable(value) else value for name, value in given.items()}


def right(name, dtype=F8, **given):
    return Case(name, Right(dtype), given)


def ends(name, dtype=F8, may_converge=True, **given):
    return Case(name, Ends(dtype, may_converge), given)


def never(name, dtype=F8, **given):
    return ends(name, dtype, may_converge=False, **given)


def refused(name, argument, fix, error=ValueError, **given):
    return Case(name, Refused(error, argument, fix), given)


def each_refused(argument, fix, values, error=ValueError):
    """One argument with several values that are no use."""
    return [
        refused(f"{argument}={value!r}", argument, fix, error, graph=RING, **{argument: value})
        for value in values
    ]


class Convertible:
    """What data frames are to NumPy: no array, but convertible to one."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def solution(**given):
    """Return a function that makes a solution to start from."""
    return lambda: ssot.solve(**{"cost": COST, **given})


def in_unit(unit, **given):
    """The same problem in another unit: only its numbers are extreme."""
    return {"cost": COST * unit, "epsilon": 0.1 * unit, "kl_weight": unit, "rho": 0.3, **given}


INF_ROW = changed(COST, 2, inf)
INF_ROW_BUT_ONE = changed(COST, (2, slice(1, None)), inf)
INF_COLUMN = changed(COST, (ROWS, 1), inf)
WITHOUT_ROW = changed(np.full(SAMPLES, 1 / 11), 2, 0)
BIG_AND_SMALL = 10.0 ** (60 * (ROWS % 2)[:, None] - 30)
TWO_IN_CLASS_0 = changed(COST, (slice(10), 0), inf)  # hard uniform sizes need rho <= 1 / 2

# The table

VALUES = [
    refused("cost NaN", "cost", "row 2; only inf", cost=changed(COST, (2, 1), nan)),
    refused("cost -inf", "cost", "row 2; only inf", cost=changed(COST, (2, 1), -inf)),
    refused("logits inf", "logits", "row 2; only -inf", logits=changed(COST, (2, 1), inf)),
    refused("logits NaN", "logits", "row 2; only -inf", logits=changed(COST, (2, 1), nan)),
    right("inf pair", cost=changed(COST, (2, 1), inf)),
    right("inf pair float32", F4, cost=F4(changed(COST, (2, 1), inf))),
    right("logits -inf pair", logits=changed(COST, (2, 1), -inf), rho=0.3),
    right("many inf pairs", cost=np.where(COST > 0.7, inf, COST), rho=0.2),
    right("one finite pair a row", cost=np.where(COST.min(1, keepdims=True) < COST, inf, COST)),
    right("inf pairs, graph", cost=np.where(COST > 1, inf, COST), graph=RING, rho=0.3),
    right("inf row", cost=INF_ROW, rho=0.5),
    right("inf row, graph", cost=INF_ROW, graph=RING, rho=0.5),
    refused("inf row, rho=1", "cost", "lower rho or drop", cost=INF_ROW),
    refused("inf row, high rho", "cost", "lower rho or drop", cost=INF_ROW, rho=0.95),
    ends("inf row, rho just possible", cost=INF_ROW, rho=11 / 12),
    right("inf row without weight", cost=INF_ROW, sample_weight=WITHOUT_ROW, rho=0.3),
    right("inf row, rho=1, no weight", cost=INF_ROW, sample_weight=WITHOUT_ROW),
    refused("logits -inf row", "logits", "row 2 .*leave", logits=changed(COST, 2, -inf), rho=0.5),
    refused("all inf", "cost", "lower rho or drop", cost=np.full((4, 3), inf), rho=0.5),
    right("inf column", cost=INF_COLUMN),
    right("inf column, rho", cost=INF_COLUMN, rho=0.3),
    right("inf column, graph", cost=INF_COLUMN, graph=RING, rho=0.3),
    right("logits -inf column", logits=-INF_COLUMN),
    refused("inf column, hard", "cost", "class 1 .*kl_weight to", cost=INF_COLUMN, kl_weight=inf),
    right("inf column, hard, no share", cost=INF_COLUMN, kl_weight=inf, prior=[0.5, 0, 0.5]),
    refused("inf column has all shares", "prior", "share", cost=INF_COLUMN, prior=[0, 1, 0]),
    right("1e30", cost=COST * 1e30),
    ends("1e30, rho", cost=COST * 1e30, rho=0.3),
    ends("1e30, rho, hard", cost=COST * 1e30, rho=0.3, kl_weight=inf),
    right("1e4, rho", cost=COST * 1e4, rho=0.3),
    right("1e5, rho", cost=COST * 1e5, rho=0.3),
    *(
        ends(f"1e3, rho float32, seed {seed}", F4, cost=F4(1e3 * exponential(seed)), rho=0.3)
        for seed in (16, 34, 45)  # no progress at the last digit
    ),
    right("1e-30", cost=COST * 1e-30, rho=0.3),
    right("1e-30 float32", F4, cost=F4(COST * 1e-30)),
    right("1e-40 float32", F4, cost=np.full((4, 2), 1e-40, F4)),
    right("unit 1e30", **in_unit(1e30)),
    right("unit 1e30, graph", graph=RING, semantic_weight=1e30, **in_unit(1e30)),
    right("unit 1e29 float32", F4, **in_unit(1e29, cost=F4(COST * 1e29))),
    right("unit 1e-30", **in_unit(1e-30)),
    right("unit 1e-30, graph", graph=RING, semantic_weight=1e-30, **in_unit(1e-30)),
    right("unit 1e-30 float32", F4, **in_unit(1e-30, cost=F4(COST * 1e-30))),
    right("rows 1e30 and 1e-30", cost=COST * BIG_AND_SMALL),
    right("rows 1e30 and 1e-30, rho", cost=COST * BIG_AND_SMALL, rho=0.3),
    right("rows 1e29 and 1e-31 float32", F4, cost=F4(COST * 0.1 * BIG_AND_SMALL), rho=0.3),
    right("columns 1e30 and 1e-30", cost=COST * [1e30, 1e-30, 1], graph=RING, rho=0.3),
    refused("1e200", "cost", "divide cost, epsilon, kl_weight and", cost=COST * 1e200),
    refused("1e37 float32", "cost", "divide cost, epsilon, kl_weight and", cost=F4(COST * 1e37)),
    right("negative", cost=-10 * COST, rho=0.3),
    right("-0", cost=np.full((4, 2), -0.0), rho=0.3),
    right("offset 1e6", cost=COST + 1e6),
    right("offset 1e6, rho", cost=COST + 1e6, rho=0.3),
    right("offset -1e6, rho", cost=COST - 1e6, rho=0.3),
    right("offset 1e6, graph", cost=COST + 1e6, graph=RING, rho=0.3),
    right("offset 1e4 float32", F4, cost=F4(COST + 1e4), rho=0.3),
    ends("offset 1e12", cost=COST + 1e12, rho=0.3, max_passes=300),
    ends("offset -1e30, graph", cost=COST - 1e30, graph=RING, rho=0.3, max_passes=300),
    right("logits offset 1e12", logits=COST + 1e12, rho=0.3),
    right("logits 1e30", logits=COST * 1e30, rho=0.3),
    right("logits 1e29 float32", F4, logits=F4(COST * 1e29), rho=0.3),
    right("constant", cost=np.full((5, 3), 2.0), rho=0.3),
    right("zeros, hard", cost=np.zeros((5, 3)), kl_weight=inf),
    right("constant rows", cost=np.repeat(COST[:, :1], 3, axis=1), rho=0.3),
    right("equal rows", cost=np.repeat(COST[:1], 9, axis=0), rho=0.3),
    right("equal rows, hard", cost=np.repeat(COST[:3], 4, 0), rho=0.3, epsilon=1e-3, kl_weight=inf),
]

SHAPES = [
    right("N=1", cost=COST[:1]),
    right("N=1, rho", cost=COST[:1], rho=0.3),
    right("N=1, graph", cost=COST[:1], graph=np.ones((1, 1)), rho=0.3),
    right("K=1", cost=COST[:, :1]),
    right("K=1, rho, hard", cost=COST[:, :1], rho=0.3, kl_weight=inf),
    right("K=1, rho, graph", cost=COST[:, :1], graph=RING, rho=0.3),
    right("N=K=1", cost=[[3.0]]),
    right("N=K=1, zero", cost=[[0.0]]),
    right("N=K=1, rho, hard", cost=[[-3.0]], rho=0.3, kl_weight=inf),
    right("N<K, rho", cost=COST[:5].T, rho=0.3),
    right("N<K, hard", cost=COST.T, kl_weight=inf),
    *(
        refused(f"shape {np.shape(cost)}", "cost", "two-dimensional", cost=cost)
        for cost in (3.0, [], [[]], COST[0], COST[None, None], COST[:0], COST[:, :0])
    ),
    refused("logits 1-D", "logits", "two-dimensional", logits=COST[0]),
    refused("ragged", "cost", "rectangular", cost=[[1, 2], [3]]),
    refused("cost and logits", "cost", "exactly one of", cost=COST, logits=COST),
    refused("neither", "cost", "exactly one of", cost=None),
]

FORMS = [
    *(
        right(dtype, cost=np.rint(3 * COST).astype(dtype), rho=0.3)
        for dtype in ("bool", "int8", "uint8", "int64", "uint64", ">i4", "longdouble", ">f8")
    ),
    *(right(dtype, F4, cost=COST.astype(dtype), rho=0.3) for dtype in ("f2", ">f4", ">f2")),
    right("logits int", logits=np.rint(3 * COST).astype(int)),
    right("logits float16", F4, logits=COST.astype("f2")),
    *(
        refused(f"cost {dtype}", "cost", "dtype=float", TypeError, cost=COST.astype(dtype))
        for dtype in (object, complex, str, bytes)
    ),
    refused("file name", "cost", "dtype=float", TypeError, cost="cost.npy"),
    refused("None in a list", "cost", "dtype=float", TypeError, cost=[[None, 1.0]]),
    refused("sparse cost", "cost", "toarray|dense", TypeError, cost=RING),
    refused("solution as cost", "cost", "real numbers", TypeError, cost=solution()),
    right("list", cost=COST.tolist(), rho=0.3),
    right("tuples", cost=tuple(map(tuple, COST.tolist()))),
    right("Fortran order", cost=np.asfortranarray(COST), graph=RING, rho=0.3),
    right("reversed strides", cost=COST[::-1, ::-1], rho=0.3),
    right("strided", cost=np.repeat(COST, 2, axis=1)[::2, ::2], rho=0.3),
    right("broadcast", cost=np.broadcast_to(COST[0], (6, 3)), rho=0.3),
    right("convertible", cost=Convertible(COST), rho=0.3),
    right("nothing masked", cost=np.ma.array(COST), rho=0.3),
    refused("masked", "cost", r"cost\.filled", cost=np.ma.array(COST, mask=COST > 1)),
    right("prior list, weights strided", prior=[0.5, 0.3, 0.2], sample_weight=UNIFORM[::-1]),
    refused("prior masked", "prior", "filled", prior=np.ma.array([1, 0, 0], mask=[0, 0, 1])),
]

DISTRIBUTIONS = [
    right("prior with a zero", prior=[0.5, 0.5, 0], rho=0.3),
    right("prior one-hot", prior=[0, 1, 0]),
    refused(
        "a row's only class has no share",
        "cost",
        "lower rho",
        cost=INF_ROW_BUT_ONE,
        prior=[0, 0.5, 0.5],
    ),
    right("prior one-hot, rho, hard", prior=[0, 1, 0], kl_weight=inf, rho=0.3),
    right("prior one-hot, graph", prior=[0, 1, 0], graph=RING, rho=0.3),
    right("prior 1e-12", prior=[1e-12, 1 - 2e-12, 1e-12], rho=0.3),
    right("prior 1e-300", prior=[1e-300, 1, 0]),
    right("prior 1e-300, rho, hard", prior=[1e-300, 1, 0], kl_weight=inf, rho=0.3),
    right("prior off by 1e-8", prior=[0.5, 0.3, 0.2 + 1e-8]),
    *each_refused("prior", "0 or above, got nan", [[nan, 0.5, 0.5]]),
    *each_refused("prior", "0 or above, got inf", [[inf, 0, 0]]),
    *each_refused("prior", "0 or above, got -0.5", [[1.5, -0.5, 0]]),
    *each_refused("prior", r"prior / prior\.sum\(\)", [[0.5, 0.3, 0.3], [5, 3, 2]]),
    *each_refused("prior", "must sum to 1, got 0", [[0, 0, 0]]),
    *each_refused("prior", r"shape \(3,\)", [[0.5, 0.5], 1 / 3, [[0.5, 0.25, 0.25]]]),
    *each_refused("prior", "real numbers", ["uniform", [1j, 0, 0]], TypeError),
    right("weights with a zero", sample_weight=WITHOUT_ROW),
    right("weights one-hot", sample_weight=np.eye(SAMPLES)[3], rho=0.3),
    right("weights one-hot, graph", sample_weight=np.eye(SAMPLES)[3], graph=RING, rho=0.3),
    right("weights 1e-300", sample_weight=changed(WITHOUT_ROW, 2, 1e-300), rho=0.3),
    right("weights off by 1e-8", sample_weight=UNIFORM + 1e-8 / SAMPLES),
    *(
        refused(f"weights {name}", "sample_weight", fix, sample_weight=weight)
        for name, weight, fix in (
            ("NaN", changed(UNIFORM, 0, nan), "0 or above, got nan"),
            ("inf", changed(UNIFORM, 0, inf), "0 or above, got inf"),
            ("negative", changed(UNIFORM, 0, -0.1), "0 or above, got -0.1"),
            ("ones", np.ones(SAMPLES), r"sample_weight / sample_weight\.sum\(\)"),
            ("short", UNIFORM[1:], r"shape \(12,\)"),
            ("column", UNIFORM[:, None], r"shape \(12,\)"),
        )
    ),
]

STRENGTHS = [
    *each_refused("rho", r"\(0, 1\]", [0, -0.1, 1.1, 1 + 1e-8, nan, inf, -inf]),
    *each_refused("rho", "number", ["0.3", None, 0.3j], TypeError),
    *each_refused("rho", "number", [[0.3, 0.5]]),
    right("rho=1+1e-12", graph=RING, rho=1 + 1e-12),
    right("rho=1-1e-12", rho=1 - 1e-12),
    right("rho=1-1e-12, hard", rho=1 - 1e-12, kl_weight=inf),
    right("rho=1-1e-16, graph", graph=RING, rho=1 - 1e-16),
    right("rho=1e-9", rho=1e-9, tol=1e-12),
    ends("rho=1e-9, hard, graph", graph=RING, rho=1e-9, kl_weight=inf, tol=1e-12),
    right("rho=1e-300", rho=1e-300),
    right("rho of shape (1,)", rho=np.array([0.3])),
    *each_refused("epsilon", "above 0", [0, -0.1, inf, nan]),
    *each_refused("epsilon", "1e-100", [1e-200]),
    *each_refused("epsilon", "number", ["0.1", None, 1j], TypeError),
    *each_refused("epsilon", "number", [[0.1, 0.1]]),
    right("epsilon 1e-3 of the range", epsilon=1e-3 * RANGE, rho=0.3),
    right("epsilon 1e-3 of the range float32", F4, cost=F4(COST), epsilon=1e-3 * RANGE, rho=0.3),
    right("epsilon 1e-3 of the range, graph", graph=RING, epsilon=1e-3 * RANGE, rho=0.3),
    right("epsilon 1e-5 of the range, hard", epsilon=1e-5 * RANGE, rho=0.3, kl_weight=inf),
    ends("epsilon 1e-12", epsilon=1e-12, rho=0.3, max_passes=500),
    ends("epsilon 1e-100, graph", graph=RING, epsilon=1e-100, rho=0.3, max_passes=500),
    right("epsilon 1e12, graph", graph=RING, epsilon=1e12, rho=0.3),
    right("epsilon 1e100", epsilon=1e100, rho=0.3),
    *each_refused("kl_weight", "above 0", [0, -1, nan, -inf, [1, nan, 1], [1, -1, inf]]),
    *each_refused("kl_weight", "1e-100", [1e-200]),
    *each_refused("kl_weight", r"one number per class, shape \(3,\)", [[1, 2], [[1, 2, 3]]]),
    *each_refused("kl_weight", "real numbers", ["hard", None, 1j], TypeError),
    right("kl_weight inf", kl_weight=inf, rho=0.3),
    right("kl_weight of classes", kl_weight=[0.1, 1, 10], graph=RING, rho=0.3),
    right("kl_weight mixed", kl_weight=[1, inf, 3], rho=0.3),
    right("kl_weight mixed, rho=1", kl_weight=[inf, inf, 1]),
    right("kl_weight 1e-4", kl_weight=1e-4, rho=0.3),
    right("kl_weight 1e-100, graph", kl_weight=1e-100, graph=RING, rho=0.3),
    right("kl_weight 1e12", kl_weight=1e12, rho=0.3),
    right("kl_weight 1e12, graph", kl_weight=1e12, graph=RING, rho=0.3),
    right("kl_weight 1e-8, 1e12 and inf", kl_weight=[1e-8, 1e12, inf], rho=0.3),
    ends("kl_weight 1e300", kl_weight=1e300, rho=0.3),
    *each_refused("semantic_weight", "0 or above", [-1, nan, inf]),
    *each_refused("semantic_weight", "number", ["big", 1j], TypeError),
    *each_refused("semantic_weight", "number", [[1, 2]]),
    refused("semantic_weight, no graph", "semantic_weight", "pass graph=", semantic_weight=3),
    right("semantic_weight 0, no graph", semantic_weight=0),
    right("semantic_weight 0", graph=RING, semantic_weight=0, rho=0.3),
    right("semantic_weight 1e-12", graph=RING, semantic_weight=1e-12, rho=0.3),
    ends("semantic_weight 1e3", graph=RING, semantic_weight=1e3, rho=0.3),
    ends("semantic_weight 1e6", graph=RING, semantic_weight=1e6, rho=0.3, max_passes=500),
    ends("semantic_weight 1e30", graph=RING, semantic_weight=1e30, rho=0.3, max_passes=500),
    refused(
        "semantic_weight 1e100 float32",
        "semantic_weight",
        "float64|divide",
        cost=F4(COST),
        graph=RING,
        semantic_weight=1e100,
    ),
    ends(
        "everything at its limit",
        cost=COST / COST.max() * 1e100,
        graph=RING,
        rho=0.3,
        epsilon=1e-100,
        kl_weight=1e100,
        semantic_weight=1e100,
        max_passes=500,
    ),
]

GRAPHS = [
    *(
        right(f"graph {name}", graph=graph, rho=0.3)
        for name, graph in (
            ("dense", DENSE),
            ("csc", RING.tocsc()),
            ("coo", RING.tocoo()),
            ("matrix", sparse.csr_matrix(RING)),
            ("pair", (NEIGHBOURS, CLOSENESS)),
            ("pair of lists", (NEIGHBOURS.tolist(), CLOSENESS.tolist())),
            ("pair, unsorted", (NEIGHBOURS[:, ::-1], CLOSENESS[:, ::-1])),
            ("pair, repeated", (NEIGHBOURS[:, [0, 0]], CLOSENESS)),
            ("pair, unsigned indices", (NEIGHBOURS.astype(np.uint8), CLOSENESS)),
            ("pair, integer weights", (NEIGHBOURS, np.ones(NEIGHBOURS.shape, int))),
            ("pair, no neighbours", (NEIGHBOURS[:, :0], CLOSENESS[:, :0])),
            ("asymmetric", sparse.csr_array(np.triu(DENSE))),
            ("negative", -RING),
            ("isolated nodes", changed(changed(DENSE, slice(3), 0), (ROWS, slice(3)), 0)),
            ("no edges", sparse.csr_array((SAMPLES, SAMPLES))),
            ("zeros", np.zeros((SAMPLES, SAMPLES))),
            ("diagonal", DENSE + np.eye(SAMPLES)),
            ("duplicates", sparse.coo_array((np.ones(3), ([0, 0, 1], [1, 1, 0])), DENSE.shape)),
            ("integer", sparse.csr_array(DENSE > 0).astype(int)),
            ("bool", DENSE > 0),
            ("float16", DENSE.astype("f2")),
            ("float32", RING.astype("f4")),
            ("byte-swapped", DENSE.astype(">f8")),
            ("weights 1e-300", RING * 1e-300),
        )
    ),
    right("graph for float32", F4, cost=F4(COST), graph=RING, rho=0.3),
    *(
        refused(f"graph {name}", "graph", fix, graph=graph)
        for name, graph, fix in (
            ("too small", RING[:5, :5], r"\(12, 12\) .*graph\[ids\]\[:, ids\]"),
            ("rectangular", DENSE[:, :5], r"\(12, 12\)"),
            ("1-D", DENSE[0], r"\(12, 12\)"),
            ("number", 3.0, r"\(12, 12\)"),
            ("NaN", changed(DENSE, (0, 1), nan), "remove those edges"),
            ("NaN, sparse", sparse.csr_array(changed(DENSE, (0, 1), nan)), "remove those edges"),
            ("inf", changed(DENSE, (0, 1), inf), "remove those edges"),
            ("pair, NaN", (NEIGHBOURS, CLOSENESS * nan), "remove those edges"),
            ("weights 1e300", RING * 1e300, "divide|above"),
            ("masked", np.ma.array(DENSE, mask=DENSE == 0), "filled"),
            ("pair in a list", [NEIGHBOURS, CLOSENESS], r"\(indices, weights\)"),
            ("empty tuple", (), r"\(indices, weights\)"),
            ("triple", (NEIGHBOURS, CLOSENESS, CLOSENESS), r"\(indices, weights\)"),
            ("pair, indices above", (NEIGHBOURS + 1, CLOSENESS), "rows of the cost"),
            ("pair, indices below", (NEIGHBOURS - 1, CLOSENESS), "rows of the cost"),
            ("pair, weights short", (NEIGHBOURS, CLOSENESS[:, :1]), "one shape"),
            ("pair, both short", (NEIGHBOURS[:5], CLOSENESS[:5]), "N = 12"),
            ("pair, 1-D", (NEIGHBOURS[:, 0], CLOSENESS[:, 0]), "one shape"),
        )
    ),
    *(
        refused(f"graph {name}", "graph", fix, TypeError, graph=graph)
        for name, graph, fix in (
            ("complex", RING * 1j, "real numbers"),
            ("pair, complex", (NEIGHBOURS, CLOSENESS * 1j), "real numbers"),
            ("object", DENSE.astype(object), "real numbers"),
            ("name", "knn", "real numbers"),
            ("pair, no weights", (NEIGHBOURS, None), "real numbers"),
            ("pair, float indices", (NEIGHBOURS.astype(float), CLOSENESS), "integer"),
            ("pair, bool indices", (NEIGHBOURS > 3, CLOSENESS), "integer"),
        )
    ),
    refused("graph 1e39 float32", "graph", "divide|above", cost=F4(COST), graph=RING * 1e39),
]

OPTIONS = [
    *each_refused("tol", "above 0", [0, -1e-6, nan, inf]),
    *each_refused("tol", "number", ["1e-6", None, 1j], TypeError),
    *each_refused("tol", "number", [[1e-6, 1e-6]]),
    *each_refused("max_steps", "at least 1", [0, -1, 1.5, nan, inf]),
    *each_refused("max_steps", "number", ["many", None], TypeError),
    *each_refused("max_passes", "at least 1", [0, nan]),
    *each_refused("slack_entropy", "True or False", [None, 1, "no", 0.5], TypeError),
    *each_refused("on_failure", "'warn'", ["warm", None]),
    *each_refused("backend", "'numpy'", ["nunpy", None]),
    *each_refused("callback", "callable|function", [3], TypeError),
    *each_refused("init", "returned by solve", ["warm", ...], TypeError),
    *each_refused("init", "4 prices", [[[0.1]], [0.1, 0.2, 0.3]]),
    *each_refused("init", "finite", [[0, nan, 0, 0], [0, 0, 0, inf], [1e308, 1e308, 0, 0]]),
    right("init prices", graph=RING, rho=0.3, init=[0.1, -0.2, 0.3, -inf]),
    refused("init, other classes", "init", "leave it out", init=solution(cost=COST[:, :2])),
    right("init, other samples", graph=RING, rho=0.3, init=solution(cost=COST[:7])),
    right("init from rho=1", rho=0.3, init=solution()),
    right("init from rho=1, graph", graph=RING, rho=0.3, init=solution(graph=RING)),
    right("init from rho<1 to 1, hard", kl_weight=inf, init=solution(rho=0.1)),
    right("init, closed classes", graph=RING, init=solution(prior=[0, 1, 0])),
    right("init, classes to close", cost=INF_COLUMN, graph=RING, rho=0.3, init=solution(rho=0.3)),
    right("init, mass on inf", cost=np.where(COST < 0.1, inf, COST), graph=RING, init=solution()),
    right("init, other unit", init=solution(), **in_unit(1e6)),
    right("init, other dtype", F4, cost=F4(COST), graph=RING, rho=0.3, init=solution(graph=RING)),
    right("init far away", rho=0.3, init=solution(cost=-1e3 * COST)),
    ends("tol below rounding", graph=RING, rho=0.3, tol=1e-300),
    ends("tol below rounding float32", F4, cost=F4(COST), rho=0.3, tol=1e-12),
    ends("max_steps=1", graph=RING, rho=0.3, max_steps=1),
    ends("max_passes=1", graph=RING, rho=0.3, max_passes=1),
]

HARD_SIZES = [
    right("feasible", cost=TWO_IN_CLASS_0, kl_weight=inf, rho=0.3),
    right("soft", cost=TWO_IN_CLASS_0),
    ends("just feasible", cost=TWO_IN_CLASS_0, kl_weight=inf, rho=0.5),
    never("infeasible", cost=TWO_IN_CLASS_0, kl_weight=inf),
    never("infeasible, rho", cost=TWO_IN_CLASS_0, kl_weight=inf, rho=0.9, max_passes=300),
    never("just infeasible", cost=TWO_IN_CLASS_0, kl_weight=inf, rho=0.505, max_passes=300),
    never("infeasible, graph", cost=TWO_IN_CLASS_0, kl_weight=inf, graph=RING, max_passes=300),
    never("infeasible float32", F4, cost=F4(TWO_IN_CLASS_0), kl_weight=inf, max_passes=300),
    never("forced", cost=[[0, inf], [inf, 0], [inf, 0]], kl_weight=inf, max_passes=300),
]

CASES = VALUES + SHAPES + FORMS + DISTRIBUTIONS + STRENGTHS + GRAPHS + OPTIONS + HARD_SIZES


# The laws

MOST_SWEEPS = 20_000


def posed(arguments):
    """The problem that the arguments pose, worked out from the documentation in plain NumPy."""
    if arguments.get("logits") is not None:
        cost = -log_softmax(np.asarray(arguments["logits"], np.float64), axis=1)
    else:
        cost = np.asarray(arguments["cost"], np.float64)
    samples, classes = cost.shape
    prior = np.asarray(arguments.get("prior", np.full(classes, 1 / classes)), np.float64)
    weight = np.asarray(arguments.get("sample_weight", np.full(samples, 1 / samples)), np.float64)
    graph = arguments.get("graph")
    strength = arguments.get("semantic_weight", 0.0 if graph is None else 0.2 * samples)
    epsilon = arguments.get("epsilon", 0.1)
    kl_weight = np.asarray(arguments.get("kl_weight", 1.0), float)
    weight = weight / weight.sum()
    return SimpleNamespace(
        cost=cost,
        w=None if graph is None or not strength else symmetric(graph, samples),
        rho=min(float(np.asarray(arguments.get("rho", 1.0)).reshape(())), 1.0),
        epsilon=epsilon,
        kl_weight=np.broadcast_to(np.where(kl_weight < 1e15 * epsilon, kl_weight, inf), classes),
        semantic_weight=strength,
        prior=prior / prior.sum(),
        weight=weight,
        open=(prior > 0) & np.isfinite(cost[weight > 0]).any(axis=0),
        tol=arguments.get("tol", 1e-6),
        max_steps=arguments.get("max_steps", 200),
        max_passes=arguments.get("max_passes", 2000),
    )


def symmetric(graph, samples):
    if isinstance(graph, tuple):
        dense = np.zeros((samples, samples))
        np.add.at(dense, (np.arange(samples)[:, None], np.asarray(graph[0])), np.asarray(graph[1]))
    else:
        dense = graph.toarray() if sparse.issparse(graph) else np.asarray(graph)
    return (dense.astype(float) + dense.T.astype(float)) / 2


def divergence(mass, target):
    """KL(mass || target) by entry, without cancellation where they agree."""
    excess = (mass - target) / np.where(target > 0, target, 1)
    series = excess**2 * (1 / 2 - excess / 6 + excess**2 / 12)
    exact = xlog1py(1 + excess, excess) - excess
    return np.where(target > 0, target * np.where(abs(excess) < 1e-3, series, exact), 0.0)


def terms(problem, plan, cost):
    """Every term of the objective of a plan for a linear cost."""
    soft = np.isfinite(problem.kl_weight)
    slack = (problem.weight - plan.sum(axis=1)).clip(min=0)
    sizes = divergence(plan.sum(axis=0), problem.rho * problem.prior)
    return np.array(
        [
            (cost[plan > 0] * plan[plan > 0]).sum(),
            (problem.kl_weight[soft] * sizes[soft]).sum(),
            problem.epsilon * xlogy(plan, plan).sum(),
            problem.epsilon * xlogy(slack, slack).sum(),
        ]
    )


def log_shares(problem, cost, prices):
    """Log of the row-wise softmax of ``(prices - [cost, 0]) / epsilon``, and the row maxima."""
    exponent = prices - np.column_stack([cost, np.zeros(len(cost))])
    top = exponent.max(axis=1)
    top[~np.isfinite(top)] = 0.0  # a forbidden sample without weight
    exponent = (exponent - top[:, None]) / problem.epsilon
    return exponent - np.log(np.exp(exponent).sum(axis=1))[:, None], top


def dual_value(problem, cost, prices, log_share):
    """A lower bound of the problem with a linear cost, by weak duality, whatever the prices."""
    open_, inverse = np.isfinite(prices), np.append(1 / problem.kl_weight, 0.0)
    target = np.append(problem.rho * problem.prior, 1 - problem.rho)
    g, r = prices[open_], inverse[open_]
    worth = np.where(r > 0, -np.expm1(-g * r) / np.where(r > 0, r, 1), g)
    soft = ~open_[:-1] & np.isfinite(problem.kl_weight)
    closed = (problem.kl_weight[soft] * target[:-1][soft]).sum()
    # Row i adds -epsilon lse = cost - price + epsilon log share, whichever column is looked at.
    rows = np.flatnonzero(problem.weight > 0)
    best = log_share[rows].argmax(axis=1)
    lse = (prices - np.column_stack([cost, np.zeros(len(cost))]))[rows, best]
    lse = lse - problem.epsilon * log_share[rows, best]
    weight = problem.weight[rows]
    return target[open_] @ worth + closed + weight @ (problem.epsilon * np.log(weight) - lse)


def gap_to_dual(problem, cost, prices, primal, enough):
    """Distance of a value to the best dual value that plain scaling finds, until it is enough."""
    open_, inverse = np.isfinite(prices), np.append(1 / problem.kl_weight, 0.0)
    log_target = np.log(np.append(problem.rho * problem.prior, 1 - problem.rho)[open_])
    gap = np.inf
    for sweep in range(MOST_SWEEPS):
        log_share, _ = log_shares(problem, cost, prices)
        if sweep % 100 == 0:
            gap = min(gap, primal - dual_value(problem, cost, prices, log_share))
            if gap <= enough:
                break
        log_mass = (log_share + np.log(problem.weight)[:, None])[:, open_]
        top = log_mass.max(axis=0)
        log_mass = top + np.log(np.exp(log_mass - top).sum(axis=0))
        step = log_target - log_mass + prices[open_] / problem.epsilon
        prices = np.full_like(prices, -inf)
        prices[open_] = step / (inverse[open_] + 1 / problem.epsilon)
    return gap


def check_any_plan(problem, solution, dtype):
    """What holds for every plan that is returned, converged or not."""
    plan, prices = solution.plan, solution.prices
    unit = float(np.finfo(dtype).eps)
    assert isinstance(plan, np.ndarray)
    assert plan.shape == problem.cost.shape
    assert plan.dtype == dtype
    assert np.isfinite(plan).all()
    assert (plan >= 0).all()
    assert not plan[np.isinf(problem.cost)].any()
    assert (plan.sum(axis=1, dtype=float) <= problem.weight * (1 + 8 * unit) + 1e-9).all()
    assert not plan[:, ~problem.open].any()
    assert (np.isfinite(prices) == np.append(problem.open, problem.rho < 1)).all()
    assert not np.isnan(prices).any()
    assert solution.labels.dtype == np.int64
    assert (plan[np.arange(len(plan)), solution.labels] == plan.max(axis=1)).all()
    assert ((solution.labels >= 0) & (solution.labels < plan.shape[1])).all()
    assert ((solution.confidence >= 0) & (solution.confidence <= 1)).all()
    assert np.isfinite(solution.objective.terms).all()
    certificate = solution.certificate
    mass = plan.sum(dtype=float)
    assert certificate.mass_error == pytest.approx(abs(mass - problem.rho), abs=8 * unit)
    for measured in (certificate.row_violation, certificate.column_residual, certificate.inner_gap):
        assert measured >= 0
        assert np.isfinite(measured)
    assert certificate.stationarity_gap >= 0
    assert np.isfinite(certificate.objective_history).all()
    assert certificate.row_passes >= 1


def check_right(problem, solution, dtype):
    """The laws of a solution: feasible, within tol, and optimal by conditions recomputed here."""
    check_any_plan(problem, solution, dtype)
    tolerance, unit = TOLERANCES["numpy", np.dtype(dtype).name], float(np.finfo(dtype).eps)
    plan, prices = solution.plan.astype(float), solution.prices
    certificate, objective = solution.certificate, solution.objective
    tol = problem.tol + 8 * unit * problem.rho
    assert solution.status is ssot.Status.CONVERGED
    assert abs(plan.sum() - problem.rho) <= tol
    assert certificate.mass_error <= tol
    assert certificate.column_residual <= tol
    assert certificate.row_violation <= 8 * unit
    assert certificate.stationarity_gap <= max(problem.tol, 128 * unit * objective.scale)

    demand = problem.rho * problem.prior[problem.open]
    demand = demand * np.exp(-prices[:-1][problem.open] / problem.kl_weight[problem.open])
    assert abs(plan.sum(axis=0)[problem.open] - demand).sum() <= tol

    semantic = 0.0
    cost = problem.cost
    if problem.w is not None:
        product = problem.semantic_weight * (problem.w @ plan)
        semantic, cost = -(product * plan).sum(), cost - 2 * product
    value = terms(problem, plan, problem.cost)
    assert objective.total == pytest.approx(
        value.sum() + semantic, abs=tolerance.value * max(1, objective.scale)
    )
    if problem.w is None:
        # Karush-Kuhn-Tucker conditions, as far as rounding of the largest exponent lets them show.
        log_share, top = log_shares(problem, cost, prices)
        expected = problem.weight[:, None] * np.nan_to_num(np.exp(log_share[:, :-1]))
        rounding = 8 * np.finfo(float).eps * abs(top) / problem.epsilon
        error = abs(plan - expected).sum(axis=1)
        assert (error <= problem.weight * (tolerance.plan + rounding) + 1e-300).all()
    else:
        # Weak duality bounds the gap of the problem linearised at the plan.
        surrogate = terms(problem, plan, cost)
        enough = 10 * max(problem.tol, 128 * unit * abs(surrogate).sum())
        assert gap_to_dual(problem, cost, prices, surrogate.sum(), enough) <= enough


def check_end(problem, solution, expected, failures):
    """Either a right plan, or one warning that gives the reason, and numbers that show it."""
    if solution.status.is_success:
        assert expected.may_converge
        assert failures == []
        check_right(problem, solution, expected.dtype)
        return
    check_any_plan(problem, solution, expected.dtype)
    assert len(failures) == 1
    assert solution.status.advice in failures[0]
    certificate = solution.certificate
    shown = (certificate.stationarity_gap, certificate.column_residual, certificate.mass_error)
    assert max(shown) > problem.tol
    if solution.status is ssot.Status.MAX_PASSES:
        assert certificate.row_passes >= problem.max_passes
    if solution.status is ssot.Status.MAX_STEPS:
        assert certificate.outer_steps >= problem.max_steps


def contents(value):
    """Everything of an argument that a solve could spoil."""
    if sparse.issparse(value):
        names = ("data", "indices", "indptr", "coords")
        return [value.format, *(contents(getattr(value, name, None)) for name in names)]
    if isinstance(value, np.ndarray):
        return [type(value), value.dtype, value.shape, value.strides, value.tobytes()]
    if isinstance(value, (tuple, list)):
        return [contents(part) for part in value]
    if isinstance(value, Convertible):
        return contents(value.array)
    if isinstance(value, ssot.Solution):
        return [contents(value.plan), contents(value.prices)]
    return pickle.dumps(value)


@pytest.mark.parametrize("floating_point_errors", ["warn", "raise"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_hostile_input(case, floating_point_errors, capsys):
    arguments, expected = case.arguments(), case.expected
    before = {name: contents(value) for name, value in arguments.items()}
    with (
        np.errstate(all=floating_point_errors, under="ignore"),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        state = np.geterr()
        if isinstance(expected, Refused):
            with pytest.raises(expected.error) as refusal:
                ssot.solve(**arguments)
        else:
            solution = ssot.solve(**arguments)
        assert np.geterr() == state
    assert {name: contents(value) for name, value in arguments.items()} == before
    assert capsys.readouterr() == ("", "")
    failures = [str(w.message) for w in caught if w.category is ssot.ConvergenceWarning]
    assert [w for w in caught if str(w.message) not in failures] == []
    if isinstance(expected, Refused):
        assert refusal.match(rf"(?s)\b{expected.argument}\b")
        assert refusal.match(f"(?s){expected.fix}")
        raised_in = Path(refusal.traceback[-1].path)
        assert raised_in.is_relative_to(Path(ssot.__file__).parent), "raised inside a dependency"
        return
    with np.errstate(all="ignore"):
        problem = posed(arguments)
        if isinstance(expected, Right):
            assert failures == []
            check_right(problem, solution, expected.dtype)
        else:
            check_end(problem, solution, expected, failures)


def test_sparse_indices_out_of_range_are_refused():
    """SciPy believes the indices of a CSR array and would write out of bounds: run apart."""
    script = """if True:
        import numpy, ssot
        from scipy import sparse
        parts = (numpy.ones(4), numpy.array([1, 99, 0, 0]), numpy.arange(5))
        graph = sparse.csr_array(parts, shape=(4, 4))
        try:
            ssot.solve(numpy.eye(4), graph, rho=0.5)
        except ValueError as error:
            print(error)
    """
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "graph must be a well-formed sparse array: " in run.stdout
    assert "must be < 4" in run.stdout
