"""Do 95 % intervals hold the truth in 95 % of cohorts? Simulated, with truth from two million patients.

The cohorts are drawn from one population: a true category with proportional hazards, a predicted one that is the true
one seen through noise, age, and censoring by staggered entry. Truth is what the same models find in two million of its
patients under the same censoring: the model of the predicted category has no proportional hazards, so its hazard ratio
depends on the censoring.
"""

import numpy as np
import polars as pl
import pytest

from cohort_scorer import schemas
from cohort_scorer.statistics import comparison
from cohort_scorer.statistics.comparison import Compared
from cohort_scorer.statistics.concordance import harrell_c
from cohort_scorer.statistics.proportions import wilson
from cohort_scorer.statistics.regression import People, fit_model, models

pytestmark = pytest.mark.soak

CATEGORIES = schemas.vocabulary("cohort", "true_category")
SHARES = np.array([0.42, 0.28, 0.17, 0.13])
COHORTS, SIZE, POPULATION = 1_000, 1_000, 2_000_000
NAMES = ("covariates+cxr", "covariates+true")


def population(rng: np.random.Generator, n: int) -> pl.DataFrame:
    """Continuous times, so that ties play no part; about one patient in four has the event."""
    latent = rng.normal(size=n)
    age = 60 + 4 * latent + rng.normal(0, 8, n)
    cuts = np.array([-0.20, 0.52, 1.13])
    noisy = (latent + rng.normal(0, 0.8, n)) / np.sqrt(1.64)
    true, predicted = (np.searchsorted(cuts, score) for score in (latent, noisy))
    hazard = 0.02 * np.array([1.0, 1.8, 3.0, 5.0])[true] * np.exp(0.03 * (age - 60))
    event, end = rng.exponential(1 / hazard), rng.uniform(3, 10, n)
    names = np.array(CATEGORIES)
    return pl.DataFrame(
        {
            "site": "A",
            "score_origin": "external",
            "time_days": np.minimum(event, end) * 365.25,
            "status": (event <= end).astype(int),
            "true_category": names[true],
            "cxr_category": names[predicted],
            "age_at_t0_years": age,
        }
    )


def estimates(people: pl.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Estimate and limits of every quantity that is judged; ratios as they are printed."""
    own = People.of(people, CATEGORIES, 0.95)
    fits = {
        model.name: fit_model(own, model, penalised=own.few_events(["true", "cxr"]))
        for model in models(["true", "cxr"], ["age_at_t0_years"])
        if model.name in NAMES
    }
    found = {}
    for name, fitted in fits.items():
        for row in fitted.rows(0.95).drop_nulls("coef").iter_rows(named=True):
            found[f"hazard ratio, {name}, {row['level'] or row['term']}"] = (row["hr"], row["lower"], row["upper"])
    c = {
        name: harrell_c(own.time, own.event, fitted.fit.linear_predictor)
        for name, fitted in fits.items()
        if fitted.fit is not None
    }
    compared = Compared(fits, c, c, {}, {}, ["true", "cxr"], 0.95)
    for row in comparison.rows(compared, None):
        judged = row["statistic"] in ("ratio_of_hazard_ratios", "harrell_c_difference")
        if judged and row["comparison"] == "covariates+cxr v covariates+true":
            name = f"{row['statistic']} {row.get('level') or ''}".strip()
            found[name] = (row["estimate"], row["lower"], row["upper"])
    return found


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(2025)
    truth = {name: value for name, (value, _, _) in estimates(population(rng, POPULATION)).items()}
    within = dict.fromkeys(truth, 0)
    for _ in range(COHORTS):
        for name, (_, lower, upper) in estimates(population(rng, SIZE)).items():
            within[name] += lower <= truth[name] <= upper
    print()
    failed = []
    for name, count in within.items():
        _, lower, upper = wilson(count, COHORTS, 0.99)
        holds = lower <= 0.965 and upper >= 0.935
        print(f"{name}: truth {truth[name]:.4f}, covered {count / COHORTS:.3f} ({lower:.3f} to {upper:.3f})")
        if not holds:
            failed.append(name)
    assert len(within) == 2 * 4 + 3 + 1
    assert not failed
