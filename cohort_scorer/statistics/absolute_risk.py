"""From fitted Cox models to each patient's risk by a horizon. Knows no category and no censoring."""

from collections.abc import Iterator, Sequence

import numpy as np

from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.inputs import Floats, Integers
from cohort_scorer.statistics.partial_likelihood import CaseWeights, at_risk

_CELLS = 4_000_000
"""Patients times event times that are held at once."""


def cumulative_hazard(fitted: CoxFit, time: float) -> Floats:
    """Each patient's cumulative hazard by a time, shape (n,), in the order of the input.

    Efron's estimate of the baseline of the patient's stratum, as R's `survfit(fit, stype = 2, ctype = 2)`, times the
    relative hazard.
    """
    found = np.empty(fitted.n)
    for rows, times, steps in _baselines(fitted):
        found[rows] = steps[times <= time].sum() * np.exp(fitted.linear_predictor[rows])
    return found


def risk(fitted: CoxFit, time: float) -> Floats:
    """1 - exp(-cumulative hazard): the risk by a time where nothing competes, shape (n,)."""
    return np.asarray(-np.expm1(-cumulative_hazard(fitted, time)))


def incidence(event: CoxFit, competing: CoxFit, times: Sequence[float]) -> Floats:
    """Each patient's cumulative incidence of the event by several times, from two cause-specific Cox models.

    Benichou J, Gail MH, Biometrics 1990;46:813-826: the sum over event times u of exp(-H1(u-) - H2(u-)) dH1(u), H1 and
    H2 the patient's cumulative hazards of the event and of what competes; at most 1.

    Args:
        event: Model of the event, competing events censored.
        competing: Model of the competing events of the same patients and strata, the event censored.
        times: Horizons.

    Returns:
        Shape (len(times), n), in the order of the input.
    """
    found = np.zeros((len(times), event.n))
    for (rows, first, own), (_, second, other) in zip(_baselines(event), _baselines(competing), strict=True):
        # H1(u-) and H2(u-) at the times of events: competing events of the same day do not come before.
        before = np.cumsum(own) - own
        against = np.concatenate([[0.0], np.cumsum(other)])[np.searchsorted(second, first, side="left")]
        size = max(1, _CELLS // max(1, len(first)))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            relative, opposed = np.exp(event.linear_predictor[some]), np.exp(competing.linear_predictor[some])
            free = np.exp(-np.outer(relative, before) - np.outer(opposed, against))
            for place, time in enumerate(times):
                until = first <= time
                found[place, some] = relative * (free[:, until] @ own[until])
    return np.minimum(found, 1.0)


def _baselines(fitted: CoxFit) -> Iterator[tuple[Integers, Floats, Floats]]:
    """Rows of each stratum in the order of the input, its event times rising, and the baseline's steps there."""
    sets = fitted.sets
    hazard = at_risk(sets, CaseWeights.of(sets, fitted.weights[sets.order]), fitted.linear_predictor[sets.order])
    steps = sets.tied(hazard.share())
    time = sets.time[sets.event_rows[sets.group_first]]
    stratum = sets.stratum[sets.event_rows[sets.group_first]]
    for code in range(int(sets.stratum[-1]) + 1):
        mine = np.flatnonzero(stratum == code)[::-1]
        yield sets.order[sets.stratum == code], time[mine], steps[mine]
