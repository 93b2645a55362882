"""The deep-clustering example: starts and the training loop."""

import dataclasses

import numpy as np
import pytest

for library in ("torch", "sklearn"):
    pytest.importorskip(library)

import torch  # noqa: E402

from examples.deep_clustering import starts  # noqa: E402
from examples.deep_clustering import training as module  # noqa: E402
from examples.deep_clustering.data import Dataset, load  # noqa: E402
from examples.deep_clustering.methods import METHODS  # noqa: E402
from examples.deep_clustering.metrics import scores  # noqa: E402
from examples.deep_clustering.starts import (  # noqa: E402
    IndistinctError,
    connected_graph,
    merged,
    small_clusters,
    smoothed,
    start,
)
from examples.deep_clustering.training import CheckpointError, Settings, Training  # noqa: E402
from ssot.training import AdaptivePrior  # noqa: E402

SIZES = [120, 60, 24, 12, 6]
SMALL = Settings(heads=2, rounds=4, updates=3, batch=64)
BANK = Settings(heads=2, rounds=4, batch=32, bank=96)


def blobs(sizes=SIZES, seed=0):
    """Well separated groups of very different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 10 * np.eye(len(sizes), 8)
    features = centres[labels] + rng.standard_normal((len(labels), 8))
    names = tuple(f"blob {c}" for c in range(len(sizes)))
    return Dataset("blobs", features.astype(np.float32), labels, names)


def stripes():
    """Images of a bright row, a bright column or a bright diagonal, with noise."""
    rng = np.random.default_rng(0)
    patterns = np.zeros((3, 1, 8, 8))
    patterns[0, 0, 3:5], patterns[1, 0, :, 3:5], patterns[2, 0] = 1, 1, np.eye(8)
    labels = rng.permutation(np.repeat([0, 1, 2], [40, 20, 10]))
    images = np.clip(patterns[labels] + 0.1 * rng.random((70, 1, 8, 8)), 0, 1)
    return Dataset("stripes", images.astype(np.float32), labels, ("row", "column", "diagonal"))


@pytest.fixture(scope="module")
def begin():
    return start(blobs(), heads=2, seed=0)


def train(begin, method="SP²OT", settings=SMALL, **options):
    training = Training(begin, METHODS[method], settings)
    training.run(**options)
    return training


def accuracy(training):
    return scores(training.data.labels, training.clusters())["accuracy"]


def equal(first, second):
    """Whether two nested states are the same, bit for bit; seconds are never."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            equal(value, second[key]) for key, value in first.items() if "seconds" not in str(key)
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


# Starts


@pytest.mark.parametrize("n_classes", [2, 5, 40])
def test_starts_have_no_empty_cluster_whatever_the_number_of_classes(n_classes):
    data = blobs([60, 30, 12, 6])
    data = dataclasses.replace(data, class_names=tuple(map(str, range(n_classes))))
    clusters = start(data, heads=3, seed=1).clusters
    assert len(clusters) == 3
    for of_head in clusters:
        assert of_head.shape == (108,)
        assert sorted(set(of_head)) == list(range(n_classes))


def test_starts_are_the_same_for_the_same_seed_alone():
    data = dataclasses.replace(blobs(), class_names=tuple("abcdefghijkl"))  # blobs are torn
    first, again, other = (start(data, heads=3, seed=seed) for seed in (0, 0, 1))
    for one, two in zip(first.clusters, again.clusters, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.graph != again.graph).nnz == 0
    assert not np.array_equal(first.clusters[0], other.clusters[0])
    assert not np.array_equal(first.clusters[0], first.clusters[1])


def test_clusters_to_start_at_are_made_for_a_training_from_its_beginning_alone(tmp_path):
    begin, checkpoint = start(blobs(), heads=2, seed=0), tmp_path / "run.checkpoint"
    assert "clusters" not in vars(begin)
    train(begin, checkpoint=checkpoint)
    assert "clusters" in vars(begin)
    again = start(blobs(), heads=2, seed=0)
    resumed = train(again, checkpoint=checkpoint)
    assert "clusters" not in vars(again)
    assert resumed.history.start_seconds > begin.clusters_seconds > 0


def test_the_seconds_of_the_start_count_for_every_training_whoever_had_it_made(begin):
    assert begin.clusters
    for method in ("UOT", "SP²OT"):
        training = train(begin, method)
        assert training.history.start_seconds > begin.clusters_seconds > 0


