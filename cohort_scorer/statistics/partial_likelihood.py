"""Efron's log partial likelihood at given coefficients, for one vector of case weights or for many at once.

Efron B, J Am Stat Assoc 1977;72:557-565; under case weights the events of a tie share their mean weight, as in R's
`coxph(weights = w)`; rows of weight 0 are as good as absent. `penalised` adds half the log determinant of
the information (Firth D, Biometrika 1993;80:27-38; Heinze G, Schemper M, Biometrics 2001;57:114-119). Knows no maximum.
"""

from dataclasses import dataclass

import numpy as np

from cohort_scorer.statistics.inputs import Floats, Integers
from cohort_scorer.statistics.risk_sets import RiskSets


@dataclass(frozen=True, eq=False)
class Point:
    """The likelihood at coefficients; leading axes, if any, are those of the case weights.

    Attributes:
        loglik: Log (penalised) likelihood, shape (...,); -inf where the penalty is undefined.
        gradient: Shape (..., p).
        information: Of the likelihood without penalty, shape (..., p, p); empty where it was not asked for.
        moment: Diagonal of the larger of the information's two parts, shape (..., p); empty likewise.
    """

    loglik: Floats
    gradient: Floats
    information: Floats
    moment: Floats


_NOT_ASKED: Floats = np.empty(0)


@dataclass(frozen=True, eq=False)
class CaseWeights:
    """Case weights in the order of the sets, and what Efron's approximation makes of them.

    Attributes:
        rows: Weights >= 0, shape (..., n).
        events: Those of the events, shape (..., E).
        mean: Mean weight of the events of each event's tie, 0 where its own is 0, shape (..., E).
        fraction: l / d, with l = 0 ... d - 1 over the d events of a tie whose weight is not 0, shape (..., E).
    """

    rows: Floats
    events: Floats
    mean: Floats
    fraction: Floats

    @classmethod
    def of(cls, sets: RiskSets, rows: Floats) -> "CaseWeights":
        """Find the ties of those who have a weight."""
        weights = rows.take(sets.event_rows, axis=-1)
        there = (weights > 0).astype(np.float64)
        size = np.maximum(sets.tied(there), 1.0).take(sets.event_group, axis=-1)
        mean = sets.tied(weights).take(sets.event_group, axis=-1) / size * there
        return cls(rows, weights, mean, sets.place_in_tie(there) / size * there)

    def part(self, which: Integers) -> "CaseWeights":
        """Some of several vectors of weights."""
        return CaseWeights(self.rows[which], self.events[which], self.mean[which], self.fraction[which])


@dataclass(frozen=True, eq=False)
class AtRisk:
    """What the risk sets hold at given coefficients; leading axes as in Point.

    Attributes:
        case: The case weights.
        relative: Case weight times relative hazard of each row, shape (..., n).
        below: Sum of relative over each event's risk set, 1 where the event has no weight, shape (..., E).
    """

    case: CaseWeights
    relative: Floats
    below: Floats

    def share(self) -> Floats:
        """Hazard of each event per unit of relative hazard, shape (..., E)."""
        return self.case.mean / self.below

    def means(self, sets: RiskSets, columns: Floats) -> Floats:
        """Weighted means of the columns (p, n) in each event's risk set, shape (..., p, E)."""
        found = np.empty((*self.below.shape[:-1], len(columns), self.below.shape[-1]))
        for k, column in enumerate(columns):
            found[..., k, :] = sets.denominators(self.relative * column, self.case.fraction) / self.below
        return found


def at_risk(sets: RiskSets, case: CaseWeights, eta: Floats) -> AtRisk:
    """The risk sets at linear predictors eta (..., n) in the order of the sets."""
    relative = case.rows * np.exp(eta)
    return AtRisk(case, relative, np.where(case.mean > 0, sets.denominators(relative, case.fraction), 1.0))


def evaluate(
    sets: RiskSets,
    case: CaseWeights,
    columns: Floats,
    beta: Floats,
    *,
    information: bool = True,
    penalised: bool = False,
) -> Point:
    """Evaluate with one sum over the risk sets for the likelihood and one per column for the information.

    Args:
        sets: Who was at risk.
        case: Case weights.
        columns: Covariates in the order of the sets, centred, one contiguous row each, shape (p, n).
        beta: Coefficients, shape (..., p).
        information: Whether the information is wanted; the penalty needs it.
        penalised: Whether to add Firth's penalty.
    """
    eta = beta @ columns
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        risk = at_risk(sets, case, eta)
        died = eta.take(sets.event_rows, axis=-1)
        loglik = (case.events * died).sum(axis=-1) - (case.mean * np.log(risk.below)).sum(axis=-1)
        expected = risk.relative * sets.lived(risk.share(), case.fraction)
        gradient = case.events @ columns[:, sets.event_rows].T - expected @ columns.T
        if not information and not penalised:
            return Point(loglik, gradient, _NOT_ASKED, _NOT_ASKED)
        means = risk.means(sets, columns)
        moment = (columns * expected[..., None, :]) @ columns.T
        held = moment - (means * case.mean[..., None, :]) @ np.swapaxes(means, -1, -2)
        if penalised:
            sign, logdet = np.linalg.slogdet(np.where(np.isfinite(held), held, 0.0))
            defined = (sign > 0) & np.isfinite(logdet)
            inverse = np.linalg.inv(np.where(defined[..., None, None], held, np.eye(len(columns))))
            loglik = np.where(defined, loglik + logdet / 2, -np.inf)
            gradient = gradient + _penalty_gradient(sets, risk, columns, expected, means, inverse) / 2
    return Point(loglik, gradient, held, np.diagonal(moment, axis1=-2, axis2=-1))


def _penalty_gradient(
    sets: RiskSets, risk: AtRisk, columns: Floats, expected: Floats, means: Floats, inverse: Floats
) -> Floats:
    """tr(I^-1 dI): third central moments of the columns in the risk sets, shape (..., p)."""
    projected = inverse @ columns
    squares = (projected * columns).sum(axis=-2)
    mean, fraction = risk.case.mean, risk.case.fraction
    mean_squares = sets.denominators(risk.relative * squares, fraction) / risk.below
    spread = ((inverse @ means) * means).sum(axis=-2)
    third = (squares * expected) @ columns.T
    share = risk.share()
    for k in range(len(columns)):
        held = risk.relative * sets.lived(share * means[..., k, :], fraction)
        third = third - 2 * ((held * projected[..., k, :]) @ columns.T)
        weighted = mean * means[..., k, :]
        third[..., k] -= (weighted * (mean_squares - 2 * spread)).sum(axis=-1)
    return np.asarray(third)
