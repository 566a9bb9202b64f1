"""Stored pixels: every syntax gives the same integers, and a broken stream gives a reason, never an image."""

import contextlib
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import jpeg_ls
import numpy as np
import polars as pl
import pydicom
import pytest
from films import (
    BASELINE,
    BIG_ENDIAN,
    DEFLATED,
    ENCAPSULATED_LOSSLESS,
    EXPLICIT,
    EXTENDED,
    HIGH_THROUGHPUT,
    HTJ2K,
    HTJ2K_LOSSY,
    HTJ2K_RPCL,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LS,
    JPEG_LS_NEAR,
    LOSSLESS,
    LOSSLESS_SV1,
    NATIVE,
    RLE,
    film,
    integers,
    read_headers,
    signed_film,
    stream,
    write_film,
)
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array

from cohort_scorer import schemas
from cohort_scorer.imaging import codecs
from cohort_scorer.imaging.index import Rules, find_files
from cohort_scorer.imaging.refusal import Refused

EVERYTHING = Rules(("CR", "DX", "RG", "CT", "MR", "OT"), ("CHEST", ""), ("PA", "AP"), "include")
REALDATA = Path(__file__).parents[3] / "shared" / "realdata" / "dicom"
COMPRESSED_LOSSLESS = (*ENCAPSULATED_LOSSLESS, HTJ2K, HTJ2K_RPCL)
LOSSY = (BASELINE, EXTENDED, JPEG_LS_NEAR, JPEG_2000, HTJ2K_LOSSY)
WITH_DIMENSIONS = tuple(syntax for syntax in COMPRESSED_LOSSLESS if syntax != RLE)
END = b"\xff\xd9"
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"


def index_of(folder: Path) -> pl.DataFrame:
    rows, _ = read_headers(find_files(folder, None), folder, "archive", None, EVERYTHING, 1, lambda n: None)
    return rows


def row_of(path: Path) -> dict:
    return index_of(path.parent).filter(pl.col("uri") == path.name).row(0, named=True)


def decoded(path: Path) -> np.ndarray:
    row = row_of(path)
    return codecs.decode(row, codecs.read_value(row, path))


def stored(path: Path) -> np.ndarray:
    return integers(row_of(path), decoded(path))


def refusal(path: Path) -> str:
    try:
        decoded(path)
    except Refused as refused:
        return refused.reason
    return "read"


def outcome(row: dict, frame: bytes, whole: np.ndarray) -> str:
    """What becomes of a frame under the header of a row: equal to `whole`, wrong, or a reason."""
    value = np.frombuffer(bytearray(encapsulate([frame]) + DELIMITER), np.uint8)
    try:
        return "equal" if np.array_equal(codecs.decode(row, value), whole) else "wrong"
    except Refused as refused:
        return refused.reason


@pytest.mark.parametrize("shape", [(60, 50), (31, 23)])
@pytest.mark.parametrize("make", [film, signed_film])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED_LOSSLESS)
def test_lossless_syntaxes_return_the_stored_integers(tmp_path, syntax, bits, make, shape):
    pixels = make(*shape, bits=bits)
    assert np.array_equal(stored(write_film(tmp_path / "a", pixels, syntax, BitsStored=bits)), pixels)


@pytest.mark.parametrize("make", [film, signed_film])
@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED_LOSSLESS + (JPEG_2000, HTJ2K_LOSSY, JPEG_LS_NEAR))
def test_stored_integers_are_those_of_pydicom(tmp_path, syntax, make):
    path = write_film(tmp_path / "a", make(), syntax)
    theirs = integers(row_of(path), pixel_array(pydicom.dcmread(path), raw=True))
    assert np.abs(stored(path) - theirs).max() <= (syntax == HTJ2K_LOSSY)  # floating point, rounded by two decoders


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("syntax", COMPRESSED_LOSSLESS)
def test_one_row_or_column_is_a_film_too(tmp_path, syntax, shape):
    pixels = film(*shape)
    assert np.array_equal(stored(write_film(tmp_path / "a", pixels, syntax)), pixels)


