"""Who was at risk at each event, with ties by Efron's approximation. Knows no covariate, weight or coefficient."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cohort_scorer.statistics.inputs import Booleans, Floats, Integers


@dataclass(frozen=True, eq=False)
class RiskSets:
    """Rows sorted by stratum and falling time, and where in them ties, events and strata lie.

    A group is the events of one time and stratum; E events, G groups. Risk sets are prefixes of a stratum. Arrays given
    to the methods may have further axes before the one of rows or events: one per set of case weights.

    Attributes:
        order: Rows in the order of the input, shape (n,).
        time: Follow-up, shape (n,).
        event: 0 or 1, shape (n,).
        stratum: Code of the stratum, shape (n,).
        event_rows: Shape (E,).
        event_group: Shape (E,).
        group_first: First event of each group, shape (G,).
        strata: Groups of each stratum that has any.
        segments: Rows where a new sum begins: those between the ends of two risk sets belong together.
        group_segment: The segment that ends with each group's risk set, shape (G,).
        row_group: First group whose time is at most the row's in its stratum, G where there is none, shape (n,).
    """

    order: Integers
    time: Floats
    event: Floats
    stratum: Integers
    event_rows: Integers
    event_group: Integers
    group_first: Integers
    strata: list[slice]
    segments: Integers
    group_segment: Integers
    row_group: Integers

    @classmethod
    def build(cls, time: Floats, event: Booleans, stratum: Integers) -> "RiskSets":
        """Sort the rows and find their ties; strata as codes 0, 1, ..., at least one event."""
        order = np.lexsort((-time, stratum))
        time, event, stratum = time[order], event[order], stratum[order]
        new = np.ones(len(time), dtype=np.bool_)
        new[1:] = (time[1:] != time[:-1]) | (stratum[1:] != stratum[:-1])
        tie = np.cumsum(new) - 1
        with_event = np.bincount(tie[event], minlength=tie[-1] + 1) > 0
        groups_before: Integers = np.cumsum(with_event) - with_event
        event_rows = np.flatnonzero(event)
        event_group: Integers = groups_before[tie[event_rows]]
        group_first = np.flatnonzero(np.diff(event_group, prepend=-1))
        risk_stop = np.append(np.flatnonzero(new)[1:], len(time))[with_event]
        bounds = np.arange(stratum[-1] + 2)
        rows = np.searchsorted(stratum, bounds)
        groups = np.searchsorted(stratum[event_rows[group_first]], bounds)
        # A segment ends where a risk set or a stratum does.
        segments = np.unique(np.concatenate([rows[:-1], risk_stop[risk_stop < len(time)]]))
        row_group = groups_before[tie]
        return cls(
            order=order,
            time=time,
            event=event.astype(np.float64),
            stratum=stratum,
            event_rows=event_rows,
            event_group=event_group,
            group_first=group_first,
            strata=[slice(first, stop) for first, stop in pairwise(groups) if first < stop],
            segments=segments,
            group_segment=np.searchsorted(segments, risk_stop) - 1,
            row_group=np.where(row_group < groups[stratum + 1], row_group, len(group_first)),
        )

    def denominators(self, values: Floats, fraction: Floats) -> Floats:
        """Sum of values (..., n) over each event's risk set, less a fraction (..., E) of that of its tie: (..., E)."""
        parts = np.add.reduceat(values, self.segments, axis=-1)[..., self.group_segment]
        for groups in self.strata:
            np.cumsum(parts[..., groups], axis=-1, out=parts[..., groups])
        tied = self.tied(values.take(self.event_rows, axis=-1))
        return np.asarray(parts.take(self.event_group, axis=-1) - fraction * tied.take(self.event_group, axis=-1))

    def tied(self, values: Floats) -> Floats:
        """Sum of the events' values over each group: (..., E) -> (..., G)."""
        return np.asarray(np.add.reduceat(values, self.group_first, axis=-1))

    def place_in_tie(self, values: Floats) -> Floats:
        """Sum of the values of the events before each in its group: (..., E) -> (..., E)."""
        before = np.cumsum(values, axis=-1) - values
        return np.asarray(before - before.take(self.group_first, axis=-1).take(self.event_group, axis=-1))

    def mean_of_tie(self, values: Floats) -> Floats:
        """Mean of the events' values over the group of each: (..., E) -> (..., E)."""
        sizes = np.diff(np.append(self.group_first, len(self.event_rows)))
        return np.asarray((self.tied(values) / sizes).take(self.event_group, axis=-1))

    def lived(self, share: Floats, fraction: Floats) -> Floats:
        """Sum of the events' shares that each row has been at risk for, less fractions (..., E) of those of its tie.

        (..., E) -> (..., n). With mean weight / denominators it is Efron's cumulative hazard per unit of relative
        hazard.
        """
        steps = self.tied(share)
        total = np.zeros((*steps.shape[:-1], steps.shape[-1] + 1))
        for groups in self.strata:
            total[..., groups] = np.cumsum(steps[..., groups][..., ::-1], axis=-1)[..., ::-1]
        lived = total.take(self.row_group, axis=-1)
        lived[..., self.event_rows] -= self.tied(share * fraction).take(self.event_group, axis=-1)
        return lived
