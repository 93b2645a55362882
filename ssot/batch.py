"""Several problems of one shape: a leading dimension in, a leading dimension out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from ssot.adjacency import Prepared
from ssot.arrays import HOST, Array, namespace
from ssot.certificate import Certificate
from ssot.objective import Objective
from ssot.problem import Problem
from ssot.solution import Solution
from ssot.status import Status
from ssot.streaming.source import RowBlocks

OWN_DIMENSIONS = {
    "cost": 2,
    "logits": 2,
    "rho": 0,
    "epsilon": 0,
    "kl_weight": 1,
    "semantic_weight": 0,
    "prior": 1,
    "sample_weight": 1,
    "slack_entropy": 0,
}
"""Most dimensions of an argument of one problem: one more, and it differs within the batch."""


@dataclass(frozen=True, eq=False)
class SolutionBatch(Sequence[Solution]):
    """The solutions of a batch of B problems: a sequence of `Solution`, with stacked arrays.

    Attributes
    ----------
    solutions : tuple of Solution
        One for each problem, with its own status and certificate.
    """

    solutions: tuple[Solution, ...]

    def __len__(self) -> int:
        return len(self.solutions)

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.solutions)

    @overload
    def __getitem__(self, index: int) -> Solution: ...
    @overload
    def __getitem__(self, index: slice) -> SolutionBatch: ...
    def __getitem__(self, index: int | slice) -> Solution | SolutionBatch:
        if isinstance(index, slice):
            return SolutionBatch(self.solutions[index])
        return self.solutions[index]

    @property
    def plan(self) -> Any:
        """The plans, (B, N, K)."""
        return self._stacked("plan")

    @property
    def value(self) -> Any:
        """The values of the objectives, (B,)."""
        values = [solution.value for solution in self]
        is_array = self.solutions[0].problem.place == HOST
        return np.array(values) if is_array else namespace(values[0]).stack(values)

    @property
    def prices(self) -> Any:
        """The prices of the K classes and of the virtual cluster, (B, K + 1)."""
        return self._stacked("prices")

    @property
    def labels(self) -> Any:
        """The class that receives most of each sample's mass, (B, N)."""
        return self._stacked("labels")

    @property
    def confidence(self) -> Any:
        """Labelled fraction of each sample, (B, N)."""
        return self._stacked("confidence")

    @property
    def status(self) -> tuple[Status, ...]:
        """Why each solve ended."""
        return tuple(solution.status for solution in self)

    @property
    def certificate(self) -> tuple[Certificate, ...]:
        """How feasible and how stationary each plan is."""
        return tuple(solution.certificate for solution in self)

    @property
    def objective(self) -> tuple[Objective, ...]:
        """The objective of each plan by term."""
        return tuple(solution.objective for solution in self)

    def _stacked(self, name: str) -> Array:
        parts = [getattr(solution, name) for solution in self]
        return namespace(parts[0]).stack(parts)


def is_batch(arguments: Mapping[str, Any]) -> bool:
    """Tell whether the cost, or the logits, have a leading dimension for several problems."""
    for name in ("cost", "logits"):
        given = arguments[name]
        if isinstance(given, (list, tuple)) and any(isinstance(x, RowBlocks) for x in given):
            raise TypeError(f"{name} must be one RowBlocks, got several; solve them one by one")
    return any(_dimensions(arguments[name]) == 3 for name in ("cost", "logits"))


def split_arguments(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of each problem of a batch.

    An argument with one dimension more than that of a single problem is split along the first; so
    is a list of graphs, or a pair of (B, N, k) arrays. All others hold for every problem.
    """
    name = "cost" if arguments["cost"] is not None else "logits"
    length = len(arguments[name])
    if length == 0:
        shape = tuple(np.shape(arguments[name]))
        raise ValueError(f"{name} must hold at least one problem, got shape {shape}")
    split = {
        name: _split(arguments[name], name, length, dimensions)
        for name, dimensions in OWN_DIMENSIONS.items()
    }
    split["graph"] = _split_graph(arguments["graph"], length)
    return [{name: values[index] for name, values in split.items()} for index in range(length)]


def problems_of(arguments: Sequence[Mapping[str, Any]], group: Any) -> list[Problem]:
    """Return the problems of a batch, which check a graph that they share once."""
    problems: list[Problem] = []
    for index, own in enumerate(arguments):
        graph, first = own["graph"], arguments[0]["graph"]
        if index and graph is first and problems[0].graph is not None:
            graph = Prepared(problems[0].graph)
        try:
            problems.append(Problem(**{**own, "graph": graph}, group=group))
        except (TypeError, ValueError) as error:
            raise type(error)(f"in problem {index} of the batch: {error}") from error

    def find() -> tuple[None, None]:
        for index, problem in enumerate(problems):
            _require_alike(problems[0], problem, index)
        return None, None

    problems[0].ranks.share(find)
    return problems


def _require_alike(first: Problem, other: Problem, index: int) -> None:
    for name, kinds in (
        ("shape", [tuple(first.cost.shape), tuple(other.cost.shape)]),
        ("dtype", [first.cost.dtype, other.cost.dtype]),
        ("place", [first.place, other.place]),
    ):
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"cost must have one {name} in all problems of a batch, got {kinds[0]} in problem "
                f"0 and {kinds[1]} in problem {index}; solve them apart"
            )


def split_init(
    init: Solution | SolutionBatch | Sequence[Solution] | ArrayLike | None, length: int
) -> list[Any]:
    """Return where to start each problem of a batch."""
    if isinstance(init, (SolutionBatch, list, tuple)) and all(
        part is None or isinstance(part, Solution) for part in init
    ):
        if len(init) != length:
            raise ValueError(
                f"init must hold one solution for each of the {length} problems, got {len(init)}"
            )
        return list(init)
    if init is None or isinstance(init, Solution):
        return [init] * length
    return _split(init, "init", length, 1)


def _dimensions(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return 1 + _dimensions(next((part for part in value if part is not None), None))
    return int(getattr(value, "ndim", 0))


def _split(value: Any, name: str, length: int, dimensions: int) -> list[Any]:
    if _dimensions(value) <= dimensions:
        return [value] * length
    if len(value) != length:
        raise ValueError(
            f"{name} must have a first dimension of {length}, one entry for each problem of the "
            f"batch, got {len(value)}"
        )
    return [value[index] for index in range(length)]


def _split_graph(graph: Any, length: int) -> list[Any]:
    if isinstance(graph, tuple) and any(_dimensions(part) > 2 for part in graph):
        parts = [_split(part, f"graph[{i}]", length, 2) for i, part in enumerate(graph)]
        return list(zip(*parts, strict=True))
    return [graph] * length if isinstance(graph, tuple) else _split(graph, "graph", length, 2)
