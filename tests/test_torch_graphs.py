"""Graphs of tensors: every form gives the same W, and malformed ones are refused."""

from itertools import pairwise

import numpy as np
import pytest
from problems import distance, moved, random_graph, symmetrised
from scipy import sparse

import ssot
from ssot.arrays import HOST, Place

torch = pytest.importorskip("torch", reason="tensors need Torch")

CPU = Place("torch", torch.device("cpu"))

each_dtype = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["double", "single"])

SAMPLES = 12
DIRECTED = random_graph(0, SAMPLES).toarray()
W = symmetrised(sparse.csr_array(DIRECTED))
COST = np.random.default_rng(0).random((SAMPLES, 4))


def with_duplicates(graph):
    """Return the graph as a COO tensor in which each edge comes as two of a half, in disorder."""
    targets = graph.nonzero()
    indices = torch.cat([targets, targets.flip(0)]).T
    values = graph[tuple(targets.T)] / 2
    values = torch.cat([values, values.flip(0)])
    return torch.sparse_coo_tensor(indices, values, graph.shape, check_invariants=True)


def as_pair(graph):
    """Return (indices, weights) with as many neighbours for each, some of weight 0."""
    most = int((graph != 0).sum(1).max())
    indices = (graph == 0).int().argsort(dim=1, stable=True)[:, :most]
    return indices, graph.gather(1, indices)


def unsorted_rows(graph):
    rows = graph.to_sparse_csr()
    starts, columns, values = rows.crow_indices(), rows.col_indices(), rows.values()
    backwards = [torch.arange(b - 1, a - 1, -1) for a, b in pairwise(starts.tolist())]
    order = torch.cat(backwards).to(columns.device)
    parts = (starts, columns[order], values[order])
    return torch.sparse_csr_tensor(*parts, graph.shape, check_invariants=False)


FORMS = {
    "dense": lambda graph: graph,
    "transposed view": lambda graph: graph.T,
    "COO": lambda graph: graph.to_sparse(),
    "COO with duplicates": with_duplicates,
    "CSR": lambda graph: graph.to_sparse_csr(),
    "CSR in disorder": unsorted_rows,
    "CSC": lambda graph: graph.to_sparse_csc(),
    "BSR": lambda graph: graph.to_sparse_bsr((2, 3)),
    "BSC": lambda graph: graph.to_sparse_bsc((3, 2)),
    "pair": as_pair,
    "pair of small integers": lambda graph: (as_pair(graph)[0].to(torch.uint8), as_pair(graph)[1]),
    "requires gradients": lambda graph: graph.clone().requires_grad_().to_sparse(),
    "SciPy": lambda graph: sparse.csr_array(graph.cpu().numpy()),
}

beta = pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC|BSR|BSC) tensor support is in beta")


@beta
@each_dtype
@pytest.mark.parametrize("name", FORMS)
def test_a_graph_may_come_in_any_form(name, dtype, place):
    graph = FORMS[name](moved(DIRECTED, place))
    problem = ssot.Problem(moved(COST.astype(dtype), place), graph)
    found = problem.graph.to_scipy()
    assert problem.graph.weights.device == place.device
    assert found.dtype == dtype
    assert found.has_canonical_format
    np.testing.assert_allclose(found.toarray(), W, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_array, sparse.coo_array, np.asarray])
def test_a_graph_of_numpys_for_the_torch_backend(form):
    expected = ssot.solve(moved(COST, CPU), moved(DIRECTED, CPU), semantic_weight=1.0)
    solution = ssot.solve(COST, form(DIRECTED), semantic_weight=1.0, backend="torch")
    assert isinstance(solution.plan, np.ndarray)
    np.testing.assert_allclose(solution.plan, expected.plan.numpy(), rtol=0, atol=1e-12)


EMPTY = {
    "dense": lambda: torch.zeros(SAMPLES, SAMPLES),
    "COO": lambda: torch.zeros(SAMPLES, SAMPLES).to_sparse(),
    "CSR": lambda: torch.zeros(SAMPLES, SAMPLES).to_sparse_csr(),
    "pair": lambda: (torch.zeros(SAMPLES, 0, dtype=torch.int64), torch.zeros(SAMPLES, 0)),
    "SciPy": lambda: sparse.csr_array((SAMPLES, SAMPLES)),
}


