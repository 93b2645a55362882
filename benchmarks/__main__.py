"""Run the benchmarks and write report, data and pictures.

    python -m benchmarks [--only NAME ...] [--quick] [--repeats R] [--budget S] [--output FOLDER]

Report and data are brought up to date after each part, so that a run may be stopped at any time;
pictures are drawn at the end.
"""

import argparse
import gc
from dataclasses import asdict
from pathlib import Path

from benchmarks import honesty, machine, pictures, report, streaming, training_step
from benchmarks.cases import CASES
from benchmarks.curves import curves
from benchmarks.growth import ACCURACY as GROWTH_ACCURACY
from benchmarks.growth import GROWTHS
from benchmarks.hard_problems import COST_FAMILIES
from benchmarks.timing import compare

OUTPUT = Path(__file__).parent / "output"
CURVES, HONESTY = "curves", "honesty"


def arguments():
    """Return the parsed command line."""
    names = [each.name for each in (*CASES, *GROWTHS)]
    names += [CURVES, HONESTY, training_step.NAME, streaming.NAME]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time ssot side by side with other solvers at equal accuracy.",
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", default=names, help=", ".join(names)
    )
    parser.add_argument("--quick", action="store_true", help="much smaller problems, as a check")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument(
        "--budget",
        type=float,
        default=300.0,
        help="seconds for each competitor to reach the accuracy, and again to be timed (300)",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for what is written")
    return parser.parse_args()


def measured(measurement):
    """Return a measurement with its median, as plain data."""
    return asdict(measurement) | {"median": measurement.median}


def run_case(case, options):
    """Return what a case's competitors did."""
    problem, competitors = case.make(options.quick)
    found = compare(problem, competitors, case.accuracy, options.repeats, options.budget)
    yardstick = next((each.name for each in competitors if each.is_yardstick), report.UNIT)
    return {
        "name": case.name,
        "title": case.title,
        "accuracy": case.accuracy,
        "unit": yardstick,
        "measurements": [measured(each) for each in found],
    }


def run_growth(growth, options):
    """Return how the time grows along one series of problems."""
    sizes, found, exponent = growth.measure(options.quick, options.repeats, options.budget)
    return {
        "name": growth.name,
        "title": growth.title,
        "axis": growth.axis,
        "accuracy": GROWTH_ACCURACY,
        "sizes": sizes,
        "exponent": exponent,
        "measurements": [measured(each) for each in found],
    }


def run_curve(case, options):
    """Return the residual against time of a case's competitors."""
    problem, competitors = case.make(options.quick)
    return {"name": case.name, "title": case.title, "points": curves(problem, competitors)}


def parts(options):
    """Yield for each part its name, the list that its result belongs to, and how to run it."""
    for case in CASES:
        yield case.name, "cases", lambda case=case: [run_case(case, options)]
    for growth in GROWTHS:
        yield growth.name, "growth", lambda growth=growth: [run_growth(growth, options)]
    for case in CASES:
        if case.has_curve:
            yield CURVES, "curves", lambda case=case: [run_curve(case, options)]
    for family in COST_FAMILIES:
        yield HONESTY, "honesty", lambda family=family: honesty.survey(family, options.quick)
    yield training_step.NAME, "steps", lambda: [training_step.measure(options.quick)]
    for name in streaming.CASES:
        yield streaming.NAME, "streams", lambda name=name: [streaming.measure(name, options.quick)]


def main():
    """Run the chosen parts."""
    options = arguments()
    gc.freeze()  # imported libraries never become garbage; each timed run collects what does
    results = {
        "first_solve": machine.first_solve(),
        "machine": machine.describe(),
        "settings": {
            "quick": options.quick,
            "repeats": options.repeats,
            "budget": options.budget,
        },
        "cases": [],
        "growth": [],
        "curves": [],
        "honesty": [],
        "steps": [],
        "streams": [],
    }
    for name, kind, run in parts(options):
        if name in options.only:
            print(f"{name} ...", flush=True)
            results[kind] += run()
            report.write(results, options.output)
    pictures.draw(results, options.output)
    print(report.markdown(results))


if __name__ == "__main__":
    main()
