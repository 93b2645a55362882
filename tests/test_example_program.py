"""The deep-clustering program: runs of the whole in small, and what it refuses."""

import json

import numpy as np
import pytest

for library in ("torch", "sklearn", "matplotlib", "rich", "tqdm"):
    pytest.importorskip(library)

import torch  # noqa: E402

from examples.deep_clustering import __main__ as program  # noqa: E402
from examples.deep_clustering import pictures, report  # noqa: E402
from examples.deep_clustering.baselines import BASELINES  # noqa: E402
from examples.deep_clustering.data import LOADERS  # noqa: E402
from examples.deep_clustering.methods import METHODS  # noqa: E402

QUICK = ["--rounds", "2", "--updates", "1", "--heads", "2", "--threads", "1"]
PICTURES = {"comparison.png", "class_sizes.png", "training.png"}


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Leave Torch's threads as they were, and keep the pictures small."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(pictures, "DPI", 40)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results of today"


@pytest.fixture
def call(folder):
    """Run the program with few rounds, as from the command line."""
    return lambda *arguments: program.main([*arguments, *QUICK, "--output", str(folder)])


@pytest.fixture
def made(monkeypatch):
    """Which runs are made, not taken from the folder: (data set, method, seed)."""
    runs, make_run = [], program.make_run

    def note(begin, method, *rest):
        runs.append((begin.data.name, method, begin.seed))
        return make_run(begin, method, *rest)

    monkeypatch.setattr(program, "make_run", note)
    return runs


@pytest.fixture
def own(tmp_path):
    """Write a file of the user's own: three blobs, or as many as sizes are given."""

    def write(name="mine.npz", *, sizes=(30, 12, 6), has_labels=True, offset=0.0, scale=1.0):
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(len(sizes)), sizes)
        features = 10 * np.eye(len(sizes), 4)[labels] + rng.standard_normal((len(labels), 4))
        arrays = {"labels": labels} if has_labels else {}
        np.savez(tmp_path / name, features=scale * (features + offset), **arrays)
        return str(tmp_path / name)

    return write


def file_of(data, method, seed):
    """Return the name of a file of clusters: ASCII, and nothing that a shell reads as its own."""
    plain = method.replace("²", "2").replace(",", "").replace("(", "").replace(")", "")
    return f"{data}-{plain}-{seed}.npz".replace(" ", "-")


def names(folder):
    return {path.name for path in folder.iterdir()}


def record(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def refusal(capsys, call, *arguments):
    """Return the last line that the program ends with, without a traceback."""
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    if isinstance(stop.value.code, str):
        message = stop.value.code  # which Python prints
    else:
        assert stop.value.code == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("python -m examples.deep_clustering: error: ")
    assert "\n" not in message
    return message


# Runs


def test_digits_get_tables_pictures_numbers_and_clusters_by_all_methods(call, folder, capsys):
    call("digits", "--seeds", "2", "--imbalance", "40")
    printed = capsys.readouterr().out
    methods = [*BASELINES, *METHODS]
    for word in ("balanced", "accuracy", "SP²OT", "k-means", "pseudo-labels", "2 seeds"):
        assert word in printed

    clusters = {file_of("digits", method, seed) for method in methods for seed in range(2)}
    assert names(folder) == {"results.json", "results.md"} | PICTURES | clusters
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)
    table = (folder / "results.md").read_text(encoding="utf-8")
    assert all(f"| {method} |" in table for method in methods)

    of_digits = record(folder)["results"]["digits"]
    assert list(of_digits) == methods
    for method, runs in of_digits.items():
        assert [run["seed"] for run in runs] == [0, 1]
        for run in runs:
            check_run(run, method, folder)


