"""The Torch backend: any device, and many problems in the same calls.

Exponents, sums and products are formed in float64, to which no setting for faster float32 products
(TF32, bfloat16) applies. Each operation that returns numbers brings them to the host in one
transfer for all problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ssot.adjacency import Edges
from ssot.arrays import Array, place_of, to_place
from ssot.curvature import (
    LARGEST_DENSE,
    LARGEST_TAIL,
    Coupling,
    DenseCoupling,
    SolvedCoupling,
    SparseCoupling,
    System,
)
from ssot.kernels.directions import newton_directions
from ssot.kernels.numpy import SPREAD_SAMPLE, spread_of_rows
from ssot.kernels.protocol import Bound, Plan, PlanSums, RowSums, Vector
from ssot.kernels.torch_rows import Batch, Block, row_blocks

CURVATURE_ROWS = 1 << 14
"""Rows from which the curvature is formed on a device, at least."""

CURVATURE_ROWS_PER_COLUMN = 32
"""Rows for each column from which it is formed there, at least."""


class TorchKernel:
    """The N x K operations of one problem; those that return numbers take several at once."""

    name = "torch"

    def __init__(self, bound: Bound) -> None:
        self.place = place_of(bound.cost)
        self.resolution = float(torch.finfo(bound.cost.dtype).eps)
        self.samples = len(bound.cost)
        self.shift = bound.shift
        self.bound = bound

    @classmethod
    def together(
        cls, operation: str, kernels: Sequence[Self], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        """Work on all problems in the same calls of Torch."""
        return _TOGETHER[operation](kernels, *zip(*arguments, strict=True))

    def row_pass(
        self, product: Tensor | None, prices: Vector, epsilon: float, system: System
    ) -> tuple[RowSums, Coupling]:
        return _row_passes([self], [product], [prices], [epsilon], [system])[0]

    def plan(
        self, product: Tensor | None, prices: Vector, epsilon: float, out: Plan | None
    ) -> tuple[Plan, RowSums]:
        return _plans([self], [product], [prices], [epsilon], [out])[0]

    def measure(self, plan: Plan, product: Tensor | None) -> PlanSums:
        return _measures([self], [plan], [product])[0]

    def graph_product(self, matrix: Tensor, out: Tensor | None) -> Tensor:
        product = torch.empty_like(matrix) if out is None else out
        for rows in row_blocks(matrix):
            product[rows] = self._product_rows(matrix, rows)
        return product

    def replace_product(self, product: Tensor, old: Tensor, new: Tensor) -> float:
        return _replace_products([self], [product], [old], [new])[0]

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        for start, end in zip(old, new, strict=True):
            torch.lerp(start, end, step, out=end)

    def sample(self, product: Tensor | None, every: int) -> tuple[Self, Tensor | None]:
        weight = self.bound.sample_weight[::every]
        weight = torch.where(weight.any(), weight, 1.0)
        sampled = self.bound._replace(
            cost=self.bound.cost[::every].contiguous(),
            sample_weight=weight / weight.sum(),
            graph=None,
        )
        return type(self)(sampled), None if product is None else product[::every].contiguous()

    def typical_spread(self, product: Tensor | None) -> float:
        every = max(1, self.samples // SPREAD_SAMPLE)
        sample = self.bound.cost[::every].double()
        if product is not None:
            sample -= 2.0 * self.bound.semantic_weight * product[::every]
        return spread_of_rows(_to_host(sample))

    def change_product(self, product: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Turn ``W old`` into ``W new`` in place, and return ``<new - old, W (new - old)>``."""
        change = new.new_zeros((), dtype=torch.float64)
        for rows in row_blocks(new):
            changed = self._product_rows(new, rows)
            difference = new[rows].double() - old[rows]
            change += difference.mul_(changed.double() - product[rows]).sum()
            product[rows] = changed
        return change

    def _product_rows(self, matrix: Tensor, rows: slice) -> Tensor:
        """Return rows of the product of the graph with a matrix: weighted sums of its rows."""
        first, last = self._first_edges[rows.start], self._first_edges[rows.stop]
        edges = self._edges
        return torch.nn.functional.embedding_bag(
            edges.columns[first:last],
            matrix,
            edges.starts[rows.start : rows.stop + 1] - first,
            mode="sum",
            per_sample_weights=edges.weights[first:last],
            include_last_offset=True,
        )

    @property
    def _edges(self) -> Edges:
        if not isinstance(self.bound.graph, Edges):
            raise ValueError("a product with the graph needs a problem with a graph")
        return self.bound.graph

    @cached_property
    def _first_edges(self) -> list[int]:
        """Where the edges of each row begin, on the host."""
        starts: list[int] = self._edges.starts.tolist()
        return starts


