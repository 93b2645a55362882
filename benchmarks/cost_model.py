"""The model of what a solve costs: fitted to passes here, and what it says of larger problems.

    python -m benchmarks.cost_model [--quick] [--output FOLDER]

A Newton step of N samples and K classes on R ranks costs each rank

    bytes read    s N K / R                        s bytes a number; once more with a graph
    operations    c N K / R + 2 K^2 n              n rows that the curvature comes from
    factorising   (K + 1)^3 / 3
    bytes added   8 (K + 1)^2 + 8 (K + 2)             by devices; on a ring twice that is sent

where n is N / R up to 127 classes; beyond, the ranks' share of 32 K rows or 16,384. Writes
`cost_model.json`.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import ssot
from benchmarks.hard_problems import good_head_cost
from benchmarks.machine import describe
from benchmarks.text import table
from ssot.curvature import LARGEST_DENSE, System, sampled_rows
from ssot.kernels import make_kernel

OUTPUT = Path(__file__).parent / "output"
GRID = [
    (20_000, 16),
    (200_000, 16),
    (20_000, 64),
    (100_000, 64),
    (20_000, 100),
    (100_000, 100),
    (20_000, 300),
    (20_000, 1000),
    (60_000, 1000),
]
REPEATS = 7


@dataclass(frozen=True)
class Machine:
    """What one rank can do, and how fast it talks to the others.

    Attributes
    ----------
    memory : float
        Bytes read from memory in a second.
    products : float
        Operations in a second of float64 matrix products.
    factorisation : float
        Operations in a second of a Cholesky factorisation of some thousand rows.
    head : float
        Operations in a second of the products that make logits from features.
    link : float
        Bytes that a rank sends in a second.
    latency : float
        Seconds of an exchange that moves nothing.
    """

    name: str
    memory: float
    products: float
    factorisation: float
    head: float
    link: float
    latency: float


H100 = "NVIDIA H100 SXM, at three quarters of its data sheet"
IN_ONE_BOX = Machine(f"{H100}; NVLink", 2.5e12, 5.0e13, 2.0e12, 3.7e14, 3.4e11, 3e-5)
IN_A_CLUSTER = Machine(f"{H100}; 400 Gb/s a GPU", 2.5e12, 5.0e13, 1.0e13, 3.7e14, 3.8e10, 1e-4)


def step_seconds(machine, samples, classes, ranks, features=0):
    """Return the seconds of a Newton step by its parts, in float32.

    With `features`, logits are made from them block by block and read once again.
    """
    rows, columns = samples / ranks, classes + 1
    curved = rows if columns <= LARGEST_DENSE else min(rows, sampled_rows(columns, 1.0) / ranks)
    sent = 8 * (columns**2 + columns + 1)
    return {
        "logits": 2 * rows * classes * features / machine.head,
        "reading": (2 if features else 1) * 4 * rows * classes / machine.memory,
        "curvature": 2 * curved * columns**2 / machine.products,
        "factorising": columns**3 / 3 / machine.factorisation,
        "exchange": 2 * sent * (ranks - 1) / ranks / machine.link + 2 * machine.latency,
    }


def pass_seconds(samples, classes, dtype):
    """Return the median seconds of a row pass on this machine."""
    cost = good_head_cost(samples, classes, seed=0).astype(dtype)
    kernel = make_kernel(ssot.Problem(cost, rho=0.3), "auto")
    prices = np.zeros(classes + 1)
    system = System(prices, prices, None, np.inf)
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        kernel.row_pass(None, prices, 0.1, system)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def fit(is_quick):
    """Return measured passes, and the seconds of a row, a number, a product and so on.

    Beyond `LARGEST_DENSE` columns no products are formed, so that their number is 0 there.
    """
    points = []
    for samples, classes in GRID[:: 3 if is_quick else 1]:
        for dtype in (np.float32, np.float64):
            measured = pass_seconds(samples // (10 if is_quick else 1), classes, dtype)
            points.append(
                {
                    "samples": samples,
                    "classes": classes,
                    "bytes": dtype().itemsize,
                    "seconds": measured,
                }
            )
    design = np.array([_terms(point) for point in points])
    seconds = np.array([point["seconds"] for point in points])
    # Relative errors count, and no term may be negative.
    from scipy.optimize import nnls

    rates, _ = nnls(design / seconds[:, None], np.ones(len(seconds)))
    for point, predicted in zip(points, design @ rates, strict=True):
        point["predicted"] = float(predicted)
    names = ("row", "number", "byte", "product", "call")
    return points, dict(zip(names, rates.tolist(), strict=True))


def _terms(point):
    numbers = point["samples"] * point["classes"]
    dense = point["classes"] < LARGEST_DENSE
    products = numbers * point["classes"] * dense
    return point["samples"], numbers, numbers * point["bytes"], products, 1.0


def predictions():
    """Return what the model says of problems that are out of reach here."""
    found = []
    for machine, samples, classes, ranks, features in (
        (IN_ONE_BOX, 1_280_000, 1_000, 8, 0),
        (IN_A_CLUSTER, 10**9, 10**4, 256, 768),
    ):
        parts = step_seconds(machine, samples, classes, ranks, features)
        found.append(
            {
                "machine": asdict(machine),
                "samples": samples,
                "classes": classes,
                "ranks": ranks,
                "features": features,
                "seconds": parts,
                "step": sum(parts.values()),
                "gigabytes": 4 * samples * (features or classes) / ranks / 1e9,
            }
        )
    return found


def report(points, rates, predicted):
    """Return fit and predictions as Markdown."""
    fitted = table(
        ("samples", "classes", "bytes a number", "measured", "model"),
        [
            (
                f"{point['samples']:,}",
                point["classes"],
                point["bytes"],
                f"{1e3 * point['seconds']:.2f} ms",
                f"{1e3 * point['predicted']:.2f} ms",
            )
            for point in points
        ],
    )
    terms = ", ".join(f"{1e9 * rate:.3g} ns a {name}" for name, rate in rates.items())
    parts = list(predicted[0]["seconds"])
    ahead = table(
        ("problem", "ranks", "held by a rank", *parts, "Newton step"),
        [
            (
                f"{each['samples']:,} x {each['classes']:,}",
                each["ranks"],
                f"{each['gigabytes']:.2g} GB",
                *(f"{1e3 * each['seconds'][part]:.3g} ms" for part in parts),
                f"{1e3 * each['step']:.3g} ms",
            )
            for each in predicted
        ],
    )
    return f"Fit: {terms}.\n\n{fitted}\n\n{ahead}"


def main():
    """Fit, predict, and write both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, as a check")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for cost_model.json")
    options = parser.parse_args()
    points, rates = fit(options.quick)
    predicted = predictions()
    options.output.mkdir(parents=True, exist_ok=True)
    data = {"machine": describe(), "points": points, "rates": rates, "predictions": predicted}
    (options.output / "cost_model.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    print(report(points, rates, predicted))


if __name__ == "__main__":
    main()
