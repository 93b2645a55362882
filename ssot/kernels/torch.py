"""The Torch backend: any device, and many problems in the same calls.

Exponents, sums and products are formed in float64, to which no setting for faster float32 products
(TF32, bfloat16) applies. Each operation that returns numbers brings them to the host in one
transfer for all problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ssot.adjacency import Edges
from ssot.arrays import HOST, Array, Vector, place_of, to_place
from ssot.curvature import (
    LARGEST_DENSE,
    Coupling,
    DenseCoupling,
    SolvedCoupling,
    SparseCoupling,
    System,
    sampled_rows,
    tail_threshold,
)
from ssot.kernels.directions import newton_directions
from ssot.kernels.numpy import SPREAD_SAMPLE, spread_of_rows
from ssot.kernels.protocol import Bound, Plan, PlanSums, RowSums
from ssot.kernels.select_fused import fused_rows
from ssot.kernels.torch_rows import (
    LARGEST_BLOCK,
    Batch,
    Block,
    add_overlap,
    coupled_weight,
    loose_mass,
    row_blocks,
    sampled,
    to_device,
)

if TYPE_CHECKING:
    from ssot.distributed import GroupRanks

SMALLEST = float(torch.finfo(torch.float64).tiny)
"""In place of a 0 whose logarithm is multiplied by 0."""


class TorchKernel:
    """The N x K operations of one problem; those that return numbers take several at once."""

    name = "torch"
    kept_every: int | None = None

    def __init__(self, bound: Bound) -> None:
        self.place = place_of(bound.cost)
        self.resolution = float(torch.finfo(bound.cost.dtype).eps)
        self.samples = len(bound.cost)
        self.shift = bound.shift
        self.bound = bound
        self.adds_up = bound.ranks.size > 1 and _is_far(self)

    @classmethod
    def together(
        cls, operation: str, kernels: Sequence[Self], arguments: Sequence[tuple[Any, ...]]
    ) -> Sequence[Any]:
        """Work on all problems in the same calls of Torch."""
        return _TOGETHER[operation](kernels, *zip(*arguments, strict=True))

    def row_pass(
        self, product: Tensor | None, prices: Vector, epsilon: float, system: System | None
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
        for rows in row_blocks(product):
            product[rows] = self._product_rows(matrix, rows)
        return product

    def replace_product(self, product: Tensor, old: Tensor, new: Tensor) -> float:
        return _replace_products([self], [product], [old], [new])[0]

    def interpolate(self, old: Plan, new: Plan, step: float) -> None:
        for start, end in zip(old, new, strict=True):
            torch.lerp(start, end, step, out=end)

    def sample(self, product: Tensor | None, every: int) -> tuple[Self, Tensor | None]:
        rows, its_product = sampled(self.bound, product, every)
        weight = torch.where(rows.sample_weight.any(), rows.sample_weight, 1.0)
        weight = weight * (self.bound.sample_weight.sum() / weight.sum())
        return type(self)(rows._replace(sample_weight=weight)), its_product

    def for_rows(self, cost: Tensor, weight: Tensor) -> Self:
        return type(self)(self.bound._replace(cost=cost, sample_weight=weight, graph=None))

    def transient_plan(self, prices: Vector, epsilon: float) -> tuple[Tensor, PlanSums, RowSums]:
        plan, sums = self.plan(None, prices, epsilon, None)
        return plan.slack, self.measure(plan, None), sums

    def typical_spread(self, product: Tensor | None) -> float:
        every = max(1, self.samples // SPREAD_SAMPLE)
        sample = self.bound.cost[::every].double()
        if product is not None:
            sample = sample - 2.0 * self.bound.semantic_weight * product[::every]
        return spread_of_rows(_to_host(sample))

    def change_product(self, product: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Turn ``W old`` into ``W new`` in place, and return ``<new - old, W (new - old)>``."""
        change = new.new_zeros((), dtype=torch.float64)
        for rows in row_blocks(product):
            changed = self._product_rows(new, rows)
            difference = new[rows].double() - old[rows]
            change += difference.mul_(changed.double() - product[rows]).sum()
            product[rows] = changed
        return change

    def _product_rows(self, matrix: Tensor, rows: slice) -> Tensor:
        """Return rows of the product of the graph with a matrix: weighted sums of its rows."""
        first, last = (int(self._first_edges[row]) for row in (rows.start, rows.stop))
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
    def _first_edges(self) -> Array:
        """Where the edges of each row begin, on the host."""
        return to_place(self._edges.starts, HOST)


Kernels: TypeAlias = Sequence[TorchKernel]
Products: TypeAlias = Sequence[Tensor | None]


def _row_passes(
    kernels: Kernels,
    products: Products,
    prices: Sequence[Vector],
    epsilons: Sequence[float],
    systems: Sequence[System | None],
) -> list[tuple[RowSums, Coupling]]:
    batch = Batch.at([kernel.bound for kernel in kernels], products, prices, epsilons)
    if _is_far(kernels[0]):
        return _passes_far_from_the_host(batch, systems)
    return _passes_on_the_host(batch, systems)


