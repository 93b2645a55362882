"""The data sets of the deep-clustering example that are not images on the user's disk."""

import importlib.util
import logging
import struct
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

from examples.deep_clustering import features
from examples.deep_clustering.data import (
    LOADERS,
    icd,
    languages,
    load,
    own,
)
from examples.deep_clustering.data.dataset import long_tailed_sizes, package_folder


def needs(module):
    """Skip where a package that holds data is not installed."""
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"needs the package {module}"
    )


# the registry


def test_an_unknown_name_is_answered_by_all_names():
    with pytest.raises(ValueError, match=r"imagenet22k") as caught:
        load("imagenet22k")
    assert all(name in str(caught.value) for name in LOADERS)


def test_an_option_of_another_set_is_refused():
    with pytest.raises(ValueError, match="digits has no n_classes; its options are seed"):
        load("digits", n_classes=3)
    with pytest.raises(ValueError, match="digits has no root"):
        load("digits", root="folder")
    with pytest.raises(ValueError, match="features must be one of pixels, pca; got 'sift'"):
        load("digits", features="sift")


@pytest.mark.parametrize("name", ["cifar100", "imagenet_r", "inaturalist", "features"])
def test_sets_on_the_users_disk_ask_for_root(name, tmp_path):
    for root in (None, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="root must be"):
            load(name, root=root)


# sizes


def test_sizes_fall_geometrically_and_are_those_of_the_paper():
    sizes = long_tailed_sizes(500, 100, 100)
    assert (sizes[0], sizes[-1], sum(sizes)) == (500, 5, 10_847)
    assert long_tailed_sizes(500, 1, 100) == [500] * 100
    ratios = np.array(sizes[1:50]) / sizes[:49]
    assert ratios == pytest.approx(100 ** (-1 / 99), abs=0.02)
    for imbalance in (0.5, 501, float("nan")):
        with pytest.raises(ValueError, match=r"imbalance is .* from 1 to 500; got"):
            long_tailed_sizes(500, imbalance, 100)


# digits


def test_digits_are_images_with_the_sizes_asked_for():
    data = load("digits", seed=3, imbalance=10)
    assert data.is_images
    assert data.inputs.shape[1:] == (1, 8, 8)
    assert data.inputs.dtype == np.float32
    assert (data.inputs.min(), data.inputs.max()) == (0, 1)
    sizes = sorted(np.bincount(data.labels), reverse=True)
    assert sizes == [170, 131, 101, 78, 61, 47, 36, 28, 21, 17]
    np.testing.assert_array_equal(data.inputs, load("digits", seed=3).inputs)
    assert not np.array_equal(data.labels, load("digits", seed=4).labels)


def test_principal_components_are_of_the_same_digits():
    images, components = load("digits"), load("digits", features="pca")
    np.testing.assert_array_equal(images.labels, components.labels)
    assert not components.is_images
    assert components.inputs.shape == (len(images.labels), 32)
    flat = images.inputs.reshape(len(images.inputs), -1)
    kept = components.inputs.var(axis=0).sum() / flat.var(axis=0).sum()
    assert 0.9 < kept < 1


# disease names


@needs("simple_icd_10_cm")
def test_icd_has_the_sizes_of_the_paper_and_distinct_names(monkeypatch, tmp_path):
    embedded = []

    def embed(texts, **_options):
        embedded.extend(texts)
        return np.ones((len(texts), 2), np.float32)

    monkeypatch.setattr(features, "tfidf_embeddings", embed)
    data = load("icd", features="tfidf", cache=tmp_path)
    assert len(data.labels) == len(embedded) == 10_847
    assert np.bincount(data.labels).tolist() == long_tailed_sizes(500, 100, 100)
    assert data.n_classes == 100
    assert data.class_names[0].startswith("Injuries to the wrist")
    for c in (0, 50, 99):
        names = [text for text, label in zip(embedded, data.labels, strict=True) if label == c]
        assert len(set(names)) == len(names)
    assert not any("initial encounter" in text for text in embedded)


