"""Cluster long-tailed handwritten digits without labels: SP²OT, P²OT, balanced Sinkhorn, k-means.

Real digits (8 x 8 pixels) are thinned out until the largest class has ten times the samples of the
smallest. A small cosine classifier is then trained on pseudo-labels that `ssot.solve` makes from
its own predictions, round by round. The three transport methods are the same solver and the same
training with other settings: see `METHODS`. True labels are used for the scores and nowhere else;
the settings were chosen on the seeds 100 to 109, the results are for the seeds from 0.

    python examples/digits.py --seeds 5 --output examples/output

prints a table and writes class_sizes.png, training.png and digits.json.
"""

import argparse
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits_report import (
    CLASSES,
    Results,
    draw_class_sizes,
    draw_training,
    print_solver_share,
    print_table,
    score,
    summarise,
)
from rich.console import Console
from rich.progress import track
from scipy.sparse import csr_array
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.nn.functional import normalize

import ssot

LARGEST_CLASS = 170  # every digit has at least 174 images
COMPONENTS = 32

HEADS = 8  # classifiers trained side by side; the one with the lowest objective is kept
UPDATES = 12  # gradient steps in a round
LEARNING_RATE = 0.02
LOGIT_SCALE = 10.0
NOISE = 0.2  # standard deviation, in each feature; the first feature's own is about 0.7
TOLERANCE = 1e-3  # pseudo-labels need no more


@dataclass(frozen=True)
class Method:
    """Settings of `ssot.solve`; `semantic_strength` is `semantic_weight` for each sample."""

    ramp: Callable[[float], float] = ssot.sigmoid_ramp
    kl_weight: float = 2.0
    semantic_strength: float = 0.0


METHODS = {
    "balanced Sinkhorn": Method(ramp=lambda _progress: 1.0, kl_weight=math.inf),
    "P²OT": Method(),
    "SP²OT": Method(semantic_strength=1.0),
}


@dataclass(frozen=True)
class Run:
    """What one method made of one data set, without labels."""

    predictions: np.ndarray  # (rounds, N), the clusters found after each round
    rho: list[float]  # (rounds,), the mass that was labelled
    statuses: Counter[str]  # how the solves ended
    solver_seconds: float


def long_tailed_sizes(imbalance: float) -> list[int]:
    """Return the class sizes, from the largest down to 1 / `imbalance` of it, geometrically."""
    return [int(LARGEST_CLASS * imbalance ** (-c / (CLASSES - 1))) for c in range(CLASSES)]