def _is_far(kernel: TorchKernel) -> bool:
    """Tell whether the host should rather not see what a pass has found on the way."""
    return bool(kernel.place.device.type != "cpu")


def _passes_on_the_host(
    batch: Batch, systems: Sequence[System | None]
) -> list[tuple[RowSums, Coupling]]:
    columns = batch.classes + 1
    is_dense = columns <= LARGEST_DENSE
    size = columns if is_dense else 0
    overlap = batch.prices.new_zeros(len(batch.bounds), size, size)
    sums = batch.prices.new_zeros(len(batch.bounds), columns + 1)
    tails = _SparseCouplings(batch, systems)
    for block in batch.blocks():
        sums += block.sums()
        if is_dense:
            add_overlap(overlap, block.masses, block.slack, block.weight, batch.without_entropy)
        else:
            tails.add(block)
    row_sums = [_row_sums(numbers) for numbers in _to_host(sums)]
    if is_dense:
        couplings = [DenseCoupling(matrix) for matrix in _to_host(overlap)]
        return list(zip(row_sums, couplings, strict=True))
    return list(zip(row_sums, tails.result(row_sums), strict=True))


class _SparseCouplings:
    """Gathers the couplings of problems whose W is not stored, block by block."""

    def __init__(self, batch: Batch, systems: Sequence[System | None]) -> None:
        self._thresholds = [tail_threshold(system, batch.costs[0].shape) for system in systems]
        self._without_entropy = batch.without_entropy
        self._large: list[list[sparse.csr_array]] = []
        self._coupled: list[Tensor] = []
        self._loose_mass: Tensor | float = 0.0

    def add(self, block: Block) -> None:
        coupled, is_loose = coupled_weight(block.slack, block.weight, self._without_entropy)
        self._large.append(_large_entries(block.masses, block.slack, coupled, self._thresholds))
        self._coupled.append(coupled)
        if is_loose is not None:
            self._loose_mass += loose_mass(block.masses, block.slack, is_loose)

    def result(self, row_sums: Sequence[RowSums]) -> list[Coupling]:
        coupled = _to_host(torch.cat(self._coupled, dim=1))
        loose = [None] * len(coupled)
        if isinstance(self._loose_mass, Tensor):
            loose = list(_to_host(self._loose_mass))
        stacked = [sparse.vstack(lists, "csr") for lists in zip(*self._large, strict=True)]
        masses = [sums.column_mass for sums in row_sums]
        return [
            SparseCoupling(*parts) for parts in zip(stacked, coupled, masses, loose, strict=True)
        ]


def _large_entries(
    masses: Tensor, slack: Tensor, coupled: Tensor, thresholds: Sequence[float]
) -> list[sparse.csr_array]:
    """Return the probabilities of each problem that are not counted to the tail of their row."""
    entries = []
    arrays = map(_to_host, (masses, slack, coupled))
    for mass, left, weight, tail in zip(*arrays, thresholds, strict=True):
        height, classes = mass.shape
        threshold = np.where(weight > 0, tail * weight, np.inf)
        found = np.flatnonzero(mass >= threshold.astype(mass.dtype)[:, None])
        rows, columns = np.divmod(found, classes)
        virtual = np.flatnonzero(left >= threshold)
        rows, columns = np.append(rows, virtual), np.append(columns, np.full_like(virtual, classes))
        values = np.append(mass.ravel()[found], left[virtual]) / weight[rows]
        part = sparse.coo_array((values, (rows, columns)), shape=(height, classes + 1))
        entries.append(part.tocsr())
    return entries


