"""The plug-ins for training loops: their laws, their claims, and each as a script."""

import importlib.util
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the plug-ins are for Torch's training loops")
metrics = pytest.importorskip("sklearn.metrics", reason="the plug-ins use scikit-learn")

PLUG_INS = Path(__file__).parents[1] / "examples" / "plug_in"
NAMES = sorted(path.stem for path in PLUG_INS.glob("*.py"))


@cache
def plug_in(name):
    spec = importlib.util.spec_from_file_location(f"plug_in_{name}", PLUG_INS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=atol)


def share(mask):
    return float(mask.double().mean())


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_a_script(name, capsys):
    plug_in(name).main()
    assert capsys.readouterr().out.strip()


# SwAV


@pytest.fixture
def scores():
    """Cosine similarities of 60 samples with 5 prototypes, the first one the nearest to most."""
    draw = torch.Generator().manual_seed(0)
    sides = [torch.randn(n, 8, generator=draw, dtype=torch.float64) for n in (60, 5)]
    samples, prototypes = (torch.nn.functional.normalize(side, dim=1) for side in sides)
    return (samples + prototypes[0]) @ prototypes.T / 2


def test_assignments_are_balanced(scores):
    codes = plug_in("swav").assignments(scores)
    close(codes.sum(dim=1), np.ones(60))
    close(codes.sum(dim=0), np.full(5, 12), atol=60e-6)


def test_assignments_are_those_of_converged_sinkhorn(scores):
    ot = pytest.importorskip("ot", reason="needs POT")
    expected = ot.sinkhorn(
        np.full(60, 1 / 60),
        np.full(5, 1 / 5),
        -scores.numpy(),
        0.05,
        stopThr=1e-13,
        numItermax=9999,
    )
    close(plug_in("swav").assignments(scores), 60 * expected, atol=1e-6)


def test_three_sweeps_leave_the_columns_uneven(scores):
    codes = (scores / 0.05).exp()
    for _ in range(3):
        codes = codes / codes.sum(dim=0)
        codes = codes / codes.sum(dim=1, keepdim=True)
    assert (codes.sum(dim=0) - 12).abs().max() > 0.1


def test_partial_assignments_have_mass_rho(scores):
    codes = plug_in("swav").assignments(scores, rho=0.3)
    assert codes.sum() == pytest.approx(0.3 * 60, abs=1e-4)
    assert codes.sum(dim=1).max() <= 1 + 1e-9
    close(codes.sum(dim=0), np.full(5, 0.3 * 12), atol=60e-6)


def test_loose_sizes_follow_the_scores(scores):
    codes = plug_in("swav").assignments(scores, kl_weight=0.1)
    close(codes.sum(dim=1), np.ones(60))
    assert codes.sum(dim=0).argmax() == 0
    assert codes.sum(dim=0)[0] > 1.5 * 12


def test_assignments_are_not_learnt_through(scores):
    assert not plug_in("swav").assignments(scores.requires_grad_()).requires_grad


def test_views_teach_each_other():
    example = plug_in("swav")
    draw = torch.Generator().manual_seed(0)
    first, second, prototypes, queue = (
        torch.nn.functional.normalize(torch.randn(n, 6, generator=draw), dim=1).requires_grad_()
        for n in (20, 20, 3, 10)
    )
    loss = example.swapped_loss([first, second], prototypes, queue)
    codes = example.assignments(torch.cat([first, queue]) @ prototypes.T)[:20]
    logits = (second @ prototypes.T / example.TEMPERATURE).detach()
    from_first = torch.nn.functional.cross_entropy(logits, codes)
    codes = example.assignments(torch.cat([second, queue]) @ prototypes.T)[:20]
    logits = (first @ prototypes.T / example.TEMPERATURE).detach()
    from_second = torch.nn.functional.cross_entropy(logits, codes)
    close(loss.detach(), (from_first + from_second) / 2)
    loss.backward()
    assert all(tensor.grad.abs().max() > 0 for tensor in (first, second, prototypes))
    assert queue.grad is None


def test_swav_finds_the_classes():
    example = plug_in("swav")
    losses, found = example.train(example.blobs(seed=1), seed=1)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    truth = np.repeat(np.arange(4), 100)
    assert metrics.adjusted_rand_score(truth, found.argmax(dim=1)) > 0.7


# SP²OT


@pytest.fixture
def bank():
    """Logits of 300 samples and a dense similarity."""
    example = plug_in("sp2ot_script")
    features, logits = example.toy_features(seed=1, samples=300)
    return logits, example.ssot.knn_graph(features, k=10).to_dense()


def test_sp2ot_labels_a_fraction_of_the_samples(bank):
    labels = plug_in("sp2ot_script").pseudo_labels(*bank, progress=0.4)
    rho = 0.1 + 0.9 * np.exp(-5 * 0.6**2)
    assert labels.sum() == pytest.approx(300 * rho, abs=300e-6)
    assert labels.min() >= 0
    assert labels.sum(dim=1).max() <= 1 + 1e-9


def test_sp2ot_takes_dense_and_sparse_similarities(bank):
    logits, similarity = bank
    dense, sparse = (
        plug_in("sp2ot_script").pseudo_labels(logits, form, progress=0.4)
        for form in (similarity, similarity.to_sparse_csr())
    )
    close(dense, sparse, atol=1e-6)


def test_sp2ot_settings_are_the_published_ones(bank):
    problem = plug_in("sp2ot_script").solve_step(*bank, progress=0.4).problem
    assert problem.epsilon == 0.1
    assert problem.kl_weight.tolist() == [1, 1, 1, 1]
    published = 1000 * (1 - problem.rho) * 300 / 5120
    assert problem.semantic_weight == pytest.approx(published, rel=0.03)


