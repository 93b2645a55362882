"""What `import ssot` brings: light, complete, documented."""

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssot

OPTIONAL = {"matplotlib", "numba", "pynndescent", "sklearn", "torch", "triton"}

SOLVE = """
import numpy as np, ssot
cost = np.array([[0.1, 2.0], [1.5, 0.3], [0.9, 0.8]])
solution = ssot.solve(cost, np.ones((3, 3)), rho=0.5)
solution.plan, solution.labels, solution.confidence, solution.prices, solution.predict(cost)
ssot.solve(logits=-cost, init=solution, kl_weight=np.inf)
ssot.sp2ot_plan(cost)
"""

HIDE_NUMBA = "import sys; sys.modules['numba'] = None"


def run_apart(code):
    """Run code in a fresh interpreter, where any warning is an error, and return what it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_optional_dependencies_are_not_imported():
    loaded = run_apart("import ssot, sys; print(*sys.modules)").split()
    assert "ssot" in loaded
    assert OPTIONAL.isdisjoint(loaded)


def test_a_solve_imports_what_computes_it_and_no_more():
    loaded = run_apart(f"{SOLVE}\nimport sys; print(*sys.modules)").split()
    assert (OPTIONAL - {"numba"}).isdisjoint(loaded)


def test_a_solve_works_without_the_optional_dependencies():
    found = run_apart(f"{HIDE_NUMBA}\n{SOLVE}\nprint(solution.backend)")
    assert found.strip() == "numpy"
    asked = "try: ssot.solve(cost, backend='numba')\nexcept RuntimeError as error: print(error)"
    assert "needs Numba" in run_apart(f"{HIDE_NUMBA}\n{SOLVE}\n{asked}")


def test_nothing_is_printed():
    assert run_apart(SOLVE) == ""


def test_public_names_exist_once():
    assert [name for name in ssot.__all__ if not hasattr(ssot, name)] == []
    assert len(set(ssot.__all__)) == len(ssot.__all__)


def test_star_import_brings_the_public_names():
    namespace = {}
    exec("from ssot import *", namespace)
    assert set(ssot.__all__) <= set(namespace)


def test_the_changelog_describes_this_version():
    """The one statement of the version is `__version__`; other files read it."""
    changelog = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## \[(.*?)\]", changelog, re.M)
    released = [section for section in sections if section != "Unreleased"]
    is_in_development = "dev" in ssot.__version__
    assert sections[0] == "Unreleased" if is_in_development else released[0] == ssot.__version__


def documented(thing, name):
    """Tell whether there is a docstring, other than the signature that a dataclass makes up."""
    text = inspect.getdoc(thing) or ""
    return bool(text.strip()) and not text.startswith(f"{name}(")


def test_public_objects_and_their_methods_are_documented():
    things = {name: getattr(ssot, name) for name in ssot.__all__}
    for name, thing in list(things.items()):
        parts = vars(thing).items() if inspect.isclass(thing) else ()
        things |= {
            f"{name}.{part}": value
            for part, value in parts
            if not part.startswith("_") and hasattr(value, "__get__")
        }
    assert [name for name, thing in things.items() if not documented(thing, name)] == []


@pytest.mark.parametrize(
    "name", [name for name in ssot.__all__ if dataclasses.is_dataclass(getattr(ssot, name))]
)
def test_public_fields_are_documented(name):
    described = inspect.getdoc(getattr(ssot, name))
    fields = [field.name for field in dataclasses.fields(getattr(ssot, name))]
    missing = [f for f in fields if not f.startswith("_") and not re.search(rf"\b{f}\b", described)]
    assert missing == []
