"""The tables of `validate`: how predicted probabilities and categories agree with the true ones.

Intervals are conditional on the fitted networks. Knows no file and no study.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np
import polars as pl

from cohort_scorer.statistics import agreement, calibration, discrimination
from cohort_scorer.statistics.groups import by_site_and_origin, joined, labelled

EXPOSURES = ("cxr", "integrated", "clinical")
_THRESHOLDS = {"gt0": 0, "ge100": 100, "ge400": 400}
_CURVE = np.arange(1, 100) / 100


def tables(
    people: pl.DataFrame,
    categories: Sequence[str],
    rule: str,
    cut_points: Mapping[tuple[str, int], float],
    level: float,
) -> dict[str, pl.DataFrame]:
    """Make every table of `validate`.

    Args:
        people: One row per patient: site, score_origin, fold, true_category, {exposure}_{gt0,ge100,ge400} (calibrated,
            not repaired) and {exposure}_category; columns of an exposure may be null.
        categories: The four categories, lowest first.
        rule: The category rule, as the study file says it.
        cut_points: Cut of (exposure, threshold) for new patients; absent where a rule has none.
        level: Confidence level.

    Returns:
        discrimination, discrimination_tests, operating_points, calibration, crosstab, agreement, decision_curve.
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
        for exposure in EXPOSURES:
            for name, threshold in _THRESHOLDS.items():
                rows = group.drop_nulls(f"{exposure}_{name}")
                if len(rows):
                    key = {**place, "exposure": exposure, "threshold": threshold}
                    outcome = rows["true_code"].to_numpy() > list(_THRESHOLDS).index(name)
                    score = rows[f"{exposure}_{name}"].to_numpy()
                    found["discrimination"] += [
                        labelled(part, **key) for part in _discrimination(rows, outcome, score, origin, level)
                    ]
                    found["calibration"].append(labelled(calibration.calibration(outcome, score, level), **key))
                    found["decision_curve"].append(
                        labelled(discrimination.decision_curve(outcome, score, _CURVE), **key)
                    )
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
    "discrimination_tests",
    "operating_points",
    "calibration",
    "crosstab",
    "agreement",
    "decision_curve",
)


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
