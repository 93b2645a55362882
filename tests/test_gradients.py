"""Plans and values as functions of the tensors that were passed; the gradients of `test_implicit`
through the public functions."""

import copy
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="gradients need Torch")

import ssot  # noqa: E402 (Torch may be missing)

SAMPLES, CLASSES = 8, 3
SCALARS = ("rho", "epsilon", "kl_weight")


def inputs(seed=0, dtype=torch.float64):
    """Return one tensor that requires gradients for each input of a problem."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = {
        "logits": noise(SAMPLES, CLASSES),
        "rho": torch.tensor(0.4),
        "epsilon": torch.tensor(0.2),
        "kl_weight": torch.tensor(1.0),
        "semantic_weight": torch.tensor(1.5),
        "prior": noise(CLASSES).softmax(0),
        "sample_weight": noise(SAMPLES).softmax(0),
    }
    return {name: value.to(dtype).requires_grad_() for name, value in values.items()}


def neighbours(seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(SAMPLES, generator=generator)[:3] for _ in range(SAMPLES)]
    return torch.stack(rows), torch.rand(SAMPLES, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("what", ["plan", "value"])
@pytest.mark.parametrize("has_graph", [False, True])
def test_gradients_of_every_input(what, has_graph, backend):
    given = inputs()
    options = {"tol": 1e-13, "on_failure": "raise", "backend": backend}
    if has_graph:
        options["graph"] = neighbours()
    else:
        del given["semantic_weight"]

    def solved(*values):
        return getattr(ssot.solve(**dict(zip(given, values, strict=True)), **options), what)

    assert torch.autograd.gradcheck(solved, tuple(given.values()))


def test_costs_and_logits_have_the_same_gradient():
    logits = inputs()["logits"]
    weight = torch.rand(SAMPLES, CLASSES, dtype=torch.float64)
    gradients = []
    for problem in ({"logits": logits}, {"cost": -logits.log_softmax(dim=1)}):
        loss = (ssot.sp2ot_plan(**problem, rho=0.4) * weight).sum()
        gradients.append(torch.autograd.grad(loss, logits)[0])
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients)


def test_a_training_step_through_a_plan():
    """A network learns through the plan of its logits, as central differences say."""
    torch.manual_seed(0)
    features = torch.randn(SAMPLES, 4, dtype=torch.float64)
    target = torch.softmax(torch.randn(SAMPLES, CLASSES, dtype=torch.float64), dim=1) / SAMPLES
    network = torch.nn.Linear(4, CLASSES, dtype=torch.float64)

    def loss_of(network):
        options = {"rho": 0.5, "semantic_weight": 1.0, "tol": 1e-13}
        plan = ssot.sp2ot_plan(logits=network(features), graph=neighbours(), **options)
        return ((plan - target) ** 2).sum() * SAMPLES**2

    loss = loss_of(network)
    loss.backward()
    step = 1e-4
    for name, parameter in network.named_parameters():
        for index in np.ndindex(*parameter.shape):
            values = []
            for sign in (1, -1):
                moved = copy.deepcopy(network)
                with torch.no_grad():
                    moved.get_parameter(name)[index] += sign * step
                    values.append(float(loss_of(moved)))
            slope = (values[0] - values[1]) / (2 * step)
            # The plan itself is right to sqrt(2 tol / epsilon), and its gradient no better.
            assert float(parameter.grad[index]) == pytest.approx(slope, rel=1e-3, abs=1e-5)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    optimiser.step()
    assert loss_of(network).item() < loss.item()


def test_gradients_of_a_batch_are_those_of_its_problems():
    first, second = inputs(0), inputs(3)
    names = ["logits", *SCALARS]
    weight = torch.rand(2, SAMPLES, CLASSES, dtype=torch.float64)
    stacked = {name: torch.stack([first[name], second[name]]) for name in names}
    stacked["kl_weight"] = stacked["kl_weight"][:, None]
    together = (ssot.sp2ot_plan(**stacked, tol=1e-12) * weight).sum()
    alone = sum(
        (ssot.sp2ot_plan(**{name: given[name] for name in names}, tol=1e-12) * part).sum()
        for given, part in zip((first, second), weight, strict=True)
    )
    leaves = [given[name] for given in (first, second) for name in names]
    for ours, theirs in zip(
        torch.autograd.grad(together, leaves), torch.autograd.grad(alone, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_come_in_the_dtype_of_their_input(dtype):
    given = inputs(dtype=dtype)
    del given["semantic_weight"], given["prior"], given["sample_weight"]
    plan = ssot.sp2ot_plan(**given)
    assert plan.dtype == torch.float32
    plan[:, 0].sum().backward()
    for name, value in given.items():
        assert value.grad.dtype == dtype, name
        assert value.grad.isfinite().all(), name


def test_masked_classes_have_no_gradient():
    logits = inputs()["logits"].detach().clone()
    logits[::2, 1] = -torch.inf
    logits.requires_grad_()
    (ssot.sp2ot_plan(logits=logits, rho=0.4) ** 2).sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[::2, 1].any()
    assert logits.grad.any()


def test_nothing_is_tracked_where_nothing_requires_it():
    given = inputs()
    logits, rho = given["logits"], given["rho"]
    with torch.no_grad():
        assert not ssot.sp2ot_plan(logits=logits, rho=rho).requires_grad
    with torch.inference_mode():
        assert not ssot.sp2ot_plan(logits=logits, rho=rho).requires_grad
    assert not ssot.sp2ot_plan(logits=logits.detach()).requires_grad
    solution = ssot.solve(logits=logits, rho=rho)
    assert solution.plan.requires_grad
    assert solution.value.requires_grad
    for name in ("labels", "confidence", "prices"):
        assert not getattr(solution, name).requires_grad
    again = ssot.solve(logits=logits.detach(), rho=0.4, init=solution)
    assert not again.plan.requires_grad


def test_the_adjoint_is_reported():
    given = inputs()
    solution = ssot.solve(**given, graph=neighbours(), tol=1e-12)
    assert solution.adjoint is None
    (solution.plan[:, 0] ** 2).sum().backward()
    assert solution.adjoint.converged
    assert solution.adjoint.iterations > 0
    assert solution.adjoint.residual <= 1e-9


def test_double_backward_is_refused():
    logits = inputs()["logits"]
    loss = (ssot.sp2ot_plan(logits=logits, rho=0.4) ** 2).sum()
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        (gradient**2).sum().backward()


def test_autocast_changes_no_gradient():
    logits = inputs()["logits"]
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = (ssot.sp2ot_plan(logits=logits, graph=neighbours(), rho=0.4) ** 2).sum()
        gradients.append(torch.autograd.grad(loss, logits)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_the_value_is_a_number_for_arrays():
    solution = ssot.solve(np.eye(3), rho=0.5)
    assert solution.value == solution.objective.total
    assert isinstance(solution.value, float)
    batch = ssot.solve(np.stack([np.eye(3)] * 2), rho=[0.5, 0.6])
    assert batch.value.tolist() == [objective.total for objective in batch.objective]


def test_a_solution_that_is_let_go_is_freed():
    """The graph of Torch is invisible to the garbage collector, so nothing may lead in a circle."""
    costs = []
    for _ in range(3):
        cost = torch.rand(20, 4, dtype=torch.float64, requires_grad=True)
        solution = ssot.solve(cost, rho=0.5)
        costs.append(weakref.ref(solution.problem))
        solution.plan.square().sum().backward()
        del solution, cost
    assert [ref() for ref in costs] == [None] * 3


def test_the_weight_of_a_graph_has_a_gradient_at_zero():
    given = inputs() | {"semantic_weight": torch.tensor(0.0, dtype=torch.float64)}
    weight = torch.rand(SAMPLES, CLASSES, dtype=torch.float64)

    def loss(strength):
        return (
            ssot.sp2ot_plan(**given | {"semantic_weight": strength}, graph=neighbours(), tol=1e-12)
            * weight
        ).sum()

    strength = given["semantic_weight"].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(strength), strength)
    with torch.no_grad():
        slope = (loss(strength + 1e-4) - loss(strength)) / 1e-4
    assert gradient.item() == pytest.approx(slope.item(), rel=1e-2)
    assert abs(slope.item()) > 1e-6


def test_a_cost_that_has_changed_since_is_noticed():
    given = inputs()
    cost = torch.rand(SAMPLES, CLASSES, dtype=torch.float64)
    plan = ssot.sp2ot_plan(cost, rho=given["rho"])
    cost.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plan.square().sum().backward()


def test_a_plan_of_inference_mode_can_be_learnt_from():
    logits = inputs()["logits"]
    with torch.inference_mode():
        plan = ssot.sp2ot_plan(logits=logits.detach(), rho=0.4)
    (plan * logits.log_softmax(dim=1)).sum().backward()
    assert logits.grad.any()
