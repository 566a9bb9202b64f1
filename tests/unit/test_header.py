"""Headers that mean harm: each is read or refused, whatever it nests, repeats or declares."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from films import EXPLICIT, film, write_film

from cohort_scorer.imaging import header
from cohort_scorer.imaging.refusal import Refused

UNDEFINED = b"\xff" * 4
ITEM, END_OF_ITEM, END_OF_SEQUENCE = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"
EMPTY_ITEM = ITEM + UNDEFINED + END_OF_ITEM
VIEW_CODES, PRIVATE = (0x0054, 0x0220), (0x0009, 0x1001)
MANY = 150_000


def element(tag: tuple[int, int], vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in explicit little endian, of undefined length where the length is -1."""
    size = UNDEFINED if length == -1 else struct.pack("<I", len(value) if length is None else length)
    return struct.pack("<HH", *tag) + vr + b"\0\0" + size + value


def write_header(path: Path, content: bytes) -> Path:
    """A file with the content after (0008,0018), the SOP instance UID."""
    uid = EXPLICIT.encode() + b"\0"
    meta = b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
    start = b"\0" * 128 + b"DICM\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta)) + meta
    path.write_bytes(start + b"\x08\0\x18\0UI\x04\x001.2\0" + content)
    return path


def reason(path: Path) -> str | None:
    try:
        header.read(path)
    except Refused as refused:
        return refused.reason
    return None


HOSTILE = {
    "empty items": lambda: element(VIEW_CODES, b"SQ", EMPTY_ITEM * MANY + END_OF_SEQUENCE, -1),
    "items of length zero": lambda: element(VIEW_CODES, b"SQ", (ITEM + b"\0" * 4) * MANY + END_OF_SEQUENCE, -1),
    "private items": lambda: element(PRIVATE, b"SQ", EMPTY_ITEM * MANY + END_OF_SEQUENCE, -1),
    "private fragments": lambda: element(PRIVATE, b"OB", (ITEM + b"\0" * 4) * 2 * MANY + END_OF_SEQUENCE, -1),
    "many elements": lambda: b"".join(element((9, number % 2**16), b"OB", b"") for number in range(2 * MANY)),
    "a nested value of 65 MiB": lambda: element(
        VIEW_CODES, b"SQ", ITEM + UNDEFINED + element(PRIVATE, b"OB", b"a" * (65 * 2**20)), -1
    ),
    "wide and nested": lambda: element(
        VIEW_CODES,
        b"SQ",
        ((ITEM + UNDEFINED + element(VIEW_CODES, b"SQ", b"", -1)) * 100 + (END_OF_SEQUENCE + END_OF_ITEM) * 100)
        * (MANY // 100),
        -1,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_of_too_many_elements_or_bytes_is_refused(tmp_path, name):
    assert reason(write_header(tmp_path / "a", HOSTILE[name]())) == "header_too_large"


def test_a_hostile_group_2_is_refused_too(tmp_path):
    path = tmp_path / "a"
    meta = element((2, 0x102), b"SQ", EMPTY_ITEM * MANY + END_OF_SEQUENCE, -1)
    path.write_bytes(b"\0" * 128 + b"DICM" + meta)
    assert reason(path) == "header_too_large"


def test_deep_nesting_is_refused(tmp_path):
    level = ITEM + UNDEFINED + element(VIEW_CODES, b"SQ", b"", -1)
    assert reason(write_header(tmp_path / "a", element(VIEW_CODES, b"SQ", level * 10_000, -1))) == "header_unreadable"


@pytest.mark.parametrize("tag", [(0x0010, 0x0020), (0x0008, 0x0005), PRIVATE, (0x0028, 0x3010)], ids=str)
@pytest.mark.parametrize("length", [2**32 - 2, 2**16 + 2, 100])
def test_a_value_longer_than_the_file_is_not_asked_for(tmp_path, tag, length):
    path = write_header(tmp_path / "a", element(tag, b"UT", b"abcd", length))
    assert reason(path) in (None, "header_unreadable")


def test_a_long_private_value_is_skipped(tmp_path):
    value = b"a" * (65 * 2**20)
    assert reason(write_header(tmp_path / "a", element(PRIVATE, b"OB", value))) is None


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("name", ["items of length zero", "a nested value of 65 MiB"])
def test_a_hostile_header_takes_no_more_than_400_mib(tmp_path, name):
    path = write_header(tmp_path / "a", HOSTILE[name]())
    script = (
        "import sys, pathlib\n"
        "from cohort_scorer.imaging import header, refusal\n"
        "try: header.read(pathlib.Path(sys.argv[1]))\n"
        "except refusal.Refused: pass\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )
    peak = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True).stdout
    assert int(peak) < 400 * 1024


def test_an_ordinary_header_with_large_sequences_is_read(tmp_path):
    content = element(PRIVATE, b"SQ", EMPTY_ITEM * 20_000 + END_OF_SEQUENCE, -1)
    assert reason(write_header(tmp_path / "a", content)) is None


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ({"WindowCenter": ["40", "80"], "WindowWidth": ["400", "200"]}, (40.0, 400.0)),
        ({"WindowCenter": "40"}, (40.0, None)),
        ({}, (None, None)),
    ],
    ids=str,
)
def test_the_first_window_stands_in_the_index(tmp_path, values, column):
    facts = header.read(write_film(tmp_path / "a", film(), VOILUTFunction="SIGMOID", **values))
    assert (facts["window_center"], facts["window_width"]) == column
    assert facts["voi_lut_function"] == "SIGMOID"
