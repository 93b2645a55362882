"""Semantic graphs against brute force, and the laws they obey."""

import importlib.machinery
import logging
import subprocess
import sys
import tracemalloc
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from ssot import graph as graph_module
from ssot.graph import knn_graph

pytest.importorskip("sklearn", reason="knn_graph needs scikit-learn")

KERNELS = ["gaussian", "cosine", "binary"]

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def normal(samples, dimension=5, seed=0):
    return np.random.default_rng(seed).normal(size=(samples, dimension))


def by_brute_force(features, k, kernel, bandwidth=None):
    """Return the graph as a dense array, from all N^2 pairs."""
    difference = features[:, None] - features[None]
    distance = np.sqrt((difference**2).sum(axis=2))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T
    closeness = np.array(cosine if kernel == "cosine" else -distance)
    np.fill_diagonal(closeness, -np.inf)
    rows = np.arange(len(features))[:, None]
    nearest = np.argsort(-closeness, axis=1)[:, :k]
    if bandwidth is None:
        bandwidth = np.median(distance[rows, nearest])
    weights = {
        "gaussian": np.exp(-(distance**2) / (2 * bandwidth**2)),
        "cosine": np.maximum(cosine, 0),
        "binary": np.ones_like(distance),
    }[kernel]
    dense = np.zeros_like(distance)
    dense[rows, nearest] = weights[rows, nearest]
    return dense


def assert_well_formed(graph, samples, entries_in_a_row):
    assert isinstance(graph, sparse.csr_array)
    assert graph.shape == (samples, samples)
    assert (np.diff(graph.indptr) == entries_in_a_row).all()
    columns = graph.indices.reshape(samples, entries_in_a_row)
    assert (np.diff(columns, axis=1) > 0).all()  # sorted, each once
    assert graph.has_canonical_format
    assert np.isfinite(graph.data).all()
    assert graph.data.min() >= 0
    assert graph.data.max() <= 1


# Known answers


@given(
    samples=st.integers(2, 40),
    dimension=st.integers(1, 20),
    k_share=st.floats(0, 1),
    weighting=st.sampled_from(
        [
            ("gaussian", None),
            ("gaussian", 0.5),
            ("gaussian", 3.0),
            ("cosine", None),
            ("binary", None),
        ]
    ),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=100)
def test_neighbours_and_weights_are_those_of_brute_force(
    samples, dimension, k_share, weighting, seed
):
    kernel, bandwidth = weighting
    # In one dimension all cosines are 1 or -1, and equal neighbours may come in any order.
    features = normal(samples, dimension + (kernel == "cosine"), seed)
    k = 1 + round(k_share * (samples - 2))
    graph = knn_graph(features, k, kernel=kernel, bandwidth=bandwidth)
    assert_well_formed(graph, samples, k)
    expected = by_brute_force(features, k, kernel, bandwidth)
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-9, atol=1e-12)


def test_three_points_on_a_line():
    graph = knn_graph([[0.0], [1.0], [4.0]], k=1, bandwidth=2)
    expected = [[0, np.exp(-1 / 8), 0], [np.exp(-1 / 8), 0, 0], [0, np.exp(-9 / 8), 0]]
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-15)


def test_the_published_kernel_is_a_bandwidth_of_two_root_d():
    features = normal(30, 7)
    graph = knn_graph(features, 6, bandwidth=2 * np.sqrt(7))
    rows, columns = graph.nonzero()
    squared = ((features[rows] - features[columns]) ** 2).sum(axis=1)
    np.testing.assert_allclose(graph[rows, columns], np.exp(-squared / (8 * 7)), rtol=1e-13)


def test_by_default_the_median_edge_weighs_the_root_of_one_over_e():
    assert np.median(knn_graph(normal(101), 3).data) == pytest.approx(np.exp(-0.5))


def test_duplicates_do_not_count_in_the_default_bandwidth():
    graph = knn_graph(np.repeat(normal(101), 3, axis=0), 3)  # two duplicates and another sample
    assert np.median(graph.data) == 1
    assert np.median(graph.data[graph.data < 1]) == pytest.approx(np.exp(-0.5))


def test_the_default_k_is_the_published_one_and_is_checked():
    assert (np.diff(knn_graph(normal(21)).indptr) == 20).all()
    with pytest.raises(ValueError, match=r"^k must be from 1 to 19"):
        knn_graph(normal(20))


def test_blocks_of_edges_join_without_a_seam(monkeypatch):
    features = normal(50)
    in_one = knn_graph(features, 4)
    monkeypatch.setattr(graph_module, "ENTRIES_PER_BLOCK", 7 * 4 * 5)  # 7 samples a block
    np.testing.assert_array_equal(knn_graph(features, 4).toarray(), in_one.toarray())


