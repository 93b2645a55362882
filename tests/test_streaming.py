"""Costs that are read block by block give what arrays give, in bounded memory."""

import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA
from hypothesis import given
from problems import (
    CONVEX_CASES,
    LINEAR_CASES,
    PROFILE,
    distance,
    distance_bound,
    linear_case,
    moved,
    random_graph,
    tightest,
)
from scipy import sparse

import ssot
from ssot import RowBlocks, Status, curvature, solve
from ssot.arrays import HOST
from ssot.streaming import cost as streaming_cost

ROWS = 7


@pytest.fixture(autouse=True)
def few_rows_are_kept(monkeypatch):
    """Have prices start from every few rows even of small problems."""
    monkeypatch.setattr(streaming_cost, "KEPT_BYTES", 400)


def run(setting, cost=None, graph=None, *, rows=ROWS, **options):
    """Solve from blocks of rows, to the tolerance of the setting and with an error on failure."""
    options = {"tol": setting.tolerance.solve, "on_failure": "raise"} | options
    name, array = ("cost", cost) if cost is not None else ("logits", options.pop("logits"))
    array = moved(np.asarray(array, setting.dtype), setting.place)
    options = {name: moved(value, setting.place) for name, value in options.items()}
    options[name] = RowBlocks(array, rows=rows)
    return solve(graph=moved(graph, setting.place), backend=setting.backend, **options)


def plan_of(solution):
    return moved(solution.plan, HOST)


def logits_of(samples, classes, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((samples, classes))
    logits[np.arange(samples), rng.integers(classes, size=samples) ** 2 // classes] += 4
    return logits.astype(dtype)


def neighbours(samples, count=4):
    indices = (np.arange(samples)[:, None] + np.arange(1, count + 1)) % samples
    return indices, np.full((samples, count), 0.1)


# Known answers


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("linear_*.npz")))
def test_stored_plans_and_prices(setting, name):
    with np.load(DATA / f"{name}.npz") as case:
        names = ("rho", "epsilon", "kl_weight", "prior", "sample_weight")
        solution = run(setting, case["cost"], **{name: case[name] for name in names})
        assert distance(plan_of(solution), case["plan"]) <= setting.tolerance.plan
        expected = case["prices"] if case["rho"] < 1 else np.append(case["prices"], -np.inf)
    prices = moved(solution.prices, HOST)
    np.testing.assert_allclose(prices, expected, rtol=0, atol=setting.tolerance.plan)


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("published_*.npz")))
def test_published_plans(setting, name):
    with np.load(DATA / f"{name}.npz") as case:
        samples = len(case["logits"])
        arrays = (case["graph_data"], case["graph_indices"], case["graph_indptr"])
        graph = sparse.csr_array(arrays, shape=(samples, samples))
        options = {each: case[each] for each in ("rho", "epsilon", "kl_weight", "semantic_weight")}
        tol = tightest(setting)
        graph = graph if setting.place == HOST else graph.toarray()
        solution = run(setting, None, graph, logits=case["logits"], tol=tol, **options)
        allowed = max(2e-6, distance_bound(tol, float(case["epsilon"]), convexity=1.0))
        assert distance(samples * plan_of(solution), case["plan_times_n"]) <= samples * allowed


@given(case=LINEAR_CASES)
@PROFILE
def test_the_answer_without_a_graph(setting, case):
    solution = run(setting, case.cost, **case.options)
    assert distance(plan_of(solution), case.plan) <= setting.tolerance.plan
    assert solution.certificate.stationarity_gap <= setting.tolerance.solve
    is_open = np.isfinite(case.prices)
    np.testing.assert_array_equal(np.isfinite(moved(solution.prices, HOST)), is_open)


@given(case=CONVEX_CASES)
@PROFILE
def test_the_answer_with_a_graph(setting, case):
    tol = tightest(setting)
    graph = case.graph if setting.place == HOST else case.graph.toarray()
    solution = run(setting, case.cost, graph, tol=tol, **case.options)
    assert solution.certificate.provably_convex
    allowed = distance_bound(tol, case.options["epsilon"], case.convexity)
    assert distance(plan_of(solution), case.plan) <= allowed + setting.tolerance.plan


# The same as from memory


