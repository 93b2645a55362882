"""Gradients of the plan and of the optimal value against differences and a dense linear system."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROFILE, SEEDS, convex_threshold, random_graph, symmetrised

import ssot

torch = pytest.importorskip("torch", reason="gradients need Torch")

from ssot.gradients import response  # noqa: E402 (Torch may be missing)
from ssot.gradients.implicit import (  # noqa: E402
    Gradients,
    Solved,
    differentiable,
    plan_gradients,
    value_gradients,
)

NAMES = Gradients._fields
DISTRIBUTIONS = {"sample_weight", "prior"}


@dataclass(frozen=True, eq=False)
class Case:
    """Inputs of a problem as float64 tensors, and its symmetric graph."""

    inputs: dict
    w: np.ndarray | None = None

    def options(self, inputs=None):
        """Return the arguments for `ssot.solve`, distributions divided by their sums."""
        arrays = {name: x.detach().numpy() for name, x in (inputs or self.inputs).items()}
        for name in DISTRIBUTIONS:
            arrays[name] = arrays[name] / arrays[name].sum()
        if self.w is None:
            arrays.pop("semantic_weight", None)
        return arrays | {"graph": self.w}

    def leaves(self, names=NAMES):
        """Return copies of the named inputs to differentiate in."""
        return {
            name: x.clone().requires_grad_() for name, x in self.inputs.items() if name in names
        }


def make_case(
    seed=0,
    *,
    samples=7,
    classes=3,
    rho=0.6,
    epsilon=0.2,
    kl_weight=1.0,
    share=0.0,
    closed=False,
    masked=False,
    some_zero=False,
):
    """Return a random case; `share` is the semantic weight over what convexity allows."""
    rng = np.random.default_rng(seed)
    cost = rng.random((samples, classes))
    weight = rng.dirichlet(np.full(samples, 5.0))
    prior = rng.dirichlet(np.full(classes, 5.0))
    if masked:
        cost[::2, 0] = np.inf
    if some_zero:
        weight[1::3] = 0
    if closed:
        prior[-1] = 0
    inputs = {
        "cost": cost,
        "sample_weight": weight / weight.sum(),
        "prior": prior / prior.sum(),
        "kl_weight": np.resize(kl_weight, classes),
        "rho": rho,
        "epsilon": epsilon,
    }
    w = None
    if share:
        w = symmetrised(random_graph(seed, samples))
        inputs["semantic_weight"] = share * convex_threshold(w, inputs["sample_weight"], epsilon)
    return Case({name: torch.tensor(x, dtype=torch.float64) for name, x in inputs.items()}, w)


def solve(case, inputs=None, tol=1e-13, **options):
    # Differences of 1e-13 are beyond what the solver's own status vouches for.
    return ssot.solve(
        **case.options(inputs), **options, tol=tol, max_steps=5000, on_failure="return"
    )


def solved_of(solution, dtype=torch.float64):
    """Return what is to be differentiated from a solution."""
    problem = solution.problem
    product = None
    if problem.graph is not None:
        w = torch.tensor(problem.graph.toarray()).to(dtype)

        def product(matrix):
            return (w[:, :, None] * matrix).sum(dim=1)

    return Solved(
        cost=torch.tensor(problem.cost).to(dtype),
        plan=torch.tensor(np.asarray(solution.plan)).to(dtype),
        prices=torch.tensor(np.asarray(solution.prices)),
        sample_weight=torch.tensor(problem.sample_weight),
        prior=torch.tensor(problem.prior),
        kl_weight=torch.tensor(problem.kl_weight),
        rho=problem.rho,
        epsilon=problem.epsilon,
        semantic_weight=problem.semantic_weight,
        graph_product=product,
    )


def solve_differentiably(case, inputs, report=lambda adjoint: None, **options):
    """Return the plan and the value as functions of the inputs that need a gradient."""
    solution = solve(case, case.inputs | inputs, **options)
    return differentiable(solved_of(solution), inputs, solution.objective.total, report)


def random_like(x, seed=0):
    return torch.tensor(np.random.default_rng([seed, 7]).normal(size=x.shape))


def slope(function, step):
    """Return the derivative at 0 by central differences, up to the fourth power of the step."""
    near, far = function(step) - function(-step), function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)


def slope_below(function, step):
    """Return the derivative at 0 from below, up to the third power of the step."""
    weights = (11 / 6, -3.0, 1.5, -1 / 3)
    return sum(c * function(-i * step) for i, c in enumerate(weights)) / step


def along(gradient, x, direction):
    """Return the derivative of a function along ``x (1 + t direction)`` from its gradient."""
    return float(torch.where(x.isfinite(), gradient * x * direction, 0).sum())


class DenseSystem:
    """The stationarity conditions in all N K masses and the prices, and their derivatives by Torch.

    The unknowns are ``(g, Q)``, the conditions the masses of the columns and of the pairs.
    """

    def __init__(self, case):
        self.case = case
        options = case.options()
        is_closed = [*(options["prior"] == 0).tolist(), float(options["rho"]) == 1]
        self.is_open = ~torch.tensor(is_closed)
        self.has_gauge = bool(np.isinf(options["kl_weight"]).all())
        self.columns = int(self.is_open.sum())
        self.w = None if case.w is None else torch.tensor(case.w)

    def conditions(self, unknowns, inputs):
        cost, epsilon = inputs["cost"], inputs["epsilon"]
        prices, plan = unknowns[: self.columns], unknowns[self.columns :].reshape(cost.shape)
        alpha = inputs["sample_weight"] / inputs["sample_weight"].sum()
        beta = inputs["prior"] / inputs["prior"].sum()
        if self.w is not None:
            cost = cost - 2 * inputs["semantic_weight"] * self.w @ plan
        cost = torch.where(cost.isfinite(), cost, 1e3)  # no mass either, and finite derivatives
        cost = torch.nn.functional.pad(cost, (0, 1))[:, self.is_open]
        full = alpha[:, None] * torch.softmax((prices - cost) / epsilon, dim=1)
        everywhere = torch.zeros(len(alpha), len(self.is_open), dtype=torch.float64)
        everywhere = everywhere.masked_scatter(self.is_open.expand_as(everywhere), full)
        target = torch.cat([inputs["rho"] * beta, 1 - inputs["rho"].reshape(1)])[self.is_open]
        strength = torch.nn.functional.pad(inputs["kl_weight"], (0, 1), value=np.inf)
        excess = full.sum(dim=0) - target * torch.exp(-prices / strength[self.is_open])
        if self.has_gauge:
            excess = torch.cat([excess[:-1], prices.sum().reshape(1)])
        return torch.cat([excess, (everywhere[:, :-1] - plan).flatten()])

    def jacobian(self, unknowns):
        return torch.autograd.functional.jacobian(
            lambda x: self.conditions(x, self.case.inputs), unknowns, vectorize=True
        )

    def polish(self, solution):
        """Return the solution by Newton's method, from an approximate one."""
        prices = torch.tensor(solution.prices)[self.is_open]
        unknowns = torch.cat([prices, torch.tensor(solution.plan).flatten()])
        for _ in range(6):
            excess = self.conditions(unknowns, self.case.inputs)
            unknowns = unknowns - torch.linalg.solve(self.jacobian(unknowns), excess)
        assert self.conditions(unknowns, self.case.inputs).abs().sum() < 1e-13
        return unknowns

    def solved(self, solution):
        """Return the polished solution, and its unknowns."""
        unknowns = self.polish(solution)
        prices = torch.full((len(self.is_open),), -np.inf, dtype=torch.float64)
        prices[self.is_open] = unknowns[: self.columns]
        plan = unknowns[self.columns :].reshape(self.case.inputs["cost"].shape)
        return replace(solved_of(solution), prices=prices, plan=plan), unknowns

    def gradients(self, unknowns, cotangent):
        """Return the gradients in the inputs by the implicit-function theorem, dense."""
        seed = torch.cat([torch.zeros(self.columns, dtype=torch.float64), cotangent.flatten()])
        multiplier = torch.linalg.solve(self.jacobian(unknowns).T, seed)
        leaves = self.case.leaves()
        conditions = self.conditions(unknowns, self.case.inputs | leaves)
        found = torch.autograd.grad(conditions, list(leaves.values()), -multiplier)
        return dict(zip(leaves, found, strict=True))


