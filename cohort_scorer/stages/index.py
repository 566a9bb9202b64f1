"""index: headers of the archive -> patient_level/index. Opens no file that it knows and no pixel."""

import json
from pathlib import Path

import polars as pl

from cohort_scorer import provenance, schemas, storage
from cohort_scorer.errors import EmptyCohortError, MachineError, TooManyRefusedError
from cohort_scorer.imaging import index as archive
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, Machine, inputs
from cohort_scorer.study import Study

_PART_ROWS = 20_000
_FILE = ["root", "uri", "file_size", "file_mtime_ns"]
_UNWANTED = ["modality", "body_part", "view", "unknown_view"]
_SHARED_ID = ["duplicate", "conflicting_id"]


def index(study: Study, machine: Machine, console: Console) -> Path:
    """Bring the index up to date with the archive; new files form new parts."""
    section = study.require("archive")
    step = Step(study, "index")
    if section.index:
        return _adopt(study, step, console)
    listing = None
    if section.listing:
        path = study.folder / section.listing
        listing = schemas.read(path, "listing", study.tables.faulty_rows, study.patient_level)
        step.read(path, section.listing)
    _forget_other_rules(study, listing)
    files = _find(study, listing)
    step.facts["n_opened"] = _parse_new(study, files, listing, machine, console)
    rows, refusals = _settle(study, files)
    _tell(step, console, len(files), rows, refusals)
    step.finish()
    radiographs = rows if listing is not None else rows.filter(pl.col("modality").is_in(section.modalities))
    refused = refusals.filter("radiograph").height
    unusable = radiographs.filter(~pl.col("eligible") & ~pl.col("reason").is_in(_UNWANTED)).height
    judge_refused(study, refused + unusable, refused + len(radiographs))
    _refuse_empty(len(files), rows)
    return study.patient_level / "index"


def _adopt(study: Study, step: Step, console: Console) -> Path:
    """Take another study's index: nothing is opened, and nothing is written but the manifest."""
    rows = inputs.index(study)
    _tell(step, console, len(rows), rows, pl.DataFrame(schema=schemas.columns("refusals")))
    step.facts["n_opened"] = 0
    step.finish()
    _refuse_empty(len(rows), rows)
    return inputs.index_folder(study)


def _tell(step: Step, console: Console, n_files: int, rows: pl.DataFrame, refusals: pl.DataFrame) -> None:
    n_eligible = rows.filter("eligible").height
    step.facts |= {"n_files": n_files, "n_rows": len(rows), "n_refused": len(refusals), "n_eligible": n_eligible}
    step.facts["refusals"] = _counts(refusals, console, "refused")
    step.facts["not_eligible"] = _counts(rows.filter(~pl.col("eligible")), console, "not eligible")
    console.say(f"index: {n_files:,} files found, {n_eligible:,} radiographs eligible")


