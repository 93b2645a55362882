"""Problems whose rows are spread over processes: the same answers, and no silent hang."""

import math
import os
import pickle
import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

pytest.importorskip("torch", reason="process groups need Torch")

from distributed_cases import FAR_CASES, TOL, cases
from tolerances import TOLERANCES

import ssot

HERE = Path(__file__).parent
SIZES = (1, 2, 4)
PATIENCE = 600  # seconds, for a machine that does other things too
CASES = cases()


def environment(**variables):
    """Return the variables of a process of the tests, one thread for each."""
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def start(size, script, *arguments):
    """Start a script on so many processes of this machine with torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(size), str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output_of(process):
    """Wait for a process, and return what it has printed; leave none behind."""
    with process:
        try:
            return process.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="module", params=SIZES)
def found(request, tmp_path_factory):
    """What all ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    process = start(request.param, "distributed_worker.py", folder)
    output = output_of(process)
    assert process.returncode == 0, output
    return [pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in range(request.param)]


def whole(name, **options):
    """Return the solution of this process alone."""
    case = CASES[name]
    return ssot.solve(**{**case.arguments(slice(None)), **options})


def assert_same(answers, expected, value_tol, plan_tol=TOLERANCES["numpy", "float64"].plan):
    """Hold what the ranks found against each other, and against the solution of one process."""
    first = answers[0]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer["prices"], first["prices"])
        for name in ("status", "certificate", "objective"):
            assert answer[name] == first[name]
    assert first["status"] == expected.status.name
    is_open = np.isfinite(expected.prices)
    np.testing.assert_array_equal(np.isfinite(first["prices"]), is_open)
    np.testing.assert_allclose(
        first["prices"][is_open], np.asarray(expected.prices)[is_open], rtol=0, atol=value_tol
    )
    assert abs(first["objective"].total - expected.objective.total) <= value_tol
    plan = np.concatenate([answer["plan"] for answer in answers])
    assert np.abs(plan - np.asarray(expected.plan)).sum() <= plan_tol
    confidence = np.concatenate([answer["confidence"] for answer in answers])
    np.testing.assert_allclose(confidence, expected.confidence, rtol=0, atol=10 * plan_tol)


@pytest.mark.parametrize("name", CASES)
def test_ranks_find_what_one_process_finds(found, name):
    answers = [rank["cases"][name] for rank in found]
    assert_same(answers, whole(name), CASES[name].value_tol)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("linear_")])
def test_known_answers(found, name):
    with np.load(HERE / "data" / f"{name}.npz") as case:
        plan = np.concatenate([rank["cases"][name]["plan"] for rank in found])
        assert np.abs(plan - case["plan"]).sum() <= TOLERANCES["numpy", "float64"].plan


@pytest.mark.parametrize("name", CASES)
def test_certificates_hold_for_all_rows(found, name):
    certificate = found[0]["cases"][name]["certificate"]
    expected = whole(name).certificate
    assert certificate.stationarity_gap <= max(TOL, 1e-12)
    assert certificate.column_residual <= TOL
    assert certificate.mass_error <= TOL
    if CASES[name].graph is None:
        assert certificate.provably_convex
    else:
        assert certificate.provably_convex <= expected.provably_convex


def test_every_form_of_the_graph(found):
    expected = whole("graph, numpy")
    for form in found[0]["forms"]:
        assert_same([rank["forms"][form] for rank in found], expected, 1e-8)


@pytest.mark.parametrize("how", ["", ", streamed"])
@pytest.mark.parametrize("name", FAR_CASES)
def test_directions_found_far_from_the_host(found, name, how):
    answers = [rank["far"][name + how] for rank in found]
    assert_same(answers, whole(name, backend="torch"), CASES[name].value_tol)


def test_ranks_on_devices_of_two_kinds(found):
    answers = [rank["far"]["the first alone is near"] for rank in found]
    name = "many classes, torch"
    assert_same(answers, whole(name), CASES[name].value_tol)


@pytest.mark.parametrize("name", ["weighted", "graph, numpy", "masked", "many classes, numpy"])
def test_streamed_rows(found, name):
    assert_same([rank["streamed"][name] for rank in found], whole(name), 1e-8)
    assert found[0]["streamed"]["seen"] > 4
    assert [rank["streamed"]["seen"] for rank in found[1:]] == [0] * (len(found) - 1)


def test_batches(found):
    for index, scale in enumerate((1.0, 0.5, 2.0)):
        answers = [rank["batch"][index] for rank in found]
        cost = scale * CASES["graph, numpy"].cost
        assert_same(answers, whole("graph, numpy", cost=cost), 1e-8)


def test_single_precision(found):
    tolerance = TOLERANCES["numpy", "float32"]
    cost = CASES["many rows"].cost.astype(np.float32)
    expected = whole("many rows", cost=cost, tol=tolerance.solve)
    answers = [rank["single"] for rank in found]
    # A price may be off by the residual over the smallest column's response.
    assert_same(answers, expected, 1e-4, tolerance.plan)


