"""Draw what was measured."""

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

WIDTH = 9.0
# Colours that the colour-blind can tell apart.
COLOURS = {"ssot": "#0072B2", "ssot, warm": "#56B4E9"}
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#555555")
MARKERS = ("s", "^", "D", "v", "x")


def draw(results, folder):
    """Draw all pictures for which there is something to show."""
    if results["cases"]:
        _save(_times(results["cases"]), folder / "times.png")
    if results["curves"]:
        _save(_curves(results["curves"]), folder / "curves.png")
    if results["growth"]:
        _save(_growth(results["growth"]), folder / "growth.png")


def _save(figure, path):
    figure.savefig(path, dpi=150)


def _panels(count, height, columns=2, **options):
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels


def _times(cases):
    """Points on one scale of time: filled where the accuracy was met or none was asked for."""
    figure, panels = _panels(len(cases), height=1.5, sharex=True)
    for panel, case in zip(panels, cases, strict=False):
        shown = [m for m in case["measurements"] if m["median"] is not None][::-1]
        for row, found in enumerate(shown):
            colour = COLOURS.get(found["competitor"], "#555555")
            is_missed = found["meets_accuracy"] is False
            face = "white" if is_missed else colour
            panel.plot(found["median"], row, "o", color=colour, markerfacecolor=face)
        panel.set_xscale("log")
        panel.set_yticks(range(len(shown)), [m["competitor"] for m in shown])
        panel.set_ylim(-0.5, len(shown) - 0.5)
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(textwrap.fill(case["title"], 52), fontsize=7)
        panel.tick_params(labelsize=7)
    figure.supxlabel("seconds (hollow: accuracy missed)", fontsize=8)
    return figure


def _curves(curves):
    """Lines: the residual that each competitor reaches in a time."""
    figure, panels = _panels(len(curves), height=3.0)
    for panel, curve in zip(panels, curves, strict=False):
        others = iter(zip(OTHERS, MARKERS, strict=True))
        for name, points in curve["points"].items():
            colour, marker = (COLOURS[name], "o") if name in COLOURS else next(others)
            times, residuals = np.array(points).reshape(-1, 2).T
            panel.loglog(times, residuals, color=colour, marker=marker, markersize=4, label=name)
        panel.set_title(curve["title"], fontsize=8)
        panel.set_xlabel("seconds", fontsize=8)
        panel.set_ylabel("residual", fontsize=8)
        _finish(panel)
    return figure


def _finish(panel):
    panel.tick_params(labelsize=7)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_minor_formatter(NullFormatter())
    panel.legend(fontsize=7)


def _growth(growths):
    """Points and the fitted power of the size."""
    figure, panels = _panels(len(growths), height=3.0)
    for panel, growth in zip(panels, growths, strict=False):
        axis = growth["axis"]
        sizes = np.array([size[axis] for size in growth["sizes"]], float)
        times = np.array([found["median"] for found in growth["measurements"]])
        panel.loglog(sizes, times, color=COLOURS["ssot"], marker="o", linestyle="none")
        scale = np.exp(np.mean(np.log(times) - growth["exponent"] * np.log(sizes)))
        panel.loglog(
            sizes,
            scale * sizes ** growth["exponent"],
            color="#555555",
            label=f"exponent {growth['exponent']:.2f}",
        )
        panel.set_title(growth["title"], fontsize=8)
        panel.set_xlabel("samples" if axis == 0 else "classes", fontsize=8)
        panel.set_ylabel("seconds", fontsize=8)
        _finish(panel)
    return figure
