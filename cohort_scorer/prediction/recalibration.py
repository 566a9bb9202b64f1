"""Fitting a bundle's probabilities to another site: the layers are updated, the networks stay. Sees no pixel.

The ladder of updates, simplest first: `none`; `intercept` (the odds are multiplied: another prevalence); and
`intercept_slope` (the logit is stretched too: predictions were too extreme or too timid). Steyerberg EW and others,
Stat Med 2004;23:2567-2586; Vergouwe Y and others, Stat Med 2017;36:4529-4539.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logit

from cohort_scorer.prediction.bundle import NEW
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, Layer, fit
from cohort_scorer.study import THRESHOLDS

UPDATES = ("none", "intercept", "intercept_slope")
_CLIP = 1e-6
_WIDEST = 50.0  # of an intercept, on the logit scale

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Update:
    """New logit = intercept + slope x old logit."""

    intercept: float
    slope: float

    def apply(self, layer: Layer) -> Layer:
        """The layer that gives the new logit at once."""
        coefficients = {name: self.slope * value for name, value in layer.coefficients.items()}
        return Layer(self.intercept + self.slope * layer.intercept, coefficients)


Updates = Mapping[tuple[str, str, int], Update]
"""Per exposure, threshold name and fold: NEW, or that of a part, which had no part in the fit."""


def recalibrate(people: pl.DataFrame) -> tuple[Updates, pl.DataFrame]:
    """Choose and fit the update of every layer for new patients.

    An update is chosen where it has the largest log-likelihood in patients on whom it was not fitted, part by part; at
    a tie the simpler one. The choice itself is made once, on all of them.

    Args:
        people: One row per patient of the new site: layer_fold (that of the patient's part),
            {exposure}_{threshold} by the layers for new patients, <threshold> (bool, the truth).

    Returns:
        The updates for new patients and for each part; and per exposure, threshold and kind of update: n, n_positive,
        intercept, slope, log_likelihood (of the patients it was not fitted on, in sum), chosen.

    Raises:
        ConvergenceError: a slope has no maximum of the likelihood.
    """
    updates: dict[tuple[str, str, int], Update] = {}
    rows = []
    for exposure in EXPOSURES:
        for name, threshold in zip(THRESHOLD_NAMES, THRESHOLDS, strict=True):
            complete = people.drop_nulls(f"{exposure}_{name}")
            linear, passed = _linear(complete[f"{exposure}_{name}"]), complete[name].to_numpy()
            part = complete["layer_fold"].to_numpy()
            without = {
                kind: {
                    int(own): fit_update(kind, linear[part != own], passed[part != own])
                    for own in people["layer_fold"].unique().sort()
                }
                for kind in UPDATES
            }
            likelihood = {
                kind: sum(
                    _log_likelihood(update, linear[part == own], passed[part == own]) for own, update in fitted.items()
                )
                for kind, fitted in without.items()
            }
            chosen = max(UPDATES, key=lambda kind: round(likelihood[kind], 9))
            for kind in UPDATES:
                update = fit_update(kind, linear, passed)
                if kind == chosen:
                    updates |= {(exposure, name, own): other for own, other in without[kind].items()}
                    updates[exposure, name, NEW] = update
                place = {"exposure": exposure, "threshold": threshold, "update": kind}
                numbers = {"n": len(passed), "n_positive": int(passed.sum())}
                found = {"intercept": update.intercept, "slope": update.slope, "log_likelihood": likelihood[kind]}
                rows.append(place | numbers | found | {"chosen": kind == chosen})
    return updates, pl.DataFrame(rows)


def updated_layers(layers: Mapping[tuple[str, str, int], Layer], updates: Updates) -> dict[tuple[str, str, int], Layer]:
    """All layers of a bundle: those of its folds as they were, those for new patients and for the parts updated."""
    return {**layers, **{key: update.apply(layers[(*key[:2], NEW)]) for key, update in updates.items()}}


def updated(people: pl.DataFrame, updates: Updates, fold: int) -> pl.DataFrame:
    """Patients with {exposure}_{threshold} by the updates of a fold, from those by the layers for new patients."""
    return people.with_columns(
        pl.Series(
            f"{exposure}_{name}",
            expit(update.intercept + update.slope * _linear(people[f"{exposure}_{name}"])),
            nan_to_null=True,
        )
        for (exposure, name, own), update in updates.items()
        if own == fold
    )


def _linear(probability: pl.Series) -> Floats:
    """The logit, with probabilities clipped to [1e-6, 1 - 1e-6]; NaN where it is missing."""
    held = probability.cast(pl.Float64).to_numpy().astype(np.float64)
    linear: Floats = logit(np.clip(held, _CLIP, 1 - _CLIP))
    return linear


def fit_update(kind: str, linear: Floats, passed: Booleans) -> Update:
    """Fit an update by maximum likelihood.

    Args:
        kind: Of UPDATES.
        linear: (n,) old logits.
        passed: (n,) the truth.
    """
    if kind == "none":
        return Update(0.0, 1.0)
    if kind == "intercept":
        # At the maximum the expected number is the observed one.
        return Update(float(brentq(lambda a: expit(a + linear).sum() - passed.sum(), -_WIDEST, _WIDEST)), 1.0)
    layer = fit(pl.DataFrame({"linear": linear, "passed": passed}), ("linear",), "passed")
    return Update(layer.intercept, layer.coefficients["linear"])


def _log_likelihood(update: Update, linear: Floats, passed: Booleans) -> float:
    new = update.intercept + update.slope * linear
    return float(np.where(passed, log_expit(new), log_expit(-new)).sum())
