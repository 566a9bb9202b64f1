"""Residuals, the test of proportional hazards and ratios of hazard ratios equal R's (values/residuals.json).

Firth's estimates, for which no R package was at hand, equal those of an independent, slow maximisation.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.optimize import brentq, minimize

from cohort_scorer.statistics import cox, firth, residuals

HERE = Path(__file__).parent
R = json.loads((HERE / "values/residuals.json").read_text())
LUNG = pl.read_csv(HERE / "fixtures/lung.csv").drop_nulls("ph_ecog")
TIED = pl.read_csv(HERE / "fixtures/tied.csv").with_columns(event=pl.col("status") == 1)
COLON = pl.read_csv(HERE / "fixtures/colon.csv")
LUNG_X = LUNG.select("age", "sex", "ph_ecog").to_numpy()
TIED_X = np.column_stack([TIED["true_code"].to_numpy() == k for k in (1, 2, 3)] + [TIED["age"].to_numpy()])


def fitted(name: str) -> cox.CoxFit:
    if name == "lung":
        return cox.fit(LUNG["time"], LUNG["event"], LUNG_X)
    strata = TIED["stratum"] if "_" in name else None
    return cox.fit(
        TIED["time"], TIED["event"], TIED_X, strata=strata, weights=TIED["weight"] if name == "tied_weights" else None
    )


@pytest.mark.parametrize("name", ["lung", "tied_strata", "tied_weights"])
def test_residuals_equal_r(name: str) -> None:
    fit, expected = fitted(name), R[name]
    np.testing.assert_allclose(residuals.martingale(fit), expected["martingale"], atol=1e-10)
    np.testing.assert_allclose(residuals.score(fit), expected["score"], atol=1e-10)
    # R multiplies these by the case weights, as what is left out then is the row with its weight.
    weight = TIED["weight"].to_numpy()[:, None] if name == "tied_weights" else 1.0
    np.testing.assert_allclose(weight * residuals.dfbeta(fit), expected["dfbeta"], atol=1e-10)
    rows, found = residuals.schoenfeld(fit)
    table = LUNG if name == "lung" else TIED
    strata = np.zeros(len(table)) if name == "lung" else table["stratum"].to_numpy()
    order = np.lexsort((table["time"].to_numpy()[rows], strata[rows]))
    np.testing.assert_allclose(found[order], expected["schoenfeld"], atol=1e-10)
    np.testing.assert_array_equal(table["time"].to_numpy()[rows][order], expected["schoenfeld_time"])


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("lung", {"age": [0], "sex": [1], "ph_ecog": [2]}),
        ("tied", {"category": [0, 1, 2], "age": [3]}),
        ("tied_strata", {"category": [0, 1, 2], "age": [3]}),
    ],
)
def test_the_test_of_proportional_hazards_equals_r(name: str, terms: dict[str, list[int]]) -> None:
    found, expected = residuals.proportional_hazards(fitted(name), terms), R[f"zph_{name}"]
    assert found["term"].to_list() == [*terms, "GLOBAL"]
    assert found["df"].to_list() == expected["df"]
    np.testing.assert_allclose(found["chi2"], expected["chi2"], rtol=1e-8)
    np.testing.assert_allclose(found["p"], expected["p"], rtol=1e-8)


def test_the_ratio_of_hazard_ratios_is_that_of_the_stacked_model() -> None:
    """The oracle of colon, etype 2: differences of coefficients, with the dfbetas of both models for the error."""

    def model(level: pl.Series) -> cox.CoxFit:
        x = np.column_stack([COLON["age"].to_numpy(), level.to_numpy() == 2, level.to_numpy() == 3])
        if level.name == "extent":
            x = np.column_stack([COLON["age"].to_numpy(), level.to_numpy() == 3, level.to_numpy() == 4])
        return cox.fit(COLON["time"], COLON["status"] == 1, x)

    assert len(COLON) == 906
    one, other = model(COLON["differ"]), model(COLON["extent"].clip(2, None))
    ratio = (one.coefficients - other.coefficients)[1:]
    error = np.sqrt(((residuals.dfbeta(one) - residuals.dfbeta(other)) ** 2).sum(axis=0))[1:]
    np.testing.assert_allclose(ratio, R["ratio_colon"]["log_ratio"], atol=1e-8)
    np.testing.assert_allclose(error, R["ratio_colon"]["se"], atol=1e-8)
    np.testing.assert_allclose(ratio, [-0.609783711921, -0.574479193210], atol=1e-9)
    np.testing.assert_allclose(error, [0.226594519926, 0.314524310806], atol=1e-9)


def slow_penalised(time: np.ndarray, event: np.ndarray, x: np.ndarray, beta: np.ndarray) -> float:
    """Efron's log partial likelihood and half the log determinant of its information, patient by patient."""
    loglik, information = 0.0, np.zeros((len(beta), len(beta)))
    for t in np.unique(time[event]):
        at_risk, dying = np.flatnonzero(time >= t), np.flatnonzero((time == t) & event)
        for number in range(len(dying)):
            share = np.where(np.isin(at_risk, dying), 1 - number / len(dying), 1.0)
            weight = share * np.exp(x[at_risk] @ beta)
            mean = weight @ x[at_risk] / weight.sum()
            loglik += x[dying[number]] @ beta - np.log(weight.sum())
            information += (x[at_risk] * weight[:, None]).T @ x[at_risk] / weight.sum() - np.outer(mean, mean)
    return loglik + np.linalg.slogdet(information)[1] / 2


