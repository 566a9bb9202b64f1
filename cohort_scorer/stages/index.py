"""index: headers of the archive -> patient_level/index. Opens no file that it knows and no pixel."""

from pathlib import Path

import polars as pl

from cohort_scorer import schemas, storage
from cohort_scorer.errors import EmptyCohortError, MachineError, TooManyRefusedError
from cohort_scorer.imaging import index as archive
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, Machine
from cohort_scorer.study import Study

_PART_ROWS = 5_000
_FILE = ["root", "uri", "file_size", "file_mtime_ns"]


def index(study: Study, machine: Machine, console: Console) -> Path:
    """Bring the index up to date with the archive; new files form new parts."""
    section = study.require("archive")
    step = Step(study, "index")
    folder = study.patient_level / "index"
    if section.index:
        return study.folder / section.index
    listing = None
    if section.listing:
        path = study.folder / section.listing
        listing = schemas.read(path, "listing", study.tables.faulty_rows, study.patient_level)
        step.read(path, section.listing)
    files = _find(study, listing)
    n_opened = _parse_new(study, files, listing, machine, console)
    rows, refusals = _settle(study, files)
    step.facts |= {"n_files": len(files), "n_opened": n_opened, "n_rows": len(rows), "n_refused": len(refusals)}
    step.facts["refusals"] = _counts(refusals, console, "refused")
    step.facts["not_eligible"] = _counts(rows.filter(~pl.col("eligible")), console, "not eligible")
    step.facts["n_eligible"] = rows.filter("eligible").height
    console.say(f"index: {len(files):,} files found, {rows.filter('eligible').height:,} radiographs eligible")
    step.finish()
    claimed = refusals.filter("radiograph").height
    judge_refused(study, claimed, claimed + rows.filter(pl.col("modality").is_in(section.modalities)).height)
    if not rows.filter("eligible").height:
        raise EmptyCohortError(
            f"The archive holds no eligible radiograph: {len(files):,} files found, {len(rows):,} indexed.",
            "Expected frontal chest radiographs as [archive] modalities, body_parts and views describe them.",
            "Look at the counts above, then correct [archive], or give a listing.",
        )
    return folder


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
    known = [
        part.select(_FILE) for part in (storage.read_parts(rows_folder), _refusals(refusals_folder)) if part is not None
    ]
    new = (
        files.join(pl.concat(known), on=_FILE, how="anti", nulls_equal=True, maintain_order="left") if known else files
    )
    number = max((int(path.stem.rsplit("-", 1)[1]) for path in rows_folder.glob("part-*.parquet")), default=-1)
    with console.progress("Reading headers", len(new)) as advance:
        for name, root in study.roots.items():
            mine = new.filter(pl.col("root") == name)
            for start in range(0, len(mine), _PART_ROWS):
                chunk = mine.slice(start, _PART_ROWS)
                rows, refusals = archive.read_headers(chunk, root, name, listing, rules, machine.workers, advance)
                number += 1
                # Refusals first: a part of the index stands only where its refusals do.
                storage.write_parquet(refusals, refusals_folder / f"index-{number:05}.parquet")
                storage.write_parquet(rows, rows_folder / f"part-{number:05}.parquet")
    return len(new)


def _settle(study: Study, files: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop rows of files that are gone or changed, resolve identifiers over the whole index, rewrite what differs."""
    folder = study.patient_level / "index"
    parts = {path: pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))}
    refused = _refusals(study.patient_level / "refusals")
    rows = pl.concat(parts.values()).join(
        files.select(_FILE), on=_FILE, how="semi", nulls_equal=True, maintain_order="left"
    )
    rows, doubled = archive.resolve_duplicates(rows, study.roots)
    for path, part in parts.items():
        kept = part.join(rows.select(_FILE), on=_FILE, how="semi", nulls_equal=True, maintain_order="left")
        if len(kept) < len(part):
            storage.write_parquet(kept, path)
    refusals = pl.concat([part for part in (refused, doubled) if part is not None])
    refusals = refusals.join(files.select(_FILE), on=_FILE, how="semi", nulls_equal=True, maintain_order="left")
    for path in (study.patient_level / "refusals").glob("index-*.parquet"):
        path.unlink()
    storage.write_parquet(refusals, study.patient_level / "refusals" / "index-00000.parquet")
    return rows, refusals


def _refusals(folder: Path) -> pl.DataFrame | None:
    parts = sorted(folder.glob("index-*.parquet"))
    return pl.concat([pl.read_parquet(part) for part in parts]) if parts else None


def _counts(frame: pl.DataFrame, console: Console, word: str) -> dict[str, int]:
    counts = dict(frame.group_by("reason").len().sort("reason").iter_rows())
    for reason, count in counts.items():
        console.say(f"{word}: {count:,} {reason}")
    return counts
