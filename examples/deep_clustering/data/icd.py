"""Names of diseases in ICD-10-CM, the classification in use in US hospitals; class = block.

The names are those of categories and subcategories, without the extensions of a seventh character
("initial encounter" and the like). They come from the tables of the package `simple-icd-10-cm`.
"""

import logging
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from examples.deep_clustering import features as frozen
from examples.deep_clustering.data.dataset import (
    Dataset,
    choose,
    long_tailed_sizes,
    package_folder,
)

logger = logging.getLogger(__name__)

REQUIREMENT = "simple-icd-10-cm==1.5.0"
CLASSES = 100
LARGEST_CLASS = 500


def load(
    *,
    seed: int = 0,
    imbalance: float = 100,
    features: str = "auto",
    cache: Path | None = None,
    device: str = "cpu",
) -> Dataset:
    """Draw long-tailed disease names: 10,847 in 100 classes by default.

    The classes are the 100 blocks with the most names. The largest gives 500 of them, the smallest
    500 / `imbalance`, those between geometrically.

    Parameters
    ----------
    seed
        Draws the names.
    imbalance
        Largest class size over the smallest; 6 to 500, as smaller blocks have too few names for
        less.
    features
        `minilm` for sentence embeddings, `tfidf` for n-grams of words and characters; `auto` takes
        the first where it is installed.
    cache
        Folder of cached features.
    device
        Torch device that computes sentence embeddings.

    Raises
    ------
    ModuleNotFoundError
        If the package of the tables, or that of the encoder asked for, is not installed.
    ValueError
        If `imbalance` asks for more names than a block has.
    """
    choose("features", features, ("auto", "minilm", "tfidf"))
    sizes = long_tailed_sizes(LARGEST_CLASS, imbalance, CLASSES)
    texts, labels, names = draw_names(read_blocks(), sizes, seed)
    if features == "auto":
        features = "minilm" if frozen.has_sentence_encoder() else "tfidf"
        logger.info("disease names are embedded by %s", features)
    if features == "minilm":
        inputs = frozen.sentence_embeddings(texts, cache=cache, device=device)
    else:
        inputs = frozen.tfidf_embeddings(texts, characters=(3, 5), words=(1, 2), cache=cache)
    return Dataset("icd", inputs, labels, names)


def read_blocks() -> dict[tuple[str, str], list[str]]:
    """Return the distinct names, sorted, of each block, which is its id and its own name."""
    data = package_folder("simple_icd_10_cm", REQUIREMENT) / "data"
    (table,) = data.glob("icd10c-tabular-*.xml")
    return {
        (block.attrib["id"], block.findtext("desc", "")): sorted(
            {
                entry.findtext("desc", "")
                for entry in block.iter("diag")
                # A block of one category has its id: there the category is the block itself.
                if entry.findtext("name") != block.attrib["id"]
            }
        )
        for block in ElementTree.parse(table).getroot().iter("section")
    }


def draw_names(
    blocks: dict[tuple[str, str], list[str]], sizes: list[int], seed: int
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Draw `sizes[c]` names from the block with the c-th most; with labels and class names."""
    largest_first = sorted(blocks, key=lambda block: (len(blocks[block]), block[0]), reverse=True)
    rng = np.random.default_rng(seed)
    texts = []
    for block, size in zip(largest_first, sizes, strict=False):
        if size > len(blocks[block]):
            raise ValueError(
                f"imbalance asks for {size} names of {block[1]}, which has {len(blocks[block])}; "
                "take a larger imbalance"
            )
        drawn = rng.choice(len(blocks[block]), size, replace=False)
        texts += [blocks[block][index] for index in drawn]
    names = tuple(name for _, name in largest_first[: len(sizes)])
    return texts, np.repeat(np.arange(len(sizes)), sizes), names
