"""Published tables of a made-up study with the real columns, to drive the figures and the page. Not a simulation."""

import math

import numpy as np
import polars as pl

from cohort_scorer import schemas

CATEGORIES = schemas.vocabulary("kaplan_meier", "category")
EXPOSURES = ("true", "cxr", "integrated")
MODELS = ("cxr", "integrated", "clinical")
YEAR = 365.25


def reported_tables(
    n: int = 600,
    sites: tuple[str, ...] = ("Hospital A", "Hospital B"),
    hazards: tuple[float, ...] = (0.008, 0.016, 0.035, 0.07),
    seed: int = 1,
) -> dict[str, pl.DataFrame]:
    """Every table that a run writes; the first site out-of-fold, the others external, and the pooled rows."""
    people = _people(n, sites, hazards, np.random.default_rng(seed))
    origins = ["oof"] + ["external"] * (len(sites) - 1)
    parts = [(site, origin, people.filter(pl.col("site") == site)) for site, origin in zip(sites, origins, strict=True)]
    if len(sites) > 1:
        parts.append(("all", "all", people))
    rows: dict[str, list[dict[str, object]]] = {}
    for site, origin, part in parts:
        for name, found in _group(part).items():
            rows.setdefault(name, []).extend({"site": site, "score_origin": origin, **row} for row in found)
    tables = {
        name: schemas.conform(pl.DataFrame(found, infer_schema_length=None), name) for name, found in rows.items()
    }
    return {"attrition": _attrition(n), "baseline": _baseline(people), **tables, "audit_coverage": _coverage(people)}


def _people(n: int, sites: tuple[str, ...], hazards: tuple[float, ...], rng: np.random.Generator) -> pl.DataFrame:
    shares = (0.46, 0.30, 0.14, 0.10)
    true = rng.choice(4, n, p=shares)
    predicted = {}
    for name, noise in (("cxr", 1.5), ("integrated", 1.2)):
        latent = rng.normal(true, noise)
        predicted[name] = np.searchsorted(np.quantile(latent, np.cumsum(shares[:3])), latent)
    with np.errstate(divide="ignore"):
        event = rng.exponential(1 / np.asarray(hazards)[true])
    other = np.minimum(rng.exponential(1 / 0.01, n), rng.uniform(1.5, 7, n))
    return pl.DataFrame(
        {
            "site": rng.choice(np.array(sites), n),
            "true": true,
            **predicted,
            "age": rng.normal(56 + 4 * true, 9),
            "female": rng.random(n) < 0.45 - 0.05 * true,
            "bmi": rng.normal(25, 3.5, n),
            "days": np.ceil(np.minimum(event, other) * YEAR),
            "event": (event <= other).astype(int),
        }
    )


