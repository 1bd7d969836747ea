"""Figures of a table: speed-up, time and memory over n, as SVG files that read on light and dark pages."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from triton_lu.bench.problems import PROBLEMS
from triton_lu.command import InputError

GREY = "#808080"
COLUMNS = 3
SPACING = 0.075  # of labels, in heights of a panel
KINDS = {"single": "o-", "batch": "o--", "smaller batch": "o"}
FACES = {"smaller batch": "none"}
End = tuple[float, int, str, str]
"""Of a line: its last value, the n there, its name and its colour."""
# Okabe and Ito's colours, which colour-blind people tell apart, without those that vanish on white or black
COLOURS = {
    "float32": "#0072B2",
    "float64": "#D55E00",
    "complex64": "#009E73",
    "complex128": "#CC79A7",
    "triton_lu": "#0072B2",
    "torch": "#D55E00",
    "torch.compile": "#E69F00",
    "jax": "#009E73",
    "flag_gems": "#CC79A7",
    "roofline": GREY,
}
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.5,
    "lines.markersize": 3,
    "savefig.transparent": True,
    "svg.hashsalt": "triton_lu",  # the same file for the same table
}


def draw(table: Path) -> Iterator[Path]:
    """Writes a table's figures beside it."""
    rows = _read(table)
    dtype = rows.dtype.iloc[0]
    first = rows[rows.dtype == dtype]
    for name, frame, series, column, label in (
        ("speedup", rows[rows.provider == "triton_lu"], "dtype", "speedup", "speed-up over PyTorch"),
        ("time", _with_roofline(first), "provider", "ms", f"ms per matrix, {dtype}"),
        ("memory", first, "provider", "memory", f"peak memory in matrices, {dtype}"),
    ):
        file = table.with_name(f"{table.stem}-{name}.svg")
        with matplotlib.rc_context(STYLE):
            figure = _figure(frame.dropna(subset=column), series, column, label)
            panels = min(rows.problem.nunique(), COLUMNS)
            figure.suptitle(textwrap.fill(_hardware(rows), 60 * panels), fontsize=9)
            figure.savefig(file, metadata={"Date": None})
        yield file


def _read(table: Path) -> pd.DataFrame:
    """What was measured of square matrices."""
    try:
        rows = pd.read_csv(table)
        rows = rows[(rows.status == "ok") & (rows.m == rows.n)]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{table}: no table of measurements: {error}") from error
    if rows.empty:
        raise InputError(f"{table}: holds no measurement of square matrices")
    kind = np.where(rows.batch == 1, "single", "batch")
    largest = rows.groupby(["problem", "dtype", "n"]).batch.transform("max")
    kind = np.where((rows.batch < largest) & (kind == "batch"), "smaller batch", kind)
    return rows.assign(kind=kind, ms=rows.ms / rows.batch)


def _with_roofline(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, and as one more provider the least time at the measured speeds of copies and products."""
    least = rows.ms * rows[["of_copy", "of_matmul"]].max(axis=1)
    roofline = rows[rows.provider == "triton_lu"].assign(provider="roofline", kind="single", ms=least)
    return pd.concat([roofline.drop_duplicates(["problem", "n"]), rows])


def _hardware(rows: pd.DataFrame) -> str:
    """On what and with what all of the rows were measured."""

    def every(column: str) -> str:
        values = rows[column].astype(str).unique()
        return " and ".join(values) if len(values) < 4 else f"{len(values)} different"

    return (
        f"{every('device')}, threads: {every('threads')}, torch {every('torch')}, triton {every('triton')}, "
        f"triton_lu {every('triton_lu')}, commits: {every('commit')}"
    )


def _figure(rows: pd.DataFrame, series: str, column: str, label: str) -> Figure:
    """A panel for every problem, in it a line for every series.

    Solid for single matrices; for batches dashed through the largest of every n, with circles for smaller ones.
    """
    problems = [name for name in PROBLEMS if name in set(rows.problem)]
    width = min(len(problems), COLUMNS)
    height = 1 + (len(problems) - 1) // COLUMNS
    figure = Figure(figsize=(11 / 3 * width, 0.4 + 3.1 * height), layout="constrained")
    grid = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(problems) :]:
        axes.set_visible(False)
    ends: dict[Axes, list[End]] = {}
    for problem, axes in zip(problems, grid.flat, strict=False):
        if column == "speedup":
            axes.axhline(1, color=GREY, linewidth=2)
        lines = rows[rows.problem == problem].sort_values(["n", "batch"]).groupby([series, "kind"], sort=False)
        for (name, kind), line in lines:
            axes.plot(
                line.n, line[column], KINDS[kind], color=COLOURS[name], markerfacecolor=FACES.get(kind, COLOURS[name])
            )
            if kind != "smaller batch":
                text = f"{name}, batch" if kind == "batch" else name
                ends.setdefault(axes, []).append((line[column].iloc[-1], line.n.iloc[-1], text, COLOURS[name]))
        for n, batches in rows[(rows.problem == problem) & (rows.kind == "smaller batch")].groupby("n"):
            for batch, points in batches.groupby("batch"):
                axes.annotate(f"{batch:,}", (n, points[column].max()), (0, 3), textcoords="offset points", fontsize=6)
        axes.set_title(problem)
        axes.set_xscale("log", base=2)
        if column != "memory":
            axes.set_yscale("log", base=10 if column == "ms" else 2)
        axes.tick_params(labelbottom=True, labelleft=True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    if column == "memory":
        grid[0, 0].set_ylim(bottom=0)
    for axes in grid[:, 0]:
        axes.set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xlabel("n")
    for axes, named in ends.items():  # now that the limits, which panels share, are final
        _label(axes, named)
    return figure


def _label(axes: Axes, ends: list[End]) -> None:
    """Names the lines on the right, joined to their ends, and moved apart as far as it takes to read them."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform((1, value))[1] for value, *_ in sorted(ends)]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + SPACING)
    for i in reversed(range(len(heights))):  # and down again, if the last is above the top
        heights[i] = min(heights[i], 1 - SPACING * (len(heights) - 1 - i))
    for height, (value, n, text, colour) in zip(heights, sorted(ends), strict=True):
        axes.annotate(
            text,
            (n, value),
            (1.03, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6},
        )
