"""Cox's proportional hazards model by Efron's partial likelihood. Knows covariates only as numbered columns.

Standard errors are those of the model, also under weights. Times that differ are different: no rounding of ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import chdtrc, ndtr

from cohort_scorer.errors import ConvergenceError, EmptyCohortError
from cohort_scorer.statistics.inputs import (
    Floats,
    equal_lengths,
    floats,
    normal_quantile,
    strata_codes,
    survival,
)
from cohort_scorer.statistics.partial_likelihood import CaseWeights, Point, evaluate
from cohort_scorer.statistics.risk_sets import RiskSets

_MAXIMUM_ITERATIONS = 40
_STEP_TOLERANCE = 1e-9
_PIVOT_TOLERANCE = 1e-10


@dataclass(frozen=True, eq=False)
class CoxFit:
    """A fitted Cox model with p terms.

    Attributes:
        coefficients: Log hazard ratios per unit of each column, shape (p,).
        standard_errors: Shape (p,).
        covariance: Inverse of the observed information, shape (p, p).
        loglik_null: Efron log partial likelihood with all coefficients 0.
        loglik: The same at the coefficients.
        n: Number of rows.
        n_events: Number of events, unweighted.
        iterations: Newton steps taken.
        linear_predictor: Coefficients times columns less their means, shape (n,), in the order of the input. Rows with
            equal covariates have exactly equal values.
        covariates: The columns, shape (n, p), in the order of the input.
        weights: Case weights, shape (n,), in the order of the input.
        sets: Who was at risk at each event.
    """

    coefficients: Floats
    standard_errors: Floats
    covariance: Floats
    loglik_null: float
    loglik: float
    n: int
    n_events: int
    iterations: int
    linear_predictor: Floats
    covariates: Floats
    weights: Floats
    sets: RiskSets

    @property
    def df(self) -> int:
        """Number of terms."""
        return len(self.coefficients)

    @property
    def lr_chi2(self) -> float:
        """Likelihood ratio statistic against the model without terms."""
        return 2 * (self.loglik - self.loglik_null)

    @property
    def p(self) -> float | None:
        """P value of lr_chi2 on df degrees of freedom, None without terms."""
        return float(chdtrc(self.df, max(self.lr_chi2, 0.0))) if self.df else None

    @property
    def aic(self) -> float:
        """Akaike's criterion, -2 loglik + 2 df."""
        return 2 * self.df - 2 * self.loglik

    def table(self, level: float = 0.95, columns: Sequence[int] | None = None) -> pl.DataFrame:
        """Return one row per term with Wald intervals: coef, se, hr, lower, upper (of the hazard ratio), z, p.

        Intervals are given whatever the columns asked for: these spare work where intervals are costly.
        """
        half = normal_quantile(level) * self.standard_errors
        z = self.coefficients / self.standard_errors
        return pl.DataFrame(
            {
                "coef": self.coefficients,
                "se": self.standard_errors,
                "hr": np.exp(self.coefficients),
                "lower": np.exp(self.coefficients - half),
                "upper": np.exp(self.coefficients + half),
                "z": z,
                "p": 2 * ndtr(-np.abs(z)),
            }
        )


def fit(
    time: npt.ArrayLike,
    event: npt.ArrayLike,
    covariates: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    term_names: Sequence[str] | None = None,
) -> CoxFit:
    """Fit Cox's model (J R Stat Soc B 1972;34:187-220) by Newton's method.

    Ties by Efron B, J Am Stat Assoc 1977;72:557-565; under case weights the events of a tie share their mean weight, as
    R's `coxph(weights = w)`. Columns are centred and scaled for the computation. A fit counts as converged only when
    the coefficients have stopped moving: where a category has no events they never do, and the fit is refused instead
    of giving a hazard ratio of 0 or infinity.

    Args:
        time: Follow-up, any unit, >= 0, shape (n,).
        event: True where follow-up ends with the event, shape (n,).
        covariates: Shape (n, p), p may be 0.
        strata: Labels of strata with a baseline hazard each, shape (n,), or None.
        weights: Case weights > 0, shape (n,), or None.
        term_names: Names of the columns for messages, or None.

    Returns:
        The fit.

    Raises:
        EmptyCohortError: If there are no patients or no events.
        ConvergenceError: If a term is constant, follows from others or separates events from non-events; names it.
        ValueError: If the arrays do not fit together.
    """
    times, died = survival(time, event)
    z = np.asarray(covariates, dtype=np.float64)
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError("covariates must be finite and have two dimensions (rows, terms)")
    case = np.ones(len(times)) if weights is None else floats("weights", weights)
    equal_lengths(time=times, covariates=z, weights=case)
    if (case <= 0).any():
        raise ValueError("weights must be > 0")
    if not died.any():
        raise EmptyCohortError(
            f"No event among {len(times):,} patients: a Cox model cannot be fitted.",
            "Expected at least one event, found 0.",
            "Check the event types named in [outcome] components and the follow-up dates.",
        )
    centre = z.mean(axis=0)
    scale = z.std(axis=0)
    constant = np.flatnonzero(np.ptp(z, axis=0) == 0)
    if len(constant):
        raise not_converged(int(constant[0]), term_names, "is the same for every patient")
    sets = RiskSets.build(times, died, strata_codes(strata, len(times)))
    columns = np.ascontiguousarray(((z[sets.order] - centre) / scale).T)
    beta, covariance, loglik_null, loglik, iterations = _newton(
        sets, CaseWeights.of(sets, case[sets.order]), columns, term_names
    )
    coefficients = beta / scale
    covariance = covariance / np.outer(scale, scale)
    return CoxFit(
        coefficients=coefficients,
        standard_errors=np.sqrt(np.diag(covariance)),
        covariance=covariance,
        loglik_null=loglik_null,
        loglik=loglik,
        n=len(times),
        n_events=int(died.sum()),
        iterations=iterations,
        linear_predictor=predictor(z, centre, coefficients),
        covariates=z,
        weights=case,
        sets=sets,
    )


