"""From fitted Cox models to each patient's risk by a horizon. Knows no category and no censoring."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.inputs import Floats, Integers
from cohort_scorer.statistics.partial_likelihood import CaseWeights, at_risk
from cohort_scorer.statistics.risk_sets import RiskSets

_CELLS = 4_000_000
"""Patients times event times that are held at once."""


@dataclass(frozen=True, eq=False)
class Baseline:
    """Of one stratum.

    Attributes:
        rows: Its patients, in the order of the input.
        times: Times of events, rising.
        steps: Of the cumulative hazard there, at a linear predictor of 0.
    """

    rows: Integers
    times: Floats
    steps: Floats


def baselines(sets: RiskSets, case: CaseWeights, eta: Floats) -> list[Baseline]:
    """Efron's estimate of the baseline of each stratum, as R's `survfit(fit, stype = 2, ctype = 2)`.

    Args:
        sets: Who was at risk.
        case: Case weights, one vector.
        eta: Linear predictor in the order of the sets, shape (n,).
    """
    steps = sets.tied(at_risk(sets, case, eta).share())
    time = sets.time[sets.event_rows[sets.group_first]]
    stratum = sets.stratum[sets.event_rows[sets.group_first]]
    found = []
    for code in range(int(sets.stratum[-1]) + 1):
        mine = np.flatnonzero(stratum == code)[::-1]
        found.append(Baseline(sets.order[sets.stratum == code], time[mine], steps[mine]))
    return found


def risk(fitted: CoxFit, time: float) -> Floats:
    """Each patient's risk by a time where nothing competes, 1 - exp(-cumulative hazard), shape (n,)."""
    found = np.empty(fitted.n)
    for own in _of_fit(fitted):
        found[own.rows] = risk_by(own, None, np.exp(fitted.linear_predictor[own.rows]), np.empty(0), [time])[0]
    return found


def incidence(event: CoxFit, competing: CoxFit, times: Sequence[float]) -> Floats:
    """Each patient's cumulative incidence of the event by several times, from two cause-specific Cox models.

    Args:
        event: Model of the event, competing events censored.
        competing: Model of the competing events of the same patients and strata, the event censored.
        times: Horizons.

    Returns:
        Shape (len(times), n), in the order of the input.
    """
    found = np.zeros((len(times), event.n))
    for own, other in zip(_of_fit(event), _of_fit(competing), strict=True):
        size = max(1, _CELLS // max(1, len(own.times)))
        for start in range(0, len(own.rows), size):
            some = own.rows[start : start + size]
            relative, opposed = np.exp(event.linear_predictor[some]), np.exp(competing.linear_predictor[some])
            found[:, some] = risk_by(own, other, relative, opposed, times)
    return found


def risk_by(own: Baseline, other: Baseline | None, relative: Floats, opposed: Floats, times: Sequence[float]) -> Floats:
    """Risks of the event by several times at given relative hazards; equal hazards have exactly equal risks.

    With competing events, Benichou J, Gail MH, Biometrics 1990;46:813-826: the sum over event times u of
    exp(-H1(u-) - H2(u-)) dH1(u), H1 and H2 the cumulative hazards of the event and of what competes; at most 1.

    Args:
        own: Baseline of the event.
        other: Baseline of the competing events, or None.
        relative: Relative hazards of the event, shape (m,).
        opposed: Relative hazards of the competing events, shape (m,); not read without them.
        times: Horizons.

    Returns:
        Shape (len(times), m).
    """
    until = np.searchsorted(own.times, times, side="right")
    if other is None:
        return np.array([-np.expm1(-own.steps[:stop].sum() * relative) for stop in until])
    steps = own.steps[: until.max()]
    # H1(u-) and H2(u-) at the times of events: competing events of the same day do not come before.
    before = np.cumsum(steps) - steps
    against = np.concatenate([[0.0], np.cumsum(other.steps)])
    against = against[np.searchsorted(other.times, own.times[: len(steps)], side="left")]
    parts = np.exp(-np.outer(relative, before) - np.outer(opposed, against)) * steps
    # Sums row by row, not a matrix product, which may round equal rows differently: ties matter to AUC(t).
    return np.array([np.minimum(relative * parts[:, :stop].sum(axis=1), 1.0) for stop in until])


def _of_fit(fitted: CoxFit) -> list[Baseline]:
    sets = fitted.sets
    return baselines(sets, CaseWeights.of(sets, fitted.weights[sets.order]), fitted.linear_predictor[sets.order])
