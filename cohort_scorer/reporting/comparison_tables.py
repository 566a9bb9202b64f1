"""comparison.csv as a page prints it: in parts that each answer one question, estimates of one thing side by side.

Knows no section and no HTML, and no number that the CSV does not hold. A cell without a number tells the reason.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from cohort_scorer.reporting import wording
from cohort_scorer.reporting.tables import Printed, estimate, grouped, p_value, printed

Row = dict[str, Any]


def ratios(frame: pl.DataFrame) -> Printed | None:
    """Ratio of hazard ratios and the absolute risks beside it, a row per predicted exposure and category.

    Args:
        frame: comparison.csv.
    """
    known = frame.filter(pl.col("statistic") == "ratio_of_hazard_ratios")
    if known.is_empty():
        return None
    risks = frame.filter(pl.col("statistic") == "risk")
    horizon = risks.select(pl.col("horizon_years").max()).item()
    risks = risks.filter(pl.col("horizon_years") == pl.col("horizon_years").max())
    beside = dict(grouped(risks))
    bodies = []
    for heading, part in grouped(known):
        found = _by(part, "exposure", "level", "method")
        risk = _by(beside[heading], "exposure", "level") if heading in beside else {}
        lines = []
        for exposure, level in dict.fromkeys(key[:2] for key in found):
            paired, drawn = (found.get((exposure, level, method)) for method in ("dfbeta", "bootstrap"))
            own = (_interval(paired, 2), _p(paired), _interval(drawn, 2))
            risk_cells = (_interval(risk.get((name, level)), 1, 100) for name in (exposure, "true"))
            lines.append((wording.words(exposure), level, *own, *risk_cells))
        bodies.append((heading, tuple(lines)))
    years = "the horizon" if horizon is None else wording.years(horizon)
    labels = ("Predicted by", "Category", "Ratio of hazard ratios", "p", "From resamples",
              f"Risk by {years} if predicted, %", f"Risk by {years} if true, %")  # fmt: skip
    note = "Adjusted hazard ratio of the predicted category over that of the true one, each against its own CAC 0."
    headers = _headers(labels, words=2)
    return Printed(
        "comparison", "Predicted : true, in ratio and in risk", note + _failures(known), headers, tuple(bodies),
        len(frame),
    )  # fmt: skip


def adequacy(frame: pl.DataFrame) -> Printed | None:
    """What share of the likelihood ratio of both categories together each reaches, a row per predicted exposure."""
    statistics = ("adequacy_predicted", "adequacy_true", "relative_lr")
    rows = frame.filter(pl.col("statistic").is_in(statistics))
    if rows.is_empty():
        return None
    labels = ["Predicted by", *(wording.sentence(name) for name in statistics)]
    told = rows["reason"].drop_nulls().len() > 0
    bodies = []
    for heading, part in grouped(rows):
        lines = []
        for (exposure,), own in part.group_by("exposure", maintain_order=True):
            found = _by(own.with_columns(reason=pl.lit(None, pl.String)), "statistic")
            cells = [_interval(found.get((name,)), 3) for name in statistics]
            reasons = "; ".join(own["reason"].drop_nulls().unique(maintain_order=True)) or wording.ABSENT
            lines.append((wording.words(exposure), *cells, *([reasons] if told else [])))
        bodies.append((heading, tuple(lines)))
    headers = _headers(labels, words=1)
    headers += (("No number because", "", False),) if told else ()
    caption = "Adequacy: share of the likelihood ratio of predicted and true category together"
    return Printed("comparison", caption, _failures(rows).strip(), headers, tuple(bodies), len(frame))


def concordances(frame: pl.DataFrame) -> Printed | None:
    """Differences of concordance, a row per pair of models, with paired limits and with those of resamples."""
    rows = frame.filter(pl.col("statistic").is_in(("harrell_c_difference", "uno_c_difference")))
    if rows.is_empty():
        return None
    bodies = []
    for heading, part in grouped(rows):
        lines = []
        for pair in part.partition_by("comparison", maintain_order=True):
            drawn = _by(pair.filter(pl.col("method") == "bootstrap"), "statistic")
            paired = _by(pair.filter(pl.col("method").ne_missing("bootstrap")), "statistic")
            harrell, uno = (paired.get((f"{name}_c_difference",)) for name in ("harrell", "uno"))
            resampled = _interval(drawn.get(("harrell_c_difference",)), 3)
            cells = (_interval(harrell, 3), _p(harrell), resampled, _interval(uno, 3), _p(uno))
            lines.append((wording.comparison(pair["comparison"][0]), *cells))
        bodies.append((heading, tuple(lines)))
    headers = _headers(("Comparison", "Harrell's C", "p", "From resamples", "Uno's C", "p"), words=1)
    caption = "Differences of concordance: the first model less the second"
    return Printed("comparison", caption, _failures(rows).strip(), headers, tuple(bodies), len(frame))


def horizons(frame: pl.DataFrame) -> Printed | None:
    """Differences of AUC(t) and of the Brier score, a row per pair of models and horizon."""
    rows = frame.filter(pl.col("statistic").is_in(("auc_difference", "brier_difference")))
    if rows.is_empty():
        return None
    bodies = []
    for heading, part in grouped(rows):
        lines = []
        for pair in part.partition_by("comparison", "horizon_years", maintain_order=True):
            found = _by(pair, "statistic")
            cells = (_interval(found.get((f"{name}_difference",)), 4) for name in ("auc", "brier"))
            first = pair.row(0, named=True)
            lines.append((wording.comparison(first["comparison"]), wording.years(first["horizon_years"]), *cells))
        bodies.append((heading, tuple(lines)))
    headers = _headers(("Comparison", "Horizon", "AUC(t)", "Brier score"), words=2)
    caption = "Differences at horizons: the first model less the second"
    return Printed("comparison", caption, _failures(rows).strip(), headers, tuple(bodies), len(frame))


def margin(frame: pl.DataFrame, declared: float | None) -> Printed | None:
    """C with the predicted less that with the true category, and whether its lower limit lies above minus the margin.

    Args:
        frame: comparison.csv.
        declared: The study's noninferiority_margin_c; without one nothing is said of the limit.
    """
    rows = frame.filter(pl.col("statistic") == "noninferiority_c")
    if rows.is_empty():
        return None
    bodies = tuple(
        (heading, tuple((wording.comparison(row["comparison"]), _interval(row, 3), p_value(row["p"]),
                         _above(row["lower"], declared)) for row in part.iter_rows(named=True)))
        for heading, part in grouped(rows)
    )  # fmt: skip
    labels = ("Comparison", "Difference of Harrell's C", "p, one-sided", "Lower limit above minus the margin")
    caption = "C with the predicted less that with the true category, and the margin"
    return Printed("comparison", caption, "", _headers(labels, words=1), bodies, len(frame))


def _above(lower: float | None, declared: float | None) -> str:
    if lower is None or declared is None:
        return wording.ABSENT
    return "yes" if lower > -declared else "no"


def part(frame: pl.DataFrame, statistics: Sequence[str], caption: str) -> Printed | None:
    """Some statistics of comparison.csv, a row each, or None where it has none of them."""
    # The models are named in the comparison; without the standard error the limits stand beside their estimate.
    rows = frame.filter(pl.col("statistic").is_in(statistics)).drop("exposure", "se")
    if rows.is_empty():
        return None
    made = printed("comparison", rows)
    # The schema's words for the columns tell of every statistic, of those too that the study did not ask for.
    headers = tuple((label, "", numeric) for label, _, numeric in made.headers)
    return replace(made, caption=caption, note="", headers=headers, n_rows=len(frame))


def _by(rows: pl.DataFrame, *keys: str) -> dict[tuple[Any, ...], Row]:
    return {tuple(row[key] for key in keys): row for row in rows.iter_rows(named=True)}


def _headers(labels: Sequence[str], *, words: int) -> tuple[tuple[str, str, bool], ...]:
    """Column headers, of which the first hold words and the others numbers."""
    return tuple((label, "", number >= words) for number, label in enumerate(labels))


def _interval(row: Row | None, decimals: int, factor: float = 1) -> str:
    """An estimate with its limits, or why there is none."""
    if row is None or row["estimate"] is None:
        return (row and row["reason"]) or wording.ABSENT
    scaled = (None if row[name] is None else factor * row[name] for name in ("estimate", "lower", "upper"))
    return estimate(*scaled, decimals=decimals)


def _p(row: Row | None) -> str:
    return p_value(None if row is None else row["p"])


def _failures(rows: pl.DataFrame) -> str:
    """How many resamples an interval lacks at most, if any does."""
    failed = rows["failed"].drop_nulls()
    if not failed.len() or not failed.sum():
        return ""
    worst = rows.sort("failed", nulls_last=True, descending=True).row(0, named=True)
    n = worst["failed"] + (worst["replicates"] or 0)
    return f" Up to {worst['failed']:,} of {n:,} resamples gave no value and are not in its interval."
