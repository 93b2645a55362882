"""Semantic graphs: which samples should share a label, as a sparse matrix of near neighbours."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ssot.adjacency import neighbour_graph
from ssot.arrays import place_of, to_numpy
from ssot.graph_options import (
    NEGLIGIBLE,
    Kernel,
    Method,
    check_bandwidth,
    check_choice,
    check_finite,
    check_flag,
    check_integer,
    check_real,
    check_shape,
    unit_scale,
)

logger = logging.getLogger(__name__)

Points: TypeAlias = Any
"""N points of D coordinates, dense or a SciPy CSR array; of float32 or float64, if no tensor."""
Indices: TypeAlias = NDArray[np.integer[Any]]
Values: TypeAlias = NDArray[np.float64]

LARGEST_EXACT = 100_000
"""Number of samples up to which ``method="auto"`` searches exactly.

The exact search takes time proportional to N^2: about 12 s at N = 50,000 for 64 features on two
cores. The approximate one takes 4 s there, after half a minute of compilation in every new process.
"""

ENTRIES_PER_BLOCK = 2**22
"""Coordinates held at a time while edges are weighed: 32 MiB of float64."""

SEARCH_MEMORY = 128
"""Distances held at a time by the exact search of sparse features, in MiB.

Twice as fast as scikit-learn's default of 1024, which falls out of the processor's caches.
"""


def knn_graph(
    features: Any,
    k: int = 20,
    *,
    kernel: Kernel = "gaussian",
    bandwidth: float | None = None,
    symmetrize: bool = False,
    include_self: bool = False,
    method: Method = "auto",
    random_state: int | None = 0,
) -> Any:
    r"""Connect each sample to its k nearest neighbours in feature space.

    The result is the semantic graph :math:`S` of the problem: :math:`S_{ij}` is large where samples
    i and j should share a label. Row i holds the k nearest neighbours of sample i, itself excepted,
    with the weight that the kernel gives to the pair:

    ============ ====================== ==========================================================
    `kernel`     nearest in             weight
    ============ ====================== ==========================================================
    "gaussian"   Euclidean distance d   :math:`\exp(-d^2 / (2 \cdot \mathrm{bandwidth}^2))`
    "cosine"     cosine similarity      :math:`\max(0, \cos(x_i, x_j))`, 0 where one is zero
    "binary"     Euclidean distance     1
    ============ ====================== ==========================================================

    Parameters
    ----------
    features : (N, D) array
        One row for each sample, in any unit: a NumPy array, nested lists, a SciPy sparse matrix or
        array, or a Torch tensor on any device that has float64 (all but Apple's MPS). Use frozen
        features of a pre-trained network; those of the head in training follow its mistakes. Never
        modified.
    k : int
        Neighbours of each sample, from 1 to N - 1; 5 to 50 in practice. Default 20 (published).
    kernel : {"gaussian", "cosine", "binary"}
        How neighbours are chosen and weighted. Default "gaussian" (published).
    bandwidth : float, optional
        Distance at which the Gaussian weight has fallen to ``exp(-1/2) = 0.61``, in the unit of
        `features`; the published graph, :math:`\exp(-d^2 / (8 D))`, is ``2 * sqrt(D)``. Default:
        the median distance over all N k edges between distinct points, which gives the same
        weights whatever the unit. Where all neighbours are duplicates every weight is 1.
    symmetrize : bool
        Return :math:`(S + S^T) / 2` instead of the directed graph :math:`S`, with up to 2 N k
        entries instead of N k. The solver uses only this average and takes it by itself, so either
        graph gives the same solution. Default False.
    include_self : bool
        Put the weight 1 on the diagonal, which is otherwise empty (published). A diagonal rewards
        confident rows of the plan rather than agreement. Default False.
    method : {"auto", "exact", "approximate"}
        Exact search by scikit-learn or approximate search by PyNNDescent, which misses a few per
        cent of the neighbours (more among features without structure) but weighs those it finds
        exactly. Default "auto": exact up to N = 100,000 (``ssot.graph.LARGEST_EXACT``) and wherever
        PyNNDescent is not installed. Tensors are searched exactly at every N, on their own device:
        "auto" is "exact" for them, and "approximate" is an error.
    random_state : int, optional
        Seed of the approximate search, 0 to 2^32 - 1; None draws a new one in each call. Default 0.

    Returns
    -------
    scipy.sparse.csr_array or torch.Tensor
        The graph, (N, N), with sorted indices and no duplicates; float32 for float32 and narrower
        floating-point features, else float64. A directed graph stores exactly k entries in each row
        (k + 1 with the diagonal), among them weights that happen to be 0. For a tensor it is a
        tensor of layout ``torch.sparse_csr`` on the same device, through which no gradients flow.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If `features` is not two-dimensional and finite, or another argument is out of its range.
    ImportError
        If scikit-learn, or PyNNDescent where asked for, is missing: the extra ``graph`` has both.
        Tensors need neither.

    Notes
    -----
    Memory is proportional to N (k + D), never to N^2. Which of several equally distant neighbours
    are kept is arbitrary. Tensors of any dtype are computed with in float64, whatever autocast and
    the flags for reduced precision say.

    References
    ----------
    Zhang, Ren and He, "SP2OT: Semantic-Regularized Progressive Partial Optimal Transport for
    Imbalanced Clustering", arXiv 2404.03446.

    Examples
    --------
    >>> from ssot import knn_graph
    >>> knn_graph([[0.0], [1.0], [5.0]], k=1, kernel="binary").toarray()
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 1., 0.]])
    """
    points = _as_points(features)
    samples = points.shape[0]
    check_choice(kernel, Kernel, "kernel")
    check_choice(method, Method, "method")
    check_flag(symmetrize, "symmetrize")
    check_flag(include_self, "include_self")
    check_integer(k, "k", 1, samples - 1, f"the largest index of {samples} samples")
    if bandwidth is not None:
        check_bandwidth(bandwidth, kernel)
        bandwidth = float(bandwidth)
    if random_state is not None:
        check_integer(random_state, "random_state", 0, 2**32 - 1, "the largest seed")
    if place_of(points).library == "torch":
        from ssot.graph_torch import check_method, tensor_graph

        check_method(method)
        return tensor_graph(
            points,
            int(k),
            kernel=kernel,
            bandwidth=bandwidth,
            symmetrize=symmetrize,
            include_self=include_self,
        )
    find = _find_approximately if _is_approximate(method, samples) else _find_exactly

    points, scale = _to_unit_scale(points)
    if kernel == "cosine":
        points = _to_unit_length(points)
    neighbours = find(_for_search(points, kernel), int(k) + 1, random_state)
    neighbours = _drop_self(neighbours)
    if kernel == "binary":
        weights = np.ones(neighbours.shape)
    elif kernel == "cosine":
        weights = np.clip(_on_edges(_row_products, points, neighbours), 0.0, 1.0)
    else:
        distances = np.sqrt(_on_edges(_squared_distances, points, neighbours))
        weights = _gaussian(distances, None if bandwidth is None else bandwidth / scale)
    return _assemble(neighbours, weights.astype(points.dtype), symmetrize, include_self)


def _as_points(features: Any) -> Points:
    """Return checked features, maybe sharing memory with the caller.

    Arrays are in the dtype to compute in; tensors, converted in blocks, are in the one they had.
    """
    if place_of(features).library == "torch":
        from ssot.graph_torch import as_points

        return as_points(features)
    points = features if sparse.issparse(features) else to_numpy(features, "features")
    check_real(points.dtype.kind in "iufb", points.dtype)
    check_shape(points.shape)
    is_single = points.dtype.kind == "f" and points.dtype.itemsize <= np.float32().itemsize
    dtype = np.dtype(np.float32 if is_single else np.float64)
    if sparse.issparse(points):
        points = sparse.csr_array(points, dtype=dtype, copy=True)
        points.sum_duplicates()
        finite = np.isfinite(points.data)
    else:
        points = np.ascontiguousarray(points, dtype)
        finite = np.isfinite(points)
    check_finite(finite.size - np.count_nonzero(finite), "numpy")
    return points


def _is_approximate(method: Method, samples: int) -> bool:
    if method == "exact" or (method == "auto" and samples <= LARGEST_EXACT):
        return False
    if find_spec("pynndescent") is not None:
        return True
    if method == "approximate":
        raise ImportError(
            "method='approximate' needs PyNNDescent, which is not installed: "
            "pip install pynndescent"
        )
    logger.warning(
        "PyNNDescent is not installed: searching the neighbours of %d samples exactly, in time "
        "proportional to the square of that; pip install pynndescent for a faster search",
        samples,
    )
    return False


def _to_unit_scale(points: Points) -> tuple[Points, float]:
    """Divide by a power of two, without rounding, so that no square can over- or underflow."""
    largest = max(float(points.max()), -float(points.min()))
    scale = unit_scale(largest, int(np.finfo(points.dtype).maxexp))
    return points * points.dtype.type(1.0 / scale), scale


def _to_unit_length(points: Points) -> Points:
    """Divide each row by its length; a zero vector stays one, so its cosine with any other is 0."""
    lengths = np.sqrt(_row_products(points, points))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > NEGLIGIBLE)
    inverse = inverse.astype(points.dtype)
    if sparse.issparse(points):
        return sparse.csr_array(sparse.diags_array(inverse)) @ points
    return points * inverse[:, np.newaxis]


def _for_search(points: Points, kernel: Kernel) -> Points:
    """Return points whose order by Euclidean distance is the kernel's order of neighbours.

    On unit vectors ``d^2 = 2 - 2 cos`` has the order of the cosine. A zero vector gets length 1 in
    a coordinate of its own: at ``d^2 = 2`` from all others, as its cosine of 0 demands.
    """
    if kernel == "cosine":
        is_zero = (_row_products(points, points) == 0).astype(points.dtype)[:, np.newaxis]
        if is_zero.any():
            stack = sparse.hstack if sparse.issparse(points) else np.hstack
            points = stack([points, is_zero])
    if sparse.issparse(points):
        return points.tocsr()
    # The search expands |x - y|^2 into products, which cancel where points are far from the origin.
    return points - points.mean(axis=0, dtype=np.float64).astype(points.dtype)


def _find_exactly(points: Points, count: int, _seed: int | None) -> Indices:
    return _search(points, points, count)


def _search(points: Points, queries: Points, count: int) -> Indices:
    try:
        from sklearn import config_context
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise ImportError("knn_graph needs scikit-learn: pip install scikit-learn") from error
    index = NearestNeighbors(n_neighbors=count).fit(points)
    with config_context(working_memory=SEARCH_MEMORY):
        found: Indices = index.kneighbors(queries, return_distance=False)
    return found


def _find_approximately(points: Points, count: int, seed: int | None) -> Indices:
    from pynndescent import NNDescent

    if seed is None:
        seed = int(np.random.default_rng().integers(2**32))
    with warnings.catch_warnings():
        # The rows it warns about are repaired below.
        warnings.filterwarnings("ignore", message="Failed to correctly find n_neighbors")
        index = NNDescent(points, n_neighbors=count, random_state=seed)
    found: Indices = index.neighbor_graph[0]
    in_order = np.sort(found, axis=1)
    is_incomplete = (in_order[:, 0] < 0) | (np.diff(in_order, axis=1) == 0).any(axis=1)
    if is_incomplete.any():
        found[is_incomplete] = _search(points, points[is_incomplete], count)
    return found


def _drop_self(found: Indices) -> Indices:
    """Leave each sample out of its own neighbours, given from near to far."""
    is_self = found == np.arange(len(found))[:, np.newaxis]
    # Among more than k duplicates a sample may not be found itself: its farthest neighbour goes.
    is_self[~is_self.any(axis=1), -1] = True
    others: Indices = found[~is_self].reshape(len(found), -1)
    return others


def _row_products(left: Points, right: Points) -> Values:
    if sparse.issparse(left):
        sums = left.multiply(right).sum(axis=1, dtype=np.float64)
        return np.asarray(sums, np.float64).ravel()
    products: Values = np.einsum("ij,ij->i", left, right, dtype=np.float64)
    return products


def _squared_distances(left: Points, right: Points) -> Values:
    difference = left - right
    return _row_products(difference, difference)


def _on_edges(
    measure: Callable[[Points, Points], Values], points: Points, neighbours: Indices
) -> Values:
    """Measure each pair of neighbours, (N, k), from the coordinates themselves.

    The distances of a search have lost digits to cancellation or to single precision.
    """
    samples, k = neighbours.shape
    block = max(1, ENTRIES_PER_BLOCK * samples // (k * max(points.size, 1)))
    values = np.empty((samples, k))
    for start in range(0, samples, block):
        ends = neighbours[start : start + block]
        own = np.repeat(np.arange(start, start + len(ends)), k)
        values[start : start + block] = measure(points[own], points[ends.ravel()]).reshape(-1, k)
    return values


def _gaussian(distances: Values, bandwidth: float | None) -> Values:
    is_apart = distances > 0
    if bandwidth is None:
        bandwidth = float(np.median(distances[is_apart])) if is_apart.any() else 1.0
    # A bandwidth of another scale than the distances may overflow to inf: its weight is 0.
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        ratios = np.divide(distances, bandwidth, out=np.zeros_like(distances), where=is_apart)
        weights: Values = np.exp(-0.5 * ratios**2)
    return weights


def _assemble(
    neighbours: Indices, weights: NDArray[Any], symmetrize: bool, include_self: bool
) -> sparse.csr_array:
    samples = len(neighbours)
    if include_self:
        neighbours = np.column_stack([neighbours, np.arange(samples)])
        weights = np.column_stack([weights, np.ones(samples, weights.dtype)])
    graph = neighbour_graph(neighbours, weights)
    if symmetrize:
        graph = ((graph + graph.T) * 0.5).tocsr()
    graph.sum_duplicates()  # sorts the indices; there are no duplicates
    return graph
