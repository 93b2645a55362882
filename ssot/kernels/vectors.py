"""Elementary functions that a compiler turns into vector instructions, and a tile of a product.

Numba calls the scalar `exp` and `log` of the C library, one entry at a time. These are branch-free
polynomials instead: `exp2` is within 2 units in the last place, `log2` within 4 (relative, or
absolute in units of 1).
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

FAST = {"contract", "reassoc", "nsz", "nnan", "arcp"}
"""Liberties for the compiler: it may reorder sums and fuse products; infinity stays what it is."""


def _has_wide_vectors() -> bool:
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))
    except RuntimeError:  # the host is unknown
        return False


LARGEST_TILE = 16
"""Arrays made of tiles have a multiple of this many columns, whatever machine compiled for them."""

TILE = LARGEST_TILE if numba.core.config.CPU_NAME is None and _has_wide_vectors() else 8
"""Rows and columns of a tile of the overlap: its sums fill half of the vector registers."""


STRIDE = 32
"""Entries of a row that `at_least` looks at together."""


def _unary(name: str) -> Any:
    """Return the vectorisable LLVM function of one number."""

    def compile_call(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = builder.module.declare_intrinsic(f"llvm.{name}", [kind])
        return builder.call(function, arguments)

    def typed(_typing: Any, x: Any) -> Any:
        return x(x), compile_call

    return intrinsic(typed)


_round = _unary("rint")


@intrinsic
def maximum(_typing: Any, x: Any, y: Any) -> Any:
    """Return the larger of two numbers, in a form that vectorises as a reduction."""

    def compile_call(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = builder.module.declare_intrinsic(
            "llvm.maxnum", [kind], ir.FunctionType(kind, [kind, kind])
        )
        return builder.call(function, arguments, fastmath=("nnan", "nsz"))

    return x(x, y), compile_call


@intrinsic
def at_least(_typing: Any, row: Any, start: Any, bound: Any) -> Any:
    """Return which of `STRIDE` entries of a row reach a bound, as the bits of a number."""

    def compile_comparison(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        kind = context.get_data_type(signature.args[2])
        vector = ir.VectorType(kind, STRIDE)
        pointer = builder.gep(source.data, [arguments[1]])
        entries = builder.load(builder.bitcast(pointer, vector.as_pointer()))
        entries.align = context.get_abi_sizeof(kind)
        lowest = builder.insert_element(vector(ir.Undefined), arguments[2], ir.IntType(32)(0))
        lanes = ir.VectorType(ir.IntType(32), STRIDE)([0] * STRIDE)
        lowest = builder.shuffle_vector(lowest, lowest, lanes)
        reached = builder.fcmp_ordered(">=", entries, lowest)
        return builder.bitcast(reached, ir.IntType(STRIDE))

    return types.uint32(row, types.intp, row.dtype), compile_comparison


@intrinsic
def lowest_bit(_typing: Any, bits: Any) -> Any:
    """Return the position of the lowest bit of a number that has one."""

    def compile_count(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        position = builder.cttz(arguments[0], ir.IntType(1)(1))
        return builder.zext(position, ir.IntType(64))

    return types.int64(types.uint32), compile_count


@intrinsic
def _bits(_typing: Any, x: Any) -> Any:
    """Return the bits of a float as a signed integer of the same size."""
    integer = types.int32 if x == types.float32 else types.int64

    def compile_cast(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(signature.return_type.bitwidth))

    return integer(x), compile_cast


@intrinsic
def _from_bits(_typing: Any, n: Any) -> Any:
    """Return the float that has these bits."""
    number = types.float32 if n == types.int32 else types.float64

    def compile_cast(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FloatType() if number == types.float32 else ir.DoubleType()
        return builder.bitcast(arguments[0], kind)

    return number(n), compile_cast


def exp2(x: Any) -> Any:
    """Return ``2 ** x`` for ``x <= 0``; results below the smallest normal number are 0."""
    raise NotImplementedError("compiled code only")


@overload(exp2, jit_options={"fastmath": {"contract", "nnan"}, "error_model": "numpy"})
def _exp2(x: Any) -> Any:
    return _exp2_single if x == types.float32 else _exp2_double


def _exp2_single(x: Any) -> Any:
    single, integer = np.float32, np.int32
    lowest = single(-126.0)
    bounded = maximum(x, lowest)
    whole = _round(bounded)
    r = bounded - whole
    p = single(1.54614446985691291e-4)
    p = p * r + single(1.34004281776158379e-3)
    p = p * r + single(9.61805671852463808e-3)
    p = p * r + single(5.55032722667030206e-2)
    p = p * r + single(2.40226509222887581e-1)
    p = p * r + single(6.93147206702832596e-1)
    p = p * r + single(1.0)
    # In the sum with 1.5 * 2**23 the whole number stands in the lowest bits.
    exponent = _bits(whole + single(12582912.0)) + integer(127)
    power = p * _from_bits(integer(exponent << integer(23)))
    return power if x >= lowest else single(0.0)


def _exp2_double(x: Any) -> Any:
    integer = np.int64
    bounded = maximum(x, -1022.0)
    whole = _round(bounded)
    r = bounded - whole
    p = 4.45581790833606449e-10
    p = p * r + 7.07419429728852101e-9
    p = p * r + 1.01780570877339411e-7
    p = p * r + 1.32154325359123762e-6
    p = p * r + 1.52527338415567726e-5
    p = p * r + 1.54035304637243542e-4
    p = p * r + 1.33335581464064707e-3
    p = p * r + 9.61812910758725667e-3
    p = p * r + 5.5504108664821627e-2
    p = p * r + 2.40226506959101596e-1
    p = p * r + 6.93147180559945309e-1
    p = p * r + 1.0
    exponent = _bits(whole + 6755399441055744.0) + integer(1023)
    power = p * _from_bits(exponent << integer(52))
    return power if x >= -1022.0 else 0.0


def log2(x: Any) -> Any:
    """Return ``log2(x)`` for normal ``x > 0``; other arguments have meaningless results."""
    raise NotImplementedError("compiled code only")


@overload(log2, jit_options={"fastmath": {"contract", "nnan"}, "error_model": "numpy"})
def _log2(x: Any) -> Any:
    return _log2_single if x == types.float32 else _log2_double


def _log2_single(x: Any) -> Any:
    single, integer = np.float32, np.int32
    bits = _bits(x)
    # The exponent, put in the lowest bits of 2**23, is a float without a conversion.
    exponent = _from_bits(integer((bits >> integer(23)) | integer(0x4B000000))) - single(8388735.0)
    mantissa = _from_bits(integer((bits & integer(0x7FFFFF)) | integer(0x3F800000)))
    is_large = mantissa > single(1.41421356)
    mantissa = mantissa * single(0.5) if is_large else mantissa
    exponent = exponent + single(1.0) if is_large else exponent
    s = (mantissa - single(1.0)) / (mantissa + single(1.0))
    u = s * s
    p = single(4.31760721814598118e-1)
    p = p * u + single(5.76713603122441801e-1)
    p = p * u + single(9.61798852770225873e-1)
    p = p * u + single(2.88539007978623751)
    return exponent + s * p


def _log2_double(x: Any) -> Any:
    integer = np.int64
    bits = _bits(x)
    exponent = _from_bits((bits >> integer(52)) | integer(0x4330000000000000)) - 4503599627371519.0
    mantissa = _from_bits((bits & integer(0xFFFFFFFFFFFFF)) | integer(0x3FF0000000000000))
    is_large = mantissa > 1.4142135623730951
    mantissa = mantissa * 0.5 if is_large else mantissa
    exponent = exponent + 1.0 if is_large else exponent
    s = (mantissa - 1.0) / (mantissa + 1.0)
    u = s * s
    p = 2.13707309746937031e-1
    p = p * u + 2.20908455719599439e-1
    p = p * u + 2.62334525518217033e-1
    p = p * u + 3.2059853172966172e-1
    p = p * u + 4.12198585870732398e-1
    p = p * u + 5.770780163453885e-1
    p = p * u + 9.61796693925989944e-1
    p = p * u + 2.88539008177792681
    return exponent + s * p


@intrinsic
def add_tile(_typing: Any, panel: Any, total: Any, height: Any, i: Any, j: Any) -> Any:
    """Add ``panel[:height].T @ panel[:height]`` to one tile of `total`, both C-ordered.

    The tile has its first entry at ``(i, j)`` and `TILE` rows and columns of float32. Its sums stay
    in vector registers while the panel is read.
    """
    signature = types.void(panel, total, types.intp, types.intp, types.intp)

    def compile_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        target = context.make_array(signature.args[1])(context, builder, arguments[1])
        _emit_tile(context, builder, source, target, arguments[2:])
        return context.get_dummy_value()

    return signature, compile_tile


def _emit_tile(context: Any, builder: Any, source: Any, target: Any, arguments: Any) -> None:
    height, i, j = arguments
    vector = ir.VectorType(ir.FloatType(), TILE)
    lanes = ir.VectorType(ir.IntType(32), TILE)([0] * TILE)
    item = context.get_abi_sizeof(vector.element)
    fused = ("contract",)

    def entry(array: Any, row: Any, column: Any) -> Any:
        width = builder.extract_value(array.shape, 1)
        return builder.gep(array.data, [builder.add(builder.mul(row, width), column)])

    def load_vector(pointer: Any) -> Any:
        loaded = builder.load(builder.bitcast(pointer, vector.as_pointer()))
        loaded.align = item
        return loaded

    sums = [cgutils.alloca_once_value(builder, vector([0.0] * TILE)) for _ in range(TILE)]
    with cgutils.for_range(builder, height) as loop:
        right = load_vector(entry(source, loop.index, j))
        for a, total in enumerate(sums):
            left = builder.load(entry(source, loop.index, builder.add(i, i.type(a))))
            left = builder.insert_element(vector(ir.Undefined), left, ir.IntType(32)(0))
            left = builder.shuffle_vector(left, left, lanes)
            product = builder.fmul(left, right, flags=fused)
            builder.store(builder.fadd(builder.load(total), product, flags=fused), total)
    for a, total in enumerate(sums):
        pointer = entry(target, builder.add(i, i.type(a)), j)
        added = builder.fadd(load_vector(pointer), builder.load(total))
        stored = builder.store(added, builder.bitcast(pointer, vector.as_pointer()))
        stored.align = item
