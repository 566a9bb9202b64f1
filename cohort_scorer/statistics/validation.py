"""The tables of `validate`: how predicted probabilities and categories agree with the true ones.

Intervals are conditional on the fitted networks. Knows no file and no study.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, product

import numpy as np
import polars as pl

from cohort_scorer.statistics import agreement, calibration, discrimination
from cohort_scorer.statistics.groups import by_site_and_origin, joined, labelled
from cohort_scorer.statistics.roc import roc

EXPOSURES = ("cxr", "integrated", "clinical")
_THRESHOLDS = {"gt0": 0, "ge100": 100, "ge400": 400}
SUBGROUPS = ("sex", "age_band")
_CURVE = np.arange(1, 100) / 100
_MEASURES = [
    f"{name}{limit}"
    for name in ("auc", "observed_expected", "sensitivity", "specificity")
    for limit in ("", "_lower", "_upper")
]
_SUBGROUP = {"n": pl.Int64, "n_positive": pl.Int64} | dict.fromkeys(_MEASURES, pl.Float64)


def tables(
    people: pl.DataFrame,
    categories: Sequence[str],
    rule: str,
    cut_points: Mapping[tuple[str, int], float],
    level: float,
    rng: np.random.Generator,
) -> dict[str, pl.DataFrame]:
    """Make every table of `validate`.

    Paired tests of AUCs give p only where every score is external; elsewhere p is null, since out-of-fold scores reject
    too often. ROC curves, calibration curves and subgroups of out-of-fold scores mix the scales of the folds' networks,
    as pooled AUCs do.

    Args:
        people: One row per patient: site, score_origin, fold, sex, age_band, true_category,
            {exposure}_{gt0,ge100,ge400} (calibrated, not repaired) and {exposure}_category; columns of an exposure may
            be null.
        categories: The four categories, lowest first.
        rule: The category rule, as the study file says it.
        cut_points: Cut of (exposure, threshold) for new patients; absent where a rule has none.
        level: Confidence level.
        rng: Source of the resamples behind the intervals of roc.

    Returns:
        discrimination, roc, discrimination_tests, operating_points, calibration, calibration_curve, crosstab,
        agreement, decision_curve, subgroups.
    """
    codes = dict(zip(categories, range(4), strict=True))
    people = people.with_columns(
        pl.col("true_category").replace_strict(codes, return_dtype=pl.Int64).alias("true_code"),
        *(
            pl.col(f"{exposure}_category").replace_strict(codes, default=None, return_dtype=pl.Int64).alias(exposure)
            for exposure in EXPOSURES
        ),
    )
    found: dict[str, list[pl.DataFrame]] = {name: [] for name in _NAMES}
    for site, origin, group in by_site_and_origin(people):
        place = {"site": site, "score_origin": origin}
        for exposure, (position, (name, threshold)) in product(EXPOSURES, enumerate(_THRESHOLDS.items())):
            key = {**place, "exposure": exposure, "threshold": threshold}
            rows = group.drop_nulls(f"{exposure}_{name}")
            if len(rows):
                outcome, score = rows["true_code"].to_numpy() > position, rows[f"{exposure}_{name}"].to_numpy()
                for table, part in _of_probabilities(rows, outcome, score, origin, level, rng):
                    found[table].append(labelled(part, **key))
            found["subgroups"] += [
                labelled(part, **key)
                for part in _subgroups(group.drop_nulls(exposure), exposure, f"{exposure}_{name}", position, level)
            ]
        for exposure in EXPOSURES:
            classified = group.drop_nulls(exposure)
            if len(classified):
                found["operating_points"] += [
                    labelled(part, **place, exposure=exposure)
                    for part in _operating_points(classified, exposure, origin, rule, cut_points, level)
                ]
                if exposure != "clinical":
                    key = {**place, "exposure": exposure}
                    found["crosstab"].append(labelled(_crosstab(classified, exposure, categories), **key))
                    agreed = agreement.agreement(classified["true_code"], classified[exposure], 4, level)
                    found["agreement"].append(labelled(agreed, **key))
        found["discrimination_tests"] += [labelled(part, **place) for part in _tests(group, level)]
    return {name: joined(parts, name) for name, parts in found.items()}


_NAMES = (
    "discrimination",
    "roc",
    "discrimination_tests",
    "operating_points",
    "calibration",
    "calibration_curve",
    "crosstab",
    "agreement",
    "decision_curve",
    "subgroups",
)


def _of_probabilities(
    rows: pl.DataFrame, outcome: np.ndarray, score: np.ndarray, origin: str, level: float, rng: np.random.Generator
) -> Iterator[tuple[str, pl.DataFrame]]:
    for part in _discrimination(rows, outcome, score, origin, level):
        yield "discrimination", part
    yield "roc", roc(outcome, score, rng, level)
    yield "calibration", calibration.calibration(outcome, score, level)
    yield "calibration_curve", calibration.calibration_curve(outcome, score, level)
    yield "decision_curve", discrimination.decision_curve(outcome, score, _CURVE)


def _discrimination(
    rows: pl.DataFrame, outcome: np.ndarray, score: np.ndarray, origin: str, level: float
) -> Iterator[pl.DataFrame]:
    """Pooled; and for out-of-fold scores each fold and the mean over folds, since pooling mixes scales."""
    whole = discrimination.auc(outcome, score, level)
    yield _auc_row(whole, None, discrimination.brier(outcome, score))
    if origin != "oof" or rows["fold"].null_count():
        return
    fold = rows["fold"].to_numpy()
    parts = []
    for number in np.unique(fold):
        mine = fold == number
        parts.append(discrimination.auc(outcome[mine], score[mine], level))
        yield _auc_row(parts[-1], str(number), discrimination.brier(outcome[mine], score[mine]))
    yield _auc_row(discrimination.mean_of_folds(parts, level), "mean", None)


def _auc_row(found: discrimination.AUC, fold: str | None, brier: float | None) -> pl.DataFrame:
    row = {"fold": fold, "n": found.n, "n_positive": found.n_positive, "auc": found.auc}
    row |= {"lower": found.lower, "upper": found.upper, "brier": brier}
    numbers = dict.fromkeys(["auc", "lower", "upper", "brier"], pl.Float64)
    return pl.DataFrame([row], schema={"fold": pl.String, "n": pl.Int64, "n_positive": pl.Int64, **numbers})


def _tests(group: pl.DataFrame, level: float) -> Iterator[pl.DataFrame]:
    """Paired differences; p only where every score is external: out of fold, 16-25 % would reject under the null."""
    is_external = (group["score_origin"] == "external").all()
    for name, threshold in _THRESHOLDS.items():
        for exposure_b, exposure_a in combinations(("clinical", "cxr", "integrated"), 2):
            rows = group.drop_nulls([f"{exposure_a}_{name}", f"{exposure_b}_{name}"])
            if rows.is_empty():
                continue
            outcome = rows["true_code"].to_numpy() > list(_THRESHOLDS).index(name)
            found = discrimination.paired_auc_difference(
                outcome, rows[f"{exposure_a}_{name}"], rows[f"{exposure_b}_{name}"], level
            )
            row = {"threshold": threshold, "exposure_a": exposure_a, "exposure_b": exposure_b, **asdict(found)}
            numbers = {"p": found.p if is_external else None}
            yield pl.DataFrame([row | numbers], schema_overrides={"p": pl.Float64})


def _operating_points(
    rows: pl.DataFrame,
    exposure: str,
    origin: str,
    rule: str,
    cut_points: Mapping[tuple[str, int], float],
    level: float,
) -> Iterator[pl.DataFrame]:
    for position, threshold in enumerate(_THRESHOLDS.values()):
        outcome = rows["true_code"].to_numpy() > position
        found = discrimination.operating_point(outcome, rows[exposure].to_numpy() > position, level)
        # Out of fold, each fold has a cut of its own.
        cut = cut_points.get((exposure, threshold)) if origin == "external" else None
        yield pl.DataFrame([{"threshold": threshold, "rule": rule, "cut_point": cut, **asdict(found)}])


def _subgroups(
    rows: pl.DataFrame, exposure: str, probability: str, position: int, level: float
) -> Iterator[pl.DataFrame]:
    """Each level of each subgroup; people whose level is missing form the level `unknown`.

    All that a row says is of the same patients: AUC and observed over expected stay empty where one has no probability.
    """
    for subgroup in SUBGROUPS:
        named = rows.with_columns(pl.col(subgroup).cast(pl.String).fill_null("unknown"))
        for (name,), part in sorted(named.partition_by(subgroup, as_dict=True).items()):
            outcome = part["true_code"].to_numpy() > position
            point = discrimination.operating_point(outcome, part[exposure].to_numpy() > position, level)
            row = {**asdict(point), "n_positive": int(outcome.sum())}
            if part[probability].null_count() == 0:
                area = discrimination.auc(outcome, part[probability], level)
                ratio, lower, upper, _ = calibration.observed_expected(outcome, part[probability], level)
                row |= {"auc": area.auc, "auc_lower": area.lower, "auc_upper": area.upper}
                row |= {"observed_expected": ratio, "observed_expected_lower": lower, "observed_expected_upper": upper}
            yield labelled(pl.DataFrame([row], _SUBGROUP), subgroup=subgroup, level=name)


def _crosstab(rows: pl.DataFrame, exposure: str, categories: Sequence[str]) -> pl.DataFrame:
    cells = pl.DataFrame({"true_category": categories}).join(
        pl.DataFrame({"predicted_category": categories}), how="cross", maintain_order="left_right"
    )
    counts = rows.group_by("true_category", pl.col(f"{exposure}_category").alias("predicted_category")).agg(
        pl.len().cast(pl.Int64).alias("n")
    )
    return cells.join(
        counts, on=["true_category", "predicted_category"], how="left", maintain_order="left"
    ).with_columns(pl.col("n").fill_null(0))
