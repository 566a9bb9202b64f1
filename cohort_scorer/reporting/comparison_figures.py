"""Figures of predicted against true categories: ratios of hazard ratios, hazards over time, risks at horizons.

Knows how such a picture is laid out, not how its numbers came about.
"""

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from cohort_scorer.reporting import canvas, exposures, wording
from cohort_scorer.reporting.canvas import CATEGORIES, CATEGORY_COLOURS, EXPOSURE_COLOURS, EXPOSURE_MARKERS, GRID, MUTED
from cohort_scorer.reporting.survival_figures import YEAR_DAYS, ratio_axis, ratio_limits
from cohort_scorer.reporting.tables import estimate

_DOTTED = (0, (1, 1.5))


def ratios(table: pl.DataFrame) -> Figure | None:
    """Ratios of hazard ratios, predicted : true, with paired intervals, and thin those of resamples.

    Args:
        table: comparison.csv.
    """
    rows = table.filter(pl.col("statistic") == "ratio_of_hazard_ratios", pl.col("estimate").is_not_null())
    if rows.is_empty():
        return None
    rows = rows.with_columns(pl.col("estimate").alias("hr"))
    parts = canvas.groups(rows)
    order = [(level, name) for level in CATEGORIES[1:] for name in wording.EXPOSURES if name in rows["exposure"]]
    limits = ratio_limits(rows)
    width, lines = 3.0, {"dfbeta": ("paired", -0.08, 1.6), "bootstrap": ("from resamples", 0.2, 0.8)}
    figure, axes = canvas.panels(
        [name for name, _ in parts], (width, 0.34 * len(order)), "Ratio of adjusted hazard ratios, predicted : true",
        columns=1, above=0.5, title_width=8, margin=2.0, left=0, right=1.7, below=0.62,
    )  # fmt: skip
    for axis, (_, part) in zip(axes, parts, strict=True):
        found = {(row["level"], row["exposure"], row["method"]): row for row in part.iter_rows(named=True)}
        axis.set_title(axis.get_title(loc="left"), x=-1.9 / width, ha="left", pad=24)
        place = axis.get_yaxis_transform()
        for x, heading in ((-1.9, "Category"), (-1.0, "Predicted by"), (3.12, "Ratio (paired)")):
            axis.text(x / width, -0.62, heading, fontsize=8, weight="bold", va="bottom", transform=place)
        for y, (level, exposure) in enumerate(order):
            first = y == 0 or order[y - 1][0] != level
            if first and y:
                axis.axhline(y - 0.5, color=GRID, lw=0.8)
            axis.text(-1.9 / width, y, level if first else "", fontsize=8, va="center", transform=place)
            axis.text(-1.0 / width, y, wording.EXPOSURES[exposure], fontsize=8, va="center", transform=place)
            colour = EXPOSURE_COLOURS[exposure]
            for method, (_, lift, thickness) in lines.items():
                row = found.get((level, exposure, method))
                if row is not None and row["lower"] is not None:
                    ends = (row["lower"], row["upper"])
                    axis.plot(ends, (y + lift,) * 2, color=colour, lw=thickness, solid_capstyle="butt")
            row, text = found.get((level, exposure, "dfbeta")), wording.ABSENT
            if row is not None:
                axis.plot(row["estimate"], y - 0.08, EXPOSURE_MARKERS[exposure], color=colour, ms=4.5)
                text = estimate(row["estimate"], row["lower"], row["upper"], decimals=2)
            axis.text(3.12 / width, y, text, fontsize=8, va="center", transform=place)
        axis.set(ylim=(len(order) - 0.5, -0.5), yticks=[])
        ratio_axis(axis, limits)
        axis.set_xlabel("Ratio of hazard ratios (log scale)")
    drawn = [Line2D([], [], color=MUTED, lw=thickness, label=f"interval, {label}")
             for method, (label, _, thickness) in lines.items() if method in rows["method"]]  # fmt: skip
    exposures.key(figure, drawn)
    return figure