@pytest.mark.parametrize(
    ("syntax", "bits", "tolerance"),
    [(BASELINE, 8, 8), (EXTENDED, 12, 60), (JPEG_LS_NEAR, 12, 2), (JPEG_2000, 12, 60), (HTJ2K_LOSSY, 12, 60)],
)
def test_lossy_syntaxes_stay_near(tmp_path, syntax, bits, tolerance):
    pixels = film(bits=bits)
    assert np.abs(stored(write_film(tmp_path / "a", pixels, syntax, BitsStored=bits)) - pixels).max() <= tolerance


def test_white_that_a_lossy_stream_overshoots_stays_white(tmp_path):
    pixels = np.where(np.indices((64, 64)).sum(0) // 5 % 2, 1023, 0).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(pixels, level=30, bitspersample=12)
    found = imagecodecs.jpeg8_decode(frame)
    assert found.max() > 1023
    path = write_film(tmp_path / "a", pixels, EXTENDED, BitsStored=10, frame=frame)
    assert np.array_equal(stored(path), found.clip(0, 1023))


@pytest.mark.parametrize("syntax", [LOSSLESS, LOSSLESS_SV1, JPEG_LS, JPEG_2000_LOSSLESS, HTJ2K])
@pytest.mark.parametrize("make", [film, signed_film])
def test_8_bits_in_16_allocated_are_the_same_integers(tmp_path, syntax, make):
    pixels = make(bits=8)
    path = write_film(tmp_path / "a", pixels, syntax, BitsAllocated=16, BitsStored=8)
    assert decoded(path).dtype == np.uint16
    assert np.array_equal(stored(path), pixels)


@pytest.mark.parametrize(
    ("syntax", "make", "stream_is_signed"),
    [(JPEG_2000_LOSSLESS, signed_film, False), (JPEG_2000_LOSSLESS, film, True), (JPEG_LS, signed_film, False)],
)
def test_the_header_says_what_is_signed_and_the_stream_where_the_sign_stands(tmp_path, syntax, make, stream_is_signed):
    low_bits = make() & 0xFFF
    words = (low_bits.astype(np.int16) << 4 >> 4) if stream_is_signed else low_bits.astype(np.uint16)
    frame = (
        jpeg_ls.encode_buffer(words.tobytes(), *words.shape, 1, 12) if syntax == JPEG_LS else stream(words, syntax, 12)
    )
    path = write_film(tmp_path / "a", make(), syntax, BitsStored=16, frame=bytes(frame))
    assert np.array_equal(stored(path), pixel_array(path, raw=True))
    assert np.array_equal(stored(path), make())


def test_odd_sized_8_bit_big_endian_words_are_swapped_back(tmp_path):
    pixels = film(31, 22, bits=8)
    path = write_film(tmp_path / "a", pixels, BIG_ENDIAN, BitsStored=8)
    content = path.read_bytes()
    start = content.index(b"OB", len(content) - pixels.nbytes - 12)
    words = np.frombuffer(pixels.tobytes(), "<u2").byteswap().tobytes()
    path.write_bytes(content[:start] + b"OW" + content[start + 2 : start + 8] + words)
    assert np.array_equal(decoded(path), pixels)


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("fragments", [1, 2, 7])
@pytest.mark.parametrize("syntax", COMPRESSED_LOSSLESS)
def test_fragments_are_one_frame_with_an_offset_table_and_without(tmp_path, syntax, fragments, has_table):
    path = write_film(tmp_path / "a", film(), syntax, fragments=fragments, has_table=has_table)
    assert np.array_equal(stored(path), film())


def test_an_extended_offset_table_changes_nothing(tmp_path):
    length = len(stream(film(), JPEG_LS, 12))
    table, lengths = struct.pack("<Q", 0), struct.pack("<Q", length)
    attributes = {"ExtendedOffsetTable": table, "ExtendedOffsetTableLengths": lengths}
    path = write_film(tmp_path / "a", film(), JPEG_LS, has_table=False, **attributes)
    assert np.array_equal(stored(path), film())
    assert np.array_equal(pixel_array(path), film())


@pytest.mark.parametrize("syntax", COMPRESSED_LOSSLESS)
def test_the_sequence_delimiter_must_stand_at_the_end_though_not_its_length_as_in_pydicom(tmp_path, syntax):
    path = write_film(tmp_path / "a", film(), syntax)
    content = path.read_bytes()
    assert content.endswith(DELIMITER)
    path.write_bytes(content[:-4])
    assert np.array_equal(stored(path), film())
    assert np.array_equal(pydicom.dcmread(path).pixel_array, film())
    path.write_bytes(content[:-8])
    assert refusal(path) == "truncated"
    with pytest.raises(AttributeError):
        _ = pydicom.dcmread(path).pixel_array


@pytest.mark.parametrize("syntax", NATIVE + COMPRESSED_LOSSLESS + LOSSY)
def test_a_film_cut_anywhere_is_never_another_image(tmp_path, syntax):
    bits = 8 if syntax == BASELINE else 12
    path = write_film(tmp_path / "a", film(31, 23, bits=bits), syntax)
    whole, content = decoded(path), path.read_bytes()
    for length in (*np.linspace(len(content) // 3, len(content) - 20, 30, dtype=int), *range(-20, 0)):
        path.write_bytes(content[:length])
        rows = index_of(tmp_path)
        if rows.height and rows["eligible"][0]:
            reason = refusal(path)
            assert reason == "truncated" or np.array_equal(decoded(path), whole)


@pytest.mark.parametrize(
    ("syntax", "ending"),
    [(RLE, b""), *((syntax, ending) for syntax in WITH_DIMENSIONS + LOSSY for ending in (b"", END))],
)
def test_a_cut_stream_is_no_image_even_where_somebody_closed_it(tmp_path, syntax, ending):
    bits = 8 if syntax == BASELINE else 12
    pixels = film(bits=bits)
    path = write_film(tmp_path / "a", pixels, syntax)
    row, whole, frame = row_of(path), decoded(path), stream(pixels, syntax, bits)
    after_escapes = [place for place in range(200, len(frame)) if frame[place - 1] == 0xFF]
    places = {*range(1, len(frame) - 80, 61), *after_escapes, *range(len(frame) - 80, len(frame))}
    if syntax in (JPEG_LS, JPEG_LS_NEAR):
        places -= {len(frame) - 3}  # the decoder does not miss one byte before the end marker: jpeg.decode_ls
    found = {place: outcome(row, frame[:place] + ending, whole) for place in places}
    assert set(found.values()) <= {"equal", "truncated", "decode_failed", "shape_mismatch"}
    assert all(place >= len(frame) - 3 for place, what in found.items() if what == "equal")


def test_a_closed_baseline_stream_with_restarts_is_no_image(tmp_path):
    pixels = film(64, 64, bits=8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, restart_marker_blocks=5)
    path = write_film(tmp_path / "a", pixels, BASELINE, frame=file.getvalue())
    row, whole = row_of(path), decoded(path)
    for place in range(700, len(file.getvalue()) - 3, 7):
        assert outcome(row, file.getvalue()[:place] + END, whole) in ("truncated", "decode_failed")


@pytest.mark.parametrize("syntax", [JPEG_2000_LOSSLESS, HTJ2K])
def test_a_last_tile_part_without_a_length_can_not_hide_a_cut(tmp_path, syntax):
    path = write_film(tmp_path / "a", film(), syntax)
    frame = bytearray(stream(film(), syntax, 12))
    start = frame.index(b"\xff\x90\0\x0a")
    frame[start + 6 : start + 10] = bytes(4)  # Psot: until the end marker
    row, whole = row_of(path), decoded(path)
    assert outcome(row, frame, whole) == ("truncated" if syntax == HTJ2K else "equal")
    for place in range(start + 14, len(frame) - 3, 11):
        assert outcome(row, frame[:place] + END, whole) in ("truncated", "decode_failed")


@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"tilepart": 1}])
def test_tiles_and_their_parts_must_all_be_there(tmp_path, layout):
    frame = imagecodecs.htj2k_encode(film(), **layout)
    path = write_film(tmp_path / "a", film(), HTJ2K, frame=frame)
    row = row_of(path)
    assert outcome(row, frame, film()) == "equal"
    last = frame.rindex(b"\xff\x90\0\x0a")
    assert outcome(row, frame[:last] + END, film()) == "truncated"