def test_names_are_drawn_from_the_largest_blocks_first():
    blocks = {
        ("A", "few"): ["a"],
        ("B", "many"): [f"b{i}" for i in range(9)],
        ("C", "some"): [f"c{i}" for i in range(4)],
    }
    texts, labels, names = icd.draw_names(blocks, [3, 2], seed=0)
    assert names == ("many", "some")
    assert [text[0] for text in texts] == ["b", "b", "b", "c", "c"]
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert len(set(texts)) == 5
    with pytest.raises(ValueError, match="5 names of some, which has 4"):
        icd.draw_names(blocks, [9, 5], seed=0)


def test_without_the_encoder_disease_names_are_embedded_by_tfidf(monkeypatch, caplog, tmp_path):
    blocks = {
        (f"{c:02}", f"block {c}"): [f"name {i} of {c}" for i in range(500)] for c in range(100)
    }
    monkeypatch.setattr(icd, "read_blocks", lambda: blocks)
    monkeypatch.setattr(features, "has_sentence_encoder", lambda: False)
    monkeypatch.setattr(
        features, "tfidf_embeddings", lambda texts, **_: np.ones((len(texts), 2), np.float32)
    )
    with caplog.at_level(logging.INFO):
        assert load("icd", cache=tmp_path).inputs.shape == (10_847, 2)
    assert "embedded by tfidf" in caplog.text
    with pytest.raises(ModuleNotFoundError, match="pip install sentence-transformers"):
        load("icd", features="minilm", cache=tmp_path)


def test_a_package_that_is_missing_is_named():
    with pytest.raises(ModuleNotFoundError, match="pip install no-such-package==1"):
        package_folder("no_such_package", "no-such-package==1")


# languages


def write_catalogue(path, messages):
    """Write a compiled catalogue: GNU's format .mo, whose tables are sorted by message."""
    head = b"Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n"
    entries = sorted({"": head.decode()} | messages)
    texts = [
        text.encode()
        for key in (entries, [({"": head.decode()} | messages)[e] for e in entries])
        for text in key
    ]
    offset = 28 + 8 * len(texts)
    table, body = b"", b""
    for text in texts:
        table += struct.pack("<II", len(text), offset + len(body))
        body += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + table + body)


def test_catalogues_are_read_below_all_folders_one_plural_form_each(tmp_path):
    one, two = (tmp_path / app / "locale/xx/LC_MESSAGES/django.mo" for app in ("one", "two/deep"))
    write_catalogue(one, {"a %(n)s b": "ein <b>%(n)s</b>  Wort", "day\0days": "Tag {n}\0Tage"})
    write_catalogue(two, {"hello": "hallo"})
    write_catalogue(tmp_path / "one/locale/yy/LC_MESSAGES/djangojs.mo", {"a": "not read"})
    strings = languages.read_catalogues(tmp_path)
    assert strings == {"xx": {"ein Wort", "Tag", "hallo"}}


def test_strings_that_languages_share_and_small_languages_are_left_out():
    def strings(word, n):
        return {f"{word} number {i}" for i in range(n)}

    classes = languages.select(
        {
            "aa": strings("a", 10) | {"too short", "in both languages"},
            "bb": strings("b", 12) | {"in both languages"},
            "cc": strings("c", 9),
        }
    )
    assert list(classes) == ["bb", "aa"]
    assert classes["aa"] == sorted(strings("a", 10))


@needs("django")
def test_django_speaks_97_languages():
    folder = package_folder("django", languages.REQUIREMENT)
    classes = languages.select(languages.read_catalogues(folder))
    sizes = [len(strings) for strings in classes.values()]
    assert (len(sizes), sum(sizes), sizes[0], sizes[-1]) == (97, 21_984, 401, 14)
    assert "django" not in sys.modules


