"""Measure the Torch backend on a CUDA device; write JSON, and beside it the same as Markdown.

    python -m benchmarks.gpu [--only NAME ...] [--quick] [--device cpu] [--output FILE]

The files are brought up to date after each section, so that a run may be stopped at any time.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import device, machine
from benchmarks.competitors import UnavailableError
from benchmarks.device import Setting, first_line
from benchmarks.gpu_cases import SECTIONS
from benchmarks.text import number, seconds, table, to_json

OUTPUT = Path(__file__).parent / "output" / "gpu.json"
NO_DEVICE = (
    "no CUDA device was found and nothing was measured; --device cpu runs the same code on the CPU"
)


def arguments(given):
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", default=SECTIONS)
    parser.add_argument("--quick", action="store_true", help="much smaller problems, as a check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each (default 10)")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds for the timed runs of each (60)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    return parser.parse_args(given)


def run_section(measure, setting):
    """Return a section of the report; without groups, but with the reason, if it was left out."""
    section = {"title": measure.__doc__.rstrip("."), "groups": [], "left_out": ""}
    try:
        section["groups"] = measure(setting)
    except (UnavailableError, torch.cuda.OutOfMemoryError) as error:
        section["left_out"] = first_line(error)
    return section


def write(results, path):
    """Write the JSON file, and the report beside it; the folder is made if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(results), encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(results), encoding="utf-8")


def _whole(value):
    return "–" if value is None else f"{value:.3g}"


def _gibibytes(value):
    return "–" if value is None else f"{value / 2**30:.3g} GiB"


def _yes(value):
    return "–" if value is None else "yes" if value else "no"


COLUMNS = (
    ("median", "median", seconds),
    ("lowest", "lowest", seconds),
    ("highest", "highest", seconds),
    ("times", "times", _whole),
    ("peak_bytes", "peak memory", _gibibytes),
    ("bytes_before", "of it before", _gibibytes),
    ("bytes_per_second", "bytes a second", _whole),
    ("share_of_copy", "share of a copy's", _whole),
    ("column_residual", "column residual", number),
    ("relative_gap", "relative gap", number),
    ("measured_relative_gap", "relative gap, measured", number),
    ("residual", "residual, measured", number),
    ("adjoint_residual", "residual of the adjoint", number),
    ("distance", "distance to the first plan", number),
    ("converged", "said converged", _yes),
)
"""Key, heading and format of what a record may hold."""


def markdown(results):
    """Return the report."""
    parts = [_introduction(results)]
    for section in results["sections"].values():
        parts.append(f"## {section['title']}")
        parts += [section["left_out"]] if section["left_out"] else []
        parts += [_group(group) for group in section["groups"]]
    return "\n\n".join(parts) + "\n"


def _introduction(results):
    used, settings = results["device"], results["settings"]
    quick = "Quick run on much smaller problems.\n\n" if settings["quick"] else ""
    tf32 = "allowed" if used["tf32_allowed"] else "not allowed"
    return (
        f"# Benchmarks on {used['name'] or results['machine']['processor']}\n\n{quick}"
        f"Driver {used['driver'] or 'none'}, CUDA {used['cuda'] or 'none'}, Torch {used['torch']}; "
        f"TF32 {tf32} in products of float32, precision {used['float32_matmul_precision']}; ssot "
        f"{results['machine']['ssot']}.\n\n"
        f"Medians of up to {settings['repeats']} runs in turns, after two that do not count, of at "
        f"most {settings['budget']:g} s in all for each contestant. Times say how often the first "
        "contestant's median fits into another's. What is judged are the plans of the second run: "
        "column residual and relative gap as ssot certifies them, the measured ones by "
        "`benchmarks.measure`, the same for all; residuals and distances in L1, of a total mass of "
        "1. Peak memory is the most that Torch had allocated during one run; the part "
        "before it are the data of all contestants so far.\n\n"
        "A copy counts the bytes that it reads and those that it writes; a row pass counts each "
        "cost once, as read, and nothing else."
    )


def _group(group):
    records = group["records"]
    columns = [each for each in COLUMNS if any(r.get(each[0]) is not None for r in records)]
    header = ("", *(heading for _, heading, _ in columns), "runs", "remark")
    rows = [
        (
            record["competitor"],
            *(show(record.get(key)) for key, _, show in columns),
            len(record["seconds"]),
            record["note"] or record.get("remark", "–"),
        )
        for record in records
    ]
    return f"### {group['title']}\n\n{table(header, rows)}"


def main(given=None):
    """Run the chosen sections."""
    options = arguments(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(NO_DEVICE)
    index = torch.cuda.current_device() if options.device == "cuda" else None
    place = torch.device(options.device, index)
    setting = Setting(place, options.quick, options.repeats, options.budget)
    settings = {"quick": setting.is_quick, "repeats": setting.repeats, "budget": setting.budget}
    results = {
        "device": device.describe(place),
        "machine": machine.describe(),
        "settings": settings,
        "sections": {},
    }
    for name in options.only:
        print(f"{name} ...", flush=True)
        results["sections"][name] = run_section(SECTIONS[name], setting)
        write(results, options.output)
    print(markdown(results))


if __name__ == "__main__":
    main()
