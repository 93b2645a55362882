"""Pictures of the results."""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from .report import METRICS, Results, Run, in_order, is_baseline, summarise

COMPARED = ("accuracy", "balanced_accuracy", "nmi", "tail_recall")

BASELINE_COLORS = ("#BDBDBD", "#A3A3A3", "#898989", "#6F6F6F", "#555555")
TRANSPORT_COLORS = ("#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, which the colour-blind can tell apart."""

LINES = ("-", "--", "-.", ":")
DPI = 150


def styles(results: Results) -> dict[str, dict[str, Any]]:
    """Give each method its line, the same in every picture of these results."""
    methods = in_order({method: [] for runs in results.values() for method in runs})
    found = {}
    for colors, are_baselines in ((BASELINE_COLORS, True), (TRANSPORT_COLORS, False)):
        for index, method in enumerate(m for m in methods if is_baseline(m) == are_baselines):
            found[method] = {
                "color": colors[index % len(colors)],
                "linestyle": LINES[index % len(LINES)],
                "linewidth": 1.3 if are_baselines else 2.0,
            }
    return found


def draw_comparison(results: Results, path: Path) -> None:
    """Draw the main scores as bars: a row for each data set, a column for each score."""
    style_of = styles(results)
    heights = [len(runs) + 1.5 for runs in results.values()]
    figure, grid = _panels(
        2.5 * len(COMPARED) + 1.5,
        0.27 * sum(heights) + 0.6,
        len(results),
        len(COMPARED),
        height_ratios=heights,
        sharex="col",
    )
    for (data_set, runs), row in zip(results.items(), grid, strict=True):
        ordered = in_order(runs)
        for axes, metric in zip(row, COMPARED, strict=True):
            summaries = [summarise(of_method, metric) for of_method in ordered.values()]
            spreads = [summary.deviation or 0.0 for summary in summaries]
            bars = axes.barh(
                range(len(ordered)),
                [summary.mean for summary in summaries],
                xerr=spreads if any(spreads) else None,
                color=[style_of[method]["color"] for method in ordered],
                error_kw={"ecolor": "0.1", "elinewidth": 1},
                height=0.75,
            )
            axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
            axes.margins(x=0.2)  # room for the numbers
            axes.invert_yaxis()
            axes.set_yticks([])
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x <= 100 else "")
        row[0].set_yticks(range(len(ordered)), list(ordered), fontsize=10)
        row[0].set_ylabel(data_set, fontsize=11, fontweight="bold")
    for axes, metric in zip(grid[0], COMPARED, strict=True):
        axes.set_title(f"{METRICS[metric]}, %", fontsize=11)
    figure.savefig(path)


def draw_class_sizes(results: Results, path: Path) -> None:
    """Draw for each data set the sizes of the classes and of the clusters, from large to small."""
    style_of = styles(results)
    figure, (row,) = _panels(4.0 * len(results) + 2.3, 4.0, 1, len(results))
    for axes, (data_set, runs) in zip(row, results.items(), strict=True):
        true = next(iter(runs.values()))[0]["true_class_sizes"]
        smallest = true[-1]
        axes.fill_between(
            np.arange(1, len(true) + 1), true, color="0.92", step="mid", label="true classes"
        )
        for method, of_method in in_order(runs).items():
            sizes = _mean_sizes(of_method)
            smallest = min(smallest, np.nanmin(sizes))
            axes.plot(np.arange(1, len(sizes) + 1), sizes, label=method, **style_of[method])
        axes.set(title=data_set, xlabel="class or cluster, from large to small", yscale="log")
        axes.set_ylim(bottom=0.7 * smallest)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    row[0].set_ylabel("samples, mean over the seeds")
    _legend(figure, row)
    figure.savefig(path)


def _mean_sizes(runs: list[Run]) -> np.ndarray:
    """Average the sizes of clusters by rank; missing ones and, for the logarithm, zeros are NaN."""
    sizes = [run["class_sizes"] for run in runs]
    means = np.array([np.mean(ranked) for ranked in zip_longest(*sizes, fillvalue=0)])
    return np.where(means > 0, means, np.nan)


def draw_training(results: Results, path: Path) -> None:
    """Draw the accuracy and the labelled mass over the rounds, where there was training."""
    style_of = styles(results)
    trained = {
        data_set: {
            method: of_method for method, of_method in runs.items() if of_method[0]["history"]
        }
        for data_set, runs in results.items()
    }
    trained = {data_set: runs for data_set, runs in trained.items() if runs}
    if not trained:
        return
    figure, (upper, lower) = _panels(
        4.0 * len(trained) + 2.3, 5.0, 2, len(trained), height_ratios=[3, 1], sharex="col"
    )
    for above, below, (data_set, runs) in zip(upper, lower, trained.items(), strict=True):
        for method, of_method in runs.items():
            _draw_band(above, of_method, style_of[method] | {"label": method})
        for rho in {tuple(of_method[0]["history"]["rho"]) for of_method in runs.values()}:
            below.plot(np.arange(1, len(rho) + 1), rho, color="0.3")
        above.set_title(data_set)
        below.set(xlabel="round", ylim=(0, 1.1))
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    upper[0].set_ylabel("accuracy, %: mean over the seeds,\nband: standard deviation")
    lower[0].set_ylabel("labelled mass ρ")
    _legend(figure, upper)
    figure.savefig(path)


def _draw_band(axes: Axes, runs: list[Run], style: dict[str, Any]) -> None:
    curves = 100 * np.array([run["history"]["accuracy"] for run in runs])
    rounds, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
    axes.plot(rounds, mean, **style)
    if len(runs) > 1:
        spread = curves.std(axis=0, ddof=1)
        axes.fill_between(
            rounds, mean - spread, mean + spread, color=style["color"], alpha=0.15, linewidth=0
        )


def _panels(
    width: float, height: float, rows: int, columns: int, **layout: Any
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    panels = figure.subplots(rows, columns, squeeze=False, **layout)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _legend(figure: Figure, panels: np.ndarray) -> None:
    """Name each line once, beside the panels."""
    entries = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside right upper", frameon=False)