@pytest.mark.parametrize("options", [{}, {"kl_weight": np.inf}, {"rho": 1.0}])
@pytest.mark.parametrize("has_graph", [False, True])
@pytest.mark.parametrize("classes", [6, 140])
def test_blocks_and_arrays_agree(setting, classes, has_graph, options, monkeypatch):
    monkeypatch.setattr(streaming_cost, "KEPT_BYTES", 1 << 17)
    samples = 60 * classes
    logits = logits_of(samples, classes)
    graph = random_graph(0, samples) if has_graph and classes < 100 else None
    if has_graph and graph is None:
        graph = neighbours(samples)
    if has_graph and setting.place != HOST:
        pytest.skip("tensors want the graph as tensors")
    options = {"rho": 0.3, "logits": logits, "tol": 1e-6} | options
    if has_graph:
        options["semantic_weight"] = 0.02 * samples
    from_blocks = run(setting, None, graph, rows=samples // 3 + 1, **options)
    options["logits"] = moved(logits.astype(setting.dtype), setting.place)
    solution = solve(graph=graph, backend=setting.backend, **options)
    # A gap of tol places a plan only within its square root.
    allowed = distance_bound(1e-6, 0.1, 1.0) + setting.tolerance.plan
    assert distance(plan_of(from_blocks), plan_of(solution)) <= allowed
    assert from_blocks.objective.total == pytest.approx(solution.objective.total, abs=4e-6)
    mine, other = from_blocks.certificate, solution.certificate
    assert max(mine.column_residual, mine.mass_error, mine.stationarity_gap) <= 1e-6
    assert mine.provably_convex == other.provably_convex
    assert mine.row_passes <= other.row_passes + 8


def test_where_all_rows_are_kept_the_numbers_are_those_of_arrays(setting, monkeypatch):
    monkeypatch.setattr(streaming_cost, "KEPT_BYTES", 1 << 20)
    logits = logits_of(300, 6)
    from_blocks = run(setting, logits=logits, rho=0.3)
    array = moved(logits.astype(setting.dtype), setting.place)
    solution = solve(logits=array, rho=0.3, backend=setting.backend, tol=setting.tolerance.solve)
    allowed = {"rtol": 0, "atol": setting.tolerance.value}
    np.testing.assert_allclose(
        moved(from_blocks.prices, HOST), moved(solution.prices, HOST), **allowed
    )
    np.testing.assert_allclose(from_blocks.objective.terms, solution.objective.terms, **allowed)


@pytest.mark.parametrize("most", [300, 3000])
def test_curvature_from_some_of_the_large_probabilities(monkeypatch, most):
    monkeypatch.setattr(streaming_cost, "KEPT_BYTES", 1 << 17)
    monkeypatch.setattr(curvature, "MOST_LARGE_ENTRIES", most)
    logits = logits_of(3000, 140)
    found = solve(logits=RowBlocks(logits, rows=400), rho=0.5)
    expected = solve(logits=logits, rho=0.5)
    assert found.status is Status.CONVERGED
    assert found.objective.total == pytest.approx(expected.objective.total, abs=2e-6)


def test_a_class_that_no_kept_row_may_join():
    logits = logits_of(200, 5)
    cost = -logits
    cost[:, 4] = np.inf
    cost[[51, 117], 4] = 0.1
    options = {"rho": 0.4, "prior": [0.25, 0.25, 0.25, 0.245, 0.005], "kl_weight": np.inf}
    expected = solve(cost, **options)
    found = solve(RowBlocks(cost, rows=33), **options)
    assert found.status is Status.CONVERGED
    assert distance(found.plan, expected.plan) <= 1e-4
    np.testing.assert_array_equal(found.problem.reachable, expected.problem.reachable)


# What can be read


class Dataset:
    """Slices and a shape, as a dataset of h5py or an array of Zarr has them, and nothing else."""

    def __init__(self, array):
        self.shape = array.shape
        self._array = array

    def __getitem__(self, rows):
        return self._array[rows].copy()

    def __setitem__(self, rows, values):
        self._array[rows] = values


class Loader:
    """Blocks of uneven heights, again and again."""

    def __init__(self, array):
        self.array = array

    def __iter__(self):
        return iter(np.split(self.array, [3, 3, 40, 41]))


def sources(array, folder):
    np.save(folder / "cost.npy", array)
    stored = np.load(folder / "cost.npy", mmap_mode="r")
    return {
        "memory map": RowBlocks(stored, rows=ROWS),
        "dataset": RowBlocks(Dataset(array), rows=ROWS),
        "function": RowBlocks(array.shape, lambda start, stop: array[start:stop], rows=ROWS),
        "loader": RowBlocks(Loader(array)),
        "list": RowBlocks([array[:50], array[50:]]),
        "nested lists": RowBlocks([array[:50].tolist(), array[50:].tolist()]),
        "one block": RowBlocks(array),
    }


def test_every_source(tmp_path):
    cost = -logits_of(80, 4)
    expected = solve(cost, rho=0.5)
    for name, source in sources(cost, tmp_path).items():
        solution = solve(source, rho=0.5)
        assert distance(solution.plan, expected.plan) < 1e-6, name
        assert solution.problem.cost.shape == cost.shape
        np.testing.assert_array_equal(solution.labels, expected.labels)


def test_reads_are_counted():
    reads = []
    logits = logits_of(80, 4)

    def read(start, stop):
        reads.append(start)
        return logits[start:stop]

    source = RowBlocks((80, 4), read, rows=20)
    solution = solve(logits=source, rho=0.5)
    full = reads.count(20)
    assert source.reads == full
    assert full <= solution.certificate.row_passes + 1
    _ = solution.labels, solution.confidence
    assert source.reads == full + 1
    assert repr(source) == f"RowBlocks(of shape (80, 4), reads={full + 1})"


def test_forbidden_pairs_take_one_reading_more():
    cost = -logits_of(80, 4)
    cost[5, 1] = np.inf
    source = RowBlocks(cost, rows=20)
    solution = solve(source, rho=0.5)
    assert source.reads <= solution.certificate.row_passes + 2


def test_features_and_a_head():
    torch = pytest.importorskip("torch", reason="the head is Torch's")
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(90, 5, generator=generator)
    head = torch.nn.Linear(5, 3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 5, generator=generator))
    source = RowBlocks((90, 3), lambda start, stop: head(features[start:stop]), rows=40)
    with pytest.raises(ValueError, match="logits must not require gradients"):
        solve(logits=source, rho=0.5)
    assert source.reads == 0
    with torch.no_grad():
        solution = solve(logits=source, rho=0.5)
        expected = solve(logits=head(features), rho=0.5)
    assert isinstance(solution.plan, torch.Tensor)
    assert solution.plan.dtype == torch.float32
    torch.testing.assert_close(solution.plan, expected.plan, rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.labels, expected.labels)
    assert solution.dtype == torch.float32
    weight = torch.full((90,), 1 / 90, requires_grad=True)
    with pytest.raises(ValueError, match="sample_weight must not require gradients"):
        solve(logits=RowBlocks(head(features).detach()), rho=0.5, sample_weight=weight)
    assert torch.is_grad_enabled()


