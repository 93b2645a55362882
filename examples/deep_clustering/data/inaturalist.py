"""Long-tailed subsets of iNaturalist 2018 (arXiv 1707.06642) from the user's disk."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from examples.deep_clustering import features as frozen
from examples.deep_clustering.data.dataset import (
    Dataset,
    choose,
    data_folder,
    warn_unless_published,
)

CLASSES = 8142
SUBSETS = (2000, 1000, 500, 100)  # each drawn from the one before, the first from all classes
IMAGES = {100: 6964, 500: 27711, 1000: 54974}  # published for the training split of the subsets


def load(
    *,
    root: Path | None = None,
    n_classes: int = 500,
    checkpoint: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> Dataset:
    """Return DINO's features of the training images of 100, 500, 1000 or 2000 classes.

    Parameters
    ----------
    root
        Folder with `train2018.json` and the images that it names, `train_val2018/...`.
    n_classes
        Classes of the subset; see `nested_subset`.
    checkpoint, cache, device
        As in `features.dino_embeddings`.

    Raises
    ------
    FileNotFoundError
        If `root` is not such a folder.
    ValueError
        If there is no such subset, or `train2018.json` is not in the format of COCO.
    """
    choose("n_classes", str(n_classes), [str(size) for size in SUBSETS])
    root = data_folder(root, "iNaturalist 2018", "train2018.json and train_val2018/")
    names, files = read_annotations(root / "train2018.json")
    sizes = {category: len(paths) for category, paths in files.items()}
    warn_unless_published(f"categories in {root}", len(sizes), CLASSES)
    classes = nested_subset(sizes, n_classes)
    total = sum(sizes[category] for category in classes)
    warn_unless_published(
        f"images of {n_classes} categories in {root}", total, IMAGES.get(n_classes, total)
    )
    paths = [root / path for category in classes for path in files[category]]
    inputs = frozen.dino_embeddings(paths, checkpoint=checkpoint, cache=cache, device=device)
    labels = np.repeat(np.arange(n_classes), [sizes[category] for category in classes])
    return Dataset("inaturalist", inputs, labels, tuple(names[category] for category in classes))


def nested_subset(sizes: Mapping[int, int], n_classes: int) -> list[int]:
    """Return `n_classes` categories, the largest first, whose sizes are as long-tailed as all.

    The categories are ranked by size, and every n-th rank is kept: 2000 of all, 1000 of these, and
    so on down to `n_classes`. Thus each subset contains the next, and each has categories of all
    ranges of size.

    Parameters
    ----------
    sizes
        Training images of each category, at least 2000 categories.
    n_classes
        One of `SUBSETS`.
    """
    if len(sizes) < SUBSETS[0]:
        raise ValueError(f"subsets are drawn from {SUBSETS[0]} classes or more; got {len(sizes)}")
    kept = sorted(sizes, key=lambda category: (-sizes[category], category))
    for n_kept in SUBSETS[: SUBSETS.index(n_classes) + 1]:
        kept = [kept[rank * len(kept) // n_kept] for rank in range(n_kept)]
    return kept


def read_annotations(path: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Return the name and the image files of each category, from a file in the format of COCO."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; unpack train2018.json.tar.gz of iNaturalist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        paths = {image["id"]: image["file_name"] for image in content["images"]}
        files: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            files.setdefault(annotation["category_id"], []).append(paths[annotation["image_id"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not annotations in the format of COCO: {error!r}") from error
    return names, {category: sorted(files[category]) for category in files}