def predictor(covariates: Floats, centre: Floats, coefficients: Floats) -> Floats:
    """Linear predictor of centred covariates (n, p); rows with equal covariates have exactly equal values.

    Column by column, not by a matrix product, which may round equal rows differently: ties matter to the C statistic.
    """
    found = np.zeros(len(covariates))
    for k, coefficient in enumerate(coefficients):
        found += (covariates[:, k] - centre[k]) * coefficient
    return found


def _newton(
    sets: RiskSets, case: CaseWeights, columns: Floats, term_names: Sequence[str] | None
) -> tuple[Floats, Floats, float, float, int]:
    """Maximise; return beta, its covariance, the log likelihoods at 0 and at beta, and the number of steps."""
    beta = np.zeros(len(columns))
    point = start = evaluate(sets, case, columns, beta)
    weak = weak_pivot(start.information, start.moment)
    if weak is not None:
        raise not_converged(weak, term_names, "is constant within strata or follows from the terms before it")
    step: Floats = beta
    for iteration in range(_MAXIMUM_ITERATIONS):
        weak = weak_pivot(point.information, start.moment)
        if weak is not None:
            raise not_converged(weak, term_names, "separates patients with events from those without")
        step = np.asarray(np.linalg.solve(point.information, point.gradient), dtype=np.float64)
        if not len(step) or np.abs(step).max() <= _STEP_TOLERANCE:
            final = evaluate(sets, case, columns, beta + step)
            covariance: Floats = np.asarray(np.linalg.inv(final.information), dtype=np.float64)
            return beta + step, covariance, float(start.loglik), float(final.loglik), iteration
        beta, point = _halved(sets, case, columns, beta, step, point)
    raise not_converged(int(np.abs(step).argmax()), term_names, f"still moves after {_MAXIMUM_ITERATIONS} steps")


def _halved(
    sets: RiskSets, case: CaseWeights, columns: Floats, beta: Floats, step: Floats, point: Point
) -> tuple[Floats, Point]:
    """Take the step, halved until the likelihood does not fall (beyond rounding)."""
    floor = point.loglik - 1e-12 * abs(point.loglik)
    for _ in range(30):
        candidate = evaluate(sets, case, columns, beta + step)
        if candidate.loglik >= floor and np.isfinite(candidate.information).all():
            return beta + step, candidate
        step = step / 2
    return beta, point


def weak_pivot(information: Floats, moment: Floats) -> int | None:
    """First term without information beyond that of the terms before it, by symmetric elimination."""
    work = information.copy()
    for k in range(len(work)):
        if not work[k, k] > _PIVOT_TOLERANCE * moment[k]:
            return k
        work[k + 1 :, k + 1 :] -= np.outer(work[k + 1 :, k], work[k, k + 1 :]) / work[k, k]
    return None


def not_converged(term: int, term_names: Sequence[str] | None, problem: str) -> ConvergenceError:
    """What a fit without a maximum says of the term that is to blame."""
    name = f"term {term}" if term_names is None else f"term {term} ({term_names[term]})"
    return ConvergenceError(
        f"A Cox model did not converge: {name} {problem}.",
        "Expected every term to vary, also among patients with events, and none to be a sum of others.",
        "Drop the term, merge sparse categories, or choose an outcome with more events.",
    )
