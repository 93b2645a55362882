"""The digits example: its helpers, and a run of the whole in small."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

for library in ("torch", "sklearn", "matplotlib", "rich"):
    pytest.importorskip(library)

EXAMPLES = Path(__file__).parents[1] / "examples"
METHODS = ["k-means", "balanced Sinkhorn", "P²OT", "SP²OT"]


@pytest.fixture
def digits(monkeypatch):
    """The example as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import digits

    yield digits
    for name in ("digits", "digits_report"):
        sys.modules.pop(name, None)


def test_class_sizes_fall_geometrically_to_the_imbalance(digits):
    sizes = digits.long_tailed_sizes(10)
    assert sizes == [170, 131, 101, 78, 61, 47, 36, 28, 21, 17]
    assert digits.long_tailed_sizes(1) == [170] * 10


def test_drawn_digits_have_these_sizes_and_come_back_for_the_same_seed(digits):
    images, labels = digits.long_tailed_digits(10, seed=3)
    assert sorted(np.bincount(labels), reverse=True) == digits.long_tailed_sizes(10)
    assert images.shape == (len(labels), 64)
    assert (images.min(), images.max()) == (0, 1)
    again, _ = digits.long_tailed_digits(10, seed=3)
    other, _ = digits.long_tailed_digits(10, seed=4)
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, other)


def test_a_renamed_perfect_clustering_scores_one_everywhere(digits):
    _, labels = digits.long_tailed_digits(10, seed=0)
    renamed = np.random.default_rng(0).permutation(10)[labels]
    assert list(digits.score(labels, renamed).values()) == pytest.approx([1.0] * 7)


def test_one_cluster_for_all_finds_the_largest_class_only(digits):
    _, labels = digits.long_tailed_digits(10, seed=0)
    scores = digits.score(labels, np.zeros_like(labels))
    assert scores["accuracy"] == pytest.approx(170 / len(labels))
    assert scores["balanced accuracy"] == pytest.approx(1 / 10)
    assert scores["recall, head"] == pytest.approx(1 / 3)
    assert scores["NMI"] == scores["recall, medium"] == scores["recall, tail"] == 0


def test_head_medium_and_tail_are_split_by_true_size(digits):
    from digits_report import size_groups

    sizes = [5, 90, 10, 80, 20, 70, 30, 60, 40, 50]
    groups = size_groups(np.repeat(np.arange(10), sizes))
    assert {name: ids.tolist() for name, ids in groups.items()} == {
        "head": [1, 3, 5],
        "medium": [7, 9, 8, 6],
        "tail": [4, 2, 0],
    }


def test_the_whole_run_writes_its_table_pictures_and_numbers(digits, tmp_path, capsys):
    digits.main(["--seeds", "1", "--rounds", "2", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("k-means", "P²OT", "balanced accuracy", "solves"))
    for picture in ("class_sizes.png", "training.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")

    record = json.loads((tmp_path / "digits.json").read_text(encoding="utf-8"))
    assert list(record["runs"]) == list(record["summary"]) == METHODS
    for name, (run,) in record["runs"].items():
        assert len(run["scores"]) == 7
        assert all(0 <= value <= 1 for value in run["scores"].values())
        assert sum(run["class_sizes"]) == sum(record["true_class_sizes"])
        assert sum(run["solves"].values()) == (0 if name == "k-means" else 2 * digits.HEADS)
    assert record["runs"]["balanced Sinkhorn"][0]["rho"] == [1, 1]
    assert record["runs"]["SP²OT"][0]["rho"][-1] == 1


def test_the_same_seed_gives_the_same_clusters(digits):
    images, _ = digits.long_tailed_digits(10, seed=0)
    graph = digits.ssot.knn_graph(images)
    first, second = (
        digits.train(images, graph, digits.METHODS["SP²OT"], rounds=1, seed=0).predictions
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--rounds", "0"], ["--imbalance", "0.5"]])
def test_bad_options_are_refused(digits, arguments, capsys):
    with pytest.raises(SystemExit):
        digits.main(arguments)
    assert arguments[0] in capsys.readouterr().err
