"""Fixtures shared by the tests."""

from pathlib import Path

import pytest
from tolerances import SETTINGS

DATA = Path(__file__).parent / "data"


@pytest.fixture(params=SETTINGS, ids=lambda setting: f"{setting.backend}-{setting.dtype}")
def setting(request):
    """Every backend and dtype, with the tolerances to hold it to."""
    return request.param