def check_run(run, method, folder):
    assert run["true_class_sizes"][0] == 40 * run["true_class_sizes"][-1] + 10 == 170
    assert sum(run["class_sizes"]) == sum(run["true_class_sizes"])
    assert run["class_sizes"] == sorted(run["class_sizes"], reverse=True)
    clusters = np.load(folder / file_of("digits", method, run["seed"]))["clusters"]
    assert sorted(np.bincount(clusters, minlength=10), reverse=True) == run["class_sizes"]
    labels = LOADERS["digits"](seed=run["seed"], imbalance=40).labels
    assert run["scores"] == program.scores(labels, clusters)
    assert run["settings"]["imbalance"] == 40
    assert run["command"].startswith(
        "python -m examples.deep_clustering digits --seeds 2 --imbalance 40 --rounds 2"
    )
    if method in BASELINES:
        assert (run["history"], run["statuses"]) == (None, {})
        assert run["start_seconds"] is run["labelling_seconds"] is None
    else:
        assert {name: len(values) for name, values in run["history"].items()} == dict.fromkeys(
            ("rho", "objective", "accuracy"), 2
        )
        assert run["history"]["accuracy"][-1] == run["scores"]["accuracy"]
        assert sum(run["statuses"].values()) == 4
        assert 0 < run["labelling_seconds"] < run["seconds"]
        assert run["start_seconds"] > 0


def test_runs_that_are_there_are_not_repeated_and_changed_ones_are(call, folder, made, own):
    features = ["features", "--root", own()]
    some = [*features, "--methods", "UOT", "k-means"]
    call(*some, "--seeds", "1")
    assert made == [("features", "k-means", 0), ("features", "UOT", 0)]

    made.clear()
    before = record(folder)["results"]
    call(*some, "--seeds", "1")
    assert made == []
    assert record(folder)["results"] == before

    call(*some, "--seeds", "2")
    assert made == [("features", "k-means", 1), ("features", "UOT", 1)]

    made.clear()
    call(*some, "--seeds", "1", "--learning-rate", "0.1")  # of no concern to k-means
    assert made == [("features", "UOT", 0)]
    rates = [
        run["settings"]["learning_rate"] for run in record(folder)["results"]["features"]["UOT"]
    ]
    assert sorted(rates) == [0.02, 0.1]

    made.clear()
    call(*features, "--methods", "POT", "--seeds", "1")
    assert made == [("features", "POT", 0)]
    assert set(record(folder)["results"]["features"]) == {"k-means", "UOT", "POT"}

    made.clear()
    call("features", "--root", own("other.npz"), "--methods", "k-means", "--seeds", "1")
    assert made == [("features", "k-means", 0)]

    made.clear()
    changed = own("other.npz", sizes=(20, 10, 5))
    for _ in range(2):
        call("features", "--root", changed, "--methods", "k-means", "--seeds", "1")
    assert made == [("features", "k-means", 0)]
    run = record(folder)["results"]["features"]["k-means"][-1]
    assert run["true_class_sizes"] == [20, 10, 5]

    made.clear()
    call(*some, "--seeds", "1", "--restart")
    assert made == [("features", "k-means", 0), ("features", "UOT", 0)]
    assert set(record(folder)["results"]["features"]) == {"k-means", "UOT"}


def test_only_what_was_asked_for_is_shown(call, own, capsys):
    call("features", "--root", own(), "--methods", "k-means", "UOT", "--seeds", "2")
    capsys.readouterr()
    call("features", "--root", own(), "--methods", "k-means", "--seeds", "1")
    printed = capsys.readouterr().out
    assert "one seed" in printed
    assert "UOT" not in printed


@pytest.mark.parametrize("classes", [2, 3])
def test_features_without_labels_get_clusters_and_no_scores(call, folder, own, capsys, classes):
    sizes = (40, 10, 5)[:classes]
    root = own(sizes=sizes, has_labels=False)
    call("features", "--root", root, "--classes", str(classes), "--seeds", "1")
    printed = capsys.readouterr().out
    assert "accuracy" not in printed
    assert "SP²OT" in printed  # how long it took
    assert not names(folder) & (PICTURES | {"results.md"})
    for method, (run,) in record(folder)["results"]["features"].items():
        assert (run["scores"], run["true_class_sizes"]) == ({}, None)
        clusters = np.load(folder / file_of("features", method, 0))["clusters"]
        assert clusters.shape == (sum(sizes),)
        if method.startswith("SP²OT"):
            assert tuple(run["class_sizes"]) == sizes
            assert run["history"]["accuracy"] == []