# The problem without a graph: differences of the solver's own plans

LINEAR = {
    "partial, soft": {},
    "partial, hard": {"kl_weight": np.inf},
    "partial, mixed": {"kl_weight": (0.5, np.inf)},
    "whole, soft": {"rho": 1.0, "kl_weight": (0.3, 2.0)},
    "whole, hard": {"rho": 1.0, "kl_weight": np.inf},
    "whole, mixed": {"rho": 1.0, "kl_weight": (np.inf, 0.5)},
    "sharp": {"epsilon": 0.05, "rho": 0.3},
    "smooth": {"epsilon": 1.0, "rho": 0.9},
    "closed class": {"closed": True, "kl_weight": (0.5, np.inf)},
    "forbidden pairs": {"masked": True},
    "samples without weight": {"some_zero": True},
    "all of these": {"closed": True, "masked": True, "some_zero": True, "rho": 1.0},
}


def smooth_inputs(options):
    """Return the inputs that may change in both directions."""
    ends = {
        "rho": options.get("rho") == 1,
        "prior": options.get("closed"),
        "sample_weight": options.get("some_zero"),
        "kl_weight": np.isinf(options.get("kl_weight", 1.0)).any(),
        "semantic_weight": "share" not in options,
    }
    return [name for name in NAMES if not ends.get(name)]


