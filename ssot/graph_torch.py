"""Near neighbours of a Torch tensor's rows, found and weighed on the device that holds them."""

from __future__ import annotations

import math

import torch

from ssot.adjacency import compressed
from ssot.arrays import isolated, place_of, require_device
from ssot.graph_options import (
    NEGLIGIBLE,
    Kernel,
    Method,
    check_finite,
    check_real,
    check_shape,
    unit_scale,
)

DISTANCES_PER_BLOCK = 2**24
"""Distances held at a time by the search: 128 MiB of float64."""

COORDINATES_PER_BLOCK = 2**22
"""Coordinates held at a time while features are checked and edges weighed: 32 MiB of float64."""


def as_points(features: torch.Tensor) -> torch.Tensor:
    """Return checked features that share the caller's memory and record no gradients."""
    if features.layout is not torch.strided:
        raise TypeError("features is a sparse tensor; pass a dense tensor, or a SciPy sparse array")
    check_real(not features.is_complex(), features.dtype)
    check_shape(features.shape)
    require_device(features, "features")
    return features.detach()


def check_method(method: Method) -> None:
    """Refuse the method that tensors do not have."""
    if method == "approximate":
        raise ValueError(
            "method='approximate' searches NumPy arrays only, got features that are a tensor; pass "
            "features.numpy() or features.cpu().numpy(), or method='exact', which is blocked"
        )


def tensor_graph(
    points: torch.Tensor,
    k: int,
    *,
    kernel: Kernel,
    bandwidth: float | None,
    symmetrize: bool,
    include_self: bool,
) -> torch.Tensor:
    """Return the graph of `knn_graph` as a sparse CSR tensor on the device of the points."""
    # The arithmetic is all in float64: autocast, TF32 and the reduced precisions that
    # torch.set_float32_matmul_precision allows concern narrower numbers only.
    # A tensor made in inference mode would be of no use to a later backward pass.
    with isolated(place_of(points)):
        rows = _Rows(points, kernel)
        neighbours = _find(rows, k)
        if kernel == "binary":
            weights = torch.ones(neighbours.shape, dtype=torch.float64, device=points.device)
        elif kernel == "cosine":
            weights = _on_edges(rows, neighbours).clamp(0.0, 1.0)
        else:
            distances = _on_edges(rows, neighbours).sqrt()
            weights = _gaussian(distances, None if bandwidth is None else bandwidth / rows.scale)
        is_single = points.is_floating_point() and points.dtype != torch.float64
        weights = weights.to(torch.float32 if is_single else torch.float64)
        return _assemble(neighbours, weights, symmetrize, include_self)