def small_study(ties: bool, separated: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    x = np.column_stack([rng.random(60) < 0.4, rng.normal(size=60)]).astype(float)
    time = rng.exponential(np.exp(-0.7 * x[:, 0]))
    event = rng.random(60) < 0.5
    if separated:
        event &= x[:, 0] == 1
    return (np.ceil(time * 4) if ties else time), event, x


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("separated", [False, True])
def test_firth_equals_a_slow_maximisation(ties: bool, separated: bool) -> None:
    """Where everybody with an event is in one category too: R's coxph has no maximum there."""
    time, event, x = small_study(ties, separated)
    found = firth.fit(time, event, x)

    def minus(beta: np.ndarray) -> float:
        return -slow_penalised(time, event, x, beta)

    best = minimize(minus, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000})
    np.testing.assert_allclose(found.coefficients, best.x, atol=1e-6)
    assert found.loglik == pytest.approx(-best.fun, abs=1e-9)
    assert found.loglik_null == pytest.approx(-minus(np.zeros(2)), abs=1e-9)

    def profile(value: float) -> float:
        held = minimize(
            lambda other: minus(np.array([value, other[0]])), best.x[1:], method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-13},
        )  # fmt: skip
        return float(held.fun - best.fun - 3.841458820694124 / 2)

    lower, upper, _ = found.profile()
    for limit, far in ((lower[0], best.x[0] - 6), (upper[0], best.x[0] + 9)):
        assert limit == pytest.approx(brentq(profile, best.x[0], far, xtol=1e-8), abs=1e-5)


def test_firth_knows_no_unit_of_a_column() -> None:
    time, event, x = small_study(True, True)
    plain, scaled = firth.fit(time, event, x), firth.fit(time, event, x * np.array([1.0, 365.25]))
    np.testing.assert_allclose(scaled.coefficients * np.array([1.0, 365.25]), plain.coefficients, rtol=1e-7)
    np.testing.assert_allclose(scaled.profile()[2], plain.profile()[2], rtol=1e-6)
    assert scaled.loglik - scaled.loglik_null == pytest.approx(plain.loglik - plain.loglik_null, abs=1e-9)


def test_firth_with_strata_and_weights_is_the_sum_over_strata_and_copies() -> None:
    """Two equal strata double the likelihood, as weights of two do where there are no ties."""
    time, event, x = small_study(False, False)
    twice = firth.fit(np.tile(time, 2), np.tile(event, 2), np.tile(x, (2, 1)), strata=np.repeat([0, 1], len(time)))
    weighted = firth.fit(time, event, x, weights=np.full(len(time), 2.0))
    np.testing.assert_allclose(twice.coefficients, weighted.coefficients, atol=1e-8)
    np.testing.assert_allclose(twice.profile()[0], weighted.profile()[0], atol=1e-7)