@pytest.mark.parametrize("options", LINEAR.values(), ids=LINEAR)
def test_gradients_without_a_graph_by_gradcheck(options):
    case = make_case(**options)
    leaves = case.leaves(smooth_inputs(options))
    assert torch.autograd.gradcheck(
        lambda *inputs: solve_differentiably(case, dict(zip(leaves, inputs, strict=True))),
        list(leaves.values()),
        atol=1e-6,
        rtol=1e-5,
    )


def test_strength_of_the_soft_classes_among_hard_ones():
    case = make_case(kl_weight=(0.5, np.inf))
    hard = torch.tensor([0.0, np.inf, 0.0], dtype=torch.float64)
    free = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)

    def of_strength(free):
        strength = torch.stack([free[0], hard[1], free[1]])
        return solve_differentiably(case, {"kl_weight": strength})

    assert torch.autograd.gradcheck(of_strength, [free], atol=1e-6, rtol=1e-5)


# The full problem: a dense linear system made of the stationarity conditions

SETTINGS = st.fixed_dictionaries(
    {
        "samples": st.integers(2, 9),
        "classes": st.integers(2, 4),
        "rho": st.just(1.0) | st.floats(0.1, 0.9),
        "epsilon": st.sampled_from([0.05, 0.2, 1.0]),
        "kl_weight": st.sampled_from([0.3, 1.0, 20.0, np.inf, (0.5, np.inf)]),
        "share": st.sampled_from([0.0, 0.3, 0.8]),
        "closed": st.booleans(),
        "some_zero": st.booleans(),
    }
)


def assert_like_dense_system(case, seed):
    solution = solve(case)
    system = DenseSystem(case)
    solved, unknowns = system.solved(solution)
    cotangent = random_like(solved.plan, seed)
    gradients, adjoint = plan_gradients(solved, cotangent)
    assert adjoint.converged
    expected = system.gradients(unknowns, cotangent)
    if case.inputs["rho"] == 1:
        del expected["rho"]  # there the system closes the virtual cluster for good
    # What a gradient is small against: what a unit of mass does, moved by a cost of epsilon.
    unit = float(cotangent.abs().max() / case.inputs["epsilon"])
    for name, wanted in expected.items():
        x = case.inputs[name]
        takes_part = x > 0 if name == "prior" else x.isfinite()
        found = getattr(gradients, name)
        assert not found[~takes_part].any(), name
        close = torch.isclose(found, wanted, rtol=1e-7, atol=1e-9 * unit)
        assert close[takes_part].all(), name


