"""The tables of `prognosis`: predicted against true categories in the same patients.

Everything is computed on the patients `in_common`. Knows no file and no study.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.schemas import ALL
from cohort_scorer.statistics import concordance, cox, crosscheck, cumulative_incidence, kaplan_meier
from cohort_scorer.statistics import logrank as log_rank
from cohort_scorer.statistics.groups import by_site_and_origin, joined, labelled

MINIMUM_EVENTS = 5
_CROSS_CHECK_ROWS = 200_000


@dataclass
class Prognosis:
    """What `tables` found.

    Attributes:
        tables: By file name.
        lifelines_difference: Largest difference of a coefficient from lifelines over the models compared, or None.
        not_converged: Models without a maximum, as `site origin model`.
        hindered: Models not fitted, with the reason.
        few_per_parameter: Models with fewer than 10 events per parameter.
    """

    tables: dict[str, pl.DataFrame]
    lifelines_difference: float | None = None
    not_converged: list[str] = field(default_factory=list)
    hindered: list[str] = field(default_factory=list)
    few_per_parameter: list[str] = field(default_factory=list)


def tables(
    people: pl.DataFrame,
    exposures: Sequence[str],
    categories: Sequence[str],
    adjust_for: Sequence[str],
    horizon_years: Sequence[float],
    competing: bool,
    level: float,
) -> Prognosis:
    """Make every table of `prognosis` that this version knows.

    Args:
        people: The analysis set, rows in common only: site, score_origin, time_days (> 0), status (0, 1, 2),
            {exposure}_category, the columns of adjust_for.
        exposures: Of true, cxr, integrated.
        categories: The four categories, lowest first.
        adjust_for: Covariates of the adjusted models.
        horizon_years: Horizons, for the numbers at risk.
        competing: Whether competing events are declared.
        level: Confidence level.
    """
    found: dict[str, list[pl.DataFrame]] = {}
    result = Prognosis({})
    times = sorted({0.0, *map(float, horizon_years), *map(float, range(int(max(horizon_years)) + 1))})

    def add(name: str, frame: pl.DataFrame, **labels: object) -> None:
        found.setdefault(name, []).append(labelled(frame, **labels))

    for site, origin, group in by_site_and_origin(people):
        place = {"site": site, "score_origin": origin}
        strata = _strata(group) if site == ALL else None
        for exposure in exposures:
            for name, frame in _described(group, exposure, categories, times, competing, level):
                add(name, frame, **place, exposure=exposure)
            codes = _codes(group, exposure, categories)
            event = group["status"].to_numpy() == 1
            tests = log_rank.logrank(group["time_days"], event, codes, list(categories), strata)
            add("logrank", tests.filter(pl.col("df") > 0), **place, exposure=exposure)
            if exposure != "true" and "true" in exposures:
                add("discordance", _discordance(group, exposure, categories, level), **place, exposure=exposure)
        for model, used, covariates in _models(exposures, adjust_for):
            rows, fit = _cox(group, model, used, covariates, categories, strata, level, result, place)
            add("cox", rows, **place, model=model)
            add("cox_fit", fit, **place, model=model)
    result.tables = {name: pl.concat(parts, how="diagonal_relaxed") for name, parts in found.items()}
    return result


def hazard_ratios(
    people: pl.DataFrame, exposures: Sequence[str], categories: Sequence[str], adjust_for: Sequence[str], level: float
) -> Prognosis:
    """Fit the crude and the adjusted model of every exposure by itself, as `tables` does.

    Args:
        people: As for `tables`.
        exposures: Of true, cxr, integrated.
        categories: The four categories, lowest first.
        adjust_for: Covariates of the adjusted models.
        level: Confidence level.

    Returns:
        In the table `cox` the rows of the categories, with the patients and events of their model (n_model,
        n_events_model).
    """
    result, parts = Prognosis({}), []
    for site, origin, group in by_site_and_origin(people):
        place = {"site": site, "score_origin": origin}
        strata = _strata(group) if site == ALL else None
        for model, used, covariates in _models(exposures, adjust_for):
            if len(used) == 1:
                rows, fit = _cox(group, model, used, covariates, categories, strata, level, result, place)
                whole = {"n_model": fit["n"][0], "n_events_model": fit["n_events"][0]}
                parts.append(labelled(rows.filter(pl.col("term") == "category"), **place, model=model, **whole))
    result.tables["cox"] = joined(parts, "cox")
    return result


def _strata(group: pl.DataFrame) -> NDArray[np.int64]:
    """A baseline hazard for each site and score origin."""
    ranks: NDArray[np.int64] = group.select(pl.struct("site", "score_origin").rank("dense")).to_series().to_numpy()
    return ranks


def _codes(group: pl.DataFrame, exposure: str, categories: Sequence[str]) -> NDArray[np.int64]:
    codes = dict(zip(categories, range(len(categories)), strict=True))
    return group[f"{exposure}_category"].replace_strict(codes, return_dtype=pl.Int64).to_numpy()


def _described(
    group: pl.DataFrame,
    exposure: str,
    categories: Sequence[str],
    times: Sequence[float],
    competing: bool,
    level: float,
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Rates, curves and numbers at risk of each category that occurs."""
    for category in categories:
        rows = group.filter(pl.col(f"{exposure}_category") == category)
        time, status = rows["time_days"].to_numpy(), rows["status"].to_numpy()
        rate = pl.DataFrame([asdict(kaplan_meier.event_rate(time, status == 1, level))])
        yield "event_rates", labelled(rate, category=category)
        if rows.is_empty():
            continue
        yield "kaplan_meier", labelled(kaplan_meier.kaplan_meier(time, status == 1, level), category=category)
        yield "at_risk", labelled(kaplan_meier.at_risk(time, status == 1, times), category=category)
        if competing:
            incidence = cumulative_incidence.cumulative_incidence(time, status, level)
            named = incidence.with_columns(
                pl.col("cause").replace_strict({1: "event", 2: "competing"}, return_dtype=pl.String)
            )
            yield "cumulative_incidence", labelled(named, category=category)