# Laws


@every_kernel
@given(exponent=st.integers(-290, 290), dtype=st.sampled_from([np.float64, np.float32]))
@settings(deadline=None, max_examples=40)
def test_the_unit_of_the_features_does_not_matter(kernel, exponent, dtype):
    factor = 10.0 ** (exponent if dtype == np.float64 else exponent // 10)
    features = normal(40).astype(dtype)
    graph = knn_graph(features, 5, kernel=kernel)
    rescaled = knn_graph(features * factor, 5, kernel=kernel)
    assert rescaled.dtype == dtype
    # Rounding the product moves each coordinate by half a unit in its last place.
    np.testing.assert_allclose(
        rescaled.toarray(), graph.toarray(), rtol=0, atol=20 * np.finfo(dtype).eps
    )


@pytest.mark.parametrize("exponent", [-1070, -500, 0, 500, 1017])
def test_a_given_bandwidth_has_the_unit_of_the_features(exponent):
    features = np.round(normal(40) * 8)  # whole numbers survive among the smallest floats
    graph = knn_graph(features, 5, bandwidth=4)
    unit = np.ldexp(1.0, exponent)
    rescaled = knn_graph(features * unit, 5, bandwidth=4 * unit)
    np.testing.assert_array_equal(rescaled.toarray(), graph.toarray())


@every_kernel
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_permuted_samples_give_the_permuted_graph(kernel, seed):
    features = normal(40)
    order = np.random.default_rng(seed).permutation(40)
    graph = knn_graph(features, 6, kernel=kernel).toarray()
    permuted = knn_graph(features[order], 6, kernel=kernel).toarray()
    np.testing.assert_allclose(permuted, graph[order][:, order], rtol=1e-12)


@pytest.mark.parametrize("kernel", ["gaussian", "binary"])
@pytest.mark.parametrize("dimension", [3, 30])
def test_a_common_offset_does_not_blur_the_neighbours(kernel, dimension):
    features = np.round(normal(60, dimension) * 2**10) / 2**10  # the sum below is exact
    graph = knn_graph(features, 5, kernel=kernel)
    shifted = knn_graph(features + 2.0**30, 5, kernel=kernel)
    np.testing.assert_array_equal(shifted.toarray(), graph.toarray())


@every_kernel
def test_symmetrize_averages_with_the_transpose(kernel):
    features = normal(50)
    directed = knn_graph(features, 5, kernel=kernel).toarray()
    symmetric = knn_graph(features, 5, kernel=kernel, symmetrize=True)
    assert isinstance(symmetric, sparse.csr_array)
    assert symmetric.has_canonical_format
    np.testing.assert_array_equal(symmetric.toarray(), (directed + directed.T) / 2)
    assert abs(symmetric - symmetric.T).max() == 0


@every_kernel
@pytest.mark.parametrize("symmetrize", [False, True])
def test_include_self_adds_a_diagonal_of_ones(kernel, symmetrize):
    features = normal(50).astype(np.float32)
    options = {"kernel": kernel, "symmetrize": symmetrize}
    without = knn_graph(features, 5, **options)
    assert (without.diagonal() == 0).all()
    with_self = knn_graph(features, 5, include_self=True, **options)
    assert with_self.has_canonical_format
    assert with_self.dtype == without.dtype == np.float32
    np.testing.assert_array_equal(with_self.toarray(), without.toarray() + np.eye(50))


@every_kernel
def test_the_largest_k_connects_all_pairs(kernel):
    graph = knn_graph(normal(12), 11, kernel=kernel)
    assert_well_formed(graph, 12, 11)
    assert (graph.diagonal() == 0).all()


# Duplicates and zero vectors


@every_kernel
@pytest.mark.parametrize("dimension", [2, 40])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e150])
def test_samples_that_are_all_alike(kernel, dimension, value):
    graph = knn_graph(np.full((50, dimension), value), 4, kernel=kernel)
    assert_well_formed(graph, 50, 4)
    assert (graph.diagonal() == 0).all()
    expected = 0 if kernel == "cosine" and value == 0 else 1
    np.testing.assert_allclose(graph.data, expected, rtol=1e-14)


