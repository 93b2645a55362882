"""Write what was measured as Markdown and JSON."""

from collections import Counter

from benchmarks.honesty import ALLOWED, TOLERANCE, Outcome
from benchmarks.text import number, seconds, table, to_json

UNIT = "ssot"


def write(results, folder):
    """Write benchmarks.md and benchmarks.json into a folder, made if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(to_json(results), encoding="utf-8")
    (folder / "benchmarks.md").write_text(markdown(results), encoding="utf-8")


def markdown(results):
    """Return the whole report."""
    parts = [_introduction(results)]
    if results["cases"]:
        parts += [_overview(results["cases"]), *map(_details, results["cases"])]
    if results["honesty"]:
        parts.append(_honesty(results["honesty"]))
    parts += map(_growth, results["growth"])
    parts += map(training_step, results["steps"])
    if results["streams"]:
        parts.append(streams(results["streams"]))
    return "\n\n".join(parts) + "\n"


def _introduction(results):
    machine, first = results["machine"], results["first_solve"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    threads = ", ".join(f"{name} {count}" for name, count in machine["threads"].items())
    size = "Quick run on much smaller problems: the titles give the full sizes.\n\n"
    return (
        "# Benchmarks\n\n"
        f"{size if results['settings']['quick'] else ''}"
        f"{machine['processor']}, cores: {machine['cores']}, threads: {threads}; "
        f"{machine['system']}, Python {machine['python']}, ssot {machine['ssot']} with its "
        f"{first['backend']} backend, {versions}.\n\n"
        f"Medians of up to {results['settings']['repeats']} runs in one process, all competitors "
        "in turns, each asked for the loosest tolerance, in steps of ten, that gives its plan the "
        f"accuracy. Whoever does not reach it within {results['settings']['budget']:g} s is said "
        f"to miss it. The first solve of a process took {first['first']:.2f} s, the same solve "
        f"again {first['again']:.4f} s; all other times are without first calls."
    )


def _times(case, measurement):
    """Return how many times as long as the case's unit a competitor takes, or None."""
    unit = next(m for m in case["measurements"] if m["competitor"] == case["unit"])
    if measurement["median"] is None or not unit["median"]:
        return None
    return measurement["median"] / unit["median"]


def _verdict(measurement):
    """Return a few words on a competitor in the overview."""
    if measurement["note"]:
        return measurement["note"]
    words = seconds(measurement["median"])
    if measurement["meets_accuracy"] is False:
        reached = measurement["residual"] if measurement["gap"] is None else measurement["gap"]
        words += f", accuracy missed: {number(reached)}"
    return words


def _overview(cases):
    rows = []
    for case in cases:
        for measurement in case["measurements"]:
            times = _times(case, measurement)
            rows.append(
                (
                    case["title"] if measurement is case["measurements"][0] else "",
                    measurement["competitor"],
                    "–" if times is None else f"{times:.3g}",
                    _verdict(measurement),
                )
            )
    header = ("problem", "competitor", "times", "median")
    explanation = (
        "How many times as long as ssot everybody takes; where the other is a yardstick that "
        "solves nothing, as long as the yardstick."
    )
    return f"## Overview\n\n{explanation}\n\n{table(header, rows)}"


def _details(case):
    is_semantic = any(m["gap"] is not None for m in case["measurements"])
    rows = [_detail(measurement, is_semantic) for measurement in case["measurements"]]
    what = "gap" if is_semantic else "residual"
    return (
        f"## {case['title']}\n\nAccuracy: a {what} of {case['accuracy']:g}.\n\n"
        f"{table(_header(is_semantic), rows)}"
    )


def _header(is_semantic):
    """Return the columns of `_detail`."""
    measures = ("gap", "objective") if is_semantic else ("distance to the optimum",)
    return (
        *("competitor", "median", "runs", "asked for", "residual", *measures),
        *("accuracy met", "said converged", "remark"),
    )


def _detail(measurement, is_semantic):
    found = measurement
    if found["note"]:
        return (found["competitor"], found["note"], *["–"] * (8 if is_semantic else 7))
    value = "–" if found["objective"] is None else f"{found['objective']:.8f}"
    measures = (number(found["gap"]), value) if is_semantic else (number(found["distance"]),)
    return (
        *(found["competitor"], seconds(found["median"]), len(found["seconds"])),
        *(number(found["tolerance"]), number(found["residual"]), *measures),
        *(_yes(found["meets_accuracy"]), _yes(found["said_converged"]), found["remark"] or "–"),
    )


