"""What is known of the files of an archive, on disk: parts of the index, rows set aside, refusals. Opens no film.

A part is written once; afterwards rows only leave it. Its rows carry the shard that they were written into, the unit in
which they are scored: a shard that was scored stays scored, however the archive grows. What comes later forms new
parts, and no number is given twice. Every file is known from the moment its part stands, in whatever moment a run ends.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cohort_scorer import schemas, storage
from cohort_scorer.imaging import index

FILE = ["root", "uri", "file_size", "file_mtime_ns"]
"""What tells a file, unchanged, from every other."""

_SHARD_ROWS = 500
_PLACE = ["root", "uri"]
_COLUMNS = [*FILE, "image_id", "modality", "eligible", "reason"]
# Of identifiers the hash: half of what is held would be their text. Whether two are the same is decided by the text.
_BRIEF = [pl.col(*FILE, "modality", "eligible", "reason"), pl.col("image_id").hash()]


class Ledger:
    """The index and the refusals of one study, as far as they tell what is known.

    Args:
        patient_level: The folder that holds `index` and `refusals`.

    Attributes:
        rows: One row per file that became a row, also where it shares an identifier: root, uri, file_size,
            file_mtime_ns, modality, eligible, reason, image_id (its hash), and `part`, the number of the part that it
            stands in, null where it is set aside.
        refusals: Rows in the schema `refusals`, of this and of earlier runs; the last of a file is the one that counts.
    """

    def __init__(self, patient_level: Path) -> None:
        self._folder, self._refusals_folder = patient_level / "index", patient_level / "refusals"
        self._aside = pl.DataFrame(schema=schemas.columns("index") | {"verdict": pl.String()})
        parts = [_brief(storage.read_own(path, _COLUMNS), _number(path)) for path in self._parts()]
        self.rows = pl.concat([_brief(self._aside, None), *parts])
        if self._aside_path.is_file():
            self._aside = storage.read_own(self._aside_path)
            self.rows = self.rows.vstack(_without(_brief(self._aside, None), _among(self.rows, self._aside)))
        refusals = [storage.read_own(path) for path in self._refusal_parts()]
        self.refusals = pl.concat([pl.DataFrame(schema=schemas.columns("refusals")), *refusals])
        self._next = max([0, *(_number(path) + 1 for path in self._parts()), *map(_number, self._refusal_parts())])

    def compare(self, files: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
        """Hold what is known against what is there.

        Args:
            files: All files of the archive, with the columns FILE and `problem`.

        Returns:
            The files to open: those without a problem that are new or changed, and those whose refusal lay in the
            machine or the moment. What is known, in the columns FILE, of files that are gone or changed. And n_new,
            n_changed and n_removed: files that came, have another size or time, or went since the last run.
        """
        before = pl.concat([self.rows.select(FILE), self.refusals.select(FILE)])
        unknown = files.join(before, on=FILE, how="anti", nulls_equal=True, maintain_order="left")
        gone = before.join(files, on=FILE, how="anti", nulls_equal=True)
        n_changed = _among(before, unknown, _PLACE).unique(_PLACE).height
        n_still_there = _among(files, gone, _PLACE).height
        counts = {
            "n_new": len(unknown) - n_changed,
            "n_changed": n_changed,
            "n_removed": gone.unique(_PLACE).height - n_still_there,
        }
        passing = self.refusals.filter(pl.col("reason").is_in(index.PASSING))
        again = _among(files, _without(passing, _among(self.rows, passing)))
        return pl.concat([unknown, again]).filter(pl.col("problem").is_null()), gone, counts

    def add(self, rows: pl.DataFrame, refusals: pl.DataFrame) -> None:
        """Write files that were read as a new part: rows in the schema `index` and `refusals`, at most 99,999."""
        # Refusals first: a part of the index stands only where its refusals do. 0 holds the settled ones.
        if len(refusals):
            storage.write_parquet(refusals, self._refusals_folder / f"index-{self._next + 1:05}.parquet")
            self.refusals = self.refusals.vstack(refusals)
        if len(rows) or not self._next:
            self._add_part(rows)
        self._next += 1

    def settle(
        self, gone: pl.DataFrame, problems: pl.DataFrame, roots: Mapping[str, Path]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Drop what is gone or changed, let every identifier stand for one image, and write what differs.

        Rows that share an identifier are set aside, not forgotten: when the other file goes, they come back.

        Args:
            gone: What `compare` found to be gone.
            problems: Refusals of the files that need not be opened.
            roots: Folder by the name in the column `root`.

        Returns:
            The rows that stay, in the columns of `rows`, and the refusals of all other files.
        """
        self.rows = self.rows.rechunk()
        here = _without(self.rows, gone)
        shared = self._whole(here.filter(pl.col("image_id").is_duplicated()))
        _, doubled = index.resolve_duplicates(shared, roots, self._aside)
        staying = _without(here, doubled)
        # In this order, so that a row is at any moment in a part or set aside.
        returned = staying.filter(pl.col("part").is_null())
        for part in self._whole(returned).iter_slices(index.PART_FILES):
            self._add_part(part)
            self._next += 1
        verdicts = doubled.select(*FILE, verdict="reason")
        shared = shared.join(verdicts, on=FILE, how="left", maintain_order="left")
        _write_changed(shared, self._aside, self._aside_path)
        self._drop_rows(pl.concat([gone, doubled.select(FILE)]))
        lasting = self.refusals.unique(FILE, keep="last", maintain_order=True)
        stale = [gone, problems, _among(here, lasting)]
        lasting = _without(lasting, pl.concat(frame.select(FILE) for frame in stale))
        refusals = pl.concat([problems, lasting, doubled])
        self._settle_refusals(refusals)
        return staying, refusals

    def _add_part(self, rows: pl.DataFrame) -> None:
        number = self._next
        first = pl.int_range(pl.len()) // _SHARD_ROWS * _SHARD_ROWS
        shard = pl.format("{}-{}", pl.lit(f"{number:05}"), first.cast(pl.String).str.zfill(5))
        storage.write_parquet(rows.with_columns(shard=shard), self._part(number))
        self.rows = self.rows.vstack(_brief(rows, number))

    def _drop_rows(self, leaving: pl.DataFrame) -> None:
        """Rewrite the parts that rows leave; one that all leave keeps its number, empty."""
        left = _among(self.rows, leaving)["part"].drop_nulls()
        for number in left.unique().sort():
            part = storage.read_own(self._part(number))
            storage.write_parquet(_without(part, leaving), self._part(number))

    def _settle_refusals(self, refusals: pl.DataFrame) -> None:
        settled = self._refusals_folder / "index-00000.parquet"
        others = [path for path in self._refusal_parts() if path != settled]
        if others or not settled.is_file() or not refusals.equals(self.refusals):
            storage.write_parquet(refusals, settled)
        for path in others:
            path.unlink()

    def _whole(self, wanted: pl.DataFrame) -> pl.DataFrame:
        """The rows, in the schema `index`, of some of `rows`."""
        columns = schemas.columns("index")
        aside = _among(self._aside.select(columns.keys()), wanted)
        wanted = _without(wanted, aside)
        parts = (storage.read_own(self._part(number)) for number in wanted["part"].unique().sort())
        return pl.concat([aside, *(_among(part, wanted) for part in parts)])

    @property
    def _aside_path(self) -> Path:
        return self._folder / "set_aside.parquet"

    def _part(self, number: int) -> Path:
        return self._folder / f"part-{number:05}.parquet"

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))

    def _refusal_parts(self) -> list[Path]:
        return sorted(self._refusals_folder.glob("index-*.parquet"))


