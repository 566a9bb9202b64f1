"""Published tables of a made-up study with the real columns, to drive the figures and the page. Not a simulation."""

import itertools
import math
from typing import Any

import numpy as np
import polars as pl
from scipy.special import expit, logit, ndtr, ndtri

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
    rows: dict[str, list[dict[str, Any]]] = {}
    for site, origin, part in parts:
        for name, found in _group(part).items():
            rows.setdefault(name, []).extend({"site": site, "score_origin": origin, **row} for row in found)
    tables = {
        name: schemas.conform(pl.DataFrame(found, infer_schema_length=None), name) for name, found in rows.items()
    }
    places = {"all": people} | ({site: part for site, _, part in parts if site != "all"} if len(sites) > 1 else {})
    first = {
        "data_problems": _data_problems(n),
        "attrition": _attrition(n),
        "interval": _interval(places),
        "baseline": pl.concat(_baseline(part, site) for site, part in places.items()),
        "training_curves": _training_curves(),
        "recalibration": _recalibration(n),
    }
    return {**first, **tables, "audit_coverage": _coverage(people)}


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


def _data_problems(n: int) -> pl.DataFrame:
    names = "table column compared_with problem n of percent severity advice"
    rows = [
        _row(names, "cacs", "patient_id", "films", "patient_not_there", 9, n, 900 / n, "note", "Of another kind?"),
        _row(names, "cacs", "ct_date", "clinical", "before_birth", n // 4, n, 25.0, "warning", "Of two people?"),
        _row(names, "events", None, None, "duplicated_row", 0, n, 0.0, "none", "They count once."),
    ]
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "data_problems")


def _interval(places: dict[str, pl.DataFrame]) -> pl.DataFrame:
    bins = ((-180, -91), (-90, -1), (0, 0), (1, 90), (91, 180))
    rows = [
        _row("site lower_days upper_days n", site, *days, len(part) // 5)
        for site, part in places.items()
        for days in bins
    ]
    return schemas.conform(pl.DataFrame(rows), "interval")


def _baseline(people: pl.DataFrame, site: str) -> pl.DataFrame:
    female, n = pl.col("female"), pl.len().cast(pl.Float64)
    cells = [
        ("patients", None, "n", n, 0, None),
        ("age_years", None, "mean", pl.col("age").mean(), 0, 0.71),
        ("age_years", None, "sd", pl.col("age").std(), 0, None),
        ("bmi", None, "mean", pl.col("bmi").mean(), 7, 0.12),
        ("bmi", None, "sd", pl.col("bmi").std(), 7, None),
        ("sex", "F", "n", female.sum().cast(pl.Float64), 0, 0.22),
        ("sex", "F", "percent", female.mean() * 100, 0, None),
    ]
    rows = []
    for variable, level, statistic, value, missing, difference in cells:
        row = _row(
            "site variable level statistic missing standardised_difference",
            site,
            variable,
            level,
            statistic,
            missing,
            difference,
        )
        for code, name in enumerate(CATEGORIES):
            row[name] = people.filter(pl.col("true") == code).select(value).item()
        rows.append({**row, "overall": people.select(value).item()})
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "baseline")


def _coverage(people: pl.DataFrame) -> pl.DataFrame:
    rows, n = [], len(people)
    names = "stratum level n_eligible n_with_cxr n_readable n_scored coverage lower upper"
    for stratum, level, eligible in (("overall", None, n), ("sex", "F", n // 2), ("age_band", "60-69", 99)):
        scored = int(eligible * 0.93)
        counts = (eligible, int(eligible * 0.97), scored, scored)
        rows.append(_row(names, stratum, level, *counts, scored / eligible, *_wilson(scored, eligible)))
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "audit_coverage")


def _training_curves() -> pl.DataFrame:
    """Two networks that were kept at their third epoch of four, and the refit on everybody."""
    names = "network threshold epoch learning_rate training_loss stopping_loss stopping_auc kept"
    rows = []
    for threshold, network in itertools.product((0, 100, 400), ("fold0", "fold1", "refit")):
        for epoch in range(1, 4 if network == "refit" else 5):
            stopping = (None, None) if network == "refit" else (0.6 + 0.05 * abs(epoch - 3), 0.7 + 0.02 * epoch)
            rows.append(_row(names, network, threshold, epoch, 0.001, 0.7 - 0.05 * epoch, *stopping, epoch == 3))
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "training_curves")