@PROFILE
@given(SEEDS, SETTINGS)
def test_gradients_are_those_of_the_dense_system(seed, options):
    assert_like_dense_system(make_case(seed, **options), seed)


@pytest.mark.parametrize("share", [3.0, 30.0])
@pytest.mark.parametrize("name", LINEAR)
def test_gradients_at_a_strong_graph_are_those_of_the_dense_system(name, share):
    assert_like_dense_system(make_case(1, share=share, **LINEAR[name]), 1)


FULL = {
    "moderate": {"share": 0.6},
    "strong": {"share": 8.0, "kl_weight": (0.5, 2.0)},
    "strong, hard, whole": {"share": 3.0, "rho": 1.0, "kl_weight": np.inf},
    "sharp": {"share": 3.0, "epsilon": 0.05, "samples": 12, "classes": 4},
}


@pytest.mark.parametrize("options", FULL.values(), ids=FULL)
def test_gradients_with_a_graph_by_differences(options):
    """A gap of 1e-15 leaves a plan uncertain by 1e-7: hence a long step, and a stencil for it."""
    case = make_case(2, **options)
    base = solve(case, tol=1e-15)
    names = smooth_inputs(options)
    cotangent = random_like(case.inputs["cost"])
    found, adjoint = plan_gradients(solved_of(base), cotangent)
    assert adjoint.converged
    assert adjoint.iterations > 2
    assert set(names) >= {"cost", "sample_weight", "prior", "epsilon", "semantic_weight"}
    for name in names:
        x = case.inputs[name]
        direction = random_like(x, 1) if x.ndim else torch.ones_like(x)

        def loss(t, name=name, x=x, direction=direction):
            moved = case.inputs | {name: x * (1 + t * direction)}
            plan = solve(case, moved, tol=1e-15, init=base).plan
            return float((torch.tensor(plan) * cotangent).sum())

        expected = slope(loss, 3e-3)
        assert along(getattr(found, name), x, direction) == pytest.approx(
            expected, rel=2e-3, abs=2e-4
        ), name


@pytest.mark.parametrize("kl_weight", [1.0, np.inf, (0.5, np.inf)])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_rho_at_1_has_the_derivative_from_below(kl_weight, share):
    case = make_case(3, rho=1.0, kl_weight=kl_weight, share=share)
    cotangent = random_like(case.inputs["cost"])
    found, _ = plan_gradients(solved_of(solve(case)), cotangent)

    def loss(t):
        plan = solve(case, case.inputs | {"rho": torch.tensor(1 + t)}, tol=1e-15).plan
        return float((torch.tensor(plan) * cotangent).sum())

    assert float(found.rho) == pytest.approx(slope_below(loss, 2e-3), rel=1e-3, abs=1e-4)


def test_a_sample_without_weight_has_the_derivative_from_above():
    case = make_case(3, some_zero=True, share=0.6)
    cotangent = random_like(case.inputs["cost"])
    found, _ = plan_gradients(solved_of(solve(case)), cotangent)
    added = (case.inputs["sample_weight"] == 0).double()

    def loss(t):
        weight = case.inputs["sample_weight"] - t * added
        plan = solve(case, case.inputs | {"sample_weight": weight}, tol=1e-15).plan
        return float((torch.tensor(plan) * cotangent).sum())

    expected = -slope_below(loss, 2e-3)
    assert float(found.sample_weight @ added) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_response_is_symmetric_and_positive():
    solved = solved_of(solve(make_case(14, kl_weight=(0.5, np.inf), samples=12)))
    phi = response.Response(solved)
    first, second = random_like(solved.plan, 1), random_like(solved.plan, 2)
    (of_first, _, energy), (of_second, *_) = phi(first), phi(second)
    assert float((of_first * second).sum()) == pytest.approx(float((of_second * first).sum()))
    assert float((of_first * first).sum()) == pytest.approx(energy)
    assert 0 < energy < phi.size(first)