@pytest.mark.parametrize("scale", [1, 1e30, 1e-30])
def test_own_features_may_be_far_from_the_origin_and_of_any_scale(call, folder, own, scale):
    root = own(offset=20, scale=scale)
    call("features", "--root", root, "--methods", "SP²OT", "--seeds", "1")
    (run,) = record(folder)["results"]["features"]["SP²OT"]
    assert run["scores"]["accuracy"] == 1


def test_own_features_do_not_overwrite_the_files_of_a_data_set_of_their_name(call, folder, own):
    call("digits", "--methods", "k-means", "--seeds", "1")
    of_digits = (folder / "digits-k-means-0.npz").read_bytes()
    call("features", "--root", own("digits.npz"), "--methods", "k-means", "--seeds", "1")
    assert (folder / "digits-k-means-0.npz").read_bytes() == of_digits
    assert np.load(folder / "features-k-means-0.npz")["clusters"].shape == (48,)
    assert set(record(folder)["results"]) == {"digits", "features"}


@pytest.fixture
def interrupted(call, own, monkeypatch):
    """Arguments of a call that is interrupted in its second round."""
    arguments = ["features", "--root", own(), "--methods", "SP²OT", "--seeds", "1"]
    train_round = program.Training._train_round

    def interrupt(training):
        if training.round == 1:
            raise KeyboardInterrupt
        train_round(training)

    with monkeypatch.context() as patch:
        patch.setattr(program.Training, "_train_round", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(*arguments)
    return arguments


def test_an_interrupted_run_goes_on_from_its_last_round(call, folder, interrupted, monkeypatch):
    assert names(folder) == {"features-SP2OT-0.checkpoint"}
    rounds, train_round = [], program.Training._train_round

    def note(training):
        rounds.append(training.round)
        train_round(training)

    monkeypatch.setattr(program.Training, "_train_round", note)
    call(*interrupted)
    assert "features-SP2OT-0.checkpoint" not in names(folder)
    (resumed,) = record(folder)["results"]["features"]["SP²OT"]
    call(*interrupted, "--restart")
    (whole,) = record(folder)["results"]["features"]["SP²OT"]
    assert rounds == [1, 0, 1]
    assert resumed["history"] == whole["history"]
    assert resumed["scores"] == whole["scores"]
    assert resumed["labelling_seconds"] < resumed["seconds"]  # both of all rounds


def test_a_training_is_not_lost_where_its_results_cannot_be_saved(call, own, made, monkeypatch):
    arguments = ["features", "--root", own(), "--methods", "UOT", "--seeds", "1"]

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(report, "save", fail)
        with pytest.raises(OSError, match="no space left"):
            call(*arguments)
    monkeypatch.setattr(program.Training, "_train_round", pytest.fail)
    call(*arguments)
    assert made == [("features", "UOT", 0)] * 2


def test_a_checkpoint_of_other_settings_is_refused_until_a_restart(
    call, folder, interrupted, capsys
):
    changed = [*interrupted, "--learning-rate", "0.1"]
    message = refusal(capsys, call, *changed)
    assert "learning_rate 0.02; this one has learning_rate 0.1: delete it (--restart)" in message
    assert "features-SP2OT-0.checkpoint" in names(folder)
    call(*changed, "--restart")
    assert "features-SP2OT-0.checkpoint" not in names(folder)


def test_a_damaged_checkpoint_is_refused_until_a_restart(call, folder, interrupted, capsys):
    (folder / "features-SP2OT-0.checkpoint").write_bytes(b"garbage")
    assert "delete it (--restart)" in refusal(capsys, call, *interrupted)
    call(*interrupted, "--restart")


def test_a_memory_bank_and_one_head_are_options(call, folder, own):
    arguments = ["features", "--root", own(), "--methods", "SP²OT", "--seeds", "1"]
    call(*arguments)
    bank = ["--heads", "1", "--bank", "20", "--batch", "10", "--rounds", "2", "--threads", "1"]
    program.main([*arguments, *bank, "--output", str(folder)])
    (run,) = record(folder)["results"]["features"]["SP²OT"]
    assert sum(run["statuses"].values()) == 2 * 5  # 48 samples in batches of 10


# Refusals


@pytest.fixture
def no_work(monkeypatch, folder):
    """See to it that nothing is loaded, and nothing written."""
    monkeypatch.setattr(program, "load", lambda *_, **__: pytest.fail("data were loaded"))
    yield
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mnist"], "invalid choice: 'mnist'"),
        (["digits", "--methods", "magic"], "invalid choice: 'magic'"),
        (["digits", "--seeds", "0"], "--seeds: must be 1 or more, got 0"),
        (["digits", "--seeds", "two"], "--seeds: invalid"),
        (["digits", "--classes", "-3"], "--classes: must be 1 or more"),
        (["digits", "--rounds", "0"], "rounds must be 1 or more, got 0"),
        (["digits", "--heads", "0"], "heads must be 1 or more"),
        (["digits", "--batch", "0"], "batch must be 1 or more"),
        (["digits", "--updates", "1.5"], "--updates: invalid int value"),
        (["digits", "--learning-rate", "nan"], "learning_rate must be above 0"),
        (["digits", "--bank", "100"], "bank must be 0, for all samples, or hold a batch of 4096"),
        (["digits", "--device", "abacus"], "--device: cannot use 'abacus'"),
        (["digits", "--device", "cuda:99"], "--device: cannot use 'cuda:99'"),
        (["digits", "--root", "folder"], "data set digits has no root"),
        (["icd", "languages", "--imbalance", "9"], "data set languages has no imbalance"),
        (["digits", "--classes", "3", "--checkpoint", "x"], "no n_classes or checkpoint"),
    ],
)
def test_bad_options_are_refused_before_any_work(no_work, folder, capsys, arguments, said):
    def call(*arguments):
        program.main([*arguments, "--output", str(folder)])

    assert said in refusal(capsys, call, *arguments)