@pytest.mark.parametrize("syntax", COMPRESSED_LOSSLESS)
def test_a_stream_of_another_size_than_the_header_is_refused(tmp_path, syntax):
    path = write_film(tmp_path / "a", film(60, 50), syntax, Rows=61)
    assert refusal(path) == ("truncated" if syntax == RLE else "shape_mismatch")
    path = write_film(tmp_path / "a", film(60, 50), syntax, Rows=50, Columns=60)
    assert refusal(path) == ("read" if syntax == RLE else "shape_mismatch")  # RLE does not know its rows
    path = write_film(tmp_path / "a", film(60, 50), syntax, Rows=59)
    assert refusal(path) == ("decode_failed" if syntax == RLE else "shape_mismatch")


@pytest.mark.parametrize("syntax", WITH_DIMENSIONS)
def test_a_coloured_stream_under_a_grey_header_is_refused(tmp_path, syntax):
    colours = np.stack([film(bits=8)] * 3, axis=-1)
    assert (
        refusal(write_film(tmp_path / "a", film(bits=8), syntax, frame=stream(colours, syntax, 8))) == "shape_mismatch"
    )


@pytest.mark.parametrize("syntax", [*COMPRESSED_LOSSLESS, EXTENDED])
def test_a_stream_of_more_bits_than_allocated_is_refused(tmp_path, syntax):
    path = write_film(tmp_path / "a", film(), syntax, BitsAllocated=8, BitsStored=8, stream_bits=12, HighBit=7)
    assert refusal(path) == "decode_failed"


