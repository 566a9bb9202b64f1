"""Figures drawn from the published tables, and from nothing else. A table without rows to draw gives no figure.

Knows no patient: what a figure shows stands in the CSV that it is named after.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cohort_scorer.reporting import canvas, cohort_figures, comparison_figures, exposures, survival_figures, wording
from cohort_scorer.reporting.canvas import CATEGORIES, EXPOSURE_COLOURS, INK, MUTED
from cohort_scorer.reporting.tables import estimate
from cohort_scorer.schemas import ALL

_SHADE = LinearSegmentedColormap.from_list("shade", ["#f7f9fc", "#9ec5e0", "#1d5b8f"])
_STATISTICS = {"observed_expected": 1.0, "intercept": 0.0, "slope": 1.0, "ici": 0.0}
"""Calibration statistics and their ideal values."""


def draw(tables: Mapping[str, pl.DataFrame], stamps: Sequence[str]) -> dict[str, Figure]:
    """Every figure that the tables allow.

    Args:
        tables: Published tables by name, with the columns of data_schemas/.
        stamps: What every figure must say, for example `SIMULATED DATA`.

    Returns:
        Figures by name: `<table>` or `<table>-<exposure>`.
    """
    with canvas.style():
        figures = dict(_figures(tables))
        for figure in figures.values():
            canvas.stamp(figure, stamps)
    return figures


def _figures(tables: Mapping[str, pl.DataFrame]) -> Iterator[tuple[str, Figure]]:
    whole: dict[str, Callable[[pl.DataFrame], Figure | None]] = {
        "attrition": cohort_figures.attrition,
        "interval": cohort_figures.interval,
        "training_curves": training_curves,
        "discrimination": discrimination,
        "calibration": calibration,
        "calibration_curve": calibration_curve,
        "decision_curve": decision_curve,
        "cox": survival_figures.cox,
        "sensitivity": sensitivity,
        "comparison": comparison_figures.ratios,
        "horizon": comparison_figures.horizon,
        "risk_curve": comparison_figures.risk_curve,
        "audit_positivity": audit_positivity,
    }
    for table, maker in whole.items():
        figure = maker(tables[table]) if table in tables else None
        if figure:
            yield table, figure
    if "roc" in tables and "discrimination" in tables and len(tables["roc"]):
        yield "roc", roc(tables["roc"], tables["discrimination"])
    for table, matrix in (("crosstab", crosstab), ("discordance", discordance)):
        if table in tables:
            for exposure, rows in exposures.by_exposure(tables[table]):
                yield f"{table}-{exposure}", matrix(rows)
    yield from _survival(tables)


def _survival(tables: Mapping[str, pl.DataFrame]) -> Iterator[tuple[str, Figure]]:
    """Figures that need two tables, or of which there is one per exposure."""
    if "at_risk" in tables and len(tables["at_risk"]):
        years = float(tables["at_risk"]["time_years"].to_numpy().max())
        if "kaplan_meier" in tables:
            yield from survival_figures.kaplan_meier(tables["kaplan_meier"], tables["at_risk"])
        if "cumulative_incidence" in tables:
            for exposure, rows in exposures.by_exposure(tables["cumulative_incidence"]):
                yield f"cumulative_incidence-{exposure}", survival_figures.cumulative_incidence(rows, years)
    if "cox" in tables:
        drawn = {"cox-subgroups": comparison_figures.subgroups(tables["cox"])}
        if "schoenfeld" in tables:
            for exposure, rows in exposures.by_exposure(tables["schoenfeld"]):
                drawn[f"schoenfeld-{exposure}"] = comparison_figures.schoenfeld(rows, tables["cox"])
        yield from ((name, figure) for name, figure in drawn.items() if figure)


def training_curves(table: pl.DataFrame) -> Figure | None:
    """Loss of every network by epoch, in training and on the images that chose its epoch, with a dot at that epoch."""
    if table.is_empty():
        return None
    parts = sorted(table.partition_by("threshold", as_dict=True).items())
    title = "Training: loss by epoch, a line for each network"
    figure, axes = canvas.panels([wording.threshold(value) for (value,), _ in parts], (2.5, 2.1), title)
    axes[0].set_ylabel("Loss")
    for axis, (_, part) in zip(axes, parts, strict=True):
        for network in part.partition_by("network", maintain_order=True):
            rows = network.sort("epoch")
            axis.plot(rows["epoch"], rows["training_loss"], color=MUTED, lw=0.8, alpha=0.6)
            axis.plot(rows["epoch"], rows["stopping_loss"], color=EXPOSURE_COLOURS["cxr"], lw=0.8, alpha=0.6)
            kept = rows.filter("kept").with_columns(pl.coalesce("stopping_loss", "training_loss").alias("loss"))
            axis.plot(kept["epoch"], kept["loss"], color=INK, marker="o", ms=3, lw=0)
        axis.set(xlabel="Epoch", xlim=(0.5, float(part.select(pl.col("epoch").max()).item()) + 0.5))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    handles = [
        Line2D([], [], color=MUTED, lw=1.2, label="training"),
        Line2D([], [], color=EXPOSURE_COLOURS["cxr"], lw=1.2, label="images that choose the epoch"),
        Line2D([], [], color=INK, marker="o", ms=4, lw=0, label="epoch kept"),
    ]
    exposures.key(figure, handles)
    return figure


def discrimination(table: pl.DataFrame) -> Figure | None:
    """AUC with its interval at each threshold, by exposure; one panel per site and score origin."""
    table = table.filter(pl.col("fold").fill_null("") == "", pl.col("auc").is_not_null())
    if table.is_empty():
        return None
    lowest = min(0.5, float(table.select(pl.min_horizontal("auc", "lower").min()).item()))
    limits = (np.floor(lowest * 10) / 10 - 0.02, 1.0)
    parts = canvas.groups(table)
    figure, axes = canvas.panels(
        [name for name, _ in parts], (2.7, 2.6), "Discrimination: AUC with its interval, by CACS threshold", margin=0.7
    )
    rows = exposures.slots(table, ("threshold", "exposure"), wording.threshold)
    for axis, (_, part) in zip(axes, parts, strict=True):
        exposures.intervals(axis, part, rows, "auc", ("threshold", "exposure"), "{:.2f}")
        axis.axvline(0.5, color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axis.set(xlim=limits, xlabel="Area under the ROC curve")
    exposures.exposure_key(figure, table)
    return figure


def roc(table: pl.DataFrame, areas: pl.DataFrame) -> Figure:
    """Sensitivity over specificity with pointwise bands: columns are CACS thresholds, rows are sites and score origins.

    Args:
        table: Rows of roc.csv, at least one.
        areas: Rows of discrimination.csv, whose pooled areas are printed in the panels.
    """
    keys = ("site", "score_origin", "exposure", "threshold")
    pooled = areas.filter(pl.col("fold").fill_null("") == "").select(*keys, area="auc", low="lower", high="upper")
    table = table.join(pooled, on=keys, how="left", nulls_equal=True, maintain_order="left")
    figure, panels = _threshold_panels(table, (2.5, 2.5), "ROC curves with pointwise bands", "Sensitivity")
    for axis, value, part in panels:
        axis.plot((0, 1), (0, 1), color=MUTED, lw=0.8, ls=(0, (4, 3)))
        shown = exposures.by_exposure(part)
        for number, (exposure, rows) in enumerate(shown):
            _banded(axis, 1 - rows["specificity"], rows["sensitivity"], rows, exposure)
            area = estimate(*rows.select("area", "low", "high").row(0), decimals=2)
            text, y = f"{wording.EXPOSURES[exposure]} {area}", 0.03 + 0.075 * (len(shown) - 1 - number)
            axis.text(0.98, y, text, ha="right", color=EXPOSURE_COLOURS[exposure], fontsize=7.5)
        axis.text(0.98, 0.03 + 0.075 * len(shown), "AUC" if shown else "", ha="right", fontsize=7.5)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"1 \N{MINUS SIGN} specificity, {wording.threshold(value)}")
    exposures.exposure_key(figure, table, {"no discrimination": (0, (4, 3))})
    return figure


def calibration(table: pl.DataFrame) -> Figure | None:
    """The four calibration statistics against their ideal values; one row of panels per site and score origin."""
    table = table.filter(pl.col("estimate").is_not_null())
    if table.is_empty():
        return None
    parts = canvas.groups(table)
    titles = [name if number == 0 else "" for name, _ in parts for number in range(len(_STATISTICS))]
    figure, axes = canvas.panels(
        titles,
        (1.95, 1.9),
        "Calibration (dashed: ideal value)",
        columns=4,
        margin=0.75,
        left=0.25,
        right=0.35,
        title_width=9,
    )
    rows = exposures.slots(table, ("threshold", "exposure"), wording.threshold)
    for number, axis in enumerate(axes):
        part, (statistic, ideal) = parts[number // 4][1], list(_STATISTICS.items())[number % 4]
        shown = table.filter(pl.col("statistic") == statistic).select("estimate", "lower", "upper").to_numpy()
        known = np.append(shown[np.isfinite(shown)], ideal)
        room = 0.08 * (known.max() - known.min()) + 0.01
        exposures.intervals(
            axis, part.filter(pl.col("statistic") == statistic), rows, "estimate", ("threshold", "exposure")
        )
        axis.axvline(ideal, color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axis.set(xlim=(known.min() - room, known.max() + room), xlabel=wording.words(statistic))
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.tick_params(labelleft=number % 4 == 0)
    exposures.exposure_key(figure, table)
    return figure


def calibration_curve(table: pl.DataFrame) -> Figure | None:
    """Smoothed observed share over the probability with its band; panels as of `roc`, one scale per CACS threshold."""
    table = table.filter(pl.col("observed").is_not_null())
    if table.is_empty():
        return None
    figure, panels = _threshold_panels(table, (2.5, 2.5), "Calibration curves with pointwise bands", "Observed share")
    for axis, value, part in panels:
        axis.plot((0, 1), (0, 1), color=MUTED, lw=0.8, ls=(0, (4, 3)))
        for exposure, rows in exposures.by_exposure(part):
            _banded(axis, rows["probability"], rows["observed"], rows, exposure)
        same = table.filter(pl.col("threshold") == value)
        # Bands may reach 1 where the curve ends far below: the frame is cut to the curves, so that these can be read.
        end = min(1.0, 1.15 * float(same.select(pl.max_horizontal("probability", "observed").max()).item()))
        axis.set(xlim=(0, end), ylim=(0, end), xlabel=f"Predicted probability, {wording.threshold(value)}")
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    exposures.exposure_key(figure, table, {"predicted = observed": (0, (4, 3))})
    return figure


def decision_curve(table: pl.DataFrame) -> Figure | None:
    """Net benefit over threshold probability: columns are CACS thresholds, rows are sites and score origins."""
    if table.is_empty():
        return None
    figure, panels = _threshold_panels(table, (2.75, 1.9), "Decision curves", "Net benefit")
    for axis, value, part in panels:
        for exposure, rows in exposures.by_exposure(part):
            ordered = rows.sort("probability")
            axis.plot(ordered["probability"], ordered["net_benefit"], color=EXPOSURE_COLOURS[exposure], lw=1.6)
        everybody = part.unique("probability").sort("probability")
        axis.plot(everybody["probability"], everybody["treat_all"], color=MUTED, lw=1, ls=(0, (4, 3)))
        axis.axhline(0, color=MUTED, lw=0.8)
        top = part.select(pl.max_horizontal("net_benefit", "treat_all").max()).item() or 0.1
        axis.set(ylim=(-0.12 * top, 1.08 * top), xlabel=f"Threshold probability, {wording.threshold(value)}")
        axis.set_xlim(0, float(table.select(pl.col("probability").max()).item()))
    exposures.exposure_key(figure, table, {"act on all": (0, (4, 3)), "act on nobody": "-"})
    return figure


Panel = tuple[Axes, int, pl.DataFrame]


def _threshold_panels(
    table: pl.DataFrame, size: tuple[float, float], title: str, y_label: str
) -> tuple[Figure, list[Panel]]:
    """Panels with their threshold and rows: columns are CACS thresholds, rows are sites and score origins."""
    parts = canvas.groups(table)
    thresholds = table["threshold"].unique().sort().to_list()
    titles = [name if value == thresholds[0] else "" for name, _ in parts for value in thresholds]
    figure, axes = canvas.panels(
        titles, size, title, columns=len(thresholds), margin=0.35, title_width=3 * len(thresholds)
    )
    cells = [(value, part.filter(pl.col("threshold") == value)) for _, part in parts for value in thresholds]
    for axis in axes[:: len(thresholds)]:
        axis.set_ylabel(y_label)
    for axis, (_, part) in zip(axes, cells, strict=True):
        if part.is_empty():
            axis.text(0.5, 0.5, "no curve", transform=axis.transAxes, ha="center", color=MUTED)
    return figure, [(axis, *cell) for axis, cell in zip(axes, cells, strict=True)]


def _banded(axis: Axes, x: pl.Series, y: pl.Series, limits: pl.DataFrame, exposure: str) -> None:
    """A curve over its band from lower to upper; where the limits are absent, the curve alone."""
    colour = EXPOSURE_COLOURS[exposure]
    axis.fill_between(x, limits["lower"], limits["upper"], color=colour, alpha=0.15, lw=0)
    axis.plot(x, y, color=colour, lw=1.6)


def sensitivity(table: pl.DataFrame) -> Figure | None:
    """Adjusted hazard ratios under every choice, a panel per category; pooled, or of the only group."""
    # Where an analysis has one group alone, nothing is pooled.
    is_pooled = pl.col("site") == ALL
    rows = table.filter(
        is_pooled | ~is_pooled.any().over("analysis", "value"),
        ~pl.col("model").str.starts_with("crude:"),
        pl.col("level").ne_missing(CATEGORIES[0]),
    )
    if rows.drop_nulls("lower").is_empty():
        return None
    told = [
        f"{wording.analysis(*row[:2])}\n{row[2]:,} events / {row[3]:,}"
        for row in rows.select("analysis", "value", "n_events_model", "n_model").iter_rows()
    ]
    rows = rows.with_columns(pl.Series("told", told))
    slots = exposures.slots(rows, ("told", "exposure"), str)
    limits = survival_figures.ratio_limits(rows)
    figure, axes = canvas.panels(
        CATEGORIES[1:],
        (2.3, 0.5 * len(slots[1])),
        "Adjusted hazard ratios against CAC 0, as declared and with one choice changed",
        margin=1.5,
        left=0.1,
    )
    for number, (axis, level) in enumerate(zip(axes, CATEGORIES[1:], strict=True)):
        exposures.intervals(
            axis, rows.filter(pl.col("level") == level, pl.col("hr").is_not_null()), slots, "hr", ("told", "exposure")
        )
        survival_figures.ratio_axis(axis, limits)
        if number:
            axis.set_yticklabels([])
    exposures.exposure_key(figure, rows)
    return figure


def audit_positivity(table: pl.DataFrame) -> Figure | None:
    """Share called positive with its Wilson interval, by stratum; one panel per site and score origin."""
    table = table.filter(pl.col("positivity").is_not_null())
    if table.is_empty():
        return None
    table = table.with_columns(
        pl.struct("stratum", "level")
        .map_elements(lambda row: _stratum(row["stratum"], row["level"]), return_dtype=pl.String)
        .alias("row")
    )
    parts = canvas.groups(table)
    rows = exposures.slots(table, ("row", "exposure"), str)
    longest = max(len(line) for label in rows[1] for line in label.split("\n"))
    title = f"Positivity with its interval: predicted {wording.threshold(table['threshold'][0])}"
    figure, axes = canvas.panels(
        [name for name, _ in parts], (2.5, max(1.6, 0.42 * len(rows[1]))), title, margin=0.08 * longest, left=0.3
    )
    top = min(100.0, 108 * float(table.select(pl.max_horizontal("positivity", "upper").max()).item()))
    percent = pl.col("positivity", "lower", "upper") * 100
    for number, (axis, (_, part)) in enumerate(zip(axes, parts, strict=True)):
        exposures.intervals(axis, part.with_columns(percent), rows, "positivity", ("row", "exposure"))
        axis.set(xlim=(0, top), xlabel="Called positive, %")
        axis.tick_params(labelleft=number % 3 == 0)
    exposures.exposure_key(figure, table)
    return figure


def _stratum(stratum: str, level: str | None) -> str:
    return textwrap.fill(wording.sentence(stratum) + (f": {level}" if level else ""), 26)


def crosstab(table: pl.DataFrame) -> Figure:
    """Counts of one exposure's true by predicted categories, shaded by the share of the true category."""
    share = (pl.col("n") / pl.col("n").sum().over("site", "score_origin", "true_category")).fill_nan(None)
    table = table.with_columns(share.alias("shade")).with_columns(
        pl.format("{}\n{}", _thousands("n"), _number("shade", 100, "%")).alias("text")
    )
    return _matrix(table, "patients by true and predicted category (% of the true category)")


