"""How the time of a cold solve grows with the number of samples, and of classes.

P²OT in float32 at the published defaults and rho = 0.1, on costs of a good head.
"""

from dataclasses import dataclass

import numpy as np

from benchmarks.competitors import SSOT
from benchmarks.hard_problems import good_head_cost
from benchmarks.timing import compare
from ssot import Problem

ACCURACY = 1e-6


@dataclass(frozen=True)
class Growth:
    """A series of problems, each size (N, K)."""

    name: str
    title: str
    sizes: tuple[tuple[int, int], ...]
    quick_sizes: tuple[tuple[int, int], ...]
    axis: int

    def measure(self, is_quick, repeats, budget):
        """Return one measurement for each size, and the exponent that fits their medians."""
        sizes = self.quick_sizes if is_quick else self.sizes
        measurements = [_measure(size, repeats, budget) for size in sizes]
        lengths = [size[self.axis] for size in sizes]
        seconds = [measurement.median for measurement in measurements]
        return sizes, measurements, float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])


def _measure(size, repeats, budget):
    problem = Problem(good_head_cost(*size, dtype=np.float32), rho=0.1)
    return compare(problem, [SSOT], ACCURACY, repeats, budget)[0]


GROWTHS = (
    Growth(
        "samples",
        "Growth with N at K = 100",
        sizes=((10**4, 100), (10**5, 100), (10**6, 100)),
        quick_sizes=((500, 20), (1000, 20), (2000, 20)),
        axis=0,
    ),
    Growth(
        "classes",
        "Growth with K at N = 20,000",
        sizes=tuple((20_000, classes) for classes in (100, 250, 500, 1000, 2000, 4000)),
        quick_sizes=((500, 10), (500, 20), (500, 40)),
        axis=1,
    ),
)