def _recalibration(n: int) -> pl.DataFrame:
    """At every threshold an intercept is the best update."""
    names = "exposure threshold update n n_positive intercept slope log_likelihood chosen"
    rows = [
        _row(names, model, threshold, update, n, n // 4, intercept, slope, likelihood, update == "intercept")
        for model, threshold in itertools.product(MODELS, (0, 100, 400))
        for update, intercept, slope, likelihood in (
            *(("none", 0.0, 1.0, -310.4), ("intercept", 0.3, 1.0, -305.2)),
            ("intercept_slope", 0.25, 0.9, -305.9),
        )
    ]
    return schemas.conform(pl.DataFrame(rows, infer_schema_length=None), "recalibration")


def _group(part: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    return (
        _performance(part) | _tables_of_patients(part) | _survival(part) | _cox(part) | _compared(part) | _audit(part)
    )


def _performance(part: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    n = len(part)
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, threshold in enumerate((0, 100, 400)):
        positive = int((part["true"] > number).sum())
        about = {"threshold": threshold, "n": n}
        for model, auc in zip(MODELS, (0.74, 0.78, 0.72), strict=True):
            for name, found in _model(auc + 0.02 * number, positive, n, number).items():
                rows.setdefault(name, []).extend({**about, "exposure": model, **row} for row in found)
        names = "exposure_a exposure_b n_positive auc_a auc_b auc_difference lower upper p"
        test = _row(names, "integrated", "clinical", positive, 0.78, 0.72, 0.06, 0.03, 0.09, 0.0004)
        rows.setdefault("discrimination_tests", []).append({**about, **test})
    return rows


def _model(auc: float, positive: int, n: int, number: int) -> dict[str, list[dict[str, Any]]]:
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
        "roc": _roc(auc, positive),
        "calibration_curve": _calibration_curve((0.95, 0.6, 0.35)[number], 4 * (auc - 0.5), positive),
        "subgroups": [_subgroup(*level, n, positive, auc) for level in SUBGROUPS],
    }


SUBGROUPS = (("sex", "F"), ("sex", "M"), ("age_band", "40-49"), ("age_band", "50-59"))


def _roc(auc: float, positive: int) -> list[dict[str, Any]]:
    """The curve of two normal scores of one variance that has this area."""
    rows = []
    for specificity in np.linspace(0, 1, 101):
        sensitivity = float(ndtr(math.sqrt(2) * ndtri(auc) - ndtri(specificity)))
        spread = 1.96 * math.sqrt(sensitivity * (1 - sensitivity) / max(positive, 1))
        limits = (max(0.0, sensitivity - spread), min(1.0, sensitivity + spread))
        rows.append(_row("specificity sensitivity lower upper", specificity, sensitivity, *limits))
    return rows


def _calibration_curve(highest: float, slope: float, positive: int) -> list[dict[str, Any]]:
    rows = []
    for probability in np.arange(2, 100 * highest) / 100:
        x = logit(probability)
        eta, spread = 0.03 + slope * x, (0.5 + 0.6 * abs(x + 1)) / math.sqrt(max(positive, 1))
        values = (float(expit(value)) for value in (eta, eta - 1.96 * spread, eta + 1.96 * spread))
        rows.append(_row("probability observed lower upper", probability, *values))
    return rows


def _subgroup(subgroup: str, level: str, n: int, positive: int, auc: float) -> dict[str, Any]:
    row = _row("subgroup level n n_positive", subgroup, level, n // 2, positive // 2)
    for name, value in (("auc", auc), ("observed_expected", 1.07), ("sensitivity", 0.7), ("specificity", 0.68)):
        row |= _row(f"{name} {name}_lower {name}_upper", value, value - 0.06, value + 0.06)
    return row


def _row(names: str, *values: Any) -> dict[str, Any]:
    return dict(zip(names.split(), values, strict=True))


def _tables_of_patients(part: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {
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
                names = "exposure n statistic estimate lower upper"
                rows["agreement"].append(_row(names, exposure, len(part), statistic, value, value - 0.04, value + 0.04))
    return rows


def _rate(part: pl.DataFrame) -> dict[str, Any]:
    n, events, years = len(part), int(part["event"].sum()), float(part["days"].sum()) / YEAR
    if years == 0:
        return _row("n events person_years", 0, 0, 0.0)
    spread = 1.96 * math.sqrt(events)
    rates = [1000 * count / years for count in (events, max(0.0, events - spread), events + spread + 3.689)]
    return _row("n events person_years rate_per_1000_py lower upper", n, events, years, *rates)


def _survival(part: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("kaplan_meier", "at_risk", "logrank")}
    for exposure in EXPOSURES:
        for code, category in enumerate(CATEGORIES):
            there = part.filter(pl.col(exposure) == code)
            about = {"exposure": exposure, "category": category}
            rows["kaplan_meier"] += [{**about, **row} for row in _kaplan_meier(there)]
            for years in range(7):
                past = there.filter(pl.col("days") <= years * YEAR)
                at_risk, events = int((there["days"] >= years * YEAR).sum()), int(past["event"].sum())
                names = "time_years n_at_risk cumulative_events cumulative_censored"
                rows["at_risk"].append({**about, **_row(names, float(years), at_risk, events, len(past) - events)})
        names = "exposure test category_a category_b chi2 df p p_holm"
        rows["logrank"].append(_row(names, exposure, "overall", None, None, 41.2, 3, 5.9e-9, None))
        rows["logrank"].append(_row(names, exposure, "trend", None, None, 39.8, 1, 2.8e-10, None))
        for a, b in itertools.combinations(CATEGORIES, 2):
            rows["logrank"].append(_row(names, exposure, "pairwise", a, b, 4.1, 1, 0.043, 0.086))
    return rows


def _kaplan_meier(part: pl.DataFrame) -> list[dict[str, Any]]:
    names = "time_days n_at_risk n_events n_censored survival lower upper"
    rows = [_row(names, 0.0, len(part), 0, 0, 1.0, 1.0, 1.0)]
    survival, variance, at_risk = 1.0, 0.0, len(part)
    counts = part.group_by("days").agg(pl.len().alias("n"), pl.col("event").sum()).sort("days")
    for days, n, events in counts.iter_rows():
        survival *= 1 - events / at_risk
        lower = upper = None
        if 0 < survival < 1:
            variance += events / (at_risk * (at_risk - events))
            spread = 1.96 * math.sqrt(variance) / abs(math.log(survival))
            lower, upper = survival ** math.exp(spread), survival ** math.exp(-spread)
        rows.append(_row(names, days, at_risk, events, n - events, survival, lower, upper))
        at_risk -= n
    return rows


def _cox(part: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"cox": [], "cox_fit": [], "sensitivity": []}
    n, n_events = len(part), int(part["event"].sum())
    for exposure in EXPOSURES:
        rates = [_rate(part.filter(pl.col(exposure) == code)) for code in range(4)]
        few = any(rate["events"] < 5 for rate in rates)
        method = "not_fitted" if few else "efron"
        for model, shrink in ((f"crude:{exposure}", 1.0), (f"covariates+{exposure}", 0.8)):
            for category, rate in zip(CATEGORIES, rates, strict=True):
                about = _row("model exposure term level method", model, exposure, "category", category, method)
                counts = {"n": rate["n"], "n_events": rate["events"]}
                estimate = {"hr": 1.0} if category == "CAC 0" else {} if few else _ratio(rate, rates[0], shrink)
                rows["cox"].append({**about, **counts, **({} if few else estimate)})
            age = _row("coef se hr lower upper z p", 0.03, 0.01, 1.03, 1.01, 1.05, 3.0, 0.0027)
            if model.startswith("covariates"):
                about = _row("model term n n_events method", model, "age_at_t0_years", n, n_events, method)
                rows["cox"].append({**about, **({} if few else age)})
            names = "loglik_null loglik df lr_chi2 p aic harrell_c harrell_c_corrected uno_c events_per_parameter"
            fit = _row(names, -812.4, -790.1, 3, 44.6, 1.1e-9, 1586.2, 0.684, 0.671, 0.693, 32.0)
            about = _row("model n n_events method", model, n, n_events, method)
            rows["cox_fit"].append({**about, **({} if few else fit)})
    for row in [row for row in rows["cox"] if row["model"].startswith("covariates") and row["term"] == "category"]:
        for part_of, name in (("subgroup", "sex: F"), ("subgroup", "age: 65 and over"), ("period", "1 to 5 years")):
            rows["cox"].append({**row, part_of: name, "n": row["n"] // 2, "n_events": row["n_events"] // 2})
    rows["sensitivity"] = [
        {**row, "analysis": analysis, "value": value, "n_model": n - lost, "n_events_model": n_events}
        for analysis, value, lost in (("main", None, 0), ("pairing", "nearest_before", 9), ("landmark_days", "90", 5))
        for row in rows["cox"]
        if row["term"] == "category" and "subgroup" not in row and "period" not in row
    ]
    return rows


def _compared(part: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {
        name: []
        for name in (
            "comparison",
            "horizon",
            "proportional_hazards",
            "schoenfeld",
            "risk_curve",
            "cumulative_incidence",
        )
    }
    n, events = len(part), int(part["event"].sum())
    for number, exposure in enumerate(EXPOSURES):
        model = f"covariates+{exposure}"
        for term, df in ((f"category {exposure}", 3), ("age_at_t0_years", 1), ("GLOBAL", 4)):
            rows["proportional_hazards"].append(_row("model term chi2 df p", model, term, 3.2 + number, df, 0.31))
        for years in (1.0, 3.0, 5.0):
            names = "horizon_years n_at_risk n_events auc lower upper brier ipa ipa_lower ipa_upper replicates"
            auc, about = 0.78 - 0.03 * number, (years, n // 2, events // 2)
            found = _row(names, *about, auc, auc - 0.04, auc + 0.04, 0.1, 0.08, -0.01, 0.15, 200)
            rows["horizon"].append({"model": model, **found})
            if exposure == "true":
                alone = _row(names, *about, 0.661, 0.62, 0.7, 0.11, 0.031, -0.02, 0.07, 200)
                rows["horizon"].append({"model": "covariates", **alone})
        for name, found in _of_categories(part, exposure, model).items():
            rows[name] += found
        if exposure == "true":
            continue
        pair = {"comparison": f"{model} v covariates+true", "exposure": exposure}
        for code, category in enumerate(CATEGORIES[1:]):
            names = "level statistic estimate se lower upper p method replicates failed"
            ratio = 0.8 - 0.1 * code
            limits = (ratio * 0.7, ratio * 1.4)
            rows["comparison"] += [
                {
                    **pair,
                    **_row(names, category, "ratio_of_hazard_ratios", ratio, 0.2, *limits, 0.06, "dfbeta", None, None),
                },
                {
                    **pair,
                    **_row(names, category, "ratio_of_hazard_ratios", ratio, 0.2, *limits, None, "bootstrap", 199, 1),
                },
            ]
        names, paired = "statistic estimate lower upper p method", "infinitesimal_jackknife"
        at_horizon = _row(names, "auc_difference", -0.034, -0.071, 0.002, None, "bootstrap")
        rows["comparison"] += [
            {
                **pair,
                "comparison": f"{model} v covariates",
                **_row("statistic estimate df p method", "lr_chi2", 12.5, 3, 0.0059, "efron"),
            },
            {**pair, **_row(names, "adequacy_predicted", 0.714, 0.552, 0.831, None, "bootstrap")},
            {**pair, **_row(names, "adequacy_true", 0.943, 0.883, 0.971, None, "bootstrap")},
            {**pair, **_row("statistic reason", "relative_lr", "a model was not fitted")},
            {**pair, **_row(names, "harrell_c_difference", -0.021, -0.042, 0.0, 0.051, paired)},
            {**pair, **_row(names, "harrell_c_difference", -0.021, -0.044, 0.003, None, "bootstrap")},
            {**pair, **_row(names, "uno_c_difference", -0.025, -0.047, -0.003, 0.026, paired)},
            {**pair, "horizon_years": 5.0, **at_horizon},
            {
                "exposure": exposure,
                "comparison": f"{model} x sex",
                **_row("statistic estimate df p", "interaction_lr_chi2", 2.2, 3, 0.53),
            },
        ]
        for probability in (0.05, 0.3, 0.6):
            names = "exposure threshold horizon_years probability incidence lower upper"
            rows["risk_curve"].append(
                _row(names, exposure, 100, 5.0, probability, probability / 3, probability / 5, probability / 2)
            )
    return rows


def _of_categories(part: pl.DataFrame, exposure: str, model: str) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("comparison", "schoenfeld", "cumulative_incidence")}
    for code, category in enumerate(CATEGORIES):
        there = part.filter(pl.col(exposure) == code)
        risk = 0.05 + 0.08 * code
        about = {"exposure": exposure, "level": category}
        names = "comparison statistic horizon_years estimate lower upper method"
        found = _row(names, f"crude:{exposure}", "risk", 5.0, risk, risk / 2, 1.5 * risk, "aalen_johansen")
        mean = _row(names, f"crude:{exposure}", "rmst", 5.0, 1800 - 90 * code, 1700, 1900, "kaplan_meier")
        rows["comparison"] += [{**about, **found}, {**about, **mean}]
        for days in (0.0, 200.0, 900.0, 1500.0) if len(there) else ():
            rising = _row(
                "time_days incidence lower upper", days, risk * days / 1500, risk * days / 2000, risk * days / 900
            )
            rows["cumulative_incidence"].append(
                {"exposure": exposure, "category": category, "cause": "event", **rising}
            )
        if code:
            for days in (30.0, 600.0, 1400.0):
                curve = _row("time_days coef lower upper", days, 0.4 * code, 0.4 * code - 0.5, 0.4 * code + 0.5)
                rows["schoenfeld"].append({"model": model, **about, **curve})
    return rows


def _ratio(rate: dict[str, Any], reference: dict[str, Any], shrink: float) -> dict[str, Any]:
    coef = shrink * math.log(rate["rate_per_1000_py"] / reference["rate_per_1000_py"])
    se = math.sqrt(1 / rate["events"] + 1 / reference["events"])
    limits = (math.exp(coef - 1.96 * se), math.exp(coef + 1.96 * se))
    p = math.erfc(abs(coef / se) / math.sqrt(2))
    return _row("coef se hr lower upper z p", coef, se, math.exp(coef), *limits, coef / se, p)


def _audit(part: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {"audit_positivity": [], "audit_prevalence": []}
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
                names = "apparent_prevalence sensitivity n_sensitivity specificity n_specificity prevalence lower upper"
                adjusted = _row(names, share, 0.71, 140, 0.74, 460, 0.22, 0.13, 0.31)
                rows["audit_prevalence"].append({**about, **adjusted})
    return rows


def _wilson(positive: int, n: int) -> tuple[float, float]:
    z2, p = 3.8415, positive / n
    middle, spread = p + z2 / (2 * n), math.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n)
    return (middle - spread) / (1 + z2 / n), (middle + spread) / (1 + z2 / n)