def long_tailed_digits(imbalance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images (N, 64), scaled to [0, 1], and labels (N,); the seed chooses the rare digits."""
    images, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    sizes = zip(rng.permutation(CLASSES), long_tailed_sizes(imbalance), strict=True)
    chosen = [rng.choice(np.flatnonzero(digits == d), size, replace=False) for d, size in sizes]
    order = rng.permutation(np.concatenate(chosen))
    return images[order] / images.max(), digits[order]


def train(features: np.ndarray, graph: csr_array, method: Method, rounds: int, seed: int) -> Run:
    """Train cosine classifiers on the pseudo-labels of one method and keep one of them.

    Each starts from its own k-means++ seeds; like the inertia in k-means, the objective of the
    last solve tells which start was the best.
    """
    inputs = torch.from_numpy(features)
    starts, noise = np.random.RandomState(seed), torch.Generator().manual_seed(seed)
    seeds = [kmeans_plusplus(features, CLASSES, random_state=starts)[0] for _ in range(HEADS)]
    weights = torch.tensor(np.stack(seeds), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=LEARNING_RATE)

    def logits_of(x: torch.Tensor) -> torch.Tensor:  # (heads, N, classes)
        return LOGIT_SCALE * normalize(x, dim=1) @ normalize(weights, dim=2).mT

    solutions: Sequence[ssot.Solution | None] = [None] * HEADS
    predictions, masses, statuses, seconds = [], [], Counter(), 0.0
    for step in range(1, rounds + 1):
        masses.append(method.ramp(step / rounds))
        began = time.perf_counter()
        solutions = solve_each(logits_of(inputs).detach(), graph, method, masses[-1], solutions)
        seconds += time.perf_counter() - began
        statuses.update(solution.status.name for solution in solutions)
        targets = torch.stack([len(inputs) * solution.plan for solution in solutions])
        for _ in range(UPDATES):
            view = inputs + NOISE * torch.randn(inputs.shape, generator=noise, dtype=inputs.dtype)
            loss = -(targets * logits_of(view).log_softmax(dim=2)).sum() / targets.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        predictions.append(logits_of(inputs).argmax(dim=2).numpy())
    best = int(np.argmin([solution.objective.total for solution in solutions]))
    return Run(np.stack(predictions)[:, best], masses, statuses, seconds)


def solve_each(
    logits: torch.Tensor,
    graph: csr_array,
    method: Method,
    rho: float,
    previous: Sequence[ssot.Solution | None],
) -> list[ssot.Solution]:
    """Solve for the pseudo-labels of each head, starting where the previous round ended."""
    return [
        ssot.solve(
            logits=logits_of_head,
            graph=graph,
            rho=rho,
            kl_weight=method.kl_weight,
            semantic_weight=method.semantic_strength * len(logits_of_head),
            tol=TOLERANCE,
            init=init,
            on_failure="return",  # main() counts and reports the statuses
        )
        for logits_of_head, init in zip(logits, previous, strict=True)
    ]


def k_means(features: np.ndarray, seed: int) -> Run:
    """Run k-means, the best of ten starts."""
    clusters = KMeans(CLASSES, n_init=10, random_state=seed).fit_predict(features)
    return Run(clusters[np.newaxis], [], Counter(), 0.0)


def evaluate(run: Run, labels: np.ndarray) -> dict[str, Any]:
    """Score a run against the labels, as JSON stores it."""
    final = run.predictions[-1]
    return {
        "scores": score(labels, final),
        "class_sizes": sorted(np.bincount(final, minlength=CLASSES).tolist(), reverse=True),
        "accuracy": [score(labels, clusters)["accuracy"] for clusters in run.predictions],
        "rho": run.rho,
        "solves": dict(run.statuses),
        "solver_seconds": run.solver_seconds,
    }


def compare(options: argparse.Namespace, console: Console) -> Results:
    """Return the evaluated runs of each method, one for each seed."""
    results: Results = {name: [] for name in ["k-means", *METHODS]}
    jobs = itertools.product(range(options.seeds), results)
    for seed, name in track(list(jobs), description="clustering", console=console):
        images, labels = long_tailed_digits(options.imbalance, seed)
        features = PCA(COMPONENTS, random_state=seed).fit_transform(images)
        if name in METHODS:
            graph = ssot.knn_graph(features)
            run = train(features, graph, METHODS[name], options.rounds, seed)
        else:
            run = k_means(features, seed)
        results[name].append(evaluate(run, labels))
    return results


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="data sets to draw (default 3)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of training (default 12)")
    parser.add_argument(
        "--imbalance", type=float, default=10, help="largest over smallest class (default 10)"
    )
    output = Path(__file__).parent / "output"
    parser.add_argument("--output", type=Path, default=output, help="folder for what is written")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.rounds < 1:
        parser.error("--seeds and --rounds must be at least 1")
    if not 1 <= options.imbalance <= 100:
        parser.error("--imbalance must be from 1 to 100")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the methods; print a table and write pictures and numbers."""
    options, console = parse(arguments), Console()
    torch.set_num_threads(1)  # the arrays are too small to share out
    began = time.perf_counter()
    results = compare(options, console)
    seconds = time.perf_counter() - began
    print_table(results, console)
    print_solver_share(results, seconds, console)

    options.output.mkdir(parents=True, exist_ok=True)
    sizes = long_tailed_sizes(options.imbalance)
    draw_class_sizes(results, sizes, options.output / "class_sizes.png")
    draw_training(results, options.output / "training.png")
    record = {
        "seeds": options.seeds,
        "rounds": options.rounds,
        "imbalance": options.imbalance,
        "seconds": seconds,
        "true_class_sizes": sizes,
        "summary": {name: summarise(runs) for name, runs in results.items()},
        "runs": results,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (options.output / "digits.json").write_text(text + "\n", encoding="utf-8")
    console.print(f"pictures and numbers are in {options.output}")


if __name__ == "__main__":
    main()