def _attrition(n: int) -> pl.DataFrame:
    cohort = [
        ("no_linkable_id", 12),
        ("no_radiograph", n // 40),
        ("no_frontal_view", n // 60),
        ("no_cacs", n // 20),
        ("no_cacs_in_window", n // 25),
        ("age_missing_or_under_minimum", 0),
        ("prior_pci", n // 90),
    ]
    analysis = [
        ("unreadable", 3),
        ("no_score", 0),
        ("score_origin_refused", 0),
        ("no_follow_up", n // 80),
        ("event_between_scan_and_t0", 4),
        ("prior_event", 9),
        ("missing_covariates", n // 50),
    ]
    left = n + sum(count for _, count in cohort + analysis)
    rows = []
    for step, reasons in (("cohort", cohort), ("analysis", analysis)):
        for order, (reason, count) in enumerate(reasons, start=1):
            rows.append((step, order, reason, left, count, left - count))
            left -= count
    return pl.DataFrame(rows, schema=list(schemas.columns("attrition").items()), orient="row")


def _baseline(people: pl.DataFrame) -> pl.DataFrame:
    def row(variable: str, level: str | None, statistic: str, value: pl.Expr, missing: int | None, difference: float):
        cells = {
            name: people.filter(pl.col("true") == code).select(value).item() for code, name in enumerate(CATEGORIES)
        }
        return {
            "variable": variable,
            "level": level,
            "statistic": statistic,
            **cells,
            "overall": people.select(value).item(),
            "missing": missing,
            "standardised_difference": difference,
        }

    rows = [row("patients", None, "n", pl.len().cast(pl.Float64), 0, None)]
    for variable, column, missing in (("age_years", "age", 0), ("bmi", "bmi", 7)):
        rows.append(row(variable, None, "mean", pl.col(column).mean(), missing, 0.71))
        rows.append(row(variable, None, "sd", pl.col(column).std(), missing, None))
    for level, test in (("F", pl.col("female")), ("M", ~pl.col("female"))):
        rows.append(row("sex", level, "n", test.sum().cast(pl.Float64), 0, 0.22))
        rows.append(row("sex", level, "percent", test.mean() * 100, 0, None))
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "baseline")


def _coverage(people: pl.DataFrame) -> pl.DataFrame:
    rows = []
    for stratum, level, n in (
        ("overall", None, len(people)),
        ("sex", "F", len(people) // 2),
        ("age_band", "60-69", 99),
    ):
        scored = int(n * 0.93)
        lower, upper = _wilson(scored, n)
        rows.append(
            {
                "stratum": stratum,
                "level": level,
                "n_eligible": n,
                "n_with_cxr": int(n * 0.97),
                "n_readable": scored,
                "n_scored": scored,
                "coverage": scored / n,
                "lower": lower,
                "upper": upper,
            }
        )
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "audit_coverage")


def _group(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    return _performance(part) | _tables_of_patients(part) | _survival(part) | _cox(part) | _audit(part)


def _performance(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    n = len(part)
    names = ("discrimination", "discrimination_tests", "operating_points", "calibration", "decision_curve")
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in names}
    for number, threshold in enumerate((0, 100, 400)):
        positive = int((part["true"] > number).sum())
        about = {"threshold": threshold, "n": n}
        for model, auc in zip(MODELS, (0.74, 0.78, 0.72), strict=True):
            for name, found in _model(auc + 0.02 * number, positive, n, number).items():
                rows[name] += [{**about, "exposure": model, **row} for row in found]
        names = "exposure_a exposure_b n_positive auc_a auc_b auc_difference lower upper p"
        test = _row(names, "integrated", "clinical", positive, 0.78, 0.72, 0.06, 0.03, 0.09, 0.0004)
        rows["discrimination_tests"].append({**about, **test})
    return rows


def _model(auc: float, positive: int, n: int, number: int) -> dict[str, list[dict[str, object]]]:
    spread, share = 0.55 / math.sqrt(max(positive, 1)), positive / n
    names = "fold n_positive auc lower upper brier"
    folds = [_row(names, fold, positive, auc - 0.01, None, None, 0.17) for fold in ("0", "1", "mean")]
    whole = _row(names, None, positive, auc, auc - spread, min(1.0, auc + spread), 0.17)
    accuracy = {"rule": "prevalence", "cut_point": 0.5 - 0.15 * number, "predicted_margin": share, "true_margin": share}
    for name, value in (("sensitivity", 0.70), ("specificity", 0.68), ("ppv", 0.55), ("npv", 0.80)):
        accuracy |= _row(f"{name} {name}_lower {name}_upper", value, value - 0.05, value + 0.05)
    calibration = [_row("statistic estimate", "ici", 0.021)]
    for statistic, value in (("observed_expected", 1.04), ("intercept", 0.03), ("slope", 0.93)):
        calibration.append(_row("statistic estimate lower upper", statistic, value, value - 0.12, value + 0.13))
    curve = []
    for probability in np.linspace(0.01, 0.6, 60):
        odds = probability / (1 - probability)
        benefit = max(0.0, share * auc * (1 - probability) - 0.25 * (1 - share) * odds * (1 - probability))
        curve.append(_row("probability net_benefit treat_all", probability, benefit, share - (1 - share) * odds))
    return {
        "discrimination": [whole, *folds],
        "operating_points": [accuracy],
        "calibration": calibration,
        "decision_curve": curve,
    }


def _row(names: str, *values: object) -> dict[str, object]:
    return dict(zip(names.split(), values, strict=True))


def _tables_of_patients(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    rows: dict[str, list[dict[str, object]]] = {
        name: [] for name in ("crosstab", "discordance", "agreement", "event_rates")
    }
    for exposure in EXPOSURES:
        for code, category in enumerate(CATEGORIES):
            there = part.filter(pl.col(exposure) == code)
            rows["event_rates"].append({"exposure": exposure, "category": category, **_rate(there)})
            if exposure == "true":
                continue
            for other, predicted in enumerate(CATEGORIES):
                cell = part.filter((pl.col("true") == code) & (pl.col(exposure) == other))
                pair = {"exposure": exposure, "true_category": category, "predicted_category": predicted}
                rows["crosstab"].append({**pair, "n": len(cell)})
                rows["discordance"].append({**pair, **_rate(cell)})
        if exposure != "true":
            for statistic, value in (("accuracy", 0.52), ("kappa_linear", 0.41), ("kappa_quadratic", 0.53)):
                rows["agreement"].append(
                    {
                        "exposure": exposure,
                        "n": len(part),
                        "statistic": statistic,
                        "estimate": value,
                        "lower": value - 0.04,
                        "upper": value + 0.04,
                    }
                )
    return rows


def _rate(part: pl.DataFrame) -> dict[str, object]:
    events, years = int(part["event"].sum()), float(part["days"].sum()) / YEAR
    if years == 0:
        return {"n": 0, "events": 0, "person_years": 0.0}
    spread = 1.96 * math.sqrt(events)
    return {
        "n": len(part),
        "events": events,
        "person_years": years,
        "rate_per_1000_py": 1000 * events / years,
        "lower": 1000 * max(0.0, events - spread) / years,
        "upper": 1000 * (events + spread + 3.689) / years,
    }


def _survival(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    rows: dict[str, list[dict[str, object]]] = {name: [] for name in ("kaplan_meier", "at_risk", "logrank")}
    for exposure in EXPOSURES:
        for code, category in enumerate(CATEGORIES):
            there = part.filter(pl.col(exposure) == code)
            about = {"exposure": exposure, "category": category}
            rows["kaplan_meier"] += [{**about, **row} for row in _kaplan_meier(there)]
            for years in range(7):
                past = there.filter(pl.col("days") <= years * YEAR)
                rows["at_risk"].append(
                    {
                        **about,
                        "time_years": float(years),
                        "n_at_risk": int((there["days"] >= years * YEAR).sum()),
                        "cumulative_events": int(past["event"].sum()),
                        "cumulative_censored": int((past["event"] == 0).sum()),
                    }
                )
        rows["logrank"].append({"exposure": exposure, "test": "overall", "chi2": 41.2, "df": 3, "p": 5.9e-9})
        rows["logrank"].append({"exposure": exposure, "test": "trend", "chi2": 39.8, "df": 1, "p": 2.8e-10})
        rows["logrank"] += [
            {
                "exposure": exposure,
                "test": "pairwise",
                "category_a": a,
                "category_b": b,
                "chi2": 4.1,
                "df": 1,
                "p": 0.043,
                "p_holm": 0.086,
            }
            for i, a in enumerate(CATEGORIES)
            for b in CATEGORIES[i + 1 :]
        ]
    return rows


def _kaplan_meier(part: pl.DataFrame) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {
            "time_days": 0.0,
            "n_at_risk": len(part),
            "n_events": 0,
            "n_censored": 0,
            "survival": 1.0,
            "lower": 1.0,
            "upper": 1.0,
        }
    ]
    survival, variance, at_risk = 1.0, 0.0, len(part)
    counts = part.group_by("days").agg(pl.len().alias("n"), pl.col("event").sum()).sort("days")
    for days, n, events in counts.iter_rows():
        survival *= 1 - events / at_risk
        lower = upper = None
        if 0 < survival < 1:
            variance += events / (at_risk * (at_risk - events))
            spread = 1.96 * math.sqrt(variance) / abs(math.log(survival))
            lower, upper = survival ** math.exp(spread), survival ** math.exp(-spread)
        rows.append(
            {
                "time_days": days,
                "n_at_risk": at_risk,
                "n_events": events,
                "n_censored": n - events,
                "survival": survival,
                "lower": lower,
                "upper": upper,
            }
        )
        at_risk -= n
    return rows


def _cox(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    rows: dict[str, list[dict[str, object]]] = {"cox": [], "cox_fit": []}
    for exposure in EXPOSURES:
        rates = [_rate(part.filter(pl.col(exposure) == code)) for code in range(4)]
        few = any(int(str(rate["events"])) < 5 for rate in rates)
        for model, shrink in ((f"crude:{exposure}", 1.0), (f"covariates+{exposure}", 0.8)):
            method = "not_fitted" if few else "efron"
            for category, rate in zip(CATEGORIES, rates, strict=True):
                about = {
                    "model": model,
                    "exposure": exposure,
                    "term": "category",
                    "level": category,
                    "n": rate["n"],
                    "n_events": rate["events"],
                    "method": method,
                }
                reference = {"hr": None if few else 1.0}
                rows["cox"].append(
                    {**about, **(reference if few or category == "CAC 0" else _ratio(rate, rates[0], shrink))}
                )
            if model.startswith("covariates"):
                rows["cox"].append(
                    {
                        "model": model,
                        "exposure": None,
                        "term": "age_at_t0_years",
                        "level": None,
                        "n": len(part),
                        "n_events": part["event"].sum(),
                        "method": method,
                    }
                    | (
                        {}
                        if few
                        else {"coef": 0.03, "se": 0.01, "hr": 1.03, "lower": 1.01, "upper": 1.05, "z": 3.0, "p": 0.0027}
                    )
                )
            rows["cox_fit"].append(
                {"model": model, "n": len(part), "n_events": int(part["event"].sum()), "method": method}
                | (
                    {}
                    if few
                    else {
                        "loglik_null": -812.4,
                        "loglik": -790.1,
                        "df": 3,
                        "lr_chi2": 44.6,
                        "p": 1.1e-9,
                        "aic": 1586.2,
                        "harrell_c": 0.68,
                        "harrell_c_se": 0.02,
                        "events_per_parameter": 32.0,
                    }
                )
            )
    return rows


def _ratio(rate: dict[str, object], reference: dict[str, object], shrink: float) -> dict[str, object]:
    events, base = float(str(rate["events"])), float(str(reference["events"]))
    coef = shrink * math.log(float(str(rate["rate_per_1000_py"])) / float(str(reference["rate_per_1000_py"])))
    se = math.sqrt(1 / events + 1 / base)
    z = coef / se
    return {
        "coef": coef,
        "se": se,
        "hr": math.exp(coef),
        "lower": math.exp(coef - 1.96 * se),
        "upper": math.exp(coef + 1.96 * se),
        "z": z,
        "p": math.erfc(abs(z) / math.sqrt(2)),
    }


def _audit(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    rows: dict[str, list[dict[str, object]]] = {"audit_positivity": [], "audit_prevalence": []}
    strata = {
        ("overall", None): pl.lit(True),
        ("sex", "F"): pl.col("female"),
        ("sex", "M"): ~pl.col("female"),
        ("age_band", "under 60"): pl.col("age") < 60,
        ("age_band", "60 and over"): pl.col("age") >= 60,
        ("age_band", "90 and over"): pl.lit(False),
    }
    for exposure in ("cxr", "integrated"):
        for (stratum, level), test in strata.items():
            there = part.filter(test)
            n, positive = len(there), int((there[exposure] >= 2).sum())
            about = {"exposure": exposure, "threshold": 100, "stratum": stratum, "level": level, "n": n}
            interval = {} if n == 0 else dict(zip(("lower", "upper"), _wilson(positive, n), strict=True))
            share = positive / n if n else None
            rows["audit_positivity"].append({**about, "n_positive": positive, "positivity": share, **interval})
            if n:
                rows["audit_prevalence"].append(
                    {
                        **about,
                        "apparent_prevalence": share,
                        "sensitivity": 0.71,
                        "n_sensitivity": 140,
                        "specificity": 0.74,
                        "n_specificity": 460,
                        "prevalence": 0.22,
                        "lower": 0.13,
                        "upper": 0.31,
                    }
                )
    return rows


def _wilson(positive: int, n: int) -> tuple[float, float]:
    z2, p = 3.8415, positive / n
    middle, spread = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n)
    return (middle - spread) / (1 + z2 / n), (middle + spread) / (1 + z2 / n)