def schoenfeld(table: pl.DataFrame, hazard_ratios: pl.DataFrame) -> Figure | None:
    """Hazard ratios over time of one exposure: columns are categories, rows are sites and score origins.

    Args:
        table: Rows of schoenfeld.csv of one exposure.
        hazard_ratios: cox.csv, whose ratios are drawn as dotted lines.
    """
    if table.is_empty():
        return None
    keys = ["site", "score_origin", "model", "exposure", "level"]
    whole = pl.all_horizontal(pl.col("subgroup", "period").fill_null("") == "")
    constant = hazard_ratios.filter(whole, pl.col("term") == "category").select(*keys, "hr")
    table = table.with_columns(pl.col("coef", "lower", "upper").exp())
    table = table.join(constant, on=keys, how="left", nulls_equal=True, maintain_order="left")
    parts = canvas.groups(table)
    levels = CATEGORIES[1:]
    exposure = wording.EXPOSURES[table["exposure"][0]]
    figure, axes = canvas.panels(
        [name if level == levels[0] else "" for name, _ in parts for level in levels],
        (2.3, 1.9),
        f"{exposure}: adjusted hazard ratio against CAC 0 over time (dotted: constant)",
        margin=0.3,
        title_width=8,
    )
    limits = ratio_limits(table.with_columns(pl.col("coef").alias("hr")))
    longest = float(table["time_days"].to_numpy().max()) / YEAR_DAYS
    for number, axis in enumerate(axes):
        part, level = parts[number // len(levels)][1], levels[number % len(levels)]
        rows = part.filter(pl.col("level") == level)
        axis.text(0.04, 0.95, level, transform=axis.transAxes, va="top", weight="bold", color=CATEGORY_COLOURS[level])
        if rows.is_empty():
            axis.text(0.5, 0.5, "no curve", transform=axis.transAxes, ha="center", color=MUTED)
        years = rows["time_days"] / YEAR_DAYS
        colour = CATEGORY_COLOURS[level]
        axis.fill_between(years, rows["lower"], rows["upper"], color=colour, alpha=0.16, lw=0)
        axis.plot(years, rows["coef"], color=colour, lw=1.6)
        for value in rows["hr"].drop_nulls().unique():
            axis.axhline(value, color=MUTED, lw=0.9, ls=(0, (1, 2)))
        _ratio_y_axis(axis, limits)
        axis.set(xlabel="Years of follow-up", xlim=(0, 1.02 * longest), ylim=limits)
        if number % 3 == 0:
            axis.set_ylabel("Hazard ratio")
    return figure


def _ratio_y_axis(axis: Axes, limits: tuple[float, float]) -> None:
    axis.set_yscale("log")
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if limits[0] <= tick <= limits[1]]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.axhline(1, color=MUTED, lw=0.9, ls=(0, (4, 3)))


