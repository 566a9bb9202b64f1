"""What several stages read: the study's tables, its films, its scores."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from cohort_scorer import provenance, schemas, storage
from cohort_scorer.cohort import diagnoses, identifiers
from cohort_scorer.errors import BundleError, EmptyCohortError, InputTableError, MachineError, StudyFileError
from cohort_scorer.prediction import scores as predicted
from cohort_scorer.prediction.integration import passes_thresholds
from cohort_scorer.provenance import Step
from cohort_scorer.reporting import disclosure
from cohort_scorer.stages import Console, Machine
from cohort_scorer.study import ModelSection, Study

_CARRIED = {
    "clinical": ("index", "cohort", "scores", "analysis_set", "follow_up", "events"),
    "scores": ("analysis_set", "follow_up", "events"),
}
"""Tables whose extra columns travel on, and the tables that they travel into."""
_COMPUTED = {"first_scan", "start", "kind", "age_band", "has_radiograph", "is_readable", "is_scored", "is_radiograph"}
_SPOKEN_NAMES = 30


def categories() -> tuple[str, ...]:
    """The names of the four categories, lowest first."""
    return schemas.vocabulary("cohort", "true_category")


def table(study: Study, step: Step, name: str) -> pl.DataFrame | None:
    """An input table of [tables], mapped and checked against its schema, or None where the study has none.

    Events are those of the events table and those that [codes] makes of the diagnoses. Rows dropped under
    faulty_rows = "drop" are counted in the step's fact `rows_dropped`.

    Raises:
        InputTableError: as `schemas.read`; no row; an extra column with a name that the tool gives; or a year of 2100
            or later without dates_shifted_per_subject.
        StudyFileError: [codes] does not fit the tables.
    """
    given = _given(study, step, name)
    if name != "events" or not study.codes:
        return given
    return _with_coded_events(study, step, given)


def _given(study: Study, step: Step, name: str) -> pl.DataFrame | None:
    given: str = getattr(study.tables, name)
    if not given:
        return None
    path = study.folder / given
    frame = schemas.read(path, name, study.tables.faulty_rows, study.patient_level, study.tables.map.get(name))
    step.read(path, given)
    n_dropped = schemas.count_refused(name, study.patient_level)
    if n_dropped:
        step.facts.setdefault("rows_dropped", {})[name] = n_dropped
    if frame.is_empty():
        raise InputTableError(
            f"{path.name}: the table has no rows ({n_dropped:,} refused).",
            "Expected a header line and at least one row below it.",
            f"Export the table again, or take {name} out of [tables].",
        )
    _refuse_reserved_names(frame, name, path.name)
    dates = [column for column, dtype in frame.schema.items() if dtype == pl.Date]
    today = datetime.now(tz=UTC).date() + timedelta(days=1)
    late = frame.filter(pl.any_horizontal(pl.lit(False), *(pl.col(column) > today for column in dates)))
    if len(late) and not study.study.dates_shifted_per_subject:
        raise InputTableError(
            f"{path.name}: {len(late):,} of {len(frame):,} rows have a date in the future.",
            "Expected real dates, since [study] dates_shifted_per_subject is false; found later ones than today.",
            "Correct the extract, or set dates_shifted_per_subject = true.",
        )
    return frame


def _with_coded_events(study: Study, step: Step, events: pl.DataFrame | None) -> pl.DataFrame:
    found = _given(study, step, "diagnoses")
    if found is None:
        raise StudyFileError(
            f"{study.file.name}: [codes] stands without [tables] diagnoses.",
            "Expected the table of diagnoses that the code lists are for; found none.",
            'Add diagnoses = "tables/diagnoses.csv" under [tables], or take [codes] out.',
        )
    if events is not None and (twice := sorted(set(study.codes) & set(events["event_type"].unique()))):
        raise StudyFileError(
            f"{study.file.name}: [codes] names {', '.join(twice)}, which the events table holds already.",
            "Expected every event type from one source; found two.",
            "Name the list otherwise; [outcome] components can hold both.",
        )
    systems = found["system"].drop_nulls().n_unique()
    unclear = [name for name, given in study.codes.items() if not given.system]
    if systems > 1 and unclear:
        raise StudyFileError(
            f"{study.file.name}: {len(unclear)} of {len(study.codes)} lists of [codes] name no code system.",
            f"Expected system = ..., since diagnoses holds {systems} systems, where one code has several meanings.",
            "Add system to each list.",
        )
    coded, told = diagnoses.events(found, study.codes)
    step.facts["codes"] = told
    return coded if events is None else pl.concat([events, coded], how="diagonal")


def _refuse_reserved_names(frame: pl.DataFrame, name: str, table: str) -> None:
    """Extra columns are carried along: one named like a computed column would take its place."""
    if name not in _CARRIED:
        return
    reserved = {column for other in _CARRIED[name] for column in schemas.columns(other)} | _COMPUTED
    taken = [column for column in frame.columns if column in reserved - set(schemas.columns(name))]
    if taken:
        raise InputTableError(
            f"{table}: extra columns ({len(taken):,}) have names that the tool gives: {', '.join(taken)}.",
            "Expected other names for covariates; `cohort-scorer schema` lists the names in use.",
            "Rename or drop these columns.",
        )


def required_table(study: Study, step: Step, name: str) -> pl.DataFrame:
    """As `table`, for a step that cannot do without it.

    Raises:
        StudyFileError: the study names no such table.
    """
    frame = table(study, step, name)
    if frame is None:
        raise StudyFileError(
            f"{study.file.name}: [tables] {name} is not given.",
            f"Expected the {name} table, which this step needs; found none.",
            f'Add {name} = "tables/{name}.csv" under [tables]; `cohort-scorer schema {name}` lists its columns.',
        )
    return frame


def films(study: Study, step: Step) -> pl.DataFrame:
    """All films that can be linked: of the index, or, for scores made elsewhere, of the scores table.

    Returns:
        patient_id, image_id, uri, study_date, acquisition_time, site, age_years, sex, is_radiograph, is_eligible.
    """
    columns = ["patient_id", "image_id", "uri", "study_date", "acquisition_time", "site", "age_years", "sex"]
    if study.tables.scores:
        given = elsewhere(study, step)
        return given.select(
            "patient_id",
            "image_id",
            "uri",
            "study_date",
            pl.lit(None, pl.String).alias("acquisition_time"),
            "site",
            pl.lit(None, pl.Float64).alias("age_years"),
            pl.lit(None, pl.String).alias("sex"),
            pl.lit(True).alias("is_radiograph"),
            pl.lit(True).alias("is_eligible"),
        )
    return index(study).select(
        *columns,
        (~pl.col("reason").is_in(["modality", "body_part"])).fill_null(True).alias("is_radiograph"),
        pl.col("eligible").alias("is_eligible"),
    )


def index_folder(study: Study) -> Path:
    """Where the index lies: the study's own, or another study's."""
    other: str = study.require("archive").index
    return study.folder / other if other else study.patient_level / "index"


def index(study: Study) -> pl.DataFrame:
    """The index of the archive; another study's, under this study's roots and rules.

    Raises:
        EmptyCohortError: there is none yet.
        StudyFileError: [archive] does not fit the other study's index.
    """
    folder = index_folder(study)
    found = storage.read_parts(folder)
    if found is None:
        raise EmptyCohortError(
            "There is no index of the archive.",
            "Expected part-*.parquet in patient_level/index, or where [archive] index says; found none.",
            "Run `cohort-scorer index` first, or correct [archive] index.",
        )
    return _adopted(study, folder, found) if study.require("archive").index else found


def _adopted(study: Study, folder: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """Another study's rows: its roots are this study's, in the same order, and this study's rules judge them anew."""
    from cohort_scorer.imaging import index as archive

    section = study.require("archive")
    made = folder / "archive.json"
    theirs: dict[str, Any] = {"roots": [], "listed": False}
    if made.is_file():
        theirs = json.loads(made.read_text(encoding="utf-8"))
    roots = dict(zip(theirs["roots"], study.roots, strict=False))
    if section.listing or len(theirs["roots"]) != len(study.roots) or not set(rows["root"]) <= set(roots):
        raise StudyFileError(
            f"{study.file.name}: [archive] does not fit the index of the other study.",
            f"Expected its {len(theirs['roots'])} roots in the same order, and no listing, which the index holds "
            f"already; found {len(study.roots)} roots and {'a' if section.listing else 'no'} listing.",
            "Correct [archive] root and listing, run `cohort-scorer index` in the other study, or take index out.",
        )
    rules = archive.Rules(
        tuple(section.modalities), tuple(section.body_parts), tuple(section.views), section.unknown_view
    )
    return archive.judge_again(rows.with_columns(pl.col("root").replace_strict(roots)), rules, theirs["listed"])


