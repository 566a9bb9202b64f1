"""PNG and JPEG films: every kind of pixel, and files that are hostile, cut or not what their header was."""

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from films import film
from PIL import Image

from cohort_scorer.imaging import pictures
from cohort_scorer.imaging.refusal import Refused

GREY = film(40, 30, bits=8)
GREY_16 = film(40, 30, bits=16)
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
LUMINANCE = (COLOURS.astype(np.int64) @ (19595, 38470, 7471) + 2**15) >> 16  # ITU-R 601


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(samples: np.ndarray, colour_type: int, ancillary: bytes = b"", behind: bytes = b"", size=None) -> bytes:
    """A PNG of samples (rows, columns, ...) in 8 or 16 bits, by hand (ISO/IEC 15948)."""
    rows, columns = size or samples.shape[:2]
    stored = samples.astype(samples.dtype.newbyteorder(">"))
    header = struct.pack(">IIBBBBB", columns, rows, samples.itemsize * 8, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in stored))
    chunks = chunk(b"IHDR", header) + ancillary + chunk(b"IDAT", data) + behind + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(folder: Path, content: bytes) -> np.ndarray:
    (folder / "picture").write_bytes(content)
    facts = pictures.read_header(folder / "picture")
    assert facts["file_format"] in ("png", "jpeg")
    return pictures.pixels(np.frombuffer(content, np.uint8), facts["rows"], facts["columns"])


def refusal(folder: Path, content: bytes) -> str:
    try:
        decoded(folder, content)
    except Refused as refused:
        return refused.reason
    return "read"


WITH_ALPHA = np.dstack([COLOURS, np.arange(1200).reshape(40, 30).astype(np.uint8)])
PALETTE = chunk(b"PLTE", bytes(np.arange(256, dtype=np.uint8).repeat(3)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(GREY, 0), GREY),
        (png(GREY_16, 0), GREY_16),
        (png(np.dstack([GREY, WITH_ALPHA[..., 3]]), 4), GREY),
        (png(COLOURS, 2), LUMINANCE),
        (png(WITH_ALPHA, 6), LUMINANCE),
        (png(COLOURS.astype(np.uint16) * 257, 2), LUMINANCE),
        (png(WITH_ALPHA.astype(np.uint16) * 257, 6), LUMINANCE),
        (png(GREY, 3, PALETTE), GREY),
        (png(GREY, 3, PALETTE + chunk(b"tRNS", bytes(256))), GREY),
        (png(GREY, 0, chunk(b"tRNS", b"\0\x07")), GREY),
        (png(GREY_16, 0, chunk(b"tRNS", b"\0\x07")), GREY_16),
        (png(np.dstack([GREY_16, GREY_16]), 4), GREY_16 >> 8),
        (saved(Image.fromarray(GREY > 99), "PNG"), np.where(GREY > 99, 255, 0)),
    ],
    ids=[
        "grey",
        "grey16",
        "alpha",
        "rgb",
        "rgba",
        "rgb16",
        "rgba16",
        "palette",
        "palette-alpha",
        "key",
        "key16",
        "alpha16",
        "bilevel",
    ],
)
@pytest.mark.filterwarnings("error")
def test_every_kind_of_png_is_its_grey_values_or_its_luminance(tmp_path, content, expected):
    assert np.array_equal(decoded(tmp_path, content), expected)


def test_interlaced_pngs_are_put_together(tmp_path):
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
    data = b"".join(
        b"\0" + row.tobytes() for x, y, across, down in passes for row in GREY[y::down, x::across] if row.size
    )
    header = struct.pack(">IIBBBBB", 30, 40, 8, 0, 0, 0, 1)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    assert np.array_equal(decoded(tmp_path, b"\x89PNG\r\n\x1a\n" + content), GREY)


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_bombs_in_ancillary_chunks_are_refused(tmp_path, name):
    head = b"a\0\1\0\0\0" if name == b"iTXt" else b"a\0\0"
    bomb = chunk(name, head + zlib.compress(bytes(2**24), 9))
    assert refusal(tmp_path, png(GREY, 0, bomb)) == "header_unreadable"
    assert refusal(tmp_path, png(GREY, 0, behind=bomb)) in ("decode_failed", "read")  # Pillow skips profiles there


def test_pixel_data_longer_than_the_picture_are_left_and_shorter_ones_refused(tmp_path):
    assert np.array_equal(decoded(tmp_path, png(np.vstack([GREY, GREY]), 0, size=(40, 30))), GREY)
    assert refusal(tmp_path, png(GREY, 0, size=(41, 30))) == "truncated"


def test_several_images_in_one_file_are_the_first(tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    several = saved(first, "MPO", save_all=True, append_images=[second], quality=100)
    assert np.array_equal(decoded(tmp_path, several), decoded(tmp_path, saved(first, "JPEG", quality=100)))
    assert np.array_equal(decoded(tmp_path, saved(first, "PNG", save_all=True, append_images=[second])), GREY)


def test_pictures_are_turned_as_their_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter, clockwise
    for grey in (GREY, GREY_16):
        assert np.array_equal(decoded(tmp_path, saved(Image.fromarray(grey), "PNG", exif=exif)), np.rot90(grey, -1))
    upright, turned = (saved(Image.fromarray(COLOURS), "JPEG", **options) for options in ({}, {"exif": exif}))
    assert np.array_equal(decoded(tmp_path, turned), np.rot90(decoded(tmp_path, upright), -1))


@pytest.mark.parametrize(
    "content",
    [
        png(GREY, 0),
        saved(Image.fromarray(GREY), "JPEG", quality=95),
        saved(Image.fromarray(COLOURS), "JPEG", quality=95),
        saved(Image.fromarray(GREY), "JPEG", quality=95, restart_marker_blocks=3),
    ],
    ids=["png", "jpeg", "coloured jpeg", "jpeg with restarts"],
)
def test_a_cut_picture_is_no_image_even_where_somebody_closed_it(tmp_path, content):
    whole = decoded(tmp_path, content)
    ends = (b"", b"\xff\xd9" if content[:2] == b"\xff\xd8" else chunk(b"IEND", b""))
    for place in (*range(20, len(content) - 60, 23), *range(len(content) - 60, len(content) - 2)):
        for end in ends:
            reason = refusal(tmp_path, content[:place] + end)
            if reason == "read":
                assert np.array_equal(decoded(tmp_path, content[:place] + end), whole)


@pytest.mark.parametrize("content", [png(GREY, 0), png(WITH_ALPHA, 6), saved(Image.fromarray(GREY), "JPEG")])
def test_broken_pictures_cost_no_reference_to_none(tmp_path, content):
    """A binding that loses one with every error ends the process after some thousands."""
    before = sys.getrefcount(None)
    for _ in range(100):
        assert refusal(tmp_path, content[: len(content) * 3 // 4]) == "decode_failed"
    assert sys.getrefcount(None) - before > -20


def test_a_picture_of_more_than_256_mib_is_refused_unread(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(png(GREY, 0))
    os.truncate(path, 2**28 + 1)
    with pytest.raises(Refused, match="too_large"):
        pictures.read_header(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_is_no_longer_what_its_header_was_is_not_decoded():
    for content in (png(GREY, 0), png(GREY, 0, size=(12_000, 12_000)), png(GREY, 0, size=(40_000, 40_000))):
        with pytest.raises(Refused, match="shape_mismatch"):
            pictures.pixels(np.frombuffer(content, np.uint8), 41, 30)
