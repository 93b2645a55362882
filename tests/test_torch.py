"""The Torch backend: whatever Torch is set to, wherever the arrays are."""

import contextlib
import functools

import numpy as np
import pytest
from problems import distance, full_case, linear_case, moved, run_case
from tolerances import SETTINGS, TOLERANCES

import ssot
from ssot.arrays import HOST, Place
from ssot.curvature import LARGEST_DENSE

torch = pytest.importorskip("torch", reason="tensors need Torch")
from ssot.kernels import torch as backend  # noqa: E402 (Torch may be missing)

CPU = Place("torch", torch.device("cpu"))
ON_THE_CPU = [setting for setting in SETTINGS if setting.name == "torch"]

each_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["double", "single"])


def arguments_of(case, dtype, place):
    """Return what to solve a known answer with, its arrays as tensors."""
    graph = None if case.graph is None else case.graph.toarray()
    given = {"cost": case.cost.astype(dtype), "graph": graph, **case.options}
    tolerance = TOLERANCES["torch", np.dtype(dtype).name]
    given = {name: moved(value, place) for name, value in given.items()}
    return given | {"tol": tolerance.solve, "on_failure": "raise"}


CASES = {
    "few classes": functools.partial(full_case, 0, kl_weight=(1.0, np.inf)),
    "many classes": functools.partial(linear_case, 0, samples=200, classes=LARGEST_DENSE + 2),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.fixture(params=[False, True], ids=["at the host", "far from the host"])
def way(request, monkeypatch):
    """Both ways to find a Newton step."""
    monkeypatch.setattr(backend, "_is_far", lambda kernel: request.param)


# Settings of Torch


@contextlib.contextmanager
def changed(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def matmul_precision(_):
    return changed(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium")


def tf32(_):
    settings = torch.backends.cuda.matmul
    write = functools.partial(setattr, settings, "allow_tf32")
    return changed(lambda: settings.allow_tf32, write, True)


def default_dtype(dtype):
    return changed(torch.get_default_dtype, torch.set_default_dtype, dtype)


TORCH_SETTINGS = {
    "fast products": matmul_precision,
    "TF32": tf32,
    "autocast": lambda device: torch.autocast(device, dtype=torch.bfloat16),
    "half by default": lambda _: default_dtype(torch.float16),
    "double by default": lambda _: default_dtype(torch.float64),
    "another device by default": lambda _: torch.device("meta"),
    "no gradients": lambda _: torch.no_grad(),
    "inference": lambda _: torch.inference_mode(),
}


@each_dtype
@pytest.mark.parametrize("name", TORCH_SETTINGS)
@pytest.mark.usefixtures("way")
def test_no_setting_of_torch_changes_a_plan(name, dtype, place, case):
    given = arguments_of(case, dtype, place)
    arrays = {key: moved(value, HOST) for key, value in given.items()}
    expected = ssot.solve(**given, backend="torch")
    expected_arrays = ssot.solve(**arrays, backend="torch")
    with TORCH_SETTINGS[name](place.device.type):
        found = ssot.solve(**given, backend="torch")
        labels, confidence, new = found.labels, found.confidence, found.predict(given["cost"])
        from_arrays = ssot.solve(**arrays, backend="torch")
    assert found.plan.dtype == getattr(torch, np.dtype(dtype).name)
    for mine, others in [
        (found.plan, expected.plan),
        (found.prices, expected.prices),
        (labels, expected.labels),
        (confidence, expected.confidence),
        (new, expected.predict(given["cost"])),
    ]:
        assert torch.equal(mine, others)
    assert isinstance(from_arrays.plan, np.ndarray)
    np.testing.assert_array_equal(from_arrays.plan, expected_arrays.plan)
    assert found.certificate == expected.certificate


@each_dtype
@pytest.mark.usefixtures("way")
def test_memory_that_is_not_written_to_is_not_read(dtype, case):
    """Deterministic algorithms are those for which Torch fills new memory with NaN."""
    given = arguments_of(case, dtype, CPU)
    expected = ssot.solve(**given, backend="torch")
    read = torch.are_deterministic_algorithms_enabled
    with changed(read, torch.use_deterministic_algorithms, True):
        assert torch.equal(ssot.solve(**given, backend="torch").plan, expected.plan)


def test_a_solve_leaves_no_trace(place, case, capfd):
    given = arguments_of(case, np.float32, place)
    tensors = {name: value for name, value in given.items() if torch.is_tensor(value)}
    before = {name: (value.clone(), value._version) for name, value in tensors.items()}
    state = global_state()
    ssot.solve(**given, backend="torch").labels  # noqa: B018
    assert global_state() == state
    assert capfd.readouterr() == ("", "")
    for name, (value, version) in before.items():
        assert torch.equal(tensors[name], value), name
        assert tensors[name]._version == version, name
        assert tensors[name].grad is None, name


def global_state():
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        (torch.ones(1, 1) @ torch.ones(1, 1)).dtype,  # of autocast
        torch.are_deterministic_algorithms_enabled(),
        torch.initial_seed(),
        torch.get_rng_state().tolist(),
    )


# What comes out


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
    ids=["float64", "float32", "float16", "bfloat16"],
)
def test_dtypes_and_devices_stay(given, computed, place, case):
    arguments = arguments_of(case, np.float32, place) | {"tol": 1e-6}
    cost = arguments.pop("cost").to(given)
    solution = ssot.solve(cost, **arguments, backend="torch")
    assert solution.plan.dtype == solution.confidence.dtype == computed
    assert solution.prices.dtype == torch.float64
    assert solution.labels.dtype == torch.int64
    for name in ("plan", "prices", "labels", "confidence"):
        assert getattr(solution, name).device == place.device, name
    expected = ssot.solve(cost.to(computed), **arguments, backend="torch")
    assert torch.equal(solution.plan, expected.plan)


def test_inputs_that_require_gradients_give_the_same_plan(place, case):
    given = arguments_of(case, np.float32, place)
    expected = ssot.solve(**given, backend="torch")
    leaves = {
        name: value.requires_grad_()
        for name, value in given.items()
        if torch.is_tensor(value) and value.is_floating_point()
    }
    found = ssot.solve(**(given | leaves), backend="torch")
    assert torch.equal(found.plan, expected.plan)
    assert found.plan.requires_grad


@each_dtype
@pytest.mark.parametrize("name", ["numba", "numpy", "torch"])
def test_every_backend_on_the_host_takes_both_kinds(name, dtype, case):
    if name == "numba":
        pytest.importorskip("numba", reason="Numba is not installed")
    tensors = arguments_of(case, dtype, CPU)
    arrays = {key: moved(value, HOST) for key, value in tensors.items()}
    from_tensors = ssot.solve(**tensors, backend=name)
    from_arrays = ssot.solve(**arrays, backend=name)
    assert from_tensors.backend == from_arrays.backend == name
    assert isinstance(from_tensors.plan, torch.Tensor)
    assert isinstance(from_arrays.plan, np.ndarray)
    allowed = TOLERANCES[name, np.dtype(dtype).name].plan
    assert distance(from_tensors.plan.numpy(), from_arrays.plan) <= allowed
    if case.graph is None:
        assert distance(from_arrays.plan, case.plan) <= allowed


@each_dtype
def test_arrays_that_may_not_be_written_to(dtype, case):
    given = arguments_of(case, dtype, HOST)
    expected = ssot.solve(**given, backend="torch").plan
    for value in given.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    np.testing.assert_array_equal(ssot.solve(**given, backend="torch").plan, expected)


@pytest.mark.parametrize("setting", ON_THE_CPU, ids=str)
def test_a_start_from_a_solution_of_another_backend(setting, case):
    before = ssot.solve(**arguments_of(case, setting.dtype, CPU), backend="numpy")
    solution = run_case(setting, case, init=before)
    assert isinstance(solution.plan, np.ndarray)
    assert solution.certificate.outer_steps == 0