def test_half_precision_is_computed_in_float32():
    logits = logits_of(60, 4).astype(np.float16)
    solution = solve(logits=RowBlocks(logits, rows=ROWS), rho=0.5)
    assert solution.plan.dtype == np.float32


# What comes out


@pytest.mark.parametrize("has_graph", [False, True])
def test_rows_are_delivered_in_blocks(tmp_path, has_graph):
    logits = logits_of(70, 4)
    logits[5, :2] = -np.inf
    weight = np.ones(70)
    weight[[3, 11]] = 0
    options = {"rho": 0.4, "sample_weight": weight / weight.sum()}
    graph = neighbours(70) if has_graph else None
    expected = solve(None, graph, logits=logits, **options)
    source = RowBlocks(logits, rows=20, scratch=tmp_path)
    solution = solve(None, graph, logits=source, **options)
    blocks = list(solution.blocks())
    assert [block.rows for block in blocks] == [slice(i, min(i + 20, 70)) for i in (0, 20, 40, 60)]
    for block in blocks:
        np.testing.assert_array_equal(block.plan, solution.plan[block.rows])
        np.testing.assert_array_equal(block.labels, solution.labels[block.rows])
        np.testing.assert_array_equal(block.confidence, solution.confidence[block.rows])
    np.testing.assert_array_equal(solution.labels, expected.labels)
    np.testing.assert_allclose(solution.confidence, expected.confidence, atol=2e-3)
    np.testing.assert_array_equal(
        solution.labels[[3, 11]], solution.predict(logits=logits)[[3, 11]]
    )
    whole = list(expected.blocks())
    assert [block.rows for block in whole] == [slice(0, 70)]
    np.testing.assert_array_equal(whole[0].plan, expected.plan)