def _passes_far_from_the_host(
    batch: Batch, systems: Sequence[System | None]
) -> list[tuple[RowSums, Coupling]]:
    """Return the passes of problems whose Newton steps are found where they are, if large.

    The curvature comes from a sample of the rows, which leaves the gradient exact.
    """
    columns = batch.classes + 1
    effort = max((system.effort for system in systems if system is not None), default=1.0)
    known = [system for system in systems if system is not None and system.is_whole]
    ranks = batch.bounds[0].ranks
    every = max(1, ranks.size * batch.samples // sampled_rows(columns, effort))
    sample = batch.sample(every)
    plans = [_new_plan(bound) for bound in sample.bounds]
    sums = _sums(sample, plans)
    if every > 1:
        sums = _sums(batch, None)
    overlap = _overlap(sample, plans, batch)
    if known and ranks.size > 1:
        together = torch.cat([sums, overlap.flatten(1)], dim=1)
        cast("GroupRanks", ranks).sum_tensor(together)
        sums, overlap = together[:, : columns + 1], together[:, columns + 1 :].view_as(overlap)
    if columns <= LARGEST_DENSE or not known:
        found = _to_host(torch.cat([sums, overlap.flatten(1)], dim=1))
        matrices = found[:, columns + 1 :].reshape(overlap.shape)
        couplings: list[Coupling] = [DenseCoupling(matrix) for matrix in matrices]
    else:
        directions = _directions(batch, sums, overlap, known)
        if ranks.size > 1:
            cast("GroupRanks", ranks).from_first(directions)
        found = _to_host(torch.cat([sums, directions], dim=1))
        couplings = [SolvedCoupling(direction) for direction in found[:, columns + 1 :]]
    row_sums = [_row_sums(numbers) for numbers in found[:, : columns + 1]]
    return list(zip(row_sums, couplings, strict=True))


def _sums(batch: Batch, plans: Sequence[Plan] | None) -> Tensor:
    """Return column masses and log-partition, (A, K + 2), and write the plans where wanted."""
    fused, rows = fused_rows(batch.bounds, batch.products)
    if fused is not None:
        outs = () if plans is None else map(list, zip(*plans, strict=True))
        run = fused.sum_rows if plans is None else fused.write_plans
        fused_sums: Tensor = run(rows, batch.prices, batch.epsilon[:, 0], *outs)
        return fused_sums
    sums = batch.prices.new_zeros(len(batch.bounds), batch.classes + 2)
    for block in batch.blocks():
        sums += block.sums()
        for plan, masses, slack in zip(plans or (), block.masses, block.slack, strict=bool(plans)):
            plan.matrix[block.rows] = masses
            plan.slack[block.rows] = slack
    return sums


def _overlap(batch: Batch, plans: Sequence[Plan], whole: Batch) -> Tensor:
    """Return ``P^T diag(alpha) P`` of a sample, scaled up to the weight of all."""
    overlap: Tensor = batch.prices.new_zeros(len(plans), batch.classes + 1, batch.classes + 1)
    all_weight = torch.stack([bound.sample_weight.sum() for bound in whole.bounds])
    together = max(1, LARGEST_BLOCK // max(1, batch.costs[0].numel()))
    for first in range(0, len(plans), together):
        some = slice(first, first + together)
        weight = torch.stack([bound.sample_weight for bound in batch.bounds[some]])
        masses = torch.stack([plan.matrix for plan in plans[some]])
        slack = torch.stack([plan.slack for plan in plans[some]])
        flags = None if batch.without_entropy is None else batch.without_entropy[some]
        add_overlap(overlap[some], masses, slack, weight, flags)
        sampled = weight.sum(dim=1)
        scale = all_weight[some] / torch.where(sampled > 0, sampled, 1.0)
        overlap[some] *= scale[:, None, None]
    return overlap


def _directions(batch: Batch, sums: Tensor, overlap: Tensor, systems: Sequence[System]) -> Tensor:
    columns = batch.classes + 1
    numbers = [
        np.concatenate([system.demand, system.softness, np.arange(columns) == system.fixed])
        for system in systems
    ]
    lengths = [system.longest for system in systems]
    given = to_device(np.column_stack([np.stack(numbers), lengths]), sums.device)
    demand, softness, fixed, longest = torch.split(given, [columns] * 3 + [1], dim=1)
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
    batch = Batch.at([kernel.bound for kernel in kernels], products, prices, epsilons)
    plans = [out or _new_plan(bound) for out, bound in zip(outs, batch.bounds, strict=True)]
    row_sums = [_row_sums(numbers) for numbers in _to_host(_sums(batch, plans))]
    return list(zip(plans, row_sums, strict=True))


def _new_plan(bound: Bound) -> Plan:
    return Plan(torch.empty_like(bound.cost), torch.empty_like(bound.sample_weight))


def _measures(kernels: Kernels, plans: Sequence[Plan], products: Products) -> list[PlanSums]:
    bounds = [kernel.bound for kernel in kernels]
    fused, rows = fused_rows(bounds, products)
    if fused is not None:
        sums = fused.sum_plans(rows, *map(list, zip(*plans, strict=True)))
    else:
        parts = [_plan_sums(*given) for given in zip(bounds, plans, products, strict=True)]
        sums = torch.stack(parts)
    return [PlanSums(numbers[:-5], *numbers[-5:].tolist()) for numbers in _to_host(sums)]


def _plan_sums(bound: Bound, plan: Plan, product: Tensor | None) -> Tensor:
    """Return the column masses of a plan, and the other sums in the order of `PlanSums`."""
    masses = bound.sample_weight.new_zeros(plan.matrix.shape[1])
    terms = masses.new_zeros(4)
    for rows in row_blocks(plan.matrix):
        matrix = plan.matrix[rows].double()
        masses += matrix.sum(dim=0)
        paid = (bound.cost[rows].double() - bound.shift).mul_(matrix).nansum()  # no 0 times inf
        agreed = torch.zeros_like(paid) if product is None else (matrix * product[rows]).sum()
        entropy = matrix.clamp(min=SMALLEST).log_().mul_(matrix).sum()
        excess = (matrix.sum(dim=1) - bound.sample_weight[rows]).clamp_(min=0).sum()
        terms += torch.stack([paid, agreed, entropy, excess])
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
