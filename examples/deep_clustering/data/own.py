"""The user's own features, from a file of arrays."""

import zipfile
from pathlib import Path

import numpy as np

from examples.deep_clustering.data.dataset import Dataset


def load(*, root: Path | None = None, n_classes: int | None = None) -> Dataset:
    """Read features, and labels where there are any, from an .npz file.

    Parameters
    ----------
    root
        The file, or a folder that has it as `features.npz`. Its arrays are `features` (N, D), of
        numbers, and perhaps `labels` (N,), of integers or strings. Features are centred, as far
        from the origin all have one direction, and divided by their largest magnitude.
    n_classes
        Number of clusters, for files without labels alone.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not as above.
    """
    path = root / "features.npz" if root is not None and root.is_dir() else root
    if path is None or not path.is_file():
        raise FileNotFoundError(
            "root must be an .npz file with the arrays features (N, D) and, for scores, "
            f"labels (N,); got {path}"
        )
    arrays = read_arrays(path)
    if "features" not in arrays:
        raise ValueError(
            f"{path} must have an array features; it has {', '.join(arrays) or 'none'}"
        )
    features = centred(check_features(arrays["features"], path))
    if "labels" in arrays:
        if n_classes is not None:
            raise ValueError(f"n_classes is for files without labels; {path} has labels")
        names, labels = check_labels(arrays["labels"], len(features), path)
        return Dataset(path.stem, features, labels, names)
    if n_classes is None:
        raise ValueError(
            f"{path} has no array labels; say how many clusters by n_classes (--classes)"
        )
    if not 2 <= n_classes <= len(features):
        raise ValueError(f"n_classes must be from 2 to {len(features)}, samples; got {n_classes}")
    return Dataset(path.stem, features, None, tuple(str(cluster) for cluster in range(n_classes)))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays `features` and `labels` of a file, as far as it has them."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in ("features", "labels") if name in stored}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); write it by "
            "np.savez(path, features=..., labels=...) with arrays of numbers or strings"
        ) from error


def check_features(features: np.ndarray, path: Path) -> np.ndarray:
    """Return the features as float64, if they are finite numbers in rows."""
    if features.ndim != 2 or min(features.shape) < 1 or features.dtype.kind not in "biuf":
        raise ValueError(
            f"features of {path} must be numbers of shape (N, D); got {features.dtype} of shape "
            f"{features.shape}"
        )
    with np.errstate(over="ignore"):  # too large a number becomes inf, and is refused below
        features = features.astype(np.float64)
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if broken.size:
        raise ValueError(
            f"features of {path} must be finite; {broken.size} rows are not, first row {broken[0]}"
        )
    return features


def centred(features: np.ndarray) -> np.ndarray:
    """Return finite features around 0 and of any scale as float32 of magnitude 1 at most."""
    features = scaled(features)  # so that their sum is finite
    return scaled(features - features.mean(axis=0)).astype(np.float32)


def scaled(features: np.ndarray) -> np.ndarray:
    """Divide by the largest magnitude; zeros stay."""
    return features / (np.abs(features).max() or 1)


def check_labels(
    labels: np.ndarray, n_samples: int, path: Path
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names of the classes, and the labels as 0 to K - 1."""
    if labels.shape != (n_samples,) or labels.dtype.kind not in "biuUS":
        raise ValueError(
            f"labels of {path} must be {n_samples} integers or strings, as many as features; got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    values, labels = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        raise ValueError(f"labels of {path} must have two classes or more; got {len(values)}")
    return tuple(str(value) for value in values), labels
