"""The code that the documentation shows runs as shown."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import ssot

ROOT = Path(__file__).parent.parent
MODULES = [module.name for module in pkgutil.walk_packages(ssot.__path__, "ssot.")]


def code_of(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert blocks
    return "\n".join(blocks)


def test_readme():
    namespace = {}
    exec(code_of("README.md"), namespace)
    solution = namespace["solution"]
    assert solution.status is ssot.Status.CONVERGED
    assert solution.plan.sum() == pytest.approx(namespace["rho"], abs=1e-6)


def test_training_loop_of_the_guide():
    namespace = {}
    exec(code_of("docs/guide.md"), namespace)
    logits = np.random.default_rng(0).standard_normal((60, 4))
    graph = ssot.knn_graph(logits, k=5)
    labels, solution = namespace["pseudo_labels"](logits, graph, 0.2)
    labels, solution = namespace["pseudo_labels"](logits, graph, 0.3, previous=solution)
    np.testing.assert_allclose(labels.sum(axis=1), solution.confidence, rtol=1e-6)


def test_large_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code_of("docs/large.md"), namespace)
    assert namespace["stopped"].status is ssot.Status.STOPPED
    assert namespace["solution"].status is ssot.Status.CONVERGED
    written = np.load("plan.npy")
    assert written.sum() == pytest.approx(0.3, abs=1e-6)


def test_training_of_the_guide():
    torch = pytest.importorskip("torch", reason="training is Torch's")
    namespace = {}
    exec(code_of("docs/guide.md"), namespace)
    generator, heads, views = torch.Generator().manual_seed(0), 2, 2
    samples = torch.randn(60, 4, generator=generator)
    weights = torch.randn(heads, 4, 3, generator=generator, requires_grad=True)
    before = weights.detach().clone()
    loader = [(samples[ids], ids) for ids in torch.arange(60).split(20)]

    def model(given):
        return (given @ weights).unsqueeze(1).expand(-1, views, -1, -1)

    optimizer = torch.optim.SGD([weights], lr=0.1)
    labeler = namespace["train"](model, loader, optimizer, ssot.knn_graph(samples, k=5), epochs=2)
    assert labeler.step == 6
    assert sorted(labeler.bank.ids.tolist()) == list(range(60))
    assert (weights.detach() != before).all()


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