def _yes(value):
    return "–" if value is None else "yes" if value else "no"


def _honesty(records):
    settings = {r["competitor"]: (number(r["tolerance"]), r["iterations"] or "–") for r in records}
    rows = []
    for name, asked in settings.items():
        counts = Counter(r["outcome"] for r in records if r["competitor"] == name)
        outcomes = (counts[outcome.value] for outcome in Outcome)
        rows.append((name, *asked, counts.total(), *outcomes))
    outcomes = (outcome.value for outcome in Outcome)
    header = ("library", "asked for", "iterations", "problems stated", *outcomes)
    return (
        "## Wrong plans without a word\n\n"
        "The hard grid of linear problems in float64, each library with its own cap of iterations "
        f"and its own tolerance, at most {TOLERANCE:g}. Right: a residual of at most {ALLOWED:g}, "
        "since libraries measure different things. Said so: an exception, a warning (NumPy's "
        "count), a printed message or a flag; the published scaling is taken to say so where it "
        "hits its cap.\n\n"
        f"{table(header, rows)}"
    )


def _growth(growth):
    rows = [
        (f"{samples:,} x {classes:,}", *_detail(found, is_semantic=False)[1:])
        for (samples, classes), found in zip(growth["sizes"], growth["measurements"], strict=True)
    ]
    return (
        f"## {growth['title']}\n\nCold P²OT in float32 at rho 0.1 to a residual of "
        f"{growth['accuracy']:g}. Fitted exponent: {growth['exponent']:.2f}.\n\n"
        f"{table(('N x K', *_header(is_semantic=False)[1:]), rows)}"
    )


def streams(found):
    """Return the section on costs that are read from a file."""
    header = ("problem", "ended", "seconds", "reads", "residual", "gap", "steps", "private memory")
    rows = [
        (
            f"{each['name']}, {each['samples']:,} x {each['classes']:,}",
            each["status"].lower(),
            ", ".join(map(seconds, each.get("all_seconds", [each["seconds"]]))),
            each["reads"],
            number(each["residual"]),
            number(each["gap"]),
            each["steps"],
            f"{each['private_peak'] / 1e9:.2f} GB",
        )
        for each in found
    ]
    softmaxes = [
        f"\n\nAs many softmax passes over the file of {each['samples']:,} x {each['classes']:,}: "
        f"{', '.join(map(seconds, each['softmax_seconds']))} into a reused buffer, "
        f"{', '.join(map(seconds, each['softmax_fresh_seconds']))} into new ones."
        for each in found
        if "softmax_seconds" in each
    ]
    return (
        "## Larger than memory\n\nCosts read from a file of float32, rho 0.3.\n\n"
        f"{table(header, rows)}{''.join(softmaxes)}"
    )


def training_step(found):
    """Return the section on what pseudo-labels take of a training step."""
    networks = found["networks"]
    rows = [
        _labelled(point, name, networks) for point in found["points"] for name in point["labels"]
    ]
    made_of = "\n".join(
        f"- {name}, {network['parameters']:,} parameters: {network['layers']}"
        for name, network in networks.items()
    )
    columns = [heading for name in networks for heading in (name, "labels / it")]
    header = ("progress", "rho", "accuracy", "labels for", "median", "runs", *columns, "ended")
    return (
        "## Pseudo-labels in a training step\n\n"
        f"{found['samples']:,} samples in {found['classes']} classes, 20 neighbours, batches of "
        f"{found['batch']:,} in two views; at least {found['held']:,} samples solved for. "
        "Networks: forward pass, loss, backward pass and update, in the same steps; the "
        "transformer once at each point of the ramp. Medians; accuracy is the heads' in the "
        "batches.\n\n"
        f"{made_of}\n\n{table(header, rows)}"
    )


def _labelled(point, name, networks):
    labels = point["labels"][name]
    beside = (
        cell
        for each in networks
        for cell in (seconds(point["networks"][each]["median"]), f"{labels['ratios'][each]:.2g}")
    )
    ended = ", ".join(f"{count} {status.lower()}" for status, count in labels["statuses"].items())
    return (
        point["progress"],
        f"{point['rho'][0]:.3f} to {point['rho'][1]:.3f}",
        f"{point['accuracy']:.0%}",
        name,
        seconds(labels["median"]),
        len(labels["seconds"]),
        *beside,
        ended,
    )
