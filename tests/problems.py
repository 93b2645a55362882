"""Problems made together with their solution, and the formulas to hold a plan against.

The recipe: choose prices and a cost, build the plan Q that they induce, and read off the rho and
the prior for which Q is optimal. A cost raised by ``2 semantic_weight W Q`` then makes Q a
stationary point of the problem with the graph.
"""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.optimize import brentq
from scipy.special import kl_div, logsumexp, softmax, xlogy

import ssot
from ssot.adjacency import Edges
from ssot.arrays import HOST, place_of, to_place
from ssot.batch import SolutionBatch

PROFILE = settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    # The fixture `setting` is a constant, so that examples may share it.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SEEDS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True, eq=False)
class Case:
    """A problem and a stationary point of it: the only one, if `convexity` is above 0.

    `tangent_cost` is the cost linearised at the plan, for which the plan is optimal without the
    graph. `convexity` is 1 less the semantic weight's share of `convex_threshold`.
    """

    cost: np.ndarray
    options: dict
    plan: np.ndarray
    prices: np.ndarray
    tangent_cost: np.ndarray
    graph: sparse.csr_array | None = None
    convexity: float = 1.0


def linear_case(
    seed,
    *,
    samples=30,
    classes=5,
    rho=0.5,
    epsilon=0.1,
    kl_weight=1.0,
    weights="random",
    closed=False,
    slack_entropy=True,
):
    """Return a known answer without a graph; a tuple of strengths is dealt out to the classes."""
    rng = np.random.default_rng(seed)
    cost = rng.random((samples, classes)).astype(np.float32).astype(np.float64)
    strength = np.resize(kl_weight, classes)
    weight = np.full(samples, 1 / samples) if weights == "equal" else rng.random(samples)
    if weights == "some zero":
        weight[1::3] = 0
    weight /= weight.sum()
    prices = np.append(rng.normal(scale=0.3, size=classes), -np.inf)
    if closed and classes > 1:
        prices[0] = -np.inf
    if rho < 1:
        prices[-1] = virtual_price(
            cost, prices, rho, sample_weight=weight, epsilon=epsilon, slack_entropy=slack_entropy
        )
    plan = induced_plan(cost, prices, weight, epsilon, slack_entropy)[:, :-1]
    mass, rho = plan.sum(axis=0), (plan.sum() if rho < 1 else 1.0)
    prices += balancing_shift(prices, mass, strength)
    prior = np.zeros(classes)
    is_open = np.isfinite(prices[:-1])
    prior[is_open] = mass[is_open] * np.exp(prices[:-1][is_open] / strength[is_open]) / rho
    options = {
        "rho": rho,
        "epsilon": epsilon,
        "kl_weight": strength,
        "prior": prior / prior.sum(),
        "sample_weight": weight,
        "slack_entropy": slack_entropy,
    }
    return Case(cost, options, plan, prices, cost)


def full_case(seed, share=0.5, **options):
    """Return a known answer with a graph of `share` times the strength that convexity allows."""
    base = linear_case(seed, **options)
    graph = random_graph(seed, len(base.cost))
    w = symmetrised(graph)
    names = ("sample_weight", "epsilon", "rho", "slack_entropy")
    weight = share * convex_threshold(w, **{name: base.options[name] for name in names})
    return replace(
        base,
        cost=base.cost + 2 * weight * w @ base.plan,
        graph=graph,
        options=base.options | {"semantic_weight": weight},
        convexity=1 - share,
    )


LINEAR_CASES = st.builds(
    linear_case,
    seed=SEEDS,
    samples=st.integers(1, 40),
    classes=st.integers(1, 8),
    rho=st.just(1.0) | st.floats(0.01, 0.99),
    epsilon=st.sampled_from([0.02, 0.1, 1.0]),
    kl_weight=st.sampled_from([0.1, 1.0, 20.0, np.inf, (0.3, np.inf), (np.inf, 5.0, 0.2)]),
    weights=st.sampled_from(["equal", "random", "some zero"]),
    closed=st.booleans(),
    slack_entropy=st.booleans(),
)

CONVEX_CASES = st.builds(
    full_case,
    seed=SEEDS,
    share=st.sampled_from([0.1, 0.5, 0.8]),
    samples=st.integers(2, 30),
    classes=st.integers(2, 6),
    rho=st.just(1.0) | st.floats(0.05, 0.95),
    epsilon=st.sampled_from([0.05, 0.2]),
    kl_weight=st.sampled_from([1.0, np.inf, (0.3, np.inf)]),
    weights=st.sampled_from(["equal", "random"]),
    slack_entropy=st.booleans(),
)


STATIONARY_CASES = st.builds(
    full_case,
    seed=SEEDS,
    share=st.sampled_from([3.0, 100.0]),
    samples=st.integers(2, 30),
    classes=st.integers(2, 6),
    rho=st.just(1.0) | st.floats(0.05, 0.95),
    kl_weight=st.sampled_from([1.0, np.inf, (0.3, np.inf)]),
    slack_entropy=st.booleans(),
)


