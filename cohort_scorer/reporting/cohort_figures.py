"""Figures of who is in: the flow of patients, and the days between their scans; from the published tables alone."""

import textwrap
from collections.abc import Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cohort_scorer.reporting import canvas, wording
from cohort_scorer.reporting.canvas import EXPOSURE_COLOURS, INK, MUTED

_STEPS = {"cohort": "Cohort", "analysis": "Survival analysis"}


def attrition(table: pl.DataFrame) -> Figure | None:
    """The flow of patients: one box for everybody who remains, the exclusions between two boxes to the right."""
    if table.is_empty():
        return None
    steps = table.sort(pl.col("step") == "analysis", "order").partition_by("step", maintain_order=True)
    boxes = [("Patients considered", int(steps[0]["n_before"][0]))]
    boxes += [(_STEPS[rows["step"][0]], int(rows["n_after"][-1])) for rows in steps]
    notes = [[_exclusion(*row) for row in rows.select("reason", "n_excluded").iter_rows()] for rows in steps]
    heights = [0.42 + 0.172 * sum(text.count("\n") + 1 for text in note) for note in notes]
    figure, (axis,) = canvas.panels(
        [""], (7.4, sum(heights) + 0.75 * len(boxes)), "Flow of patients", left=0, below=0.1
    )
    axis.set(xlim=(0, 7.4), ylim=(0, sum(heights) + 0.75 * len(boxes)))
    axis.axis("off")
    y = sum(heights) + 0.75 * len(boxes) - 0.35
    for number, (label, n) in enumerate(boxes):
        _box(axis, 1.4, y, 2.5, f"{label}\nn = {n:,}", "bold")
        if number == len(notes):
            break
        lower = y - heights[number] - 0.75
        arrow = {"arrowstyle": "-|>", "color": MUTED, "lw": 1, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (1.4, lower + 0.26), (1.4, y - 0.26), arrowprops=arrow)
        middle = (y + lower) / 2
        axis.annotate("", (3.1, middle), (1.4, middle), arrowprops=arrow)
        n_excluded = boxes[number][1] - boxes[number + 1][1]
        _note(axis, 3.15, middle, heights[number], f"Excluded, n = {n_excluded:,}", notes[number])
        y = lower
    return figure


def _exclusion(reason: str, n: int) -> str:
    return textwrap.fill(f"{wording.sentence(reason)} (n = {n:,})", 58, subsequent_indent="    ")


def _box(axis: Axes, x: float, y: float, width: float, text: str, weight: str) -> None:
    frame = Rectangle((x - width / 2, y - 0.26), width, 0.52, facecolor="#eef3f8", edgecolor=INK, lw=1)
    axis.add_patch(frame)
    axis.text(x, y, text, ha="center", va="center", weight=weight, linespacing=1.35)


def _note(axis: Axes, x: float, y: float, height: float, heading: str, lines: Sequence[str]) -> None:
    axis.add_patch(Rectangle((x, y - height / 2), 4.2, height, facecolor="white", edgecolor=MUTED, lw=0.8))
    axis.text(x + 0.12, y + height / 2 - 0.1, heading, weight="bold", va="top", fontsize=8.5)
    axis.text(x + 0.12, y + height / 2 - 0.29, "\n".join(lines), va="top", fontsize=8.5, linespacing=1.4)


def interval(table: pl.DataFrame) -> Figure | None:
    """Patients by the days from CT to radiograph, a panel for all of them and for each site; the same day is darker."""
    if table.is_empty():
        return None
    parts = table.partition_by("site", as_dict=True, maintain_order=True)
    titles = [f"{wording.place(site)}, n = {part['n'].sum():,}" for (site,), part in parts.items()]
    figure, axes = canvas.panels(titles, (2.5, 1.7), "Days from CT to radiograph", margin=0.25, below=1.05)
    for number, (axis, part) in enumerate(zip(axes, parts.values(), strict=True)):
        limits = list(part.select("lower_days", "upper_days").iter_rows())
        colours = [INK if lower == upper == 0 else EXPOSURE_COLOURS["cxr"] for lower, upper in limits]
        axis.bar(range(len(limits)), part["n"].to_list(), width=0.9, color=colours)
        axis.set_xticks(range(len(limits)), [_days(*pair) for pair in limits], rotation=90, fontsize=7)
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.set_xlim(-0.6, len(limits) - 0.4)
        if number % 3 == 0:
            axis.set_ylabel("Patients")
    return figure


def _days(lower: int, upper: int) -> str:
    text = f"{lower}" if lower == upper else f"{lower} to {upper}"
    return text.replace("-", "\N{MINUS SIGN}")