def test_sp2ot_goes_on_from_the_last_solution(bank, monkeypatch):
    example, (logits, similarity) = plug_in("sp2ot_script"), bank
    reports = []
    monkeypatch.setattr(example.ssot, "solve", partial(example.ssot.solve, callback=reports.append))

    def passes(*arguments):
        reports.clear()
        assert example.solve_step(*arguments).status.is_success
        return reports[-1].row_passes

    previous = example.solve_step(logits, similarity, 0.40)
    moved = 1.01 * logits
    cold, warm = passes(moved, similarity, 0.41), passes(moved, similarity, 0.41, previous)
    assert warm < cold
    fewer = example.solve_step(logits[:200], similarity[:200, :200], 0.41, previous.prices)
    assert fewer.status.is_success


# The documentation


def test_every_plug_in_is_shown():
    page = (PLUG_INS.parents[1] / "docs" / "plug_in.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"({'../examples/plug_in/' + name}.py)" in page
        shown = page.partition(f"{{literalinclude}} ../examples/plug_in/{name}.py")[2]
        assert hasattr(plug_in(name), shown.partition(":pyobject: ")[2].partition("\n")[0])


# Noisy labels


def test_a_classifier_that_knows_nothing_leaves_the_given_labels():
    example = plug_in("noisy_labels")
    given = torch.arange(40) % 4
    noise = example.symmetric_noise(0.4, classes=4)
    close(noise.sum(dim=1), np.ones(4))
    solution = example.relabel(torch.zeros(40, 4, dtype=torch.float64), given, noise, rho=0.5)
    assert solution.labels.tolist() == given.tolist()
    assert float(solution.plan.sum()) == pytest.approx(0.5, abs=1e-6)


def test_labels_that_say_nothing_leave_the_classifier():
    example = plug_in("noisy_labels")
    believed = torch.arange(40) % 4
    logits = 5 * torch.nn.functional.one_hot(believed).double()
    noise = example.symmetric_noise(0.75, classes=4)
    solution = example.relabel(logits, believed.flip(0), noise, rho=0.5)
    assert solution.labels.tolist() == believed.tolist()


def test_relabelled_digits_are_cleaner_than_given():
    example = plug_in("noisy_labels")
    images, digits, given = example.noisy_digits(rate=0.4, seed=1)
    solution = example.train(images, given, example.symmetric_noise(0.4, classes=10))
    is_right, is_trusted = solution.labels == digits, solution.confidence > 0.5
    assert share(given == digits) < 0.65
    assert share(is_right) > 0.9
    assert share(is_right[is_trusted]) > share(is_right) + 0.01
    assert share(is_trusted) > 0.7


# Category discovery


def test_labelled_samples_keep_their_class():
    example = plug_in("category_discovery")
    features, digits, given = (part[:300] for part in example.partly_labelled_digits(seed=0))
    logits = torch.randn(300, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution = example.pseudo_labels(logits, given, example.ssot.knn_graph(features), progress=0.3)
    is_labelled = given != example.UNLABELLED
    own = solution.plan[is_labelled].gather(1, given[is_labelled, None])
    close(own.sum(), solution.plan[is_labelled].sum(), atol=1e-12)
    assert solution.labels[is_labelled].tolist() == given[is_labelled].tolist()
    assert set(digits[is_labelled].tolist()) == set(range(5))
    assert solution.problem.rho > share(is_labelled) + 0.05


def test_new_classes_are_found():
    example = plug_in("category_discovery")
    accuracies = []
    for seed in range(3):
        images, digits, given = (part[:1000] for part in example.partly_labelled_digits(seed))
        is_open = given == example.UNLABELLED
        truth = digits[is_open].numpy()
        found = example.train(images, given, seed=seed)[is_open].numpy()
        is_right, is_new = example.match(truth, found, example.KNOWN) == truth, truth >= 5
        accuracies.append((is_right[~is_new].mean(), is_right[is_new].mean()))
    of_known, of_new = np.mean(accuracies, axis=0)
    assert of_known > 0.85
    assert of_new > 0.7  # chance: 0.2


def test_match_undoes_a_renaming():
    truth = np.arange(30) % 5
    renamed = np.array([3, 0, 4, 1, 2])[truth]
    np.testing.assert_array_equal(plug_in("category_discovery").match(truth, renamed), truth)


def test_match_leaves_the_names_of_known_classes():
    truth = np.arange(30) % 5
    renamed = np.array([1, 0, 4, 2, 3])[truth]
    found = plug_in("category_discovery").match(truth, renamed, known=2)
    np.testing.assert_array_equal(found, np.array([1, 0, 2, 3, 4])[truth])


# Embeddings


def test_a_few_embeddings_are_clustered_too():
    points = np.repeat(np.eye(2, 5), [8, 4], axis=0)
    points += 0.1 * np.random.default_rng(0).standard_normal(points.shape)
    found = plug_in("embeddings").cluster(points, 2)
    assert metrics.adjusted_rand_score(np.repeat([0, 1], [8, 4]), found) == 1


def test_clusters_of_long_tailed_embeddings_are_better_than_those_of_k_means():
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    example, match = plug_in("embeddings"), plug_in("category_discovery").match
    gains = []
    for seed in range(3):
        images, digits = example.long_tailed_digits(seed)
        by_means = KMeans(10, n_init=10, random_state=seed).fit_predict(normalize(images))
        scores = [
            (
                metrics.adjusted_rand_score(digits, clusters),
                metrics.balanced_accuracy_score(digits, match(digits, clusters)),
            )
            for clusters in (example.cluster(images, 10, seed=seed), by_means)
        ]
        gains.append(np.subtract(*scores))
    overall, balanced = np.mean(gains, axis=0)
    assert overall > 0.1
    assert balanced > 0.03
