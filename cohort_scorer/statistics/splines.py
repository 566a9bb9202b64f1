"""Restricted cubic splines. Knows no outcome."""

import numpy as np

from cohort_scorer.statistics.inputs import Floats


def restricted_cubic(x: Floats, knots: Floats) -> Floats:
    """Non-linear terms of a cubic spline that is linear beyond its outer knots.

    Harrell FE, Regression Modeling Strategies, 2015, eq. 2.25, divided by the square of the knots' range.

    Args:
        x: Shape (n,).
        knots: Rising, K >= 3.

    Returns:
        Shape (n, K - 2).
    """
    last, before = knots[-1], knots[-2]
    cubes = [np.maximum(x - knot, 0) ** 3 for knot in knots]
    terms = [
        cubes[j] - cubes[-2] * (last - knots[j]) / (last - before) + cubes[-1] * (before - knots[j]) / (last - before)
        for j in range(len(knots) - 2)
    ]
    return np.asarray(np.column_stack(terms) / (last - knots[0]) ** 2, dtype=np.float64)