def test_the_plan_is_written_to_a_file(tmp_path):
    logits = logits_of(70, 4)
    solution = solve(logits=RowBlocks(logits, rows=20), rho=0.4)
    out = np.lib.format.open_memmap(tmp_path / "plan.npy", "w+", dtype=np.float64, shape=(70, 4))
    solution.write_plan(out)
    np.testing.assert_array_equal(np.load(tmp_path / "plan.npy"), solution.plan)
    dataset = Dataset(np.zeros((70, 4)))
    solve(logits=logits, rho=0.4).write_plan(dataset)
    assert distance(dataset[:], solution.plan) < 1e-6
    with pytest.raises(ValueError, match="shape of the plan"):
        solution.write_plan(np.zeros((70, 5)))
    for dtype in (int, bool, complex):
        with pytest.raises(TypeError, match="out must hold floating-point numbers, got dtype"):
            solution.write_plan(np.zeros((70, 4), dtype))
    with pytest.raises(TypeError, match="out must be an array that takes slices, got list"):
        solution.write_plan([[0.0] * 4] * 70)


def test_a_plan_is_written_to_arrays_of_either_library():
    torch = pytest.importorskip("torch", reason="one of the libraries is Torch")
    logits = logits_of(70, 4)
    for array in (logits, torch.from_numpy(logits)):
        solution = solve(logits=RowBlocks(array, rows=20), rho=0.4)
        for out in (np.zeros((70, 4)), torch.zeros(70, 4, dtype=torch.float64)):
            solution.write_plan(out)
            np.testing.assert_array_equal(np.asarray(out), np.asarray(solution.plan))
        with pytest.raises(TypeError, match=r"got dtype torch\.int64"):
            solution.write_plan(torch.zeros(70, 4, dtype=torch.int64))


def test_new_samples_are_labelled_from_blocks():
    logits = logits_of(70, 4)
    solution = solve(logits=logits, rho=0.4)
    found = solution.predict(logits=RowBlocks(logits, rows=20))
    np.testing.assert_array_equal(found, solution.predict(logits=logits))
    cost = -logits
    cost[33] = np.inf
    with pytest.raises(ValueError, match="every class in row 33"):
        solution.predict(RowBlocks(cost, rows=20))


