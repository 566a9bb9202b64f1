"""Stored pixels: every syntax gives the same integers, and a broken stream gives a reason."""

import hashlib
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import polars as pl
import pytest
from films import (
    BASELINE,
    BIG_ENDIAN,
    DEFLATED,
    ENCAPSULATED_LOSSLESS,
    EXPLICIT,
    EXTENDED,
    HTJ2K,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LS,
    JPEG_LS_NEAR,
    LOSSLESS_SV1,
    NATIVE,
    RLE,
    film,
    read_headers,
    write_film,
)

from cohort_scorer import schemas
from cohort_scorer.imaging import codecs
from cohort_scorer.imaging.files import path_of
from cohort_scorer.imaging.index import Rules, find_files
from cohort_scorer.imaging.refusal import Refused

EVERYTHING = Rules(("CR", "DX", "RG", "CT", "MR", "OT"), ("CHEST", ""), ("PA", "AP"), "include")
REALDATA = Path(__file__).parents[3] / "shared" / "realdata" / "dicom"


def index_of(folder: Path) -> pl.DataFrame:
    rows, _ = read_headers(find_files(folder, None), folder, "archive", None, EVERYTHING, 1, lambda n: None)
    return rows


def decoded(path: Path) -> np.ndarray:
    row = index_of(path.parent).filter(pl.col("uri") == path.name).row(0, named=True)
    return codecs.decode(row, codecs.read_value(row, path))


def refusal(path: Path) -> str:
    try:
        decoded(path)
    except Refused as refused:
        return refused.reason
    return "read"


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", NATIVE + ENCAPSULATED_LOSSLESS)
def test_lossless_syntaxes_return_the_stored_integers(tmp_path, syntax, bits):
    pixels = film(bits=bits)
    assert np.array_equal(decoded(write_film(tmp_path / "a", pixels, syntax, BitsStored=bits)), pixels)


@pytest.mark.parametrize(
    ("syntax", "bits", "tolerance"),
    [(BASELINE, 8, 8), (EXTENDED, 12, 60), (JPEG_LS_NEAR, 12, 2), (JPEG_2000, 12, 60)],
)
def test_lossy_syntaxes_stay_near(tmp_path, syntax, bits, tolerance):
    pixels = film(bits=bits)
    found = decoded(write_film(tmp_path / "a", pixels, syntax, BitsStored=bits)).astype(int)
    assert np.abs(found - pixels).max() <= tolerance


def test_odd_sized_8_bit_big_endian_words_are_swapped_back(tmp_path):
    pixels = film(31, 22, bits=8)
    path = write_film(tmp_path / "a", pixels, BIG_ENDIAN, BitsStored=8)
    content = path.read_bytes()
    start = content.index(b"OB", len(content) - pixels.nbytes - 12)
    words = np.frombuffer(pixels.tobytes(), "<u2").byteswap().tobytes()
    path.write_bytes(content[:start] + b"OW" + content[start + 2 : start + 8] + words)
    assert np.array_equal(decoded(path), pixels)


@pytest.mark.parametrize("syntax", NATIVE + ENCAPSULATED_LOSSLESS + (BASELINE, EXTENDED, JPEG_2000))
def test_a_film_cut_in_half_is_never_an_image(tmp_path, syntax):
    bits = 8 if syntax == BASELINE else 12
    path = write_film(tmp_path / "a", film(bits=bits), syntax)
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    rows = index_of(tmp_path)
    assert rows.is_empty() or not rows["eligible"][0] or refusal(path) in ("truncated", "decode_failed")


@pytest.mark.parametrize("syntax", ENCAPSULATED_LOSSLESS)
def test_a_stream_of_another_size_than_the_header_is_refused(tmp_path, syntax):
    path = write_film(tmp_path / "a", film(60, 50), syntax, Rows=61)
    assert refusal(path) == ("decode_failed" if syntax == RLE else "shape_mismatch")


@pytest.mark.parametrize("syntax", [EXPLICIT, *ENCAPSULATED_LOSSLESS, EXTENDED, JPEG_2000])
def test_mutated_films_end_as_pixels_or_as_a_reason(tmp_path, syntax):
    source = write_film(tmp_path / "a", film(40, 40), syntax).read_bytes()
    generator = np.random.default_rng(7)
    reasons = schemas.vocabulary("refusals", "reason")
    for _ in range(25):
        content = np.frombuffer(source, np.uint8).copy()
        places = generator.integers(len(source) // 3, len(source), 4)
        content[places] = generator.integers(0, 256, 4)
        (tmp_path / "a").write_bytes(content.tobytes())
        rows = index_of(tmp_path)
        if rows.height and rows["eligible"][0]:
            assert refusal(tmp_path / "a") in ("read", *reasons)


def test_a_file_that_changed_since_it_was_indexed_is_refused(tmp_path):
    path = write_film(tmp_path / "a", film())
    row = index_of(tmp_path).row(0, named=True)
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(Refused, match="changed_file"):
        codecs.decode(row, codecs.read_value(row, path))
    path.unlink()
    with pytest.raises(Refused, match="missing_file"):
        codecs.decode(row, codecs.read_value(row, path))


def test_a_high_throughput_stream_is_not_decoded_under_another_name(tmp_path):
    path = write_film(tmp_path / "a", film(), HTJ2K)
    path.write_bytes(path.read_bytes().replace(HTJ2K.encode() + b"\0", JPEG_2000_LOSSLESS.encode() + b"\0\0", 1))
    assert refusal(path) == "decode_failed"


def test_supported_syntaxes_are_those_of_the_table():
    assert len(codecs.SUPPORTED) == 13
    for syntax in (DEFLATED, RLE, LOSSLESS_SV1, JPEG_LS, JPEG_2000_LOSSLESS):
        assert syntax in codecs.SUPPORTED


@pytest.mark.skipif(not REALDATA.is_dir(), reason="no real films beside the repository (../shared/realdata)")
def test_real_films_equal_what_the_manifests_decoders_found():
    """MANIFEST.csv holds the SHA-256 of the array that pydicom and its plugins gave for each file."""
    manifest = pl.read_csv(REALDATA / "MANIFEST.csv", infer_schema=False)
    known = {row["file"]: row for row in manifest.iter_rows(named=True) if row["array_sha256"]}
    n_equal, differing = 0, []
    listing = pl.DataFrame({"uri": [quote(name) for name in known], "patient_id": [""] * len(known)})
    rules = Rules((), (), ("PA", "AP", "LATERAL", "OTHER"), "include")
    found = find_files(REALDATA, listing)
    rows, _ = read_headers(found, REALDATA, "archive", listing, rules, 1, lambda n: None)
    for row in rows.filter("eligible").iter_rows(named=True):
        name = unquote(row["uri"])
        values = codecs.decode(row, codecs.read_value(row, path_of(REALDATA, row["uri"]))).astype(np.int64)
        bits = row["bits_stored"]
        values &= (1 << bits) - 1
        if row["pixel_representation"] == 1:
            values -= (values >> (bits - 1)) << bits
        array = values.astype(known[name]["array_dtype"])
        equal = hashlib.sha256(array.tobytes()).hexdigest() == known[name]["array_sha256"]
        n_equal += equal
        if not equal:
            differing.append(row["transfer_syntax"])
    assert n_equal >= 80
    assert set(differing) <= {EXTENDED}  # 12-bit lossy: decoders differ in how they round
