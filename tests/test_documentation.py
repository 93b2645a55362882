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


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
