"""Cluster imbalanced data without labels, by transport methods and the usual baselines.

    python -m examples.deep_clustering icd languages --seeds 5
    python -m examples.deep_clustering features --root my_features.npz --classes 40

prints a table for each data set and writes results.json, results.md and pictures. Runs that
results.json has already are not repeated, and an interrupted one goes on from its last round.
"""

import argparse
import contextlib
import itertools
import logging
import re
import shlex
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tqdm import tqdm

from . import pictures, report
from .baselines import BASELINES
from .data import LOADERS, Dataset, check_options, load
from .features import file_identity
from .methods import METHODS
from .metrics import scores
from .starts import IndistinctError, Start, start
from .training import CheckpointError, Settings, Training

PROGRAM = "python -m examples.deep_clustering"
FIXED = ("icd",)  # its samples are the same for every seed
FEWEST_CLASSES = 3  # that scores by class size tell apart


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    add, known = parser.add_argument, [*BASELINES, *METHODS]
    add("data", nargs="+", choices=LOADERS, metavar="DATA", help=", ".join(LOADERS))
    add(
        "--methods",
        nargs="+",
        choices=known,
        metavar="METHOD",
        help="default: all",
    )
    add("--seeds", type=positive, default=3, help="seeds from 0 (default 3)")
    add("--output", type=Path, default=Path(__file__).parents[1] / "output", help="folder")
    add("--restart", action="store_true", help="forget earlier results in the folder")
    add("--device", type=usable_device, default="cpu", help="of Torch (default cpu)")
    add("--threads", type=positive, default=torch.get_num_threads(), help="of Torch on the CPU")
    source = parser.add_argument_group("data")
    add = source.add_argument
    add("--root", type=Path, help="folder or file of data on your disk")
    add("--features", help="kind of features: digits pixels|pca, icd minilm|tfidf, ...")
    add("--classes", type=positive, help="number of clusters, where the data do not tell")
    add("--imbalance", type=float, help="largest over smallest class, of long-tailed sets")
    add("--checkpoint", type=Path, help="DINO weights, for image folders")
    training = parser.add_argument_group("training")
    defaults = asdict(Settings())
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        training.add_argument(
            option, type=type(default), default=default, help=f"default {default}"
        )
    options = parser.parse_args(arguments)
    options.methods = [name for name in known if name in (options.methods or known)]
    try:
        options.training = Settings(**{name: getattr(options, name) for name in defaults})
        for name in options.data:
            check_options(name, data_options(options))
    except ValueError as error:
        parser.error(str(error))
    return options


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return number


def usable_device(text: str) -> str:
    """Read the name of a device of Torch that is there."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {reason}") from None
    return text


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End the program without a traceback where the user can mend what is wrong."""
    try:
        yield
    except kinds as error:
        sys.exit(f"{PROGRAM}: error: {error}")


def data_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that say which data."""
    return {
        "root": options.root,
        "features": options.features,
        "n_classes": options.classes,
        "imbalance": options.imbalance,
        "checkpoint": options.checkpoint,
    }


def load_data(name: str, seed: int, options: argparse.Namespace) -> Dataset:
    """Load a data set with the options that were given; it gets the name of the command line."""
    seed = 0 if name in FIXED else seed
    data = load(name, seed=seed, device=options.device, **data_options(options))
    if data.labels is not None and data.n_classes < FEWEST_CLASSES:
        raise ValueError(
            f"data set {name} has labels of {data.n_classes} classes, and the scores by class "
            f"size need {FEWEST_CLASSES}; leave the labels out and give --classes"
        )
    return replace(data, name=name)


def settings_of(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run depends on besides data set, method and seed."""
    data = {name: getattr(options, name) for name in ("features", "classes", "imbalance")}
    paths = {name: getattr(options, name) for name in ("root", "checkpoint")}
    return {
        **data,
        **{
            name: file_identity(path) if path.is_file() else str(path)
            for name, path in paths.items()
            if path is not None
        },
        **(METHODS[method].settings() if method in METHODS else {}),
        **(asdict(options.training) if method in METHODS else {}),
    }


def cluster(
    begin: Start, method: str, options: argparse.Namespace, bar: tqdm
) -> tuple[np.ndarray, dict[str, Any]]:
    """Cluster by one method; return the clusters (N,) and what a training tells of itself."""
    data = begin.data
    if method in BASELINES:
        clusters = BASELINES[method](begin)
        return clusters, {
            "start_seconds": None,
            "labelling_seconds": None,
            "history": None,
            "statuses": {},
        }
    training = Training(begin, METHODS[method], options.training, options.device)

    def follow() -> None:
        """Note the accuracy; the training does not see it."""
        if data.labels is not None:
            accuracy = scores(data.labels, training.clusters())["accuracy"]
            training.history.accuracy.append(accuracy)
        rounds = f"{training.round}/{training.settings.rounds}"
        bar.set_postfix_str(f"{data.name}, {method}, round {rounds}")

    checkpoint = checkpoint_of(begin, method, options)
    if options.restart:
        checkpoint.unlink(missing_ok=True)
    training.run(checkpoint, follow)
    told = asdict(training.history)
    return training.clusters(), {
        "start_seconds": told.pop("start_seconds"),
        "seconds": told.pop("seconds"),
        "labelling_seconds": told.pop("labelling_seconds"),
        "statuses": told.pop("statuses"),
        "history": told,
    }


