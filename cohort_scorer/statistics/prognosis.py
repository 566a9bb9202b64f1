"""The tables of `prognosis`: predicted against true categories in the same patients.

Everything is computed on the patients `in_common`. Knows no file and no study.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import polars as pl

from cohort_scorer.statistics import (
    bootstrap,
    category_risk,
    comparison,
    concordance,
    crosscheck,
    cumulative_incidence,
    kaplan_meier,
    predicted_risk,
    residuals,
    risk_curve,
    subgroups,
)
from cohort_scorer.statistics import logrank as log_rank
from cohort_scorer.statistics.bootstrap import Discriminated, Refitted, Resamples
from cohort_scorer.statistics.comparison import Compared
from cohort_scorer.statistics.groups import by_site_and_origin, joined, labelled
from cohort_scorer.statistics.kaplan_meier import DAYS_PER_YEAR
from cohort_scorer.statistics.regression import NO_MAXIMUM, Fitted, People, fit_model, models

_CROSS_CHECK_ROWS = 200_000
_LEAST_EVENTS_PER_PARAMETER = 10


@dataclass(frozen=True)
class Choices:
    """What the study declares.

    Attributes:
        exposures: Of true, cxr, integrated.
        categories: The four categories, lowest first.
        adjust_for: Covariates of the adjusted models.
        horizon_years: Horizons.
        competing: Whether competing events are declared.
        level: Confidence level.
        replicates: Resamples of the bootstrap, 0 for none.
        margin: How much lower C may be and still count as not inferior, None where none is declared.
    """

    exposures: Sequence[str]
    categories: Sequence[str]
    adjust_for: Sequence[str]
    horizon_years: Sequence[float]
    competing: bool
    level: float
    replicates: int
    margin: float | None


@dataclass
class Prognosis:
    """What `tables` found.

    Attributes:
        tables: By file name.
        lifelines_difference: Largest difference of a coefficient from lifelines over the models compared, or None.
        not_cross_checked: Models by Efron's likelihood that lifelines did not fit, or that have more than 200,000
            patients, of those to be compared with it.
        failed_resamples: How many resamples a model has no fit in, by model, where there are any.
        not_converged: Models without a maximum, as `site origin model`.
        hindered: Models not fitted, with the reason.
        few_per_parameter: Models with fewer than 10 events per parameter.
        penalised: Groups whose models are fitted by Firth's likelihood, as `site origin`.
    """

    tables: dict[str, pl.DataFrame]
    lifelines_difference: float | None = None
    not_cross_checked: list[str] = field(default_factory=list)
    failed_resamples: dict[str, int] = field(default_factory=dict)
    not_converged: list[str] = field(default_factory=list)
    hindered: list[str] = field(default_factory=list)
    few_per_parameter: list[str] = field(default_factory=list)
    penalised: list[str] = field(default_factory=list)

    def note(self, fitted: Fitted, people: People, label: str) -> None:
        """Keep what a reader must hear of a model."""
        events = int(people.event.sum())
        if fitted.reason == NO_MAXIMUM:
            self.not_converged.append(label)
        elif fitted.reason and events:
            self.hindered.append(f"{label}: {fitted.reason}")
        columns = fitted.columns()
        if columns and events < _LEAST_EVENTS_PER_PARAMETER * len(columns):
            self.few_per_parameter.append(label)
        if fitted.method == "efron" and columns and len(fitted.model.exposures) == 1:
            differs = _difference_from_lifelines(fitted, people)
            if differs is None:
                self.not_cross_checked.append(label)
            else:
                self.lifelines_difference = max(self.lifelines_difference or 0.0, differs)


def _difference_from_lifelines(fitted: Fitted, people: People) -> float | None:
    if fitted.fit is None or fitted.n > _CROSS_CHECK_ROWS:
        return None
    return crosscheck.difference_from_lifelines(
        fitted.fit, people.time, people.event, fitted.fit.covariates, strata=people.strata
    )


def tables(
    people: pl.DataFrame, choices: Choices, generator: np.random.Generator, advance: Callable[[int], None]
) -> Prognosis:
    """Make every table of `prognosis`.

    Args:
        people: The analysis set, rows in common only: site, score_origin, time_days (> 0), status (0, 1, 2),
            {exposure}_category, the columns of adjust_for; where they are there, sex, age_at_t0_years and
            {exposure}_ge100.
        choices: What the study declares.
        generator: Draws the resamples of every group.
        advance: Called with the number of resamples done since.
    """
    found: dict[str, list[pl.DataFrame]] = {}
    result = Prognosis({})
    for site, origin, group in by_site_and_origin(people):
        place = {"site": site, "score_origin": origin}
        own = People.of(group, choices.categories, choices.level)
        label = f"{site} {origin}"
        for name, frame in _of_group(own, choices, generator, result, label, advance):
            found.setdefault(name, []).append(labelled(frame, **place))
    found.setdefault("schoenfeld", [])  # where every model is penalised there is none
    result.tables = {name: joined(parts, name) for name, parts in found.items()}
    return result


def n_groups(people: pl.DataFrame) -> int:
    """Number of groups that `tables` makes tables of."""
    return sum(1 for _ in by_site_and_origin(people))


def hazard_ratios(people: pl.DataFrame, choices: Choices, generator: np.random.Generator) -> Prognosis:
    """Fit the crude and the adjusted model of every exposure by itself, as `tables` does.

    Args:
        people: As for `tables`.
        choices: As for `tables`.
        generator: In the state in which `tables` is given it: resamples tell whether Firth's likelihood is needed.

    Returns:
        In the table `cox` the rows of the categories, with the patients and events of their model (n_model,
        n_events_model).
    """
    result, parts = Prognosis({}), []
    for site, origin, group in by_site_and_origin(people):
        own = People.of(group, choices.categories, choices.level)
        _, penalised = _resampled(own, choices, generator)
        for model in models(choices.exposures, choices.adjust_for):
            if len(model.exposures) == 1:
                fitted = fit_model(own, model, penalised=penalised)
                result.note(fitted, own, f"{site} {origin} {model.name}")
                rows = fitted.categories(choices.level)
                named = {"site": site, "score_origin": origin, "model": model.name}
                parts.append(labelled(rows, **named, n_model=fitted.n, n_events_model=fitted.n_events))
    result.tables["cox"] = joined(parts, "cox")
    return result


def _resampled(people: People, choices: Choices, generator: np.random.Generator) -> tuple[Resamples, bool]:
    """The resamples of a group, and whether its models must be penalised.

    They must where a category of any exposure has fewer than 5 events, or none in one of the resamples (Heinze G,
    Schemper M, Biometrics 2001;57:114-119): there Efron's likelihood has no maximum, or one far away.
    """
    resamples = Resamples.drawn_by(generator, len(people.time), choices.replicates)
    penalised = people.few_events(choices.exposures) or any(
        resamples.leave_out(people.codes(exposure), people.event) for exposure in choices.exposures
    )
    return resamples, penalised


Tables = Iterator[tuple[str, pl.DataFrame]]


def _of_group(
    people: People,
    choices: Choices,
    generator: np.random.Generator,
    result: Prognosis,
    label: str,
    advance: Callable[[int], None],
) -> Tables:
    """Every table of one group of patients."""
    for exposure in choices.exposures:
        yield from _described(people, exposure, choices)
    resamples, penalised = _resampled(people, choices, generator)
    if penalised and people.event.any():
        result.penalised.append(label)
    fits = {
        model.name: fit_model(people, model, penalised=penalised)
        for model in models(choices.exposures, choices.adjust_for)
    }
    for fitted in fits.values():
        result.note(fitted, people, f"{label} {fitted.model.name}")
    made = {name: fitted.fit for name, fitted in fits.items() if fitted.fit is not None and fitted.fit.df}
    refitted, resampled_c = {}, {}
    if made:
        refitted = bootstrap.refit(made, resamples, penalised=penalised, advance=advance)
        resampled_c = bootstrap.discriminate(made, refitted, resamples, advance=advance)
        failed = {f"{label} {name}": int(np.isnan(found.lr_chi2).sum()) for name, found in refitted.items()}
        result.failed_resamples |= {name: n for name, n in failed.items() if n}
    compared = _compared(people, fits, refitted, resampled_c, choices)
    yield from _fit_tables(people, compared, choices)
    rows = list(comparison.rows(compared, choices.margin))
    risks, reasons = predicted_risk.predicted_risks(people, fits, choices.horizon_years)
    rows += category_risk.rows(people, choices.exposures, choices.horizon_years, choices.competing, risks)
    if people.event.any():
        for exposure in choices.exposures:
            rows += subgroups.interactions(people, fits[f"covariates+{exposure}"].model)
    judged, differences = predicted_risk.performance(people, fits, risks, reasons, choices.horizon_years, resamples)
    yield "horizon", judged
    for exposure in choices.exposures:
        if f"{exposure}_ge{risk_curve.THRESHOLD}" in people.table.columns:
            years = max(choices.horizon_years)
            curve = risk_curve.risk_curve(people, exposure, years, resamples)
            yield "risk_curve", labelled(curve, exposure=exposure, threshold=risk_curve.THRESHOLD, horizon_years=years)
    yield "comparison", pl.DataFrame([*rows, *differences], schema=comparison.COLUMNS)


def _compared(
    people: People,
    fits: dict[str, Fitted],
    refitted: dict[str, Refitted],
    resampled_c: dict[str, Discriminated],
    choices: Choices,
) -> Compared:
    """The models with their concordances."""
    scores = {name: fitted.fit.linear_predictor for name, fitted in fits.items() if fitted.fit and fitted.fit.df}
    tau = max(choices.horizon_years) * DAYS_PER_YEAR
    harrell = {
        name: concordance.harrell_c(people.time, people.event, score, people.strata) for name, score in scores.items()
    }
    uno = {
        name: concordance.uno_c(people.time, people.event, score, tau, people.strata) for name, score in scores.items()
    }
    return Compared(fits, harrell, uno, refitted, resampled_c, choices.exposures, choices.level)


def _fit_tables(people: People, compared: Compared, choices: Choices) -> Tables:
    """What is told of each model by itself."""
    for name, fitted in compared.fits.items():
        yield "cox", labelled(fitted.rows(choices.level), model=name)
        yield "cox_fit", labelled(_fit_row(fitted, compared, choices), model=name)
        yield "proportional_hazards", labelled(_proportional_hazards(fitted), model=name)
        yield from _over_time(fitted, choices)
        if len(fitted.model.exposures) == 1:
            for part in subgroups.by_period(people, fitted.model):
                yield "cox", labelled(part, model=name)
            if fitted.model.name.startswith("covariates"):
                for part in subgroups.by_subgroup(people, fitted.model):
                    yield "cox", labelled(part, model=name)


def _described(people: People, exposure: str, choices: Choices) -> Tables:
    """Rates, curves, numbers at risk and log-rank tests of an exposure's categories."""
    years = [*choices.horizon_years, *range(int(max(choices.horizon_years)) + 1)]
    times = sorted({0.0, *map(float, years)})
    codes, level = people.codes(exposure), choices.level
    for code, category in enumerate(choices.categories):
        mine = codes == code
        time, event, competing = people.time[mine], people.event[mine], people.competing[mine]
        named = {"exposure": exposure, "category": category}
        yield "event_rates", labelled(pl.DataFrame([asdict(kaplan_meier.event_rate(time, event, level))]), **named)
        if not mine.any():
            continue
        yield "kaplan_meier", labelled(kaplan_meier.kaplan_meier(time, event, level), **named)
        yield "at_risk", labelled(kaplan_meier.at_risk(time, event, times), **named)
        if choices.competing:
            incidence = cumulative_incidence.cumulative_incidence(time, event + 2 * competing, level)
            causes = pl.col("cause").replace_strict({1: "event", 2: "competing"}, return_dtype=pl.String)
            yield "cumulative_incidence", labelled(incidence.with_columns(causes), **named)
    tests = log_rank.logrank(people.time, people.event, codes, list(choices.categories), people.strata)
    yield "logrank", labelled(tests.filter(pl.col("df") > 0), exposure=exposure)
    if exposure != "true" and "true" in choices.exposures:
        yield "discordance", labelled(_discordance(people, exposure, choices), exposure=exposure)