@every_kernel
@pytest.mark.parametrize("as_given", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("copies", [3, 10])
def test_duplicates_are_neighbours_and_a_sample_is_not_its_own(kernel, as_given, copies):
    features = np.repeat(normal(20, 20), copies, axis=0)
    graph = knn_graph(as_given(features), 4, kernel=kernel)
    assert_well_formed(graph, 20 * copies, 4)
    rows = np.repeat(np.arange(20 * copies), 4)
    assert (rows != graph.indices).all()
    is_duplicate = rows // copies == graph.indices // copies
    assert (is_duplicate.reshape(-1, 4).sum(axis=1) == min(4, copies - 1)).all()
    np.testing.assert_allclose(graph.data[is_duplicate], 1.0, rtol=1e-14)


@pytest.mark.parametrize("as_given", [np.asarray, sparse.csr_array])
def test_zero_vectors_have_cosine_zero(as_given):
    features = normal(30, 6)
    features[[3, 17]] = 0
    graph = knn_graph(as_given(features), 5, kernel="cosine")
    assert_well_formed(graph, 30, 5)
    dense = graph.toarray()
    assert (dense[[3, 17]] == 0).all()
    assert (dense[:, [3, 17]] == 0).all()
    others = np.setdiff1d(np.arange(30), [3, 17])
    alone = knn_graph(features[others], 5, kernel="cosine").toarray()
    np.testing.assert_allclose(dense[np.ix_(others, others)], alone, rtol=1e-12)


def test_cosine_prefers_a_zero_vector_to_an_opposite_one():
    graph = knn_graph([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1], [0.0, 0.0]], 1, kernel="cosine")
    assert graph.indices[0] == 3


# What goes in and comes out


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        ("float16", "float32"),
        ("float32", "float32"),
        (">f4", "float32"),
        ("float64", "float64"),
        (">f8", "float64"),
        ("longdouble", "float64"),
        ("int8", "float64"),
        ("uint16", "float64"),
        ("int64", "float64"),
    ],
)
@every_kernel
def test_dtypes(kernel, given_dtype, dtype):
    features = (normal(40, 8) * 20 + 100).astype(given_dtype)
    graph = knn_graph(features, 5, kernel=kernel)
    assert_well_formed(graph, 40, 5)
    assert graph.dtype == dtype
    wide = knn_graph(features.astype("float64"), 5, kernel=kernel)
    np.testing.assert_allclose(graph.toarray(), wide.toarray(), rtol=1e-5, atol=1e-6)


