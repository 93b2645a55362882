"""Features of texts, and the cache of features."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from examples.deep_clustering import features


@pytest.mark.slow
@pytest.mark.skipif(not features.has_sentence_encoder(), reason="needs MiniLM and its weights")
def test_sentence_embeddings_know_synonyms_and_print_nothing(tmp_path, capfd):
    texts = ["fracture of the arm", "broken arm", "infection of the eye"]
    rows = features.sentence_embeddings(texts, cache=tmp_path)
    assert rows.shape == (3, 384)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)
    assert rows[0] @ rows[1] > 0.7 > rows[0] @ rows[2]
    assert capfd.readouterr() == ("", "")


# the cache


@pytest.fixture
def counted(tmp_path):
    """A cached computation in `tmp_path`, and the calls that computed."""
    calls = []

    def compute():
        calls.append(1)
        return np.arange(6.0).reshape(3, 2)

    def get(*depends_on, n_samples=3):
        return features.cached("kind", depends_on, compute, n_samples, tmp_path)

    return get, calls


def test_features_are_computed_once_for_what_they_depend_on(counted, tmp_path):
    get, calls = counted
    first, again = get("a", "b"), get("a", "b")
    np.testing.assert_array_equal(first, again)
    assert (first.dtype, again.dtype, len(calls)) == (np.float32, np.float32, 1)
    get("ab")
    get("b", "a")
    get("ab", "")
    assert len(calls) == 4
    assert len(list(tmp_path.glob("kind-*.npz"))) == len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "rows"])
def test_a_damaged_file_is_made_anew(counted, tmp_path, caplog, damage):
    get, calls = counted
    whole = get("a")
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[content.index(np.float32(5).tobytes())] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        np.savez(path, features=np.zeros((2, 2), np.float32))
    np.testing.assert_array_equal(get("a"), whole)
    assert len(calls) == 2
    assert "made anew" in caplog.text
    get("a")
    assert len(calls) == 2


def test_a_write_that_fails_leaves_nothing(counted, tmp_path, monkeypatch):
    get, _ = counted

    def full(file, **_arrays):
        file.write(b"half of")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="disk full"):
        get("a")
    assert not list(tmp_path.iterdir())


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert features.cache_folder() == tmp_path / "ssot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert features.cache_folder() == tmp_path / ".cache" / "ssot"


def test_tfidf_depends_on_its_settings(tmp_path):
    texts = ["one two three", "two three four", "three four five", "four five six"]
    characters = features.tfidf_embeddings(texts, characters=(1, 2), cache=tmp_path)
    both = features.tfidf_embeddings(texts, characters=(1, 2), words=(1, 1), cache=tmp_path)
    narrow = features.tfidf_embeddings(texts, characters=(1, 2), dimensions=2, cache=tmp_path)
    assert narrow.shape == (4, 2)
    assert not np.allclose(characters, both)
    assert len(list(tmp_path.iterdir())) == 3