# The optimal value


@pytest.mark.parametrize("options", [*LINEAR.values(), *FULL.values()], ids=[*LINEAR, *FULL])
def test_value_gradients_by_differences(options):
    """They are as good as the plan, which with a graph is uncertain by 1e-7."""
    tolerance = 1e-8 if "share" not in options else 1e-6
    case = make_case(4, **options)
    base = solve(case)
    found = value_gradients(solved_of(base))
    for gradient in found:
        assert gradient.isfinite().all()
    names = {*smooth_inputs(options), "prior", "sample_weight"}  # at 0, these stay there
    for name in names:
        x = case.inputs[name]
        direction = random_like(x, 2) if x.ndim else torch.ones_like(x)

        def value(t, name=name, x=x, direction=direction):
            moved = case.inputs | {name: x * (1 + t * direction)}
            return solve(case, moved, init=base).objective.total

        expected = slope(value, 1e-3)
        assert along(getattr(found, name), x, direction) == pytest.approx(
            expected, rel=tolerance, abs=tolerance
        ), name


def test_value_where_no_sample_may_join_a_class():
    case = make_case(5)
    case.inputs["cost"][:, 0] = np.inf
    base = solve(case)
    gradients = value_gradients(solved_of(base))
    of_plan, _ = plan_gradients(solved_of(base), random_like(case.inputs["cost"]))
    assert not of_plan.cost[:, 0].any()
    for name in ("prior", "rho", "kl_weight"):
        x = case.inputs[name]
        direction = random_like(x, 2) if x.ndim else torch.ones_like(x)

        def solved(t, name=name, x=x, direction=direction):
            return solve(case, case.inputs | {name: x * (1 + t * direction)})

        def value(t, solved=solved):
            return solved(t).objective.total

        def loss(t, solved=solved):
            plan = torch.tensor(solved(t).plan)
            return float((plan * random_like(plan)).sum())

        assert along(getattr(gradients, name), x, direction) == pytest.approx(slope(value, 1e-3))
        assert along(getattr(of_plan, name), x, direction) == pytest.approx(slope(loss, 1e-3))


def test_at_the_ends_of_their_ranges_inputs_have_no_gradient_of_the_value():
    case = make_case(rho=1.0, closed=True, some_zero=True)
    gradients = value_gradients(solved_of(solve(case)))
    assert gradients.rho == 0
    assert not gradients.prior[case.inputs["prior"] == 0].any()
    assert not gradients.sample_weight[case.inputs["sample_weight"] == 0].any()


def test_a_sample_that_may_join_no_class_and_has_no_weight():
    case = make_case(rho=1.0, some_zero=True)
    case.inputs["cost"][1] = np.inf
    solved = solved_of(solve(case))
    of_plan, _ = plan_gradients(solved, random_like(solved.plan))
    for gradient in (*of_plan, *value_gradients(solved)):
        assert gradient.isfinite().all()


# As nodes of an autograd graph


def test_a_step_of_training():
    """Labels from logits that follow from features: the chain rule through a whole model."""
    rng = np.random.default_rng(6)
    case = make_case(6, samples=10, share=0.6)
    features, free = torch.tensor(rng.normal(size=(10, 4))), torch.tensor(rng.normal(size=3))
    weight, directions = torch.tensor(rng.normal(size=(4, 3))), torch.tensor(rng.normal(size=15))

    def loss_of(weight, free, solve_it):
        log_p = torch.log_softmax(features @ weight, dim=1)
        inputs = {"cost": -log_p, "prior": torch.softmax(free, dim=0)}
        plan, value = solve_it(inputs)
        return -(plan * log_p).sum() + plan.square().sum() + 0.3 * value

    def detached(inputs):
        solution = solve(case, case.inputs | inputs, tol=1e-15)
        return torch.tensor(solution.plan), solution.objective.total

    leaves = [weight.clone().requires_grad_(), free.clone().requires_grad_()]
    loss_of(*leaves, lambda inputs: solve_differentiably(case, inputs)).backward()
    found = torch.cat([leaf.grad.flatten() for leaf in leaves])

    def loss(t):
        moved = t * directions
        return float(loss_of(weight + moved[:12].reshape(4, 3), free + moved[12:], detached))

    assert float(found @ directions) == pytest.approx(slope(loss, 3e-3), rel=1e-3, abs=1e-4)


