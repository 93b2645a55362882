"""Handwritten digits of scikit-learn (8 x 8 pixels), thinned out to a long tail."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from examples.deep_clustering.data.dataset import Dataset, choose, long_tailed_sizes

CLASSES = 10
LARGEST_CLASS = 170  # every digit has at least 174 images
COMPONENTS = 32


def load(*, seed: int = 0, imbalance: float = 10, features: str = "pixels") -> Dataset:
    """Draw long-tailed digits.

    Parameters
    ----------
    seed
        Draws the samples, and which digits are rare.
    imbalance
        Largest class size, 170, over the smallest; 1 to 170.
    features
        `pixels` for images (N, 1, 8, 8), `pca` for their 32 principal components.
    """
    choose("features", features, ("pixels", "pca"))
    sizes = long_tailed_sizes(LARGEST_CLASS, imbalance, CLASSES)
    pixels, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    drawn = [
        rng.choice(np.flatnonzero(labels == digit), size, replace=False)
        for digit, size in zip(rng.permutation(CLASSES), sizes, strict=True)
    ]
    order = rng.permutation(np.concatenate(drawn))
    inputs = pixels[order] / pixels.max()
    if features == "pca":
        inputs = PCA(COMPONENTS, random_state=seed).fit_transform(inputs)
    else:
        inputs = inputs.reshape(-1, 1, 8, 8)
    names = tuple(str(digit) for digit in range(CLASSES))
    return Dataset("digits", inputs.astype(np.float32), labels[order], names)
