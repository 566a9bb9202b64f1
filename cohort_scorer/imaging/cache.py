"""Images that have been made, kept on disk: training and scoring then decode a film once. Knows no network.

A folder holds the images of one preprocessing_id, and a film in it stands for one state of its file (root, uri, size,
time). Parts come under their final names when they are whole: a run may be stopped at any moment, and several may write
side by side.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from cohort_scorer import provenance, storage
from cohort_scorer.errors import MachineError
from cohort_scorer.imaging import decoding
from cohort_scorer.imaging.radiograph import Radiograph
from cohort_scorer.imaging.refusal import Refused

_PART_BYTES: Final = 32 * 2**20  # held in memory until the part is written
_FILE: Final = ["root", "uri", "file_size", "file_mtime_ns"]
_COLUMNS: Final = {
    "root": pl.String(),
    "uri": pl.String(),
    "file_size": pl.Int64(),
    "file_mtime_ns": pl.Int64(),
    "part": pl.String(),
    "place": pl.Int64(),
    "pixel_sha256": pl.String(),
    "quality": pl.String(),
}

_Film = tuple[int, Radiograph]


def radiographs(
    rows: pl.DataFrame, roots: Mapping[str, Path], size: int, workers: int, folder: Path
) -> Generator[tuple[int, Radiograph | Refused]]:
    """As `decoding.radiographs`, but a film that the folder holds is not decoded, and any other is kept there.

    Args:
        rows: Eligible rows of the index.
        roots: Folder by the name in the column `root`.
        size: Side of the images in pixels.
        workers: Children that decode side by side.
        folder: Of the preprocessing_id; need not exist.

    Raises:
        MachineError: as `decoding.radiographs`, or the folder is damaged.
    """
    numbered = rows.with_row_index("number")
    known = numbered.select("number", *_FILE).join(_held(folder), on=_FILE, how="inner")
    yield from _kept(known, folder)
    new = numbered.join(known, on="number", how="anti", maintain_order="left")
    numbers = new["number"].to_list()
    part: list[_Film] = []
    with closing(decoding.radiographs(new.iter_rows(named=True), roots, size, workers)) as films:
        try:
            for position, film in films:
                if isinstance(film, Radiograph):
                    part.append((position, film))
                    if len(part) * film.image.nbytes >= _PART_BYTES:
                        _keep(part, new, folder)
                        part = []
                yield numbers[position], film
        finally:
            if part:
                _keep(part, new, folder)


def _held(folder: Path) -> pl.DataFrame:
    parts = [storage.read_own(path) for path in sorted(folder.glob("part-*.parquet"))]
    # Two runs side by side may have kept one film each.
    return pl.concat([pl.DataFrame(schema=_COLUMNS), *parts]).unique(_FILE, keep="first", maintain_order=True)


def _kept(known: pl.DataFrame, folder: Path) -> Iterator[_Film]:
    for (part,), films in known.group_by("part", maintain_order=True):
        try:
            images = np.load(folder / f"part-{part}.npy", mmap_mode="r")
        except (OSError, ValueError) as fault:
            raise MachineError(
                f"The kept images in {folder.parent.name}/{folder.name} are damaged.",
                "Expected a .npy beside each .parquet, as an earlier run wrote them; at least one is not.",
                "Remove the folder: its films are then decoded again.",
            ) from fault
        for film in films.iter_rows(named=True):
            image = np.array(images[film["place"]])
            yield film["number"], Radiograph(image, film["pixel_sha256"], json.loads(film["quality"]), 0.0, 0.0)


def _keep(part: Sequence[_Film], rows: pl.DataFrame, folder: Path) -> None:
    files = rows.select(_FILE)[[position for position, _ in part]]
    name = provenance.digest(files.rows())[:16]
    storage.write_array(np.stack([film.image for _, film in part]), folder / f"part-{name}.npy")
    described = files.with_columns(
        pl.lit(name).alias("part"),
        pl.int_range(pl.len()).alias("place"),
        pl.Series("pixel_sha256", [film.pixel_sha256 for _, film in part], pl.String),
        pl.Series("quality", [json.dumps(dict(film.quality)) for _, film in part], pl.String),
    )
    storage.write_parquet(described.select(_COLUMNS.keys()), folder / f"part-{name}.parquet")
