"""CIFAR-100 (Krizhevsky, 2009) from the user's disk, thinned out to a long tail."""

from pathlib import Path

import numpy as np

from examples.deep_clustering import features as frozen
from examples.deep_clustering.data.dataset import Dataset, choose, data_folder, long_tailed_sizes

CLASSES = 100
LARGEST_CLASS = 500
SHAPE = (3, 32, 32)
RECORD = 2 + 3072  # bytes: coarse class, fine class, pixels


def load(
    *,
    root: Path | None = None,
    seed: int = 0,
    imbalance: float = 100,
    features: str = "pixels",
    checkpoint: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> Dataset:
    """Draw long-tailed training images of CIFAR-100: 10,847 by default.

    Class c, in the order of CIFAR's own labels, gets int(500 * imbalance ** (-c / 99)) images.

    Parameters
    ----------
    root
        Folder of the binary version, with `train.bin` and `fine_label_names.txt`.
    seed
        Draws the images.
    imbalance
        Largest class size over the smallest, 1 to 500.
    features
        `pixels` for images (N, 3, 32, 32), `dino` for DINO's features (N, 768).
    checkpoint, cache, device
        As in `features.dino_embeddings`.

    Raises
    ------
    FileNotFoundError
        If `root` is not such a folder.
    ValueError
        If a file is not what CIFAR-100 has.
    """
    choose("features", features, ("pixels", "dino"))
    sizes = long_tailed_sizes(LARGEST_CLASS, imbalance, CLASSES)
    labels, pixels, names = read_train(data_folder(root, "CIFAR-100", "its binary version"))
    rng = np.random.default_rng(seed)
    drawn = [
        rng.choice(np.flatnonzero(labels == c), size, replace=False) for c, size in enumerate(sizes)
    ]
    order = np.concatenate(drawn)
    inputs = pixels[order].reshape(-1, *SHAPE) / np.float32(255)
    if features == "dino":
        inputs = frozen.dino_embeddings(inputs, checkpoint=checkpoint, cache=cache, device=device)
    return Dataset("cifar100", inputs, labels[order].astype(np.int64), names)


def read_train(root: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return fine labels (50000,), pixels (50000, 3072) as bytes, and the names of the classes."""
    path = root / "train.bin"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; unpack cifar-100-binary.tar.gz of "
            "https://www.cs.toronto.edu/~kriz/cifar.html (the Python version is made of pickles, "
            "which can run code, and is not read)"
        )
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % RECORD:
        raise ValueError(f"{path} has {content.size} bytes, not records of {RECORD}; get it again")
    records = content.reshape(-1, RECORD)
    labels = records[:, 1]
    counts = np.bincount(labels, minlength=CLASSES)
    if len(counts) > CLASSES or counts.min() < LARGEST_CLASS:
        raise ValueError(
            f"{path} does not have {LARGEST_CLASS} images of each of {CLASSES} classes; "
            "get it again"
        )
    names_path = root / "fine_label_names.txt"
    names = tuple(names_path.read_text(encoding="utf-8").split())
    if len(names) != CLASSES:
        raise ValueError(f"{names_path} has {len(names)} names of classes, not {CLASSES}")
    return labels, records[:, 2:], names
