"""Risks that the fitted models predict by a horizon, and how they are borne out: the rows of horizon.csv.

Performance is apparent: the patients are those of the fit. Resamples weight the patients, the risks stay.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.statistics import absolute_risk
from cohort_scorer.statistics.bootstrap import Resamples, chunks
from cohort_scorer.statistics.comparison import Row, quantiles
from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.horizons import Horizons, Performance
from cohort_scorer.statistics.inputs import Floats
from cohort_scorer.statistics.kaplan_meier import DAYS_PER_YEAR
from cohort_scorer.statistics.regression import Fitted, People, fit_matrix

_COLUMNS = {
    "model": pl.String(),
    "horizon_years": pl.Float64(),
    **dict.fromkeys(["n_at_risk", "n_events"], pl.Int64()),
    **dict.fromkeys(
        ["auc", "lower", "upper", "brier", "brier_lower", "brier_upper", "ipa", "ipa_lower", "ipa_upper"], pl.Float64()
    ),
    "replicates": pl.Int64(),
    "reason": pl.String(),
}


def predicted_risks(
    people: People, fits: Mapping[str, Fitted], horizon_years: Sequence[float]
) -> tuple[dict[str, Floats], dict[str, str]]:
    """Each patient's risk by each horizon, shape (H, n), by model, and why a model has none.

    With competing events it is the cumulative incidence from two cause-specific models of the same terms; the one of
    the competing events is penalised where one of its categories has fewer than 5 of them.
    """
    days = [years * DAYS_PER_YEAR for years in horizon_years]
    found, reasons = {}, {}
    for name, fitted in fits.items():
        if fitted.fit is None:
            reasons[name] = str(fitted.reason)
            continue
        other = _competing(people, fitted, fitted.fit) if people.competing.any() else None
        if isinstance(other, str):
            reasons[name] = other
        elif other is None:
            found[name] = np.array([absolute_risk.risk(fitted.fit, time) for time in days])
        else:
            found[name] = absolute_risk.incidence(fitted.fit, other, days)
    return found, reasons


def _competing(people: People, fitted: Fitted, fit: CoxFit) -> CoxFit | str:
    others = replace(people, event=people.competing, competing=people.event)
    try:
        return fit_matrix(others, fit.covariates, penalised=others.few_events(fitted.model.exposures))
    except ConvergenceError:
        return "the likelihood of the competing events has no maximum"


def performance(
    people: People,
    fits: Mapping[str, Fitted],
    risks: Mapping[str, Floats],
    reasons: Mapping[str, str],
    horizon_years: Sequence[float],
    resamples: Resamples,
) -> tuple[pl.DataFrame, list[Row]]:
    """Rows of horizon.csv, and rows of comparison.csv on predicted against true categories.

    Args:
        people: The patients.
        fits: Every model by name.
        risks: Of those that have any, shape (H, n).
        reasons: Of the others.
        horizon_years: Horizons.
        resamples: Of the patients.
    """
    names = list(risks)
    days = [years * DAYS_PER_YEAR for years in horizon_years]
    status = people.event + 2 * people.competing
    stacked = np.stack([risks[name] for name in names], axis=1) if names else np.empty((len(days), 0, len(status)))
    laid_out = Horizons.build(people.time, status, days, stacked, people.strata)
    apparent = laid_out.judge(np.ones(len(status)))
    drawn = [laid_out.judge(chunk.astype(np.float64)) for chunk in chunks(resamples)]
    rows = []
    for name in fits:
        for place, years in enumerate(horizon_years):
            row: Row = {
                "model": name,
                "horizon_years": years,
                "n_at_risk": int((people.time >= days[place]).sum()),
                "n_events": int((people.event & (people.time <= days[place])).sum()),
            }
            if name in reasons:
                rows.append({**row, "reason": reasons[name]})
            else:
                rows.append(row | _judged(apparent, drawn, place, names.index(name), people.level))
    differences = [
        row
        for name in fits
        if name.startswith("covariates+") and name.count("+") == 1 and name != "covariates+true"
        if "covariates+true" in fits
        for row in _differences(apparent, drawn, names, name, horizon_years, people.level)
    ]
    return pl.DataFrame(rows, schema=_COLUMNS), differences


def _judged(apparent: Performance, drawn: Sequence[Performance], h: int, m: int, level: float) -> Row:
    row: Row = {}
    for name, prefix in (("auc", ""), ("brier", "brier_"), ("ipa", "ipa_")):
        value = float(getattr(apparent, name)[h, m])
        if np.isnan(value):
            continue
        row[name] = value
        if drawn:
            found = quantiles(np.concatenate([getattr(part, name)[:, h, m] for part in drawn]), level)
            row |= {f"{prefix}{limit}": found[limit] for limit in ("lower", "upper")}
            row["replicates"] = found["replicates"]
    if not row:
        row["reason"] = "in a site nobody was followed that long"
    elif "auc" not in row:
        row["reason"] = "nobody had the event by then, or everybody"
    return row


def _differences(
    apparent: Performance,
    drawn: Sequence[Performance],
    names: Sequence[str],
    name: str,
    horizon_years: Sequence[float],
    level: float,
) -> Iterator[Row]:
    """The adjusted model with a predicted category less that with the true one; intervals need resamples."""
    known = {name, "covariates+true"} <= set(names)
    for statistic in ("auc", "brier"):
        for place, years in enumerate(horizon_years):
            row: Row = {
                "comparison": f"{name} v covariates+true",
                "exposure": name.removeprefix("covariates+"),
                "horizon_years": years,
                "statistic": f"{statistic}_difference",
            }
            if not known:
                yield {**row, "reason": "a model has no risks: horizon.csv says why"}
                continue
            first, second = names.index(name), names.index("covariates+true")
            values = getattr(apparent, statistic)[place]
            difference = float(values[first] - values[second])
            if np.isnan(difference):
                yield {**row, "reason": "in a site nobody was followed that long, or nobody had the event by then"}
            elif drawn:
                every = np.concatenate([getattr(part, statistic)[:, place] for part in drawn])
                yield {**row, "estimate": difference, **quantiles(every[:, first] - every[:, second], level)}
            else:
                yield {**row, "estimate": difference}