@pytest.mark.parametrize("syntax", [JPEG_2000_LOSSLESS, HTJ2K])
def test_subsampled_components_are_refused(tmp_path, syntax):
    frame = bytearray(stream(film(), syntax, 12))
    frame[43:45] = b"\2\2"  # XRsiz, YRsiz
    assert refusal(write_film(tmp_path / "a", film(), syntax, frame=bytes(frame))) == "shape_mismatch"


def test_the_offset_of_an_image_on_its_canvas_is_not_part_of_its_size(tmp_path):
    frame = bytearray(stream(film(), JPEG_2000_LOSSLESS, 12))
    right, bottom, left, top, width, height, tile_left, tile_top = struct.unpack_from(">8I", frame, 8)
    far = 2**20  # 32 precincts: nothing but the numbers changes
    moved = (right + far, bottom + far, left + far, top + far, width, height, tile_left + far, tile_top + far)
    struct.pack_into(">8I", frame, 8, *moved)
    assert np.array_equal(stored(write_film(tmp_path / "a", film(), JPEG_2000_LOSSLESS, frame=bytes(frame))), film())


@pytest.mark.parametrize("signature_only", [True, False])
@pytest.mark.parametrize("make", [film, signed_film])
def test_jp2_boxes_are_taken_off(tmp_path, make, signature_only):
    boxed = imagecodecs.jpeg2k_encode(make(), level=0, codecformat="jp2", reversible=True, bitspersample=12)
    start = boxed.index(b"jp2c") - 4
    if signature_only:
        codestream = boxed[start + 8 :]
        boxed = boxed[:12] + b"\0\0\0\1jp2c" + struct.pack(">Q", 16 + len(codestream)) + codestream
    path = write_film(tmp_path / "a", make(), JPEG_2000_LOSSLESS, frame=boxed + b"\0\0\0\x0cxml <a/>")
    assert np.array_equal(stored(path), make())


