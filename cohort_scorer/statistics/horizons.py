"""How well risks predicted for a horizon are borne out, under censoring. Knows no model: risks are given and fixed.

Patients are weighted by the inverse probability of being followed (Graf E and others, Stat Med 1999;18:2529): those
with an event by the horizon by 1 / G(T-), those followed beyond it by 1 / G(t), the others by 0. G is the Kaplan-Meier
curve of censoring in the patient's stratum; an event precedes a censoring of the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cohort_scorer.statistics.inputs import Booleans, Floats, Integers, codes, equal_lengths, strata_codes, survival


@dataclass(frozen=True, eq=False)
class Performance:
    """Of H horizons and M models; leading axes, if any, are those of the case weights. NaN where it is undefined.

    A stratum in which nobody is followed beyond a horizon has no risk by it, and then the horizon has no performance.

    Attributes:
        auc: Probability that a patient with the event by the horizon has a higher risk than one without, equal risks
            counting one half (Blanche P, Dartigues JF, Jacqmin-Gadda H, Stat Med 2013;32:5381-5397); patients with a
            competing event by the horizon are among those without. Shape (..., H, M).
        brier: Mean squared difference of risk and outcome, shape (..., H, M).
        ipa: 1 - brier over that of the marginal risk of each stratum (Kattan MW, Gerds TA, Diagn Progn Res 2018;2:7).
    """

    auc: Floats
    brier: Floats
    ipa: Floats


@dataclass(frozen=True, eq=False)
class Horizons:
    """Patients and risks, laid out once for many case weights.

    Attributes:
        order: Rows by stratum and time, in the order of the input, shape (n,).
        first: Places where a time or stratum begins, shape (m,).
        place: The one of each row, in sorted order, shape (n,).
        strata: Times of each stratum.
        event: Whether the event ends follow-up, in sorted order; likewise competing.
        within: Of each horizon: who has left by it, in sorted order, shape (H, n).
        last: Of each horizon and stratum: the number of its times up to the horizon, shape (H, S).
        stratum: In sorted order, shape (n,).
        risks: In sorted order, shape (H, M, n).
    """

    order: Integers
    first: Integers
    place: Integers
    strata: list[slice]
    event: Booleans
    competing: Booleans
    within: Booleans
    last: Integers
    stratum: Integers
    risks: Floats

    @classmethod
    def build(
        cls,
        time: npt.ArrayLike,
        status: npt.ArrayLike,
        horizons: Sequence[float],
        risks: Floats,
        strata: npt.ArrayLike | None = None,
    ) -> "Horizons":
        """Lay out.

        Args:
            time: Follow-up, any unit, >= 0, shape (n,).
            status: 0 censored, 1 event, 2 competing event, shape (n,).
            horizons: In the unit of time.
            risks: Of the event by each horizon after each model, shape (H, M, n).
            strata: Labels of strata, shape (n,), or None.

        Raises:
            ValueError: If the arrays do not fit together.
        """
        kind = codes("status", status, 3)
        times, _ = survival(time, kind > 0)
        equal_lengths(time=times, risks=risks[0, 0] if risks.size else times)
        stratum = strata_codes(strata, len(times))
        order = np.lexsort((times, stratum))
        times, kind, stratum = times[order], kind[order], stratum[order]
        new = np.ones(len(times), dtype=np.bool_)
        new[1:] = (times[1:] != times[:-1]) | (stratum[1:] != stratum[:-1])
        first = np.flatnonzero(new)
        bounds = np.searchsorted(stratum[first], np.arange(stratum[-1] + 2))
        parts = [slice(bounds[s], bounds[s + 1]) for s in range(len(bounds) - 1)]
        return cls(
            order,
            first,
            np.cumsum(new) - 1,
            parts,
            kind == 1,
            kind == 2,
            np.array([times <= t for t in horizons]),
            np.array([[np.searchsorted(times[first[part]], t, side="right") for part in parts] for t in horizons]),
            stratum,
            risks[..., order],
        )

    def judge(self, case: Floats) -> Performance:
        """The performance under case weights >= 0 in the order of the input, shape (..., n).

        Takes several times the memory of the weights: of a million patients give one vector at a time.
        """
        case = case[..., self.order]
        before, at = self._followed(case)
        shape = (*case.shape[:-1], *self.risks.shape[:2])
        auc, brier, ipa = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
        for h, within in enumerate(self.within):
            ended = within & (self.event | self.competing)
            beyond = np.bincount(self.stratum, ~within)
            if not beyond.all():
                continue
            with np.errstate(divide="ignore", invalid="ignore"):
                weight = np.where(ended, case / before, np.where(within, 0.0, case / at[h]))
                weight = np.where(case > 0, weight, 0.0)
                cases = within & self.event
                total = case.sum(axis=-1)[..., None]
                squared = (cases - self.risks[h]) ** 2
                brier[..., h, :] = weight @ squared.T / total
                null = self._marginal(weight, case, cases)
                reference = (weight * (cases - null) ** 2).sum(axis=-1)[..., None] / total
                ipa[..., h, :] = 1 - brier[..., h, :] / reference
                for m, risk in enumerate(self.risks[h]):
                    auc[..., h, m] = _auc(risk, weight, cases)
        return Performance(auc, brier, ipa)

    def _followed(self, case: Floats) -> tuple[Floats, list[Floats]]:
        """G(T-) of each row (..., n), and G at each horizon in each row's stratum, H times (..., n)."""
        leaving = np.add.reduceat(case, self.first, axis=-1)
        ending = np.add.reduceat(case * (self.event | self.competing), self.first, axis=-1)
        before = np.empty_like(leaving)
        at = np.empty((len(self.within), *leaving.shape[:-1], len(self.strata)))
        for s, part in enumerate(self.strata):
            gone = np.cumsum(leaving[..., part], axis=-1)
            staying = gone[..., -1:] - gone + leaving[..., part] - ending[..., part]
            censored = leaving[..., part] - ending[..., part]
            kept = np.cumprod(1 - np.divide(censored, staying, out=np.zeros_like(gone), where=censored > 0), axis=-1)
            curve = np.concatenate([np.ones_like(kept[..., :1]), kept], axis=-1)
            before[..., part] = curve[..., :-1]
            for h in range(len(self.within)):
                at[h, ..., s] = curve[..., self.last[h, s]]
        return before.take(self.place, axis=-1), [values.take(self.stratum, axis=-1) for values in at]

    def _marginal(self, weight: Floats, case: Floats, cases: Booleans) -> Floats:
        """Risk of each row's stratum: with these weights it is 1 - Kaplan-Meier, or Aalen and Johansen's incidence."""
        found = np.empty((*case.shape[:-1], len(self.strata)))
        for s in range(len(self.strata)):
            mine = self.stratum == s
            found[..., s] = (weight[..., mine] * cases[mine]).sum(axis=-1) / case[..., mine].sum(axis=-1)
        return found.take(self.stratum, axis=-1)


def _auc(risk: Floats, weight: Floats, cases: Booleans) -> Floats:
    """Share of the weight of case and control pairs in which the case has the higher risk."""
    order = np.argsort(risk, kind="stable")
    risk, weight, cases = risk[order], weight.take(order, axis=-1), cases[order]
    controls = np.zeros((*weight.shape[:-1], len(risk) + 1))
    np.cumsum(weight * ~cases, axis=-1, out=controls[..., 1:])
    own, mine = weight[..., cases], risk[cases]
    low, high = np.searchsorted(risk, mine, side="left"), np.searchsorted(risk, mine, side="right")
    wins = (controls.take(low, axis=-1) + controls.take(high, axis=-1)) / 2
    return np.asarray((own * wins).sum(axis=-1) / (own.sum(axis=-1) * controls[..., -1]))
