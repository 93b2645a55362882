"""Several problems at once: each is solved as if it were alone."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from problems import distance, moved, random_graph, run

import ssot
from ssot import Status, lockstep
from ssot.arrays import HOST
from ssot.batch import SolutionBatch

PROBLEMS, SAMPLES, CLASSES = 3, 30, 4
RNG = np.random.default_rng(0)
COST = RNG.random((PROBLEMS, SAMPLES, CLASSES)).astype(np.float32) * [[[1.0]], [[3.0]], [[0.3]]]
GRAPHS = [random_graph(seed, SAMPLES) for seed in range(PROBLEMS)]

EACH_ITS_OWN = {
    "rho": np.array([0.2, 0.5, 1.0]),
    "epsilon": np.array([0.3, 0.05, 0.1]),
    "kl_weight": np.array([[1.0, 2.0, np.inf, 0.3], [np.inf] * 4, [0.5] * 4]),
    "prior": RNG.dirichlet(np.full(CLASSES, 5.0), size=PROBLEMS),
    "sample_weight": RNG.dirichlet(np.full(SAMPLES, 5.0), size=PROBLEMS),
}
FOR_ALL = {
    "rho": 0.4,
    "epsilon": 0.2,
    "kl_weight": np.array([1.0, np.inf, 0.5, 2.0]),
    "prior": np.array([0.4, 0.3, 0.2, 0.1]),
    "sample_weight": RNG.dirichlet(np.full(SAMPLES, 5.0)),
}
STRENGTHS = np.array([0.0, 0.1, 0.3])


def assert_as_if_alone(setting, batch, problems, **shared):
    """Hold the solutions of a batch against those of its problems, given one by one."""
    assert isinstance(batch, SolutionBatch)
    for together, own in zip(batch, problems, strict=True):
        alone = run(setting, **(shared | own))
        assert together.status is alone.status
        if setting.backend == "torch":  # its sums are in another order
            assert distance(together.plan, alone.plan) <= setting.tolerance.plan
            assert (
                abs(float(together.objective) - float(alone.objective)) <= setting.tolerance.value
            )
            np.testing.assert_allclose(together.prices, alone.prices, atol=setting.tolerance.plan)
        else:
            np.testing.assert_array_equal(together.plan, alone.plan)
            np.testing.assert_array_equal(together.prices, alone.prices)
            assert together.certificate == alone.certificate
            assert together.objective == alone.objective


def split(**stacked):
    """Return the arguments of each problem."""
    return [{name: value[i] for name, value in stacked.items()} for i in range(PROBLEMS)]


# Arguments


@pytest.mark.parametrize("name", EACH_ITS_OWN)
def test_an_argument_may_differ_within_the_batch(setting, name):
    shared = {key: value for key, value in FOR_ALL.items() if key != name}
    value = EACH_ITS_OWN[name]
    batch = run(setting, COST, **shared, **{name: value})
    assert_as_if_alone(setting, batch, split(cost=COST, **{name: value}), **shared)


def test_all_arguments_may_differ_within_the_batch(setting):
    batch = run(setting, COST, GRAPHS, semantic_weight=STRENGTHS, **EACH_ITS_OWN)
    problems = split(cost=COST, graph=GRAPHS, semantic_weight=STRENGTHS, **EACH_ITS_OWN)
    assert_as_if_alone(setting, batch, problems)


def test_all_arguments_may_be_shared_but_the_cost(setting):
    batch = run(setting, COST, GRAPHS[0], semantic_weight=0.3, **FOR_ALL)
    shared = {"graph": GRAPHS[0], "semantic_weight": 0.3, **FOR_ALL}
    assert_as_if_alone(setting, batch, split(cost=COST), **shared)


def test_a_strength_for_all_classes_of_each_problem(setting):
    strengths = np.array([[0.5], [np.inf], [2.0]])
    batch = run(setting, COST, kl_weight=strengths)
    assert_as_if_alone(setting, batch, split(cost=COST, kl_weight=strengths[:, 0]))


def test_lists_are_as_good_as_arrays(setting):
    batch = run(setting, COST, **{name: value.tolist() for name, value in EACH_ITS_OWN.items()})
    assert_as_if_alone(setting, batch, split(cost=COST, **EACH_ITS_OWN))


def test_logits(setting):
    logits = -COST.astype(setting.dtype)
    logits[1, ::3, 2] = -np.inf
    batch = run(setting, None, logits=logits, rho=0.5)
    assert_as_if_alone(setting, batch, split(logits=logits), cost=None, rho=0.5)


def test_a_batch_of_one(setting):
    batch = run(setting, COST[:1], rho=np.array([0.3]))
    assert_as_if_alone(setting, batch, [{"cost": COST[0], "rho": 0.3}])
    assert batch.plan.shape == (1, SAMPLES, CLASSES)


def neighbours(graph, k=6):
    """Return neighbours and weights, the missing ones of weight 0."""
    dense = graph.toarray()
    indices = np.argsort(dense == 0, axis=1, kind="stable")[:, :k]
    return indices, np.take_along_axis(dense, indices, axis=1)


PAIRS = [neighbours(graph) for graph in GRAPHS]
GRAPH_FORMS = {
    "list of SciPy's": (GRAPHS, GRAPHS),
    "list of dense ones": ([graph.toarray() for graph in GRAPHS], GRAPHS),
    "list of pairs": (PAIRS, PAIRS),
    "dense": (np.stack([graph.toarray() for graph in GRAPHS]), GRAPHS),
    "pair": (tuple(map(np.stack, zip(*PAIRS, strict=True))), PAIRS),
    "shared": (GRAPHS[1], [GRAPHS[1]] * PROBLEMS),
    "shared, dense": (GRAPHS[1].toarray(), [GRAPHS[1]] * PROBLEMS),
    "shared, a pair": (PAIRS[1], [PAIRS[1]] * PROBLEMS),
    "shared neighbours": ((PAIRS[0][0], np.stack([PAIRS[0][1] * i for i in (1, 2, 3)])), None),
}


@pytest.mark.parametrize("name", GRAPH_FORMS)
def test_graphs(setting, name):
    given, own = GRAPH_FORMS[name]
    own = [(given[0], weights) for weights in given[1]] if own is None else own
    options = {"semantic_weight": 0.3, "rho": 0.5}
    batch = run(setting, COST, given, **options)
    assert_as_if_alone(setting, batch, split(cost=COST, graph=own), **options)


@pytest.mark.parametrize("form", ["shared", "shared, dense", "shared, a pair"])
def test_a_shared_graph_is_prepared_once(setting, form):
    cost = moved(COST.astype(setting.dtype), setting.place)
    graph = moved(GRAPH_FORMS[form][0], setting.place)
    batch = ssot.solve(cost, graph, backend=setting.backend)
    assert all(solution.problem.graph is batch[0].problem.graph for solution in batch)


# Starts


INITS = {
    "a batch": lambda cold: cold,
    "a list": list,
    "a tuple": tuple,
    "one solution": lambda cold: cold[1],
    "prices": lambda cold: np.asarray(cold.prices),
    "a list of prices": lambda cold: [solution.prices for solution in cold],
    "prices of one": lambda cold: cold[1].prices,
}


@pytest.mark.parametrize("name", INITS)
def test_starts(setting, name):
    options = {"rho": 0.5, "kl_weight": np.inf, "semantic_weight": 0.3}
    cold = run(setting, COST, GRAPHS, **options)
    init = INITS[name](cold)
    batch = run(setting, COST, GRAPHS, init=init, **options)
    is_for_all = name in ("one solution", "prices of one")
    inits = [init] * PROBLEMS if is_for_all else init
    assert_as_if_alone(setting, batch, split(cost=COST, graph=GRAPHS, init=inits), **options)
    for before, after in zip(cold, batch, strict=True):
        assert is_for_all or after.certificate.row_passes <= before.certificate.row_passes
    if name in ("a batch", "a list", "a tuple"):
        assert all(solution.certificate.outer_steps == 0 for solution in batch)


# Each on its own


def test_each_problem_has_its_own_status(setting):
    options = {"semantic_weight": [0.0, 40.0, 0.0], "rho": 0.5, "max_steps": 1}
    batch = run(setting, COST, GRAPHS[0], on_failure="return", **options)
    assert batch.status == (Status.CONVERGED, Status.MAX_STEPS, Status.CONVERGED)
    assert [certificate.outer_steps for certificate in batch.certificate] == [0, 1, 0]
    assert batch.objective[1].semantic < 0 == batch.objective[0].semantic


@pytest.fixture
def calls(monkeypatch):
    """The calls that are answered together, each as (operation, kernels)."""
    seen = []
    original = lockstep._call_together

    def watched(together):
        seen.append((together[0].operation, [call.kernel for call in together]))
        return original(together)

    monkeypatch.setattr(lockstep, "_call_together", watched)
    return seen


def calls_by_kernel(calls):
    counts = {}
    for operation, kernels in calls:
        for kernel in kernels:
            counts.setdefault(id(kernel), Counter())[operation] += 1
    return list(counts.values())


def test_what_has_converged_costs_nothing_more(setting, calls):
    strengths = np.array([0.0, 10.0, 0.5])
    options = {"rho": 0.5, "on_failure": "return"}
    batch = run(setting, COST, GRAPHS[0], semantic_weight=strengths, **options)
    together, rounds = calls_by_kernel(calls), len(calls)
    passes = [counts["row_pass"] + counts["plan"] for counts in together]
    assert passes == [certificate.row_passes for certificate in batch.certificate]
    alone = []
    for cost, strength in zip(COST, strengths, strict=True):
        calls.clear()
        run(setting, cost, GRAPHS[0], semantic_weight=strength, **options)
        alone += calls_by_kernel(calls)
    if setting.backend != "torch":
        assert together == alone
    longest, total = max(c.total() for c in alone), sum(c.total() for c in alone)
    assert longest <= rounds < total


def test_an_easy_problem_beside_hard_ones(setting, calls):
    """Cold solves of many rows begin with samples, which they do not leave at the same time."""
    cost = np.random.default_rng(1).random((PROBLEMS, 3000, CLASSES)) * [[[1.0]], [[30.0]], [[4.0]]]
    cost[1, :, 0] += 5.0
    own = {"rho": np.array([0.9, 0.1, 1.0]), "epsilon": np.array([0.5, 0.1, 0.2])}
    batch = run(setting, cost, kl_weight=np.inf, **own)
    sizes = {tuple(kernel.samples for kernel in kernels) for _, kernels in calls}
    assert all(len(set(together)) == 1 for together in sizes)
    assert min(sizes)[0] < max(sizes)[0] == 3000
    assert_as_if_alone(setting, batch, split(cost=cost, **own), kl_weight=np.inf)


def test_a_callback_is_told_the_problem_and_stops_it_alone(setting):
    seen = []

    def callback(progress):
        seen.append((progress.problem, progress.step))
        return progress.problem == 1 and progress.step == 1

    options = {"semantic_weight": 10.0, "rho": 0.5}
    batch = run(setting, COST, GRAPHS[0], callback=callback, **options)
    assert batch.status == (Status.CONVERGED, Status.STOPPED, Status.CONVERGED)
    for index, solution in enumerate(batch):
        steps = {step for problem, step in seen if problem == index}
        assert steps == set(range(solution.certificate.outer_steps + 1))
    expected = run(setting, COST[2], GRAPHS[0], **options)
    assert distance(batch[2].plan, expected.plan) <= setting.tolerance.plan


# The result


def test_a_batch_is_a_sequence_of_solutions(setting):
    batch = run(setting, COST, rho=0.5)
    assert isinstance(batch, Sequence)
    assert len(batch) == PROBLEMS
    assert list(batch) == [batch[0], batch[1], batch[2]]
    assert all(isinstance(solution, ssot.Solution) for solution in batch)
    assert batch[-1] is batch[2]
    assert batch[1] in batch
    assert batch.index(batch[1]) == 1
    assert list(reversed(batch)) == [batch[2], batch[1], batch[0]]
    some = batch[1:]
    assert isinstance(some, SolutionBatch)
    assert list(some) == [batch[1], batch[2]]
    np.testing.assert_array_equal(some.plan, batch.plan[1:])
    np.testing.assert_array_equal(batch[::-1].plan, batch.plan[::-1])
    for index in (PROBLEMS, -PROBLEMS - 1):
        with pytest.raises(IndexError):
            batch[index]


STACKED = {
    "plan": (PROBLEMS, SAMPLES, CLASSES),
    "prices": (PROBLEMS, CLASSES + 1),
    "labels": (PROBLEMS, SAMPLES),
    "confidence": (PROBLEMS, SAMPLES),
}


def test_arrays_are_stacked(setting):
    batch = run(setting, COST, rho=0.5)
    for name, shape in STACKED.items():
        stacked = getattr(batch, name)
        assert stacked.shape == shape, name
        for part, solution in zip(stacked, batch, strict=True):
            np.testing.assert_array_equal(part, getattr(solution, name))
    assert batch.plan.dtype == setting.dtype
    for name in ("status", "certificate", "objective"):
        assert getattr(batch, name) == tuple(getattr(solution, name) for solution in batch), name


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_tensors_come_out_as_tensors(backend, place):
    torch = pytest.importorskip("torch", reason="tensors need Torch")
    given = {"cost": COST, "graph": [graph.toarray() for graph in GRAPHS], **EACH_ITS_OWN}
    expected = ssot.solve(**given, semantic_weight=STRENGTHS, backend="numpy", tol=1e-10)
    tensors = {name: moved(value, place) for name, value in given.items()}
    strengths = moved(STRENGTHS, place).requires_grad_()
    batch = ssot.solve(**tensors, semantic_weight=strengths, backend=backend, tol=1e-10)
    for name in STACKED:
        value = getattr(batch, name)
        assert isinstance(value, torch.Tensor), name
        assert value.device == place.device, name
        found = moved(value.detach(), HOST)
        np.testing.assert_allclose(found, getattr(expected, name), atol=1e-6, err_msg=name)


def test_the_plans_alone(setting):
    cost = moved(COST.astype(setting.dtype), setting.place)
    options = {"rho": 0.5, "backend": setting.backend}
    plan = ssot.sp2ot_plan(cost, **options)
    expected = ssot.solve(cost, **options).plan
    assert type(plan) is type(expected)
    np.testing.assert_array_equal(moved(plan, HOST), moved(expected, HOST))


def test_inputs_stay_and_need_not_be_writeable(setting):
    given = {"cost": COST.astype(setting.dtype), "graph": GRAPH_FORMS["pair"][0], **EACH_ITS_OWN}
    given = {key: tuple(v) if isinstance(v, tuple) else v.copy() for key, v in given.items()}
    arrays = [given[name] for name in given if name != "graph"] + list(given["graph"])
    for array in arrays:
        array.flags.writeable = False
    kept = [array.copy() for array in arrays]
    run(setting, **given)
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, before)
