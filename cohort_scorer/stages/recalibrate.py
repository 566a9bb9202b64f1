"""recalibrate: scores + true CACS of a new site -> a new bundle.json beside the same weights; the old one stays."""

from pathlib import Path
from typing import Any

import polars as pl

from cohort_scorer import provenance, storage
from cohort_scorer.cohort import folds
from cohort_scorer.errors import BundleError, EmptyCohortError, MachineError
from cohort_scorer.prediction import bundle, model_card, recalibration, scores
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, passes_thresholds
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import Console, Machine, bundling, inputs
from cohort_scorer.study import Study

_PARTS = 10
_LEAST = 2 * _PARTS


def recalibrate(study: Study, machine: Machine, console: Console, output: Path) -> Path:
    """Update the layers and cut points for new patients on the external patients whose true score is known.

    Args:
        study: The study; its scores stand.
        machine: Where it runs.
        console: Hears what was chosen.
        output: Folder of the new bundle; absent or empty.
    """
    step = Step(study, "recalibrate")
    model = bundle.load(study.bundle, inputs.categories())
    _refuse_unfit(study, model, output)
    people = _people(study, step, model)
    updates, table = recalibration.recalibrate(people)
    parts = people["layer_fold"].unique().sort().to_list()
    # Each patient by what was fitted without the patient's part; cuts of a part, by what it was fitted on.
    own = pl.concat(recalibration.updated(people.filter(layer_fold=part), updates, part) for part in parts)
    others = {part: recalibration.updated(people.filter(pl.col("layer_fold") != part), updates, part) for part in parts}
    grids = [scores.cut_grids(own, bundle.NEW), *(scores.cut_grids(others[part], part) for part in parts)]
    grid = pl.concat([model.grid.filter(pl.col("fold") != bundle.NEW), *grids])
    rule = study.require("model").category_rule
    categorised = scores.categorised(own, grid, rule, inputs.categories())
    key = bundling.make_key(study.patient_level / "recalibration.key")
    content: dict[str, Any] = {
        name: value for name, value in model.content.items() if name not in ("layers", "files", "format", "thresholds")
    }
    content |= {
        "simulated": model.content["simulated"] or study.study.simulated,
        "versions": provenance.versions(),
        "cut_points": bundling.told_cuts(
            grid, rule, model.folds, "new patients: cross-fitted scores of the recalibration patients; folds: training"
        ),
        "accuracy": scores.accuracy(categorised, inputs.categories()),
        "recalibration": {
            "key_check": bundle.keyed_hash(key, bundle.KEY_CHECK),
            "title": study.study.title,
            "model_id": model.model_id(study.require("model").model_dump(mode="json")),
            "sites": people["site"].unique().drop_nulls().sort().to_list(),
            "n_patients": len(people),
            "first_study_date": str(people["study_date"].min()),
            "last_study_date": str(people["study_date"].max()),
            "updates": table.filter("chosen").drop("chosen", "log_likelihood").to_dicts(),
        },
    }
    remade = {"bundle.json", bundle.CUT_GRID, bundle.CARD}
    with bundling.new_bundle(output) as partial:
        for name in model.content["files"].keys() - remade:
            bundling.share_file(model.folder / name, partial / name)
        hashed = bundling.hashed(people.with_columns(pl.col("layer_fold").alias("fold")), key, "recalibration_patients")
        storage.write_parquet(hashed, partial / bundle.RECALIBRATED)
        storage.write_parquet(grid, partial / bundle.CUT_GRID)
        storage.write_text(model_card.write(content), partial / bundle.CARD)
        bundle.seal(partial, content, recalibration.updated_layers(model.layers, updates))
    publish(step, {"recalibration": table}, inputs.stamps(study))
    for row in table.filter("chosen").iter_rows(named=True):
        console.say(
            f"recalibrate: {row['exposure']} CACS {row['threshold']}: {row['update']} "
            f"(intercept {row['intercept']:.3f}, slope {row['slope']:.3f})"
        )
    console.say("recalibrate: name the new folder as [model] bundle, then run `cohort-scorer score`; no film is read")
    step.facts |= {"n_patients": len(people)}
    step.wrote(output / "bundle.json")
    step.finish()
    return output


def _refuse_unfit(study: Study, model: bundle.Bundle, output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise MachineError(
            "--output: the folder for the recalibrated bundle is not empty.",
            "Expected an absent or empty folder: no bundle is ever written over.",
            "Name another folder.",
        )
    if "recalibration" in model.content:
        raise BundleError(
            "The bundle of [model] has been recalibrated already.",
            "Expected the bundle as it was trained: two updates on one another could not be told apart.",
            "Name the bundle that it was made from, run `cohort-scorer score`, then recalibrate that.",
        )


def _people(study: Study, step: Step, model: bundle.Bundle) -> pl.DataFrame:
    """The external patients with a true score, dealt into parts: their layer_fold."""
    cohort = inputs.cohort(study, step).drop_nulls("cacs")
    scored = inputs.scores(study, step)
    wanted = model.model_id(study.require("model").model_dump(mode="json"))
    if (scored["model_id"] != wanted).any():
        raise BundleError(
            "The scores were made with another bundle or other [model] settings.",
            "Expected scores of the bundle that is to be recalibrated.",
            "Run `cohort-scorer score` again.",
        )
    extra = [name for name in scored.columns if name == "image_id" or name not in cohort.columns]
    people = cohort.join(scored.select(extra), on="image_id", how="inner").with_columns(passes_thresholds("cacs"))
    inputs.refuse_unfit_origins(study, people)
    people = people.filter(pl.col("score_origin") == "external")
    complete = people.drop_nulls([f"{exposure}_gt0" for exposure in EXPOSURES])
    counts = [complete[name].sum() for name in THRESHOLD_NAMES]
    smallest = min(min(count, len(complete) - count) for count in counts)
    if smallest < _LEAST:
        raise EmptyCohortError(
            f"Too few patients to recalibrate on: {len(people):,} external with a true score, {smallest:,} of them "
            "on one side of a threshold.",
            f"Expected at least {_LEAST} with every clinical variable on each side of every threshold.",
            "Add patients with a true score, or use the bundle as it is.",
        )
    dealt = folds.assign(people, _PARTS, study.study.seed)
    return dealt.with_columns((bundle.FIRST_PART - pl.col("fold")).alias("layer_fold"))