def test_warm_starts_need_next_to_nothing(found):
    cold = found[0]["cases"]["graph, numpy"]["certificate"].row_passes
    for index, most in enumerate((3, cold)):
        answers = [rank["warm"][index] for rank in found]
        assert answers[0]["certificate"].row_passes <= most
        assert_same(answers, whole("graph, numpy"), 1e-8)


def test_one_rank_stops_all(found):
    assert {rank["stopped"]["status"] for rank in found} == {"STOPPED"}
    assert [rank["stopped"]["seen"] for rank in found] == [0] * (len(found) - 1) + [2]


def test_labels_of_a_data_parallel_training(found):
    """A step labels the batches of all ranks as one process labels them together."""
    if len(found) == 1:
        for targets, ids, shares in found[0]["labels"]:
            assert len(ids) <= 24
            np.testing.assert_allclose(shares.sum(axis=1), 1.0)
            assert 0 < targets.sum() <= 24
        return
    alone = _labels_of_one_process()
    together = np.concatenate([rank["labels"][0][0] for rank in found], axis=1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-8)
    for step in range(3):
        shares = [rank["labels"][step][2] for rank in found]
        for other in shares[1:]:
            np.testing.assert_array_equal(shares[0], other)


def _labels_of_one_process():
    """Return the targets of the first step, when no sample can be in two banks."""
    import torch

    from ssot.training import AdaptivePrior, PseudoLabeler

    rng = np.random.default_rng(1)
    graph = ssot.knn_graph(rng.normal(size=(60, 3)), 5)
    labeler = PseudoLabeler(
        4, capacity=24, graph=graph, prior=AdaptivePrior(5, heads=2, momentum=0.5), tol=TOL
    )
    ids = rng.permutation(60)[:12]
    logits = rng.normal(size=(2, 12, 5))
    return labeler(torch.from_numpy(logits), torch.from_numpy(ids)).targets.numpy()


@pytest.mark.parametrize("name", ["linear_0", "hard sizes"])
def test_what_a_linear_solve_sends(found, name):
    """A pass hands over K + 1 masses, the dual sum and a triangle of curvature, in one exchange.

    A Newton direction is one more, of a number for each price that may change.
    """
    if len(found) == 1:
        return
    answer = found[0]["cases"][name]
    columns = CASES[name].cost.shape[1] + 1
    mark, sums, measures, spread = 1, columns + 1, columns + 5, 2
    passes = answer["certificate"].row_passes - 1  # the last one writes the plan
    numbers = passes * (columns * (columns + 1) // 2 + sums + mark)
    numbers += sums + mark + measures + mark + spread + mark
    assert answer["exchanges"]["all_reduce"] == passes + 3
    assert answer["payload"]["all_reduce"] == 8 * numbers
    free = np.isfinite(answer["prices"]).sum() - np.isinf(CASES[name].options["kl_weight"])
    directions = answer["exchanges"]["broadcast"]
    assert directions >= passes - 1
    assert answer["payload"]["broadcast"] == 8 * directions * free


def test_what_a_solve_with_a_graph_sends(found):
    """A step fetches the rows of the neighbours on other ranks once, a shortened one twice."""
    if len(found) == 1:
        return
    case = CASES["graph, numpy"]
    w = (case.graph + case.graph.T).tocsr()
    bounds, classes = case.bounds(len(found)), case.cost.shape[1]
    needed = 0
    for first, last in pairwise(bounds):
        near = np.unique(w[first:last].indices)
        needed += ((near < first) | (near >= last)).sum()
    answers = [rank["cases"]["graph, numpy"] for rank in found]
    # Four times the graph itself is exchanged: ends, starts and weights of edges, and requests.
    fetches = answers[0]["exchanges"]["all_to_all"] - 2 * 4
    steps = answers[0]["certificate"].outer_steps
    assert steps <= fetches <= 2 * steps + 2
    edges = sum(case.graph[i:j].nnz - case.graph[i:j, i:j].nnz for i, j in pairwise(bounds))
    lengths = 4 * len(found) * (len(found) - 1)
    setup = 3 * edges + needed + lengths
    sent = sum(answer["payload"]["all_to_all"] for answer in answers)
    assert sent == 8 * (fetches * needed * classes + setup)


@pytest.mark.parametrize(
    ("mistake", "kind", "message"),
    [
        ("nan", "ValueError", "must not contain NaN"),
        ("rho", "ValueError", "rho must be the same on all ranks"),
        ("semantic weight", "ValueError", "semantic_weight must be the same on all ranks"),
        ("tol", "ValueError", "max_passes must be the same on all ranks"),
        ("tol of a problem", "ValueError", "max_passes must be the same on all ranks"),
        ("bad tol", "ValueError", "tol must be a finite number above 0"),
        ("bad tol of a problem", "ValueError", "tol must be a finite number above 0"),
        ("on_failure of a problem", "ValueError", "on_failure must be one of"),
        ("on_failure of a plan", "ValueError", "on_failure must be one of"),
        ("batch", "ValueError", "leading dimension of cost and graph must be the same"),
        ("no graph", "ValueError", "graph must be the same on all ranks"),
        ("graph of own rows", "ValueError", "samples of all"),
        ("edge weight", "ValueError", "finite weights"),
        ("weight", "ValueError", "sample_weight must sum to 1"),
        ("init on one", "ValueError", "init must be given on all ranks"),
        ("other prices", "RuntimeError", "different prices"),
        ("backend", "ValueError", "backend must be one of"),
        ("group", "TypeError", "group must be a torch.distributed.ProcessGroup"),
    ],
)
def test_a_mistake_of_one_rank_is_told_to_all(found, mistake, kind, message):
    needs_no_other = ("nan", "bad tol", "on_failure", "edge weight", "backend", "group")
    if len(found) == 1 and not mistake.startswith(needs_no_other):
        return
    for rank, answer in enumerate(found):
        error, text = answer["refused"][mistake]
        assert (error, message in text) == (kind, True), (rank, text)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("ramp", "no such thing"),
        ("weight", "no such thing"),
        ("graph", "got graphs of 60,.* 48 samples"),
        ("no graph", "got graphs of 60,.* None samples"),
        ("batch", "at least one sample"),
    ],
)
def test_a_mistake_in_a_labeler_of_one_rank_is_told_to_all(found, mistake, message):
    if len(found) == 1 and "graph" in mistake:
        return
    for answer in found:
        assert re.search(message, answer["unlabelled"][mistake][1])


