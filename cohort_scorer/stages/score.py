"""score: index x bundle -> raw network outputs, then scores. Continues where it stopped; opens no film twice."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from cohort_scorer import schemas, storage
from cohort_scorer.cohort import eligibility
from cohort_scorer.errors import BundleError, EmptyCohortError
from cohort_scorer.prediction import bundle, scores
from cohort_scorer.prediction.integration import EXPOSURES
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.stages.index import judge_refused
from cohort_scorer.study import Study

_FILMS_AT_ONCE = 2_000
_FILE = ["root", "uri", "file_size", "file_mtime_ns"]


def score(study: Study, machine: Machine, console: Console) -> Path:
    """Run every network of the bundle on every eligible film, then turn the outputs into scores.

    A job that has a share of the shards (`machine.shard`) leaves its outputs for the run that assembles the scores.
    """
    step = Step(study, f"score-{machine.share}" if machine.shard else "score")
    model = bundle.load(study.bundle, inputs.categories())
    step.read(study.bundle / "bundle.json", f"{study.require('model').bundle}/bundle.json")
    every = inputs.index(study).filter("eligible")
    eligible = every if machine.shard is None else machine.shard.share(every)
    step.facts["seconds"] = _run_networks(study, model, eligible, machine, console)
    refused = _refusals(study).join(eligible.select(_FILE), on=_FILE, how="semi")
    reasons = dict(refused.group_by("reason").len().sort("reason").iter_rows())
    for reason, count in reasons.items():
        console.say(f"refused: {count:,} {reason}")
    step.facts |= {
        "n_eligible": len(eligible),
        "n_scored": len(eligible) - len(refused),
        "refusals": reasons,
        "network_id": _network_id(study, model),
        "preprocessing_id": model.content["preprocessing_id"],
    }
    if machine.shard is not None:
        console.say(f"score: {len(eligible) - len(refused):,} of {len(every):,} radiographs stand; scores come last")
        step.finish()
        return _outputs_folder(study)
    path = _assemble(study, step, model, eligible, console)
    _forget_other_jobs(study, step)
    step.finish()
    judge_refused(study, len(refused), len(eligible))
    return path


def _assemble(study: Study, step: Step, model: bundle.Bundle, eligible: pl.DataFrame, console: Console) -> Path:
    """Turn the raw outputs of all films into scores.parquet."""
    outputs = storage.read_parts(_outputs_folder(study))
    if outputs is None:
        outputs = pl.DataFrame(schema=schemas.columns("network_outputs"))
    known = {*schemas.columns("scores"), *_FILE, "age_years", "sex"}
    films = eligible.select(column for column in eligible.columns if column in known).join(
        outputs.drop("image_id"), on=_FILE, how="inner", maintain_order="left"
    )
    if films.is_empty():
        raise EmptyCohortError(
            f"No radiograph could be scored: {len(eligible):,} eligible, {len(eligible) - len(films):,} refused.",
            "Expected at least one readable radiograph; patient_level/refusals counts the reasons.",
            "Look at the reasons, then mend the archive.",
        )
    scored = _scores(study, step, model, films)
    path = study.patient_level / "scores.parquet"
    storage.write_parquet(scored, path)
    step.wrote(path)
    origins = dict(scored.group_by("score_origin").len().sort("score_origin").iter_rows())
    console.say(
        f"score: {len(scored):,} radiographs scored (" + ", ".join(f"{n:,} {o}" for o, n in origins.items()) + ")"
    )
    step.facts |= {
        "n_scored": len(scored),
        "score_origin": origins,
        "model_id": scored["model_id"][0],
        "bundle_simulated": model.content["simulated"],
        "n_ordinal_violations": _violations(scored),
    }
    return path


def _forget_other_jobs(study: Study, step: Step) -> None:
    """Remove the manifests of jobs whose outputs were of other networks: those outputs are gone."""
    for path in step.path.parent.glob("score-*-of-*.json"):
        if json.loads(path.read_text(encoding="utf-8"))["facts"]["network_id"] != step.facts["network_id"]:
            path.unlink()


def _network_id(study: Study, model: bundle.Bundle) -> str:
    return model.network_id(study.require("model").precision)


def _run_networks(
    study: Study, model: bundle.Bundle, eligible: pl.DataFrame, machine: Machine, console: Console
) -> dict[str, float]:
    """Score what neither outputs nor refusals hold yet, shard by shard; tells where the time went, in seconds."""
    done = _done(study, model)
    _keep_lasting_refusals(study, eligible, _network_id(study, model), alone=machine.shard is None)
    held = pl.concat([done, _refusals(study).select(_FILE)])
    new = eligible.join(held, on=_FILE, how="anti", maintain_order="left").sort("shard", maintain_order=True)
    if new.is_empty():
        return {}
    from cohort_scorer.imaging import familiarity, networks, scoring

    spent = dict.fromkeys((*scoring.STAGES, "write"), 0.0)
    device = networks.choose_device(machine.device)
    loaded = scoring.Model(
        {name: networks.load(model.folder / name) for name in model.networks},
        model.networks,
        model.content["image_size"],
        familiarity.load(model.folder / bundle.FAMILIARITY),
        model.content["familiar_to"],
        study.require("model").precision,
    )
    batch_size = machine.batch_size or scoring.batch_size_for(device, loaded.size)
    made_by = pl.lit(_network_id(study, model)).alias("network_id")
    films = inputs.radiographs(study, new, loaded.size, machine)
    # Closed by name: an interrupt that comes while a generator is left to be collected is lost, with a traceback.
    with (
        console.progress("Scoring radiographs", len(new)) as advance,
        closing(scoring.score(new, films, loaded, batch_size, device, machine.workers, advance)) as parts,
    ):
        for part in parts:
            started = time.perf_counter()
            rows = eligible.filter(pl.col("shard") == part.shard).select(_FILE)
            # Refusals first: outputs of a shard stand only where its refusals do.
            _add(part.refusals.with_columns(made_by), rows, _refusals_folder(study) / f"score-{part.shard}.parquet")
            _add(part.outputs.with_columns(made_by), rows, _outputs_folder(study) / f"part-{part.shard}.parquet")
            for stage, seconds in {**part.seconds, "write": time.perf_counter() - started}.items():
                spent[stage] += seconds
    return {stage: round(seconds, 3) for stage, seconds in spent.items()}


def _add(new: pl.DataFrame, rows: pl.DataFrame, path: Path) -> None:
    """Write what is new of a shard beside what stood, in index order: the same bytes however often it was stopped."""
    if path.is_file():
        new = pl.concat([storage.read_own(path), new])
    if len(new):
        storage.write_parquet(rows.join(new, on=_FILE, how="inner", maintain_order="left").select(new.columns), path)


def _done(study: Study, model: bundle.Bundle) -> pl.DataFrame:
    """The files whose outputs stand.

    Raises:
        BundleError: some were made by other networks.
    """
    done = storage.read_parts(_outputs_folder(study), [*_FILE, "network_id"])
    if done is None:
        return pl.DataFrame(schema={name: schemas.columns("refusals")[name] for name in _FILE})
    if (done["network_id"] != _network_id(study, model)).any():
        raise BundleError(
            "patient_level/network_outputs holds outputs of another bundle, preprocessing or precision.",
            "Expected one network_id in a folder; going on would mix two models.",
            "Move the folder away, or name another [study] output.",
        )
    return done.select(_FILE)


def _outputs_folder(study: Study) -> Path:
    return study.patient_level / "network_outputs"


def _refusals_folder(study: Study) -> Path:
    return study.patient_level / "refusals"


def _refusals(study: Study) -> pl.DataFrame:
    paths = sorted(_refusals_folder(study).glob("score-*.parquet"))
    parts = [schemas.conform(storage.read_own(path), "refusals") for path in paths]
    return pl.concat([pl.DataFrame(schema=schemas.columns("refusals")), *parts])


def _keep_lasting_refusals(study: Study, eligible: pl.DataFrame, network_id: str, alone: bool) -> None:
    """Forget refusals under other networks, of files that changed, and those that may pass: these are tried again.

    Beside other jobs, only those of the job's own shards.
    """
    mine = {f"score-{shard}.parquet" for shard in eligible["shard"].unique()}
    for path in _refusals_folder(study).glob("score-*.parquet"):
        if not alone and path.name not in mine:
            continue
        part = schemas.conform(storage.read_own(path), "refusals")
        lasting = part.filter(
            (pl.col("network_id") == network_id) & ~pl.col("reason").is_in(["missing_file", "unreadable_file"])
        ).join(eligible.select(_FILE), on=_FILE, how="semi", maintain_order="left")
        if len(lasting) < len(part):
            storage.write_parquet(lasting, path)


def _scores(study: Study, step: Step, model: bundle.Bundle, films: pl.DataFrame) -> pl.DataFrame:
    section = study.require("model")
    clinical = inputs.table(study, step, "clinical")
    known = eligibility.describe(
        films.select("patient_id", "image_id", "study_date", "site", "age_years", "sex"), clinical
    )
    facts = known.select("image_id", pl.col("site"), "age_years", "sex", "bmi")
    films = films.drop("site", "age_years", "sex").join(facts, on="image_id", how="left", maintain_order="left")
    keys = [study.patient_level / name for name in ("training.key", "recalibration.key")]
    key, recalibration_key = (path.read_bytes() if path.is_file() else None for path in keys)
    films = bundle.origins(films, model, key, section.trained_elsewhere, recalibration_key)
    # In slices: what is computed on the way is many times what stays.
    scored = pl.concat(
        scores.assemble(part, model, section.members, section.category_rule, inputs.categories())
        for part in films.iter_slices(_FILMS_AT_ONCE)
    )
    step.facts["n_crossed_cuts"] = {name: int(scored[f"{name}_crossed"].sum()) for name in EXPOSURES}
    scored = scored.with_columns(pl.lit(study.study.simulated or model.content["simulated"]).alias("simulated"))
    scored = scored.with_columns(pl.lit(model.model_id(_plain(section))).alias("model_id"))
    known_columns = schemas.columns("scores")
    quality = [
        name for name in schemas.columns("network_outputs") if name not in (*known_columns, *_FILE, "network_id")
    ]
    return schemas.conform(scored, "scores").select(*known_columns, *quality).sort("uri", "image_id")


def _plain(section: Any) -> Mapping[str, Any]:
    plain: Mapping[str, Any] = section.model_dump(mode="json")
    return plain


def _violations(scored: pl.DataFrame) -> dict[str, int]:
    """Per exposure, how many films have probabilities that contradict the order of the thresholds."""
    return {
        exposure: scored.filter(
            (pl.col(f"{exposure}_gt0") < pl.col(f"{exposure}_ge100"))
            | (pl.col(f"{exposure}_ge100") < pl.col(f"{exposure}_ge400"))
        ).height
        for exposure in EXPOSURES
    }
