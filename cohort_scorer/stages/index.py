"""index: headers of the archive -> patient_level/index. Opens no file that it knows and no pixel."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import polars as pl

from cohort_scorer import provenance, schemas
from cohort_scorer.errors import EmptyCohortError, MachineError, TooManyRefusedError
from cohort_scorer.imaging import index as archive
from cohort_scorer.imaging import ledger
from cohort_scorer.imaging.files import refuse_nested
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, Machine
from cohort_scorer.study import Study

_UNWANTED = ["modality", "body_part", "view", "unknown_view"]


def index(study: Study, machine: Machine, console: Console) -> Path:
    """Bring the index up to date with the archive; new files form new parts."""
    section = study.require("archive")
    step = Step(study, "index")
    if section.index:
        return _adopt(study, step, console)
    listing = None
    if section.listing:
        path = study.folder / section.listing
        listing = schemas.read(
            path, "listing", study.tables.faulty_rows, study.patient_level, study.tables.map.get("listing")
        )
        step.read(path, section.listing)
    rules = archive.Rules(
        tuple(section.modalities), tuple(section.body_parts), tuple(section.views), section.unknown_view
    )
    known = _take_up(study, listing, rules)
    gone, problems = _read_new(study, step, known, listing, rules, machine, console)
    rows, refusals = known.settle(gone, problems, study.roots)
    _tell(step, console, rows, refusals)
    step.finish()
    radiographs = rows if listing is not None else rows.filter(pl.col("modality").is_in(section.modalities))
    refused = refusals.filter("radiograph").height
    unusable = radiographs.filter(~pl.col("eligible") & ~pl.col("reason").is_in(_UNWANTED)).height
    judge_refused(study, refused + unusable, refused + len(radiographs))
    _refuse_empty(step, rows)
    return study.patient_level / "index"


def _adopt(study: Study, step: Step, console: Console) -> Path:
    """Take another study's index: nothing is opened, and nothing is written but the manifest."""
    from cohort_scorer.stages import inputs  # What it imports takes longer than to look through an archive.

    rows = inputs.index(study)
    step.facts |= {"n_files": len(rows), "n_opened": 0}
    _tell(step, console, rows, pl.DataFrame(schema=schemas.columns("refusals")))
    step.finish()
    _refuse_empty(step, rows)
    return inputs.index_folder(study)


def _tell(step: Step, console: Console, rows: pl.DataFrame, refusals: pl.DataFrame) -> None:
    n_eligible = rows.filter("eligible").height
    step.facts |= {"n_rows": len(rows), "n_refused": len(refusals), "n_eligible": n_eligible}
    step.facts["refusals"] = _counts(refusals, console, "refused")
    step.facts["not_eligible"] = _counts(rows.filter(~pl.col("eligible")), console, "not eligible")
    console.say(f"index: {step.facts['n_files']:,} files found, {n_eligible:,} radiographs eligible")


def _refuse_empty(step: Step, rows: pl.DataFrame) -> None:
    if not rows.filter("eligible").height:
        raise EmptyCohortError(
            f"The archive holds no eligible radiograph: {step.facts['n_files']:,} files found, {len(rows):,} indexed.",
            "Expected frontal chest radiographs as [archive] modalities, body_parts and views describe them.",
            "Look at the counts above, then correct [archive], or give a listing.",
        )


def judge_refused(study: Study, n_refused: int, n_claimed: int) -> None:
    """Stop where more files that claim to be radiographs were refused than the study allows.

    Raises:
        TooManyRefusedError: more than [archive] maximum_refused_percent.
    """
    allowed = study.require("archive").maximum_refused_percent
    if n_claimed and 100 * n_refused / n_claimed > allowed:
        raise TooManyRefusedError(
            f"{n_refused:,} of {n_claimed:,} files that claim to be radiographs were refused.",
            f"Expected at most {allowed:g} %; found {100 * n_refused / n_claimed:.1f} %.",
            "Look at patient_level/refusals, mend the archive, or raise [archive] maximum_refused_percent.",
        )


def _take_up(study: Study, listing: pl.DataFrame | None, rules: archive.Rules) -> ledger.Ledger:
    stated = None if listing is None else listing.sort("uri").rows()
    columns = [list(schemas.columns(name)) for name in ("index", "refusals")]
    made = {
        "roots": list(study.roots),
        "listed": listing is not None,
        "reader": provenance.digest([archive.VERSION, columns, stated]),
        "rules": provenance.digest(asdict(rules)),
    }
    return ledger.take_up(study.patient_level, made, rules)


def _read_new(
    study: Study,
    step: Step,
    known: ledger.Ledger,
    listing: pl.DataFrame | None,
    rules: archive.Rules,
    machine: Machine,
    console: Console,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Open the files that the ledger does not know; returns what is gone, and refusals of files with a problem."""
    new, gone, problems = _find_new(study, step, known, listing, console)
    if len(new):
        with (
            console.progress("Reading headers", len(new)) as advance,
            closing(archive.read_headers(new, study.roots, listing, rules, machine.workers, advance)) as parts,
        ):
            for rows, refusals in parts:
                known.add(rows, refusals)
    return gone, problems


def _find_new(
    study: Study, step: Step, known: ledger.Ledger, listing: pl.DataFrame | None, console: Console
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Hold the archive against the ledger; the list of all files, which is long, is not kept."""
    files = _find(study, listing)
    new, gone, counts = known.compare(files)
    step.facts |= {"n_files": len(files), **counts, "n_opened": len(new)}
    console.say("index: {n_new:,} files new, {n_changed:,} changed, {n_removed:,} removed".format(**counts))
    return new, gone, archive.refuse_problems(files, listing is not None)


def _find(study: Study, listing: pl.DataFrame | None) -> pl.DataFrame:
    refuse_nested(study.roots)
    found = []
    for name, root in study.roots.items():
        if not root.is_dir():
            raise MachineError(
                "An archive root is not a folder that can be read.",
                "Expected every folder named in [archive] root; at least 1 is missing.",
                "Correct [archive] root, or mount the folder.",
            )
        found.append(archive.find_files(root, listing).with_columns(pl.lit(name).alias("root")))
    files = pl.concat(found)
    if listing is not None and len(study.roots) > 1:
        # A listed file lies in one root: that the others lack it says nothing.
        absent = pl.col("problem").eq_missing(pl.lit("missing_file"))
        nowhere = absent.all().over("uri") & (pl.col("root") == next(iter(study.roots)))
        files = files.filter(~absent | nowhere)
    if files.is_empty():
        raise EmptyCohortError(
            "The archive is empty: 0 files found.",
            "Expected DICOM files, or a listing of images, under [archive] root.",
            "Correct [archive] root or listing.",
        )
    return files


def _counts(frame: pl.DataFrame, console: Console, word: str) -> dict[str, int]:
    counts = dict(frame.group_by("reason").len().sort("reason").iter_rows())
    for reason, count in counts.items():
        console.say(f"{word}: {count:,} {reason}")
    return counts