def test_scratch_files_have_no_name(tmp_path, monkeypatch):
    seen, folders, make = [], [], tempfile.TemporaryFile

    def noted(**options):
        folders.append(options["dir"])
        return make(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    source = RowBlocks(logits_of(70, 4), rows=20, scratch=tmp_path)
    solution = solve(
        logits=source,
        graph=neighbours(70),
        rho=0.4,
        callback=lambda _: seen.append(list(tmp_path.iterdir())),
    )
    assert len(seen) > 1
    assert not any(seen)
    assert float(solution.plan.sum()) == pytest.approx(0.4, abs=1e-6)
    assert not list(tmp_path.iterdir())
    assert len(folders) >= 3
    assert set(folders) == {tmp_path}


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the disk is not asked for room")
@pytest.mark.parametrize("is_named", [False, True])
def test_a_full_disk_is_told_with_its_folder(tmp_path, monkeypatch, is_named):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    scratch = tmp_path if is_named else None
    folder = re.escape(str(scratch or tempfile.gettempdir()))
    message = rf"scratch folder {folder} cannot hold a file of 2,240 bytes .* pass RowBlocks"
    source = RowBlocks(logits_of(70, 4), rows=20, scratch=scratch)
    with pytest.raises(OSError, match=message) as caught:
        solve(logits=source, graph=neighbours(70), rho=0.4)
    assert caught.value.errno == errno.ENOSPC


# Progress


def test_progress_tells_the_prices():
    logits = logits_of(70, 4)
    told = []
    solution = solve(None, neighbours(70), logits=logits, rho=0.4, callback=told.append)
    assert len(told) == solution.certificate.outer_steps + 1
    np.testing.assert_allclose(told[-1].prices, solution.prices)
    assert told[0].prices.shape == (5,)


@pytest.mark.parametrize("has_graph", [False, True])
def test_a_stopped_solve_goes_on_from_its_prices(has_graph):
    logits = logits_of(4000, 20)
    graph = neighbours(4000) if has_graph else None
    options = {"rho": 0.3, "tol": 1e-9, "kl_weight": np.inf}
    cold, told = RowBlocks(logits, rows=900), []
    solution = solve(None, graph, logits=cold, callback=told.append, **options)
    assert solution.status is Status.CONVERGED
    assert len(told) >= 3
    passes = [progress.row_passes for progress in told]
    assert passes == sorted(passes)
    assert told[-1].objective == pytest.approx(solution.objective.total, abs=1e-6)

    saved = []

    def stop(progress):
        saved.append(progress)
        return len(saved) == len(told) // 2

    stopped = solve(None, graph, logits=RowBlocks(logits, rows=900), callback=stop, **options)
    assert stopped.status is Status.STOPPED
    assert stopped.plan.sum(axis=1).max() <= 1 / 4000 + 1e-12
    assert stopped.certificate.stationarity_gap >= 0
    assert stopped.objective.total == pytest.approx(solution.objective.total, abs=0.1)
    for init in (saved[-1].prices, stopped):
        warm = RowBlocks(logits, rows=900)
        resumed = solve(None, graph, logits=warm, init=init, **options)
        assert resumed.status is Status.CONVERGED
        assert warm.reads < cold.reads
        assert resumed.objective.total == pytest.approx(solution.objective.total, abs=1e-8)


def test_streamed_and_stored_solutions_start_each_other():
    logits = logits_of(500, 6)
    graph = neighbours(500)
    for has_graph in (False, True):
        options = {"rho": 0.3, "graph": graph if has_graph else None}
        streamed = solve(logits=RowBlocks(logits, rows=90), **options)
        stored = solve(logits=logits, **options)
        for init in (streamed, stored):
            for source in (logits, RowBlocks(logits, rows=120)):
                again = solve(logits=source, init=init, **options)
                assert again.status is Status.CONVERGED
                assert again.certificate.outer_steps == 0
                assert distance(again.plan, stored.plan) < 0.02


# What is refused


def test_generators_are_refused():
    with pytest.raises(TypeError, match="yields its blocks once; pass an object whose __iter__"):
        RowBlocks(block for block in [np.ones((3, 2))])
    with pytest.raises(TypeError, match="needs an array that can be sliced"):
        RowBlocks(3)
    with pytest.raises(TypeError, match="read must be a function"):
        RowBlocks((3, 2), 5)
    with pytest.raises(TypeError, match="needs the shape"):
        RowBlocks("ab", lambda start, stop: None)
    with pytest.raises(ValueError, match="one by one"):
        RowBlocks(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="at least one of each"):
        RowBlocks(np.ones((0, 3)))
    for rows in (0, 2.5, "2"):
        with pytest.raises(ValueError, match="rows must be a whole number of at least 1"):
            RowBlocks(np.ones((2, 3)), rows=rows)
    with pytest.raises(ValueError, match="rows must be left out"):
        RowBlocks([np.ones((2, 3))], rows=2)
    with pytest.raises(ValueError, match="scratch must be a folder"):
        RowBlocks(np.ones((2, 3)), scratch="/nowhere/at/all")


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_what_iterates_once_is_refused_as_a_generator_is(count):
    class Once:
        def __init__(self):
            self.left = iter(np.split(-logits_of(90, 4), count))

        def __iter__(self):
            return self.left

    with pytest.raises(TypeError, match="but a Once yields its blocks once"):
        solve(RowBlocks(Once()), rho=0.5)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "at least one sample"),
        ([np.ones((0, 3))], "at least one sample"),
        ([np.ones((2, 3)), np.ones((2, 4))], "same classes, 3, in all, got .* at row 2"),
        ([np.ones(3)], "blocks of shape"),
        ([np.ones((2, 3)), np.ones((2, 3), np.float32)], "one dtype in all blocks"),
        ([np.ones((2, 3)), np.full((2, 3), np.nan)], "NaN or -inf, first seen in row 2"),
        ([np.ones((2, 3)), np.full((2, 3), 1e200)], "overflow"),
    ],
)
def test_bad_blocks_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        solve(RowBlocks(blocks))


def test_other_bad_input_is_refused():
    cost = np.ones((6, 3))
    cost[4] = np.inf
    with pytest.raises(ValueError, match="1 samples, first in row 4"):
        solve(RowBlocks(cost, rows=2))
    logits = -cost
    with pytest.raises(ValueError, match="logits row 4 masks every class"):
        solve(logits=RowBlocks(logits, rows=3))
    with pytest.raises(ValueError, match="got both"):
        solve(RowBlocks(cost), logits=RowBlocks(logits))
    with pytest.raises(ValueError, match="sample_weight must have shape"):
        solve(RowBlocks(np.ones((6, 3))), sample_weight=np.ones(5) / 5)
    with pytest.raises(TypeError, match="complex"):
        solve(RowBlocks(np.ones((6, 3), complex)))
    with pytest.raises(ValueError, match="asked for rows 0 to 6 and got 2 rows"):
        solve(RowBlocks((6, 3), lambda start, stop: cost[:2]))