def test_smoothing_brings_a_class_together_and_outliers_to_it():
    labels = np.repeat([0, 1], 60)
    rng = np.random.default_rng(0)
    features = np.eye(2, 6)[labels] + 0.3 * rng.standard_normal((120, 6))
    features[0] = 0.5 * np.eye(6)[0] + np.eye(6)[5]  # far out
    smooth = smoothed(features, connected_graph(features, 2))
    np.testing.assert_allclose(np.linalg.norm(smooth, axis=1), 1)
    plain = features / np.linalg.norm(features, axis=1, keepdims=True)
    for of_class in (0, 1):
        before, after = plain[labels == of_class], smooth[labels == of_class]
        assert after.var(axis=0).sum() < 0.2 * before.var(axis=0).sum()
    assert smooth[0] @ smooth[1:60].mean(axis=0) > 0.9 > plain[0] @ plain[1:60].mean(axis=0)


def test_small_clusters_merge_along_the_graph_and_swallow_no_rare_class():
    data = blobs([400, 100, 12])
    graph = connected_graph(data.inputs, 3)
    smooth = smoothed(data.inputs, graph)
    parts = small_clusters(smooth, 3, seed=0)
    assert 55 <= len(set(parts)) <= 60
    for power in (0.0, 0.5):
        found = merged(parts, smooth, graph, 3, power)
        assert scores(data.labels, found)["accuracy"] == 1


@pytest.mark.parametrize(("margin", "counts_alike"), [(0.003, True), (0.005, False)])
def test_small_clusters_count_alike_unless_that_loses_modularity(
    begin, monkeypatch, margin, counts_alike
):
    by_power = {0.0: 0.8 * (1 - margin), 0.5: 0.8}
    monkeypatch.setattr(starts, "merged", lambda *arguments: arguments[-1])
    monkeypatch.setattr(starts, "modularity", lambda power, _graph: by_power[power])
    clusters = dataclasses.replace(begin).clusters
    assert clusters == [0.0 if counts_alike else 0.5] * 2


def test_samples_may_be_there_many_times_but_not_all_be_the_same():
    data = blobs([3, 3, 2, 2, 1])
    data = dataclasses.replace(data, inputs=data.inputs.repeat(20, axis=0), labels=None)
    begin = start(data, heads=2, seed=0)
    assert all(len(set(clusters)) == 5 for clusters in begin.clusters)
    assert set(train(begin).clusters()) <= set(range(5))

    constant = dataclasses.replace(data, inputs=np.ones_like(data.inputs))
    with pytest.raises(IndistinctError, match=r"5 distinct directions or more.*class; got 1"):
        start(constant, heads=2, seed=0)


@pytest.mark.parametrize("rows", [3, 40])
def test_samples_on_a_line_have_two_directions(rows):
    line = np.linspace(-1, 1.3, rows)[:, None] * [0.3, -0.7, 0.2]
    data = Dataset("line", line.astype(np.float32), None, ("a", "b", "c"))
    with pytest.raises(IndistinctError, match=r"3 distinct directions or more.*got 2"):
        start(data, heads=2, seed=0)


def test_samples_that_smoothing_makes_equal_are_refused():
    data = Dataset("two", np.eye(2, dtype=np.float32), None, ("a", "b"))
    with pytest.raises(IndistinctError, match=r"2 distinct directions or more.*got 1"):
        assert start(data, heads=2, seed=0).clusters


# Training


@pytest.mark.parametrize("settings", [SMALL, BANK], ids=["all samples", "memory bank"])
def test_blobs_of_very_different_sizes_are_found(begin, settings):
    training = train(begin, settings=settings)
    assert accuracy(training) == 1
    assert training.predict().shape == (2, sum(SIZES), len(SIZES))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_tells_of_each_round(begin, method):
    training = train(begin, method)
    history = training.history
    assert training.round == len(history.rho) == len(history.objective) == SMALL.rounds
    assert history.rho[-1] == pytest.approx(1)
    assert history.rho == sorted(history.rho)
    assert (history.rho[0] == 1) == (method in {"balanced Sinkhorn", "UOT"})
    assert sum(history.statuses.values()) == SMALL.heads * SMALL.rounds
    assert 0 < history.labelling_seconds < history.seconds
    assert history.accuracy == []
    prior = training.labeler.prior
    assert isinstance(prior, AdaptivePrior) == METHODS[method].adaptive_prior
    if isinstance(prior, AdaptivePrior):
        assert prior.value.max() > 1.1 / len(SIZES)
    assert set(training.clusters()) <= set(range(len(SIZES)))


