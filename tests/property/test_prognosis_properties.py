"""What must hold of comparisons, resamples and risks for any data: order, units, labels, weights, slow definitions."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort_scorer import schemas
from cohort_scorer.statistics import absolute_risk, bootstrap, cox, firth, prognosis
from cohort_scorer.statistics.concordance import harrell_c, uno_c
from cohort_scorer.statistics.horizons import Horizons
from cohort_scorer.statistics.pairs import Pairs
from cohort_scorer.statistics.restricted_mean import restricted_mean

CATEGORIES = schemas.vocabulary("cohort", "true_category")
FEW = settings(max_examples=20, deadline=None)
FEWER = settings(max_examples=5, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def people(seed: int, n: int = 300) -> pl.DataFrame:
    """One site, tied days, competing events; every category of either exposure has events."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 4
    predicted = np.clip(true + rng.choice([-1, 0, 0, 1], n), 0, 3)
    age = rng.normal(60, 9, n)
    event = rng.exponential(6_000 * np.exp(-0.4 * true - 0.03 * (age - 60)))
    other, end = rng.exponential(20_000, n), rng.uniform(400, 3_600, n)
    time = np.ceil(np.minimum(np.minimum(event, other), end) / 20) * 20
    names = np.array(CATEGORIES)
    return pl.DataFrame(
        {
            "site": "A",
            "score_origin": "external",
            "time_days": time,
            "status": np.where(event <= np.minimum(other, end), 1, np.where(other <= end, 2, 0)),
            "true_category": names[true],
            "cxr_category": names[predicted],
            "age_at_t0_years": age,
        }
    )


def tables(rows: pl.DataFrame, horizon_years=(1.0, 3.0, 5.0)) -> dict[str, pl.DataFrame]:
    choices = prognosis.Choices(
        ["true", "cxr"], CATEGORIES, ["age_at_t0_years"], list(horizon_years), True, 0.95, 0, 0.02
    )
    return prognosis.tables(rows, choices, np.random.default_rng(1), lambda done: None).tables


@FEWER
@given(SEEDS)
def test_exposures_that_change_places_turn_ratios_over_and_differences_round(seed):
    rows = people(seed)
    swapped = rows.with_columns(true_category="cxr_category", cxr_category="true_category")
    chosen = pl.col("comparison") == "covariates+cxr v covariates+true"
    first, second = (tables(part)["comparison"].filter(chosen) for part in (rows, swapped))
    for statistic in ("harrell_c_difference", "uno_c_difference", "auc_difference", "brier_difference"):
        one, other = (part.filter(statistic=statistic) for part in (first, second))
        np.testing.assert_allclose(one["estimate"], -other["estimate"], atol=1e-10)
    one, other = (part.filter(statistic="ratio_of_hazard_ratios") for part in (first, second))
    np.testing.assert_allclose(one["estimate"] * other["estimate"], 1, rtol=1e-8)
    np.testing.assert_allclose(one["se"], other["se"], rtol=1e-7)
    one, other = (part.filter(statistic="relative_lr") for part in (first, second))
    np.testing.assert_allclose(one["estimate"] * other["estimate"], 1, rtol=1e-8)


@FEW
@given(SEEDS, st.booleans())
def test_another_reference_category_gives_the_same_model(seed, penalised):
    rows = people(seed)
    codes = np.arange(len(rows)) % 4
    event, age = rows["status"] == 1, rows["age_at_t0_years"].to_numpy()
    design = [np.column_stack([*(codes == k for k in range(4) if k != left), age]) for left in (0, 2)]
    fit = firth.fit if penalised else cox.fit
    first, second = (fit(rows["time_days"], event, x.astype(float)) for x in design)
    b, c = first.coefficients, second.coefficients
    np.testing.assert_allclose(c, [-b[1], b[0] - b[1], b[2] - b[1], b[3]], atol=1e-6)
    assert first.lr_chi2 == pytest.approx(second.lr_chi2, abs=1e-8)
    np.testing.assert_allclose(absolute_risk.risk(first, 1000), absolute_risk.risk(second, 1000), atol=1e-7)


