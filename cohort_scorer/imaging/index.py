"""Files -> index rows and refusals, every file in exactly one of them. Decodes no pixel but of colliding identifiers.

A file is refused when it cannot become a row (nobody knows what it is, or which of two it is); a row that a study does
not want, or that no decoder here reads, stays in the index, not eligible, with the first reason that applies.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.imaging import codecs, data_set, decoding, reading
from cohort_scorer.imaging.files import find_files, path_of
from cohort_scorer.imaging.refusal import Refused

__all__ = ["Rules", "find_files", "judge_again", "read_headers", "refuse_problems", "resolve_duplicates"]

VERSION: Final = 3
"""Raised when the same file gives another index row or refusal: older rows are then made again."""

PASSING: Final = ("missing_file", "unreadable_file", "changed_file")
"""Reasons that lie in the machine or the moment: such files are tried again."""

PART_FILES: Final = 2_000
"""At most so many rows make one part of the index."""

_BATCH_FILES: Final = 500
_PROBLEMS: Final = {
    "outside_root": "the name leads out of the archive",
    "missing_file": "no such file",
    "unreadable_file": "the file system refuses it",
    "not_a_file": "neither a file nor a folder",
    "listed_twice": "the listing names it more than once",
}
_SHARED = {
    "duplicate": "{} files share an image_id, with the same pixels",
    "conflicting_id": "{} files share an image_id, with different pixels or patients",
    "unreadable_file": "{} files share an image_id, and one of them could not be read to compare their pixels",
}
_DECODED_SIDE_BY_SIDE = 2  # of the few files that share an identifier
_FILE = ("root", "uri", "file_size", "file_mtime_ns")
_LISTED = ("patient_id", "study_id", "study_date", "view", "site")

# What stored bytes look like depends on these columns.
_APPEARANCE = (
    "transfer_syntax",
    "rows",
    "columns",
    "bits_stored",
    "high_bit",
    "pixel_representation",
    "samples_per_pixel",
    "photometric_interpretation",
    "presentation_lut_shape",
    "rescale_slope",
)

_Facts = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """What a study wants of an archive: [archive] of study.toml.

    Attributes:
        modalities: DICOM Modality values.
        body_parts: BodyPartExamined values, in any case; an empty one admits films that do not say.
        views: Views wanted: PA, AP, LATERAL.
        unknown_view: `include` or `exclude` films whose view nobody states.
    """

    modalities: tuple[str, ...]
    body_parts: tuple[str, ...]
    views: tuple[str, ...]
    unknown_view: str


def read_headers(
    files: pl.DataFrame,
    roots: Mapping[str, Path],
    listing: pl.DataFrame | None,
    rules: Rules,
    workers: int,
    advance: Callable[[int], None],
) -> Generator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Read the headers of files, 2,000 at a time; no more than that is held, however many there are.

    Args:
        files: Rows of `find_files` without a problem, with the column `root`.
        roots: Folder by the name in the column `root`.
        listing: The listing that `find_files` had. What it states stands above the header.
        rules: What the study wants.
        workers: Processes, used where there are more than 1,000 files.
        advance: Called with the number of files done since the last call.

    Yields:
        Rows in the schema `index` (without `shard`, which a row gets when it is written) and rows in the schema
        `refusals`, both in the order of `files`; together as many as files.

    Raises:
        MachineError: a process was killed from outside.
    """
    stated = [name for name in _LISTED if listing is not None and name in listing.columns]
    if listing is not None:
        known = listing.select("uri", *stated)
        files = files.join(known, left_on="listed_uri", right_on="uri", how="left", maintain_order="left")
    paths = (str(path_of(roots[root], uri)) for root, uri in files.select("root", "uri").iter_rows())
    with closing(reading.read_all(paths, len(files), listing is not None, workers)) as outcomes:
        for part in files.iter_slices(PART_FILES):
            rows, refusals = [], []
            for batch in part.iter_slices(_BATCH_FILES):
                made, refused = _batch(batch, outcomes, stated if listing is not None else None, rules)
                rows.append(made)
                refusals.append(refused)
                advance(len(batch))
            yield pl.concat(rows), pl.concat(refusals)


def refuse_problems(files: pl.DataFrame, listed: bool) -> pl.DataFrame:
    """Refuse the files that need not be opened to know that they are no films.

    Args:
        files: Rows of `find_files`, with the column `root`.
        listed: A listing names them.

    Returns:
        One row in the schema `refusals` for each file with a problem, in their order.
    """
    refused = files.filter(pl.col("problem").is_not_null()).select(
        *_FILE,
        step=pl.lit("index"),
        reason="problem",
        detail=pl.col("problem").replace_strict(_PROBLEMS, return_dtype=pl.String),
        radiograph=pl.lit(listed),
    )
    return schemas.conform(refused, "refusals")