def test_the_data_must_be_named(capsys):
    with pytest.raises(SystemExit):
        program.main(["--seeds", "1"])
    assert "required: DATA" in capsys.readouterr().err


def test_what_the_loaders_refuse_is_said_in_one_line(call, own, capsys, tmp_path, monkeypatch):
    unlabelled = own("unlabelled.npz", has_labels=False)
    assert "(--classes)" in refusal(capsys, call, "features", "--root", unlabelled)
    missing = str(tmp_path / "missing.npz")
    assert "missing.npz" in refusal(capsys, call, "features", "--root", missing)
    assert "root must be" in refusal(capsys, call, "cifar100")
    assert "imbalance is" in refusal(capsys, call, "digits", "--imbalance", "0.5")
    assert "'sift'" in refusal(capsys, call, "digits", "--features", "sift")
    two = own("two.npz", sizes=(20, 10))
    assert "give --classes" in refusal(capsys, call, "features", "--root", two)
    equal = own("equal.npz", sizes=(1, 1), has_labels=False)
    of_two = ["features", "--root", equal, "--classes", "2", "--methods", "UOT"]
    assert "2 distinct directions or more" in refusal(capsys, call, *of_two)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install Django" in refusal(capsys, call, "languages")


def test_damaged_results_are_refused_and_a_restart_replaces_them(call, folder, own, capsys):
    folder.mkdir()
    arguments = ["features", "--root", own(), "--methods", "k-means", "--seeds", "1"]
    for damaged in ('{"results": ', '{"results": {"features": {"k-means": [{}]}}}'):
        (folder / "results.json").write_text(damaged)
        assert "results.json is not a file of results" in refusal(capsys, call, *arguments)
    call(*arguments, "--restart")
    assert report.load(folder / "results.json")


def test_an_output_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    arguments = ["digits", "--output", str(tmp_path / "taken")]
    assert "taken" in refusal(capsys, lambda *_: program.main(arguments))


def test_errors_that_are_no_fault_of_the_user_keep_their_traceback(call, own, monkeypatch):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(program.Training, "_train_round", fail)
    with pytest.raises(ValueError, match="a bug"):
        call("features", "--root", own(), "--methods", "UOT", "--seeds", "1")