def test_gradients_come_back_in_shape_and_dtype_of_the_inputs():
    case = make_case(7, share=0.6)
    whole = case.leaves()
    plan, value = solve_differentiably(case, whole)
    cotangent = random_like(plan)
    ((plan * cotangent).sum() + value).backward()
    others = {
        "cost": case.inputs["cost"].float(),
        "sample_weight": case.inputs["sample_weight"].half(),
        "kl_weight": torch.tensor(1.0, dtype=torch.float32),
        "rho": case.inputs["rho"].reshape(1),
        "epsilon": case.inputs["epsilon"].float(),
        "semantic_weight": case.inputs["semantic_weight"].reshape(1),
    }
    others = {name: x.requires_grad_() for name, x in others.items()}
    plan, value = differentiable(
        solved_of(solve(case)), others | {"prior": case.inputs["prior"]}, 0.0, lambda _: None
    )
    ((plan * cotangent).sum() + value).backward()
    for name, x in others.items():
        assert x.grad.dtype == x.dtype, name
        assert x.grad.shape == x.shape, name
        wanted = whole[name].grad.sum() if name == "kl_weight" else whole[name].grad
        assert torch.allclose(x.grad.double(), wanted, rtol=1e-3, atol=1e-3), name
    one = torch.ones(1, dtype=torch.float64, requires_grad=True)
    plan, _ = differentiable(solved_of(solve(case)), {"kl_weight": one}, 0.0, lambda _: None)
    (plan * cotangent).sum().backward()
    assert one.grad.shape == (1,)


@pytest.mark.parametrize("share", [0.0, 0.6, 3.0])
def test_single_precision_is_close_to_double(share):
    case = make_case(8, share=share, samples=30, classes=5)
    base = solve(case)
    cotangent = random_like(case.inputs["cost"])
    double, _ = plan_gradients(solved_of(base), cotangent)
    single, adjoint = plan_gradients(solved_of(base, torch.float32), cotangent.float())
    assert adjoint.converged
    assert single.cost.dtype == torch.float32
    for name, found in zip(NAMES, single, strict=True):
        wanted = getattr(double, name)
        assert torch.allclose(found.double(), wanted, rtol=1e-4, atol=1e-4), name


def test_settings_of_torch_do_not_matter():
    solved = solved_of(solve(make_case(9, share=0.6)), torch.float32)
    cotangent = random_like(solved.plan).float()
    expected, _ = plan_gradients(solved, cotangent)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, _ = plan_gradients(solved, cotangent)
    finally:
        torch.set_float32_matmul_precision(before)
    for gradient, same in zip(found, expected, strict=True):
        assert torch.equal(gradient, same)


def test_blocks_of_rows_do_not_matter(monkeypatch):
    case = make_case(10, share=0.6)
    solved = solved_of(solve(case))
    cotangent = random_like(solved.plan)
    whole = [*plan_gradients(solved, cotangent)[0], *value_gradients(solved)]
    monkeypatch.setattr(response, "CACHED_ENTRIES", 8)  # two rows, and one left over
    parts = [*plan_gradients(solved, cotangent)[0], *value_gradients(solved)]
    for gradient, same in zip(parts, whole, strict=True):
        assert torch.allclose(gradient, same, rtol=1e-9, atol=1e-12)


