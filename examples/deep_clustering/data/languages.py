"""Interface strings of Django, translated by its volunteers; class = language.

The imbalance is natural: how much of Django has been translated. Languages that are close, such as
four kinds of Spanish, are classes of their own.
"""

import gettext
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from examples.deep_clustering import features as frozen
from examples.deep_clustering.data.dataset import Dataset, package_folder

REQUIREMENT = "Django==5.2.19"
CATALOGUES = "**/locale/*/LC_MESSAGES/django.mo"
MARKUP = re.compile(r"<[^>]*>|&\w+;|\{[^}]*\}|%(?:\([^)]*\))?[a-z]")  # tags, fields to fill in
PUNCTUATION = re.compile(r"[\d_!-/:-@\[-`{-~]+")  # ASCII alone: other marks belong to a script
FEWEST_WORDS = 3  # shorter strings are names and dates that many languages share
SMALLEST_CLASS = 10


def load(*, cache: Path | None = None) -> Dataset:
    """Return n-gram features of the strings: 21,984 in 97 languages, imbalance 29.

    Kept are strings of three words or more, not counting fields to fill in and tags, that occur in
    one language alone; and the languages that have ten such strings or more. A string with several
    plural forms counts once. Classes are in the order of their sizes. The features (N, 256) are
    those of n-grams of one to three characters, without digits and punctuation.

    Parameters
    ----------
    cache
        Folder of cached features.

    Raises
    ------
    ModuleNotFoundError
        If Django is not installed.
    """
    classes = select(read_catalogues(package_folder("django", REQUIREMENT)))
    texts = [PUNCTUATION.sub(" ", text) for strings in classes.values() for text in strings]
    labels = np.repeat(np.arange(len(classes)), [len(strings) for strings in classes.values()])
    inputs = frozen.tfidf_embeddings(texts, characters=(1, 3), cache=cache)
    return Dataset("languages", inputs, labels, tuple(classes))


def read_catalogues(folder: Path) -> dict[str, set[str]]:
    """Return the distinct translations below a folder, by the code of their language."""
    strings = defaultdict(set)
    for path in sorted(folder.glob(CATALOGUES)):
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)._catalog  # nothing public lists it
        strings[path.parts[-3]] |= {
            without_markup(translation)
            for message, translation in catalogue.items()
            if message and (isinstance(message, str) or message[1] == 0)  # the first plural form
        }
    return strings


def without_markup(text: str) -> str:
    """Return a string without tags and fields, its words separated by single spaces."""
    return " ".join(MARKUP.sub(" ", text).split())


def select(strings: dict[str, set[str]]) -> dict[str, list[str]]:
    """Return the strings, sorted, that make the data set: the language with the most first."""
    languages_of = defaultdict(set)
    for language, texts in strings.items():
        for text in texts:
            languages_of[text].add(language)
    kept = {
        language: sorted(
            text
            for text in texts
            if len(text.split()) >= FEWEST_WORDS and len(languages_of[text]) == 1
        )
        for language, texts in strings.items()
    }
    largest_first = sorted(kept, key=lambda language: (-len(kept[language]), language))
    return {name: kept[name] for name in largest_first if len(kept[name]) >= SMALLEST_CLASS}