def _discordance(people: People, exposure: str, choices: Choices) -> pl.DataFrame:
    parts = []
    true, predicted = people.codes("true"), people.codes(exposure)
    for i, row in enumerate(choices.categories):
        for j, column in enumerate(choices.categories):
            cell = (true == i) & (predicted == j)
            rate = kaplan_meier.event_rate(people.time[cell], people.event[cell], choices.level)
            parts.append(labelled(pl.DataFrame([asdict(rate)]), true_category=row, predicted_category=column))
    return pl.concat(parts, how="diagonal_relaxed")


def _fit_row(fitted: Fitted, compared: Compared, choices: Choices) -> pl.DataFrame:
    """The row of cox_fit.csv. Of a penalised fit the AIC is left out: its likelihood is no likelihood of the data."""
    name = fitted.model.name
    harrell, uno, drawn = compared.harrell.get(name), compared.uno.get(name), compared.resampled_c.get(name)
    columns = fitted.columns()
    row: dict[str, object] = {"n": fitted.n, "n_events": fitted.n_events, "df": len(columns)}
    row["events_per_parameter"] = fitted.n_events / len(columns) if columns else None
    row |= {"method": fitted.method, "reason": fitted.reason}
    if fitted.fit is not None:
        row |= {name: getattr(fitted.fit, name) for name in ("loglik_null", "loglik", "lr_chi2", "p")}
        row["aic"] = fitted.fit.aic if fitted.method == "efron" else None
    if harrell is not None:
        row |= {"harrell_c": harrell.c, "harrell_c_se": harrell.se}
        if drawn is not None and harrell.c is not None and np.isfinite(drawn.resample).any():
            # Harrell FE, Lee KL, Mark DB, Stat Med 1996;15:361-387: less the mean optimism of refitted models.
            row["harrell_c_corrected"] = harrell.c - float(np.nanmean(drawn.resample - drawn.original))
    if uno is not None:
        row |= {"uno_c": uno.c, "uno_c_se": uno.se, "tau_days": max(choices.horizon_years) * DAYS_PER_YEAR}
    return pl.DataFrame([row])


