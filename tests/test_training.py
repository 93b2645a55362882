"""The training package as a whole."""

import dataclasses
import inspect

import pytest
from test_imports import run_apart

pytest.importorskip("torch", reason="training is Torch's")

from ssot import training


def test_without_torch_the_error_names_the_extra():
    hide = "import sys; sys.modules['torch'] = None"
    ask = "try: import ssot.training\nexcept ImportError as error: print(error)"
    assert "torch extra" in run_apart(f"{hide}\nimport ssot\n{ask}")


def test_public_objects_and_their_methods_are_documented():
    for name in training.__all__:
        thing = getattr(training, name)
        assert thing.__doc__, name
        parts = vars(thing).items() if inspect.isclass(thing) else ()
        public = {part: value for part, value in parts if not part.startswith("_")}
        assert [part for part, value in public.items() if not value.__doc__] == [], name
    described = inspect.getdoc(training.PseudoLabels)
    fields = [field.name for field in dataclasses.fields(training.PseudoLabels)]
    assert [name for name in fields if f"{name} :" not in described] == []
