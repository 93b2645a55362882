"""What `benchmarks.gpu` measures: one function for each section of its report.

Each takes a `Setting` and returns groups: the title of a problem, and the records of all who took
part, times relative to the first. Data are made, and brought to the device, before any clock runs.
"""

from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

import ssot
from benchmarks import measure, published
from benchmarks.competitors import UnavailableError
from benchmarks.device import Contestant, in_turns, require_memory
from benchmarks.hard_problems import good_head_cost, long_tail, semantic_bank
from ssot.arrays import to_place
from ssot.curvature import System
from ssot.kernels import make_kernel
from ssot.kernels.torch import _sums
from ssot.kernels.torch_rows import Batch

RHO, TOL = 0.1, 1e-6

SEMANTIC_SIZE = 5632, 1000
RELATIVE_GAP = 1e-4
SEMANTIC_TOLERANCES = 1e-4, 1e-5, 1e-6

FEWEST_STEPS = 1, 2, 4, 8, 16, 32, 64
"""Numbers of published steps that are tried; a user would have to know the right one."""

IMAGENET, TENTH = (1_281_167, 1000), (128_117, 1000)
"""Samples and classes of ImageNet, and a tenth of the samples."""

MOST_SWEEPS = 20_000
"""Sweeps of the published scaling that ignores its own rule."""

ARRAYS_OF_THE_SCALING = 4
"""N x (K + 1) arrays in float64 at once: cost, exponentials, plan, and one to measure the plan."""

HEADS, HEAD_SIZE = 8, (5120, 100)
LINEAR_SIZES = (5120, 100), (5632, 1000)
HOST_SIZE = 65_536, 1000

ROW_CLASSES = 100, 1000
ROW_DTYPES = torch.float32, torch.float64
BANK_ROWS = 5120
ROW_ENTRIES, QUICK_ROW_ENTRIES = 1 << 29, 1 << 15
COPY_BYTES, QUICK_COPY_BYTES = 1 << 30, 1 << 20


class Judge:
    """Measures plans of one problem, and how far they are from the first that it sees.

    The gap is relative to `scale`, the magnitude of the objective, and of semantic problems alone,
    which are measured on the host.
    """

    def __init__(self, problem, scale=1.0):
        self.problem = measure.on_host(problem) if problem.has_semantics else problem
        self.scale = scale
        self.first = None

    def __call__(self, plan):
        """Return the residual of a plan, its gap and its distance as a dictionary."""
        plan = to_place(plan, self.problem.place)
        self.first = plan if self.first is None else self.first
        found = {
            "residual": measure.residual(self.problem, plan),
            "distance": measure.distance(plan, self.first),
        }
        if self.problem.has_semantics:
            gap = measure.stationarity_gap(self.problem, plan) / self.scale
            found["measured_relative_gap"] = gap
        return found


def sp2ot(setting):
    """Cold SP²OT against the published algorithm."""
    arguments = _semantic_arguments(setting)
    for tol in SEMANTIC_TOLERANCES:
        solution = _solve(**arguments, tol=tol)
        if solution.certificate.relative_stationarity_gap <= RELATIVE_GAP:
            break
    problem = solution.problem
    judge = Judge(problem, solution.objective.scale)

    def published_steps():
        linear, graph = published.LinearProblem(problem), published.dense_graph(problem)
        weight = problem.semantic_weight
        return partial(published.majorise_minimise, linear, graph, weight)

    def fewest_steps():
        for steps in FEWEST_STEPS:
            call = partial(published_steps(), most_steps=steps)
            if judge(call().plan)["measured_relative_gap"] <= RELATIVE_GAP:
                return call
        raise UnavailableError(f"{steps} steps do not reach the gap")

    contestants = (
        _ssot(arguments, tol, judge),
        Contestant("published full steps", published_steps, _of_published(judge)),
        Contestant("as few of them as have the gap", fewest_steps, _of_published(judge)),
    )
    title = f"SP²OT, {_named(problem)}, 20 neighbours, half-trained head, rho {RHO}"
    return [_group(title, contestants, setting)]


def p2ot(setting):
    """Cold P²OT against the published scaling."""
    return [_p2ot(IMAGENET, setting), _p2ot(TENTH, setting, runs_on=True)]


