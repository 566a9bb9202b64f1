"""Cox's model by Firth's penalised likelihood, for categories with few or no events: estimates stay finite.

Firth D, Biometrika 1993;80:27-38; Heinze G, Schemper M, Biometrics 2001;57:114-119: half the log determinant of the
information is added to Efron's log partial likelihood. Intervals and p values are of the profile penalised likelihood:
it is far from quadratic where events are few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import brentq
from scipy.special import chdtrc, chdtri

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.statistics.cox import CoxFit, not_converged, predictor, weak_pivot
from cohort_scorer.statistics.inputs import Booleans, Floats, Integers, equal_lengths, floats, strata_codes, survival
from cohort_scorer.statistics.partial_likelihood import CaseWeights, Point, evaluate
from cohort_scorer.statistics.risk_sets import RiskSets

_MAXIMUM_ITERATIONS = 200
_GRADIENT_TOLERANCE = 1e-9
LARGEST_STEP = 2.0
"""In standard deviations of a column: the first steps of a separated category overshoot."""
_PLAIN_STEPS = 6
_DIFFERENCE = 1e-5
"""In standard deviations of a column."""
_LIMIT_STEPS = 60
_LIMIT_TOLERANCE = 1e-9
_FARTHEST = 60.0


@dataclass(frozen=True, eq=False)
class FirthFit(CoxFit):
    """A penalised Cox model with p terms; its log likelihoods are penalised, its covariance that of the information.

    Attributes:
        likelihood: What was maximised.
    """

    likelihood: "Likelihood"

    def profile(self, level: float = 0.95, columns: Sequence[int] | None = None) -> tuple[Floats, Floats, Floats]:
        """Profile limits of coefficients and their penalised likelihood ratio p values, each of shape (p,).

        Of the columns that are asked for, or all; NaN in the others. A limit is -inf or inf where the profile does not
        fall so far; limits and p values that were not found are NaN.
        """
        scale = self.covariates.std(axis=0)
        beta = self.coefficients * scale
        best = self.likelihood.at(beta)
        target = float(best.loglik) - float(chdtri(1, 1 - level)) / 2
        found = np.full((3, self.df), np.nan)
        for k in range(self.df) if columns is None else columns:
            found[:2, k] = [self.likelihood.limit(beta, best, k, side, target) / scale[k] for side in (-1, 1)]
            found[2, k] = chdtrc(1, self._lost_or_nan(k))
        return found[0], found[1], found[2]

    def _lost_or_nan(self, column: int) -> float:
        try:
            return self.lost_without([column])
        except ConvergenceError:
            return float("nan")

    def lost_without(self, columns: Sequence[int]) -> float:
        """Twice the penalised log likelihood that is lost when the coefficients of some columns are held at 0.

        The penalty stays that of the whole model (Heinze and Schemper 2001, section 2.3): likelihoods with different
        penalties are not nested.

        Raises:
            ConvergenceError: There is no maximum without them.
        """
        beta = self.coefficients * self.covariates.std(axis=0)
        held = self.likelihood.without(beta, columns)
        return max(2 * float(self.likelihood.at(beta).loglik - held.loglik), 0.0)

    def table(self, level: float = 0.95, columns: Sequence[int] | None = None) -> pl.DataFrame:
        """One row per term with profile limits, of the columns that are asked for, or all; there is no z."""
        lower, upper, p = self.profile(level, columns)
        return pl.DataFrame(
            {
                "coef": self.coefficients,
                "se": self.standard_errors,
                "hr": np.exp(self.coefficients),
                "lower": pl.Series(np.where(np.isfinite(lower), np.exp(lower), np.nan)).fill_nan(None),
                "upper": pl.Series(np.where(np.isfinite(upper), np.exp(upper), np.nan)).fill_nan(None),
                "z": pl.Series([None] * self.df, dtype=pl.Float64),
                "p": pl.Series(p).fill_nan(None),
            }
        )


def fit(
    time: npt.ArrayLike,
    event: npt.ArrayLike,
    covariates: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
) -> FirthFit:
    """Maximise the penalised likelihood.

    Args:
        time: Follow-up, any unit, >= 0, shape (n,).
        event: True where follow-up ends with the event, at least once, shape (n,).
        covariates: Shape (n, p), no column constant or a sum of others.
        strata: Labels of strata with a baseline hazard each, shape (n,), or None.
        weights: Case weights > 0, shape (n,), or None.

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
    likelihood = Likelihood.of(times, died, z, strata_codes(strata, len(times)), case)
    nothing = np.zeros(z.shape[1])
    null = likelihood.at(nothing)
    weak = weak_pivot(null.information, null.moment)
    if weak is not None:
        raise not_converged(weak, None, "is constant within strata or follows from the terms before it")
    beta, best, iterations = likelihood.maximise(nothing, np.ones(len(nothing), dtype=np.bool_))
    covariance = np.linalg.inv(best.information)
    coefficients = beta / scale
    covariance = covariance / np.outer(scale, scale)
    # The information of unscaled columns is larger by the product of the scales: the determinants know their unit.
    unit = float(np.log(scale).sum())
    return FirthFit(
        coefficients=coefficients,
        standard_errors=np.sqrt(np.diag(covariance)),
        covariance=covariance,
        loglik_null=float(null.loglik) + unit,
        loglik=float(best.loglik) + unit,
        n=len(times),
        n_events=int(died.sum()),
        iterations=iterations,
        linear_predictor=predictor(z, centre, coefficients),
        covariates=z,
        weights=case,
        sets=likelihood.sets,
        likelihood=likelihood,
    )


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The penalised likelihood of standardised columns (p, n)."""

    sets: RiskSets
    case: CaseWeights
    columns: Floats

    @classmethod
    def of(cls, time: Floats, event: Booleans, z: Floats, stratum: Integers, weights: Floats) -> "Likelihood":
        """Standardise the columns (n, p) and sort the rows."""
        sets = RiskSets.build(time, event, stratum)
        columns = np.ascontiguousarray(((z[sets.order] - z.mean(axis=0)) / z.std(axis=0)).T)
        return cls(sets, CaseWeights.of(sets, weights[sets.order]), columns)

    def at(self, beta: Floats) -> Point:
        """The penalised likelihood at coefficients of the standardised columns."""
        return evaluate(self.sets, self.case, self.columns, beta, penalised=True)

    def curvature(self, beta: Floats, point: Point, plain: bool) -> Floats:
        """What a step is divided by: the information, or the penalised likelihood's own second derivatives.

        Where events are few the penalty bends the likelihood as much as the data do, and steps by the information
        alone take hundreds. Second derivatives are differences of the gradient, where they are positive definite.
        """
        if plain:
            return point.information
        moved = self.at(beta + _DIFFERENCE * np.eye(len(beta)))
        bent = -(moved.gradient - point.gradient) / _DIFFERENCE
        bent = (bent + bent.T) / 2
        if not np.isfinite(bent).all() or np.linalg.eigvalsh(bent)[0] <= 0:
            return point.information
        return np.asarray(bent)

    def maximise(self, beta: Floats, free: Booleans) -> tuple[Floats, Point, int]:
        """Newton's method on the free coefficients, the steps halved until the likelihood does not fall."""
        point = self.at(beta)
        for iteration in range(_MAXIMUM_ITERATIONS):
            scale = max(1, abs(float(point.loglik))) ** 0.5
            if not free.any() or np.abs(point.gradient[free]).max() < _GRADIENT_TOLERANCE * scale:
                return beta, point, iteration
            step = np.zeros(len(beta))
            bent = self.curvature(beta, point, plain=iteration < _PLAIN_STEPS)
            try:
                step[free] = np.linalg.solve(bent[np.ix_(free, free)], point.gradient[free])
            except np.linalg.LinAlgError:
                break
            step *= min(1.0, LARGEST_STEP / np.abs(step).max())
            floor = point.loglik - 1e-13 * abs(point.loglik)
            for _ in range(40):
                candidate = self.at(beta + step)
                if candidate.loglik >= floor:
                    break
                step = step / 2
            else:
                return beta, point, iteration
            beta, point = beta + step, candidate
        raise ConvergenceError(
            f"A penalised Cox model did not converge in {_MAXIMUM_ITERATIONS} steps.",
            "Expected a maximum of the penalised likelihood; its gradient does not vanish.",
            "Drop a covariate, merge sparse categories, or choose an outcome with more events.",
        )

    def without(self, beta: Floats, columns: Sequence[int]) -> Point:
        """The best point with some coefficients at 0."""
        return self._profile(beta, columns, 0.0)

    def _profile(self, beta: Floats, columns: Sequence[int], value: float) -> Point:
        held, free = beta.copy(), np.ones(len(beta), dtype=np.bool_)
        held[list(columns)], free[list(columns)] = value, False
        return self.maximise(held, free)[1]

    def limit(self, beta: Floats, best: Point, k: int, side: int, target: float) -> float:
        """Where the profile of coefficient k has fallen to the target on one side.

        By Venzon DJ and Moolgavkar SH, Appl Stat 1988;37:87-94: steps to the farthest value of the coefficient on the
        contour of a quadratic approximation. Where they do not arrive, the profile itself is searched.
        """
        place, point = beta, best
        for iteration in range(_LIMIT_STEPS):
            if weak_pivot(point.information, point.moment) is not None:
                break
            inverse = np.linalg.inv(self.curvature(place, point, plain=iteration < _PLAIN_STEPS))
            slack = 2 * (float(point.loglik) - target) + point.gradient @ inverse @ point.gradient
            if not np.isfinite(slack) or slack < 0:
                break
            pull = point.gradient.copy()
            pull[k] += side * np.sqrt(slack / inverse[k, k])
            step = inverse @ pull
            # The other coefficients settle last, and move the limit by the square of what they are off.
            if abs(step[k]) < _LIMIT_TOLERANCE and np.abs(step).max() < 1e3 * _LIMIT_TOLERANCE:
                return float(place[k])
            step *= min(1.0, LARGEST_STEP / np.abs(step).max())
            place = place + step
            point = self.at(place)
            if not np.isfinite(point.loglik):
                break
        try:
            return self._searched(beta, best, k, side, target)
        except ConvergenceError:
            return float("nan")

    def _searched(self, beta: Floats, best: Point, k: int, side: int, target: float) -> float:
        def excess(value: float) -> float:
            return float(self._profile(beta, [k], value).loglik) - target

        stride = side * 2 * float(np.sqrt(np.linalg.inv(best.information)[k, k]))
        near, far = beta[k], beta[k] + stride
        while excess(far) > 0 and abs(far - beta[k]) < _FARTHEST:
            near, far = far, far + stride
        return float(brentq(excess, near, far, xtol=1e-10)) if excess(far) <= 0 else side * np.inf
