"""Kaplan-Meier figures with the counts under the axis (KMunicate: Morris et al., BMJ Open 2019), and the forest plot.

Kaplan-Meier is drawn as 1 - survival, on one scale for all panels of a figure; competing events are censored in it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cohort_scorer.reporting import canvas, wording
from cohort_scorer.reporting.canvas import CATEGORIES, CATEGORY_COLOURS, EXPOSURE_COLOURS, EXPOSURE_MARKERS, GRID, MUTED

YEAR_DAYS = 365.25
_COUNTS = {"n_at_risk": "At risk", "cumulative_events": "Events", "cumulative_censored": "Censored"}
_SCALES = (2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100)
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_DECADES = (0.1, 1, 10, 100)
_TICKS_PER_INCH = 3.5
_LINE = 0.155
"""Inches between two lines of counts."""
_PIXELS = 300
"""Steps drawn per curve at most: finer ones could not be seen and would make the page heavy."""


def kaplan_meier(table: pl.DataFrame, at_risk: pl.DataFrame) -> Iterator[tuple[str, Figure]]:
    """One figure per exposure with a panel per site and origin, and one with the exposures side by side.

    Args:
        table: kaplan_meier.csv.
        at_risk: at_risk.csv, whose times make the axis.
    """
    if table.is_empty() or at_risk.is_empty():
        return
    years = float(at_risk.select(pl.col("time_years").max()).item())
    table = _until(table, years * YEAR_DAYS)
    exposures = [name for name in wording.EXPOSURES if name in table["exposure"]]
    for exposure in exposures:
        parts = canvas.groups(table.filter(pl.col("exposure") == exposure))
        counts = dict(canvas.groups(at_risk.filter(pl.col("exposure") == exposure)))
        title = f"Cumulative events by category: {wording.EXPOSURES[exposure]}"
        shown = [(name, rows, counts[name]) for name, rows in parts]
        yield f"kaplan_meier-{exposure}", _curves(shown, title, years)
    if len(exposures) > 1:
        name, rows = canvas.groups(table)[-1]
        counted = canvas.groups(at_risk)[-1][1]
        beside = [
            (wording.EXPOSURES[key], rows.filter(pl.col("exposure") == key), counted.filter(pl.col("exposure") == key))
            for key in exposures
        ]
        yield "kaplan_meier", _curves(beside, f"Cumulative events by true and predicted category: {name}", years)


def cumulative_incidence(table: pl.DataFrame, years: float) -> Figure:
    """Incidence of the event by category with bands, and of what competes with it, dashed; a panel per group.

    Args:
        table: Rows of cumulative_incidence.csv of one exposure.
        years: Where the axis ends.
    """
    table = _until(table, years * YEAR_DAYS, ["cause"])
    highest = 100 * float(table.select(pl.max_horizontal("incidence", "upper").max()).item() or 0)
    scale = next((end for end in _SCALES if end >= 1.05 * highest), 100)
    parts = canvas.groups(table)
    title = f"Cumulative incidence by category: {wording.EXPOSURES[table['exposure'][0]]} (dashed: competing events)"
    figure, axes = canvas.panels([name for name, _ in parts], (2.4, 2.3), title, margin=0.2, left=0.45, right=0.92)
    # As survival, so that the curves are drawn as those of Kaplan and Meier.
    falling = [
        (1 - pl.col(old)).alias(new) for old, new in (("incidence", "survival"), ("upper", "lower"), ("lower", "upper"))
    ]
    for number, (axis, (_, part)) in enumerate(zip(axes, parts, strict=True)):
        ends = []
        for name in CATEGORIES:
            rows = part.filter(pl.col("category") == name).with_columns(falling)
            ends.append((name, _curve(axis, rows.filter(pl.col("cause") == "event"), name, years)))
            other = rows.filter(pl.col("cause") == "competing").with_columns(pl.lit(None, pl.Float64).alias("lower"))
            _curve(axis, other, name, years, dashes=(0, (3, 2)))
        axis.set(xlim=(0, years), ylim=(0, scale), xlabel="Years of follow-up")
        axis.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axis.grid(axis="y", color=GRID, lw=0.7)
        axis.set_axisbelow(True)
        _label_ends(axis, [(name, end) for name, end in ends if end is not None], scale)
        if number % 3 == 0:
            axis.set_ylabel("Cumulative incidence, %")
    return figure


def _until(table: pl.DataFrame, days: float, further: Sequence[str] = ()) -> pl.DataFrame:
    """Rows up to a day; a curve that is followed beyond it is drawn to that day."""
    keys = ["site", "score_origin", "exposure", "category", *further]
    kept = table.filter(pl.col("time_days") <= days)
    beyond = table.filter(pl.col("time_days") > days)
    ends = kept.group_by(keys, maintain_order=True).last().join(beyond, on=keys, how="semi", nulls_equal=True)
    return pl.concat([kept, ends.select(kept.columns).with_columns(pl.lit(days).alias("time_days"))])


def _curves(parts: Sequence[tuple[str, pl.DataFrame, pl.DataFrame]], title: str, years: float) -> Figure:
    lowest = [rows.select(pl.min_horizontal("survival", "lower").min()).item() for _, rows, _ in parts]
    highest = 100 - 100 * float(min(lowest))
    scale = next((end for end in _SCALES if end >= 1.05 * highest), 100)
    counted = [name for name in CATEGORIES if any(name in counts["category"] for _, _, counts in parts)]
    lines = len(_COUNTS) * (len(counted) + 1)
    figure, axes = canvas.panels(
        [name for name, _, _ in parts], (2.4, 2.5), title, margin=0.75, left=0.3, right=0.92, below=0.72 + lines * _LINE
    )
    for number, (axis, (_, rows, counts)) in enumerate(zip(axes, parts, strict=True)):
        ends = [(name, _curve(axis, rows.filter(pl.col("category") == name), name, years)) for name in CATEGORIES]
        axis.set(xlim=(0, years), ylim=(0, scale), xlabel="Years of follow-up")
        axis.grid(axis="y", color=GRID, lw=0.7)
        axis.set_axisbelow(True)
        times = _thin(counts["time_years"].unique().sort().to_list())
        axis.set_xticks(times, [f"{time:g}" for time in times])
        _label_ends(axis, [(name, end) for name, end in ends if end is not None], scale)
        if number % 3 == 0:
            axis.set_ylabel("1 - Kaplan-Meier, %")
        _counts(axis, counts, counted, times, labelled=number % 3 == 0)
    return figure


def _thin(times: list[float]) -> list[float]:
    """Times to print, at most seven, so that the counts do not touch."""
    return times[:: -(-len(times) // 7)]


def _curve(
    axis: Axes, rows: pl.DataFrame, category: str, years: float, dashes: str | tuple[int, tuple[int, int]] = "-"
) -> float | None:
    """Draw one step curve with its band, if it has one; return its last height in %."""
    if rows.is_empty():
        return None
    rows = rows.sort("time_days").with_columns(
        (pl.col("time_days") / YEAR_DAYS).alias("time"),
        (pl.col("time_days") / (years * YEAR_DAYS) * _PIXELS).floor().alias("pixel"),
    )
    rows = rows.group_by("pixel", maintain_order=True).last() if len(rows) > _PIXELS else rows
    known = rows.select("time", pl.col("survival", "upper", "lower") * -100 + 100)
    time, curve, lower, upper = (np.append(column, column[-1]) for column in known.cast(pl.Float64).to_numpy().T)
    last = float(rows["time_days"][-1]) / YEAR_DAYS
    time[-1] = max(last, time[-1])
    colour = CATEGORY_COLOURS[category]
    shown = np.isfinite(lower) & np.isfinite(upper)
    axis.fill_between(time, lower, upper, where=shown, step="post", color=colour, alpha=0.16, lw=0)
    axis.step(time, curve, where="post", color=colour, lw=1.6 if dashes == "-" else 1.0, ls=dashes)
    return float(curve[-1])


def _label_ends(axis: Axes, ends: Sequence[tuple[str, float]], scale: float) -> None:
    """Name each curve at its right end, moving labels apart where curves meet."""
    gap, below = 0.07 * scale, -np.inf
    for name, end in sorted(ends, key=lambda item: item[1]):
        below = max(end, below + gap)
        place = axis.get_yaxis_transform()
        axis.text(
            1.02, below, name, color=CATEGORY_COLOURS[name], fontsize=8, va="center", weight="bold", transform=place
        )


def _counts(
    axis: Axes, counts: pl.DataFrame, categories: Sequence[str], times: Sequence[float], labelled: bool
) -> None:
    """At risk, events and censored under the axis, aligned with its ticks."""
    found = {(row["category"], row["time_years"]): row for row in counts.iter_rows(named=True)}
    inch = axis.figure.dpi / axis.get_window_extent().height
    y = -0.62 * inch
    place = axis.get_xaxis_transform()
    for column, heading in _COUNTS.items():
        if labelled:
            axis.annotate(heading, (0, y), (-72, 0), xycoords="axes fraction", textcoords="offset points", fontsize=7.5,
                          weight="bold", va="center")  # fmt: skip
        for category in categories:
            y -= _LINE * inch
            if labelled:
                axis.annotate(category, (0, y), (-72, 0), xycoords="axes fraction", textcoords="offset points",
                              fontsize=7.5, va="center", color=CATEGORY_COLOURS[category])  # fmt: skip
            for time in times:
                row = found.get((category, time))
                text = "" if row is None or row[column] is None else f"{row[column]:,}"
                axis.text(time, y, text, fontsize=7, ha="center", va="center", transform=place)
        y -= _LINE * inch


def cox(table: pl.DataFrame) -> Figure | None:
    """Hazard ratios against CAC 0, crude and adjusted, true beside predicted; one panel per site and score origin."""
    whole = pl.all_horizontal(pl.col("subgroup", "period").fill_null("") == "")
    chosen = ["crude:" + name for name in wording.EXPOSURES] + ["covariates+" + name for name in wording.EXPOSURES]
    table = table.filter(
        whole, pl.col("model").is_in(chosen), pl.col("exposure").is_not_null(), pl.col("level") != CATEGORIES[0]
    )
    if table.is_empty():
        return None
    limits = ratio_limits(table)
    parts = canvas.groups(table)
    order = [(level, name) for level in CATEGORIES[1:] for name in wording.EXPOSURES if name in table["exposure"]]
    title = "Hazard ratios against CAC 0, with intervals (open: crude; filled: adjusted)"
    figure, axes = canvas.panels(
        [name for name, _ in parts], (3.4, 0.28 * len(order)), title,
        columns=1, above=0.4, title_width=8, margin=2.95, left=0, right=2.75, below=0.62,
    )  # fmt: skip
    for axis, (_, part) in zip(axes, parts, strict=True):
        axis.set_title(axis.get_title(loc="left"), x=-2.85 / 3.4, ha="left", pad=24)
        _forest(axis, part, order)
        axis.set(ylim=(len(order) - 0.5, -0.5), yticks=[])
        ratio_axis(axis, limits)
    return figure


def ratio_axis(axis: Axes, limits: tuple[float, float]) -> None:
    """Make the x axis one of hazard ratios: logarithmic, with round ticks and a line at 1."""
    axis.set(xscale="log", xlim=limits, xlabel="Hazard ratio (log scale)")
    ticks = [tick for tick in _TICKS if limits[0] <= tick <= limits[1]]
    inches = axis.get_window_extent().width / axis.figure.dpi
    axis.xaxis.set_major_locator(FixedLocator(ticks if len(ticks) <= _TICKS_PER_INCH * inches else _DECADES))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.spines["left"].set_visible(False)
    axis.axvline(1, color=MUTED, lw=0.9)


def ratio_limits(table: pl.DataFrame) -> tuple[float, float]:
    """Axis limits on ticks that hold the estimates, and the intervals as far as 1/50 and 100."""
    values = table.select("hr", "lower", "upper").to_numpy().ravel()
    values = np.append(values[np.isfinite(values)], (0.8, 4.0)).clip(_TICKS[0], _TICKS[-1])
    lower = max(tick for tick in _TICKS if tick <= values.min())
    return lower, min(tick for tick in _TICKS if tick >= values.max())


def _forest(axis: Axes, part: pl.DataFrame, order: Sequence[tuple[str, str]]) -> None:
    found = {(row["level"], row["exposure"], row["model"].split(":")[0] == "crude"): row for row in part.to_dicts()}
    columns = {-2.85: "Category", -1.95: "Exposure", -0.75: "Events / n", 3.5: "Crude", 4.85: "Adjusted"}
    place = axis.get_yaxis_transform()
    for x, heading in columns.items():
        axis.text(x / 3.4, -0.62, heading, fontsize=8, weight="bold", va="bottom", transform=place)
    for y, (level, exposure) in enumerate(order):
        rows = [found.get((level, exposure, crude)) for crude in (True, False)]
        known = next((row for row in rows if row), None)
        if known is None:
            continue
        first = y == 0 or order[y - 1][0] != level
        if first and y:
            axis.axhline(y - 0.5, color=GRID, lw=0.8)
        texts = (level if first else "", wording.EXPOSURES[exposure], f"{known['n_events']:,} / {known['n']:,}")
        for x, text in zip(list(columns)[:3], texts, strict=True):
            axis.text(x / 3.4, y, text, fontsize=8, va="center", transform=place)
        for x, row, lift, filled in zip((3.5, 4.85), rows, (-0.14, 0.14), (False, True), strict=True):
            if row:
                axis.text(x / 3.4, y, _ratio(row), fontsize=8, va="center", transform=place)
                _ratio_marker(axis, row, y + lift, filled)


def _ratio(row: dict[str, Any]) -> str:
    if row["method"] == "not_fitted" or row["hr"] is None:
        return "not fitted"
    interval = "" if row["lower"] is None else " ({lower:.2f} to {upper:.2f})".format(**row)
    return f"{row['hr']:.2f}{interval}"


def _ratio_marker(axis: Axes, row: dict[str, Any], y: float, filled: bool) -> None:
    """Open marker: crude; filled: adjusted. A row that was not fitted has none."""
    if row["hr"] is None:
        return
    exposure = str(row["exposure"])
    colour = EXPOSURE_COLOURS[exposure]
    if row["lower"] is not None:
        axis.plot((row["lower"], row["upper"]), (y, y), color=colour, lw=1.4 if filled else 0.9, solid_capstyle="butt")
    axis.plot(row["hr"], y, EXPOSURE_MARKERS[exposure], color=colour, mfc=colour if filled else "white", ms=4.5, mew=1)
