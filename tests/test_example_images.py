"""The image data sets of the deep-clustering example, from made files, and their features."""

import json
import sys
import types

import numpy as np
import pytest

pytest.importorskip("sklearn")

from examples.deep_clustering import features
from examples.deep_clustering.data import cifar100, inaturalist, load


@pytest.fixture
def embedder(monkeypatch):
    """Stand-ins for timm and its network, whose features are the mean colours of an image."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("PIL")
    calls = []

    class MeanColours(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(3))

        def forward(self, images):
            assert images.shape[1:] == (3, 224, 224)
            assert not self.training
            return self.scale * images.mean(dim=(2, 3))

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


def test_imagenet_r_leaves_20_images_of_each_class_out(embedder, tmp_path, caplog):
    colours = {"n01": (250, 10, 10), "n02": (10, 10, 250)}
    for (name, rgb), n_images in zip(colours.items(), (23, 21), strict=True):
        for i in range(n_images):
            write_image(tmp_path / "r" / name / f"{i}.jpg", rgb)
    (tmp_path / "r" / "README.txt").write_text("no class")
    data = load("imagenet_r", root=tmp_path / "r", cache=tmp_path / "cache")
    assert data.labels.tolist() == [0, 0, 0, 1]
    assert data.class_names == ("n01", "n02")
    assert "r: 2; the published numbers are for 200" in caplog.text
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


def test_inaturalist_reads_annotations_and_images(embedder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(inaturalist, "SUBSETS", (3, 2))
    monkeypatch.setattr(inaturalist, "IMAGES", {2: 8})
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
    assert f"categories in {tmp_path}: 4; the published numbers are for 8142" in caplog.text
    assert f"images of 2 categories in {tmp_path}: 7; the published" in caplog.text
    caplog.clear()
    monkeypatch.setattr(inaturalist, "CLASSES", 4)
    load("inaturalist", root=tmp_path, n_classes=3, cache=tmp_path / "cache")
    assert "published" not in caplog.text

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


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    pytest.importorskip("PIL")
    write_image(tmp_path / "good.jpg", (9, 9, 9))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:-100])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "text.jpg"):
        with pytest.raises(OSError, match=rf"{name}: "):
            features.preprocess([tmp_path / "good.jpg", tmp_path / name])


def test_batches_do_not_change_features_and_weights_come_from_the_checkpoint(embedder, tmp_path):
    import torch

    images = np.random.default_rng(0).random((5, 3, 8, 9), dtype=np.float32)
    checkpoint = tmp_path / "dino.pth"
    torch.save({"scale": torch.tensor([1.0, 2.0, -1.0])}, checkpoint)
    whole = features.dino_embeddings(images, cache=tmp_path / "1")
    parts = features.dino_embeddings(images, cache=tmp_path / "2", batch_size=2)
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert np.linalg.norm(whole, axis=1) == pytest.approx(1, abs=1e-6)
    scaled = features.dino_embeddings(images, cache=tmp_path / "1", checkpoint=checkpoint)
    expected = whole * [1, 2, -1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    names, options = zip(*embedder, strict=True)
    assert set(names) == {"vit_base_patch16_224.dino"}
    assert options == ({"num_classes": 0, "pretrained": True},) * 2 + ({"num_classes": 0},)


class Code:
    """What a pickle would run."""

    def __reduce__(self):
        return pytest.fail, ("code of a checkpoint was run",)


@pytest.mark.parametrize(
    "content", [b"", b"weights", {"other": np.nan}, [3], Code()], ids=lambda c: type(c).__name__
)
def test_a_checkpoint_of_something_else_is_named_and_no_code_of_it_runs(
    embedder, tmp_path, content
):
    import torch

    checkpoint = tmp_path / "dino.pth"
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
    else:
        torch.save(content, checkpoint)
    images = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"dino\.pth does not have the weights of vit_base"):
        features.dino_embeddings(images, checkpoint=checkpoint, cache=tmp_path)


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
