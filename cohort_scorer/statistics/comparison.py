"""Predicted against true categories as predictors of the outcome: the rows of comparison.csv.

Every statistic compares models of the same patients, and every bootstrap interval uses the same resamples. Knows no
site and no file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.special import chdtrc, ndtr

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.statistics import concordance, firth, residuals
from cohort_scorer.statistics.bootstrap import Discriminated, Refitted
from cohort_scorer.statistics.concordance import Concordance
from cohort_scorer.statistics.inputs import Floats, normal_quantile
from cohort_scorer.statistics.regression import Fitted

Row = dict[str, object]

LEAST_LR = 10.0
"""Below this likelihood ratio of everything known, its shares say nothing."""


@dataclass(frozen=True, eq=False)
class Compared:
    """Models of one group of patients.

    Attributes:
        fits: By name, those that could not be fitted included.
        harrell: C of each fitted model.
        uno: Uno's C likewise.
        refitted: The models on resamples; empty without.
        resampled_c: C of these; empty without.
        exposures: Of true, cxr, integrated.
        level: Confidence level.
    """

    fits: Mapping[str, Fitted]
    harrell: Mapping[str, Concordance]
    uno: Mapping[str, Concordance]
    refitted: Mapping[str, Refitted]
    resampled_c: Mapping[str, Discriminated]
    exposures: Sequence[str]
    level: float


def rows(compared: Compared, margin: float | None) -> Iterator[Row]:
    """Likelihood ratios, adequacy, ratios of hazard ratios and differences of C.

    Args:
        compared: The models.
        margin: How much lower C may be and still count as not inferior, None where the study declares none.
    """
    for exposure in compared.exposures:
        yield from _likelihood_ratios(compared, exposure)
        if exposure != "true":
            yield from _adequacy(compared, exposure)
            yield from _ratios_of_hazard_ratios(compared, exposure)
    yield from _c_differences(compared)
    if margin is not None:
        yield from _noninferiority(compared, margin)


def likelihood_ratio(larger: Fitted, smaller: Fitted | None) -> tuple[float, int] | None:
    """Likelihood ratio statistic and degrees of freedom of two nested models; None: the model without terms.

    Of penalised fits the smaller one is the larger with the coefficients of its further terms held at 0.
    """
    if larger.fit is None or (smaller is not None and smaller.fit is None):
        return None
    if smaller is None:
        return larger.fit.lr_chi2, larger.fit.df
    inner = set(smaller.labels())
    further = [k for label in larger.labels() if label not in inner for k in larger.positions(label)]
    if isinstance(larger.fit, firth.FirthFit):
        try:
            return larger.fit.lost_without(further), len(further)
        except ConvergenceError:
            return None
    assert smaller.fit is not None
    return max(2 * (larger.fit.loglik - smaller.fit.loglik), 0.0), len(further)


def _likelihood_ratios(compared: Compared, exposure: str) -> Iterator[Row]:
    adjusted, joint = f"covariates+{exposure}", f"covariates+true+{exposure}"
    nested = [(adjusted, "covariates")]
    if exposure != "true":
        nested += [(joint, "covariates+true"), (joint, adjusted)]
    for larger, smaller in nested:
        if larger not in compared.fits:
            continue
        against = compared.fits.get(smaller)
        found = likelihood_ratio(compared.fits[larger], against)
        named = {"comparison": f"{larger} v {smaller if against else 'nothing'}", "exposure": exposure}
        method = compared.fits[larger].method
        if found is None or not found[1]:
            reason = "a model has no maximum" if found is None else "the larger model has no further term"
            yield {**named, "statistic": "lr_chi2", "reason": reason}
            continue
        chi2, df = found
        yield {
            **named,
            "statistic": "lr_chi2",
            "estimate": chi2,
            "df": df,
            "p": float(chdtrc(df, chi2)),
            "method": method,
        }


def _adequacy(compared: Compared, exposure: str) -> Iterator[Row]:
    """Shares of what covariates, prediction and CT tell together (Harrell FE, Regression Modeling Strategies, 2015)."""
    names = {"M0": "covariates", "M1": f"covariates+{exposure}", "M2": "covariates+true"}
    names["M3"] = f"covariates+true+{exposure}"
    if names["M3"] not in compared.fits:
        return
    statistics = {
        "adequacy_predicted": ("M1", "M3"),
        "adequacy_true": ("M2", "M3"),
        "relative_lr": ("M1", "M2"),
    }
    held = {key: compared.fits.get(name) for key, name in names.items()}
    named = {"comparison": f"{names['M1']} v {names['M2']}", "exposure": exposure}
    reason = None
    if any(fitted is not None and fitted.fit is None for fitted in held.values()):
        reason = "a model was not fitted"
    elif any(fitted is not None and fitted.method == "firth" for fitted in held.values()):
        reason = "likelihoods with different penalties have no ratio"
    else:
        lr = {key: fitted.fit.lr_chi2 if fitted and fitted.fit else 0.0 for key, fitted in held.items()}
        if lr["M3"] - lr["M0"] < LEAST_LR:
            reason = f"all of it together has a likelihood ratio below {LEAST_LR:g}"
    for statistic, (part, whole) in statistics.items():
        if reason:
            yield {**named, "statistic": statistic, "reason": reason}
            continue
        row = {**named, "statistic": statistic, "estimate": (lr[part] - lr["M0"]) / (lr[whole] - lr["M0"])}
        if all(name in compared.refitted for key, name in names.items() if held[key]):
            zero = np.zeros(1)
            drawn = {key: compared.refitted[name].lr_chi2 if held[key] else zero for key, name in names.items()}
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = (drawn[part] - drawn["M0"]) / (drawn[whole] - drawn["M0"])
            yield {**row, **quantiles(ratio, compared.level)}
        else:
            yield {**row, "method": "efron"}


def _ratios_of_hazard_ratios(compared: Compared, exposure: str) -> Iterator[Row]:
    """Hazard ratios of a predicted category over that of the true one, from the adjusted models.

    The standard error of the log ratio is the square root of the sum of (dfbeta1 - dfbeta2)^2: that of a model stacked
    of both with patients as clusters (Wei LJ, Lin DY, Weissfeld L, J Am Stat Assoc 1989;84:1065-1073), as R's
    `coxph(~ (x + category) * e + strata(e) - e, cluster = id)`.
    """
    first, second = f"covariates+{exposure}", "covariates+true"
    if not {first, second} <= compared.fits.keys():
        return
    predicted, true = compared.fits[first], compared.fits[second]
    levels = {term.level: term for term in (*true.terms, *predicted.terms) if term.exposure and not term.is_reference}
    named: Row = {"comparison": f"{first} v {second}", "exposure": exposure, "statistic": "ratio_of_hazard_ratios"}
    if predicted.fit is None or true.fit is None:
        yield from ({**named, "level": level, "reason": "a model was not fitted"} for level in levels)
        return
    changes = residuals.dfbeta(predicted.fit), residuals.dfbeta(true.fit)
    for level in levels:
        i, j = predicted.position(exposure, str(level)), true.position("true", str(level))
        if i is None or j is None:
            yield {**named, "level": level, "reason": "nobody is predicted it, or nobody has it"}
            continue
        log_ratio = float(predicted.fit.coefficients[i] - true.fit.coefficients[j])
        influence = changes[0][:, i] - changes[1][:, j]
        se = float(np.sqrt(influence @ influence))
        half = normal_quantile(compared.level) * se
        ratio: Row = {**named, "level": level, "estimate": float(np.exp(log_ratio))}
        limits = {"lower": float(np.exp(log_ratio - half)), "upper": float(np.exp(log_ratio + half))}
        yield {**ratio, "se": se, **limits, "p": _two_sided(log_ratio / se) if se else None, "method": "dfbeta"}
        if first in compared.refitted and second in compared.refitted:
            drawn = compared.refitted[first].coefficients[:, i] - compared.refitted[second].coefficients[:, j]
            # Quantiles of the logarithm are those of the ratio.
            found = {**quantiles(np.exp(drawn), compared.level), "se": quantiles(drawn, compared.level)["se"]}
            yield {**ratio, **found}


def _c_differences(compared: Compared) -> Iterator[Row]:
    """Differences of concordance. Of nested models without p: there the likelihood ratio is the test."""
    for exposure in compared.exposures:
        joint = f"covariates+true+{exposure}"
        asked = [(f"covariates+{exposure}", "covariates", True)]
        if exposure != "true":
            asked = [
                (f"crude:{exposure}", "crude:true", False),
                (f"covariates+{exposure}", "covariates+true", False),
                *asked,
                (joint, "covariates+true", True),
                (joint, f"covariates+{exposure}", True),
            ]
        for first, second, nested in asked:
            if not {first, second} <= compared.fits.keys():
                continue
            named: Row = {"comparison": f"{first} v {second}", "exposure": exposure}
            for statistic, held in (("harrell_c_difference", compared.harrell), ("uno_c_difference", compared.uno)):
                if not {first, second} <= held.keys():
                    yield {**named, "statistic": statistic, "reason": "a model was not fitted, or has no term"}
                    continue
                difference, se = concordance.difference(held[first], held[second])
                found = {**named, "statistic": statistic, "estimate": difference}
                if difference is None or se is None:
                    yield {**found, "reason": "no comparable pair"}
                    continue
                half = normal_quantile(compared.level) * se
                p = None if nested or se == 0 else _two_sided(difference / se)
                limits = {"lower": difference - half, "upper": difference + half}
                yield {**found, "se": se, **limits, "p": p, "method": "infinitesimal_jackknife"}
                if statistic == "harrell_c_difference" and first in compared.resampled_c:
                    drawn = compared.resampled_c[first].resample - compared.resampled_c[second].resample
                    yield {**found, **quantiles(drawn, compared.level)}


def _noninferiority(compared: Compared, margin: float) -> Iterator[Row]:
    """One-sided test that C of the adjusted model is not lower by the margin with the predicted category."""
    for exposure in compared.exposures:
        first, second = f"covariates+{exposure}", "covariates+true"
        if exposure == "true" or not {first, second} <= compared.fits.keys():
            continue
        named: Row = {"comparison": f"{first} v {second}", "exposure": exposure, "statistic": "noninferiority_c"}
        if not {first, second} <= compared.harrell.keys():
            yield {**named, "reason": "a model was not fitted, or has no term"}
            continue
        difference, se = concordance.difference(compared.harrell[first], compared.harrell[second])
        if difference is None or not se:
            yield {**named, "reason": "no comparable pair" if difference is None else "the predictions do not differ"}
            continue
        half = normal_quantile(compared.level) * se
        yield {
            **named,
            "estimate": difference,
            "se": se,
            "lower": difference - half,
            "upper": difference + half,
            "p": float(ndtr(-(difference + margin) / se)),
            "method": "infinitesimal_jackknife",
        }


def _two_sided(z: float) -> float:
    return float(2 * ndtr(-abs(z)))


def quantiles(drawn: Floats, level: float) -> Row:
    """Percentile limits of the resamples (type 7) with their standard deviation; those without a value are counted."""
    known = drawn[np.isfinite(drawn)]
    found: Row = {"method": "bootstrap", "replicates": len(known), "failed": len(drawn) - len(known)}
    if len(known) < 2:
        return {**found, "se": None, "lower": None, "upper": None}
    tail = (1 - level) / 2
    lower, upper = np.quantile(known, [tail, 1 - tail])
    return {**found, "se": float(known.std(ddof=1)), "lower": float(lower), "upper": float(upper)}


COLUMNS = {
    **dict.fromkeys(["comparison", "exposure", "level"], pl.String()),
    "horizon_years": pl.Float64(),
    "statistic": pl.String(),
    **dict.fromkeys(["estimate", "se", "lower", "upper"], pl.Float64()),
    "df": pl.Int64(),
    "p": pl.Float64(),
    "method": pl.String(),
    **dict.fromkeys(["replicates", "failed"], pl.Int64()),
    "reason": pl.String(),
}