def test_a_loss_that_no_plan_changes_has_no_gradient():
    """All plans have the same mass, and masked pairs none, whatever the loss says about them."""
    case = make_case(11, share=0.6, masked=True)
    solved = solved_of(solve(case))
    cotangent = torch.ones_like(solved.plan)
    cotangent[::2, 0] = -np.inf
    gradients, adjoint = plan_gradients(solved, cotangent)
    assert adjoint.converged
    for name, gradient in zip(NAMES, gradients, strict=True):
        assert torch.allclose(gradient, torch.full_like(gradient, float(name == "rho"))), name


# What cannot be had, and that it is said


def test_a_gradient_cannot_be_differentiated_again():
    case = make_case()
    leaves = case.leaves(["cost", "rho"])
    plan, value = solve_differentiably(case, leaves)
    loss = plan.square().sum() + value
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    again = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    for gradient, same in zip(first, again, strict=True):
        assert torch.equal(gradient, same)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        first[0].square().sum().backward()


def test_what_a_gradient_depends_on_may_not_change():
    case = make_case()
    leaves = case.leaves(["cost"])
    plan, _ = solve_differentiably(case, leaves)
    with torch.no_grad():
        leaves["cost"] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plan.square().sum().backward()


def test_only_what_needs_a_gradient_gets_one():
    case = make_case()
    fixed = {"prior": case.inputs["prior"].clone()}
    leaves = case.leaves(["cost"])
    reports = []
    plan, value = solve_differentiably(case, leaves | fixed, reports.append)
    assert plan.requires_grad
    value.backward()
    assert torch.equal(leaves["cost"].grad, plan)
    assert fixed["prior"].grad is None
    assert reports == []  # the value needs no system
    plan, value = solve_differentiably(case, fixed, reports.append)
    assert not plan.requires_grad


def test_a_saddle_is_reported():
    """Two classes that differ in nothing: neighbours would agree, but on neither rather."""
    samples = 6
    ring = np.roll(np.eye(samples), 1, axis=1)
    inputs = {
        "cost": torch.ones(samples, 2, dtype=torch.float64),
        "sample_weight": torch.full((samples,), 1 / samples, dtype=torch.float64),
        "prior": torch.full((2,), 0.5, dtype=torch.float64),
        "kl_weight": torch.full((2,), 0.1, dtype=torch.float64),
        "rho": torch.tensor(0.5, dtype=torch.float64),
        "epsilon": torch.tensor(0.1, dtype=torch.float64),
        "semantic_weight": torch.tensor(10.0, dtype=torch.float64),
    }
    case = Case(inputs, ring + ring.T)
    leaves = case.leaves(["cost"])
    reports = []
    plan, _ = solve_differentiably(case, leaves, reports.append)
    with pytest.warns(ssot.ConvergenceWarning, match="no strict local minimum"):
        plan[:, 0].sum().backward()
    (adjoint,) = reports
    assert not adjoint.is_minimum
    assert not adjoint.converged
    assert leaves["cost"].grad.isfinite().all()


def test_an_unsolved_system_is_reported(monkeypatch):
    case = make_case(12, share=3.0)
    solved = solved_of(solve(case))
    cotangent = random_like(solved.plan)
    monkeypatch.setattr(response, "MOST_ITERATIONS", 2)
    with pytest.warns(ssot.ConvergenceWarning, match="inexact"):
        gradients, adjoint = plan_gradients(solved, cotangent)
    assert adjoint.iterations == 2
    assert adjoint.is_minimum
    assert not adjoint.converged
    assert 1e-9 < adjoint.residual < 1
    assert gradients.cost.isfinite().all()


def test_a_loss_that_is_not_a_number_stays_visible():
    case = make_case(13, share=0.6)
    solved = solved_of(solve(case))
    with pytest.warns(ssot.ConvergenceWarning, match="inexact"):
        gradients, adjoint = plan_gradients(solved, torch.full_like(solved.plan, np.nan))
    assert gradients.cost.isnan().all()
    assert not adjoint.converged
