"""The border of the package: NumPy arrays inside, the caller's own kind outside."""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Library: TypeAlias = Literal["numpy", "torch"]


LARGEST = 1e100
"""Largest magnitude accepted, so that no product of two arguments can overflow."""

LARGEST_IN_SINGLE_PRECISION = 1e30
"""The same for the N x K arrays of a float32 problem."""


def largest_magnitude(dtype: np.dtype[Any]) -> float:
    """Return the largest magnitude accepted in arrays of a dtype."""
    return LARGEST if dtype == np.float64 else LARGEST_IN_SINGLE_PRECISION


def library_of(value: object) -> Library:
    """Return the library that `value` belongs to, without importing Torch; lists are NumPy's."""
    torch = sys.modules.get("torch")
    return "torch" if torch is not None and isinstance(value, torch.Tensor) else "numpy"


def to_numpy(value: Any, name: str) -> NDArray[Any]:
    """View `value` as a NumPy array of integers or floats, or say what is wrong with it.

    Raises
    ------
    TypeError
        If `value` is not an array of real numbers.
    ValueError
        If `value` is ragged, or has masked entries.
    """
    if library_of(value) == "torch":
        value = _tensor_to_numpy(value, name)
    if sparse.issparse(value):
        raise TypeError(f"{name} must be a dense array, got a sparse one; pass {name}.toarray()")
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise ValueError(
                f"{name} has masked entries; fill them first with {name}.filled(value), where inf "
                "forbids a pair in a cost and 0 leaves out an edge or a weight"
            )
        value = value.data
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from error
    if array.dtype.kind not in "iufb":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}; "
            f"convert it with numpy.asarray({name}, dtype=float)"
        )
    return array


def to_number(value: Any, name: str) -> float:
    """Return `value` as a float, or say that it is not one number.

    Raises
    ------
    TypeError, ValueError
        If `value` is not one real number.
    """
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} must be a number, got {value!r}")
    array = to_numpy(value, name)
    if array.size != 1:
        raise ValueError(f"{name} must be one number, got an array of shape {array.shape}")
    return float(array.reshape(()))


def to_library(array: NDArray[Any], library: Library) -> Any:
    """Return a NumPy array as an array of the named library, sharing its memory."""
    if library == "torch":
        import torch

        return torch.from_numpy(array)
    return array


def _tensor_to_numpy(value: Any, name: str) -> NDArray[Any]:
    if value.device.type != "cpu":
        raise ValueError(
            f"{name} is a tensor on {value.device}, but the computation runs on the CPU; "
            f"pass {name}.cpu()"
        )
    if value.layout is not sys.modules["torch"].strided:
        raise TypeError(f"{name} is a sparse tensor; pass a dense tensor, or a SciPy sparse array")
    value = value.detach().resolve_conj().resolve_neg()
    half_precision = value.is_floating_point() and value.element_size() < np.float32().itemsize
    array: NDArray[Any] = (value.float() if half_precision else value).numpy()
    return array
