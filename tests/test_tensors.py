"""Torch tensors in, Torch tensors out, and the same numbers as for NumPy arrays."""

import numpy as np
import pytest
from tolerances import TOLERANCES

import ssot

torch = pytest.importorskip("torch", reason="tensors need Torch")

SAMPLES, CLASSES = 24, 4
COST = np.random.default_rng(0).exponential(size=(SAMPLES, CLASSES))
FEATURES = np.random.default_rng(1).normal(size=(SAMPLES, 2))
GRAPH = np.exp(-((FEATURES[:, None] - FEATURES) ** 2).sum(axis=2))
PRIOR = np.array([0.4, 0.3, 0.2, 0.1])
WEIGHT = np.random.default_rng(2).dirichlet(np.full(SAMPLES, 5.0))
KL_WEIGHT = np.array([0.5, 1.0, 2.0, np.inf])

COMPUTED_IN = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.int64: torch.float64,
}

each_dtype = pytest.mark.parametrize(
    ("dtype", "computed"), COMPUTED_IN.items(), ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def tensor(array, dtype=torch.float64):
    return torch.tensor(np.asarray(array)).to(dtype)


def tolerance_of(dtype):
    return TOLERANCES["numpy", str(dtype).removeprefix("torch.")]


def assert_like_numpy(solution, arrays, computed=torch.float64, *, tracked=False):
    """A solution made of tensors, equal to that of the same problem made of arrays."""
    tolerance = tolerance_of(computed)
    expected = ssot.solve(**arrays)
    dtypes = {"plan": computed, "confidence": computed, "labels": torch.int64}
    for name, dtype in {**dtypes, "prices": torch.float64}.items():
        value = getattr(solution, name)
        assert isinstance(value, torch.Tensor), name
        assert value.dtype == dtype, name
        assert value.device.type == "cpu", name
        assert value.requires_grad == (tracked and name == "plan"), name
    plan = solution.plan.detach()
    assert abs(plan.numpy() - expected.plan).sum() <= tolerance.plan
    assert np.allclose(solution.prices.numpy(), expected.prices, atol=tolerance.plan)
    assert np.allclose(solution.confidence.numpy(), expected.confidence, atol=tolerance.plan)
    assert (solution.labels.numpy() == expected.labels).all()
    assert solution.objective.total == pytest.approx(expected.objective.total, abs=tolerance.value)
    assert solution.status is expected.status is ssot.Status.CONVERGED


@each_dtype
def test_tensors_come_out_as_they_went_in(dtype, computed):
    tol = tolerance_of(computed).solve
    cost = tensor(3 * COST, dtype)
    array = cost.to(computed).numpy()
    assert_like_numpy(
        ssot.solve(cost, rho=0.4, tol=tol), {"cost": array, "rho": 0.4, "tol": tol}, computed
    )


@each_dtype
def test_every_argument_may_be_a_tensor(dtype, computed):
    arrays = {
        "cost": COST,
        "graph": GRAPH,
        "prior": PRIOR,
        "sample_weight": WEIGHT,
        "kl_weight": KL_WEIGHT,
        "rho": np.array(0.4),
        "epsilon": np.array(0.1),
        "semantic_weight": np.array(2.0),
    }
    tensors = {name: tensor(array) for name, array in arrays.items()}
    tensors["cost"] = tensors["cost"].to(dtype)
    arrays["cost"] = tensors["cost"].to(computed).numpy()
    before = {name: (value.clone(), value._version) for name, value in tensors.items()}
    options = {"tol": tolerance_of(computed).solve}
    assert_like_numpy(ssot.solve(**tensors, **options), arrays | options, computed)
    for name, (value, version) in before.items():
        assert torch.equal(tensors[name], value), name
        assert tensors[name]._version == version, name


def test_logits_with_masked_classes():
    logits = COST.copy()
    logits[::3, 1] = -np.inf
    solution = ssot.solve(logits=tensor(logits), rho=0.4)
    assert_like_numpy(solution, {"logits": logits, "rho": 0.4})
    assert not solution.plan[::3, 1].any()
    assert solution.plan[1::3, 1].all()


def test_plan_of_tensors():
    plan = ssot.sp2ot_plan(tensor(COST), tensor(GRAPH), rho=0.4)
    assert isinstance(plan, torch.Tensor)
    assert plan.shape == (SAMPLES, CLASSES)
    assert float(plan.sum()) == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T.contiguous().T,
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: torch.stack([x, -x], dim=2)[..., 0],
        lambda x: x[:1].expand(SAMPLES, CLASSES),
        lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
        torch.nn.Parameter,
    ],
    ids=["transposed", "strided", "interleaved", "expanded", "lazily negated", "parameter"],
)
def test_views(view):
    cost = view(tensor(COST))
    array = np.array(cost.detach().clone().tolist())
    solution = ssot.solve(cost, rho=0.4)
    assert_like_numpy(solution, {"cost": array, "rho": 0.4}, tracked=cost.requires_grad)


@pytest.mark.parametrize("leaf", [True, False])
def test_gradients_are_left_alone(leaf):
    leaves = {"logits": tensor(COST), "prior": tensor(PRIOR), "rho": tensor(0.4)}
    for value in leaves.values():
        value.requires_grad_()
    given = leaves if leaf else {name: value * 1 for name, value in leaves.items()}
    arrays = {"logits": COST, "prior": PRIOR, "rho": 0.4}
    assert_like_numpy(ssot.solve(**given), arrays, tracked=True)
    assert all(value.requires_grad and value.is_leaf == leaf for value in given.values())
    assert all(value.grad is None for value in leaves.values())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inside_torch_modes(mode):
    with mode():
        solution = ssot.solve(tensor(COST), tensor(GRAPH), rho=0.4)
    assert_like_numpy(solution, {"cost": COST, "graph": GRAPH, "rho": 0.4})


def test_graph_as_a_sparse_array_or_as_a_pair_of_tensors():
    nearest = np.argsort(-GRAPH, axis=1)[:, 1:4]
    weights = np.take_along_axis(GRAPH, nearest, axis=1)
    given = {"cost": COST, "graph": (nearest, weights), "rho": 0.4}
    pair = (tensor(nearest, torch.int64), tensor(weights))
    assert_like_numpy(ssot.solve(tensor(COST), pair, rho=0.4), given)
    w = ssot.Problem(**given).graph
    assert_like_numpy(ssot.solve(tensor(COST), w, rho=0.4), given)


def test_a_list_suits_any_library():
    solution = ssot.solve(tensor(COST), prior=PRIOR.tolist(), rho=0.4)
    assert_like_numpy(solution, {"cost": COST, "prior": PRIOR, "rho": 0.4})


def test_predict_returns_the_kind_of_its_own_argument():
    new = np.random.default_rng(3).exponential(size=(7, CLASSES))
    from_arrays, from_tensors = ssot.solve(COST, rho=0.4), ssot.solve(tensor(COST), rho=0.4)
    expected = from_arrays.predict(new)
    for solution in (from_arrays, from_tensors):
        for given in ({"cost": tensor(new)}, {"logits": tensor(-new).requires_grad_()}):
            labels = solution.predict(**given)
            assert isinstance(labels, torch.Tensor)
            assert labels.dtype == torch.int64
            assert (labels.numpy() == expected).all()
        assert isinstance(solution.predict(new), np.ndarray)


def test_init_crosses_libraries():
    arrays, tensors = (COST, GRAPH), (tensor(COST), tensor(GRAPH))
    from_arrays, from_tensors = ssot.solve(*arrays, rho=0.3), ssot.solve(*tensors, rho=0.3)
    assert isinstance(ssot.solve(*arrays, rho=0.4, init=from_tensors).plan, np.ndarray)
    assert isinstance(ssot.solve(*tensors, rho=0.4, init=from_arrays).plan, torch.Tensor)


MIXED = {"graph": GRAPH, "prior": PRIOR, "sample_weight": WEIGHT, "kl_weight": KL_WEIGHT}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("tensor_cost", [True, False])
def test_mixed_libraries_are_refused(name, tensor_cost):
    cost, other = (tensor(COST), MIXED[name]) if tensor_cost else (COST, tensor(MIXED[name]))
    with pytest.raises(TypeError, match=f"(?s)cost.*{name}.*convert"):
        ssot.solve(cost, **{name: other})


@pytest.mark.parametrize("name", ["cost", "logits", "graph", "prior", "sample_weight"])
def test_tensors_without_data_are_refused(name):
    given = {
        "cost": tensor(COST),
        "logits": tensor(COST),
        **{k: tensor(v) for k, v in MIXED.items()},
    }
    arguments = {"cost": given["cost"]} if name != "logits" else {}
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.*meta.*CPU"):
        ssot.solve(**{**arguments, name: given[name].to("meta")})


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("cost", tensor(COST).to_sparse(), "dense"),
        ("cost", tensor(COST, torch.complex128), "real"),
        ("cost", torch.full((3, 2), torch.nan), "NaN"),
        ("prior", tensor(PRIOR)[:3], r"shape \(4,\)"),
        ("rho", tensor([0.3, 0.4]), "one number"),
    ],
    ids=["sparse cost", "complex", "NaN", "wrong length", "two numbers"],
)
def test_bad_tensors_are_refused(name, value, fix):
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.*{fix}"):
        ssot.solve(**{"cost": tensor(COST), name: value})


def test_setting_of_the_caller_stays(setting):
    """Torch's default dtype and threads are the caller's business."""
    before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    cost = tensor(COST, getattr(torch, setting.dtype.name)).to(setting.place.device)
    plan = ssot.solve(cost, rho=0.4, tol=setting.tolerance.solve, backend=setting.backend).plan
    assert plan.dtype == cost.dtype
    assert before == (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )


def test_a_refused_prediction_leaves_no_mode_behind():
    solution = ssot.solve(tensor(COST), rho=0.4)
    with pytest.raises(ValueError, match="cost is a tensor on meta"):
        solution.predict(tensor(COST).to("meta"))
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled()