Kernels: TypeAlias = Sequence[TorchKernel]
Products: TypeAlias = Sequence[Tensor | None]


def _row_passes(
    kernels: Kernels,
    products: Products,
    prices: Sequence[Vector],
    epsilons: Sequence[float],
    systems: Sequence[System],
) -> list[tuple[RowSums, Coupling]]:
    batch = Batch([kernel.bound for kernel in kernels], products, prices, epsilons)
    if _is_far(kernels[0]):
        return _passes_far_from_the_host(batch, systems)
    return _passes_on_the_host(batch)


def _is_far(kernel: TorchKernel) -> bool:
    """Tell whether the host should rather not see what a pass has found on the way."""
    return bool(kernel.place.device.type != "cpu")


def _passes_on_the_host(batch: Batch) -> list[tuple[RowSums, Coupling]]:
    columns = batch.classes + 1
    is_dense = columns <= LARGEST_DENSE
    size = columns if is_dense else 0
    overlap = batch.prices.new_zeros(len(batch.bounds), size, size)
    sums = batch.prices.new_zeros(len(batch.bounds), columns + 1)
    large: list[list[sparse.csr_array]] = [[] for _ in batch.bounds]
    for block in batch.blocks():
        sums += block.sums()
        if is_dense:
            roots = block.roots()
            overlap.baddbmm_(roots.mT, roots)
            continue
        for lists, part in zip(large, _large_entries(block), strict=True):
            lists.append(part)
    row_sums = [_row_sums(numbers) for numbers in _to_host(sums)]
    if is_dense:
        couplings = [DenseCoupling(matrix) for matrix in _to_host(overlap)]
        return list(zip(row_sums, couplings, strict=True))
    return [
        (
            sums,
            SparseCoupling(
                sparse.vstack(lists, "csr"), _to_host(bound.sample_weight), sums.column_mass
            ),
        )
        for sums, lists, bound in zip(row_sums, large, batch.bounds, strict=True)
    ]


def _large_entries(block: Block) -> list[sparse.csr_array]:
    """Return the probabilities of each problem that are not counted to the tail of their row."""
    entries = []
    for masses, slack, weight in zip(block.masses, block.slack, block.weight, strict=True):
        everything = torch.cat([masses, slack.to(masses.dtype)[:, None]], dim=1)
        threshold = (LARGEST_TAIL * weight).to(masses.dtype)[:, None]
        is_large = (everything >= threshold) & (everything > 0)
        rows, columns = is_large.nonzero(as_tuple=True)
        values = everything[rows, columns].double() / weight[rows]
        parts = (_to_host(values), (_to_host(rows), _to_host(columns)))
        entries.append(sparse.coo_array(parts, shape=everything.shape).tocsr())
    return entries


def _passes_far_from_the_host(
    batch: Batch, systems: Sequence[System]
) -> list[tuple[RowSums, Coupling]]:
    """Return the passes of problems whose Newton steps are found where they are, if large.

    The curvature comes from a sample of the rows, which leaves the gradient exact.
    """
    sums, overlap = _sums(batch), _sampled_overlap(batch)
    columns = batch.classes + 1
    if columns <= LARGEST_DENSE:
        found = _to_host(torch.cat([sums, overlap.flatten(1)], dim=1))
        matrices = found[:, columns + 1 :].reshape(overlap.shape)
        couplings: list[Coupling] = [DenseCoupling(matrix) for matrix in matrices]
    else:
        found = _to_host(torch.cat([sums, _directions(batch, sums, overlap, systems)], dim=1))
        couplings = [SolvedCoupling(direction) for direction in found[:, columns + 1 :]]
    row_sums = [_row_sums(numbers) for numbers in found[:, : columns + 1]]
    return list(zip(row_sums, couplings, strict=True))


def _sums(batch: Batch) -> Tensor:
    sums: Tensor = batch.prices.new_zeros(len(batch.bounds), batch.classes + 2)
    for block in batch.blocks():
        sums += block.sums()
    return sums