def _discordance(group: pl.DataFrame, exposure: str, categories: Sequence[str], level: float) -> pl.DataFrame:
    parts = []
    for true in categories:
        for predicted in categories:
            cell = (pl.col("true_category") == true) & (pl.col(f"{exposure}_category") == predicted)
            rows = group.filter(cell)
            rate = kaplan_meier.event_rate(rows["time_days"].to_numpy(), rows["status"].to_numpy() == 1, level)
            parts.append(labelled(pl.DataFrame([asdict(rate)]), true_category=true, predicted_category=predicted))
    return pl.concat(parts, how="diagonal_relaxed")


def _models(
    exposures: Sequence[str], adjust_for: Sequence[str]
) -> Iterator[tuple[str, tuple[str, ...], Sequence[str]]]:
    """Name, exposures and covariates of every model: crude, M0, M1, M2, M3."""
    for exposure in exposures:
        yield f"crude:{exposure}", (exposure,), ()
    if adjust_for:
        yield "covariates", (), adjust_for
    joint = [("true", exposure) for exposure in exposures if exposure != "true" and "true" in exposures]
    for used in [*((exposure,) for exposure in exposures), *joint]:
        yield "+".join(("covariates", *used)), used, adjust_for


def _cox(
    group: pl.DataFrame,
    model: str,
    used: Sequence[str],
    covariates: Sequence[str],
    categories: Sequence[str],
    strata: NDArray[np.int64] | None,
    level: float,
    result: Prognosis,
    place: dict[str, str],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Fit one model; a model that cannot be fitted keeps its rows, with counts and without numbers."""
    terms = _terms(group, used, covariates, categories)
    event = group["status"].to_numpy() == 1
    label = f"{place['site']} {place['score_origin']} {model}"
    columns = [term for term in terms if term.values is not None]
    values = [term.values for term in terms if term.values is not None]
    matrix = np.column_stack(values) if values else np.empty((len(group), 0))
    fitted = None
    reason = _hindrance(terms, used, categories, event)
    if reason is None:
        try:
            fitted = cox.fit(
                group["time_days"], event, matrix, strata=strata, term_names=[term.name for term in columns]
            )
        except ConvergenceError:
            reason = "the likelihood has no maximum"
            result.not_converged.append(label)
    elif event.any():
        result.hindered.append(f"{label}: {reason}")
    if columns and event.sum() < 10 * len(columns):
        result.few_per_parameter.append(label)
    fit_row: dict[str, object] = {"n": len(group), "n_events": int(event.sum()), "df": len(columns)}
    fit_row["events_per_parameter"] = event.sum() / len(columns) if columns else None
    fit_row |= {"method": "efron" if fitted else "not_fitted", "reason": reason}
    numbers = iter(fitted.table(level).iter_rows(named=True)) if fitted else None
    rows = pl.DataFrame([term.row(numbers, reason) for term in terms], schema=_COLUMNS)
    if fitted is None:
        return rows, pl.DataFrame([fit_row])
    fit_row |= {name: getattr(fitted, name) for name in ("loglik_null", "loglik", "lr_chi2", "p", "aic")}
    found = concordance.harrell_c(group["time_days"], event, fitted.linear_predictor, strata)
    fit_row |= {"harrell_c": found.harrell_c, "harrell_c_se": found.harrell_c_se}
    if len(group) <= _CROSS_CHECK_ROWS and columns:
        differs = crosscheck.difference_from_lifelines(fitted, group["time_days"], event, matrix, strata=strata)
        if differs is not None:
            result.lifelines_difference = max(result.lifelines_difference or 0.0, differs)
    return rows, pl.DataFrame([fit_row])


def _hindrance(
    terms: Sequence["_Term"], used: Sequence[str], categories: Sequence[str], event: NDArray[np.bool_]
) -> str | None:
    """Why a model must not be fitted: no events, nobody in the reference category, or too few events in one."""
    levels = [term for term in terms if term.exposure]
    if not event.any():
        return "no events"
    if any(categories[0] not in {term.level for term in levels if term.exposure == name} for name in used):
        return f"nobody is in {categories[0]}, the reference"
    if any(term.n_events < MINIMUM_EVENTS for term in levels):
        return f"a category has fewer than {MINIMUM_EVENTS} events"
    return None


_COLUMNS = {
    **dict.fromkeys(["exposure", "term", "level", "subgroup", "period"], pl.String()),
    **dict.fromkeys(["n", "n_events"], pl.Int64()),
    **dict.fromkeys(["coef", "se", "hr", "lower", "upper", "z", "p"], pl.Float64()),
    **dict.fromkeys(["method", "reason"], pl.String()),
}


@dataclass(frozen=True)
class _Term:
    """One row of cox.csv; `values` is the design column, None for a reference level or a column that does not vary."""

    exposure: str | None
    name: str
    level: str | None
    n: int
    n_events: int
    is_reference: bool
    values: NDArray[np.float64] | None

    def row(self, numbers: Iterator[dict[str, float]] | None, reason: str | None) -> dict[str, object]:
        """The row of cox.csv; takes its own numbers from those of the model's design columns."""
        counts: dict[str, object] = {
            "exposure": self.exposure,
            "term": self.name,
            "level": self.level,
            "n": self.n,
            "n_events": self.n_events,
        }
        if numbers is None:
            return counts | {"method": "not_fitted", "reason": reason}
        if self.is_reference:
            return counts | {"hr": 1.0, "method": "efron"}
        if self.values is None:
            return counts | {"method": "not_fitted", "reason": "the covariate does not vary"}
        return counts | next(numbers) | {"method": "efron"}


def _terms(
    group: pl.DataFrame, used: Sequence[str], covariates: Sequence[str], categories: Sequence[str]
) -> list[_Term]:
    event = group["status"].to_numpy() == 1
    terms = []
    for exposure in used:
        column = group[f"{exposure}_category"]
        present = [name for name in categories if (column == name).any()]
        terms += [
            _level(exposure, "category", name, (column == name).to_numpy(), event, name == present[0])
            for name in present
        ]
    for name in covariates:
        column = group[name]
        if column.dtype.is_numeric():
            values = column.cast(pl.Float64).to_numpy()
            varies = values if len(np.unique(values)) > 1 else None
            terms.append(_Term(None, name, None, len(group), int(event.sum()), False, varies))
            continue
        text = column.cast(pl.String)
        levels = text.unique().sort().to_list()
        if len(levels) == 1:
            terms.append(_Term(None, name, levels[0], len(group), int(event.sum()), False, None))
            continue
        terms += [_level(None, name, value, (text == value).to_numpy(), event, value == levels[0]) for value in levels]
    return terms


def _level(
    exposure: str | None, name: str, value: str, member: NDArray[np.bool_], event: NDArray[np.bool_], reference: bool
) -> _Term:
    values = None if reference else member.astype(np.float64)
    return _Term(exposure, name, value, int(member.sum()), int((member & event).sum()), reference, values)
