"""Problems for several processes: what each rank is given, and what becomes of it."""

from dataclasses import dataclass, field

import numpy as np
from conftest import DATA
from problems import full_case, linear_case
from scipy import sparse

import ssot

TOL = 1e-11

FAR_CASES = (
    "graph, torch",
    "many classes, torch",
    "linear_1",
    "no rows in the middle",
    "many classes, no rows in the middle",
    "no slack entropy, torch",
)


@dataclass
class Case:
    """A whole problem, and how many rows each of two or four ranks holds of it."""

    cost: np.ndarray
    graph: sparse.csr_array | None = None
    options: dict = field(default_factory=dict)
    shares: tuple = (0.4, 0.1, 0.3, 0.2)
    backend: str = "numpy"
    value_tol: float = 1e-10

    def bounds(self, size):
        """Return where the rows of each rank begin and end; of two or more, one may have none."""
        shares = np.array(self.shares[:size])
        ends = np.round(np.cumsum(shares) / shares.sum() * len(self.cost)).astype(int)
        return np.append(0, ends)

    def rows(self, rank, size):
        """Return the rows of a rank."""
        first, last = self.bounds(size)[rank : rank + 2]
        return slice(int(first), int(last))

    def arguments(self, rows):
        """Return the arguments of `solve` for some of the rows."""
        given = dict(self.options)
        if "sample_weight" in given:
            given["sample_weight"] = given["sample_weight"][rows]
        if self.graph is not None:
            given["graph"] = self.graph[rows]
        return {"cost": self.cost[..., rows, :], **given, "backend": self.backend, "tol": TOL}


def cases():
    """Return the problems by name."""
    found = {f"{path.stem}": _linear(path) for path in sorted(DATA.glob("linear_*.npz"))}
    found |= {f"{path.stem}": _published(path) for path in sorted(DATA.glob("published_*.npz"))}
    rng = np.random.default_rng(0)
    weighted = linear_case(3, samples=60, weights="random")
    found["weighted"] = Case(weighted.cost, options=weighted.options, shares=(0.5, 0.0, 0.5, 0.0))
    masked = rng.gumbel(size=(90, 6))
    masked[rng.random(masked.shape) < 0.3] = np.inf
    masked[:, 2] = np.inf
    masked[:, 0] = rng.gumbel(size=90)
    found["masked"] = Case(masked, options={"rho": 0.7, "kl_weight": 2.0})
    found["hard sizes"] = Case(rng.gumbel(size=(80, 7)), options={"kl_weight": np.inf})
    full = full_case(5)
    for backend in ("numpy", "numba", "torch"):
        found[f"graph, {backend}"] = Case(
            full.cost, full.graph, full.options, backend=backend, value_tol=1e-8
        )
    found["no rows in the middle"] = Case(
        full.cost, full.graph, full.options, shares=(0.6, 0.0, 0.4, 0.0), value_tol=1e-8
    )
    many = 3.0 * rng.gumbel(size=(700, 150))
    for backend in ("numpy", "numba", "torch"):
        found[f"many classes, {backend}"] = Case(many, options={"rho": 0.4}, backend=backend)
    found["many classes, no rows in the middle"] = Case(
        many, options={"rho": 0.4}, shares=(0.6, 0.0, 0.4, 0.0), backend="numba"
    )
    for backend in ("numpy", "numba", "torch"):
        options = {"rho": 0.4, "slack_entropy": False}
        found[f"no slack entropy, {backend}"] = Case(many[:, :20], None, options, backend=backend)
    found["many rows"] = Case(2.0 * rng.gumbel(size=(40_000, 12)), options={"rho": 0.2})
    return found


def _linear(path):
    with np.load(path) as file:
        case = dict(file)
    names = ("rho", "epsilon", "kl_weight", "prior", "sample_weight")
    return Case(case["cost"], options={name: case[name] for name in names})


def _published(path):
    with np.load(path) as file:
        case = dict(file)
    samples = len(case["logits"])
    parts = (case["graph_data"], case["graph_indices"], case["graph_indptr"])
    graph = sparse.csr_array(parts, shape=(samples, samples))
    names = ("rho", "epsilon", "kl_weight", "semantic_weight")
    cost = ssot.Problem(logits=case["logits"].astype(np.float64)).cost
    return Case(cost, graph, {name: case[name] for name in names}, value_tol=1e-8)
