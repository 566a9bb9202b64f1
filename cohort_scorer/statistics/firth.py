"""Cox's model by Firth's penalised likelihood, for categories with few or no events: estimates stay finite.

Firth D, Biometrika 1993;80:27-38; Heinze G, Schemper M, Biometrics 2001;57:114-119: half the log determinant of the
information is added to Efron's log partial likelihood. Intervals and p values are of the profile penalised likelihood:
it is far from quadratic where events are few.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import chdtrc, chdtri

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.statistics.inputs import Floats, equal_lengths, floats, strata_codes, survival
from cohort_scorer.statistics.risk_sets import RiskSets

_MAXIMUM_ITERATIONS = 200
_GRADIENT_TOLERANCE = 1e-9
_LARGEST_STEP = 2.0  # in standard deviations of a column: the first steps of a separated category overshoot
_FARTHEST = 60.0


@dataclass(frozen=True, eq=False)
class FirthFit:
    """A penalised Cox model with p terms.

    Attributes:
        coefficients: Log hazard ratios per unit of each column, shape (p,).
        standard_errors: Of the inverse information there, shape (p,); intervals are not made of them.
        lower: Profile limits of the coefficients, shape (p,); -inf where there is none.
        upper: The same, inf where there is none.
        p: Penalised likelihood ratio p value of each coefficient, shape (p,).
        loglik_null: Penalised log likelihood with all coefficients 0.
        loglik: The same at the coefficients.
        linear_predictor: Coefficients times columns less their means, shape (n,), in the order of the input.
    """

    coefficients: Floats
    standard_errors: Floats
    lower: Floats
    upper: Floats
    p: Floats
    loglik_null: float
    loglik: float
    linear_predictor: Floats


def fit(
    time: npt.ArrayLike,
    event: npt.ArrayLike,
    covariates: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    level: float = 0.95,
) -> FirthFit:
    """Maximise the penalised likelihood.

    Args:
        time: Follow-up, any unit, >= 0, shape (n,).
        event: True where follow-up ends with the event, at least once, shape (n,).
        covariates: Shape (n, p), p >= 1, no column constant or a sum of others.
        strata: Labels of strata with a baseline hazard each, shape (n,), or None.
        weights: Case weights > 0, shape (n,), or None.
        level: Confidence level of the profile limits.

    Returns:
        The fit.

    Raises:
        ConvergenceError: The penalised likelihood has no maximum that could be found.
        ValueError: If the arrays do not fit together.
    """
    times, died = survival(time, event)
    z = np.asarray(covariates, dtype=np.float64)
    case = np.ones(len(times)) if weights is None else floats("weights", weights)
    equal_lengths(time=times, covariates=z, weights=case)
    centre, scale = z.mean(axis=0), z.std(axis=0)
    sets = RiskSets.build(times, died, strata_codes(strata, len(times)), case)
    scaled = (z[sets.order] - centre) / scale
    null = _evaluate(sets, scaled, np.zeros(z.shape[1])).loglik
    free = np.ones(z.shape[1], dtype=np.bool_)
    beta, best = _maximise(sets, scaled, np.zeros(z.shape[1]), free)
    errors = np.sqrt(np.diag(np.linalg.inv(best.information)))
    half_chi2 = float(chdtri(1, 1 - level)) / 2
    limits = np.array([_limits(sets, scaled, beta, best.loglik, errors[k], k, half_chi2) for k in range(len(beta))])
    p = np.array(
        [chdtrc(1, max(2 * (best.loglik - _profile(sets, scaled, beta, k, 0.0)), 0)) for k in range(len(beta))]
    )
    coefficients = beta / scale
    predictor = np.zeros(len(times))
    for k, coefficient in enumerate(coefficients):
        predictor += (z[:, k] - centre[k]) * coefficient
    # The information of unscaled columns is larger by the product of the scales: the determinants know their unit.
    unit = float(np.log(scale).sum())
    return FirthFit(
        coefficients,
        errors / scale,
        limits[:, 0] / scale,
        limits[:, 1] / scale,
        p,
        null + unit,
        best.loglik + unit,
        predictor,
    )


@dataclass(frozen=True, eq=False)
class _Point:
    """Penalised log likelihood, its gradient (p,) and the information (p, p) at one beta."""

    loglik: float
    gradient: Floats
    information: Floats


def _evaluate(sets: RiskSets, z: Floats, beta: Floats) -> _Point:
    """The gradient of log det I is tr(I^-1 dI): third central moments of the columns in the risk sets."""
    eta = z @ beta
    eta -= eta.mean()
    relative = sets.weights * np.exp(eta)
    below = sets.denominators(relative)
    events = sets.event_rows
    share = sets.mean_weight / below
    expected = relative * sets.lived(share)
    means = np.stack([sets.denominators(relative * column) / below for column in z.T])
    moment = (z * expected[:, None]).T @ z
    information = moment - (means * sets.mean_weight) @ means.T
    sign, logdet = np.linalg.slogdet(information)
    loglik = sets.weights[events] @ eta[events] - sets.mean_weight @ np.log(below) + logdet / 2
    if sign <= 0 or not np.isfinite(loglik):
        return _Point(-np.inf, np.zeros(len(beta)), information)
    inverse = np.linalg.inv(information)
    squares = np.einsum("ij,jk,ik->i", z, inverse, z)
    mean_squares = sets.denominators(relative * squares) / below
    spread = np.einsum("je,jk,ke->e", means, inverse, means)
    third = z.T @ (squares * expected)
    for k, mean in enumerate(means):
        held = relative * sets.lived(share * mean)
        third -= 2 * ((z * held[:, None]).T @ (z @ inverse[:, k]))
        third[k] -= (sets.mean_weight * mean) @ mean_squares - 2 * (sets.mean_weight * mean) @ spread
    gradient = z.T @ (sets.weights * sets.event - expected) + third / 2
    return _Point(float(loglik), gradient, information)


def _maximise(sets: RiskSets, z: Floats, beta: Floats, free: npt.NDArray[np.bool_]) -> tuple[Floats, _Point]:
    """Newton's method on the free coefficients, the steps halved until the likelihood does not fall."""
    point = _evaluate(sets, z, beta)
    for _ in range(_MAXIMUM_ITERATIONS):
        if (
            not free.any()
            or np.abs(point.gradient[free]).max() < _GRADIENT_TOLERANCE * max(1, abs(point.loglik)) ** 0.5
        ):
            return beta, point
        step = np.zeros(len(beta))
        step[free] = np.linalg.solve(point.information[np.ix_(free, free)], point.gradient[free])
        step *= min(1.0, _LARGEST_STEP / np.abs(step).max())
        floor = point.loglik - 1e-13 * abs(point.loglik)
        for _ in range(40):
            candidate = _evaluate(sets, z, beta + step)
            if candidate.loglik >= floor:
                break
            step = step / 2
        else:
            return beta, point
        beta, point = beta + step, candidate
    raise ConvergenceError(
        f"A penalised Cox model did not converge in {_MAXIMUM_ITERATIONS} steps.",
        "Expected a maximum of the penalised likelihood; its gradient does not vanish.",
        "Drop a covariate, merge sparse categories, or choose an outcome with more events.",
    )


def _profile(sets: RiskSets, z: Floats, beta: Floats, k: int, value: float) -> float:
    """The penalised log likelihood with coefficient k held at a value, the others at their best."""
    held = beta.copy()
    held[k] = value
    free = np.ones(len(beta), dtype=np.bool_)
    free[k] = False
    return _maximise(sets, z, held, free)[1].loglik


def _limits(
    sets: RiskSets, z: Floats, beta: Floats, loglik: float, error: float, k: int, half_chi2: float
) -> tuple[float, float]:
    """Where the profile has fallen by half the quantile on both sides."""

    def excess(value: float) -> float:
        return _profile(sets, z, beta, k, value) - (loglik - half_chi2)

    found = []
    for side in (-1.0, 1.0):
        near, far = beta[k], beta[k] + side * 2 * error
        while excess(far) > 0 and abs(far - beta[k]) < _FARTHEST:
            near, far = far, far + side * 2 * error
        found.append(brentq(excess, near, far, xtol=1e-10) if excess(far) <= 0 else side * np.inf)
    return found[0], found[1]
