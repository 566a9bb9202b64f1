"""Every real file beside the repository: our stored integers are those of pydicom, or a reason says why there are none.

The table of outcomes by transfer syntax: pytest tests/unit/test_real_pixels.py -s
"""

import warnings
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

import imagecodecs
import libjpeg
import numpy as np
import polars as pl
import pydicom
import pytest
from films import BASELINE, EXTENDED, integers, read_headers
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from test_codecs import REALDATA

from cohort_scorer.imaging import codecs
from cohort_scorer.imaging.files import path_of
from cohort_scorer.imaging.index import Rules, find_files
from cohort_scorer.imaging.refusal import Refused

PNG = REALDATA.parent / "png"
RULES = Rules((), (), ("PA", "AP", "LATERAL", "OTHER"), "include")

pytestmark = pytest.mark.skipif(
    not REALDATA.is_dir(), reason="no real films beside the repository (../shared/realdata)"
)


def indexed(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Index every file of a folder as if a listing named it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    listing = pl.DataFrame({"uri": [quote(name) for name in names], "patient_id": [""] * len(names)})
    return read_headers(find_files(folder, listing), folder, "archive", listing, RULES, 1, lambda n: None)


def stored_integers(row: dict, path: Path) -> np.ndarray:
    return integers(row, codecs.decode(row, codecs.read_value(row, path)))


def by_pydicom(path: Path) -> np.ndarray | None:
    """The raw stored integers, with the decoder that pydicom chooses; None where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pixel_array(pydicom.dcmread(path, force=True), raw=True).astype(np.int64)
    except Exception:
        return None


def compared(ours: np.ndarray, theirs: np.ndarray | None) -> str:
    if theirs is None:
        return "read, refused by pydicom"
    if ours.shape != theirs.shape:
        return "of another shape"
    difference = int(np.abs(ours - theirs).max())
    return f"within {difference}" if difference else "equal"


def outcome(row: dict, path: Path) -> str:
    if not row["eligible"]:
        return f"not eligible: {row['reason']}"
    theirs = by_pydicom(path)
    try:
        return compared(stored_integers(row, path), theirs)
    except Refused as refused:
        return f"refused: {refused.reason}" + ("" if theirs is None else ", read by pydicom")


@cache
def outcomes() -> pl.DataFrame:
    """One row per file: file, transfer_syntax, outcome."""
    rows, refusals = indexed(REALDATA)
    found = [
        (unquote(row["uri"]), row["transfer_syntax"], outcome(row, path_of(REALDATA, row["uri"])))
        for row in rows.iter_rows(named=True)
    ]
    found += [(unquote(uri), "", f"no row: {reason}") for uri, reason in refusals.select("uri", "reason").iter_rows()]
    return pl.DataFrame(found, schema=["file", "transfer_syntax", "outcome"], orient="row")


def test_every_file_has_an_outcome_and_the_table_shows_them():
    table = outcomes().group_by("transfer_syntax", "outcome").len().sort("transfer_syntax", "outcome")
    with pl.Config(tbl_rows=-1, fmt_str_lengths=40):
        print(f"\n{table}")
    assert outcomes().height == sum(path.is_file() for path in REALDATA.rglob("*"))


def test_stored_integers_are_those_of_pydicom_but_for_lossy_jpeg_within_one_grey_level():
    found = outcomes().filter(~pl.col("outcome").str.contains("not eligible|no row|refused"))
    assert found.height >= 80
    assert set(found.filter(~pl.col("transfer_syntax").is_in((BASELINE, EXTENDED)))["outcome"]) == {"equal"}
    assert set(found.filter(pl.col("transfer_syntax").is_in((BASELINE, EXTENDED)))["outcome"]) <= {"equal", "within 1"}


def test_where_one_refuses_and_the_other_reads_is_known_by_name():
    found = outcomes().filter(pl.col("outcome").str.contains("refused"))
    by_name = {Path(file).name: outcome for file, outcome in found.select("file", "outcome").iter_rows()}
    assert by_name == {
        # Scans of a sequential process that say they stop at coefficient 0 (below): libjpeg-turbo reads them.
        "JPEG-lossy.dcm": "read, refused by pydicom",
        "RG3_JPLY": "read, refused by pydicom",
        # A sequence delimiter was written over the size of the image: neither reads it.
        "JPEG2000-embedded-sequence-delimiter.dcm": "refused: decode_failed",
    }


def test_files_not_eligible_are_colour_series_other_depths_or_cut():
    reasons = outcomes().filter(pl.col("outcome").str.starts_with("not eligible"))["outcome"].unique()
    kinds = ("no_pixels", "multi_frame", "not_grayscale", "unsupported_pixels", "truncated")
    assert set(reasons) == {f"not eligible: {kind}" for kind in kinds}
    cut = outcomes().filter(pl.col("outcome") == "not eligible: truncated")["file"]
    assert [(Path(file).name, by_pydicom(REALDATA / file)) for file in cut] == [("MR_truncated.dcm", None)]


def test_scans_with_a_wrong_last_coefficient_are_what_libjpeg_reads_once_it_is_mended():
    rows, _ = indexed(REALDATA)
    names = outcomes().filter(pl.col("outcome") == "read, refused by pydicom")["file"]
    for row in rows.filter(pl.col("uri").is_in([quote(name) for name in names])).iter_rows(named=True):
        path = path_of(REALDATA, row["uri"])
        frame = bytearray(get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1))
        frame[frame.index(b"\xff\xda\x00\x08") + 8] = 63  # Se: ISO/IEC 10918-1 table B.3
        theirs = libjpeg.decode(bytes(frame)).clip(0, (1 << row["bits_stored"]) - 1)  # they overshoot by 1 of 1,023
        assert np.abs(stored_integers(row, path) - theirs).max() <= 1


def test_pictures_are_what_another_decoder_and_the_luminance_of_its_colours_make_of_them():
    rows, _ = indexed(PNG)
    pictures = rows.filter("eligible")
    assert pictures.height >= 40
    for row in pictures.iter_rows(named=True):
        path = path_of(PNG, row["uri"])
        decoder = imagecodecs.png_decode if row["file_format"] == "png" else imagecodecs.jpeg8_decode
        theirs = decoder(path.read_bytes()).astype(np.int64)
        if theirs.ndim == 3:
            theirs = (theirs[..., :3] @ (19595, 38470, 7471) + 2**15) >> 16  # ITU-R 601
        assert compared(codecs.decode(row, codecs.read_value(row, path)).astype(np.int64), theirs) == "equal"
