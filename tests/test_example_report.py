"""The deep-clustering example: scores, baselines, tables, pictures and the choice of a run."""

import io
import json

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

for library in ("torch", "sklearn", "matplotlib", "rich"):
    pytest.importorskip(library)

from rich.console import Console  # noqa: E402

from examples.deep_clustering import pictures, report  # noqa: E402
from examples.deep_clustering.baselines import BASELINES  # noqa: E402
from examples.deep_clustering.data import Dataset  # noqa: E402
from examples.deep_clustering.metrics import scores, size_groups  # noqa: E402
from examples.deep_clustering.selection import modularity  # noqa: E402
from examples.deep_clustering.starts import connected_graph, start  # noqa: E402

KEYS = [
    "accuracy",
    "balanced_accuracy",
    "nmi",
    "ari",
    "macro_f1",
    "head_recall",
    "medium_recall",
    "tail_recall",
]


# Scores


def test_a_renamed_perfect_clustering_scores_one_everywhere():
    labels = np.repeat(np.arange(10), np.arange(20, 0, -2))
    found = scores(labels, np.random.default_rng(0).permutation(10)[labels] + 5)
    assert list(found) == KEYS
    assert list(found.values()) == pytest.approx([1.0] * 8)


def test_an_imbalanced_clustering_scores_what_counting_by_hand_gives():
    labels = np.repeat([0, 1, 2], [6, 3, 1])
    clusters = np.array([2, 2, 2, 2, 2, 0, 0, 0, 0, 0])  # 2 is class 0, and 0 is class 1
    found = scores(labels, clusters)
    assert found["accuracy"] == pytest.approx(8 / 10)
    assert found["balanced_accuracy"] == pytest.approx((5 / 6 + 1 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((10 / 11 + 6 / 8 + 0) / 3)
    assert found["head_recall"] == pytest.approx(5 / 6)
    assert found["medium_recall"] == 1
    assert found["tail_recall"] == 0
    pairs_in_both, pairs_in_classes, pairs_in_clusters, pairs = 10 + 0 + 3, 15 + 3, 10 + 10, 45
    chance = pairs_in_classes * pairs_in_clusters / pairs
    expected = (pairs_in_both - chance) / ((pairs_in_classes + pairs_in_clusters) / 2 - chance)
    assert found["ari"] == pytest.approx(expected)


def test_clusters_left_over_count_as_errors_whichever_names_they_have():
    labels = np.repeat([7, 3, 9], [4, 4, 4])
    clusters = np.array([0, 0, 0, 5, 1, 1, 1, 1, 2, 2, 6, 6])
    found = scores(labels, clusters)
    assert found["accuracy"] == pytest.approx((3 + 4 + 2) / 12)
    assert found["balanced_accuracy"] == pytest.approx((3 / 4 + 1 + 2 / 4) / 3)
    assert found["macro_f1"] == pytest.approx((6 / 7 + 1 + 4 / 6) / 3)


def test_one_cluster_for_all_finds_the_largest_class_only():
    labels = np.repeat(np.arange(10), np.arange(20, 0, -2))
    found = scores(labels, np.zeros_like(labels))
    assert found["accuracy"] == pytest.approx(20 / 110)
    assert found["balanced_accuracy"] == pytest.approx(1 / 10)
    assert found["head_recall"] == pytest.approx(1 / 3)
    assert found["nmi"] == found["medium_recall"] == found["tail_recall"] == 0


def test_classes_are_split_by_size_and_ties_by_index():
    groups = size_groups(np.array([5, 90, 10, 80, 20, 70, 5, 20, 40, 50]))
    assert {name: ids.tolist() for name, ids in groups.items()} == {
        "head": [1, 3, 5],
        "medium": [9, 8, 4, 7],
        "tail": [2, 0, 6],
    }
    with pytest.raises(ValueError, match="at least 3 classes, got 2"):
        scores(np.array([0, 1]), np.array([0, 1]))


# Baselines


def blobs(classes, samples, seed=0):
    """Well-separated groups of points and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), samples)
    centres = 20 * rng.standard_normal((classes, 8))
    return centres[labels] + rng.standard_normal((len(labels), 8)), labels


def cluster(method, features, n_classes, seed=0):
    names = tuple(f"class {c}" for c in range(n_classes))
    return BASELINES[method](start(Dataset("points", features, None, names), 1, seed))


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_find_separated_groups_again_and_again(method):
    features, labels = blobs(4, 30)
    before = features.copy()
    clusters = cluster(method, features, 4, seed=3)
    assert scores(labels, clusters)["accuracy"] == 1
    np.testing.assert_array_equal(clusters, cluster(method, features, 4, seed=3))
    np.testing.assert_array_equal(features, before)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_spherical_k_means_sees_directions_only(dtype):
    features, labels = blobs(4, 30)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    lengths = np.random.default_rng(0).uniform(0.01, 100, (len(features), 1))
    found = cluster("spherical k-means", (lengths * directions).astype(dtype), 4)
    assert scores(labels, found)["accuracy"] == 1


def test_spherical_k_means_ends_where_no_step_raises_the_similarity():
    rng = np.random.default_rng(0)
    spread = np.repeat([0.3, 2.0], 150)[:, np.newaxis]  # tight groups and wide ones
    points = rng.standard_normal((6, 5)).repeat(50, axis=0) + spread * rng.standard_normal((300, 5))
    clusters = cluster("spherical k-means", rng.uniform(0.1, 10, (300, 1)) * points, 6)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    centres = np.stack([points[clusters == c].sum(axis=0) for c in range(6)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    np.testing.assert_array_equal((points @ centres.T).argmax(axis=1), clusters)


def test_spectral_clustering_takes_more_components_than_classes_and_far_outliers():
    features, labels = blobs(12, 30)  # 12 components at 20 neighbours
    assert connected_components(connected_graph(features, 12), return_labels=False) == 12
    assert connected_components(connected_graph(features, 5), return_labels=False) <= 5
    clusters = cluster("spectral clustering", features, 5)
    assert len(np.unique(clusters)) == 5
    for label in range(12):  # no group is torn
        assert len(np.unique(clusters[labels == label])) == 1

    few, labels = blobs(3, 30)
    with_outlier = np.vstack([few, np.full((1, 8), 1e6)])
    assert connected_graph(with_outlier, 3).sum(axis=1).min() > 0
    clusters = cluster("spectral clustering", with_outlier, 3)
    assert scores(labels, clusters[:-1])["accuracy"] == 1


def test_the_start_is_that_of_the_head_which_the_graph_agrees_with_most():
    features, labels = blobs(3, 30)
    begin = start(Dataset("points", features, None, ("a", "b", "c")), 2, 0)
    vars(begin)["clusters"] = [np.arange(90) % 3, labels]
    np.testing.assert_array_equal(BASELINES["merged k-means (the start)"](begin), labels)


@pytest.mark.parametrize("method", BASELINES)
def test_as_many_clusters_as_samples_are_fine(method):
    features = np.random.default_rng(0).standard_normal((12, 5))
    assert sorted(cluster(method, features, 12)) == list(range(12))


# Report


def run(seed, value, history=None):
    return {
        "seed": seed,
        "scores": {key: value + 0.01 * index for index, key in enumerate(KEYS)},
        "seconds": 4.0,
        "start_seconds": 2.5 if history else None,
        "labelling_seconds": 1.0 if history else None,
        "class_sizes": [50, 30, 15, 5][: 4 - seed],  # another seed has fewer clusters
        "true_class_sizes": [60, 35, 5],
        "history": history,
        "statuses": {"CONVERGED": 2, "STALLED": 1} if history else {},
        "settings": {"ramp": "sigmoid", "größe": 3} if history else {},
    }


@pytest.fixture
def results():
    """Two data sets, one baseline and two transport methods; P²OT comes before the baseline."""
    history = {"rho": [0.1, 0.5, 1.0], "objective": [3.0, 2.0, 1.0], "accuracy": [0.1, 0.2, 0.3]}
    of_data = {
        "P²OT": [run(seed, 0.50 + 0.02 * seed, history) for seed in range(2)],
        "k-means": [run(seed, 0.40) for seed in range(2)],
        "SP²OT": [run(seed, 0.60, history) for seed in range(2)],
    }
    return {"icd": of_data, "languages": dict(of_data)}


def test_mean_and_sample_standard_deviation_are_in_per_cent(results):
    assert str(report.summarise(results["icd"]["P²OT"], "accuracy")) == "51.0 ± 1.4"
    assert str(report.summarise(results["icd"]["P²OT"][:1], "nmi")) == "52.0"


def test_results_come_back_from_their_file_which_says_how_they_were_made(results, tmp_path):
    path = tmp_path / "results.json"
    results["icd"]["k-means"][1]["command"] = "python -m examples.deep_clustering icd --seeds 2"
    report.save(results, path)
    assert report.load(path) == results
    text = path.read_text(encoding="utf-8")
    assert "SP²OT" in text
    assert "größe" in text
    record = json.loads(text)
    assert record["seeds"] == 2
    assert set(record["versions"]) == {"python", "ssot", "numpy", "scipy", "scikit-learn", "torch"}


def test_numbers_that_json_lacks_are_refused_and_leave_no_file(results, tmp_path):
    results["icd"]["k-means"][0]["scores"]["nmi"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        report.save(results, tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_results_before(results, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    report.save(results, path)

    def fail_half_way(self, text, **_):
        self.write_bytes(text.encode()[:50])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_text", fail_half_way)
        with pytest.raises(KeyboardInterrupt):
            report.save({"icd": results["icd"]}, path)
    assert report.load(path) == results


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"results": []}',
        '{"results": {"icd": []}}',
        '{"results": {"icd": {"k-means": [3]}}}',
        '{"results": {"icd": {"k-means": {"seed": 0}}}}',
    ],
)
def test_a_file_of_something_else_is_refused_by_its_name(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is not a file of results"):
        report.load(path)


@pytest.mark.parametrize("key", report.NEEDED)
def test_a_run_that_lacks_something_is_refused(results, tmp_path, key):
    del results["icd"]["k-means"][1][key]
    report.save(results, tmp_path / "results.json")
    with pytest.raises(ValueError, match=rf"results\.json .*KeyError\('{key}'\).*delete it"):
        report.load(tmp_path / "results.json")


def test_markdown_has_a_table_for_each_data_set_with_the_best_in_bold(results):
    blocks = report.markdown_table(results).strip().split("\n\n")
    captions, tables = blocks[::2], [block.splitlines() for block in blocks[1::2]]
    over = "scores in per cent, mean ± standard deviation over 2 seeds"
    assert captions == [f"icd: {over}", f"languages: {over}"]
    for table in tables:
        assert all(line.startswith("|") and line.endswith("|") for line in table)
        assert {line.count("|") for line in table} == {len(KEYS) + 2}
        names = [line.split("|")[1].strip() for line in table]
        assert names == ["method", "---", "k-means", "P²OT", "SP²OT"]  # baselines first
        assert [line.count("**") for line in table] == [0, 0, 0, 0, 2 * len(KEYS)]
        assert table[3].split("|")[2].strip() == "51.0 ± 1.4"


def test_equals_at_the_printed_precision_are_both_bold(results):
    for of_method in results["icd"]["P²OT"]:
        of_method["scores"] = {key: 0.60004 + 0.01 * index for index, key in enumerate(KEYS)}
    table = report.markdown_table({"icd": results["icd"]}).splitlines()
    assert [line.count("**") for line in table[-2:]] == [2 * len(KEYS)] * 2


@pytest.mark.parametrize("width", [80, 200])
def test_printed_tables_cut_no_word_and_separate_the_baselines(results, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    report.print_tables(results, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = set(" ".join(lines).split())
    assert {"method", "balanced", "accuracy", "medium", "tail", "recall", "k-means"} <= words
    assert "…" not in "".join(lines)
    order = [line for line in lines if "─" in line or "k-means" in line or "OT" in line][1:6]
    kinds = ["rule" if "─" in line else line.split()[0] for line in order]
    assert kinds == ["rule", "k-means", "rule", "P²OT", "SP²OT"]


def test_the_solver_share_counts_seconds_and_statuses_of_transport_only(results):
    console = Console(file=io.StringIO(), width=120)
    report.print_solver_share(results, console)
    text = console.file.getvalue()
    assert text.count("2.5 s") == text.count("4.0 s") == text.count("1.0 s, 25%") == 4
    assert text.count("4 CONVERGED, 2 STALLED") == 4
    assert "k-means" not in text


# Pictures


def is_picture(path):
    """Whether a PNG shows something: more than one colour."""
    from matplotlib.image import imread

    return path.stat().st_size > 5000 and imread(path)[..., :3].std() > 0.01


def test_pictures_are_written_for_one_seed_and_more(results, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "DPI", 50)
    single = {"icd": {name: runs[:1] for name, runs in results["icd"].items()}}
    for name, shown in {"two": results, "one": single}.items():
        pictures.draw_comparison(shown, tmp_path / f"{name}_comparison.png")
        pictures.draw_class_sizes(shown, tmp_path / f"{name}_sizes.png")
        pictures.draw_training(shown, tmp_path / f"{name}_training.png")
    assert len(list(tmp_path.iterdir())) == 6
    assert all(is_picture(path) for path in tmp_path.iterdir())


def test_there_is_no_picture_of_training_without_training(results, tmp_path):
    baselines = {"icd": {"k-means": results["icd"]["k-means"]}}
    pictures.draw_training(baselines, tmp_path / "training.png")
    assert not list(tmp_path.iterdir())


def test_every_method_has_its_own_line_and_the_same_among_all_data_sets(results):
    every = {name: [] for name in (*BASELINES, "balanced Sinkhorn", "P²OT", "SP²OT")}
    found = pictures.styles({"icd": every})
    assert list(found) == list(every)
    assert len({style["color"] for style in found.values()}) == len(every)
    assert pictures.styles({"icd": every, "languages": results["icd"]}) == found


# Choice without labels


def two_triangles():
    """Two triangles joined by one edge."""
    edges = [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5), (2, 3)]
    graph = np.zeros((6, 6))
    for i, j in edges:
        graph[i, j] = graph[j, i] = 1
    return csr_array(graph)


def test_modularity_of_two_triangles_is_what_counting_by_hand_gives():
    graph = two_triangles()
    assert modularity([0, 0, 0, 1, 1, 1], graph) == pytest.approx(6 / 7 - 1 / 2)
    assert modularity([4, 4, 4, 4, 4, 4], graph) == pytest.approx(0)
    assert modularity(range(6), graph) == pytest.approx(-(4 * 2**2 + 2 * 3**2) / 14**2)


def test_modularity_follows_newmans_formula_and_takes_a_directed_graph_for_its_average():
    rng = np.random.default_rng(0)
    weights = rng.random((30, 30)) * (rng.random((30, 30)) < 0.3)
    clusters = rng.integers(0, 4, 30)
    symmetric = (weights + weights.T) / 2
    degrees, total = symmetric.sum(axis=0), symmetric.sum()
    together = clusters[:, None] == clusters
    expected = ((symmetric - np.outer(degrees, degrees) / total) * together).sum() / total
    for graph in (weights, weights.T, symmetric):
        assert modularity(clusters, csr_array(graph)) == pytest.approx(expected, abs=1e-12)


def test_modularity_agrees_with_networkx():
    networkx = pytest.importorskip("networkx", reason="comes with Torch")
    clusters = np.array([0, 0, 1, 1, 2, 2])
    groups = [set(np.flatnonzero(clusters == c).tolist()) for c in range(3)]
    expected = networkx.community.modularity(networkx.Graph(two_triangles().toarray()), groups)
    assert modularity(clusters, two_triangles()) == pytest.approx(expected)


def test_modularity_needs_edges():
    with pytest.raises(ValueError, match="positive total weight, got 0"):
        modularity([0, 1], csr_array((2, 2)))