def test_a_memory_bank_is_filled_and_all_its_solves_are_counted(begin):
    training = train(begin, settings=BANK)
    assert len(training.history.rho) == BANK.rounds
    assert len(training.labeler.bank) == BANK.bank
    solves = BANK.heads * BANK.rounds * -(-sum(SIZES) // BANK.batch)
    assert sum(training.history.statuses.values()) == solves


def test_the_head_that_the_graph_agrees_with_is_kept(begin):
    labels = begin.data.labels
    for kept in (0, 1):
        clusters = [np.roll(labels, 1), np.roll(labels, 1)]
        clusters[kept] = labels
        means = [[begin.features[of == c].mean(axis=0) for c in range(5)] for of in clusters]
        training = Training(begin, METHODS["SP²OT"], SMALL)
        training.network.start_at(torch.tensor(np.array(means)))
        np.testing.assert_array_equal(training.clusters(), labels)


def test_the_network_learns_from_disturbed_views(begin, monkeypatch):
    views, learnt_from, disturbed = [], [], module.disturbed
    monkeypatch.setattr(
        module, "disturbed", lambda *given: views.append(disturbed(*given)) or views[-1]
    )
    training = Training(begin, METHODS["UOT"], SMALL)

    def note(_network, inputs):
        if torch.is_grad_enabled():
            learnt_from.extend(inputs)

    training.network.register_forward_pre_hook(note)
    training.run()
    assert len(views) == len(learnt_from) == SMALL.rounds * SMALL.updates
    assert all(view is inputs for view, inputs in zip(views, learnt_from, strict=True))


def test_training_mends_a_start_that_tears_the_largest_class_and_joins_the_smallest(begin):
    labels = begin.data.labels
    spoilt = np.where(labels == 4, 3, labels)
    spoilt[np.flatnonzero(labels == 0)[::2]] = 4
    begin = dataclasses.replace(begin)
    vars(begin)["clusters"] = [spoilt, spoilt]
    training = train(begin, settings=dataclasses.replace(SMALL, rounds=8, learning_rate=0.05))
    before = scores(labels, spoilt)["accuracy"]
    assert before < 0.8
    assert accuracy(training) > before + 0.05


@pytest.mark.parametrize("settings", [SMALL, BANK], ids=["all samples", "memory bank"])
def test_the_same_seed_gives_the_same_whatever_the_labels_and_the_global_generator(begin, settings):
    torch.manual_seed(1)
    first = train(begin, settings=settings)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    unlabelled = dataclasses.replace(begin.data, labels=None)
    second = train(start(unlabelled, heads=2, seed=0), settings=settings)
    assert equal(first.state_dict(), second.state_dict())
    np.testing.assert_array_equal(first.clusters(), second.clusters())
    assert torch.equal(torch.get_rng_state(), state)
    other = train(dataclasses.replace(begin, seed=1), settings=settings)
    assert not equal(first.network.state_dict(), other.network.state_dict())


def test_a_network_from_scratch_does_not_join_its_classes_before_it_can_tell_them_apart():
    begin = start(load("digits", seed=101), heads=1, seed=101)
    training = train(begin, settings=Settings(heads=1, rounds=1, batch=256))
    sizes = np.bincount(training.clusters(), minlength=10)
    assert sizes.min() > 0
    assert sizes.max() < len(begin.data.labels) / 3


def test_images_are_clustered_from_scratch_and_the_same_again():
    begin = start(stripes(), heads=2, seed=0)
    assert begin.features.shape == (70, 32)
    training = train(begin)
    assert training.predict().shape == (2, 70, 3)
    assert training.clusters().shape == (70,)
    assert accuracy(training) > 0.9
    torch.manual_seed(1)
    assert equal(train(begin).state_dict(), training.state_dict())
    assert any(
        not torch.equal(new, old)
        for new, old in zip(
            training.network.trunk.parameters(),
            Training(begin, METHODS["SP²OT"], SMALL).network.trunk.parameters(),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    "settings",
    [
        Settings(heads=1, rounds=2, updates=2),  # a batch larger than the data
        Settings(heads=1, rounds=2, batch=10, bank=10),
        Settings(heads=2, rounds=2, updates=1, batch=1),
        Settings(heads=2, rounds=1, batch=200, bank=5000),  # a bank larger than the data
    ],
    ids=["one head", "bank of a batch", "batch of one", "large bank"],
)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_few_classes_and_extreme_settings_are_fine(n_classes, settings):
    begin = start(blobs([30, 8, 3][:n_classes]), settings.heads, seed=0)
    training = train(begin, "SP²OT, adaptive prior", settings)
    assert np.isfinite(training.history.objective).all()
    assert training.predict().isfinite().all()


# Checkpoints


class Stopped(Exception):  # noqa: N818 - not an error
    pass


def interrupted(begin, method, settings, checkpoint, stop_after):
    """Train until a round has been trained, but not saved."""
    training = Training(begin, METHODS[method], settings)

    def stop():
        if training.round == stop_after:
            raise Stopped

    with pytest.raises(Stopped):
        training.run(checkpoint, stop)


@pytest.mark.parametrize("stop_after", range(1, SMALL.rounds + 1))
@pytest.mark.parametrize(
    ("method", "settings"), [("SP²OT, adaptive prior", SMALL), ("SP²OT", BANK)]
)
def test_an_interrupted_training_goes_on_bit_for_bit(begin, tmp_path, method, settings, stop_after):
    checkpoint = tmp_path / "run.checkpoint"
    interrupted(begin, method, settings, checkpoint, stop_after)
    assert checkpoint.exists() == (stop_after > 1)
    resumed, rounds = Training(begin, METHODS[method], settings), []
    resumed.run(checkpoint, lambda: rounds.append(resumed.round))
    assert rounds == list(range(stop_after, settings.rounds + 1))
    whole = train(begin, method, settings)
    assert equal(resumed.state_dict(), whole.state_dict())
    np.testing.assert_array_equal(resumed.clusters(), whole.clusters())


def test_images_go_on_bit_for_bit(tmp_path):
    begin, checkpoint = start(stripes(), heads=2, seed=0), tmp_path / "run.checkpoint"
    interrupted(begin, "P²OT", SMALL, checkpoint, 3)
    resumed = train(begin, "P²OT", checkpoint=checkpoint)
    assert equal(resumed.state_dict(), train(begin, "P²OT").state_dict())


def test_a_finished_training_is_not_trained_on(begin, tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    whole = train(begin, checkpoint=checkpoint)
    again = train(begin, checkpoint=checkpoint, on_round=pytest.fail)
    assert equal(again.state_dict(), whole.state_dict())


def other_inputs(begin):
    data = dataclasses.replace(begin.data, inputs=begin.data.inputs + 1)
    return dataclasses.replace(begin, data=data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: (b, METHODS["P²OT"], SMALL), "semantic_strength 0.8;.*semantic_strength 0.0"),
        (lambda b: (b, METHODS["SP²OT"], dataclasses.replace(SMALL, rounds=9)), "rounds 9"),
        (lambda b: (dataclasses.replace(b, seed=3), METHODS["SP²OT"], SMALL), "seed 3"),
        (lambda b: (other_inputs(b), METHODS["SP²OT"], SMALL), "inputs "),
        (lambda b: (start(blobs([9, 9]), 2, 0), METHODS["SP²OT"], SMALL), "classes 2"),
    ],
    ids=["method", "settings", "seed", "inputs", "classes"],
)
def test_a_checkpoint_of_another_run_is_refused_and_says_what_differs(
    begin, tmp_path, change, said
):
    checkpoint = tmp_path / "run.checkpoint"
    interrupted(begin, "SP²OT", SMALL, checkpoint, 2)
    before, training = checkpoint.read_bytes(), Training(*change(begin))
    with pytest.raises(CheckpointError, match=f"{said}.*--restart"):
        training.run(checkpoint)
    assert training.round == 0
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02]q", "cut", [1], {"round": 2}])
def test_a_damaged_checkpoint_is_refused_and_says_what_to_do(begin, tmp_path, content):
    checkpoint = tmp_path / "run.checkpoint"
    if content == "cut":
        interrupted(begin, "SP²OT", SMALL, checkpoint, 2)
        content = checkpoint.read_bytes()[:-100]
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match=r"checkpoint.*: delete it \(--restart\)$"):
        train(begin, checkpoint=checkpoint)


def test_a_failed_save_leaves_the_checkpoint_before(begin, tmp_path, monkeypatch):
    checkpoint = tmp_path / "run.checkpoint"
    interrupted(begin, "SP²OT", SMALL, checkpoint, 3)
    before = checkpoint.read_bytes()

    def fail_half_way(_state, path):
        path.write_bytes(before[:100])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(module.torch, "save", fail_half_way)
        with pytest.raises(OSError, match="no space left"):
            train(begin, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before
    resumed = train(begin, checkpoint=checkpoint)
    assert equal(resumed.state_dict(), train(begin).state_dict())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"heads": 0}, "heads must be 1 or more, got 0"),
        ({"rounds": 0}, "rounds must be 1"),
        ({"updates": -1}, "updates must be 1"),
        ({"batch": 0}, "batch must be 1"),
        ({"bank": -1}, "bank must be 0"),
        ({"bank": 100, "batch": 101}, "hold a batch of 101, got 100"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"trunk_learning_rate": float("nan")}, "trunk_learning_rate must be .* finite, got nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Settings(**wrong)
