"""Fused passes over the rows of N x K matrices on a CUDA device, written in Triton.

Each pass reads every matrix once and runs for all problems at once. A program visits a range of
rows of one problem, a tile at a time, and keeps its sums to itself until one reduction adds them
up, so that results do not change from run to run.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_BLOCK = 8192
"""Most columns, rounded up to a power of two: more do not stay in the registers of a program."""

SMALLEST_BLOCK = 4
"""Fewest columns of a tile; narrower matrices are padded."""

WARP_ENTRIES = 512
"""Entries of a tile for each of its warps: 16 a thread, 32 registers for each float64 array.

With more, registers do not suffice; with fewer, there is less work for the logarithm and the
division of a row, which each of its threads repeats. Up to this many columns a program is a single
warp, which needs no barrier.
"""

MOST_WARPS = 32 * 132
"""Warps in a launch: over twice what the 132 multiprocessors of an H100 hold at a time."""

SMALLEST_SHARE = 16
"""Fewest tiles for a program, whose sums take as much memory as two."""

STAGE_BYTES = 16 << 10
"""Shared memory for each warp in which its next tiles are fetched: 12 warps use most of it."""

MOST_STAGE_BYTES = 96 << 10
"""Shared memory for a program, which smaller devices have as well."""

LOAD_BYTES = 16
"""Most that a thread loads at a time."""


class Rows(NamedTuple):
    """What the passes read of A problems of the same size.

    All tensors, prices and outputs too, are contiguous and on one device; those of a list need not
    be side by side.

    Attributes
    ----------
    costs : list of A (N, K) tensors
        All float32 or all float64. May hold inf.
    products : list of A (N, K) tensors, or None
        ``W Q`` of each problem, in the dtype of the costs; None if no problem has a graph.
    weights : list of A (N,) tensors
        Sample masses in float64. May be 0.
    shifts : (A,) tensor
        The common offset of each problem's costs, in float64.
    pulls : (A,) tensor
        Twice the semantic weight of each problem, in float64.
    """

    costs: list[Tensor]
    products: list[Tensor] | None
    weights: list[Tensor]
    shifts: Tensor
    pulls: Tensor


Plans: TypeAlias = tuple[list[Tensor], list[Tensor]]
"""The matrices and the slacks of A plans."""


def is_supported(rows: Rows) -> bool:
    """Tell whether the fused passes run on this device, for matrices of this size and dtype."""
    cost = rows.costs[0]
    samples, classes = cost.shape
    is_interpreted = not isinstance(_add_softmax, triton.JITFunction)
    return (
        (cost.is_cuda or is_interpreted)
        and cost.dtype in {torch.float32, torch.float64}
        and classes <= LARGEST_BLOCK
        and samples < 2**30  # rows, and those of the last tile beyond the end, are counted in int32
    )


def sum_rows(rows: Rows, prices: Tensor, epsilons: Tensor) -> Tensor:
    """Return the sums of each problem's row-wise softmax.

    Parameters
    ----------
    rows : Rows
        The problems.
    prices : (A, K + 1) tensor
        Prices in float64, the last of the virtual cluster; -inf closes a column.
    epsilons : (A,) tensor
        Entropic regularisation of each problem, in float64.

    Returns
    -------
    (A, K + 2) tensor
        K + 1 column masses and the log-partition of each problem, as in `RowSums`, in float64.
    """
    return _softmax_pass(rows, prices, epsilons, None)


def write_plans(
    rows: Rows, prices: Tensor, epsilons: Tensor, matrices: list[Tensor], slacks: list[Tensor]
) -> Tensor:
    """Write each problem's plan, and return the sums of `sum_rows`.

    Parameters
    ----------
    rows, prices, epsilons
        As for `sum_rows`.
    matrices : list of A (N, K) tensors
        Receive the plans, in the dtype of the costs.
    slacks : list of A (N,) tensors
        Receive the mass that each sample leaves in the virtual cluster, in float64.

    Returns
    -------
    (A, K + 2) tensor
        As from `sum_rows`.
    """
    return _softmax_pass(rows, prices, epsilons, (matrices, slacks))


def sum_plans(rows: Rows, matrices: list[Tensor], slacks: list[Tensor]) -> Tensor:
    """Return the sums of each problem's plan.

    Parameters
    ----------
    rows : Rows
        The problems, with the products of these plans.
    matrices : list of A (N, K) tensors
        The plans, in the dtype of the costs.
    slacks : list of A (N,) tensors
        The mass that each sample leaves in the virtual cluster, in float64.

    Returns
    -------
    (A, K + 6) tensor
        K + 1 column masses and the other sums of each plan, in the order of `PlanSums`, in float64.
    """
    return _run(_add_plans, rows, (rows.shifts,), (matrices, slacks), sums=6)


def _softmax_pass(rows: Rows, prices: Tensor, epsilons: Tensor, plans: Plans | None) -> Tensor:
    arguments = (prices, epsilons, rows.shifts, rows.pulls)
    return _run(_add_softmax, rows, arguments, plans, sums=2, WRITES=plans is not None)


def _run(
    kernel: Any,
    rows: Rows,
    arguments: tuple[Tensor, ...],
    plans: Plans | None,
    sums: int,
    **options: bool,
) -> Tensor:
    """Run a kernel for all rows, and add up its sums: one for each class, and `sums` more."""
    (samples, classes), entry_bytes = rows.costs[0].shape, rows.costs[0].element_size()
    problems, has_product = len(rows.costs), rows.products is not None
    table, is_aligned = _address_table(rows, plans)
    block = max(SMALLEST_BLOCK, triton.next_power_of_2(classes))
    height, warps = max(1, WARP_ENTRIES // block), max(1, block // WARP_ENTRIES)
    tiles = -(-samples // height)
    share = max(SMALLEST_SHARE, -(-tiles * problems * warps // MOST_WARPS))
    programs = -(-tiles // share)
    partial = rows.shifts.new_empty(problems, programs, classes + sums)
    tile_bytes = (1 + has_product + (kernel is _add_plans)) * block * height * entry_bytes
    stage_bytes = min(warps * STAGE_BYTES, MOST_STAGE_BYTES)
    with torch.cuda.device(partial.get_device()):  # which is -1, for no change, in the interpreter
        kernel[(problems, programs)](
            table,
            *arguments,
            partial,
            samples,
            K=classes,
            HEIGHT=height,
            BLOCK=block,
            IS_DOUBLE=entry_bytes == 8,
            HAS_PRODUCT=has_product,
            ALIGNMENT=LOAD_BYTES if is_aligned else entry_bytes,
            STAGES=1 + min(2, stage_bytes // tile_bytes),
            **options,
            num_warps=warps,
            enable_fp_fusion=True,
        )
    return partial.sum(dim=1)


def _address_table(rows: Rows, plans: Plans | None) -> tuple[Tensor, bool]:
    """Return the addresses, 5 x A, and whether threads can load several entries at a time.

    They are those of costs, products, plans, weights and slacks; others stand for absent ones. From
    pinned memory they reach the device without a wait for it.
    """
    matrices, slacks = plans or (rows.costs, rows.weights)
    lists = [rows.costs, rows.products or rows.costs, matrices, rows.weights, slacks]
    addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in lists]
    is_aligned = all(address % LOAD_BYTES == 0 for row in addresses[:3] for address in row)
    device = rows.shifts.device
    is_pinned = device.type == "cuda"
    table = torch.tensor(addresses, dtype=torch.int64, device="cpu", pin_memory=is_pinned)
    return table.to(device, non_blocking=True), is_aligned


@triton.jit
def _row_range(samples: tl.tensor, HEIGHT: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Return the first row of this program, and the one after its last."""
    share = tl.cdiv(tl.cdiv(samples, HEIGHT), tl.num_programs(1)) * HEIGHT
    first = tl.program_id(1) * share
    return first, tl.minimum(first + share, samples)


