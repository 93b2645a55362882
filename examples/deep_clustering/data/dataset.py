"""What a data set is, and what the loaders share: class sizes, packages and folders."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """Samples to cluster.

    Attributes
    ----------
    name
        Name of the set, for reports.
    inputs
        float32: features (N, D), or images (N, channels, height, width) in [0, 1].
    labels
        True classes (N,), 0 to K - 1, used for scores alone; None where they are unknown.
    class_names
        One name for each of the K classes.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    @property
    def is_images(self) -> bool:
        """Whether the samples are images, not features."""
        return self.inputs.ndim == 4

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)


def long_tailed_sizes(largest: int, imbalance: float, n_classes: int) -> list[int]:
    """Return class sizes that fall geometrically from `largest` to 1 / `imbalance` of it."""
    check_imbalance(imbalance, largest)
    last = max(n_classes - 1, 1)
    return [int(largest * (1 / imbalance) ** (c / last)) for c in range(n_classes)]


def check_imbalance(imbalance: float, largest: int) -> None:
    """Refuse an imbalance below 1, or one that leaves the rarest class without samples."""
    if not 1 <= imbalance <= largest:
        raise ValueError(
            f"imbalance is the largest class size over the smallest, from 1 to {largest}; "
            f"got {imbalance}"
        )


def package_folder(module: str, requirement: str) -> Path:
    """Return the folder of an installed package without importing it.

    Parameters
    ----------
    module
        Name that Python would import.
    requirement
        `name==version` of the package whose files make the data set.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"this data set is read from a package: pip install {requirement}"
        )
    name, wanted = requirement.split("==")
    if version(name) != wanted:
        logger.warning(
            "%s %s is installed; the published numbers are for %s", name, version(name), wanted
        )
    return Path(spec.submodule_search_locations[0])


def data_folder(root: Path | None, name: str, holds: str) -> Path:
    """Return `root` if it is a folder; `holds` says what the user has to put there."""
    if root is None or not root.is_dir():
        raise FileNotFoundError(f"root must be the folder of {name}, with {holds}; got {root}")
    return root


def warn_unless_published(what: str, found: int, published: int) -> None:
    """Log that the user's copy of a data set is not the one that published numbers are for."""
    if found != published:
        logger.warning("%s: %d; the published numbers are for %d", what, found, published)


def choose(name: str, given: str, known: Sequence[str]) -> str:
    """Return `given` if it is one of the `known` values of the option `name`."""
    if given not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {given!r}")
    return given