def _proportional_hazards(fitted: Fitted) -> pl.DataFrame:
    """Tests of the terms and all of them; without numbers where the model is penalised or not fitted."""
    schema = {"term": pl.String, "chi2": pl.Float64, "df": pl.Int64, "p": pl.Float64, "reason": pl.String}
    labels = fitted.labels()
    reason = fitted.reason or "the score test is not defined for a penalised likelihood"
    if fitted.method == "efron" and labels and fitted.fit is not None:
        try:
            tests = residuals.proportional_hazards(fitted.fit, {label: fitted.positions(label) for label in labels})
            return tests.with_columns(pl.lit(None, pl.String).alias("reason"))
        except np.linalg.LinAlgError:
            reason = "the events are of too few times to tell a change"
    return pl.DataFrame([{"term": label, "reason": reason} for label in (*labels, residuals.GLOBAL)], schema=schema)


def _over_time(fitted: Fitted, choices: Choices) -> Tables:
    """The smoothed log hazard ratios of the adjusted models' categories."""
    if len(fitted.model.exposures) != 1 or fitted.method != "efron" or fitted.model.name.startswith("crude"):
        return
    assert fitted.fit is not None
    for k, term in enumerate(fitted.columns()):
        if term.exposure:
            curve = residuals.coefficient_over_time(fitted.fit, k, choices.level)
            yield "schoenfeld", labelled(curve, model=fitted.model.name, exposure=term.exposure, level=term.level)
