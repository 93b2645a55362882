"""The problems that are timed, and who takes part in each.

Costs are of two kinds: a half-trained head, the stored bank of 5,120 samples and 100 classes; and a
good one, `hard_problems.good_head_cost` with seed 0, which also comes in other sizes. Every prior
and all sample weights are uniform.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from scipy.special import log_softmax

from benchmarks import competitors as who
from benchmarks import peers
from benchmarks.hard_problems import good_head_cost, good_head_logits
from ssot import Problem

SEMANTIC_DATA = Path(__file__).parent.parent / "tests" / "data" / "hard.npz"
MOVE = 0.01
"""How far one training step moves the logits, relative to their standard deviation."""

QUICK_SAMPLES, QUICK_CLASSES = 512, 20


@dataclass(frozen=True)
class Case:
    """One problem, and who is timed at it.

    Attributes
    ----------
    name : str
        For the command line.
    title : str
        What the problem is.
    make : callable
        Returns problem and competitors; ``make(True)`` those of a much smaller problem.
    accuracy : float
        The residual, for a semantic problem the stationarity gap, that all are asked for.
    has_curve : bool
        Whether to draw the residual against time.
    """

    name: str
    title: str
    make: Callable[[bool], tuple[Problem, tuple[who.Competitor, ...]]]
    accuracy: float = 1e-9
    has_curve: bool = False


def _size(samples, classes, is_quick):
    if is_quick:
        return min(samples, QUICK_SAMPLES), min(classes, QUICK_CLASSES)
    return samples, classes


def _stored():
    """Return the stored data by name, and its graph."""
    with np.load(SEMANTIC_DATA) as file:
        stored = dict(file)
    size = len(stored["logits"])
    entries = (stored["graph_data"], (stored["graph_row"], stored["graph_col"]))
    return stored, sparse.coo_array(entries, shape=(size, size)).tocsr()


def _linear(competitors, samples=5120, classes=100, dtype=np.float64, **options):
    """Return a problem without a graph, of a good head."""

    def make(is_quick):
        cost = good_head_cost(*_size(samples, classes, is_quick), dtype=dtype)
        return Problem(cost, **options), competitors

    return make


def _half_trained(competitors, dtype=np.float64, **options):
    """Return a problem without a graph, of the stored half-trained head."""

    def make(is_quick):
        logits = _stored()[0]["logits"]
        samples, classes = _size(*logits.shape, is_quick)
        cost = -log_softmax(logits[:samples, :classes].astype(dtype), axis=1)
        return Problem(cost, **options), competitors

    return make


def _warm(samples, classes, **options):
    """Return a problem one training step later, to be started from the solution before it."""

    def make(is_quick):
        logits = good_head_logits(*_size(samples, classes, is_quick), dtype=np.float32)
        step = np.random.default_rng(1).standard_normal(logits.shape, logits.dtype)
        before = Problem(logits=logits, **options)
        problem = Problem(logits=logits + np.float32(MOVE * logits.std()) * step, **options)
        return problem, (who.SSOT, who.ssot_warm(before), who.SWAV)

    return make


def _semantic(setting):
    """Return the stored bank of a half-trained head, at one of its settings (rho, weight)."""

    def make(is_quick):
        stored, graph = _stored()
        samples, _ = _size(*stored["logits"].shape, is_quick)
        problem = Problem(
            -log_softmax(stored["logits"][:samples], axis=1),
            graph[:samples, :samples],
            rho=stored["rho"][setting],
            epsilon=stored["epsilon"],
            kl_weight=stored["kl_weight"],
            semantic_weight=stored["semantic_weight"][setting],
        )
        return problem, (who.SSOT, who.PUBLISHED_SEMANTIC)

    return make


PROGRESSIVE = (who.SSOT, who.PUBLISHED_RUN_ON, who.PUBLISHED)
BALANCED = (who.SSOT, peers.POT_SINKHORN, peers.POT_SINKHORN_LOG, peers.OTT)
SEMI_RELAXED = (who.SSOT, peers.POT_UNBALANCED, peers.OTT)
PARTIAL = (who.SSOT, peers.POT_PARTIAL, peers.POT_PARTIAL_LOG, peers.POT_SINKHORN, peers.OTT)
YARDSTICK = (who.SSOT, who.SOFTMAX)

CASES = (
    Case(
        "p2ot-start",
        "P²OT, 5,120 x 100, half-trained head, epsilon 0.1, kl_weight 1, rho 0.1",
        _half_trained(PROGRESSIVE, rho=0.1),
        has_curve=True,
    ),
    Case(
        "p2ot-end",
        "P²OT, 5,120 x 100, half-trained head, epsilon 0.1, kl_weight 1, rho 0.9",
        _half_trained(PROGRESSIVE, rho=0.9),
    ),
    Case(
        "p2ot-sharp",
        "P²OT, 5,120 x 100, half-trained head, epsilon 0.01, kl_weight 1, rho 0.1",
        _half_trained(PROGRESSIVE, rho=0.1, epsilon=0.01),
    ),
    Case(
        "p2ot-good-start",
        "P²OT, 5,120 x 100, good head, epsilon 0.1, kl_weight 1, rho 0.1",
        _linear(PROGRESSIVE, rho=0.1),
    ),
    Case(
        "p2ot-good-end",
        "P²OT, 5,120 x 100, good head, epsilon 0.1, kl_weight 1, rho 0.9",
        _linear(PROGRESSIVE, rho=0.9),
    ),
    Case(
        "p2ot-thousand",
        "P²OT, 11,264 x 1,000, good head, epsilon 0.1, kl_weight 1, rho 0.1",
        _linear(PROGRESSIVE, 11264, 1000, rho=0.1),
    ),
    Case(
        "sp2ot",
        "SP²OT, 5,120 x 100, half-trained head, epsilon 0.1, kl_weight 1, rho 0.106",
        _semantic(0),
        accuracy=1e-6,
    ),
    Case(
        "balanced",
        "Balanced, 5,120 x 100, half-trained head, epsilon 0.1",
        _half_trained(BALANCED, kl_weight=np.inf),
    ),
    Case(
        "balanced-good",
        "Balanced, 5,120 x 100, good head, epsilon 0.1",
        _linear(BALANCED, kl_weight=np.inf),
    ),
    Case(
        "balanced-good-sharp",
        "Balanced, 5,120 x 100, good head, epsilon 0.05",
        _linear(BALANCED, kl_weight=np.inf, epsilon=0.05),
        has_curve=True,
    ),
    Case(
        "semi-relaxed",
        "Semi-relaxed, 5,120 x 100, half-trained head, epsilon 0.1, kl_weight 1",
        _half_trained(SEMI_RELAXED),
    ),
    Case(
        "semi-relaxed-good",
        "Semi-relaxed, 5,120 x 100, good head, epsilon 0.1, kl_weight 1",
        _linear(SEMI_RELAXED),
        has_curve=True,
    ),
    Case(
        "partial",
        "Partial with hard class sizes, 5,120 x 100, half-trained head, epsilon 0.1, rho 0.5",
        _half_trained(PARTIAL, rho=0.5, kl_weight=np.inf),
        accuracy=1e-6,
        has_curve=True,
    ),
    Case(
        "softmax",
        "P²OT in float32, 5,120 x 100, half-trained head, rho 0.1, against one softmax",
        _half_trained(YARDSTICK, dtype=np.float32, rho=0.1),
        accuracy=1e-6,
    ),
    Case(
        "softmax-large",
        "P²OT in float32, 65,536 x 1,000, good head, rho 0.1, against one softmax",
        _linear(YARDSTICK, 65536, 1000, dtype=np.float32, rho=0.1),
        accuracy=1e-6,
    ),
    Case(
        "warm",
        "P²OT in float32, 5,120 x 100, good head, rho 0.1, one training step on, against SwAV",
        _warm(5120, 100, rho=0.1),
        accuracy=1e-6,
    ),
)
