"""How codes of the published tables read on figures and pages. Knows no number."""

from typing import Any

ABSENT = "–"  # noqa: RUF001
"""What a cell without a value shows."""

EXPOSURES = {"true": "True CACS", "cxr": "CXR", "integrated": "CXR + clinical", "clinical": "Clinical only"}
ORIGINS = {"oof": "out-of-fold", "external": "external", "in_sample": "in-sample", "unknown": "origin unknown"}
_OTHERS = {
    "all": "All, pooled",
    "argmax": "most probable class",
    "observed_expected": "Observed : expected",
    "intercept": "Intercept",
    "slope": "Slope",
    "intercept_slope": "Intercept and slope",
    "ici": "Integrated calibration index",
    "kappa_linear": "Kappa, linear weights",
    "kappa_quadratic": "Kappa, quadratic weights",
    "efron": "Efron",
    "firth": "Firth",
    "not_fitted": "not fitted",
    "age_years": "Age, years",
    "age_at_t0_years": "Age at t0, years",
    "bmi": "BMI, kg/m²",
    "cacs": "CACS, Agatston units",
    "days_between": "Days between, CXR - CT",
    "overall": "Overall",
    "crude": "Crude",
    "lr_chi2": "Likelihood ratio",
    "interaction_lr_chi2": "Likelihood ratio of the interaction",
    "adequacy_predicted": "Adequacy, predicted",
    "adequacy_true": "Adequacy, true",
    "relative_lr": "Likelihood ratio, predicted over true",
    "harrell_c_difference": "Harrell's C",
    "uno_c_difference": "Uno's C",
    "auc_difference": "AUC(t)",
    "brier_difference": "Brier score",
    "noninferiority_c": "Harrell's C against the margin",
    "rmst": "Restricted mean, days",
    "rmst_difference": "Difference from CAC 0, days",
    "infinitesimal_jackknife": "Paired",
    "bootstrap": "Resamples",
    "dfbeta": "Paired",
    "kaplan_meier": "Kaplan-Meier",
    "aalen_johansen": "Aalen-Johansen",
}

_ABBREVIATIONS = {
    part: part.upper()
    for part in (
        "cacs",
        "cxr",
        "ct",
        "pci",
        "cabg",
        "bmi",
        "auc",
        "voi",
        "lut",
        "dicom",
        "jpeg",
        "png",
        "roc",
        "ppv",
        "npv",
    )
}


def words(code: Any) -> str:
    """A code as a reader would write it; free text, for example a site's name, stays as it is."""
    text = "" if code is None else str(code)
    known = EXPOSURES | ORIGINS | _OTHERS
    text = f"number_of_{text[2:]}" if text.startswith("n_") else text
    return known.get(text) or " ".join(_ABBREVIATIONS.get(part, part) for part in text.split("_"))


def sentence(code: Any) -> str:
    """`words` with a capital first letter."""
    text = words(code)
    return text[:1].upper() + text[1:]


def model(code: str) -> str:
    """A Cox model's code: `crude:cxr` as `Crude, CXR`, `covariates+true` as `Covariates + True CACS`."""
    kind, _, exposure = code.partition(":")
    return f"Crude, {words(exposure)}" if exposure else sentence(" + ".join(words(part) for part in kind.split("+")))


def comparison(code: str) -> str:
    """What comparison.csv compares: `A v B` of two models, `A x part` of an interaction, or one model."""
    for sign, between in ((" v ", " v "), (" x ", " × ")):  # noqa: RUF001
        first, found, second = code.partition(sign)
        if found:
            return f"{model(first)}{between}{words(second) if sign == ' x ' else model(second)}"
    return model(code)


def threshold(value: int | None) -> str:
    """A CACS threshold as the condition it stands for."""
    return "" if value is None else "CACS > 0" if value == 0 else f"CACS ≥ {value}"


def years(value: float) -> str:
    """A horizon: `1 year`, `2.5 years`."""
    return f"{value:g} year{'' if value == 1 else 's'}"


def analysis(name: str, value: str | None) -> str:
    """A row of [sensitivity] as a reader would say it."""
    told = {
        "main": "As declared",
        "maximum_days_between": f"Within {value} days",
        "pairing": f"Pairing: {words(value)}",
        "landmark_days": f"Landmark: {value} days",
    }
    return told[name]


def place(site: str | None) -> str:
    """A site as a heading; `all` is all of them."""
    return "All sites" if site == "all" else (f"Site {site}" if site else "Site not stated")


def group(site: str | None, score_origin: str | None) -> str:
    """A site and score origin as a heading: `Site A (out-of-fold)`; `all` is the pooled group."""
    how = "pooled" if score_origin == "all" else ORIGINS.get(score_origin or "", score_origin or "origin not stated")
    return f"{place(site)} ({how})"
