"""Tables of the results, on the console and in Markdown, and the file that stores them."""

import json
import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

import ssot

from .baselines import BASELINES

Run: TypeAlias = dict[str, Any]
"""What one method made of one data set with one seed:

seed
    int
scores
    of `metrics.scores`; empty where the classes are unknown
seconds
    of a baseline for all, of a training for its rounds
start_seconds, labelling_seconds
    of a training: to make the clusters it starts at and to learn them, counted in full for each
    method though they share them; and for the pseudo-labels in its rounds. None for a baseline
class_sizes, true_class_sizes
    of the clusters and the classes, from large to small (None where the classes are unknown)
history
    None, or lists of "rho", "objective" and "accuracy" with one entry for each round
statuses
    how often a solve ended how
settings
    of the data and the method
command
    that made the run, as a reader would type it
"""

Runs: TypeAlias = dict[str, list[Run]]
"""For each method its runs, one for each seed."""

Results: TypeAlias = dict[str, Runs]
"""For each data set what the methods made of it."""

NEEDED = (
    "seed",
    "scores",
    "seconds",
    "labelling_seconds",
    "class_sizes",
    "true_class_sizes",
    "history",
    "statuses",
    "settings",
)
"""What a run must have to be shown, or to be known as made already."""

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "nmi": "NMI",
    "ari": "ARI",
    "macro_f1": "macro F1",
    "head_recall": "head recall",
    "medium_recall": "medium recall",
    "tail_recall": "tail recall",
}
"""The scores as they are printed."""

WIDE = 120
"""Characters of a console from which the table of scores needs one line for each method."""


class Summary(NamedTuple):
    """Mean and sample standard deviation over the seeds, in per cent; None for a single seed."""

    mean: float
    deviation: float | None

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        return f"{self.mean:.1f}{spread}"


def summarise(runs: list[Run], metric: str) -> Summary:
    """Summarise one score of a method."""
    values = [100 * run["scores"][metric] for run in runs]
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), deviation)


def is_baseline(method: str) -> bool:
    """Tell the baselines from the transport methods."""
    return method in BASELINES


def in_order(runs: Runs) -> Runs:
    """Put the baselines before the transport methods."""
    return dict(sorted(runs.items(), key=lambda item: not is_baseline(item[0])))


def rows(runs: Runs, bold: str) -> Iterator[list[str]]:
    """Yield each method with its scores, in order; the best of each score in between `bold`."""
    runs = in_order(runs)
    columns = []
    for metric in METRICS:
        summaries = [summarise(of_method, metric) for of_method in runs.values()]
        best = max(round(summary.mean, 1) for summary in summaries)  # ties as the reader sees them
        columns.append([bold.format(s) if round(s.mean, 1) == best else str(s) for s in summaries])
    yield from ([method, *cells] for method, *cells in zip(runs, *columns, strict=True))


def caption(data_set: str, runs: Runs) -> str:
    """Say what the numbers are."""
    seeds = len(next(iter(runs.values())))
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return f"{data_set}: scores in per cent, {over}"


def print_tables(results: Results, console: Console) -> None:
    """Print the scores, one table for each data set."""
    for data_set, runs in results.items():
        table = Table(title=caption(data_set, runs), box=HORIZONTALS, padding=(0, 1, 0, 0))
        for title in ("method", *METRICS.values()):
            table.add_column(title, justify="left" if title == "method" else "right")
        if console.width < WIDE:  # wrap the cells, but cut no word
            for column in table.columns:
                column.width = max(5, *map(len, f"{column.header}".split()))
            table.columns[0].width = 10
        last = [method for method in runs if is_baseline(method)][-1:]
        for method, *cells in rows(runs, bold="[bold]{}[/bold]"):
            table.add_row(method, *cells, end_section=[method] == last)
        console.print(table)


def print_solver_share(results: Results, console: Console) -> None:
    """Print how long the pseudo-labels took and how their solves ended."""
    table = Table(
        box=HORIZONTALS,
        title="Time for the start, all rounds and their pseudo-labels, mean over the seeds, "
        "and how all solves ended",
    )
    times = ("start", "rounds", "pseudo-labels")
    for heading in ("data set", "method", *times, "ended as"):
        table.add_column(heading, justify="right" if heading in times else "left")
    for data_set, runs in results.items():
        for method, of_method in runs.items():
            if of_method[0]["labelling_seconds"] is None:
                continue
            began = [run["start_seconds"] for run in of_method if "start_seconds" in run]
            start = f"{np.mean(began):.1f} s" if began else ""
            seconds = np.mean([run["seconds"] for run in of_method])
            labelling = np.mean([run["labelling_seconds"] for run in of_method])
            statuses = sum((Counter(run["statuses"]) for run in of_method), Counter())
            ended = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
            share = f"{labelling:.1f} s, {labelling / seconds:.0%}"
            table.add_row(data_set, method, start, f"{seconds:.1f} s", share, ended)
    if table.row_count:
        console.print(table)


def markdown_table(results: Results) -> str:
    """Return the scores as Markdown, one table for each data set with its caption above."""
    header = [
        "| method | " + " | ".join(METRICS.values()) + " |",
        "|---|" + "---:|" * len(METRICS),
    ]
    parts = []
    for data_set, runs in results.items():
        body = [f"| {' | '.join(row)} |" for row in rows(runs, bold="**{}**")]
        parts.append("\n".join([caption(data_set, runs), "", *header, *body, ""]))
    return "\n".join(parts)


def save(results: Results, path: Path) -> None:
    """Write the results as JSON, with the versions of this call."""
    libraries = ("numpy", "scipy", "scikit-learn", "torch")
    record = {
        "versions": {
            "python": platform.python_version(),
            "ssot": ssot.__version__,
            **{library: version(library) for library in libraries},
        },
        "seeds": max(len(runs) for of_data in results.values() for runs in of_data.values()),
        "results": results,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    unfinished = path.with_suffix(".unfinished")  # an interruption leaves the file before
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def load(path: Path) -> Results:
    """Return the results of a file that `save` wrote."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        runs = [run for of_data in results.values() for run in chain(*of_data.values())]
        lacking = [key for key in NEEDED if any(key not in run for run in runs)]
        if lacking:
            raise KeyError(*lacking)
        return results
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of results ({error!r}); delete it") from error
