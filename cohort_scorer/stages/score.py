"""score: index x bundle -> raw network outputs, then scores. Continues where it stopped; opens no film twice."""

from collections.abc import Mapping
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

_PART_ROWS = 2_000
_FILE = ["root", "uri", "file_size", "file_mtime_ns"]
_CPU_BATCH, _CUDA_BATCH = 8, 64


def score(study: Study, machine: Machine, console: Console) -> Path:
    """Run every network of the bundle on every eligible film, then turn the outputs into scores."""
    step = Step(study, "score")
    model = bundle.load(study.bundle, inputs.categories())
    step.read(study.bundle / "bundle.json", f"{study.require('model').bundle}/bundle.json")
    eligible = inputs.index(study).filter("eligible")
    refused = _run_networks(study, model, eligible, machine, console)
    reasons = dict(refused.group_by("reason").len().sort("reason").iter_rows())
    for reason, count in reasons.items():
        console.say(f"refused: {count:,} {reason}")
    outputs = _outputs(study)
    films = eligible.join(outputs, on=_FILE, how="inner", suffix="_output", maintain_order="left")
    path = study.patient_level / "scores.parquet"
    if films.is_empty():
        raise EmptyCohortError(
            f"No radiograph could be scored: {len(eligible):,} eligible, {len(refused):,} refused.",
            "Expected at least one readable radiograph; patient_level/refusals counts the reasons.",
            "Look at the reasons, then mend the archive.",
        )
    scored = _scores(study, step, model, films)
    storage.write_parquet(scored, path)
    step.wrote(path)
    origins = dict(scored.group_by("score_origin").len().sort("score_origin").iter_rows())
    console.say(
        f"score: {len(scored):,} radiographs scored (" + ", ".join(f"{n:,} {o}" for o, n in origins.items()) + ")"
    )
    step.facts |= {
        "n_eligible": len(eligible),
        "n_scored": len(scored),
        "refusals": reasons,
        "score_origin": origins,
        "model_id": scored["model_id"][0],
        "network_id": outputs["network_id"][0],
        "preprocessing_id": model.content["preprocessing_id"],
        "bundle_simulated": model.content["simulated"],
        "n_ordinal_violations": _violations(scored),
    }
    step.finish()
    judge_refused(study, len(refused), len(eligible))
    return path


def _run_networks(
    study: Study, model: bundle.Bundle, eligible: pl.DataFrame, machine: Machine, console: Console
) -> pl.DataFrame:
    """Score what neither outputs nor refusals hold yet, part by part; returns all refusals of eligible films."""
    from cohort_scorer.imaging import networks, scoring

    outputs_folder = study.patient_level / "network_outputs"
    refusals_folder = study.patient_level / "refusals"
    network_id = model.network_id(study.require("model").precision)
    done = storage.read_parts(outputs_folder)
    if done is not None and (done["network_id"] != network_id).any():
        raise BundleError(
            "patient_level/network_outputs holds outputs of another bundle, preprocessing or precision.",
            "Expected one network_id in a folder; going on would mix two models.",
            "Move the folder away, or name another [study] output.",
        )
    _keep_lasting_refusals(refusals_folder, eligible, network_id)
    held = [part.select(_FILE) for part in (done, _refusals(refusals_folder)) if part is not None]
    new = eligible.join(pl.concat(held), on=_FILE, how="anti", maintain_order="left")
    if len(new):
        device = networks.choose_device(machine.device)
        loaded = {name: networks.load(model.folder / name) for name in model.networks}
        batch_size = machine.batch_size or (_CUDA_BATCH if device.type == "cuda" else _CPU_BATCH)
        # Refusals are written first: after a kill between the two, their number is taken though the part is not there.
        written = [*outputs_folder.glob("part-*.parquet"), *refusals_folder.glob("score-*.parquet")]
        number = max((int(path.stem.rsplit("-", 1)[1]) for path in written), default=-1)
        with console.progress("Scoring radiographs", len(new)) as advance:
            for start in range(0, len(new), _PART_ROWS):
                rows = new.slice(start, _PART_ROWS)
                found, refused = scoring.score(
                    rows,
                    study.roots,
                    model.content["image_size"],
                    loaded,
                    batch_size,
                    device,
                    machine.workers,
                    advance,
                )
                number += 1
                made_by = pl.lit(network_id).alias("network_id")
                storage.write_parquet(refused.with_columns(made_by), refusals_folder / f"score-{number:05}.parquet")
                storage.write_parquet(found.with_columns(made_by), outputs_folder / f"part-{number:05}.parquet")
    return _refusals(refusals_folder)


def _outputs(study: Study) -> pl.DataFrame:
    found = storage.read_parts(study.patient_level / "network_outputs")
    return found if found is not None else pl.DataFrame(schema=schemas.columns("network_outputs"))


def _refusals(folder: Path) -> pl.DataFrame:
    parts = [schemas.conform(storage.read_own(path), "refusals") for path in sorted(folder.glob("score-*.parquet"))]
    return pl.concat([pl.DataFrame(schema=schemas.columns("refusals")), *parts])


def _keep_lasting_refusals(folder: Path, eligible: pl.DataFrame, network_id: str) -> None:
    """Forget refusals under other networks, of files that changed, and those that may pass: these are tried again."""
    for path in folder.glob("score-*.parquet"):
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
    key_path = study.patient_level / "training.key"
    key = key_path.read_bytes() if key_path.is_file() else None
    films = bundle.origins(films, model, key, section.trained_elsewhere)
    scored = scores.assemble(films, model, section.members, section.category_rule, inputs.categories())
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