def test_ngrams_tell_languages_apart(tmp_path, monkeypatch):
    write = {
        "de": ["der Hund und die Katze", "die Frau und das Kind", "das Haus und der Garten"],
        "fr": ["le chien et la chatte", "la femme et les enfants", "les chats et le jardin"],
    }
    for code, texts in write.items():
        path = tmp_path / f"locale/{code}/LC_MESSAGES/django.mo"
        write_catalogue(path, {f"{code} {i}": text for i, text in enumerate(texts)})
    monkeypatch.setattr(languages, "package_folder", lambda *_: tmp_path)
    monkeypatch.setattr(languages, "SMALLEST_CLASS", 3)
    data = load("languages", cache=tmp_path)
    assert data.class_names == ("de", "fr")
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.linalg.norm(data.inputs, axis=1) == pytest.approx(1, abs=1e-5)
    cosines = data.inputs @ data.inputs.T
    assert cosines[:3, :3].mean() > 3 * abs(cosines[:3, 3:].mean())


# the user's own features


def test_own_features_and_labels_are_read(tmp_path):
    rows = np.arange(8.0).reshape(4, 2)
    np.savez(tmp_path / "features.npz", features=rows, labels=["cat", "ant", "cat", "bee"])
    for root in (tmp_path, tmp_path / "features.npz"):
        data = load("features", root=root)
        np.testing.assert_allclose(data.inputs, (rows - [3, 4]) / 3, rtol=1e-6)
        assert data.inputs.dtype == np.float32
        assert data.class_names == ("ant", "bee", "cat")
        assert data.labels.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize(("offset", "scale"), [(20, 1), (20, 1e308 / 30), (-7, 1e-300), (0, 0)])
def test_own_features_are_centred_whatever_their_scale(offset, scale, tmp_path):
    rows = np.random.default_rng(0).standard_normal((50, 3))
    np.savez(tmp_path / "features.npz", features=scale * (rows + offset))
    inputs = load("features", root=tmp_path, n_classes=2).inputs
    expected = rows - rows.mean(axis=0)
    expected *= (scale > 0) / np.abs(expected).max()
    np.testing.assert_allclose(inputs, expected, atol=1e-6)


def test_own_features_without_labels_need_a_number_of_classes(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, features=np.eye(5))
    data = load("features", root=path, n_classes=3)
    assert (data.name, data.labels, data.n_classes) == ("mine", None, 3)
    with pytest.raises(ValueError, match="say how many clusters by n_classes"):
        load("features", root=path)
    for n_classes in (1, 6):
        with pytest.raises(ValueError, match="n_classes must be from 2 to 5"):
            load("features", root=path, n_classes=n_classes)
    np.savez(path, features=np.eye(2), labels=[0, 1])
    with pytest.raises(ValueError, match="n_classes is for files without labels"):
        load("features", root=path, n_classes=2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.eye(3)}, "must have an array features"),
        ({"features": np.ones(3)}, r"numbers of shape \(N, D\); got float64 of shape \(3,\)"),
        ({"features": np.array([["a"]])}, "must be numbers"),
        ({"features": np.array([[1.0], [np.nan]])}, "1 rows are not, first row 1"),
        ({"features": np.array([[-np.inf], [1.0]])}, "1 rows are not, first row 0"),
        ({"features": np.array([[None]], dtype=object)}, "cannot be read"),
        ({"features": np.eye(3), "labels": [0, 1]}, "labels of .* must be 3 integers or strings"),
        ({"features": np.eye(2), "labels": [0.0, 1.0]}, "integers or strings"),
        ({"features": np.eye(2), "labels": [7, 7]}, "two classes or more; got 1"),
    ],
)
def test_bad_arrays_are_refused(arrays, message, tmp_path):
    np.savez(tmp_path / "features.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load("features", root=tmp_path)


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "features.npz"
    np.save(tmp_path / "evil.npy", np.array([print], dtype=object), allow_pickle=True)
    path.write_bytes((tmp_path / "evil.npy").read_bytes())
    with pytest.raises(ValueError, match="cannot be read"):
        own.load(root=path)
    np.save(tmp_path / "plain.npy", np.eye(2))
    with pytest.raises(ValueError, match="cannot be read"):
        own.load(root=tmp_path / "plain.npy")