def test_a_reading_that_fails_on_one_rank_ends_all(found):
    errors = [rank["refused"]["reading"] for rank in found]
    assert errors[-1] == ("OSError", "the disk is gone")
    for error, text in errors[:-1]:
        assert error == "RuntimeError"
        assert "the disk is gone" in text


def test_an_exception_in_one_callback_ends_all(found):
    errors = [rank["refused"]["callback"] for rank in found]
    assert errors[-1][0] == "KeyError"
    for error, text in errors[:-1]:
        assert error == "RuntimeError"
        assert "no such thing" in text


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_lost_rank_raises_on_the_others(how, tmp_path):
    timeout, size = 5, 3
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HERE / "distributed_loss.py"), how, str(timeout), str(tmp_path)]
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    processes = [
        subprocess.Popen(command, env=environment(RANK=str(rank), **ranks)) for rank in range(size)
    ]
    try:
        for process in processes[:-1]:
            assert process.wait(timeout=PATIENCE) != 0
        assert (processes[-1].poll() is None) == (how == "hangs")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert_raised_in_time(tmp_path, size - 1, timeout)


def test_torchrun_ends_a_rank_that_hangs(tmp_path):
    timeout = 5
    process = start(3, "distributed_loss.py", "hangs", timeout, tmp_path)
    output = output_of(process)
    assert process.returncode != 0, output
    assert_raised_in_time(tmp_path, 2, timeout)
    left = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in left if str(tmp_path) in command]


def assert_raised_in_time(folder, ranks, timeout):
    """Read the reports of the ranks that were not lost: seconds, and the error."""
    reports = [path.read_text() for path in folder.glob("*.txt")]
    assert len(reports) == ranks
    for report in reports:
        assert float(report.split()[0]) < timeout + 10, report


def test_the_example_trains_on_two_processes():
    pytest.importorskip("sklearn", reason="the example clusters scikit-learn's digits")
    process = start(2, "../examples/distributed/data_parallel.py")
    output = output_of(process)
    assert process.returncode == 0, output
    assert "CONVERGED" in output
    assert float(re.search(r"NMI ([\d.]+)", output).group(1)) > 0.6


def test_a_rank_without_mass_for_some_class_makes_no_pass_twice(monkeypatch):
    """On one rank a pass is made again with all that it left out; on others there may be mass."""
    pytest.importorskip("numba", reason="the other kernels leave nothing out")
    from ssot.kernels import compiled, numba
    from ssot.kernels.protocol import Bound

    passes, run = [], numba.run
    monkeypatch.setattr(
        numba, "run", lambda *a, **options: (passes.append(a[0]), run(*a, **options))
    )
    cost = np.random.default_rng(0).gumbel(size=(200, 150))
    cost[:, 75:] += 100.0
    for size, expected in ((1, 2), (2, 1)):
        bound = Bound(cost, np.full(200, 1 / 400), None, 0.0, 0.0, ranks=SimpleNamespace(size=size))
        passes.clear()
        numba.NumbaKernel(bound).row_pass(None, np.zeros(151), 0.1, None)
        assert passes.count(compiled.large_entries) == expected


def test_gradients_are_refused():
    torch = pytest.importorskip("torch")
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        cost = torch.rand(4, 3, requires_grad=True)
        with pytest.raises(ValueError, match="cost must not require gradients"):
            ssot.solve(cost, group=dist.group.WORLD)
        with torch.no_grad():
            alone, grouped = ssot.solve(cost), ssot.solve(cost, group=dist.group.WORLD)
        assert torch.equal(alone.plan, grouped.plan)
        assert math.isclose(alone.objective.total, grouped.objective.total)
    finally:
        dist.destroy_process_group()
