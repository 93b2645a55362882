"""Scores, table and pictures of the digits example.

The true labels enter here, in `score`, and nowhere else.
"""

from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    normalized_mutual_info_score,
    recall_score,
)

CLASSES = 10

Results: TypeAlias = dict[str, list[dict[str, Any]]]
"""For each method its evaluated runs, one for each seed."""

STYLES: dict[str, dict[str, Any]] = {  # colours that the colour-blind can tell apart
    "k-means": {"color": "#555555", "linestyle": "--", "marker": "D", "markersize": 4},
    "balanced Sinkhorn": {"color": "#D55E00", "linestyle": ":", "marker": "s", "markersize": 5},
    "P²OT": {"color": "#009E73", "linestyle": "-.", "marker": "^", "fillstyle": "none"},
    "SP²OT": {"color": "#0072B2", "linestyle": "-", "marker": "o", "markersize": 5},
}


def match(labels: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Rename the clusters one to one so that as many samples as possible get their label."""
    counts = confusion_matrix(labels, clusters, labels=range(CLASSES))
    _, class_to_cluster = linear_sum_assignment(counts, maximize=True)
    return np.argsort(class_to_cluster)[clusters]


def size_groups(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Split the classes by true size: the largest 30 %, the next 40 % and the smallest 30 %."""
    by_size = np.argsort(-np.bincount(labels, minlength=CLASSES), kind="stable")
    head, tail = round(0.3 * CLASSES), round(0.7 * CLASSES)
    return {"head": by_size[:head], "medium": by_size[head:tail], "tail": by_size[tail:]}


def score(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Compare clusters with the true labels, each measure in [0, 1]."""
    found = match(labels, clusters)
    recall = recall_score(labels, found, labels=range(CLASSES), average=None, zero_division=0)
    scores = {
        "accuracy": accuracy_score(labels, found),
        "balanced accuracy": balanced_accuracy_score(labels, found),
        "NMI": normalized_mutual_info_score(labels, clusters),
        "macro F1": f1_score(
            labels, found, labels=range(CLASSES), average="macro", zero_division=0
        ),
    }
    groups = {f"recall, {name}": recall[ids].mean() for name, ids in size_groups(labels).items()}
    return {name: float(value) for name, value in (scores | groups).items()}


def summarise(runs: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return mean and standard deviation over the seeds of each score."""
    by_name = {name: [run["scores"][name] for run in runs] for name in runs[0]["scores"]}
    return {name: (float(np.mean(v)), float(np.std(v))) for name, v in by_name.items()}


def print_table(results: Results, console: Console) -> None:
    """Print the scores in per cent, the best mean of each row in bold."""
    seeds = len(next(iter(results.values())))
    table = Table(title=f"Scores in per cent, mean ± standard deviation over {seeds} seeds")
    table.add_column("", no_wrap=True)
    for name in results:
        table.add_column(name, justify="right")
    summaries = [summarise(runs) for runs in results.values()]
    for measure in summaries[0]:
        means, spreads = zip(*(summary[measure] for summary in summaries), strict=True)
        cells = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(means, spreads, strict=True)]
        best = int(np.argmax(means))
        cells[best] = f"[bold]{cells[best]}[/bold]"
        table.add_row(measure, *cells)
    console.print(table)


def print_solver_share(results: Results, seconds: float, console: Console) -> None:
    """Print how often the solver ran, how long it took and how its solves ended."""
    table = Table(title=f"The solver's share of {seconds:.1f} s")
    for heading in ("", "solves", "seconds", "ended as"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, runs in results.items():
        statuses = sum((Counter(run["solves"]) for run in runs), Counter())
        if statuses:
            ended = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
            solver = sum(run["solver_seconds"] for run in runs)
            table.add_row(name, str(statuses.total()), f"{solver:.1f}", ended)
    console.print(table)


def draw_class_sizes(results: Results, true: list[int], path: Path) -> None:
    """Draw the class sizes, true and found, from large to small."""
    figure = Figure(figsize=(7, 4.5), layout="constrained", dpi=150)
    axes = figure.subplots()
    rank = np.arange(1, CLASSES + 1)
    axes.bar(rank, true, color="0.85", label="true")
    for name, runs in results.items():
        sizes = np.mean([run["class_sizes"] for run in runs], axis=0)
        axes.plot(rank, sizes, label=name, **STYLES[name])
    axes.set(
        xlabel="class or cluster, from large to small",
        ylabel="samples (found: mean over seeds)",
        xticks=rank,
    )
    figure.legend(loc="outside upper center", ncols=len(results) + 1, frameon=False)
    figure.savefig(path)


def draw_training(results: Results, path: Path) -> None:
    """Draw the accuracy and the labelled mass over the rounds."""
    figure = Figure(figsize=(7, 5.5), layout="constrained", dpi=150)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    for name, runs in results.items():
        curves, style = np.array([run["accuracy"] for run in runs]), STYLES[name]
        mean, spread = curves.mean(axis=0), curves.std(axis=0)
        if not runs[0]["rho"]:
            upper.axhline(mean[-1], label=name, **(style | {"marker": ""}))
            continue
        rounds = np.arange(1, len(mean) + 1)
        upper.plot(rounds, mean, label=name, **style)
        upper.fill_between(
            rounds, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0
        )
    upper.set_ylabel("accuracy: mean over seeds,\nband: standard deviation")
    figure.legend(loc="outside upper center", ncols=len(results), frameon=False)
    for name, runs in reversed(results.items()):  # P²OT shows on top of SP²OT
        lower.plot(np.arange(1, len(runs[0]["rho"]) + 1), runs[0]["rho"], **STYLES[name])
    lower.set(xlabel="round", ylabel="labelled mass ρ", ylim=(0, 1.1))
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path)