def horizon(table: pl.DataFrame) -> Figure | None:
    """AUC(t) and index of prediction accuracy of the adjusted models at each horizon; a row of panels per group."""
    table = table.filter(pl.col("auc").is_not_null(), pl.col("model").str.starts_with("covariates"))
    alone = table.filter(pl.col("model") == "covariates")
    table = table.filter(pl.col("model").str.count_matches(r"\+") == 1)
    if table.is_empty():
        return None
    table = table.with_columns(pl.col("model").str.replace(r"covariates\+", "").alias("exposure"))
    parts, without = canvas.groups(table), dict(canvas.groups(alone))
    measures = {"auc": ("AUC(t)", 0.5, "lower", "upper"), "ipa": ("IPA", 0.0, "ipa_lower", "ipa_upper")}
    figure, axes = canvas.panels(
        [name if measure == "auc" else "" for name, _ in parts for measure in measures],
        (2.9, 0.55 * table["horizon_years"].n_unique()),
        "Adjusted models at horizons: AUC(t) and index of prediction accuracy",
        columns=2,
        margin=0.45,
        title_width=8,
    )
    slots = exposures.slots(table.sort("horizon_years"), ("horizon_years", "exposure"), wording.years)
    for number, axis in enumerate(axes):
        name, part = parts[number // 2]
        column, (label, none, lower, upper) = list(measures.items())[number % 2]
        limits = (pl.col(lower).alias("lower"), pl.col(upper).alias("upper"))
        rows = part.filter(pl.col(column).is_not_null()).with_columns(limits)
        exposures.intervals(axis, rows, slots, column, ("horizon_years", "exposure"), "{:.2f}")
        if name in without:
            _alone(axis, without[name].select("horizon_years", column), [years for years, _ in slots[0]])
        axis.axvline(none, color=MUTED, lw=0.8, ls=(0, (4, 3)))
        seen = table.select(column, lower, upper).to_numpy()
        seen = np.append(seen[np.isfinite(seen)], none)
        room = 0.05 * (seen.max() - seen.min()) + 0.01
        axis.set(xlim=(seen.min() - room, seen.max() + 3 * room), xlabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.tick_params(labelleft=number % 2 == 0)
    others = {"covariates alone": _DOTTED} if without else {}
    exposures.exposure_key(figure, table, others, marked=True)
    return figure


def _alone(axis: Axes, values: pl.DataFrame, horizons: list[object]) -> None:
    """Short dotted lines at what the covariates alone reach, one per horizon of the panel."""
    order = list(dict.fromkeys(horizons))
    for years, value in values.drop_nulls().iter_rows():
        if years in order:
            y = order.index(years)
            axis.plot((value, value), (y - 0.4, y + 0.4), color=MUTED, lw=1.2, ls=_DOTTED)


def risk_curve(table: pl.DataFrame) -> Figure | None:
    """Risk by the horizon over the predicted probability, with bands; one panel per site and score origin."""
    table = table.drop_nulls("incidence")
    if table.is_empty():
        return None
    parts = canvas.groups(table)
    years = wording.years(table["horizon_years"][0])
    title = f"Risk within {years} over the predicted probability of CACS ≥ {table['threshold'][0]}"
    figure, axes = canvas.panels([name for name, _ in parts], (2.5, 2.3), title, margin=0.35)
    top = 100 * float(table.select(pl.max_horizontal("incidence", "upper").max()).item())
    for number, (axis, (_, part)) in enumerate(zip(axes, parts, strict=True)):
        for exposure, rows in exposures.by_exposure(part):
            colour = EXPOSURE_COLOURS[exposure]
            percent = rows.select(pl.col("incidence", "lower", "upper") * 100)
            axis.fill_between(rows["probability"], percent["lower"], percent["upper"], color=colour, alpha=0.15, lw=0)
            axis.plot(rows["probability"], percent["incidence"], color=colour, lw=1.6)
        axis.set(xlim=(0, 1), ylim=(0, min(100.0, 1.05 * top)), xlabel="Predicted probability")
        axis.grid(axis="y", color=GRID, lw=0.7)
        if number % 3 == 0:
            axis.set_ylabel("Risk, %")
    exposures.exposure_key(figure, table, {})
    return figure


def subgroups(table: pl.DataFrame) -> Figure | None:
    """Adjusted hazard ratios of the highest category in all patients and in parts; a panel per site and origin.

    Args:
        table: cox.csv.
    """
    highest = CATEGORIES[-1]
    chosen = [f"covariates+{name}" for name in wording.EXPOSURES]
    rows = table.filter(
        pl.col("model").is_in(chosen),
        pl.col("level") == highest,
        pl.col("exposure").is_not_null(),
        pl.col("period").fill_null("") == "",
    )
    if rows.is_empty() or not rows["subgroup"].drop_nulls().len() or not rows["hr"].count():
        return None
    rows = rows.with_columns(
        pl.col("subgroup")
        .fill_null("all patients")
        .map_elements(wording.sentence, return_dtype=pl.String)
        .alias("part")
    )
    parts = canvas.groups(rows)
    limits = ratio_limits(rows)
    slots = exposures.slots(rows, ("part", "exposure"), str)
    figure, axes = canvas.panels(
        [name for name, _ in parts],
        (2.3, 0.5 * len(slots[1])),
        f"Adjusted hazard ratio, {highest} against CAC 0, in parts of the patients",
        margin=1.1,
        left=0.2,
    )
    for number, (axis, (_, part)) in enumerate(zip(axes, parts, strict=True)):
        exposures.intervals(axis, part.filter(pl.col("hr").is_not_null()), slots, "hr", ("part", "exposure"))
        for row in part.filter(pl.col("hr").is_null()).iter_rows(named=True):
            place, colour = (1, slots[0][row["part"], row["exposure"]]), EXPOSURE_COLOURS[row["exposure"]]
            axis.annotate(
                "not fitted", place, (4, 0), textcoords="offset points", fontsize=7, va="center", color=colour
            )
        ratio_axis(axis, limits)
        axis.tick_params(labelleft=number % 3 == 0)
    exposures.exposure_key(figure, rows)
    return figure