def _sampled_overlap(batch: Batch) -> Tensor:
    columns = batch.classes + 1
    rows = max(CURVATURE_ROWS, CURVATURE_ROWS_PER_COLUMN * columns)
    overlap: Tensor = batch.prices.new_zeros(len(batch.bounds), columns, columns)
    weight = batch.prices.new_zeros(len(batch.bounds))
    for block in batch.blocks(every=max(1, batch.samples // rows)):
        roots = block.roots()
        overlap.baddbmm_(roots.mT, roots)
        weight += block.weight.sum(dim=1)
    return overlap / torch.where(weight > 0, weight, 1.0)[:, None, None]


def _directions(batch: Batch, sums: Tensor, overlap: Tensor, systems: Sequence[System]) -> Tensor:
    columns = batch.classes + 1
    is_fixed = [np.arange(columns) == system.fixed for system in systems]
    numbers = [
        np.concatenate([system.demand, system.softness, fixed, [system.longest]])
        for system, fixed in zip(systems, is_fixed, strict=True)
    ]
    given = to_place(np.stack(numbers), place_of(sums))
    demand, softness, fixed, longest = given.split([columns, columns, columns, 1], dim=1)
    mass = sums[:, :columns]
    return newton_directions(
        overlap=overlap,
        free=(torch.maximum(mass, demand) + softness > 0) & (fixed == 0),
        diagonal=softness,
        gradient=demand - mass,
        epsilon=batch.epsilon,
        longest=longest,
    )


def _plans(
    kernels: Kernels,
    products: Products,
    prices: Sequence[Vector],
    epsilons: Sequence[float],
    outs: Sequence[Plan | None],
) -> list[tuple[Plan, RowSums]]:
    batch = Batch([kernel.bound for kernel in kernels], products, prices, epsilons)
    plans = [
        out or Plan(torch.empty_like(bound.cost), torch.empty_like(bound.sample_weight))
        for out, bound in zip(outs, batch.bounds, strict=True)
    ]
    sums = batch.prices.new_zeros(len(plans), batch.classes + 2)
    for block in batch.blocks():
        sums += block.sums()
        for plan, masses, slack in zip(plans, block.masses, block.slack, strict=True):
            plan.matrix[block.rows] = masses
            plan.slack[block.rows] = slack
    row_sums = [_row_sums(numbers) for numbers in _to_host(sums)]
    return list(zip(plans, row_sums, strict=True))


def _measures(kernels: Kernels, plans: Sequence[Plan], products: Products) -> list[PlanSums]:
    bounds = [kernel.bound for kernel in kernels]
    sums = [_plan_sums(*given) for given in zip(bounds, plans, products, strict=True)]
    return [
        PlanSums(numbers[:-5], *numbers[-5:].tolist()) for numbers in _to_host(torch.stack(sums))
    ]


def _plan_sums(bound: Bound, plan: Plan, product: Tensor | None) -> Tensor:
    """Return the column masses of a plan, and the other sums in the order of `PlanSums`."""
    masses = bound.sample_weight.new_zeros(plan.matrix.shape[1])
    terms = masses.new_zeros(4)
    for rows in row_blocks(plan.matrix):
        matrix = plan.matrix[rows].double()
        masses += matrix.sum(dim=0)
        paid = torch.where(matrix == 0, 0.0, (bound.cost[rows].double() - bound.shift) * matrix)
        agreed = paid.new_zeros(()) if product is None else (matrix * product[rows]).sum()
        entropy = torch.special.xlogy(matrix, matrix).sum()
        excess = (matrix.sum(dim=1) - bound.sample_weight[rows]).clamp_(min=0).sum()
        terms += torch.stack([paid.sum(), agreed, entropy, excess])
    slack_entropy = torch.special.xlogy(plan.slack, plan.slack).sum()
    transport, semantic, entropy, excess = terms
    others = torch.stack([plan.slack.sum(), transport, semantic, entropy, slack_entropy, excess])
    return torch.cat([masses, others])


def _replace_products(
    kernels: Kernels, products: Sequence[Tensor], olds: Sequence[Tensor], news: Sequence[Tensor]
) -> list[float]:
    changes = [
        kernel.change_product(*matrices)
        for kernel, *matrices in zip(kernels, products, olds, news, strict=True)
    ]
    numbers: list[float] = _to_host(torch.stack(changes)).tolist()
    return numbers


def _to_host(tensor: Tensor) -> Array:
    """Wait for a tensor, and return it as a NumPy array."""
    return tensor.cpu().numpy()


def _row_sums(numbers: Vector) -> RowSums:
    return RowSums(numbers[:-1], float(numbers[-1]))


_TOGETHER: dict[str, Callable[..., Sequence[Any]]] = {
    "row_pass": _row_passes,
    "plan": _plans,
    "measure": _measures,
    "replace_product": _replace_products,
}