def radiographs(study: Study, rows: pl.DataFrame, size: int, machine: Machine) -> Any:
    """The images of index rows, decoded in parallel: row number and image or refusal, in any order."""
    from cohort_scorer.imaging import cache, decoding, radiograph

    if not machine.keep_images:
        return decoding.radiographs(rows.iter_rows(named=True), study.roots, size, machine.workers)
    folder = study.patient_level / "images" / radiograph.PREPROCESSING.identifier(size)
    return cache.radiographs(rows, study.roots, size, machine.workers, folder)


def elsewhere(study: Study, step: Step) -> pl.DataFrame:
    """The scores table that was made elsewhere; films without image_id are named by patient and date."""
    given = required_table(study, step, "scores")
    named = given.with_columns(
        pl.coalesce("image_id", pl.format("{} {}", "patient_id", "study_date")).alias("image_id"),
        pl.coalesce("score_status", pl.lit("ok")).alias("score_status"),
    )
    doubled = len(named) - named["image_id"].n_unique()
    if doubled:
        raise InputTableError(
            f"scores: {doubled:,} of {len(named):,} rows repeat a radiograph.",
            "Expected one row per image_id, or per patient_id and study_date where there is none.",
            "Keep one score per radiograph, or give image_id.",
        )
    return named


def scores(study: Study, step: Step) -> pl.DataFrame:
    """The scores of the study: patient_level/scores.parquet, or the table that was made elsewhere.

    Raises:
        BundleError: there are none.
    """
    if study.tables.scores:
        return _categorised(study, step, elsewhere(study, step))
    path = study.patient_level / "scores.parquet"
    if not path.is_file():
        raise BundleError(
            "There are no scores.",
            "Expected patient_level/scores.parquet, or [tables] scores; found neither.",
            "Run `cohort-scorer score` first.",
        )
    _require_fresh(study, "score", "patient_level/scores.parquet")
    step.read(path, f"{study.study.output}/patient_level/scores.parquet")
    return _own(path, "scores")