@triton.jit
def _matrix(
    table: tl.tensor, field: tl.constexpr, IS_DOUBLE: tl.constexpr, ALIGNMENT: tl.constexpr
) -> tl.tensor:
    """Return the pointer to this problem's matrix in a row of the table."""
    address = tl.load(table + field * tl.num_programs(0) + tl.program_id(0))
    if IS_DOUBLE:
        pointer = address.to(tl.pointer_type(tl.float64))
    else:
        pointer = address.to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, ALIGNMENT)


@triton.jit
def _vector(table: tl.tensor, field: tl.constexpr) -> tl.tensor:
    """Return the pointer to this problem's float64 vector in a row of the table."""
    address = tl.load(table + field * tl.num_programs(0) + tl.program_id(0))
    return address.to(tl.pointer_type(tl.float64))


@triton.jit
def _sums(partial: tl.tensor, size: tl.constexpr) -> tl.tensor:
    """Return the pointer to the sums of this program."""
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    return partial + tl.cast(program, tl.int64) * size


@triton.jit
def _tile(
    start: tl.tensor, last: tl.tensor, K: tl.constexpr, HEIGHT: tl.constexpr, BLOCK: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """Return the numbers of a tile's rows and its places in a matrix, each with what is inside."""
    row, column = tl.arange(0, HEIGHT), tl.arange(0, BLOCK)
    is_row = start + row < last
    place = tl.cast(start, tl.int64) * K + (row[:, None] * K + column[None, :])
    return start + row, is_row, place, is_row[:, None] & (column < K)[None, :]


@triton.jit
def _softmax(
    x: tl.tensor, virtual_price: tl.tensor, epsilon: tl.tensor, like: tl.tensor
) -> tuple[tl.tensor, ...]:
    """Return ``exp((x - max x) / epsilon)``, also of the virtual cluster, its total, and ``max x``.

    Exponents are formed in float64 and rounded to the dtype of `like`.
    """
    scale = 1.4426950408889634 / epsilon  # exponentials are powers of 2
    offset = tl.maximum(tl.max(x, axis=1), virtual_price)
    offset = tl.where(offset == float("-inf"), 0.0, offset)  # no open column: a row without weight
    scaled = tl.exp2((scale * (x - offset[:, None])).to(like.dtype))
    virtual = tl.exp2((scale * (virtual_price - offset)).to(like.dtype)).to(tl.float64)
    total = tl.sum(scaled.to(tl.float64), axis=1) + virtual
    return scaled, virtual, tl.where(total > 0.0, total, 1.0), offset


@triton.jit(do_not_specialize=["samples"])
def _add_softmax(
    table: tl.tensor,
    prices: tl.tensor,
    epsilons: tl.tensor,
    shifts: tl.tensor,
    pulls: tl.tensor,
    partial: tl.tensor,
    samples: tl.tensor,
    K: tl.constexpr,
    HEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    HAS_PRODUCT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    STAGES: tl.constexpr,
    WRITES: tl.constexpr,
) -> None:
    """Sum the softmax of this program's rows, and write it as a plan if asked."""
    costs = _matrix(table, 0, IS_DOUBLE, ALIGNMENT)
    products = _matrix(table, 1, IS_DOUBLE, ALIGNMENT)
    matrices = _matrix(table, 2, IS_DOUBLE, ALIGNMENT)
    weights = _vector(table, 3)
    slacks = _vector(table, 4)
    pull = tl.load(pulls + tl.program_id(0))
    shift = tl.load(shifts + tl.program_id(0))
    epsilon = tl.load(epsilons + tl.program_id(0))
    column = tl.arange(0, BLOCK)
    prices += tl.program_id(0) * (K + 1)
    price = tl.load(prices + column, mask=column < K, other=float("-inf"))
    virtual_price = tl.load(prices + K)
    mass = tl.zeros((BLOCK,), tl.float64)
    virtual_mass = tl.zeros((HEIGHT,), tl.float64)
    log_partition = tl.zeros((HEIGHT,), tl.float64)
    first, last = _row_range(samples, HEIGHT)
    for start in tl.range(first, last, HEIGHT, num_stages=STAGES):
        row, is_row, place, is_inside = _tile(start, last, K, HEIGHT, BLOCK)
        cost = tl.load(costs + place, mask=is_inside, other=0.0)
        weight = tl.load(weights + row, mask=is_row, other=0.0)
        x = price[None, :] - (cost.to(tl.float64) - shift)
        if HAS_PRODUCT:
            x += pull * tl.load(products + place, mask=is_inside, other=0.0).to(tl.float64)
        scaled, virtual, total, offset = _softmax(x, virtual_price, epsilon, cost)
        portion = weight / total
        mass += tl.sum(scaled.to(tl.float64) * portion[:, None], axis=0)
        virtual_mass += portion * virtual
        log_partition += weight * (offset + epsilon * tl.log(total))
        if WRITES:
            plan = scaled * portion.to(cost.dtype)[:, None]
            tl.store(matrices + place, plan, mask=is_inside)
            tl.store(slacks + row, portion * virtual, mask=is_row)
    sums = _sums(partial, K + 2)
    tl.store(sums + column, mass, mask=column < K)
    tl.store(sums + K, tl.sum(virtual_mass, axis=0))
    tl.store(sums + K + 1, tl.sum(log_partition, axis=0))


@triton.jit
def _log2(x: tl.tensor) -> tl.tensor:
    """Return the binary logarithm, and 0 where x is so small that devices may take it for 0."""
    return tl.log2(tl.where(x > 1e-37, x, 1.0))


@triton.jit(do_not_specialize=["samples"])
def _add_plans(
    table: tl.tensor,
    shifts: tl.tensor,
    partial: tl.tensor,
    samples: tl.tensor,
    K: tl.constexpr,
    HEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_DOUBLE: tl.constexpr,
    HAS_PRODUCT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Sum what `PlanSums` holds over this program's rows."""
    costs = _matrix(table, 0, IS_DOUBLE, ALIGNMENT)
    products = _matrix(table, 1, IS_DOUBLE, ALIGNMENT)
    matrices = _matrix(table, 2, IS_DOUBLE, ALIGNMENT)
    weights = _vector(table, 3)
    slacks = _vector(table, 4)
    shift = tl.load(shifts + tl.program_id(0))
    column = tl.arange(0, BLOCK)
    mass = tl.zeros((BLOCK,), tl.float64)
    slack_mass = tl.zeros((HEIGHT,), tl.float64)
    transport = tl.zeros((HEIGHT,), tl.float64)
    semantic = tl.zeros((HEIGHT,), tl.float64)
    plan_entropy = tl.zeros((HEIGHT,), tl.float64)
    slack_entropy = tl.zeros((HEIGHT,), tl.float64)
    excess = tl.zeros((HEIGHT,), tl.float64)
    first, last = _row_range(samples, HEIGHT)
    for start in tl.range(first, last, HEIGHT, num_stages=STAGES):
        row, is_row, place, is_inside = _tile(start, last, K, HEIGHT, BLOCK)
        plan = tl.load(matrices + place, mask=is_inside, other=0.0)
        cost = tl.load(costs + place, mask=is_inside, other=0.0)
        weight = tl.load(weights + row, mask=is_row, other=0.0)
        slack = tl.load(slacks + row, mask=is_row, other=0.0)
        wide = plan.to(tl.float64)
        mass += tl.sum(wide, axis=0)
        slack_mass += slack
        paid = tl.where(plan == 0.0, 0.0, cost).to(tl.float64)  # 0 times inf is 0
        transport += tl.sum(wide * (paid - shift), axis=1)
        if HAS_PRODUCT:
            product = tl.load(products + place, mask=is_inside, other=0.0)
            semantic += tl.sum(wide * product.to(tl.float64), axis=1)
        plan_entropy += tl.sum(wide * _log2(plan).to(tl.float64), axis=1)
        slack_entropy += slack * _log2(slack)
        excess += tl.maximum(tl.sum(wide, axis=1) - weight, 0.0)
    sums = _sums(partial, K + 6)
    tl.store(sums + column, mass, mask=column < K)
    tl.store(sums + K, tl.sum(slack_mass, axis=0))
    tl.store(sums + K + 1, tl.sum(transport, axis=0))
    tl.store(sums + K + 2, tl.sum(semantic, axis=0))
    tl.store(sums + K + 3, tl.sum(plan_entropy, axis=0) * 0.6931471805599453)
    tl.store(sums + K + 4, tl.sum(slack_entropy, axis=0) * 0.6931471805599453)
    tl.store(sums + K + 5, tl.sum(excess, axis=0))
