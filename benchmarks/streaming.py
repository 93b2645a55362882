"""Costs that are larger than memory: reads, time and memory, next to as many plain softmax passes.

    python -m benchmarks.streaming {linear,semantic} [--quick]

The file is written first, to the folder of `tempfile`, and stays in the page cache where there is
room. Each problem runs in a process of its own, whose private memory (RssAnon: what is neither page
cache nor a mapped file) is watched.

- linear: P²OT of float32 costs, ``-log softmax`` of the cosines of 64 features with long-tailed
  prototypes at a temperature of 0.07. Solves and plain passes over the same file take turns:
  `torch.softmax` as it comes, with a new result for each block, and into one reused buffer, in
  blocks of the height that makes the latter fastest.
- semantic: SP²OT of Gaussian clusters in 4 dimensions with the 20 nearest neighbours of every
  sample, and logits that confuse clusters that are close.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

import ssot
from benchmarks.hard_problems import long_tail

NAME = "streaming"
ROOT = Path(__file__).parent.parent
RHO = 0.3
FEATURES, NOISE, TEMPERATURE = 64, 0.1, 0.07
DIMENSIONS, NEIGHBOURS, SPREAD = 4, 20, 0.5
REPEATS = 3
WRITE_ROWS = 10_000
HEIGHTS = (1 << 10, 1 << 12, 1 << 14)


@dataclass(frozen=True)
class Size:
    """Samples and classes of a problem."""

    samples: int
    classes: int

    @property
    def shape(self):
        """Of the cost."""
        return self.samples, self.classes


FULL = {"linear": Size(1_000_000, 1000), "semantic": Size(1_000_000, 100)}
QUICK = {"linear": Size(20_000, 150), "semantic": Size(5_000, 10)}


class Watch:
    """The largest private memory of this process, looked at a hundred times a second."""

    def __init__(self):
        self.peak = self.private()
        threading.Thread(target=self._look, daemon=True).start()

    @staticmethod
    def private():
        """Return the bytes of private memory now."""
        with open("/proc/self/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])

    def _look(self):
        while True:
            self.peak = max(self.peak, self.private())
            time.sleep(0.01)


def rows_of(size):
    """Yield the rows to write at a time."""
    for start in range(0, size.samples, WRITE_ROWS):
        yield slice(start, min(start + WRITE_ROWS, size.samples))


def write(path, size, block_of):
    """Write the cost of logits that are made block by block."""
    stored = np.memmap(path, np.float32, "w+", shape=size.shape)
    for rows in rows_of(size):
        stored[rows] = -torch.log_softmax(torch.from_numpy(block_of(rows)), dim=1).numpy()
    stored.flush()


def opened(path, size):
    """Return the file as a read-only array that no process has looked at."""
    return np.memmap(path, np.float32, "r", shape=size.shape)


def long_tailed(rng, size):
    """Return a class for each sample."""
    shares = long_tail(size.classes) / long_tail(size.classes).sum()
    return rng.choice(size.classes, size.samples, p=shares)


def prototype_logits(size):
    """Return what gives the logits of some rows: cosines with the prototypes of all classes."""
    rng = np.random.default_rng(0)
    labels = long_tailed(rng, size)
    prototypes = unit(rng.standard_normal((size.classes, FEATURES), np.float32))

    def block(rows):
        noise = rng.standard_normal((rows.stop - rows.start, FEATURES), np.float32)
        points = unit(prototypes[labels[rows]] + np.float32(NOISE) * noise)
        return points @ prototypes.T / np.float32(TEMPERATURE)

    return block


def unit(rows):
    """Return rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clusters(size):
    """Return points in clusters, the clusters' centres, and a random generator."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((size.classes, DIMENSIONS), np.float32)
    noise = rng.standard_normal((size.samples, DIMENSIONS), np.float32)
    return centres[long_tailed(rng, size)] + np.float32(SPREAD) * noise, centres, rng


def cluster_logits(points, centres, rng):
    """Return what gives the logits of some rows: noisy log-densities of all clusters."""

    def block(rows):
        distances = np.square(points[rows, None] - centres).sum(axis=2)
        return 3 * rng.standard_normal(distances.shape, np.float32) - distances

    return block


def neighbours(points):
    """Return the nearest neighbours of all points and Gaussian weights of their distances."""
    distances, indices = cKDTree(points).query(points, NEIGHBOURS + 1, workers=-1)
    scale = np.median(distances[:, -1])
    weights = np.exp(-0.5 * np.square(distances[:, 1:] / scale))
    return indices[:, 1:].astype(np.int32), weights.astype(np.float32)


def softmax_passes(path, size, passes, height, *, reuse=True):
    """Return the seconds of passes over the file that compute a softmax and no more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        stored = torch.from_numpy(opened(path, size))
    out = torch.empty(height, size.classes)
    began = time.perf_counter()
    for _ in range(passes):
        for block in stored.split(height):
            torch.softmax(block, dim=1, out=out[: len(block)] if reuse else None)
    return time.perf_counter() - began