class _Rows:
    """The features in float64 and in the unit to compute in, made a block of rows at a time.

    Parameters
    ----------
    points : torch.Tensor
        The features, (N, D), of any real dtype.
    kernel : {"gaussian", "cosine", "binary"}
        Under the cosine kernel rows have length 1, but for those that are zero.
    """

    def __init__(self, points: torch.Tensor, kernel: Kernel) -> None:
        self.points = points
        self.is_cosine = kernel == "cosine"
        blocks = torch.split(points, max(1, COORDINATES_PER_BLOCK // points.shape[1]))
        largest = float(torch.stack([block.double().abs().amax() for block in blocks]).amax())
        if not math.isfinite(largest):
            exceptions = [torch.count_nonzero(~block.double().isfinite()) for block in blocks]
            check_finite(int(torch.stack(exceptions).sum()), "torch")
        self.scale = unit_scale(largest, 1024)
        sums = [self._in_unit(block).sum(dim=0) for block in blocks]
        self.mean = torch.stack(sums).sum(dim=0) / len(points)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, which: slice | torch.Tensor) -> torch.Tensor:
        rows = self._in_unit(self.points[which])
        if self.is_cosine:
            lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            rows = torch.where(lengths > NEGLIGIBLE, rows / lengths, 0.0)
        return rows

    def centred(self, which: slice) -> torch.Tensor:
        """Return rows whose products order their distances, which cancels far from the origin."""
        return self[which] if self.is_cosine else self[which] - self.mean

    def _in_unit(self, points: torch.Tensor) -> torch.Tensor:
        return points.double() * (1.0 / self.scale)


def _find(rows: _Rows, k: int) -> torch.Tensor:
    """Return the k nearest neighbours of each sample, itself excepted: (N, k), in any order."""
    samples = len(rows)
    width = min(samples, max(k, math.isqrt(DISTANCES_PER_BLOCK)))
    height = max(1, DISTANCES_PER_BLOCK // width)
    found = []
    for top in range(0, samples, height):
        own = rows.centred(slice(top, top + height))
        values = own.new_empty((len(own), 0))
        neighbours = torch.empty_like(values, dtype=torch.int64)
        for left in range(0, samples, width):
            others = rows.centred(slice(left, left + width))
            near, where = _nearest(own, others, top - left, k, rows.is_cosine)
            values = torch.cat([values, near], dim=1)
            neighbours = torch.cat([neighbours, where + left], dim=1)
            values, order = _smallest(values, k)
            neighbours = neighbours.gather(1, order)
        found.append(neighbours)
    return torch.cat(found)


def _nearest(
    own: torch.Tensor, others: torch.Tensor, diagonal: int, k: int, is_cosine: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far the k nearest of the others are, and which.

    What is compared is ``-2 x.y`` under the cosine kernel and ``|y|^2 - 2 x.y``, the squared
    distance less ``|x|^2``, under the rest. Samples meet themselves on the diagonal.
    """
    offsets = others.new_zeros(len(others)) if is_cosine else others.square().sum(dim=1)
    values = torch.addmm(offsets, own, others.mT, alpha=-2.0)
    values.diagonal(diagonal).fill_(math.inf)
    return _smallest(values, k)


def _smallest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    smallest, order = values.topk(min(k, values.shape[1]), dim=1, largest=False, sorted=False)
    return smallest, order


def _on_edges(rows: _Rows, neighbours: torch.Tensor) -> torch.Tensor:
    """Return the cosines, or the squared distances, of all pairs of neighbours, (N, k).

    They come from the coordinates themselves: those of the search have lost digits to cancellation.
    """
    samples, k = neighbours.shape
    height = max(1, COORDINATES_PER_BLOCK // (k * rows.points.shape[1]))
    values = []
    for top in range(0, samples, height):
        ends = neighbours[top : top + height]
        own = rows[slice(top, top + height)].unsqueeze(1)
        others = rows[ends.flatten()].reshape(*ends.shape, -1)
        parts = own * others if rows.is_cosine else (own - others).square()
        values.append(parts.sum(dim=2))
    return torch.cat(values)


def _gaussian(distances: torch.Tensor, bandwidth: float | None) -> torch.Tensor:
    is_apart = distances > 0
    if bandwidth is None:
        apart = distances[is_apart].sort().values
        middle = apart[(len(apart) - 1) // 2 : len(apart) // 2 + 1]
        bandwidth = float(middle.mean()) if len(apart) else 1.0
    # A bandwidth of another scale than the distances may be 0 or inf here.
    ratios = torch.where(is_apart, distances / bandwidth, 0.0)
    return torch.exp(-0.5 * ratios.square())


def _assemble(
    neighbours: torch.Tensor, weights: torch.Tensor, symmetrize: bool, include_self: bool
) -> torch.Tensor:
    samples = len(neighbours)
    diagonal = torch.arange(samples, device=neighbours.device).unsqueeze(1)
    if include_self:
        neighbours = torch.cat([neighbours, diagonal], dim=1)
        weights = torch.cat([weights, torch.ones_like(weights[:, :1])], dim=1)
    sources, targets = diagonal.expand_as(neighbours).flatten(), neighbours.flatten()
    w = compressed(sources, targets, weights.flatten(), samples, symmetrize=symmetrize)
    graph: torch.Tensor = w.to_tensor()
    return graph
