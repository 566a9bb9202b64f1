"""Hazard ratios in parts of the follow-up and of the patients, and whether they differ between parts.

Knows the parts as declared here: periods of follow-up, sex, and age at t0 by 65 years.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
from scipy.special import chdtrc

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.statistics import firth
from cohort_scorer.statistics.inputs import Booleans, Floats
from cohort_scorer.statistics.kaplan_meier import DAYS_PER_YEAR
from cohort_scorer.statistics.regression import Model, People, fit_matrix, fit_model

PERIODS = (("0 to 1 years", 0, 1), ("1 to 5 years", 1, 5), ("over 5 years", 5, np.inf))
AGE_YEARS = 65


def by_period(people: People, model: Model) -> Iterator[pl.DataFrame]:
    """Rows of cox.csv from each period: patients still followed at its start, events up to its end."""
    for name, start, end in PERIODS:
        inside = people.time > start * DAYS_PER_YEAR
        if not inside.any():
            continue
        part = people.part(inside).until(end * DAYS_PER_YEAR)
        fitted = fit_model(part, model, penalised=part.few_events(model.exposures))
        yield fitted.categories(people.level).with_columns(pl.lit(name).alias("period"))


def by_subgroup(people: People, model: Model) -> Iterator[pl.DataFrame]:
    """Rows of cox.csv from each part of the patients."""
    for kind, parts in subgroups(people).items():
        for name, member in parts.items():
            part = people.part(member)
            fitted = fit_model(part, model, penalised=part.few_events(model.exposures))
            yield fitted.categories(people.level).with_columns(pl.lit(f"{kind}: {name}").alias("subgroup"))


def subgroups(people: People) -> dict[str, dict[str, Booleans]]:
    """Who is in which part, by kind and name; kinds of which there is one part alone are left out."""
    found: dict[str, dict[str, Booleans]] = {}
    if "sex" in people.table.columns:
        sexes = people.table["sex"].drop_nulls().unique().sort()
        found["sex"] = {sex: (people.table["sex"] == sex).fill_null(False).to_numpy() for sex in sexes}
    if "age_at_t0_years" in people.table.columns:
        age = people.table["age_at_t0_years"]
        parts = {f"under {AGE_YEARS}": age < AGE_YEARS, f"{AGE_YEARS} and over": age >= AGE_YEARS}
        found["age"] = {name: member.fill_null(False).to_numpy() for name, member in parts.items() if member.any()}
    return {kind: parts for kind, parts in found.items() if len(parts) > 1}


def interactions(people: People, model: Model) -> Iterator[dict[str, object]]:
    """Rows of comparison.csv: do the hazard ratios of the categories differ between parts? A likelihood ratio test.

    The model with the part, and the part times each category, against that without the products.
    """
    exposure = model.exposures[0]
    for kind, parts in subgroups(people).items():
        named = {
            "comparison": f"{model.name} x {kind}",
            "exposure": exposure,
            "statistic": "interaction_lr_chi2",
        }
        inside = np.any(list(parts.values()), axis=0)
        some = people.part(inside)
        found = _interaction(some, model, [member[inside] for member in parts.values()])
        if isinstance(found, str):
            yield {**named, "reason": found}
            continue
        chi2, df, method = found
        yield {**named, "estimate": chi2, "df": df, "p": float(chdtrc(df, chi2)), "method": method}


def _interaction(people: People, model: Model, parts: list[Booleans]) -> tuple[float, int, str] | str:
    penalised = any(people.part(member).few_events(model.exposures) for member in parts)
    fitted = fit_model(people, model, penalised=penalised)
    if fitted.fit is None:
        return str(fitted.reason)
    columns = [term.values for term in fitted.columns() if term.values is not None]
    levels = [term.values for term in fitted.columns() if term.exposure and term.values is not None]
    main = _independent(columns, [member.astype(np.float64) for member in parts[1:]])
    products = _independent([*columns, *main], [member * values for member in parts[1:] for values in levels])
    if not products:
        return "no category is in more than one part"
    smaller = np.column_stack([*columns, *main])
    larger = np.column_stack([smaller, *products])
    try:
        whole = fit_matrix(people, larger, penalised=penalised)
        if isinstance(whole, firth.FirthFit):
            return whole.lost_without(range(smaller.shape[1], larger.shape[1])), len(products), "firth"
        without = fit_matrix(people, smaller, penalised=False)
    except ConvergenceError:
        return "the likelihood has no maximum"
    return max(2 * (whole.loglik - without.loglik), 0.0), len(products), "efron"


def _independent(there: list[Floats], candidates: list[Floats]) -> list[Floats]:
    """Candidates that vary and do not follow from the columns before them."""
    kept: list[Floats] = []
    for candidate in candidates:
        held = np.column_stack([np.ones(len(candidate)), *there, *kept, candidate])
        spread = np.sqrt((held**2).sum(axis=0))
        if np.ptp(candidate) > 0 and np.linalg.matrix_rank(held / spread) == held.shape[1]:
            kept.append(candidate)
    return kept