def _categorised(study: Study, step: Step, given: pl.DataFrame) -> pl.DataFrame:
    """Categories that the scores table lacks, by [model] category_rule; its cuts come from the cohort's true scores."""
    path = study.patient_level / "cohort.parquet"
    truth = pl.DataFrame(schema={"image_id": pl.String, "cacs": pl.Float64})
    if path.is_file():
        truth = storage.read_own(path).select("image_id", "cacs").drop_nulls()
    passed = truth.select("image_id", *passes_thresholds("cacs"))
    rule = (study.model or ModelSection()).category_rule
    filled = predicted.categorise_given(given, passed, rule, categories())
    without = filled.filter(pl.all_horizontal(pl.col("cxr_gt0", "cxr_ge100", "cxr_ge400").is_not_null()))
    if len(without) and without["cxr_category"].null_count():
        raise StudyFileError(
            f"The scores table has no categories, and the rule {rule} needs true scores to find its cut points.",
            f"Expected a cohort with true CACS on both sides of every threshold; found {len(truth):,} true scores.",
            'Run `cohort-scorer link` first, or give [model] category_rule = "argmax" or three numbers.',
        )
    lacked = given.select(pl.col("^.*_category$").null_count()).row(0)
    lack = filled.select(pl.col("^.*_category$").null_count()).row(0)
    step.facts["n_categories_derived"] = sum(lacked) - sum(lack)
    return filled


def unreadable(study: Study) -> pl.DataFrame:
    """image_id of the eligible films that scoring refused."""
    parts = sorted((study.patient_level / "refusals").glob("score-*.parquet"))
    if study.tables.scores or not parts:
        return pl.DataFrame(schema={"image_id": pl.String})
    refused = pl.concat([storage.read_own(part) for part in parts])
    # A film that was mended since is another file under the same name.
    file = ["root", "uri", "file_size", "file_mtime_ns"]
    return index(study).join(refused, on=file, how="semi").select("image_id")


def cohort(study: Study, step: Step) -> pl.DataFrame:
    """patient_level/cohort.parquet.

    Raises:
        EmptyCohortError: there is none, or nobody is in it.
    """
    path = study.patient_level / "cohort.parquet"
    if not path.is_file():
        raise EmptyCohortError(
            "There is no cohort.",
            "Expected patient_level/cohort.parquet; found none.",
            "Run `cohort-scorer link` first.",
        )
    _require_fresh(study, "link", "patient_level/cohort.parquet")
    step.read(path, f"{study.study.output}/patient_level/cohort.parquet")
    return _own(path, "cohort")


