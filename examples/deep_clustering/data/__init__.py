"""The data sets of the deep-clustering example, by name.

    load("icd")  # disease names; nothing to download
    load("cifar100", root=Path("cifar-100-binary"))

`digits`, `icd` and `languages` come from installed packages, `features` from the user's own file,
and `cifar100`, `imagenet_r` and `inaturalist` from the user's disk.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.deep_clustering.data import (
    cifar100,
    digits,
    icd,
    imagenet_r,
    inaturalist,
    languages,
    own,
)
from examples.deep_clustering.data.dataset import Dataset, choose

__all__ = ["LOADERS", "Dataset", "check_options", "load"]

LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": digits.load,
    "icd": icd.load,
    "languages": languages.load,
    "features": own.load,
    "cifar100": cifar100.load,
    "imagenet_r": imagenet_r.load,
    "inaturalist": inaturalist.load,
}
EVERYWHERE = ("cache", "device", "seed")  # left out where a data set does not depend on them


def load(
    name: str,
    *,
    root: Path | None = None,
    cache: Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Dataset:
    """Load a data set.

    Parameters
    ----------
    name
        One of `LOADERS`.
    root
        Folder or file of the data sets that are on the user's disk.
    cache
        Folder of cached features; by default `features.cache_folder()`.
    seed
        Draws the samples, where samples are drawn.
    device
        Torch device that computes features, where a network does.
    **options
        Further arguments of the loader, such as `imbalance`, `features`, `n_classes` and
        `checkpoint`. Those that are None take its defaults.

    Raises
    ------
    ValueError
        If there is no such data set, or it has no such option.
    """
    given = {"root": root, "cache": cache, "seed": seed, "device": device, **options}
    return LOADERS[choose("name", name, tuple(LOADERS))](**check_options(name, given))


def check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return those options of `load` that reach a data set; refuse those that it does not have."""
    known = inspect.signature(LOADERS[name]).parameters
    given = {option: value for option, value in options.items() if value is not None}
    unknown = [option for option in given if option not in known and option not in EVERYWHERE]
    if unknown:
        raise ValueError(
            f"data set {name} has no {' or '.join(unknown)}; its options are {', '.join(known)}"
        )
    return {option: value for option, value in given.items() if option in known}
