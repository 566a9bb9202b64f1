"""Who was at risk at each event, with ties by Efron's approximation. Knows no covariate and no coefficient."""

from dataclasses import dataclass

import numpy as np

from cohort_scorer.statistics.inputs import Booleans, Floats, Integers


@dataclass(frozen=True, eq=False)
class RiskSets:
    """Rows sorted by stratum and falling time, and where in them ties, events and strata lie.

    A group is the events of one time and stratum; E events, G groups. Risk sets are prefixes of a stratum.

    Attributes:
        order: Rows in the order of the input, shape (n,).
        time: Follow-up, shape (n,).
        weights: Case weights, shape (n,).
        event: 0 or 1, shape (n,).
        strata: Rows and groups of each stratum.
        risk_last: Last row at risk, shape (G,).
        event_rows: Shape (E,).
        event_group: Shape (E,).
        group_first: First event of each group, shape (G,).
        fraction: l / d of Efron's approximation, l = 0 ... d - 1, shape (E,).
        mean_weight: Of the events of its group, shape (E,).
        row_group: First group whose time is at most the row's, maybe of a later stratum, shape (n,).
        row_has_group: False where the row's stratum has no such group, shape (n,).
    """

    order: Integers
    time: Floats
    weights: Floats
    event: Floats
    strata: list[tuple[slice, slice]]
    risk_last: Integers
    event_rows: Integers
    event_group: Integers
    group_first: Integers
    fraction: Floats
    mean_weight: Floats
    row_group: Integers
    row_has_group: Booleans

    @classmethod
    def build(cls, time: Floats, event: Booleans, stratum: Integers, weights: Floats) -> "RiskSets":
        """Sort the rows and find their ties; strata as codes 0, 1, ..., at least one event."""
        order = np.lexsort((-time, stratum))
        time, event, stratum, weights = time[order], event[order], stratum[order], weights[order]
        new = np.ones(len(time), dtype=np.bool_)
        new[1:] = (time[1:] != time[:-1]) | (stratum[1:] != stratum[:-1])
        tie = np.cumsum(new) - 1
        with_event = np.bincount(tie[event], minlength=tie[-1] + 1) > 0
        groups_before: Integers = np.cumsum(with_event) - with_event
        event_rows = np.flatnonzero(event)
        event_group: Integers = groups_before[tie[event_rows]]
        group_first = np.flatnonzero(np.diff(event_group, prepend=-1))
        sizes = np.diff(np.append(group_first, len(event_rows)))
        tie_last = np.append(np.flatnonzero(new)[1:], len(time)) - 1
        row_group = groups_before[tie]
        group_stratum = stratum[event_rows[group_first]]
        bounds = np.arange(stratum[-1] + 2)
        rows, groups = np.searchsorted(stratum, bounds), np.searchsorted(group_stratum, bounds)
        return cls(
            order=order,
            time=time,
            weights=weights,
            event=event.astype(np.float64),
            strata=[(slice(rows[s], rows[s + 1]), slice(groups[s], groups[s + 1])) for s in range(len(bounds) - 1)],
            risk_last=tie_last[with_event],
            event_rows=event_rows,
            event_group=event_group,
            group_first=group_first,
            fraction=(np.arange(len(event_rows)) - group_first[event_group]) / sizes[event_group],
            mean_weight=(np.add.reduceat(weights[event_rows], group_first) / sizes)[event_group],
            row_group=np.minimum(row_group, len(group_first) - 1),
            row_has_group=row_group < groups[stratum + 1],
        )

    def denominators(self, values: Floats) -> Floats:
        """Sum of values over each event's risk set, less l/d of the sum over its tie: (n,) -> (E,)."""
        running = np.empty_like(values)
        for rows, _ in self.strata:
            np.cumsum(values[rows], out=running[rows])
        tied = np.add.reduceat(values[self.event_rows], self.group_first)
        return np.asarray(running[self.risk_last][self.event_group] - self.fraction * tied[self.event_group])

    def lived(self, share: Floats) -> Floats:
        """Sum of the events' shares that each row has been at risk for, less l/d of those of its own tie: (E,) -> (n,).

        With mean_weight / denominators it is Efron's cumulative hazard per unit of relative hazard.
        """
        steps = np.add.reduceat(share, self.group_first)
        total = np.empty_like(steps)
        for _, groups in self.strata:
            total[groups] = np.cumsum(steps[groups][::-1])[::-1]
        lived = np.where(self.row_has_group, total[self.row_group], 0.0)
        lived[self.event_rows] -= np.add.reduceat(share * self.fraction, self.group_first)[self.event_group]
        return lived