def _refuse_empty(n_files: int, rows: pl.DataFrame) -> None:
    if not rows.filter("eligible").height:
        raise EmptyCohortError(
            f"The archive holds no eligible radiograph: {n_files:,} files found, {len(rows):,} indexed.",
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


def _forget_other_rules(study: Study, listing: pl.DataFrame | None) -> None:
    """Start afresh where [archive] or the listing changed: what is eligible was judged by the old rules."""
    folder = study.patient_level / "index"
    section = study.require("archive").model_dump(exclude={"maximum_refused_percent", "index"})
    rules = provenance.digest([archive.VERSION, section, None if listing is None else listing.sort("uri").rows()])
    noted = folder / "rules.sha256"
    if noted.is_file() and noted.read_text() != rules:
        for path in [*folder.glob("*.parquet"), *(study.patient_level / "refusals").glob("index-*.parquet")]:
            path.unlink()
    made = {"roots": list(study.roots), "listed": listing is not None}
    storage.write_text(json.dumps(made) + "\n", folder / "archive.json")
    storage.write_text(rules, noted)


def _find(study: Study, listing: pl.DataFrame | None) -> pl.DataFrame:
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
    # A listed file lies in one root: that the others lack it says nothing.
    absent = pl.col("problem") == "missing_file"
    nowhere = absent.all().over("uri") & (pl.col("root") == next(iter(study.roots)))
    files = files.filter(absent.is_null() | ~absent | nowhere)
    if files.is_empty():
        raise EmptyCohortError(
            "The archive is empty: 0 files found.",
            "Expected DICOM files, or a listing of images, under [archive] root.",
            "Correct [archive] root or listing.",
        )
    return files


def _parse_new(
    study: Study, files: pl.DataFrame, listing: pl.DataFrame | None, machine: Machine, console: Console
) -> int:
    """Open the files that neither index nor refusals know, part by part; returns how many."""
    section = study.require("archive")
    rules = archive.Rules(
        tuple(section.modalities), tuple(section.body_parts), tuple(section.views), section.unknown_view
    )
    rows_folder, refusals_folder = study.patient_level / "index", study.patient_level / "refusals"
    _forget_passing_refusals(refusals_folder)
    known = _rows(rows_folder).select(_FILE)
    refused = _refusals(refusals_folder).select(_FILE)
    new = files.join(pl.concat([known, refused]), on=_FILE, how="anti", nulls_equal=True, maintain_order="left")
    number = _next_number(rows_folder, refusals_folder)
    with console.progress("Reading headers", len(new)) as advance:
        for name, root in study.roots.items():
            mine = new.filter(pl.col("root") == name)
            for start in range(0, len(mine), _PART_ROWS):
                chunk = mine.slice(start, _PART_ROWS)
                rows, refusals = archive.read_headers(chunk, root, name, listing, rules, machine.workers, advance)
                # Refusals first: a part of the index stands only where its refusals do. 0 holds the settled ones.
                storage.write_parquet(refusals, refusals_folder / f"index-{number + 1:05}.parquet")
                storage.write_parquet(rows, rows_folder / f"part-{number:05}.parquet")
                number += 1
    return len(new)


def _settle(study: Study, files: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop rows of files that are gone or changed, resolve identifiers over the whole index, rewrite what differs.

    Rows that share an identifier are set aside, not forgotten: when the other file goes, they come back.
    """
    folder, refusals_folder = study.patient_level / "index", study.patient_level / "refusals"

    def present(frame: pl.DataFrame, among: pl.DataFrame) -> pl.DataFrame:
        return frame.join(among.select(_FILE), on=_FILE, how="semi", nulls_equal=True, maintain_order="left")

    known = present(_rows(folder), files)
    aside = folder / "set_aside.parquet"
    rows, doubled = archive.resolve_duplicates(known, study.roots, storage.read_own(aside) if aside.is_file() else None)
    verdicts = doubled.select(*_FILE, verdict="reason")
    shared = known.filter(pl.col("image_id").is_duplicated())
    # First, so that a row is always in this file or in a part.
    storage.write_parquet(shared.join(verdicts, on=_FILE, how="left", maintain_order="left"), aside)
    returned = rows
    for path in sorted(folder.glob("part-*.parquet")):
        part = storage.read_own(path)
        kept = present(part, rows)
        returned = returned.join(kept.select(_FILE), on=_FILE, how="anti", maintain_order="left")
        if len(kept) < len(part):
            storage.write_parquet(kept, path)
    if len(returned):
        storage.write_parquet(returned, folder / f"part-{_next_number(folder, refusals_folder):05}.parquet")
    lasting = _refusals(refusals_folder).filter(~pl.col("reason").is_in(_SHARED_ID))
    refusals = pl.concat([present(lasting, files), doubled])
    storage.write_parquet(refusals, refusals_folder / "index-00000.parquet")
    for path in refusals_folder.glob("index-*.parquet"):
        if path.name != "index-00000.parquet":
            path.unlink()
    return rows, refusals


def _rows(folder: Path) -> pl.DataFrame:
    """All rows that are known: of the index, and those that share an identifier."""
    paths = [*sorted(folder.glob("part-*.parquet")), *folder.glob("set_aside.parquet")]
    columns = schemas.columns("index")
    found = [storage.read_own(path).select(columns.keys()) for path in paths]
    return pl.concat([pl.DataFrame(schema=columns), *found]).unique(_FILE, maintain_order=True)


def _refusals(folder: Path) -> pl.DataFrame:
    parts = [storage.read_own(path) for path in sorted(folder.glob("index-*.parquet"))]
    return pl.concat([pl.DataFrame(schema=schemas.columns("refusals")), *parts]).unique(_FILE, maintain_order=True)


def _forget_passing_refusals(folder: Path) -> None:
    """Forget refusals that may pass (a file that was away or locked), so that these files are tried again."""
    for path in folder.glob("index-*.parquet"):
        part = storage.read_own(path)
        lasting = part.filter(~pl.col("reason").is_in(archive.PASSING))
        if len(lasting) < len(part):
            storage.write_parquet(lasting, path)


def _next_number(folder: Path, refusals_folder: Path) -> int:
    """The number of the next part; its refusals, written first, have the number after it."""
    parts = [int(path.stem.rsplit("-", 1)[1]) + 1 for path in folder.glob("part-*.parquet")]
    refused = [int(path.stem.rsplit("-", 1)[1]) for path in refusals_folder.glob("index-*.parquet")]
    return max([0, *parts, *refused])


def _counts(frame: pl.DataFrame, console: Console, word: str) -> dict[str, int]:
    counts = dict(frame.group_by("reason").len().sort("reason").iter_rows())
    for reason, count in counts.items():
        console.say(f"{word}: {count:,} {reason}")
    return counts