def discordance(table: pl.DataFrame) -> Figure:
    """Event rates of one exposure's true by predicted categories, per 1,000 person-years, with events / patients.

    Cells with fewer than 5 events are not shaded: their rates are mostly chance.
    """
    rate = pl.when(pl.col("events") >= 5).then("rate_per_1000_py")
    table = table.with_columns(
        (rate / rate.max()).alias("shade"),
        pl.format("{}\n{} / {}", _number("rate_per_1000_py", 1, ""), _thousands("events"), _thousands("n")).alias(
            "text"
        ),
    )
    return _matrix(table, "events per 1,000 person-years (events / patients); shaded from 5 events")


def _thousands(column: str) -> pl.Expr:
    return pl.col(column).map_elements(lambda value: f"{value:,}", return_dtype=pl.String)


def _number(column: str, factor: float, unit: str) -> pl.Expr:
    text = pl.col(column).map_elements(lambda value: f"{value * factor:.0f}{unit}", return_dtype=pl.String)
    return text.fill_null("-")


def _matrix(table: pl.DataFrame, title: str) -> Figure:
    parts = canvas.groups(table)
    categories = canvas.CATEGORIES
    figure, axes = canvas.panels(
        [name for name, _ in parts], (2.75, 2.3), f"{wording.EXPOSURES[table['exposure'][0]]}: {title}", margin=0.75
    )
    cells = range(len(categories))
    for number, (axis, (_, part)) in enumerate(zip(axes, parts, strict=True)):
        found = {(row["true_category"], row["predicted_category"]): row for row in part.iter_rows(named=True)}
        for y, true in enumerate(categories):
            for x, predicted in enumerate(categories):
                cell = found.get((true, predicted))
                shade = (cell["shade"] or 0.0) if cell else 0.0
                axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=_SHADE(shade), edgecolor="white"))
                colour = "white" if shade > 0.6 else INK
                axis.text(x, y, cell["text"] if cell else "", ha="center", va="center", color=colour, fontsize=8)
        axis.set(xlim=(-0.5, 3.5), ylim=(3.5, -0.5), xlabel="Predicted category")
        axis.set_xticks(cells, [name.removeprefix("CAC ") for name in categories])
        axis.set_yticks(cells, categories if number % 3 == 0 else [""] * len(categories))
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        if number % 3 == 0:
            axis.set_ylabel("True category")
    return figure