def row_passes(setting):
    """Read the cost once: bytes read in a second, next to those that a copy reads and writes."""
    entries = QUICK_ROW_ENTRIES if setting.is_quick else ROW_ENTRIES
    return [
        _row_passes(samples, classes, dtype, setting)
        for classes in ROW_CLASSES
        for samples in dict.fromkeys((min(BANK_ROWS, entries // classes), entries // classes))
        for dtype in ROW_DTYPES
    ]


def batch(setting):
    """Several heads in one call."""
    size = setting.size(*HEAD_SIZE)
    costs = [good_head_cost(*size, seed=seed, dtype=np.float32) for seed in range(HEADS)]
    cost = torch.from_numpy(np.stack(costs)).to(setting.device)

    def solve(which):
        return _solve(cost=which, rho=RHO, tol=TOL)

    contestants = (
        Contestant("one head", lambda: lambda: [solve(cost[0])], _of_heads),
        Contestant(f"{HEADS} heads in one call", lambda: lambda: solve(cost), _of_heads),
        Contestant(f"{HEADS} calls", lambda: lambda: [solve(each) for each in cost], _of_heads),
    )
    title = f"P²OT, heads of {size[0]:,} x {size[1]:,} in float32, good, rho {RHO}"
    return [_group(title, contestants, setting)]


def backward(setting):
    """The gradient of a plan in its cost."""
    linear = [
        {"cost": good_head_on(setting.device, *setting.size(*size)), "rho": RHO}
        for size in LINEAR_SIZES
    ]
    return [_backward(each, setting) for each in (*linear, _semantic_arguments(setting))]


def on_the_host(setting):
    """The Torch backend next to Numba's, on the CPU."""
    if setting.device.type != "cpu":
        raise UnavailableError("compares backends of the CPU: run with --device cpu")
    if find_spec("numba") is None:
        raise UnavailableError("Numba is not installed")
    arguments = {"cost": good_head_cost(*setting.size(*HOST_SIZE), dtype=np.float32), "rho": RHO}
    problem = ssot.Problem(**arguments)
    judge = Judge(problem)
    contestants = [_ssot(arguments, TOL, judge, backend=name) for name in ("numba", "torch")]
    return [_group(f"P²OT, {_named(problem)}, good head, rho {RHO}", contestants, setting)]


SECTIONS = {
    "sp2ot": sp2ot,
    "p2ot": p2ot,
    "rows": row_passes,
    "batch": batch,
    "backward": backward,
    "host": on_the_host,
}


def good_head_on(device, samples, classes, seed=0):
    """Return a cost like `good_head_cost`, in float32, drawn on the device itself."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = torch.from_numpy(long_tail(classes)).double().to(device)
    labels = torch.multinomial(sizes, samples, replacement=True, generator=generator)
    logits = torch.empty(samples, classes, dtype=torch.float32, device=device)
    logits.normal_(0, 2, generator=generator)
    logits[torch.arange(samples, device=device), labels] += 12
    return logits.log_softmax(dim=1).neg_()


def _semantic_arguments(setting):
    """Return the arguments of `ssot.solve` of a half-trained head, as tensors on the device."""
    samples, classes = setting.size(*SEMANTIC_SIZE)
    bank = semantic_bank(samples, classes)
    neighbours = (bank.graph.indices.astype(np.int64), bank.graph.data.astype(np.float32))
    logits = torch.from_numpy(bank.logits).to(setting.device)
    return {
        "cost": logits.log_softmax(dim=1).neg_(),
        "graph": tuple(
            torch.from_numpy(part.reshape(samples, -1)).to(setting.device) for part in neighbours
        ),
        "rho": RHO,
        "semantic_weight": ssot.semantic_weight(RHO, samples),
    }


def _named(problem):
    samples, classes = problem.cost.shape
    return f"{samples:,} x {classes:,} in {str(problem.cost.dtype).removeprefix('torch.')}"


def _group(title, contestants, setting):
    return {"title": title, "records": in_turns(contestants, setting)}


_solve = partial(ssot.solve, on_failure="return", backend="torch")


def _ssot(arguments, tol, judge, backend="torch"):
    return Contestant(
        f"ssot, {backend}",
        lambda: partial(_solve, **arguments, tol=tol, backend=backend),
        lambda solution: _of_solution(solution) | judge(solution.plan),
    )


def _of_solution(solution):
    certificate = solution.certificate
    return {
        "converged": solution.status is ssot.Status.CONVERGED,
        "column_residual": certificate.column_residual,
        "relative_gap": certificate.relative_stationarity_gap,
        "remark": f"tol {solution.tol:g}, {solution.status.name.lower()}, "
        f"{certificate.outer_steps} steps, {certificate.row_passes} readings of the cost",
    }


def _p2ot(size, setting, *, runs_on=False):
    arguments = {"cost": good_head_on(setting.device, *setting.size(*size)), "rho": RHO}
    problem = ssot.Problem(**arguments)
    judge = Judge(problem)
    contestants = [_ssot(arguments, TOL, judge), _scaling("as published", problem, judge)]
    if runs_on:
        options = {"residual": TOL, "most_sweeps": MOST_SWEEPS}
        contestants.append(_scaling("run on", problem, judge, **options))
    return _group(f"P²OT, {_named(problem)}, good head, rho {RHO}", contestants, setting)


def _scaling(manner, problem, judge, **options):
    """Return the published scaling, in float64 whatever the dtype of the cost."""

    def prepare():
        samples, classes = problem.cost.shape
        size = samples * (classes + 1) * torch.float64.itemsize
        require_memory(ARRAYS_OF_THE_SCALING * size, problem.cost.device)
        return partial(published.scale, published.LinearProblem(problem), **options)

    return Contestant(f"published scaling, {manner}", prepare, _of_published(judge))


def _of_published(judge):
    return lambda result: (
        {"converged": result.converged, "remark": f"{result.sweeps:,} sweeps in float64"}
        | judge(result.plan)
    )


def _of_heads(solutions):
    """Return the worst of what several solutions have."""
    facts = [_of_solution(solution) for solution in solutions]
    passes = ", ".join(str(solution.certificate.row_passes) for solution in solutions)
    return {
        "converged": all(fact["converged"] for fact in facts),
        "column_residual": max(fact["column_residual"] for fact in facts),
        "relative_gap": max(fact["relative_gap"] for fact in facts),
        "remark": f"tol {TOL:g}, {passes} readings of the cost",
    }


def _backward(arguments, setting):
    cost = arguments["cost"].requires_grad_()
    solve = partial(_solve, **arguments, tol=TOL)
    solution = solve()
    generator = torch.Generator(cost.device).manual_seed(1)
    cotangent = torch.empty_like(cost).normal_(generator=generator)

    def gradient():
        torch.autograd.grad(solution.plan, cost, cotangent, retain_graph=True)
        return solution.adjoint

    def of_adjoint(adjoint):
        is_minimum = "a" if adjoint.is_minimum else "no"
        return {
            "converged": adjoint.converged,
            "adjoint_residual": adjoint.residual,
            "remark": f"{adjoint.iterations} conjugate gradients, at {is_minimum} strict minimum",
        }

    contestants = (
        Contestant("forward", lambda: solve, _of_solution),
        Contestant("backward", lambda: gradient, of_adjoint),
    )
    graph = "20 neighbours" if solution.problem.has_semantics else "no graph"
    return _group(f"{_named(solution.problem)}, {graph}, rho {RHO}", contestants, setting)


def _row_passes(samples, classes, dtype, setting):
    cost = good_head_on(setting.device, samples, classes).to(dtype)
    problem = ssot.Problem(cost, rho=RHO)
    kernel = make_kernel(problem, "torch")
    prices, epsilon = np.zeros(classes + 1), problem.epsilon
    demand = np.append(problem.rho * problem.prior, 1 - problem.rho)
    softness = demand / np.append(problem.kl_weight, np.inf)
    system = System(demand, softness, fixed=None, longest=1.0)
    batch = Batch.at([kernel.bound], [None], [prices], [epsilon])
    size = QUICK_COPY_BYTES if setting.is_quick else COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    contestants = (
        Contestant("copy", lambda: partial(target.copy_, source)),
        Contestant("row sums", lambda: partial(_sums, batch, None)),
        Contestant(
            "row sums, curvature and their way to the host",
            lambda: partial(kernel.row_pass, None, prices, epsilon, system),
        ),
    )
    group = _group(_named(problem), contestants, setting)
    read = cost.numel() * cost.element_size()
    copied = 2 * size / group["records"][0]["median"]
    for record, moved in zip(group["records"], (2 * size, read, read), strict=True):
        if record["seconds"]:
            rate = moved / record["median"]
            record |= {"bytes_per_second": rate, "share_of_copy": rate / copied, "times": None}
    return group