@pytest.mark.parametrize("padding", [2, 600])
@pytest.mark.parametrize("syntax", WITH_DIMENSIONS)
def test_zeros_behind_the_end_marker_are_no_fault(tmp_path, syntax, padding):
    path = write_film(tmp_path / "a", film(), syntax, frame=stream(film(), syntax, 12) + bytes(padding))
    assert np.array_equal(stored(path), film())


def segments(*planes: bytes, n_segments: int | None = None) -> bytes:
    """An RLE frame (PS3.5 G.5)."""
    offsets = [64 + sum(map(len, planes[:number])) for number in range(len(planes))]
    return struct.pack("<16I", n_segments or len(planes), *offsets, *[0] * (15 - len(planes))) + b"".join(planes)


def test_run_lengths_must_be_as_many_bytes_as_the_film(tmp_path):
    run = bytes([256 - 99, 7])  # a hundred sevens, PS3.5 G.3.1
    whole = np.full((60, 50), 0x0707, np.uint16)
    row = row_of(write_film(tmp_path / "a", film(), RLE))
    assert outcome(row, segments(run * 30, run * 30), whole) == "equal"
    assert outcome(row, segments(run * 29, run * 30), whole) == "truncated"
    assert outcome(row, segments(run * 30, run * 29), whole) == "truncated"
    assert outcome(row, segments(run * 31, run * 29), whole) == "decode_failed"
    assert outcome(row, segments(run * 30, run * 31), whole) == "decode_failed"
    assert outcome(row, segments(run * 60), whole) == "decode_failed"
    assert outcome(row, segments(run * 20, run * 20, run * 20), whole) == "decode_failed"
    assert outcome(row, segments(run * 30, run * 30, n_segments=3), whole) == "decode_failed"
    assert outcome(row, segments(run * 30, run * 30)[:60], whole) == "decode_failed"
    frame = bytearray(segments(run * 30, run * 30))
    struct.pack_into("<I", frame, 8, 10**6)
    assert outcome(row, bytes(frame), whole) == "decode_failed"


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


@pytest.mark.parametrize("syntax", [RLE, LOSSLESS_SV1, EXTENDED, JPEG_LS, JPEG_2000_LOSSLESS])
def test_broken_streams_cost_no_reference_to_none(tmp_path, syntax):
    """A binding that loses one with every error ends the process after some thousands."""
    row = row_of(write_film(tmp_path / "a", film(), syntax))
    frame = bytearray(stream(film(), syntax, 12))
    frame[-900:-2] = b"\x7f" * 898
    value = np.frombuffer(encapsulate([bytes(frame)]) + DELIMITER, np.uint8)
    before = sys.getrefcount(None)
    for _ in range(100):
        with contextlib.suppress(Refused):
            codecs.decode(row, value)
    assert sys.getrefcount(None) - before > -20


def test_errors_that_the_high_throughput_decoder_drops_are_refusals():
    """In a process of its own, for such streams may hang."""
    script = """
import imagecodecs, numpy
from films import film
from cohort_scorer.imaging import jpeg_2000
frame = imagecodecs.htj2k_encode(film(64, 64))
for seed in (4, 8, 11):
    generator = numpy.random.default_rng(seed)
    mutant = numpy.frombuffer(bytearray(frame), numpy.uint8)
    mutant[generator.integers(140, len(frame) - 2, 3)] = generator.integers(0, 256, 3)
    try:
        jpeg_2000.decode_high_throughput(bytearray(mutant), lambda stream: None)
    except jpeg_2000.Refused as refused:
        print(refused.reason)
"""
    places = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}"}
    child = subprocess.run([sys.executable, "-c", script], env=places, capture_output=True, text=True, timeout=60)
    assert child.stdout.split() == ["decode_failed"] * 3