def _own(path: Path, name: str) -> pl.DataFrame:
    frame = storage.read_own(path)
    missing = [column for column in schemas.columns(name) if column not in frame.columns]
    if missing:
        raise MachineError(
            f"{path.parent.name}/{path.name} lacks {len(missing):,} columns: {', '.join(missing[:12])}.",
            "Expected the table as this version writes it; found one of another version, or edited.",
            "Run the step that writes it again.",
        )
    return frame


def _require_fresh(study: Study, verb: str, made: str) -> None:
    """Refuse what a step made of tables that have changed since: new events with an old true category would mix.

    Raises:
        InputTableError: an input of that step differs from the one it read.
    """
    manifest = study.unprotected / "manifests" / f"{verb}.json"
    if not manifest.is_file():
        return
    inputs = json.loads(manifest.read_text(encoding="utf-8"))["inputs"]
    paths = {label: study.folder / label for label in inputs}
    changed = [label for label, path in paths.items() if path.is_file() and provenance.sha256(path) != inputs[label]]
    if changed:
        raise InputTableError(
            f"{made} was made before {', '.join(Path(label).name for label in changed)} changed.",
            "Expected the tables that it was made of; found others.",
            f"Run `cohort-scorer {verb}` again, or `cohort-scorer run`.",
        )


def lost_zeros(name: str, known: str, rate: identifiers.Match) -> InputTableError:
    """The fault of a table whose identifiers match better once leading zeros are stripped."""
    return InputTableError(
        f"{name}: {rate.n - rate.n_matched:,} of {rate.n:,} patient ids do not occur in {known}; "
        f"{rate.n_matched_without_zeros - rate.n_matched:,} of them would without leading zeros.",
        "Expected the same text in every table, zeros kept; found ids that a spreadsheet may have made numbers.",
        "Export the table again with patient_id as text.",
    )


def tell_dropped(step: Step, console: Console) -> None:
    """Say how many faulty rows were left out under faulty_rows = "drop"."""
    for name, count in step.facts.get("rows_dropped", {}).items():
        console.say(f"dropped: {count:,} faulty rows of {name}")


def spoken(names: Sequence[str]) -> str:
    """Names found in a table, for a message; their number alone where they are so many that they may be identifiers."""
    if len(names) > _SPOKEN_NAMES:
        return f"{len(names):,} different ones"
    return ", ".join(names) or "none"


def stamps(study: Study) -> tuple[str, ...]:
    """What every figure and page of the study must say; scores of a bundle trained on simulated data are simulated."""
    simulated = study.study.simulated
    if study.model is not None and not study.tables.scores and (study.bundle / "bundle.json").is_file():
        simulated |= json.loads((study.bundle / "bundle.json").read_text(encoding="utf-8"))["simulated"]
    if study.tables.scores and (study.folder / study.tables.scores).is_file():
        given = storage.read_table(study.folder / study.tables.scores)
        if "simulated" in given.columns:
            simulated |= bool(given["simulated"].cast(pl.String).str.to_lowercase().is_in(["true", "1"]).any())
    return disclosure.stamps(simulated, study.comparison.allow_in_sample, study.release.disclosure)


def refuse_unfit_origins(study: Study, people: pl.DataFrame) -> None:
    """Stop where a score was made by a network that may have seen the patient.

    Raises:
        BundleError: in_sample or unknown scores, and [comparison] allow_in_sample is false.
    """
    unfit = people.filter(pl.col("score_origin").is_in(["in_sample", "unknown"]))
    if unfit.is_empty() or study.comparison.allow_in_sample:
        return
    counts = ", ".join(
        f"{count:,} {origin}" for origin, count in unfit.group_by("score_origin").len().sort("score_origin").iter_rows()
    )
    advice = (
        "Restore patient_level/training.key; or [model] trained_elsewhere = true, if no training patient can be here."
    )
    if study.tables.scores:
        advice = "Give scores made out of fold, or by a model that never saw these patients."
    raise BundleError(
        f"{len(unfit):,} of {len(people):,} patients have scores that may be in-sample ({counts}).",
        "Expected score_origin oof or external: performance on training patients is not performance.",
        f"{advice} [comparison] allow_in_sample = true goes on and stamps every output.",
    )
