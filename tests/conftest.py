"""Fixtures shared by the tests."""

from pathlib import Path

import pytest
import threadpoolctl
from tolerances import SETTINGS

from ssot.arrays import Place

DEVICES = ["cpu"]
if any(setting.is_on_device for setting in SETTINGS):
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))

DATA = Path(__file__).parent / "data"


@pytest.fixture(
    params=[
        pytest.param(setting, id=str(setting), marks=[pytest.mark.gpu] * setting.is_on_device)
        for setting in SETTINGS
    ]
)
def setting(request):
    """Every backend and dtype that runs here, with the tolerances to hold it to."""
    return request.param


@pytest.fixture(params=DEVICES)
def place(request):
    """Where tensors may be on this machine."""
    torch = pytest.importorskip("torch", reason="tensors need Torch")
    return Place("torch", torch.device(request.param, 0 if request.param == "cuda" else None))


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread():
    """Keep the small products of the tests from waiting for cores that other processes hold."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield
