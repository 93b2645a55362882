"""What it costs to spread a problem over processes: time, bytes on the wire, and the same answer.

    python -m benchmarks.distributed [--quick] [--output FOLDER]

Starts 1, 2 and 4 processes of this machine by torchrun with the gloo backend, one thread each, and
solves the same problems. Bytes are those that the loopback device of Linux counts, next to what the
model of `docs/cost_model.md` predicts; keep the machine quiet. Writes `distributed.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import ssot
from benchmarks.hard_problems import good_head_cost
from benchmarks.machine import describe
from benchmarks.text import table

SIZES = (1, 2, 4)
OUTPUT = Path(__file__).parent / "output"
REPEATS = 5


def problems(is_quick):
    """Return each problem's cost, graph and options by name."""
    scale = 10 if is_quick else 1
    found = {}
    for samples, classes in ((200_000, 100), (40_000, 400)):
        cost = good_head_cost(samples // scale, classes, seed=0)
        found[f"P²OT {len(cost):,} x {classes}"] = (cost, None, {"rho": 0.3, "tol": 1e-11})
    samples, classes, neighbours = 100_000 // scale, 50, 20
    cost = good_head_cost(samples, classes, seed=1)
    near = np.random.default_rng(0).integers(-200, 200, (samples, neighbours))
    indices = (np.arange(samples)[:, None] + near) % samples
    graph = (indices, np.full(indices.shape, 1.0 / neighbours))
    found[f"SP²OT {samples:,} x {classes}, {neighbours} neighbours"] = (
        cost,
        graph,
        {"rho": 0.3, "tol": 1e-8, "semantic_weight": 0.02 * samples},
    )
    return found


def sent_bytes():
    """Return how many bytes the loopback device has sent so far."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[8])
    raise RuntimeError("no loopback device in /proc/net/dev; run on Linux")


def predicted_bytes(payloads):
    """Return what the payloads of all ranks put on the wire, by all of them together.

    A ring sends every number that is added up ``2 (ranks - 1)`` times, a broadcast ``ranks - 1``
    times, and rows for others once.
    """
    others = len(payloads) - 1
    fetched = sum(payload.get("all_to_all", 0) for payload in payloads)
    first = payloads[0]
    return 2 * others * first["all_reduce"] + others * first["broadcast"] + fetched


def work(folder, is_quick):
    """Solve this process's rows of every problem; the first one writes what it saw."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    found = {}
    for name, (cost, graph, options) in problems(is_quick).items():
        rows = slice(rank * len(cost) // size, (rank + 1) * len(cost) // size)
        own = None if graph is None else tuple(part[rows] for part in graph)
        seconds, wire = [], []
        for _ in range(REPEATS):
            dist.barrier(group)
            sent, began = sent_bytes(), time.perf_counter()
            solution = ssot.solve(cost[rows], own, **options, group=group)
            dist.barrier(group)
            seconds.append(time.perf_counter() - began)
            wire.append(sent_bytes() - sent)
        ranks, certificate = solution.problem.ranks, solution.certificate
        payloads = [None] * size
        dist.all_gather_object(payloads, dict(getattr(ranks, "payload", {})))
        found[name] = {
            "status": solution.status.name,
            "seconds": seconds,
            "row_passes": certificate.row_passes,
            "outer_steps": certificate.outer_steps,
            "gap": certificate.stationarity_gap,
            "residual": certificate.column_residual,
            "prices": np.asarray(solution.prices).tolist(),
            "objective": solution.objective.total,
            "exchanges": dict(getattr(ranks, "exchanges", {})),
            "payloads": payloads,
            "wire": int(np.median(wire)),
            "predicted": predicted_bytes(payloads) if size > 1 else 0,
        }
    if rank == 0:
        Path(folder, f"{size}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def measure(is_quick):
    """Return what was found for each number of processes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(size), "-m", "benchmarks.distributed"]
            command += ["--worker", folder, *(["--quick"] if is_quick else [])]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, env=environment)
            found[size] = json.loads(Path(folder, f"{size}.json").read_text(encoding="utf-8"))
    return found


def report(found):
    """Return the results as a Markdown table."""
    rows = []
    for name, alone in found[SIZES[0]].items():
        for size in SIZES:
            this = found[size][name]
            apart = np.abs(np.subtract(this["prices"], alone["prices"])).max()
            value = abs(this["objective"] - alone["objective"])
            rows.append(
                (
                    name if size == SIZES[0] else "",
                    size,
                    f"{np.median(this['seconds']):.2f} s",
                    this["row_passes"],
                    "–" if size == 1 else sum(this["exchanges"].values()),
                    "–" if size == 1 else f"{this['wire'] / 1e6:.2f} MB",
                    "–" if size == 1 else f"{this['predicted'] / 1e6:.2f} MB",
                    f"{apart:.0e}",
                    f"{value:.0e}",
                )
            )
    header = ("problem", "processes", "median", "passes", "exchanges", "sent", "predicted")
    return table((*header, "prices apart", "objectives apart"), rows)


def main():
    """Measure, or be one of the processes measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ten times smaller, as a check")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for distributed.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.quick)
        return
    found = measure(options.quick)
    options.output.mkdir(parents=True, exist_ok=True)
    data = {"machine": describe(), "quick": options.quick, "found": found}
    (options.output / "distributed.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    print(report(found))


if __name__ == "__main__":
    main()