@FEW
@given(SEEDS, st.sampled_from([1 / 365.25, 7.0]))
def test_the_unit_of_time_changes_no_risk_and_no_concordance(seed, factor):
    rows = people(seed)
    time, status = rows["time_days"].to_numpy(), rows["status"].to_numpy()
    x = np.column_stack([np.arange(len(rows)) % 4, rows["age_at_t0_years"]]).astype(float)
    fits = [[cox.fit(time * unit, status == kind, x) for kind in (1, 2)] for unit in (1.0, factor)]
    risks = [absolute_risk.incidence(*pair, [1000 * unit]) for pair, unit in zip(fits, (1.0, factor), strict=True)]
    np.testing.assert_allclose(*risks, rtol=1e-9)
    score = risks[0][0]
    for first, second in (
        (harrell_c(time, status == 1, score), harrell_c(time * factor, status == 1, score)),
        (uno_c(time, status == 1, score, 1000), uno_c(time * factor, status == 1, score, 1000 * factor)),
    ):
        assert (first.c, first.se) == pytest.approx((second.c, second.se), rel=1e-12)
    mean, se = restricted_mean(time, status == 1, 1000)
    assert restricted_mean(time * factor, status == 1, 1000 * factor) == pytest.approx((mean * factor, se * factor))


class Given(bootstrap.Resamples):
    """Resamples that are given, not drawn."""

    def __init__(self, counts):
        super().__init__(len(counts[0]), [])
        object.__setattr__(self, "counts", counts)

    def __iter__(self):
        return iter(self.counts)


@FEW
@given(SEEDS)
def test_equal_weights_leave_the_coefficients_and_multiply_the_likelihood_ratio(seed):
    rows = people(seed)
    x = np.column_stack([np.arange(len(rows)) % 4, rows["age_at_t0_years"]]).astype(float)
    fitted = cox.fit(rows["time_days"], rows["status"] == 1, x)
    once = np.ones(len(rows), dtype=np.int64)
    found = bootstrap.refit({"m": fitted}, Given([once, 3 * once]), penalised=False, advance=lambda done: None)["m"]
    np.testing.assert_allclose(found.coefficients, [fitted.coefficients] * 2, atol=1e-8)
    np.testing.assert_allclose(found.lr_chi2, fitted.lr_chi2 * np.array([1, 3]), rtol=1e-8)


@FEW
@given(SEEDS)
def test_a_penalised_resample_is_the_penalised_fit_of_its_weights(seed):
    rows = people(seed, 80)
    x = np.column_stack([np.arange(80) % 4 == k for k in (1, 2, 3)]).astype(float)
    time, event = rows["time_days"].to_numpy(), (rows["status"] == 1).to_numpy()
    event[:2] = True
    counts = np.random.default_rng(seed).multinomial(80, [1 / 80] * 80)
    drawn = counts > 0
    fitted = firth.fit(time, event, x)
    found = bootstrap.refit({"m": fitted}, Given([counts]), penalised=True, advance=lambda done: None)["m"]
    if not event[drawn].any() or (np.ptp(x[drawn], axis=0) == 0).any():
        return
    own = firth.fit(time[drawn], event[drawn], x[drawn], weights=counts[drawn])
    np.testing.assert_allclose(found.coefficients[0], own.coefficients, atol=1e-6)