def make_run(begin: Start, method: str, options: argparse.Namespace, bar: tqdm) -> report.Run:
    """Cluster by one method, save the clusters, and return what is stored of the run."""
    labels, n_classes, began = begin.data.labels, begin.data.n_classes, time.perf_counter()
    clusters, told = cluster(begin, method, options, bar)
    seconds = time.perf_counter() - began
    path = options.output / f"{file_name(begin, method)}.npz"
    np.savez_compressed(path, clusters=clusters.astype(np.int32))
    return {
        "seed": begin.seed,
        "settings": settings_of(method, options),
        "scores": {} if labels is None else scores(labels, clusters),
        "seconds": seconds,
        **told,
        "class_sizes": largest_first(clusters, n_classes),
        "true_class_sizes": None if labels is None else largest_first(labels, n_classes),
    }


def largest_first(clusters: np.ndarray, n_classes: int) -> list[int]:
    """Return the class sizes in falling order."""
    return sorted(np.bincount(clusters, minlength=n_classes).tolist(), reverse=True)


def file_name(begin: Start, method: str) -> str:
    """Name the files of one run, in ASCII."""
    name = unicodedata.normalize("NFKC", f"{begin.data.name} {method} {begin.seed}")
    return re.sub("[,()]", "", name).replace(" ", "-")


def checkpoint_of(begin: Start, method: str, options: argparse.Namespace) -> Path:
    """Return where the state of an unfinished training is."""
    return options.output / f"{file_name(begin, method)}.checkpoint"


def run_all(options: argparse.Namespace, command: str) -> report.Results:
    """Return the runs that were asked for, making those that the folder has no results of."""
    path = options.output / "results.json"
    with one_line_errors(ValueError):
        stored = {} if options.restart or not path.exists() else report.load(path)
    jobs = list(itertools.product(options.data, range(options.seeds)))
    with tqdm(total=len(jobs) * len(options.methods), unit="run", dynamic_ncols=True) as bar:
        for name, seed in jobs:
            runs = {
                method: stored.setdefault(name, {}).setdefault(method, [])
                for method in options.methods
            }
            missing = [m for m in options.methods if not is_there(runs[m], m, seed, options)]
            bar.update(len(options.methods) - len(missing))
            if not missing:
                continue
            bar.set_postfix_str(f"{name}, start")
            with one_line_errors(ImportError, OSError, ValueError):
                begin = start(load_data(name, seed, options), options.training.heads, seed)
            for method in missing:
                bar.set_postfix_str(f"{name}, {method}")
                with one_line_errors(CheckpointError, IndistinctError):
                    run = {**make_run(begin, method, options, bar), "command": command}
                runs[method][:] = [known for known in runs[method] if known["seed"] != seed] + [run]
                report.save(stored, path)
                checkpoint_of(begin, method, options).unlink(missing_ok=True)
                bar.update()
    return {
        name: {
            method: sorted(
                (run for run in stored[name][method] if run["seed"] < options.seeds),
                key=lambda run: run["seed"],
            )
            for method in options.methods
        }
        for name in options.data
    }


def is_there(runs: list[report.Run], method: str, seed: int, options: argparse.Namespace) -> bool:
    """Tell whether a run with these settings is among the stored ones."""
    wanted = settings_of(method, options)
    return any(run["seed"] == seed and run["settings"] == wanted for run in runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the methods; print tables, write pictures and numbers."""
    options, console = parse(arguments), Console()
    logging.basicConfig(format="%(message)s")
    logging.getLogger(__package__).setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    with one_line_errors(OSError):
        options.output.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "examples.deep_clustering", *(arguments or sys.argv[1:])])
    results = run_all(options, command)
    scored = {name: runs for name, runs in results.items() if has_scores(runs)}
    report.print_tables(scored, console)
    report.print_solver_share(results, console)
    if scored:
        (options.output / "results.md").write_text(report.markdown_table(scored), encoding="utf-8")
        pictures.draw_comparison(scored, options.output / "comparison.png")
        pictures.draw_class_sizes(scored, options.output / "class_sizes.png")
        pictures.draw_training(scored, options.output / "training.png")
    console.print(f"clusters, numbers and pictures are in {options.output}")


def has_scores(runs: report.Runs) -> bool:
    """Tell whether the true labels of a data set are known."""
    return all(run["scores"] for of_method in runs.values() for run in of_method)


if __name__ == "__main__":
    main()
