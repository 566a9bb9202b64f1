"""What a patient of a category meets in absolute terms: risks at horizons and restricted mean times.

Equal hazard ratios of predicted and true categories are not equal risks; these are. Knows no model but those whose
predicted risks it holds against the observed ones.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cohort_scorer.statistics import cumulative_incidence, kaplan_meier
from cohort_scorer.statistics.comparison import Row
from cohort_scorer.statistics.inputs import Booleans, Floats, normal_quantile
from cohort_scorer.statistics.kaplan_meier import DAYS_PER_YEAR
from cohort_scorer.statistics.regression import People
from cohort_scorer.statistics.restricted_mean import restricted_mean


def rows(
    people: People,
    exposures: Sequence[str],
    horizon_years: Sequence[float],
    competing: bool,
    risks: Mapping[str, Floats],
) -> Iterator[Row]:
    """Rows of comparison.csv on one model or none: risk, observed_expected, rmst, rmst_difference.

    Args:
        people: The patients.
        exposures: Of true, cxr, integrated.
        horizon_years: Horizons.
        competing: Whether competing events are declared: the risk is then the cumulative incidence.
        risks: Predicted risks at the horizons by model, shape (horizons, n).
    """
    for exposure in exposures:
        codes = people.codes(exposure)
        present = [(name, codes == code) for code, name in enumerate(people.categories) if (codes == code).any()]
        for name, mine in present:
            for place, years in enumerate(horizon_years):
                named: Row = {"exposure": exposure, "level": name, "horizon_years": years}
                found = _risk(people, mine, years * DAYS_PER_YEAR, competing)
                yield {**named, "comparison": f"crude:{exposure}", "statistic": "risk", **found}
                model = f"covariates+{exposure}"
                if model in risks and "estimate" in found and people.followed(years * DAYS_PER_YEAR):
                    expected = float(risks[model][place][mine].mean())
                    ratio = {key: _over(found[key], expected) for key in ("estimate", "lower", "upper")}
                    yield {
                        **named,
                        "comparison": model,
                        "statistic": "observed_expected",
                        **ratio,
                        "method": found["method"],
                    }
        yield from _restricted_means(people, exposure, present, max(horizon_years))


def _over(observed: object, expected: float) -> float | None:
    return observed / expected if isinstance(observed, float) and expected > 0 else None


def _risk(people: People, mine: Booleans, days: float, competing: bool) -> Row:
    """1 - Kaplan-Meier, or the cumulative incidence, with the bounds of its curve there."""
    time, event = people.time[mine], people.event[mine]
    if time.max() < days:
        return {"reason": "nobody was followed that long"}
    if competing:
        curve = cumulative_incidence.cumulative_incidence(time, event + 2 * people.competing[mine], people.level)
        curve = curve.filter(cause=1)
        risk, lower, upper = curve.filter(curve["time_days"] <= days).select("incidence", "lower", "upper").row(-1)
        return {"estimate": risk, "lower": lower, "upper": upper, "method": "aalen_johansen"}
    curve = kaplan_meier.kaplan_meier(time, event, people.level)
    survival, lower, upper = curve.filter(curve["time_days"] <= days).select("survival", "lower", "upper").row(-1)
    bounds = [None if bound is None else 1 - bound for bound in (upper, lower)]
    return {"estimate": 1 - survival, "lower": bounds[0], "upper": bounds[1], "method": "kaplan_meier"}


def _restricted_means(
    people: People, exposure: str, present: Sequence[tuple[str, Booleans]], years: float
) -> Iterator[Row]:
    """Mean days free of the event up to the horizon, or the shortest follow-up of a category if that is less.

    Differences from the reference category are those of independent groups. Competing events are censored.
    """
    days = min(years * DAYS_PER_YEAR, *(float(people.time[mine].max()) for _, mine in present))
    z = normal_quantile(people.level)
    reference = None
    for name, mine in present:
        mean, se = restricted_mean(people.time[mine], people.event[mine], days)
        named: Row = {
            "comparison": f"crude:{exposure}",
            "exposure": exposure,
            "level": name,
            "horizon_years": days / DAYS_PER_YEAR,
            "method": "kaplan_meier",
        }
        limits = {"lower": mean - z * se, "upper": mean + z * se}
        yield {**named, "statistic": "rmst", "estimate": mean, "se": se, **limits}
        if name == people.categories[0]:
            reference = mean, se
        elif reference is not None:
            difference, spread = mean - reference[0], float(np.hypot(se, reference[1]))
            limits = {"lower": difference - z * spread, "upper": difference + z * spread}
            yield {**named, "statistic": "rmst_difference", "estimate": difference, "se": spread, **limits}
