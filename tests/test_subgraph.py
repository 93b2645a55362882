"""The graph of some samples: what indexing a dense one gives, without a dense one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import PROFILE, SEEDS, random_graph
from scipy import sparse

import ssot


def drawn(seed, samples=17, count=9):
    """Return a graph and some of its samples in any order."""
    chosen = np.random.default_rng(seed).permutation(samples)[:count]
    return random_graph(seed, samples), chosen


def neighbours_of(graph, k=3):
    """Return k of the neighbours of each sample of a dense graph, and their weights."""
    indices = np.argsort(-graph, axis=1, kind="stable")[:, :k]
    return indices, np.take_along_axis(graph, indices, axis=1)


@PROFILE
@given(seed=SEEDS, count=st.integers(0, 17), form=st.sampled_from(["csr", "csc", "coo"]))
def test_what_indexing_a_dense_graph_gives(seed, count, form):
    graph, chosen = drawn(seed, count=count)
    part = ssot.restrict_graph(graph.asformat(form), chosen)
    assert isinstance(part, sparse.csr_array)
    part.check_format(full_check=True)
    assert np.array_equal(part.toarray(), graph.toarray()[np.ix_(chosen, chosen)])


def test_neighbours_of_samples():
    graph, chosen = drawn(0)
    indices, weights = neighbours_of(graph.toarray())
    whole = np.zeros(graph.shape)
    np.put_along_axis(whole, indices, weights, axis=1)
    expected = whole[np.ix_(chosen, chosen)]
    assert np.array_equal(ssot.restrict_graph((indices, weights), chosen).toarray(), expected)
    chosen.flags.writeable = False
    torch = pytest.importorskip("torch", reason="tensors need Torch")
    pair = torch.from_numpy(indices), torch.from_numpy(weights)
    part = ssot.restrict_graph(pair, chosen)
    assert np.array_equal(part.to_dense().numpy(), expected)


@pytest.mark.filterwarnings("ignore:Sparse (CSC|BSR|CSR|BSC) tensor support is in beta")
@pytest.mark.parametrize("layout", ["sparse_csr", "sparse_csc", "sparse_coo"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_tensors_of_any_layout_on_their_device(layout, dtype, place):
    torch = pytest.importorskip("torch", reason="tensors need Torch")
    graph, chosen = drawn(1)
    dense = torch.from_numpy(graph.toarray()).to(getattr(torch, dtype))
    tensor = dense.to_sparse(layout=getattr(torch, layout))
    with torch.inference_mode():
        part = ssot.restrict_graph(tensor.to(place.device), torch.tensor(chosen))
    assert part.layout is torch.sparse_csr
    assert part.device.type == place.device.type
    assert not part.is_inference()
    assert part.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    parts = part.crow_indices(), part.col_indices(), part.values()
    torch.sparse_csr_tensor(*parts, part.shape, check_invariants=True)
    expected = dense.to(part.dtype).numpy()[np.ix_(chosen, chosen)]
    assert np.array_equal(part.to_sparse_coo().to_dense().cpu().numpy(), expected)


def test_arrays_in_half_precision_come_back_in_single():
    graph, chosen = drawn(5)
    graph.data = graph.data.astype(np.float16)
    samples = np.arange(len(graph.indptr) - 1)[:, None]
    column = np.ones(samples.shape, np.float16)
    for form, expected in (
        (graph, graph.astype(np.float32).toarray()),
        ((samples, column), np.eye(len(samples))),
    ):
        part = ssot.restrict_graph(form, chosen)
        assert part.dtype == np.float32
        assert np.array_equal(part.toarray(), expected[np.ix_(chosen, chosen)])
    assert graph.dtype == np.float16


def test_the_plan_is_that_of_the_dense_part():
    graph, chosen = drawn(2, samples=40, count=25)
    cost = np.random.default_rng(3).exponential(size=(40, 4))[chosen]
    options = {"rho": 0.4, "semantic_weight": 2.0, "tol": 1e-10}
    part = ssot.sp2ot_plan(cost, ssot.restrict_graph(graph, chosen), **options)
    whole = ssot.sp2ot_plan(cost, graph.toarray()[np.ix_(chosen, chosen)], **options)
    assert abs(part - whole).sum() < 1e-8


def test_memory_is_that_of_the_edges():
    samples = 1_000_000  # a dense matrix of which would not fit anywhere
    starts = np.arange(samples)
    graph = sparse.csr_array(
        (np.ones(samples), ((starts, (starts + 1) % samples))), shape=(samples, samples)
    )
    chosen = np.array([5, 6, 7, 999_999, 0])
    part = ssot.restrict_graph(graph, chosen).toarray()
    assert np.array_equal(np.argwhere(part), [[0, 1], [1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("graph", "samples", "error", "message"),
    [
        (np.ones((3, 3)), [0], TypeError, "dense"),
        (sparse.csr_array((2, 3)), [0], ValueError, r"\(2, 3\)"),
        (sparse.csr_array((3, 3)), [0, 3], ValueError, "from 0 to 2"),
        (sparse.csr_array((3, 3)), [-1], ValueError, "got -1 to -1"),
        (sparse.csr_array((3, 3)), [1, 1], ValueError, "distinct"),
        (sparse.csr_array((3, 3)), [0.5], TypeError, "integers"),
        (sparse.csr_array((3, 3)), [True], TypeError, "integers"),
        (sparse.csr_array((3, 3)), [[0]], ValueError, r"\(n,\)"),
        ((np.array([[7]]), np.ones((1, 1))), [0], ValueError, "got 7 to 7"),
        ((np.array([[0]]), np.ones((2, 1))), [0], ValueError, "one shape"),
        (sparse.csr_array((3, 3), dtype=complex), [0], TypeError, "real numbers"),
        (None, [0], ValueError, "sparse"),
    ],
)
def test_what_is_refused(graph, samples, error, message):
    with pytest.raises(error, match=message):
        ssot.restrict_graph(graph, np.array(samples))


def test_dense_tensors_are_refused():
    torch = pytest.importorskip("torch", reason="tensors need Torch")
    with pytest.raises(TypeError, match=r"got torch\.strided"):
        ssot.restrict_graph(torch.eye(3), [0])


def test_starts_that_do_not_rise_are_refused():
    graph = random_graph(0, 4)
    graph.indptr[1] = graph.indptr[2] + 1
    with pytest.raises(ValueError, match="do not rise"):
        ssot.restrict_graph(graph, np.array([0, 1]))
