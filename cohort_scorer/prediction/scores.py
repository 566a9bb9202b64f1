"""From raw network outputs to scores: layers, repair, cut points, categories. Seconds, and no film is opened.

`develop` makes the layers and cuts of a bundle from out-of-fold logits; `assemble` applies them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from cohort_scorer.prediction import categories
from cohort_scorer.prediction.bundle import NEW, Bundle, output_name
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, Layer, features, fit, with_male

_CLASSES = ("p_0", "p_1_99", "p_100_399", "p_400")


def develop(
    people: pl.DataFrame, integrate: Sequence[str], folds: int
) -> tuple[dict[tuple[str, str, int], Layer], pl.DataFrame]:
    """Fit every logistic layer and tabulate every cut, for new patients and for each fold without that fold.

    Cuts for new patients come from the scores that every patient gets by the layer of the own fold. Those for a fold
    come from its own layer, on the logits that it was fitted on: the scores of the others by the layers of their folds
    would depend on the truth of the patients held out.

    Args:
        people: One row per training patient: fold, logit_<threshold> (out of fold), <threshold> (bool, the truth),
            age_years, sex, bmi; and under nested stacking logit_<threshold>_without_<fold> for each fold, of networks
            that saw neither the patient nor that fold.
        integrate: Clinical variables of the integrated model.
        folds: Number of folds.

    Returns:
        The layers, and the cut grid: exposure, threshold, fold, then the columns of `categories.cut_grid`.
    """
    layers = fit_layers(people, EXPOSURES, integrate, folds)
    own = with_male(people).with_columns(pl.col("fold").alias("layer_fold"))
    grids = [cut_grids(probabilities(own, layers), NEW)]
    for fold in range(folds):
        others = _without(people, fold).with_columns(pl.lit(fold, pl.Int64).alias("layer_fold"))
        grids.append(cut_grids(probabilities(with_male(others), layers), fold))
    return layers, pl.concat(grids)


def cut_grids(scored: pl.DataFrame, fold: int) -> pl.DataFrame:
    """Tabulate the cuts of one fold (NEW for new patients).

    Args:
        scored: {exposure}_{threshold} (calibrated, not repaired) and <threshold> (bool, the truth).
        fold: Whose cuts they will be.

    Returns:
        exposure, threshold, fold, then the columns of `categories.cut_grid`.
    """
    grids = []
    for exposure in EXPOSURES:
        columns = [f"{exposure}_{threshold}" for threshold in THRESHOLD_NAMES]
        complete = scored.drop_nulls(columns)
        repaired = categories.repair(complete.select(columns).to_numpy())
        for position, threshold in enumerate(THRESHOLD_NAMES):
            grid = categories.cut_grid(repaired[:, position], complete[threshold].to_numpy())
            place = {"exposure": pl.lit(exposure), "threshold": pl.lit(threshold), "fold": pl.lit(fold, pl.Int64)}
            grids.append(grid.select(*(value.alias(name) for name, value in place.items()), pl.all()))
    return pl.concat(grids)


def fit_layers(
    people: pl.DataFrame, exposures: Sequence[str], integrate: Sequence[str], folds: int
) -> dict[tuple[str, str, int], Layer]:
    """Fit the logistic layers of some exposures, for new patients and for each fold without that fold.

    Args:
        people: As for `develop`; logits are not needed where only `clinical` is asked for.
        exposures: Of cxr, integrated, clinical.
        integrate: Clinical variables of the integrated model.
        folds: Number of folds.
    """
    layers: dict[tuple[str, str, int], Layer] = {}
    for fold in (NEW, *range(folds)):
        rows = with_male(_without(people, fold))
        for exposure in exposures:
            names = features(exposure, integrate)
            for threshold in THRESHOLD_NAMES:
                if "logit" in names:
                    rows = rows.with_columns(pl.col(f"logit_{threshold}").alias("logit"))
                layers[exposure, threshold, fold] = fit(rows, names, threshold)
    return layers


def _without(people: pl.DataFrame, fold: int) -> pl.DataFrame:
    """The patients outside a fold, with the logits that its layers may see; everybody for NEW."""
    if fold == NEW:
        return people
    logits = [
        pl.col(f"logit_{threshold}_without_{fold}").alias(f"logit_{threshold}")
        for threshold in THRESHOLD_NAMES
        if f"logit_{threshold}_without_{fold}" in people.columns
    ]
    return people.filter(pl.col("fold") != fold).with_columns(logits)


def probabilities(people: pl.DataFrame, layers: Mapping[tuple[str, str, int], Layer]) -> pl.DataFrame:
    """Add {exposure}_{threshold}: calibrated, not repaired, each row by the layers of its layer_fold."""
    parts = []
    for (fold,), rows in people.group_by("layer_fold", maintain_order=True):
        for threshold in THRESHOLD_NAMES:
            rows = rows.with_columns(pl.col(f"logit_{threshold}").alias("logit"))
            rows = rows.with_columns(
                layers[exposure, threshold, int(fold)].probability().alias(f"{exposure}_{threshold}")
                for exposure in EXPOSURES
            )
        parts.append(rows)
    return pl.concat(parts).drop("logit")


def categorised(
    scored: pl.DataFrame, grid: pl.DataFrame, rule: str | Sequence[float], names: Sequence[str]
) -> pl.DataFrame:
    """Add class probabilities, categories and {exposure}_crossed, each row by the cuts of its layer_fold.

    Args:
        scored: {exposure}_{threshold} and layer_fold (NEW: new patients).
        grid: The cuts.
        rule: The category rule, or three cuts.
        names: The category names, lowest first.
    """
    parts = []
    for (fold,), part in scored.group_by("layer_fold", maintain_order=True):
        for exposure in EXPOSURES:
            cuts = cut_points(grid, exposure, int(fold), rule)
            part = part.with_columns(_classified(part, exposure, cuts, names))
        parts.append(part)
    return pl.concat(parts)


def accuracy(scored: pl.DataFrame, names: Sequence[str]) -> list[dict[str, object]]:
    """Sensitivity and specificity of the categories at each threshold.

    Args:
        scored: {exposure}_category and <threshold> (bool, the truth).
        names: The category names, lowest first.

    Returns:
        Per exposure and threshold: sensitivity, n_positive, specificity, n_negative; positive means a category above
        the threshold.
    """
    found: list[dict[str, object]] = []
    for exposure in EXPOSURES:
        rows = scored.drop_nulls(f"{exposure}_category")
        for position, threshold in enumerate(THRESHOLD_NAMES):
            called = rows[f"{exposure}_category"].is_in(list(names[position + 1 :])).to_numpy()
            passed = rows[threshold].to_numpy()
            found.append(
                {
                    "exposure": exposure,
                    "threshold": threshold,
                    "sensitivity": float((called & passed).sum() / passed.sum()),
                    "n_positive": int(passed.sum()),
                    "specificity": float((~called & ~passed).sum() / (~passed).sum()),
                    "n_negative": int((~passed).sum()),
                }
            )
    return found


def assemble(
    films: pl.DataFrame, bundle: Bundle, members: str, rule: str | Sequence[float], names: Sequence[str]
) -> pl.DataFrame:
    """Turn raw outputs into scores.

    Args:
        films: One row per film: one logit_<network> per output of the bundle, score_origin, fold, layer_fold (see
            `bundle.origins`), age_years, sex, bmi.
        bundle: The bundle.
        members: For new patients, `refit` or `folds` (mean of the fold networks' logits).
        rule: The category rule, or three cuts.
        names: The category names, lowest first.

    Returns:
        The films with probabilities, class probabilities, categories, score_status and {exposure}_crossed (whether a
        higher cut is reached and a lower one is not); the logits are dropped.
    """
    integrate = bundle.content["integrate"]
    rows = with_male(films.with_columns(_logit(threshold, bundle.folds, members) for threshold in THRESHOLD_NAMES))
    scored = categorised(probabilities(rows, bundle.layers), bundle.grid, rule, names)
    missing = [pl.when(pl.col(name).is_null()).then(pl.lit(name)) for name in integrate]
    lacking = pl.concat_str(*missing, separator="+", ignore_nulls=True)
    status = pl.when(lacking == "").then(pl.lit("ok")).otherwise(pl.concat_str(pl.lit("missing_"), lacking))
    return scored.with_columns(status.alias("score_status")).drop("male", "layer_fold", "^logit_.*$")


def categorise_given(
    given: pl.DataFrame, truth: pl.DataFrame, rule: str | Sequence[float], names: Sequence[str]
) -> pl.DataFrame:
    """Fill the categories that scores made elsewhere lack, where all three probabilities of an exposure are there.

    Args:
        given: image_id, the probabilities and the categories of every exposure, null where not given.
        truth: image_id and <threshold> (bool) of the patients whose true score is known: a rule that needs cuts finds
            them here, since no training patients are at hand.
        rule: The category rule, or three cuts.
        names: The category names, lowest first.
    """
    known = given.select("image_id").join(truth, on="image_id", how="left", maintain_order="left")
    for exposure in EXPOSURES:
        columns = [f"{exposure}_{threshold}" for threshold in THRESHOLD_NAMES]
        probability = given.select(columns).to_numpy().astype(np.float64)
        lacking = np.isfinite(probability).all(axis=1) & given[f"{exposure}_category"].is_null().to_numpy()
        if not lacking.any():
            continue
        repaired = categories.repair(probability)
        told = lacking & known[THRESHOLD_NAMES[0]].is_not_null().to_numpy()
        cuts = list(rule) if not isinstance(rule, str) else None
        if isinstance(rule, str) and rule != "argmax":
            passed = known.filter(told).select(THRESHOLD_NAMES).to_numpy()
            if not told.any() or passed.all(axis=0).any() or not passed.any(axis=0).all():
                continue
            cuts = [
                categories.choose_cut(categories.cut_grid(repaired[told, position], passed[:, position]), rule)
                for position in range(3)
            ]
        level = np.full(len(given), -1)
        level[lacking] = categories.categorise(repaired[lacking], cuts)
        derived = pl.Series(level).replace_strict(dict(enumerate(names)), default=None, return_dtype=pl.String)
        given = given.with_columns(pl.coalesce(f"{exposure}_category", derived).alias(f"{exposure}_category"))
    return given


def cut_points(grid: pl.DataFrame, exposure: str, fold: int, rule: str | Sequence[float]) -> list[float] | None:
    """The three cuts of an exposure for a fold (NEW for new patients); None under `argmax`."""
    if rule == "argmax":
        return None
    if not isinstance(rule, str):
        return list(rule)
    mine = grid.filter((pl.col("exposure") == exposure) & (pl.col("fold") == fold))
    return [categories.choose_cut(mine.filter(pl.col("threshold") == name), rule) for name in THRESHOLD_NAMES]


def _logit(threshold: str, folds: int, members: str) -> pl.Expr:
    """The logit that counts for a film: of the network that held the patient out, or for new patients."""
    fold_logits = [pl.col(f"logit_{output_name(threshold, fold)}") for fold in range(folds)]
    new = pl.col(f"logit_{output_name(threshold, NEW)}") if members == "refit" else pl.mean_horizontal(fold_logits)
    chosen = new
    for fold, logit in enumerate(fold_logits):
        chosen = pl.when(pl.col("fold") == fold).then(logit).otherwise(chosen)
    return chosen.cast(pl.Float64).alias(f"logit_{threshold}")


def _classified(
    rows: pl.DataFrame, exposure: str, cuts: Sequence[float] | None, names: Sequence[str]
) -> list[pl.Series]:
    unrepaired = rows.select(f"{exposure}_{threshold}" for threshold in THRESHOLD_NAMES).to_numpy().astype(np.float64)
    complete = np.isfinite(unrepaired).all(axis=1)
    repaired = categories.repair(unrepaired[complete])
    shares = np.full((len(rows), 4), np.nan)
    shares[complete] = categories.class_probabilities(repaired)
    level = np.full(len(rows), -1)
    level[complete] = categories.categorise(repaired, cuts)
    crossed = np.zeros(len(rows), np.bool_)
    if cuts is not None:
        crossed[complete] = categories.crosses(repaired, cuts)
    category = pl.Series(f"{exposure}_category", level).replace_strict(
        dict(enumerate(names)), default=None, return_dtype=pl.String
    )
    return [
        *(pl.Series(f"{exposure}_{name}", shares[:, index], nan_to_null=True) for index, name in enumerate(_CLASSES)),
        category,
        pl.Series(f"{exposure}_crossed", crossed),
    ]
