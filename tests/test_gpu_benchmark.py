"""The benchmark of CUDA devices runs on the CPU, and what it compares with takes tensors too."""

import json
import math

import numpy as np
import pytest
from problems import random_graph

torch = pytest.importorskip("torch", reason="measures the Torch backend")
pytest.importorskip("sklearn", reason="the graph of its semantic problem needs scikit-learn")

from benchmarks import device, gpu, measure, published  # noqa: E402
from benchmarks.hard_problems import good_head_cost  # noqa: E402
from ssot import Problem, solve_problem  # noqa: E402

SAME_PLAN = 1e-5
"""L1 distance of converged plans: the published rule stops at a residual of 1e-6."""


def numbers(value):
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, float):
        yield value


def records(section):
    return [record for group in section["groups"] for record in group["records"]]


@pytest.mark.slow
def test_a_quick_run_on_the_cpu(tmp_path):
    path = tmp_path / "report" / "gpu.json"
    gpu.main(["--quick", "--device", "cpu", "--repeats", "1", "--output", str(path)])
    results = json.loads(path.read_text(encoding="utf-8"))
    sections = results["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    for section in sections.values():
        if not section["left_out"]:  # Numba may be missing
            assert section["groups"]
            assert section["title"] in path.with_suffix(".md").read_text(encoding="utf-8")
        for record in records(section):
            assert not record["note"]
            assert len(record["seconds"]) == 1
    # Infinity and NaN would be text.
    assert all(math.isfinite(number) for number in numbers(results))
    assert not {"inf", "nan"} & set(json.dumps(results).replace('"', " ").split())

    ours, theirs, fewest = records(sections["sp2ot"])
    assert ours["converged"]
    assert max(ours["relative_gap"], fewest["measured_relative_gap"]) <= 1e-4
    assert theirs["measured_relative_gap"] <= 1e-4
    for record in records(sections["p2ot"]) + records(sections["host"]):
        assert record["converged"] or record["competitor"].endswith("as published")
        assert record["distance"] <= SAME_PLAN or not record["converged"]
    for record in records(sections["batch"]) + records(sections["backward"]):
        assert record["converged"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_measured(tmp_path):
    path = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match="no CUDA device") as caught:
        gpu.main(["--quick", "--output", str(path)])
    assert caught.value.code not in {0, None}
    assert not path.exists()


def test_who_cannot_take_part_is_left_out_with_the_reason():
    cpu = torch.device("cpu")

    def too_large():
        device.require_memory(2**60, cpu)

    contestants = [
        device.Contestant("large", too_large),
        device.Contestant("small", lambda: lambda: 3, lambda found: {"remark": str(found)}),
    ]
    setting = device.Setting(cpu, is_quick=True, repeats=2, budget=1.0)
    large, small = device.in_turns(contestants, setting)
    assert large["note"].startswith("left out: needs 1073741824.0 GiB")
    assert not large["seconds"]
    assert (len(small["seconds"]), small["remark"], small["times"]) == (2, "3", None)


def twins(dtype=np.float64, **options):
    """Return one problem in NumPy's arrays and in tensors."""
    cost, graph = good_head_cost(60, 5, dtype=dtype), random_graph(0, 60, signed=False)
    as_tensors = Problem(torch.from_numpy(cost), graph, **options)
    return Problem(cost, graph, **options), as_tensors


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{"rho": 0.3}, {"rho": 1.0}, {"rho": 0.5, "kl_weight": np.inf}])
def test_measures_of_tensors_are_those_of_arrays(dtype, options):
    arrays, tensors = twins(dtype, semantic_weight=0.0, **options)
    plan = solve_problem(arrays, tol=1e-3, on_failure="return").plan
    moved = plan * np.linspace(0.9, 1.1, len(plan), dtype=dtype)[:, None]
    for each in (plan, moved):
        expected = measure.residual(arrays, each)
        found = measure.residual(tensors, torch.from_numpy(each))
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
    found = measure.distance(torch.from_numpy(moved), torch.from_numpy(plan))
    assert found == pytest.approx(measure.distance(moved, plan), rel=1e-12)
    assert measure.residual(tensors, torch.from_numpy(plan * np.nan)) == np.inf


@pytest.mark.parametrize("semantic_weight", [0.0, 6.0])
def test_a_problem_of_tensors_on_the_host_is_the_same(semantic_weight):
    arrays, tensors = twins(rho=0.4, semantic_weight=semantic_weight)
    found = measure.on_host(tensors)
    assert measure.on_host(arrays) is arrays
    assert isinstance(found.cost, np.ndarray)
    assert found.semantic_weight == semantic_weight
    assert abs(found.graph - arrays.graph).max() == 0
    plan = solve_problem(arrays, tol=1e-8, on_failure="return").plan
    assert measure.objective(found, plan) == pytest.approx(measure.objective(arrays, plan))


def test_the_published_algorithms_take_tensors():
    arrays, tensors = (
        published.majorise_minimise(
            published.LinearProblem(problem), published.dense_graph(problem), 6.0
        )
        for problem in twins(rho=0.4, semantic_weight=6.0)
    )
    assert arrays.sweeps == tensors.sweeps
    torch.testing.assert_close(tensors.plan, arrays.plan, rtol=0, atol=0)