def test_a_file_that_changed_since_it_was_indexed_is_refused(tmp_path):
    for syntax in (EXPLICIT, DEFLATED):
        path = write_film(tmp_path / "a", film(), syntax)
        row = row_of(path)
        path.write_bytes(path.read_bytes() + b"\0\0")
        with pytest.raises(Refused, match="changed_file"):
            codecs.read_value(row, path)
        with pytest.raises(Refused, match="changed_file"):
            codecs.value_sha256(row, path)
        path.unlink()
        with pytest.raises(Refused, match="missing_file"):
            codecs.read_value(row, path)


def relabelled(path: Path, syntax: str, other: str) -> Path:
    old, new = (name.encode() + b"\0" * (len(name) % 2) for name in (syntax, other))
    path.write_bytes(path.read_bytes().replace(old, new.ljust(len(old), b"\0"), 1))
    return path


def test_a_high_throughput_stream_is_not_decoded_under_another_name(tmp_path):
    path = write_film(tmp_path / "a", film(), HTJ2K)
    assert refusal(relabelled(path, HTJ2K, JPEG_2000_LOSSLESS)) == "decode_failed"
    frame = bytearray(stream(film(), HTJ2K, 12))
    frame[6] = 0  # no word of its capabilities; its code-blocks are what they are
    assert refusal(write_film(tmp_path / "a", film(), JPEG_2000_LOSSLESS, frame=bytes(frame))) == "decode_failed"


def test_an_ordinary_stream_is_not_decoded_as_high_throughput(tmp_path):
    frame = bytearray(stream(film(), JPEG_2000_LOSSLESS, 12))
    for capabilities in (0x00, 0x40):
        frame[6] = capabilities
        for syntax in HIGH_THROUGHPUT:
            assert refusal(write_film(tmp_path / "a", film(), syntax, frame=bytes(frame))) == "decode_failed"


def test_supported_syntaxes_are_those_of_the_table():
    assert set(NATIVE + COMPRESSED_LOSSLESS + LOSSY) == codecs.SUPPORTED
    assert set(HIGH_THROUGHPUT) == codecs.ISOLATED


def deflated(path: Path, data_set: bytes) -> Path:
    """Put a data set in the place of a deflated film's."""
    content = path.read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    path.write_bytes(content[:start] + deflater.compress(data_set) + deflater.flush())
    return path


def test_a_deflated_bomb_takes_no_memory(tmp_path):
    path = deflated(
        write_film(tmp_path / "a", film(), DEFLATED),
        b"\x09\x00\x10\x10OB\0\0" + struct.pack("<I", 2**31) + bytes(300 * 2**20),
    )
    tracemalloc.start()
    _, refusals = read_headers(find_files(tmp_path, None), tmp_path, "", None, EVERYTHING, 1, lambda n: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < 2**20
    assert refusals["reason"].to_list() == ["header_too_large"]
    assert peak < 2**24


def test_what_follows_the_pixels_of_a_deflated_film_is_not_inflated(tmp_path):
    path = write_film(tmp_path / "a", film(), DEFLATED)
    content = path.read_bytes()
    data_set = zlib.decompress(content[144 + struct.unpack_from("<I", content, 140)[0] :], -zlib.MAX_WBITS)
    deflated(path, data_set + bytes(2**26))
    tracemalloc.start()
    assert np.array_equal(decoded(path), film())
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_broken_deflate_stream_is_a_reason(tmp_path):
    path = write_film(tmp_path / "a", film(300, 300), DEFLATED)
    content = bytearray(path.read_bytes())
    for place in range(1500, len(content), 997):
        mutant = content.copy()
        mutant[place : place + 8] = b"\xff" * 8
        path.write_bytes(mutant)
        rows = index_of(tmp_path)
        if rows.height and rows["eligible"][0]:
            assert refusal(path) in ("read", "decode_failed", "truncated")


def test_a_small_film_in_a_large_file_is_read_in_part(tmp_path):
    path = write_film(tmp_path / "a", film(), JPEG_LS)
    with path.open("ab") as file:
        file.truncate(2**32)
    row = row_of(path)
    value = codecs.read_value(row, path)
    assert value.size == 2**24
    assert np.array_equal(codecs.decode(row, value), film())