def random_graph(seed, samples, signed=True):
    """Return a sparse directed graph of about four edges a sample, without a diagonal."""
    rng = np.random.default_rng([seed, samples])
    dense = rng.random((samples, samples)) * (rng.random((samples, samples)) < 4 / samples)
    dense *= rng.choice([-1, 1, 1], size=dense.shape) if signed else 1
    dense[np.arange(samples), np.arange(samples) - 1] = 1.0  # a ring, so that it has edges
    np.fill_diagonal(dense, 0.0)
    return sparse.csr_array(dense)


def strong_options(rng, samples, **options):
    """Return options for which the graph outweighs the entropy many times."""
    return {
        "rho": float(rng.choice([0.1, 0.5, 0.9, 1.0])),
        "epsilon": float(rng.choice([0.05, 0.1])),
        "kl_weight": float(rng.choice([0.3, 1.0, np.inf])),
        "slack_entropy": bool(rng.integers(2)),
        "semantic_weight": float(rng.choice([0.2, 1.0, 5.0])) * samples,
    } | options


def without_graph(options):
    return {name: value for name, value in options.items() if name != "semantic_weight"}


def run(setting, cost, graph=None, **options):
    """Solve in a backend and dtype, to its tolerance and with an error on failure.

    Where the setting has its arrays; the solution comes back with NumPy arrays.
    """
    options = {"tol": setting.tolerance.solve, "on_failure": "raise"} | options
    cost = None if cost is None else np.asarray(cost, setting.dtype)
    given = {"cost": cost, "graph": graph} | options
    given = {name: moved(value, setting.place) for name, value in given.items()}
    return moved(ssot.solve(**given, backend=setting.backend), HOST)


def run_case(setting, case, **options):
    """Solve a known answer."""
    return run(setting, case.cost, case.graph, **case.options, **options)