@beta
@pytest.mark.parametrize("name", EMPTY)
def test_a_graph_without_edges_pulls_nothing(name, place):
    cost, graph = moved(COST, place), EMPTY[name]()
    graph = tuple(part.to(place.device) for part in graph) if name == "pair" else graph
    graph = graph.to(place.device) if torch.is_tensor(graph) else graph
    options = {"rho": 0.5, "tol": 1e-12, "backend": "torch"}
    solution = ssot.solve(cost, graph, semantic_weight=3.0, **options)
    expected = ssot.solve(cost, **options)
    assert solution.certificate.provably_convex
    assert solution.objective.semantic == 0
    # The first plan, solved to tol^(3/4), is kept where its gap is small.
    assert distance(moved(solution.plan, HOST), moved(expected.plan, HOST)) <= 1e-8


def compressed(starts, columns):
    values = torch.ones(len(columns), dtype=torch.float64)
    parts = (torch.tensor(starts), torch.tensor(columns), values)
    return torch.sparse_csr_tensor(*parts, (3, 3), check_invariants=False)


def pair(indices, weights):
    return torch.tensor(indices), torch.tensor(weights, dtype=torch.float64)


ONES = torch.ones(3, 3, dtype=torch.float64)
MALFORMED = {
    "other samples": (lambda: torch.ones(2, 2).to_sparse(), r"graph must have shape \(N, N\)"),
    "one dimension": (lambda: ONES[0], r"graph must have shape \(N, N\)"),
    "several": (lambda: ONES.expand(2, 3, 3), r"graph must have shape \(N, N\)"),
    "NaN": (lambda: torch.full((3, 3), torch.nan).to_sparse(), "graph must have finite weights"),
    "inf": (lambda: ONES * torch.inf, "graph must have finite weights"),
    "huge": (lambda: ONES * 1e200, "graph has weights above"),
    "complex": (lambda: ONES.to(torch.complex128).to_sparse(), "graph must hold real numbers"),
    "one sparse dimension": (lambda: ONES.to_sparse(1), "graph must have two sparse dimensions"),
    "column too large": (lambda: compressed([0, 1, 2, 3], [0, 7, 1]), "graph .* from 0 to 2, .* 7"),
    "column below 0": (lambda: compressed([0, 1, 2, 3], [0, -1, 1]), "graph .* 0 to 2, got -1"),
    "rows beyond the end": (lambda: compressed([0, 1, 2, 9], [0, 1, 2]), "graph must be a well-f"),
    "rows that fall": (lambda: compressed([0, 2, 1, 3], [0, 1, 2]), "graph must be a well-formed"),
    "rows from 1": (lambda: compressed([1, 1, 2, 3], [0, 1, 2]), "graph must be a well-formed"),
    "COO out of range": (
        lambda: torch.sparse_coo_tensor([[0], [5]], [1.0], (3, 3), check_invariants=False),
        "graph must hold indices from 0 to 2, got 0 to 5",
    ),
    "one part": (lambda: (ONES,), r"graph as a tuple must be \(indices, weights\)"),
    "fractions": (lambda: (ONES, ONES), r"graph\[0\] must hold integer"),
    "neighbour too large": (lambda: pair([[3]] * 3, [[1]] * 3), r"graph\[0\] must hold indices"),
    "neighbour below 0": (lambda: pair([[-1]] * 3, [[1]] * 3), r"graph\[0\] must hold indices"),
    "two shapes": (lambda: pair([[1]] * 3, [[1, 2]] * 3), "graph must be two arrays of one shape"),
    "complex weights": (lambda: (pair([[1]] * 3, [[1]] * 3)[0], ONES[:, :1] * 1j), r"graph\[1\]"),
    "two libraries": (lambda: (np.ones((3, 1), int), ONES[:, :1]), "one library .* graph"),
    "two libraries, turned": (
        lambda: (torch.ones(3, 1, dtype=torch.int64), np.ones((3, 1))),
        "one library .* graph",
    ),
    "no data": (lambda: ONES.to("meta"), "graph is a tensor on meta"),
}


@beta
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_graphs_are_refused(name):
    make, message = MALFORMED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        ssot.solve(torch.ones(3, 2, dtype=torch.float64), make())
