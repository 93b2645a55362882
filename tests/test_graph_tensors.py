"""Graphs of Torch tensors: those of the NumPy path, whatever the device, mode and precision."""

import contextlib
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssot import graph as graph_module
from ssot.graph import knn_graph

torch = pytest.importorskip("torch", reason="tensors need Torch")
pytest.importorskip("sklearn", reason="graphs of arrays, to compare with, need scikit-learn")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from ssot import graph_torch  # noqa: E402

KERNELS = ["gaussian", "cosine", "binary"]

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def normal(samples, dimension=5, seed=0):
    return np.random.default_rng(seed).normal(size=(samples, dimension))


def dense(graph):
    """Return a graph of either library as a dense array."""
    if isinstance(graph, torch.Tensor):
        return graph.to_sparse_coo().to_dense().cpu().numpy()
    return graph.toarray()


def assert_well_formed(graph, samples, entries_in_a_row=None):
    assert graph.layout is torch.sparse_csr
    assert graph.shape == (samples, samples)
    assert not graph.requires_grad
    assert not graph.is_inference()
    starts, columns, values = graph.crow_indices(), graph.col_indices(), graph.values()
    # Among the invariants: the indices of each row are sorted and distinct.
    torch.sparse_csr_tensor(starts, columns, values, graph.shape, check_invariants=True)
    if entries_in_a_row is not None:
        assert (starts.diff() == entries_in_a_row).all()
    assert values.isfinite().all()
    assert values.min() >= 0
    assert values.max() <= 1


