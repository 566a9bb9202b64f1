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
    true = rng.choice(4, n, p=(0.46, 0.30, 0.14, 0.10))
    age = rng.normal(56 + 4 * true, 9)
    latent = {"cxr": rng.normal(true, 1.5), "integrated": rng.normal(true, 1.2)}
    cuts = np.quantile(true + rng.random(n), np.cumsum((0.46, 0.30, 0.14)))
    predicted = {
        name: np.searchsorted(np.quantile(value, np.cumsum((0.46, 0.30, 0.14))), value)
        for name, value in latent.items()
    }
    assert len(cuts) == 3
    with np.errstate(divide="ignore"):
        event = rng.exponential(1 / np.asarray(hazards)[true])
    competing, censored = rng.exponential(1 / 0.01, n), rng.uniform(1.5, 7, n)
    time = np.minimum(np.minimum(event, competing), censored)
    return pl.DataFrame(
        {
            "site": rng.choice(np.array(sites), n),
            "true": true,
            **predicted,
            "age": age,
            "female": rng.random(n) < 0.45 - 0.05 * true,
            "bmi": rng.normal(25, 3.5, n),
            "days": np.ceil(time * YEAR),
            "event": (event <= np.minimum(competing, censored)).astype(int),
        }
    )


def _attrition(n: int) -> pl.DataFrame:
    cohort = [
        ("no_linkable_id", 12), ("no_radiograph", n // 40), ("no_frontal_view", n // 60), ("no_cacs", n // 20),
        ("no_cacs_in_window", n // 25), ("age_missing_or_under_minimum", 0), ("prior_pci", n // 90),
    ]  # fmt: skip
    analysis = [
        ("unreadable", 3), ("no_score", 0), ("score_origin_refused", 0), ("no_follow_up", n // 80),
        ("event_between_scan_and_t0", 4), ("prior_event", 9), ("missing_covariates", n // 50),
    ]  # fmt: skip
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
        return {"variable": variable, "level": level, "statistic": statistic, **cells,
                "overall": people.select(value).item(), "missing": missing, "standardised_difference": difference}  # fmt: skip

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
    for stratum, level, n in (("overall", None, len(people)), ("sex", "F", len(people) // 2), ("age_band", "60-69", 99)):
        scored = int(n * 0.93)
        lower, upper = _wilson(scored, n)
        rows.append({"stratum": stratum, "level": level, "n_eligible": n, "n_with_cxr": int(n * 0.97),
                     "n_readable": scored, "n_scored": scored, "coverage": scored / n, "lower": lower, "upper": upper})  # fmt: skip
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "audit_coverage")


def _group(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    return _performance(part) | _tables_of_patients(part) | _survival(part) | _cox(part) | _audit(part)


def _performance(part: pl.DataFrame) -> dict[str, list[dict[str, object]]]:
    n = len(part)
    rows: dict[str, list[dict[str, object]]] = {
        name: []
        for name in ("discrimination", "discrimination_tests", "operating_points", "calibration", "decision_curve")
    }
    for number, threshold in enumerate((0, 100, 400)):
        positive = int((part["true"] > number).sum())
        spread = 1.1 / math.sqrt(max(positive, 1))
        for model, auc in zip(MODELS, (0.74, 0.78, 0.72), strict=True):
            auc += 0.02 * number
            about = {"exposure": model, "threshold": threshold, "n": n}
            for fold in (None, "0", "1", "mean"):
                whole = fold is None
                rows["discrimination"].append(
                    {**about, "fold": fold, "n_positive": positive, "auc": auc if whole else auc - 0.01,
                     "lower": auc - spread / 2 if whole else None, "upper": min(1.0, auc + spread / 2) if whole else None,
                     "brier": 0.18 - 0.04 * number}  # fmt: skip
                )
            intervals = {
                f"{name}{end}": value + shift
                for name, value in (("sensitivity", 0.70), ("specificity", 0.68), ("ppv", 0.55), ("npv", 0.80))
                for end, shift in (("", 0.0), ("_lower", -0.05), ("_upper", 0.05))
            }
            rows["operating_points"].append(
                {**about, "rule": "prevalence", "cut_point": 0.5 - 0.15 * number, **intervals,
                 "predicted_margin": positive / n + 0.01, "true_margin": positive / n}  # fmt: skip
            )
            for statistic, value in (("observed_expected", 1.04), ("intercept", 0.03), ("slope", 0.93), ("ici", 0.021)):
                interval = (
                    {} if statistic == "ici" else {"lower": value - 0.12 - number / 10, "upper": value + 0.13 + number / 10}
                )
                rows["calibration"].append({**about, "statistic": statistic, "estimate": value, **interval})
            for probability in np.linspace(0.01, 0.6, 60):
                odds, share = probability / (1 - probability), positive / n
                benefit = max(0.0, share * (1 - probability**0.8 * 1.1) - 0.25 * (1 - share) * odds * (1 - probability))
                rows["decision_curve"].append(
                    {"exposure": model, "threshold": threshold, "probability": probability,
                     "net_benefit": benefit * (0.9 + auc / 10), "treat_all": share - (1 - share) * odds}  # fmt: skip
                )
        rows["discrimination_tests"].append(
            {"threshold": threshold, "exposure_a": "integrated", "exposure_b": "clinical", "n": n, "n_positive": positive,
             "auc_a": 0.78, "auc_b": 0.72, "auc_difference": 0.06, "lower": 0.03, "upper": 0.09, "p": 0.0004}  # fmt: skip
        )
    return rows


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
                    {"exposure": exposure, "n": len(part), "statistic": statistic, "estimate": value,
                     "lower": value - 0.04, "upper": value + 0.04}  # fmt: skip
                )
    return rows


def _rate(part: pl.DataFrame) -> dict[str, object]:
    events, years = int(part["event"].sum()), float(part["days"].sum()) / YEAR
    if years == 0:
        return {"n": 0, "events": 0, "person_years": 0.0}
    spread = 1.96 * math.sqrt(events)
    return {"n": len(part), "events": events, "person_years": years, "rate_per_1000_py": 1000 * events / years,
            "lower": 1000 * max(0.0, events - spread) / years, "upper": 1000 * (events + spread + 3.689) / years}  # fmt: skip


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
                    {**about, "time_years": float(years), "n_at_risk": int((there["days"] >= years * YEAR).sum()),
                     "cumulative_events": int(past["event"].sum()),
                     "cumulative_censored": int((past["event"] == 0).sum())}  # fmt: skip
                )
        rows["logrank"].append({"exposure": exposure, "test": "overall", "chi2": 41.2, "df": 3, "p": 5.9e-9})
        rows["logrank"].append({"exposure": exposure, "test": "trend", "chi2": 39.8, "df": 1, "p": 2.8e-10})
        rows["logrank"] += [
            {"exposure": exposure, "test": "pairwise", "category_a": a, "category_b": b, "chi2": 4.1, "df": 1,
             "p": 0.043, "p_holm": 0.086}  # fmt: skip
            for i, a in enumerate(CATEGORIES)
            for b in CATEGORIES[i + 1 :]
        ]
    return rows


def _kaplan_meier(part: pl.DataFrame) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [
        {"time_days": 0.0, "n_at_risk": len(part), "n_events": 0, "n_censored": 0, "survival": 1.0, "lower": 1.0, "upper": 1.0}
    ]  # fmt: skip
    survival, variance, at_risk = 1.0, 0.0, len(part)
    counts = part.group_by("days").agg(pl.len().alias("n"), pl.col("event").sum()).sort("days")
    for days, n, events in counts.iter_rows():
        survival *= 1 - events / at_risk
        lower = upper = None
        if 0 < survival < 1:
            variance += events / (at_risk * (at_risk - events))
            spread = 1.96 * math.sqrt(variance) / abs(math.log(survival))
            lower, upper = survival ** math.exp(spread), survival ** math.exp(-spread)
        rows.append({"time_days": days, "n_at_risk": at_risk, "n_events": events, "n_censored": n - events,
                     "survival": survival, "lower": lower, "upper": upper})  # fmt: skip
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
                about = {"model": model, "exposure": exposure, "term": "category", "level": category, "n": rate["n"],
                         "n_events": rate["events"], "method": method}  # fmt: skip
                reference = {"hr": None if few else 1.0}
                rows["cox"].append(
                    {**about, **(reference if few or category == "CAC 0" else _ratio(rate, rates[0], shrink))}
                )
            if model.startswith("covariates"):
                rows["cox"].append(
                    {"model": model, "exposure": None, "term": "age_at_t0_years", "level": None, "n": len(part),
                     "n_events": part["event"].sum(), "method": method}
                    | ({} if few else {"coef": 0.03, "se": 0.01, "hr": 1.03, "lower": 1.01, "upper": 1.05, "z": 3.0, "p": 0.0027})
                )  # fmt: skip
            rows["cox_fit"].append(
                {"model": model, "n": len(part), "n_events": int(part["event"].sum()), "method": method}
                | ({} if few else {"loglik_null": -812.4, "loglik": -790.1, "df": 3, "lr_chi2": 44.6, "p": 1.1e-9,
                                   "aic": 1586.2, "harrell_c": 0.68, "harrell_c_se": 0.02, "events_per_parameter": 32.0})
            )  # fmt: skip
    return rows


def _ratio(rate: dict[str, object], reference: dict[str, object], shrink: float) -> dict[str, object]:
    events, base = float(str(rate["events"])), float(str(reference["events"]))
    coef = shrink * math.log(float(str(rate["rate_per_1000_py"])) / float(str(reference["rate_per_1000_py"])))
    se = math.sqrt(1 / events + 1 / base)
    z = coef / se
    return {"coef": coef, "se": se, "hr": math.exp(coef), "lower": math.exp(coef - 1.96 * se),
            "upper": math.exp(coef + 1.96 * se), "z": z, "p": math.erfc(abs(z) / math.sqrt(2))}  # fmt: skip


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
                    {**about, "apparent_prevalence": share, "sensitivity": 0.71, "n_sensitivity": 140,
                     "specificity": 0.74, "n_specificity": 460, "prevalence": 0.22, "lower": 0.13, "upper": 0.31}  # fmt: skip
                )
    return rows


def _wilson(positive: int, n: int) -> tuple[float, float]:
    z2, p = 3.8415, positive / n
    middle, spread = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n)
    return (middle - spread) / (1 + z2 / n), (middle + spread) / (1 + z2 / n)