def judge_again(rows: pl.DataFrame, rules: Rules, listed: bool) -> pl.DataFrame:
    """Judge the rows of an index by other rules than those that it was made with.

    Args:
        rows: Rows in the schema `index`.
        rules: What the study wants.
        listed: A listing names these files.

    Returns:
        The same rows with `eligible` and `reason` by these rules.
    """
    reasons = [_reason(facts, rules, listed) for facts in rows.iter_rows(named=True)]
    return rows.with_columns(pl.Series("reason", reasons, pl.String)).with_columns(eligible=pl.col("reason").is_null())


def resolve_duplicates(
    rows: pl.DataFrame, roots: Mapping[str, Path], settled: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Let every image_id stand for one image.

    Where one image_id has one patient and the same pixels in every file (the same stored bytes under the same
    description, or, in lossless syntaxes, the same displayed values), the smallest uri stays and the others are
    refused as `duplicate`; where patients or pixels differ, all are refused as `conflicting_id`, for nobody knows
    which of them the identifier means. Where pixels cannot be read at the moment, all are refused as
    `unreadable_file`: nothing is known of them.

    Args:
        rows: Rows in the schema `index`, of all parts and roots.
        roots: Folder by the name in the column `root`.
        settled: Rows that shared an image_id before, with their `verdict` (null: it stayed): files that share one
            with the same others as then are not opened again, unless they could not be read.

    Returns:
        The rows that stay, in their order, and rows in the schema `refusals`.
    """
    earlier = _earlier_verdicts(settled)
    refusals: list[_Facts] = []
    repeated = rows.filter(pl.col("image_id").is_duplicated()).sort("image_id", "uri", "root")
    for (image_id,), group in repeated.group_by("image_id", maintain_order=True):
        films = group.to_dicts()
        files = group.select(_FILE).rows()
        known = earlier.get(str(image_id), {})
        verdicts = [known[file] for file in files] if known.keys() == set(files) else _verdicts(films, roots)
        refusals += [
            _refusal(film, verdict, _SHARED[verdict].format(len(films)), film["reason"] != "modality")
            for film, verdict in zip(films, verdicts, strict=True)
            if verdict is not None
        ]
    refused = pl.DataFrame(refusals, schema=schemas.columns("refusals"))
    return rows.join(refused, on=("root", "uri"), how="anti", maintain_order="left"), refused


def _earlier_verdicts(settled: pl.DataFrame | None) -> dict[str, dict[tuple[Any, ...], str | None]]:
    found: dict[str, dict[tuple[Any, ...], str | None]] = {}
    if settled is not None:
        lasting = settled.filter(~pl.col("verdict").is_in(PASSING) | pl.col("verdict").is_null())
        for image_id, verdict, *file in lasting.select("image_id", "verdict", *_FILE).iter_rows():
            found.setdefault(image_id, {})[tuple(file)] = verdict
    return found


def _verdicts(films: list[_Facts], roots: Mapping[str, Path]) -> list[str | None]:
    """Why each of the films that share an image_id is refused, or None for the one that stays."""
    if len({film["patient_id"] for film in films}) > 1:
        return ["conflicting_id"] * len(films)
    try:
        same = _same_pixels(films, roots)
    except Refused:
        return ["unreadable_file"] * len(films)
    return [None, *["duplicate"] * (len(films) - 1)] if same else ["conflicting_id"] * len(films)


def _refusal(place: Mapping[str, Any], reason: str, detail: str, radiograph: bool) -> _Facts:
    kept = {name: place[name] for name in ("uri", "root", "file_size", "file_mtime_ns")}
    return kept | {"step": "index", "reason": reason, "detail": detail, "radiograph": radiograph}


def _batch(
    files: pl.DataFrame, outcomes: Iterator[reading.Outcome], stated: list[str] | None, rules: Rules
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows and refusals of the next files; `stated` are the columns of a listing, None without one."""
    rows: list[_Facts] = []
    refusals: list[_Facts] = []
    for file, (facts, reason, detail) in zip(files.iter_rows(named=True), outcomes, strict=False):
        if facts is None:
            refusals.append(_refusal(file, reason, detail, stated is not None))
        else:
            place = {name: file[name] for name in _FILE}
            listed = None if stated is None else {name: file[name] for name in stated}
            rows.append(_judged(facts | place, listed, rules))
    return (
        pl.DataFrame(rows, schema=schemas.columns("index")),
        pl.DataFrame(refusals, schema=schemas.columns("refusals")),
    )


def _judged(facts: _Facts, stated: _Facts | None, rules: Rules) -> _Facts:
    """Lay the listing's facts over the header's, and decide eligibility."""
    if stated is not None:
        if stated.get("view") is not None:
            conflict = facts["view_conflict"] or facts["view"] not in ("UNKNOWN", stated["view"])
            facts |= {"view_source": "listing", "view_conflict": conflict}
        facts |= {name: value for name, value in stated.items() if value is not None}
    reason = _reason(facts, rules, stated is not None)
    return facts | {"eligible": reason is None, "reason": reason}


def _reason(facts: _Facts, rules: Rules, listed: bool) -> str | None:
    unwanted = None if listed else _unwanted(facts, rules)
    return unwanted or _view_unwanted(facts, rules) or _undecodable(facts)


def _unwanted(facts: _Facts, rules: Rules) -> str | None:
    if facts["modality"] not in rules.modalities:
        return "modality"
    if (facts["body_part_examined"] or "").upper() not in {part.upper() for part in rules.body_parts}:
        return "body_part"
    return None


def _view_unwanted(facts: _Facts, rules: Rules) -> str | None:
    if facts["view"] == "UNKNOWN":
        return None if rules.unknown_view == "include" else "unknown_view"
    return None if facts["view"] in rules.views else "view"


def _undecodable(facts: _Facts) -> str | None:
    is_dicom = facts["file_format"] == "dicom"
    tests: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("no_pixels", lambda: facts["pixel_data_offset"] is None),
        ("multi_frame", lambda: (facts["number_of_frames"] or 1) > 1),
        ("not_grayscale", lambda: is_dicom and not _is_grayscale(facts)),
        ("unsupported_pixels", lambda: not _has_known_pixels(facts)),
        ("unsupported_transfer_syntax", lambda: is_dicom and not _has_known_syntax(facts)),
        ("too_large", lambda: facts["rows"] * facts["columns"] > codecs.MAXIMUM_PIXELS),
        ("truncated", lambda: is_dicom and not _is_whole(facts)),
    )
    return next((reason for reason, applies in tests if applies()), None)


