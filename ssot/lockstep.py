"""Many problems at once: each is solved as if it were alone, and waits where it needs its kernel.

A solve is a generator. It yields the kernel operation that it needs next, and is sent the result.
`run` advances any number of them in turns, and hands operations of one kind on as many rows to the
backend in one call. A problem that has converged asks for nothing more, and so costs nothing more.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from ssot.arrays import Vector
from ssot.curvature import Coupling, System
from ssot.kernels.protocol import Kernel, Matrix, Plan, PlanSums, RowSums

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Call:
    """An operation of a kernel that a solve waits for."""

    operation: str
    kernel: Kernel
    arguments: tuple[Any, ...]

    @property
    def kind(self) -> tuple[str, int]:
        """What calls that are answered together share: a sample of the rows is another shape."""
        return self.operation, self.kernel.samples


Steps: TypeAlias = Generator[Call, Any, Result]
"""A computation that yields calls and returns a result."""


def run(solves: Iterable[Steps[Result]]) -> list[Result]:
    """Return the results of solves that advance together."""
    running = list(solves)
    results: list[Any] = [None] * len(running)
    waiting: dict[int, Call] = {}

    def advance(index: int, answer: Any) -> None:
        try:
            waiting[index] = running[index].send(answer)
        except StopIteration as end:
            results[index] = end.value

    for index in range(len(running)):
        advance(index, None)
    while waiting:
        calls, waiting = waiting, {}
        for kind in sorted({call.kind for call in calls.values()}):
            indices = [i for i, call in calls.items() if call.kind == kind]
            answers = _call_together([calls[i] for i in indices])
            for index, answer in zip(indices, answers, strict=True):
                advance(index, answer)
    return results


def _call_together(calls: Sequence[Call]) -> Sequence[Any]:
    kernels = [call.kernel for call in calls]
    return kernels[0].together(calls[0].operation, kernels, [call.arguments for call in calls])


def row_pass(
    kernel: Kernel, product: Matrix | None, prices: Vector, epsilon: float, system: System
) -> Steps[tuple[RowSums, Coupling]]:
    """Wait for `Kernel.row_pass`."""
    result: tuple[RowSums, Coupling]
    result = yield Call("row_pass", kernel, (product, prices, epsilon, system))
    return result


def plan(
    kernel: Kernel, product: Matrix | None, prices: Vector, epsilon: float, out: Plan | None
) -> Steps[tuple[Plan, RowSums]]:
    """Wait for `Kernel.plan`."""
    result: tuple[Plan, RowSums] = yield Call("plan", kernel, (product, prices, epsilon, out))
    return result


def measure(kernel: Kernel, plan: Plan, product: Matrix | None) -> Steps[PlanSums]:
    """Wait for `Kernel.measure`."""
    result: PlanSums = yield Call("measure", kernel, (plan, product))
    return result


def replace_product(kernel: Kernel, product: Matrix, old: Matrix, new: Matrix) -> Steps[float]:
    """Wait for `Kernel.replace_product`."""
    result: float = yield Call("replace_product", kernel, (product, old, new))
    return result
