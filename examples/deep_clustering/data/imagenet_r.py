"""ImageNet-R (arXiv 2006.16241), renditions of 200 classes, from the user's disk."""

from pathlib import Path

import numpy as np

from examples.deep_clustering import features as frozen
from examples.deep_clustering.data.dataset import Dataset, data_folder, warn_unless_published

CLASSES = 200
HELD_OUT = 20  # images a class that the paper keeps for tests


def load(
    *,
    root: Path | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> Dataset:
    """Return DINO's features of all images but 20 of each class; the imbalance is natural.

    Parameters
    ----------
    root
        Folder that has a folder of JPEG files for each class, named by its WordNet id.
    seed
        Draws the 20 images that are left out.
    checkpoint, cache, device
        As in `features.dino_embeddings`.

    Raises
    ------
    FileNotFoundError
        If `root` is not such a folder.
    ValueError
        If a class has no more than 20 images.
    """
    root = data_folder(root, "ImageNet-R", "a folder of *.jpg for each WordNet id")
    classes = {folder.name: sorted(folder.glob("*.jpg")) for folder in sorted(root.glob("n*/"))}
    if not classes:
        raise FileNotFoundError(f"{root} has no folders such as n01443537; unpack imagenet-r.tar")
    warn_unless_published(f"classes in {root}", len(classes), CLASSES)
    rng = np.random.default_rng(seed)
    kept = []
    for name, paths in classes.items():
        if len(paths) <= HELD_OUT:
            raise ValueError(f"{root / name} has {len(paths)} images, not more than {HELD_OUT}")
        training = np.sort(rng.permutation(len(paths))[HELD_OUT:])
        kept += [paths[index] for index in training]
    labels = np.repeat(np.arange(len(classes)), [len(p) - HELD_OUT for p in classes.values()])
    inputs = frozen.dino_embeddings(kept, checkpoint=checkpoint, cache=cache, device=device)
    return Dataset("imagenet_r", inputs, labels, tuple(classes))