def exact_residual(solution):
    """Return the L1 distance of the class masses from what the prices demand, in float64."""
    problem = solution.problem
    mass = sum(block.plan.sum(axis=0, dtype=np.float64) for block in solution.blocks())
    demand = problem.rho * problem.prior * np.exp(-solution.prices[:-1] / problem.kl_weight)
    return float(np.abs(mass - demand).sum())


def solved(path, size, graph):
    """Return a solution from a file, and what it took."""
    watch = Watch()
    before = watch.peak
    source = ssot.RowBlocks(opened(path, size), scratch=path.parent)
    began = time.perf_counter()
    solution = ssot.solve(source, graph, rho=RHO, on_failure="return")
    seconds = time.perf_counter() - began
    certificate = solution.certificate
    found = {
        "samples": size.samples,
        "classes": size.classes,
        "status": solution.status.name,
        "seconds": seconds,
        "reads": source.reads,
        "private_before": before,
        "private_peak": watch.peak,
        "residual": certificate.column_residual,
        "mass_error": certificate.mass_error,
        "gap": certificate.stationarity_gap,
        "steps": certificate.outer_steps,
        "objective": solution.objective.total,
    }
    return solution, found


def compile_loops(size, graph):
    """Solve a small problem of the same kind, so that nothing is compiled on the clock."""
    cost = np.random.default_rng(0).random((2000, size.classes), np.float32)
    ids = (np.arange(2000)[:, None] + np.arange(1, 3)) % 2000
    small = None if graph is None else (ids, np.ones(ids.shape, np.float32))
    ssot.solve(ssot.RowBlocks(cost, rows=500), small, rho=RHO, on_failure="return")


def linear(path, size):
    """Return what P²OT took, and what as many plain passes take."""
    write(path, size, prototype_logits(size))
    compile_loops(size, None)
    softmax_passes(path, size, 1, HEIGHTS[0])
    height = min(HEIGHTS, key=lambda height: softmax_passes(path, size, 1, height))
    seconds, reused, fresh = [], [], []
    for _ in range(REPEATS):
        solution, found = solved(path, size, None)
        seconds.append(found["seconds"])
        reused.append(softmax_passes(path, size, found["reads"], height))
        fresh.append(softmax_passes(path, size, found["reads"], height, reuse=False))
    return found | {
        "all_seconds": seconds,
        "softmax_seconds": reused,
        "softmax_fresh_seconds": fresh,
        "softmax_height": height,
        "exact_residual": exact_residual(solution),
    }


def semantic(path, size):
    """Return what SP²OT took."""
    points, centres, rng = clusters(size)
    write(path, size, cluster_logits(points, centres, rng))
    graph = neighbours(points)
    compile_loops(size, graph)
    return solved(path, size, graph)[1]


CASES = {"linear": linear, "semantic": semantic}


def measure(name, is_quick):
    """Return what a process of its own finds."""
    command = [sys.executable, "-m", "benchmarks.streaming", name, *["--quick"] * is_quick]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout) | {"name": name}


def main():
    """Run one problem and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--quick", action="store_true", help="a much smaller problem, as a check")
    options = parser.parse_args()
    size = (QUICK if options.quick else FULL)[options.name]
    with tempfile.TemporaryDirectory() as folder:
        found = CASES[options.name](Path(folder) / "cost", size)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