def moved(value, place):
    """Return arrays, and what holds arrays, in another place; all else as it is."""
    if isinstance(value, ssot.Problem):
        return _moved_problem(value, place)
    if isinstance(value, ssot.Solution):
        parts = {"problem": moved(value.problem, place), "_plan": moved(value._plan, place)}
        return value if value.problem.place == place else replace(value, **parts)
    if isinstance(value, SolutionBatch):
        return SolutionBatch(moved(value.solutions, place))
    if isinstance(value, list):
        return [moved(part, place) for part in value]
    if isinstance(value, tuple):
        parts = [moved(part, place) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    is_array = isinstance(value, np.ndarray) or place_of(value) != HOST
    return to_place(value, place) if is_array else value


def _moved_problem(problem, place):
    if problem.place == place:
        return problem
    there, graph = copy.copy(problem), problem.graph
    if graph is not None:
        graph = graph.to_scipy() if place == HOST else Edges.of(graph, place)
    parts = {name: moved(getattr(problem, name), place) for name in ("cost", "sample_weight")}
    for name, value in (parts | {"graph": graph, "place": place}).items():
        object.__setattr__(there, name, value)
    return there


def tightest(setting):
    """Return the smallest `tol` in reach; with a graph only its square root places a plan."""
    return 1e-12 if setting.dtype == np.float64 else setting.tolerance.solve


def distance(plan, other):
    """Return the L1 distance of two plans, in float64."""
    return np.abs(np.subtract(plan, other, dtype=np.float64)).sum()


def distance_bound(gap, epsilon, convexity):
    """Return how far a plan with this stationarity gap can be from the only solution, in L1.

    The semantic term bends by at most the share ``1 - convexity`` of the entropy's bend. So the
    objective exceeds its optimum by at most ``gap / convexity`` (the gap is taken along the segment
    to the solution, at the fraction `convexity`), and by at least ``convexity * epsilon`` times the
    Kullback-Leibler divergence from the solution, which is at least half the squared L1 distance.
    """
    return np.sqrt(2 * gap / epsilon) / convexity


# Formulas, in dense float64


def symmetrised(graph):
    dense = graph.toarray()
    return (dense + dense.T) / 2


def convex_threshold(w, sample_weight, epsilon, rho=1.0, slack_entropy=True):
    """Return the semantic weight up to which the problem is provably convex."""
    bend = 2 if slack_entropy or rho == 1 else 1  # of the entropy, in epsilon / max(alpha)
    return bend * epsilon / (2 * np.linalg.eigvalsh(w)[-1] * sample_weight.max())


def induced_plan(cost, prices, sample_weight, epsilon, slack_entropy=True):
    """Return the plan of K + 1 prices, the virtual cluster as its last column."""
    if not slack_entropy:
        exponent = (prices[:-1] - cost) / epsilon
        with np.errstate(divide="ignore"):
            log_asked = logsumexp(exponent, axis=1) - prices[-1] / epsilon - np.log(len(cost))
            share = np.exp(np.minimum(0, log_asked - np.log(sample_weight)))
        classes = (sample_weight * share)[:, None] * softmax(exponent, axis=1)
        return np.column_stack([classes, sample_weight * (1 - share)])
    with_virtual = np.column_stack([cost, np.zeros(len(cost))])
    return sample_weight[:, None] * softmax((prices - with_virtual) / epsilon, axis=1)


def virtual_price(cost, prices, rho, **options):
    """Return the price of the virtual cluster that leaves it a mass of ``1 - rho``."""

    def excess(price):
        tried = np.append(prices[:-1], price)
        plan = induced_plan(cost, tried, **options)
        return 1 - rho - plan[:, -1].sum()

    reach = (
        np.abs(prices[:-1][np.isfinite(prices[:-1])]).max()
        + np.ptp(cost)
        + 1
        + 40 * options["epsilon"]
    )
    return brentq(excess, -reach, reach)


def balancing_shift(prices, mass, strength):
    """Return the constant on all prices, which no row notices, that makes the prior sum to 1.

    Hard classes have the share that they get, so the soft ones must keep theirs in total. Without
    soft classes any constant will do; the finite prices get mean 0.
    """
    soft = np.isfinite(prices[:-1]) & np.isfinite(strength)
    if not soft.any():
        return -prices[np.isfinite(prices)].mean()
    log_mass, price, rate = np.log(mass[soft]), prices[:-1][soft], 1 / strength[soft]

    def excess(shift):
        return logsumexp(log_mass + (price + shift) * rate) - logsumexp(log_mass)

    return brentq(excess, -1 - price.max(), 1 - price.min(), xtol=1e-15)


def multipliers(problem, prices):
    """Return what a unit of each column's mass is worth; see `Solution.prices`."""
    premium = 0 if problem.slack_entropy else problem.epsilon * (np.log(len(problem.cost)) - 1)
    return np.append(prices[:-1], prices[-1] + premium)


def dual_value(problem, cost, prices):
    """Return the semi-dual, a lower bound of the problem with this cost and without its graph."""
    alpha, epsilon, strength = problem.sample_weight, problem.epsilon, problem.kl_weight
    with_virtual = np.column_stack([cost, np.zeros(len(cost))]).astype(np.float64)
    value = epsilon * xlogy(alpha, alpha).sum()
    if problem.slack_entropy:
        value -= epsilon * alpha @ logsumexp((prices - with_virtual) / epsilon, axis=1)
    else:  # each row's part is least at its mass
        prices = multipliers(problem, prices)
        level = epsilon * logsumexp((prices - with_virtual)[:, :-1] / epsilon, axis=1)
        with np.errstate(divide="ignore"):
            brim = prices[-1] + epsilon * (1 + np.log(alpha))
            room = -np.expm1(np.minimum(level - brim, 0) / epsilon)
        value -= alpha @ (np.maximum(level, brim) - epsilon * room)
    for price, target, lam in zip(
        prices,
        np.append(problem.rho * problem.prior, 1 - problem.rho),
        np.append(strength, np.inf),
        strict=True,
    ):
        if target > 0:
            value += target * price if np.isinf(lam) else -target * lam * np.expm1(-price / lam)
    return value


def class_divergence(problem, plan):
    """Return ``KL(plan^T 1 || rho prior)``."""
    mass = plan.sum(axis=0, dtype=np.float64)
    return kl_div(mass, problem.rho * problem.prior).sum()


def objective_terms(problem, plan):
    """Return the five terms by the formula in the documentation of `Problem`, in loops."""
    samples, classes = plan.shape
    transport = semantic = class_size = plan_entropy = slack_entropy = 0.0
    w = np.zeros((samples, samples)) if problem.graph is None else problem.graph.toarray()
    for i in range(samples):
        slack = float(problem.sample_weight[i])
        for j in range(classes):
            q = float(plan[i, j])
            slack -= q
            if q > 0:
                transport += float(problem.cost[i, j]) * q
                plan_entropy += problem.epsilon * q * math.log(q)
            semantic -= problem.semantic_weight * q * float(w[i] @ plan[:, j])
        if slack > 0 and problem.slack_entropy:
            slack_entropy += problem.epsilon * slack * math.log(slack)
    for j in range(classes):
        mass, wanted = float(plan[:, j].sum()), problem.rho * float(problem.prior[j])
        if math.isfinite(problem.kl_weight[j]):
            relative = math.log(mass / wanted) if mass > 0 else 0.0
            class_size += problem.kl_weight[j] * (mass * relative - mass + wanted)
    return transport, semantic, class_size, plan_entropy, slack_entropy


def worth_of_violation(solution, prices):
    """Return what a plan may gain by missing hard class sizes or rho, at the given prices."""
    problem, plan = solution.problem, solution.plan.astype(np.float64)
    missed = np.abs(plan.sum(axis=0) - problem.rho * problem.prior)[np.isinf(problem.kl_weight)]
    worth = multipliers(problem, prices)
    return np.abs(worth[np.isfinite(worth)]).max() * (missed.sum() + abs(plan.sum() - problem.rho))