def test_a_source_that_changes_is_noticed():
    rng = np.random.default_rng(0)
    logits = logits_of(80, 4)

    def with_dropout(start, stop):
        return logits[start:stop] * (rng.random((stop - start, 4)) > 0.2)

    with pytest.raises(RuntimeError, match=r"row \d+ differs in reading 2; switch off dropout"):
        solve(logits=RowBlocks((80, 4), with_dropout, rows=30), rho=0.5)


@pytest.mark.parametrize(("rows", "message"), [(70, "ended after 70"), (90, "more than 80")])
def test_a_source_of_another_length_is_noticed(rows, message):
    class Growing:
        readings = 0

        def __iter__(self):
            yield logits_of(90, 4)[: 80 if self.readings == 0 else rows]
            self.readings += 1

    with pytest.raises(RuntimeError, match=message):
        solve(logits=RowBlocks(Growing()), rho=0.5)


@pytest.mark.parametrize("has_graph", [False, True])
@pytest.mark.parametrize("classes", [4, 140])
@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
def test_a_row_that_goes_wrong_ends_the_solve_at_once(setting, wrong, classes, has_graph):
    if has_graph and setting.place != HOST:
        pytest.skip("tensors want the graph as tensors")
    cost = moved(-logits_of(90, classes).astype(setting.dtype), setting.place)

    def read(start, stop):
        block = cost[start:stop] + 0
        if source.reads == 2 and stop == 60:
            block[15] = wrong  # in the middle: the first row of a block is looked at anyway
        return block

    source = RowBlocks(cost.shape, read, rows=30)
    graph = neighbours(90) if has_graph else None
    message = "the block at row 30 are not finite in reading 3; switch off dropout"
    with np.errstate(invalid="ignore"), pytest.raises(RuntimeError, match=message):
        solve(source, graph, rho=0.5, tol=setting.tolerance.solve, backend=setting.backend)
    assert source.reads == 2


def test_a_plain_memory_map_is_an_array(tmp_path):
    np.save(tmp_path / "cost.npy", -logits_of(50, 4))
    cost = np.load(tmp_path / "cost.npy", mmap_mode="r")
    solution = solve(cost, rho=0.5)
    assert not solution.problem.is_streamed
    assert type(solution.plan) is np.ndarray


def test_a_kernel_says_when_it_has_no_graph():
    from ssot.kernels import make_kernel

    case = linear_case(0)
    kernel = make_kernel(ssot.Problem(RowBlocks(case.cost, rows=ROWS)), "numpy")
    with pytest.raises(ValueError, match="needs a problem with a graph"):
        kernel.graph_product(case.plan, None)


# Memory


MEMORY = """
import sys, threading, time
import numpy as np
import ssot
from ssot.streaming import cost as streaming_cost

def anonymous():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.001)

path, samples, classes, neighbours = sys.argv[1], *map(int, sys.argv[2:])
streaming_cost.KEPT_BYTES = 1 << 20
rng = np.random.default_rng(0)
cost = np.memmap(path, np.float32, "w+", shape=(samples, classes))
for start in range(0, samples, 10_000):
    cost[start : start + 10_000] = rng.standard_normal((10_000, classes), dtype=np.float32)

def solve(cost, graph):
    source = ssot.RowBlocks(cost, rows=1 << 10)
    options = dict(rho=0.3, on_failure="raise")
    solution = ssot.solve(source, graph, semantic_weight=0.02 * len(cost) * bool(graph), **options)
    for block in solution.blocks():
        pass

def graph(samples):
    if neighbours:
        ids = (np.arange(samples)[:, None] + np.arange(1, neighbours + 1)) % samples
        return ids.astype(np.int32), np.full((samples, neighbours), 0.05, np.float32)

solve(cost[:2000], graph(2000))
whole = graph(samples)
peak = before = anonymous()
threading.Thread(target=watch, daemon=True).start()
solve(cost, whole)
print((peak - before) / (samples * classes * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="read as Linux tells it")
@pytest.mark.parametrize(("classes", "neighbours"), [(400, 0), (400, 2)])
def test_memory_stays_far_below_the_cost(tmp_path, classes, neighbours):
    arguments = [str(tmp_path / "cost"), "100000", str(classes), str(neighbours)]
    command = [sys.executable, "-c", MEMORY, *arguments]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 0.4