@every_kernel
@pytest.mark.parametrize(
    "as_given",
    [
        np.ndarray.tolist,
        np.asfortranarray,
        lambda features: np.repeat(features, 2, axis=0)[::2],
        sparse.csr_array,
        sparse.csr_matrix,
        sparse.csc_array,
        sparse.coo_matrix,
    ],
)
def test_forms_of_an_array(kernel, as_given):
    features = normal(40, 8)
    graph = knn_graph(as_given(features), 5, kernel=kernel)
    expected = knn_graph(features, 5, kernel=kernel)
    np.testing.assert_allclose(graph.toarray(), expected.toarray(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_kernel
def test_sparse_features_are_like_dense_ones(kernel, dtype):
    dense = normal(60, 30).astype(dtype)
    dense[np.abs(dense) < 1] = 0
    graph = knn_graph(sparse.csr_array(dense), 5, kernel=kernel)
    assert graph.dtype == dtype
    expected = knn_graph(dense, 5, kernel=kernel).toarray()
    np.testing.assert_allclose(graph.toarray(), expected, rtol=10 * np.finfo(dtype).eps)


@every_kernel
def test_sparse_entries_given_in_parts_are_summed(kernel):
    features = normal(40, 8)
    parts = [features - 3, np.full_like(features, 3)]
    columns = np.tile(np.arange(8), (40, 2))
    in_parts = sparse.csr_array(
        (np.hstack(parts).ravel(), columns.ravel(), np.arange(0, 641, 16)), shape=(40, 8)
    )
    graph = knn_graph(in_parts, 5, kernel=kernel)
    expected = knn_graph(features, 5, kernel=kernel)
    np.testing.assert_allclose(graph.toarray(), expected.toarray(), rtol=1e-12)


@every_kernel
def test_features_are_not_modified(kernel):
    dense = normal(30)
    dense.flags.writeable = False
    knn_graph(dense, 3, kernel=kernel)
    unsorted = sparse.csr_array(
        (np.ones(120), np.tile([3, 1, 1, 0], 30), np.arange(0, 121, 4)), shape=(30, 5)
    )
    before = [unsorted.data.copy(), unsorted.indices.copy(), unsorted.indptr.copy()]
    knn_graph(unsorted, 3, kernel=kernel)
    for array, kept in zip([unsorted.data, unsorted.indices, unsorted.indptr], before, strict=True):
        np.testing.assert_array_equal(array, kept)


def peak_memory(features, kernel):
    """Return the largest number of bytes held at a time while a graph is made."""
    knn_graph(features[:100], 10, kernel=kernel)  # imports are not counted
    tracemalloc.start()
    try:
        knn_graph(features, 10, kernel=kernel)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@every_kernel
@pytest.mark.parametrize("dimension", [8, 16])  # searched by a tree and by brute force
def test_memory_does_not_grow_as_the_square_of_the_samples(kernel, dimension):
    features = normal(10_000, dimension).astype(np.float32)
    assert peak_memory(features, kernel) < 10_000**2 / 2  # half a byte for each pair


def test_memory_for_sparse_features_is_limited(monkeypatch):
    monkeypatch.setattr(graph_module, "SEARCH_MEMORY", 8)
    features = normal(8000, 20)
    features[features < 1] = 0
    assert peak_memory(sparse.csr_array(features), "gaussian") < 8000**2  # a byte for each pair


@pytest.mark.parametrize("bandwidth", [5e-324, 1e-300, 1e300])
def test_extreme_bandwidths_give_weights_of_zero_or_one(bandwidth):
    features = np.vstack([normal(20), normal(20)])
    for scale in (1e-5, 1e5):
        graph = knn_graph(features * scale, 4, bandwidth=bandwidth)
        assert_well_formed(graph, 40, 4)
        assert np.isin(graph.data, [0.0, 1.0]).all()
        twins = (np.arange(40), (np.arange(40) + 20) % 40)
        assert (graph[twins] == 1).all()


# Errors


@pytest.mark.parametrize(
    ("features", "error", "fix"),
    [
        (np.zeros(5), ValueError, "shape"),
        (np.zeros((5, 2, 2)), ValueError, "reshape"),
        (np.zeros((1, 2)), ValueError, "2 samples"),
        (np.zeros((5, 0)), ValueError, "shape"),
        (sparse.coo_array(np.ones(5)), ValueError, "shape"),
        ([[1.0, 2.0], [1.0]], ValueError, "rectangular"),
        ([["a", "b"], ["c", "d"]], TypeError, "real numbers"),
        (np.zeros((5, 2), complex), TypeError, "real numbers"),
        (sparse.csr_array(np.eye(5, dtype=complex)), TypeError, "real numbers"),
        (None, TypeError, "real numbers"),
        (np.where(np.eye(5), np.nan, 0.0), ValueError, "5 entries"),
        (np.where(np.eye(5), np.inf, 0.0), ValueError, "nan_to_num"),
        (sparse.csr_array(np.diag([1, np.nan, -np.inf])), ValueError, "2 entries"),
        (sparse.csr_array(([1e308, 1e308], [0, 0], [0, 2, 2])), ValueError, "1 entries"),
    ],
)
def test_bad_features(features, error, fix):
    with pytest.raises(error, match="^features must .*" + fix):
        knn_graph(features, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be from 1 to 9 .*k=1"),
        ({"k": -3}, ValueError, "k must be from 1 to 9"),
        ({"k": 10}, ValueError, "k must be from 1 to 9 .*k=9"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"k": True}, TypeError, "k must be an integer"),
        ({"k": None}, TypeError, "k must be an integer"),
        ({"kernel": "rbf"}, ValueError, "kernel must be one of gaussian, cosine, binary"),
        ({"kernel": None}, ValueError, "kernel must be one of"),
        ({"method": "fast"}, ValueError, "method must be one of auto, exact, approximate"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be finite and above 0"),
        ({"bandwidth": -1}, ValueError, "bandwidth must be finite and above 0"),
        ({"bandwidth": np.inf}, ValueError, "bandwidth must be finite and above 0"),
        ({"bandwidth": np.nan}, ValueError, "bandwidth must be finite and above 0"),
        ({"bandwidth": "median"}, TypeError, "bandwidth must be a number"),
        ({"bandwidth": 1.0, "kernel": "binary"}, ValueError, "bandwidth belongs to kernel='gau"),
        ({"symmetrize": "mean"}, TypeError, "symmetrize must be True or False"),
        ({"include_self": 1}, TypeError, "include_self must be True or False"),
        ({"random_state": -1}, ValueError, "random_state must be from 0"),
        ({"random_state": 2**32}, ValueError, "random_state must be from 0"),
        ({"random_state": 0.5}, TypeError, "random_state must be an integer"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match="^" + message):
        knn_graph(normal(10), **{"k": 3, **options})


# The libraries that search


def test_nothing_heavy_is_imported_before_it_is_used():
    check = (
        "import sys, ssot.graph, ssot.schedule;"
        "print({'sklearn', 'pynndescent', 'numba', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn"):
        knn_graph(normal(10), 3)


def test_without_pynndescent_only_a_demand_for_it_fails(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pynndescent", None)
    monkeypatch.setattr(graph_module, "LARGEST_EXACT", 20)
    features = normal(21)
    with pytest.raises(ImportError, match=r"approximate.*pip install pynndescent"):
        knn_graph(features, 3, method="approximate")
    with caplog.at_level(logging.WARNING):
        knn_graph(features[:20], 3)
        exact = knn_graph(features, 3, method="exact")
        assert not caplog.records
        graph = knn_graph(features, 3)
    assert "pip install pynndescent" in caplog.text
    np.testing.assert_array_equal(graph.toarray(), exact.toarray())


class FlawedSearch:
    """A search with PyNNDescent's interface that leaves three rows imperfect."""

    seeds: list[int]

    def __init__(self, points, *, n_neighbors, random_state):
        self.seeds.append(random_state)
        difference = points[:, None] - points[None]
        found = np.argsort((difference**2).sum(axis=2), axis=1)[:, :n_neighbors]
        found[3, -1] = -1
        found[5, 2] = found[5, 1]
        found[7] = np.argsort((difference[7] ** 2).sum(axis=1))[1 : n_neighbors + 1]  # not itself
        self.neighbor_graph = found.astype(np.int32), None


@pytest.fixture
def flawed_search(monkeypatch):
    FlawedSearch.seeds = []
    module = types.ModuleType("pynndescent")
    module.__spec__ = importlib.machinery.ModuleSpec("pynndescent", None)
    module.NNDescent = FlawedSearch
    monkeypatch.setitem(sys.modules, "pynndescent", module)
    return FlawedSearch


@every_kernel
def test_imperfect_rows_of_the_approximate_search_are_repaired(kernel, flawed_search):
    features = normal(30)
    graph = knn_graph(features, 4, kernel=kernel, method="approximate", random_state=7)
    assert flawed_search.seeds == [7]
    assert_well_formed(graph, 30, 4)
    exact = knn_graph(features, 4, kernel=kernel, method="exact")
    np.testing.assert_array_equal(graph.toarray(), exact.toarray())


def test_auto_is_approximate_above_its_limit_only(flawed_search, monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST_EXACT", 20)
    knn_graph(normal(20), 4)
    assert flawed_search.seeds == []
    knn_graph(normal(21), 4)
    assert flawed_search.seeds == [0]


def test_no_random_state_draws_new_seeds_and_leaves_numpy_alone(flawed_search):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for _ in range(2):
        knn_graph(normal(30), 4, method="approximate", random_state=None)
    assert len(set(flawed_search.seeds)) == 2
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_the_documented_limit_is_the_one_in_force():
    assert f"N = {graph_module.LARGEST_EXACT:,}" in knn_graph.__doc__


@pytest.mark.slow  # PyNNDescent compiles for half a minute
def test_the_approximate_search_itself():
    pytest.importorskip("pynndescent", reason="needs PyNNDescent")
    features = normal(2000, 16)
    for kernel in KERNELS:
        options = {"kernel": kernel, "bandwidth": 4.0 if kernel == "gaussian" else None}
        exact = knn_graph(features, 10, method="exact", **options).toarray()
        options |= {"method": "approximate", "random_state": 3}
        graph = knn_graph(features, 10, **options)
        assert_well_formed(graph, 2000, 10)
        dense = graph.toarray()
        is_shared = (dense > 0) & (exact > 0)
        assert is_shared.sum() >= 0.9 * (exact > 0).sum()
        np.testing.assert_allclose(dense[is_shared], exact[is_shared], rtol=1e-12)
        np.testing.assert_array_equal(knn_graph(features, 10, **options).toarray(), dense)
    copies = np.repeat(normal(20), 30, axis=0)
    for hard in (np.zeros((100, 3)), copies, normal(6) * 1e60, normal(6) * 1e-60):
        graph = knn_graph(hard, 5, method="approximate")
        assert_well_formed(graph, len(hard), 5)
        assert (graph.diagonal() == 0).all()


@pytest.mark.parametrize("symmetrize", [False, True])
def test_indices_are_as_narrow_as_other_libraries_want(symmetrize):
    graph = knn_graph(normal(30), 3, symmetrize=symmetrize)
    assert graph.indices.dtype == graph.indptr.dtype == np.int32