def take_up(patient_level: Path, made: dict[str, Any], rules: index.Rules) -> Ledger:
    """Take up a study's ledger as it would be, had it always been made as it is made now.

    Args:
        patient_level: The folder that holds `index` and `refusals`.
        made: What the rows depend on, for index/archive.json. `reader`: a hash of all but the rules; where it is
            another, nothing is known any more. `rules`: a hash of the rules; where it is another, the rows are judged
            again, and no file is opened. `roots` and `listed`: what a study must know that adopts this index.
        rules: What the study wants.
    """
    folder = patient_level / "index"
    noted = folder / "archive.json"
    earlier = json.loads(noted.read_text(encoding="utf-8")) if noted.is_file() else {}
    if earlier.get("reader") != made["reader"]:
        _forget(patient_level)
    elif earlier["rules"] != made["rules"]:
        # Until all rows are judged, they follow no rules.
        storage.write_text(json.dumps(earlier | {"rules": ""}) + "\n", noted)
        for path in [*folder.glob("part-*.parquet"), *folder.glob("set_aside.parquet")]:
            rows = storage.read_own(path)
            _write_changed(index.judge_again(rows, rules, made["listed"]), rows, path)
    if earlier != made:
        storage.write_text(json.dumps(made) + "\n", noted)
    return Ledger(patient_level)


def _forget(patient_level: Path) -> None:
    """Remove everything but the last part, which stays, empty, so that its number is not given again."""
    folder = patient_level / "index"
    parts = sorted(folder.glob("part-*.parquet"))
    refusals = (patient_level / "refusals").glob("index-*.parquet")
    for path in [*refusals, *folder.glob("set_aside.parquet"), *parts[:-1]]:
        path.unlink()
    for path in parts[-1:]:
        storage.write_parquet(pl.DataFrame(schema=schemas.columns("index")), path)


def _brief(rows: pl.DataFrame, part: int | None) -> pl.DataFrame:
    return rows.select(*_BRIEF, part=pl.lit(part, pl.Int64))


def _number(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def _among(frame: pl.DataFrame, others: pl.DataFrame, key: list[str] = FILE) -> pl.DataFrame:
    if others.is_empty():
        return frame.clear()
    return frame.join(others, on=key, how="semi", nulls_equal=True, maintain_order="left")


def _without(frame: pl.DataFrame, leaving: pl.DataFrame) -> pl.DataFrame:
    if leaving.is_empty():
        return frame
    return frame.join(leaving, on=FILE, how="anti", nulls_equal=True, maintain_order="left")


def _write_changed(frame: pl.DataFrame, before: pl.DataFrame, path: Path) -> None:
    if not frame.equals(before):
        storage.write_parquet(frame, path)