def _is_grayscale(facts: _Facts) -> bool:
    photometric: str | None = facts["photometric_interpretation"]
    return photometric in ("MONOCHROME1", "MONOCHROME2") and facts["samples_per_pixel"] in (None, 1)


def _has_known_pixels(facts: _Facts) -> bool:
    allocated, stored, high_bit = facts["bits_allocated"], facts["bits_stored"], facts["high_bit"]
    return (
        (facts["rows"] or 0) > 0
        and (facts["columns"] or 0) > 0
        and allocated in (8, 16)
        and stored is not None
        and 1 <= stored <= allocated
        and high_bit is not None
        and stored - 1 <= high_bit < allocated
        and facts["pixel_representation"] in (0, 1)
    )


def _has_known_syntax(facts: _Facts) -> bool:
    encapsulated: bool = facts["encapsulated"]
    return facts["transfer_syntax"] in codecs.SUPPORTED - (data_set.NATIVE if encapsulated else codecs.ENCAPSULATED)


def _is_whole(facts: _Facts) -> bool:
    """Whether the file can hold the pixels it declares; an inflated or encapsulated value is checked when decoded."""
    if facts["encapsulated"]:
        return True
    needed: int = facts["rows"] * facts["columns"] * codecs.bytes_per_pixel(facts)
    is_deflated = facts["transfer_syntax"] == data_set.DEFLATED
    here: int = needed if is_deflated else facts["file_size"] - facts["pixel_data_offset"]
    declared: int = facts["pixel_data_length"]
    return needed <= min(declared, here)


def _same_pixels(films: list[_Facts], roots: Mapping[str, Path]) -> bool:
    """Compare films: what is stored, else what it decodes to.

    Raises:
        Refused: one cannot be read at the moment, for a reason of PASSING.
    """
    if _one_value(_stored_fingerprint(film, roots[film["root"]]) for film in films):
        return True
    if any(_undecodable(film) is not None for film in films):
        return False
    return _one_value(fingerprint for _, fingerprint in decoding.fingerprints(films, roots, _DECODED_SIDE_BY_SIDE))


def _one_value(fingerprints: Iterable[str | Refused]) -> bool:
    found = list(fingerprints)
    for fingerprint in found:
        if isinstance(fingerprint, Refused) and fingerprint.reason in PASSING:
            raise fingerprint
    return len(set(found)) == 1 and isinstance(found[0], str)


def _stored_fingerprint(film: _Facts, root: Path) -> str | Refused:
    try:
        value = codecs.value_sha256(film, path_of(root, film["uri"]))
    except Refused as refused:
        return refused
    return f"{value} {[film[name] for name in _APPEARANCE]}"