@FEW
@given(SEEDS)
def test_weights_count_as_copies_in_c_and_at_horizons(seed):
    rng = np.random.default_rng(seed)
    n = 60
    time, status, stratum = np.ceil(rng.exponential(10, n)), rng.choice(3, n, p=[0.4, 0.4, 0.2]), rng.integers(0, 2, n)
    status[:4], time[:4] = 1, 2
    score, counts = rng.integers(0, 12, n), rng.multinomial(n, [1 / n] * n)
    copies = np.repeat(np.arange(n), counts)
    weighted, plain = Pairs.build(time, status == 1, stratum).harrell_c(score, counts)
    # A patient and his copy are of one time: no pair.
    assert weighted == pytest.approx(harrell_c(time[copies], status[copies] == 1, score[copies], stratum[copies]).c)
    assert plain == pytest.approx(harrell_c(time, status == 1, score, stratum).c)
    risk = score / 12
    horizons = [3.0, 8.0]
    found = Horizons.build(time, status, horizons, np.tile(risk, (2, 1, 1)), stratum).judge(counts.astype(float))
    slow = Horizons.build(time[copies], status[copies], horizons, np.tile(risk[copies], (2, 1, 1)), stratum[copies])
    again = slow.judge(np.ones(len(copies)))
    for name in ("auc", "brier", "ipa"):
        np.testing.assert_allclose(getattr(found, name), getattr(again, name), atol=1e-12)


def censoring(time, status, at: float, before: bool) -> float:
    """Kaplan-Meier of censoring, an event before a censoring of the same time."""
    found = 1.0
    for t in np.unique(time[status == 0]):
        if t < at or (t == at and not before):
            found *= 1 - ((time == t) & (status == 0)).sum() / ((time > t) | ((time == t) & (status == 0))).sum()
    return found


@FEW
@given(SEEDS)
def test_uno_c_and_auc_at_a_horizon_are_those_of_all_pairs_written_out(seed):
    rng = np.random.default_rng(seed)
    n, tau = 40, 8.0
    time, status, score = np.ceil(rng.exponential(10, n)), rng.choice(3, n, p=[0.4, 0.4, 0.2]), rng.integers(0, 9, n)
    status[:3], time[:3], time[3] = 1, 2, 30
    died = status == 1
    top = bottom = 0.0
    for i in np.flatnonzero(died & (time < tau)):
        weight = 1 / censoring(time, np.where(died, 1, 0), time[i], before=True) ** 2
        later = (time > time[i]) | ((time == time[i]) & ~died)
        top += weight * ((score[i] > score[later]) + (score[i] == score[later]) / 2).sum()
        bottom += weight * later.sum()
    assert uno_c(time, died, score, tau).c == pytest.approx(top / bottom, abs=1e-12)

    top = bottom = 0.0
    own = [1 / censoring(time, status, t, before=True) for t in time]
    beyond = 1 / censoring(time, status, tau, before=False)
    for i in np.flatnonzero(died & (time <= tau)):
        for j in range(n):
            if time[j] > tau or status[j] == 2:
                weight = own[i] * (beyond if time[j] > tau else own[j])
                top += weight * ((score[i] > score[j]) + (score[i] == score[j]) / 2)
                bottom += weight
    found = Horizons.build(time, status, [tau], score[None, None, :] / 9).judge(np.ones(n))
    assert found.auc[0, 0] == pytest.approx(top / bottom, abs=1e-12)


@FEW
@given(SEEDS)
def test_the_restricted_mean_is_the_area_under_the_curve_written_out(seed):
    rng = np.random.default_rng(seed)
    time, event, tau = np.ceil(rng.exponential(10, 50)), rng.random(50) < 0.5, 12.0
    area, survival = 0.0, 1.0
    for day in range(12):  # the curve is flat from one whole day to the next
        at_risk = (time >= day).sum()
        survival *= 1 - (event & (time == day)).sum() / at_risk if at_risk else 1.0
        area += survival
    assert restricted_mean(time, event, tau)[0] == pytest.approx(area, abs=1e-12)


def test_resamples_are_the_same_at_every_reading_and_for_every_state_of_a_generator():
    first = bootstrap.Resamples.drawn_by(np.random.default_rng(5), 30, 4)
    again = bootstrap.Resamples.drawn_by(np.random.default_rng(5), 30, 4)
    drawn = [list(resamples) for resamples in (first, first, again)]
    for counts in zip(*drawn, strict=True):
        assert counts[0].sum() == 30
        np.testing.assert_array_equal(counts[0], counts[1])
        np.testing.assert_array_equal(counts[0], counts[2])
    assert len({counts.tobytes() for counts in drawn[0]}) == 4
