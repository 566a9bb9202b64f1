"""What `train` and `recalibrate` share: putting a bundle together, whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from cohort_scorer import provenance, schemas, storage
from cohort_scorer.cohort import eligibility
from cohort_scorer.prediction import bundle, model_card, scores
from cohort_scorer.prediction.bundle import NEW
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, with_male
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, inputs
from cohort_scorer.statistics import discrimination
from cohort_scorer.study import THRESHOLDS, ModelSection, Study

_BY = ("all", "sex", "age_band", "site")
_LEAST = 10  # patients with and without the outcome in a subgroup that is told of


def assemble(
    study: Study,
    step: Step,
    people: pl.DataFrame,
    content: Mapping[str, Any],
    weights: Path,
    familiar: Any,
    curves: pl.DataFrame,
    console: Console,
) -> None:
    """Fit layers and cuts on the out-of-fold logits, and seal the bundle with them.

    Args:
        study: The study.
        step: `train`.
        people: The training patients, as `scores.develop` wants them, with pixel_sha256.
        content: bundle.json, as far as the training tells it.
        weights: Holds the folder of each network that the content names.
        familiar: The training films as the network familiar_to sees them.
        curves: Losses and AUCs by epoch.
        console: Hears warnings.
    """
    from cohort_scorer.imaging import radiograph

    section = study.require("train")
    layers, grid = scores.develop(people, section.integrate, section.folds)
    turned = sum(layer.coefficients.get("logit", 0) < 0 for layer in layers.values())
    if turned:
        console.say(f"warning: {turned} of {len(layers)} layers turn a network's answer around: it learned nothing")
    step.facts["n_layers_turned_around"] = turned
    own = with_male(people).with_columns(pl.col("fold").alias("layer_fold"))
    scored = scores.probabilities(own, layers)
    rule = (study.model or ModelSection()).category_rule
    scored = scores.categorised(scored, grid, rule, inputs.categories())
    key = make_key(study.patient_level / "training.key")
    content = {
        **content,
        "versions": provenance.versions(),
        "categories": bundle.category_grid(inputs.categories()),
        "preprocessing": {**asdict(radiograph.PREPROCESSING), "size": section.image_size},
        "preprocessing_id": radiograph.PREPROCESSING.identifier(section.image_size),
        "key_check": bundle.keyed_hash(key, bundle.KEY_CHECK),
        "cut_points": told_cuts(grid, rule, section.folds, "out-of-fold scores of the training patients"),
        "accuracy": scores.accuracy(scored, inputs.categories()),
        "performance": performance(scored, study.comparison.confidence_level),
    }
    _write_out_of_fold(study, step, scored)
    with new_bundle(study.bundle) as partial:
        for entry in content["networks"]:
            for file in ("config.json", "model.safetensors"):
                target = partial / entry["name"] / file
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(weights / entry["name"] / file, target)
        storage.write_parquet(hashed(people, key, "training_patients"), partial / "training_patients.parquet")
        familiar.save(partial / bundle.FAMILIARITY)
        storage.write_parquet(curves, partial / bundle.CURVES)
        storage.write_parquet(grid, partial / bundle.CUT_GRID)
        storage.write_text(model_card.write(content), partial / bundle.CARD)
        bundle.seal(partial, content, layers)


def _write_out_of_fold(study: Study, step: Step, scored: pl.DataFrame) -> None:
    path = study.patient_level / "out_of_fold.parquet"
    storage.write_parquet(schemas.conform(scored, "out_of_fold").select(*schemas.columns("out_of_fold")), path)
    step.wrote(path)


@contextmanager
def new_bundle(folder: Path) -> Iterator[Path]:
    """A folder beside the place of the bundle, renamed at the end: a bundle is whole or not there."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def make_key(path: Path) -> bytes:
    """The secret key of a file, which is made where it is not there."""
    if not path.is_file():
        storage.write_bytes(secrets.token_bytes(32), path, private=True)
    return path.read_bytes()


def hashed(people: pl.DataFrame, key: bytes, table: str) -> pl.DataFrame:
    """The patients and the pixels of their films as keyed hashes, with their folds."""
    rows = [
        (bundle.keyed_hash(key, site, patient), bundle.keyed_hash(key, pixels), fold)
        for site, patient, pixels, fold in people.select("site", "patient_id", "pixel_sha256", "fold").iter_rows()
    ]
    return pl.DataFrame(rows, schema=schemas.columns(table), orient="row").sort("patient_hash")


def told_cuts(grid: pl.DataFrame, rule: str | Sequence[float], folds: int, origin: str) -> dict[str, Any]:
    """The cut points under the study's rule, for new patients and for every fold."""
    cuts = [
        {"exposure": exposure, "fold": fold, "cuts": scores.cut_points(grid, exposure, fold, rule)}
        for exposure in EXPOSURES
        for fold in (NEW, *range(folds))
    ]
    return {"rule": rule, "origin": origin, "cuts": cuts}


def performance(scored: pl.DataFrame, level: float) -> list[dict[str, Any]]:
    """AUC with DeLong's interval per exposure and threshold: of all, and by sex, age band and site.

    A subgroup with fewer than 10 patients on a side is left out: its AUC says nothing, and a bundle travels.

    Args:
        scored: {exposure}_{threshold}, <threshold> (bool, the truth), sex, age_years, site.
        level: Confidence level.
    """
    people = scored.with_columns(pl.lit("all").alias("all"), eligibility.age_band("age_years"))
    found = []
    for exposure in EXPOSURES:
        for name, threshold in zip(THRESHOLD_NAMES, THRESHOLDS, strict=True):
            rows = people.drop_nulls(f"{exposure}_{name}")
            for subgroup in _BY:
                for (value,), part in sorted(rows.drop_nulls(subgroup).group_by(subgroup)):
                    area = asdict(discrimination.auc(part[name], part[f"{exposure}_{name}"], level))
                    del area["se"]
                    place = {"exposure": exposure, "threshold": threshold, "subgroup": subgroup, "value": value}
                    if subgroup == "all" or _LEAST <= area["n_positive"] <= area["n"] - _LEAST:
                        found.append(place | area)
    return found


def share_file(source: Path, target: Path) -> None:
    """Have a file under a second name, as a hard link where the file system allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
