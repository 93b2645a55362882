"""The border of the package: arrays of the caller's own library in, and the same kind out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray
from scipy import sparse

Library: TypeAlias = Literal["numpy", "torch"]

Array: TypeAlias = Any
"""A NumPy array or a Torch tensor."""

Vector: TypeAlias = NDArray[np.float64]
"""A float64 NumPy array, on the host whatever computes: of columns, or of the CPU's samples."""

LARGEST = 1e100
"""Largest magnitude accepted, so that no product of two arguments can overflow."""

LARGEST_IN_SINGLE_PRECISION = 1e30
"""The same for the N x K arrays of a float32 problem."""


class Place(NamedTuple):
    """Where arrays live: NumPy's on the host (device None), Torch's on a device."""

    library: Library
    device: Any

    def __str__(self) -> str:
        return self.library if self.device is None else f"{self.library} on {self.device}"


HOST = Place("numpy", None)


def place_of(value: object) -> Place:
    """Return where `value` lives, without importing Torch; lists are NumPy's."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return HOST
    return Place("torch", value.device)


def namespace(array: Array) -> Any:
    """Return the functions of the array's library, by the names of the array API standard."""
    return array_namespace(array)


def is_single(array: Array) -> bool:
    """Tell whether an array holds float32."""
    return bool(array.dtype == namespace(array).float32)


def largest_magnitude(array: Array) -> float:
    """Return the largest magnitude accepted in arrays of the dtype of this one."""
    return LARGEST_IN_SINGLE_PRECISION if is_single(array) else LARGEST


def checked_array(value: Any, name: str) -> Array:
    """View `value` as an array of integers or floats of its own library, or say what is wrong.

    Raises
    ------
    TypeError
        If `value` is not a dense array of real numbers.
    ValueError
        If `value` is ragged, or has masked entries.
    """
    if place_of(value).library == "torch":
        return _checked_tensor(value, name)
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
    except (ValueError, RuntimeError) as error:  # ragged, or of tensors that require gradients
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from error
    if array.dtype.kind not in "iufb":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}; "
            f"convert it with numpy.asarray({name}, dtype=float)"
        )
    return array


def to_numpy(value: Any, name: str) -> NDArray[Any]:
    """Return `value` as a checked NumPy array, sharing memory where it can; see `checked_array`."""
    array: NDArray[Any] = to_place(checked_array(value, name), HOST)
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


def to_computing_dtype(array: Array) -> Array:
    """Return a C-contiguous array in the dtype to compute in: float32 for it and less, or float64.

    Without a copy where that holds already.
    """
    xp = namespace(array)
    is_float = bool(xp.isdtype(array.dtype, "real floating"))
    single = is_float and array.dtype.itemsize <= np.float32().itemsize
    dtype = xp.float32 if single else xp.float64
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array, dtype)
    return array.to(dtype).contiguous()


def to_place(array: Array, place: Place) -> Array:
    """Return an array in another place, sharing memory where it can."""
    if place_of(array) == place:
        return array
    if place.library == "numpy":
        return array.cpu().numpy()
    import torch

    if isinstance(array, np.ndarray):
        array = torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))
    return array.to(place.device)


@contextmanager
def isolated(place: Place) -> Iterator[None]:
    """Enter a context in which Torch makes plain tensors: no gradients, casts or inference mode."""
    if place.library == "numpy":
        yield
        return
    import torch

    plain_dtypes = torch.autocast(place.device.type, enabled=False)
    with torch.inference_mode(mode=False), torch.no_grad(), plain_dtypes:
        yield


def require_device(value: Any, name: str) -> None:
    """Refuse a tensor on a device that cannot solve."""
    if value.device.type in ("meta", "mps"):
        raise ValueError(
            f"{name} is a tensor on {value.device}, which cannot compute in float64; pass it on "
            f"the CPU or on a CUDA device, for example {name}.cpu()"
        )


class _Writable:
    """A read-only array as Torch wants it, which has no read-only tensors and warns of them."""

    def __init__(self, array: NDArray[Any]) -> None:
        interface = array.__array_interface__
        self.owner = array
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def _checked_tensor(value: Any, name: str) -> Array:
    import torch

    require_device(value, name)
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got a sparse one; pass {name}.to_dense()")
    if value.is_complex():
        raise TypeError(f"{name} must hold real numbers, got dtype {value.dtype}; pass {name}.real")
    value = value.detach().resolve_conj().resolve_neg()
    is_half = value.is_floating_point() and value.element_size() < np.float32().itemsize
    return value.float() if is_half else value
