"""The logistic layer between raw network outputs and calibrated probabilities. Sees no pixel.

Three exposures share it: `cxr` (the network's logit alone: Platt scaling), `integrated` (logit, age, sex, BMI) and
`clinical` (age, sex, BMI). For a training patient of fold k the layer is fitted on out-of-fold logits of the patients
outside k (simple stacking: those logits come from networks trained on fold k, a small known leak).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from sklearn.linear_model import LogisticRegression

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.study import THRESHOLDS

EXPOSURES = ("cxr", "integrated", "clinical")
THRESHOLD_NAMES = ("gt0", "ge100", "ge400")


@dataclass(frozen=True)
class Layer:
    """P = 1 / (1 + exp(-(intercept + sum of coefficient * feature))).

    Attributes:
        intercept: On the logit scale.
        coefficients: Per feature: `logit` (of the network), age_years, male (1 or 0), bmi (kg/m2).
    """

    intercept: float
    coefficients: Mapping[str, float]

    def probability(self) -> pl.Expr:
        """The probability as an expression over the features; null where one is missing."""
        linear = pl.lit(self.intercept)
        for name, coefficient in self.coefficients.items():
            linear = linear + coefficient * pl.col(name)
        return 1 / (1 + (-linear).exp())


def passes_thresholds(cacs: str) -> list[pl.Expr]:
    """gt0, ge100, ge400: whether a true score (Agatston units) is above 0, at least 100, at least 400."""
    score = pl.col(cacs)
    return [
        (score >= threshold if threshold else score > 0).alias(name)
        for name, threshold in zip(THRESHOLD_NAMES, THRESHOLDS, strict=True)
    ]


def features(exposure: str, integrate: Sequence[str]) -> tuple[str, ...]:
    """The features of an exposure; `integrate` names age_years, sex, bmi as the study file does."""
    clinical = tuple("male" if name == "sex" else name for name in integrate)
    return {"cxr": ("logit",), "integrated": ("logit", *clinical), "clinical": clinical}[exposure]


def with_male(people: pl.DataFrame) -> pl.DataFrame:
    """Add male: 1 for M, 0 for F, null where sex is missing."""
    return people.with_columns((pl.col("sex") == "M").cast(pl.Float64).alias("male"))


def fit(people: pl.DataFrame, names: Sequence[str], outcome: str) -> Layer:
    """Fit by maximum likelihood (no penalty) on the rows that have every feature.

    Args:
        people: Feature columns and the outcome.
        names: The features.
        outcome: Boolean column.

    Raises:
        ConvergenceError: one class only, or no maximum.
    """
    complete = people.select(*names, outcome).drop_nulls()
    values = complete.select(names).to_numpy().astype(np.float64)
    passed = complete[outcome].to_numpy()
    mean, spread = values.mean(axis=0), values.std(axis=0)
    if passed.all() or not passed.any() or (spread == 0).any():
        raise ConvergenceError(
            f"The {' + '.join(names)} model has one class or a constant feature in its {len(complete):,} rows.",
            "Expected patients on both sides of every CACS threshold in every fold, and features that vary.",
            "Use fewer [train] folds, more patients, or fewer names in [train] integrate.",
        )
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit((values - mean) / spread, passed)
    coefficients = model.coef_[0] / spread
    linear = model.decision_function((values - mean) / spread)
    separated = linear[passed].min() > linear[~passed].max()
    if separated or model.n_iter_[0] >= 1000 or not np.isfinite(coefficients).all():
        raise ConvergenceError(
            f"The {' + '.join(names)} model did not converge in {len(complete):,} rows.",
            "Expected a maximum of the likelihood within 1,000 steps; found none.",
            "Look for a feature that separates the classes completely.",
        )
    intercept = float(model.intercept_[0] - coefficients @ mean)
    return Layer(intercept, dict(zip(names, map(float, coefficients), strict=True)))