@contextlib.contextmanager
def blocks_of(distances, coordinates):
    """Let the search and the weighing hold that many entries at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_torch, "DISTANCES_PER_BLOCK", distances)
        patch.setattr(graph_torch, "COORDINATES_PER_BLOCK", coordinates)
        yield


# The same graph as for arrays


@given(
    samples=st.integers(2, 40),
    dimension=st.integers(1, 20),
    k_share=st.floats(0, 1),
    weighting=st.sampled_from(
        [("gaussian", None), ("gaussian", 0.5), ("cosine", None), ("binary", None)]
    ),
    dtype=st.sampled_from(["float64", "float32"]),
    symmetrize=st.booleans(),
    include_self=st.booleans(),
    blocks=st.sampled_from([(1, 1), (30, 50), (200, 200), (2**24, 2**22)]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=100)
def test_the_graph_is_that_of_the_array(
    *, samples, dimension, k_share, weighting, dtype, symmetrize, include_self, blocks, seed
):
    kernel, bandwidth = weighting
    # In one dimension all cosines are 1 or -1, and equal neighbours may come in any order.
    features = normal(samples, dimension + (kernel == "cosine"), seed).astype(dtype)
    k = 1 + round(k_share * (samples - 2))
    options = {
        "kernel": kernel,
        "bandwidth": bandwidth,
        "symmetrize": symmetrize,
        "include_self": include_self,
    }
    with blocks_of(*blocks):
        graph = knn_graph(torch.from_numpy(features), k, **options)
    assert_well_formed(graph, samples, None if symmetrize else k + include_self)
    assert graph.dtype == getattr(torch, dtype)
    expected = knn_graph(features, k, **options)
    rounding = 20 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(dense(graph), dense(expected), rtol=rounding, atol=rounding)


@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [
        ("float64", "float64"),
        ("float32", "float32"),
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("uint8", "float64"),
        ("int64", "float64"),
    ],
)
@every_kernel
def test_dtypes(kernel, given_dtype, dtype):
    features = torch.from_numpy(normal(40, 60) * 20 + 100).to(getattr(torch, given_dtype))
    graph = knn_graph(features, 5, kernel=kernel)
    assert_well_formed(graph, 40, 5)
    assert graph.dtype == getattr(torch, dtype)
    wide = knn_graph(features.double().numpy(), 5, kernel=kernel)
    np.testing.assert_allclose(dense(graph), dense(wide), rtol=1e-6)


def test_truth_values_are_numbers():
    corners = torch.tensor([[False, False], [True, False], [True, True], [True, True]])
    graph = knn_graph(corners, 1, bandwidth=1.0)
    assert graph.dtype == torch.float64
    np.testing.assert_allclose(graph.values(), np.exp([-0.5, -0.5, 0, 0]))


def test_the_default_k_is_that_of_arrays():
    assert_well_formed(knn_graph(torch.from_numpy(normal(21))), 21, 20)


def test_exact_is_what_auto_does_at_every_size(monkeypatch):
    features = torch.from_numpy(normal(30))
    monkeypatch.setattr(graph_module, "LARGEST_EXACT", 20)
    graphs = [dense(knn_graph(features, 4, method=method)) for method in ("auto", "exact")]
    np.testing.assert_array_equal(*graphs)
    monkeypatch.undo()
    np.testing.assert_allclose(graphs[0], dense(knn_graph(features.numpy(), 4)), rtol=1e-13)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.T.contiguous().T,
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: torch.stack([x, -x], dim=2)[..., 0],
        lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
        torch.nn.Parameter,
        lambda x: x.clone().requires_grad_() * 1,
    ],
    ids=["transposed", "strided", "interleaved", "lazily negated", "parameter", "with history"],
)
@every_kernel
def test_views_are_detached_and_not_modified(kernel, view):
    features = view(torch.from_numpy(normal(40)))
    before, version = features.detach().clone(), features._version
    graph = knn_graph(features, 4, kernel=kernel)
    assert_well_formed(graph, 40, 4)
    expected = knn_graph(normal(40), 4, kernel=kernel)
    np.testing.assert_allclose(dense(graph), dense(expected), rtol=1e-13)
    assert torch.equal(features, before)
    assert features._version == version


# Laws


@every_kernel
@pytest.mark.parametrize("exponent", [-1070, -500, 0, 500, 1017])
def test_the_unit_of_the_features_does_not_matter(kernel, exponent):
    features = np.round(normal(40) * 8)  # whole numbers survive among the smallest floats
    bandwidth = 4.0 if kernel == "gaussian" else None
    graph = knn_graph(torch.from_numpy(features), 39, kernel=kernel, bandwidth=bandwidth)
    unit = float(np.ldexp(1.0, exponent))
    if bandwidth is not None:
        bandwidth *= unit
    rescaled = knn_graph(torch.from_numpy(features * unit), 39, kernel=kernel, bandwidth=bandwidth)
    np.testing.assert_array_equal(dense(rescaled), dense(graph))


@pytest.mark.parametrize("bandwidth", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_extreme_bandwidths_give_weights_of_zero_or_one(bandwidth, scale):
    features = torch.from_numpy(np.vstack([normal(20), normal(20)]) * scale)
    graph = knn_graph(features, 4, bandwidth=bandwidth)
    assert_well_formed(graph, 40, 4)
    assert torch.isin(graph.values(), torch.tensor([0.0, 1.0], dtype=torch.float64)).all()
    assert (dense(graph)[np.arange(40), (np.arange(40) + 20) % 40] == 1).all()


@pytest.mark.parametrize("kernel", ["gaussian", "binary"])
def test_a_common_offset_does_not_blur_the_neighbours(kernel):
    features = np.round(normal(60) * 2**10) / 2**10  # the sum below is exact
    graph = knn_graph(torch.from_numpy(features), 5, kernel=kernel)
    shifted = knn_graph(torch.from_numpy(features + 2.0**30), 5, kernel=kernel)
    np.testing.assert_array_equal(dense(shifted), dense(graph))


@every_kernel
def test_symmetrize_averages_with_the_transpose(kernel):
    features = torch.from_numpy(normal(50))
    directed = dense(knn_graph(features, 5, kernel=kernel))
    symmetric = knn_graph(features, 5, kernel=kernel, symmetrize=True)
    assert_well_formed(symmetric, 50)
    np.testing.assert_array_equal(dense(symmetric), (directed + directed.T) / 2)


# Duplicates and zero vectors


@every_kernel
@pytest.mark.parametrize("value", [0.0, 0.1, 1e150])
def test_samples_that_are_all_alike(kernel, value):
    graph = knn_graph(torch.full((50, 3), value, dtype=torch.float64), 4, kernel=kernel)
    assert_well_formed(graph, 50, 4)
    assert (dense(graph).diagonal() == 0).all()
    expected = 0 if kernel == "cosine" and value == 0 else 1
    np.testing.assert_allclose(graph.values(), expected, rtol=1e-14)


@every_kernel
@pytest.mark.parametrize("copies", [3, 10])
def test_duplicates_are_neighbours_and_a_sample_is_not_its_own(kernel, copies):
    features = torch.from_numpy(normal(20, 20)).repeat_interleave(copies, dim=0)
    graph = knn_graph(features, 4, kernel=kernel)
    assert_well_formed(graph, 20 * copies, 4)
    rows, columns = torch.arange(20 * copies).repeat_interleave(4), graph.col_indices()
    assert (rows != columns).all()
    is_duplicate = rows // copies == columns // copies
    assert (is_duplicate.reshape(-1, 4).sum(dim=1) == min(4, copies - 1)).all()
    np.testing.assert_allclose(graph.values()[is_duplicate], 1.0, rtol=1e-14)


def test_zero_vectors_have_cosine_zero():
    features = normal(30, 6)
    features[[3, 17]] = 0
    graph = knn_graph(torch.from_numpy(features), 5, kernel="cosine")
    assert_well_formed(graph, 30, 5)
    expected = knn_graph(features, 5, kernel="cosine")
    np.testing.assert_allclose(dense(graph), dense(expected), rtol=1e-12)


def test_cosine_prefers_a_zero_vector_to_an_opposite_one():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1], [0.0, 0.0]])
    assert knn_graph(features, 1, kernel="cosine").col_indices()[0] == 3


# Precision, modes and memory


@contextlib.contextmanager
def reduced_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


MODES = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "medium": reduced_precision,
    "another device": lambda: torch.device("meta"),
}

every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def tight_clusters():
    """Return float32 samples whose neighbours no product of float32 or less can tell apart."""
    centres = np.repeat(np.array([[1.0], [-1.0]]), 30, axis=0)
    return (centres + 1e-4 * normal(60, 8)).astype(np.float32)


@every_kernel
@every_mode
def test_products_are_as_precise_as_float64_in_every_mode(kernel, mode):
    features = tight_clusters()
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        graph = knn_graph(torch.from_numpy(features), 5, kernel=kernel)
        assert before == (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    assert graph.dtype == torch.float32
    assert graph.device.type == "cpu"
    assert_well_formed(graph, 60, 5)
    exact = features.astype(np.float64)
    if kernel == "cosine":
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    squared = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, math.inf)
    nearest = np.sort(squared.argsort(axis=1)[:, :5], axis=1)
    np.testing.assert_array_equal(graph.col_indices().reshape(60, 5), nearest)
    if kernel == "gaussian":
        distances = np.sqrt(np.take_along_axis(squared, nearest, axis=1))
        weights = np.exp(-0.5 * (distances / np.median(distances)) ** 2)
        np.testing.assert_allclose(graph.values().reshape(60, 5), weights, rtol=1e-6)


def test_tensors_of_the_inference_mode_are_accepted_outside_of_it():
    with torch.inference_mode():
        features = torch.from_numpy(normal(40)) * 1
    assert features.is_inference()
    graph = knn_graph(features, 4, symmetrize=True)
    assert_well_formed(graph, 40)
    coefficients = torch.ones(40, 2, dtype=torch.float64, requires_grad=True)
    (graph.to_sparse_coo() @ coefficients).sum().backward()
    assert coefficients.grad is not None


class LargestTensors(TorchDispatchMode):
    """Note the most entries of a tensor that any operation returns, and of a float64 one."""

    entries = doubles = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided:
                self.entries = max(self.entries, tensor.numel())
                if tensor.dtype == torch.float64:
                    self.doubles = max(self.doubles, tensor.numel())
        return result


@every_kernel
def test_no_tensor_is_larger_than_the_features_or_the_blocks(kernel):
    features = torch.from_numpy(normal(400, 40)).float()
    with blocks_of(2000, 1000), LargestTensors() as largest:
        graph = knn_graph(features, 3, kernel=kernel)
    assert_well_formed(graph, 400, 3)
    assert largest.entries <= features.numel()
    assert 0 < largest.doubles <= 2000


# Errors


@pytest.mark.parametrize(
    ("features", "error", "fix"),
    [
        (torch.zeros(5), ValueError, r"shape \(5,\)"),
        (torch.zeros(5, 2, 2), ValueError, "reshape"),
        (torch.zeros(1, 2), ValueError, "2 samples"),
        (torch.zeros(5, 0), ValueError, "shape"),
        (torch.zeros(5, 2, dtype=torch.complex64), TypeError, "real numbers"),
        (torch.eye(5).to_sparse(), TypeError, "dense"),
        (torch.eye(5).log(), ValueError, "20 entries .*torch.nan_to_num"),
        (torch.eye(5) * torch.nan, ValueError, "25 entries"),
        (torch.eye(5, dtype=torch.float16) / 0, ValueError, "25 entries"),
        (torch.zeros(5, 2, device="meta"), ValueError, r"meta.*features.cpu\(\)"),
    ],
)
def test_bad_features(features, error, fix):
    with blocks_of(10, 10), pytest.raises(error, match="^features .*" + fix):
        knn_graph(features, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 10}, ValueError, "k must be from 1 to 9 .*k=9"),
        ({"k": 2.0}, TypeError, "k must be an integer"),
        ({"kernel": "rbf"}, ValueError, "kernel must be one of"),
        ({"method": "fast"}, ValueError, "method must be one of"),
        ({"method": "approximate"}, ValueError, r"method='approximate' .*features.cpu\(\).numpy"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be finite and above 0"),
        ({"bandwidth": 1.0, "kernel": "cosine"}, ValueError, "bandwidth belongs to"),
        ({"symmetrize": "mean"}, TypeError, "symmetrize must be True or False"),
        ({"include_self": 1}, TypeError, "include_self must be True or False"),
        ({"random_state": -1}, ValueError, "random_state must be from 0"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match="^" + message):
        knn_graph(torch.from_numpy(normal(10)), **{"k": 3, **options})


# Torch itself


def run_apart(code):
    """Run code in a fresh interpreter, where any warning is an error, and return what it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_torch_warns_of_nothing_though_it_is_the_first_sparse_tensor():
    code = "import torch, ssot; print(ssot.knn_graph(torch.eye(3), 1, symmetrize=True).layout)"
    assert run_apart(code).strip() == "torch.sparse_csr"


def test_graphs_of_arrays_do_not_import_torch():
    code = "import sys, ssot; ssot.knn_graph([[0.0], [1.0]], 1); print('torch' in sys.modules)"
    assert run_apart(code).strip() == "False"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_kernel
@pytest.mark.parametrize("mode", [contextlib.nullcontext, reduced_precision])
@pytest.mark.parametrize("symmetrize", [False, True])
def test_cuda_is_like_the_cpu(kernel, mode, symmetrize):
    options = {"k": 5, "kernel": kernel, "symmetrize": symmetrize}
    for features in (tight_clusters(), normal(3000, 30), normal(300, 30).astype(np.float16)):
        tensor = torch.from_numpy(features)
        with mode(), torch.autocast("cuda", torch.float16), blocks_of(2**20, 2**16):
            graph = knn_graph(tensor.cuda(), **options)
        assert graph.device.type == "cuda"
        assert_well_formed(graph, len(features), None if symmetrize else 5)
        expected = knn_graph(tensor, **options)
        assert graph.dtype == expected.dtype
        np.testing.assert_allclose(dense(graph), dense(expected), rtol=1e-6)
