"""Every file of an archive, however hostile, is a row or a refusal."""

import logging
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from datetime import date
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest
from films import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    HTJ2K,
    IMPLICIT,
    JPEG_LS,
    JPEG_XL,
    LOSSLESS_SV1,
    RLE,
    film,
    read_headers,
    write_film,
)
from PIL import Image
from pydicom.dataset import Dataset

from cohort_scorer import schemas
from cohort_scorer.errors import MachineError, StudyFileError
from cohort_scorer.imaging import index, reading
from cohort_scorer.imaging.files import find_files
from cohort_scorer.imaging.index import Rules, judge_again, resolve_duplicates

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR")  # pydicom, of what these tests write

REALDATA = Path(__file__).parents[3] / "shared" / "realdata" / "dicom"
RULES = Rules(("CR", "DX", "RG"), ("CHEST", "THORAX", ""), ("PA", "AP"), "exclude")


def indexed(folder: Path, listing: pl.DataFrame | None = None, rules: Rules = RULES, workers: int = 1):
    files = find_files(folder, listing)
    done = []
    rows, refusals = read_headers(files, folder, "archive", listing, rules, workers, done.append)
    assert sum(done) == files.height == rows.height + refusals.height
    assert rows.schema == pl.Schema(schemas.columns("index"))
    assert refusals.schema == pl.Schema(schemas.columns("refusals"))
    assert set(refusals["reason"]) <= set(schemas.vocabulary("refusals", "reason"))
    assert set(rows["reason"].drop_nulls()) <= set(schemas.vocabulary("index", "reason"))
    assert set(rows["view"]) <= set(schemas.vocabulary("index", "view"))
    assert set(rows["view_source"]) <= set(schemas.vocabulary("index", "view_source"))
    return rows, refusals


def reason_of(folder: Path, name: str) -> str | None:
    """Refusal, or reason for not being eligible, or None for an eligible film."""
    rows, refusals = indexed(folder)
    both = pl.concat([rows.select("uri", "reason"), refusals.select("uri", "reason")])
    return both.filter(pl.col("uri") == quote(name))["reason"].item()


def listing_of(*uris: str, **columns) -> pl.DataFrame:
    return pl.DataFrame({"uri": uris, "patient_id": ["77"] * len(uris)} | columns)


def test_a_plain_film_is_an_eligible_row_with_what_scoring_needs(tmp_path):
    path = write_film(tmp_path / "a.dcm", film(), PatientID=" 00123 ", PatientAge="081", PixelSpacing=["0.0", "0.0"])
    row = indexed(tmp_path)[0].row(0, named=True)
    assert row["eligible"] and row["reason"] is None
    assert row["patient_id"] == "00123"
    assert row["study_date"] == date(2020, 1, 2)
    assert (row["view"], row["view_source"], row["view_conflict"]) == ("PA", "view_position", False)
    assert row["age_years"] == 81
    assert row["pixel_spacing_mm"] is None
    content = path.read_bytes()
    assert content[row["pixel_data_offset"] :][: row["pixel_data_length"]] == film().tobytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Modality": "CT"}, "modality"),
        ({"Modality": None}, "modality"),
        ({"BodyPartExamined": "HAND"}, "body_part"),
        ({"BodyPartExamined": "chest"}, None),
        ({"BodyPartExamined": None}, None),
        ({"ViewPosition": "LL"}, "view"),
        ({"ViewPosition": "RLD"}, "view"),
        ({"ViewPosition": None}, "unknown_view"),
        ({"ViewPosition": None, "SeriesDescription": "Thorax p.a."}, None),
        ({"ViewPosition": None, "SeriesDescription": "Chest PA and lateral"}, "unknown_view"),
        ({"ViewPosition": "", "PatientOrientation": ["P", "F"]}, "view"),
        ({"ViewPosition": "", "PatientOrientation": ["L", "F"]}, "unknown_view"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not_grayscale"),
        ({"SamplesPerPixel": 3}, "not_grayscale"),
        ({"BitsStored": 17}, "unsupported_pixels"),
        ({"BitsAllocated": 32}, "unsupported_pixels"),
        ({"Rows": 0}, "unsupported_pixels"),
        ({"Rows": None}, "unsupported_pixels"),
        ({"PixelRepresentation": 2}, "unsupported_pixels"),
        ({"Rows": 20000, "Columns": 20000}, "too_large"),
        ({"Rows": 61}, "truncated"),
    ],
    ids=str,
)
def test_why_a_film_is_not_eligible(tmp_path, change, reason):
    write_film(tmp_path / "a", film(), **change)
    assert reason_of(tmp_path, "a") == reason


def test_undecodable_films_are_known_from_their_header(tmp_path):
    content = write_film(tmp_path / "jpeg_xl", film(), HTJ2K).read_bytes()
    (tmp_path / "jpeg_xl").write_bytes(content.replace(HTJ2K.encode(), JPEG_XL.encode(), 1))
    content = write_film(tmp_path / "mislabelled", film(), JPEG_LS).read_bytes()
    (tmp_path / "mislabelled").write_bytes(content.replace(JPEG_LS.encode(), EXPLICIT.encode() + b"\0\0\0", 1))
    assert reason_of(tmp_path, "jpeg_xl") == "unsupported_transfer_syntax"
    assert reason_of(tmp_path, "mislabelled") == "unsupported_transfer_syntax"


def test_more_trusted_evidence_decides_the_view_and_a_conflict_is_flagged(tmp_path):
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "399348003", "SCT", "antero-posterior"
    write_film(tmp_path / "a", film(), ViewCodeSequence=[code], ViewPosition="PA")
    row = indexed(tmp_path)[0].row(0, named=True)
    assert (row["view"], row["view_source"], row["view_conflict"]) == ("AP", "view_code_sequence", True)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, RLE, LOSSLESS_SV1])
def test_pixel_data_is_located_in_every_encoding(tmp_path, syntax):
    path = write_film(tmp_path / "a", film(), syntax)
    row = indexed(tmp_path)[0].row(0, named=True)
    assert row["eligible"]
    assert row["encapsulated"] == (syntax in (RLE, LOSSLESS_SV1))
    if row["encapsulated"]:
        assert row["pixel_data_offset"] + row["pixel_data_length"] == path.stat().st_size


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_a_film_without_preamble_and_meta_information_is_read(tmp_path, syntax):
    plain = write_film(tmp_path / "a", film(), syntax)
    content = plain.read_bytes()
    meta_length = struct.unpack("<I", content[140:144])[0]
    (tmp_path / "b").write_bytes(content[144 + meta_length :])
    rows, _ = indexed(tmp_path)
    assert rows["eligible"].to_list() == [True, True]
    assert rows["transfer_syntax"].to_list() == [syntax, syntax]


def test_files_that_are_no_images_are_refused_with_what_they_are(tmp_path):
    (tmp_path / "page.dcm").write_text("<!DOCTYPE html><html><body>Log in</body></html>" * 20)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "table.csv").write_text("patient,date\n1,2\n")
    (tmp_path / "zeros").write_bytes(b"\0" * 1000)
    (tmp_path / "text").write_bytes(b"\x08\x00 looks like group 8 but is none" * 9)
    Image.fromarray(film(bits=8)).save(tmp_path / "picture.png")
    rows, refusals = indexed(tmp_path)
    assert rows.is_empty()
    assert set(refusals["reason"]) <= {"not_dicom", "header_unreadable"}
    assert reason_of(tmp_path, "page.dcm") == "not_dicom"
    assert not refusals["radiograph"].any()


def test_a_dicomdir_is_refused(tmp_path):
    path = write_film(tmp_path / "DICOMDIR", film())
    content = path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.1\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0")
    path.write_bytes(content)
    assert reason_of(tmp_path, "DICOMDIR") == "dicomdir"


def test_a_header_that_breaks_off_or_nests_too_deeply_is_a_refusal_or_a_row_without_pixels(tmp_path):
    content = write_film(tmp_path / "whole", film()).read_bytes()
    (tmp_path / "cut").write_bytes(content[: -film().nbytes - 12])
    (tmp_path / "short").write_bytes(content[:200])
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 2**32 - 1
    )
    (tmp_path / "deep").write_bytes(content[: content.index(b"\x08\x00\x16\x00UI")] + opening * 5000)
    assert reason_of(tmp_path, "cut") == "no_pixels"
    assert reason_of(tmp_path, "short") in ("header_unreadable", "modality")
    assert reason_of(tmp_path, "deep") == "header_unreadable"


def test_a_deflated_bomb_is_refused_before_it_fills_memory(tmp_path):
    content = write_film(tmp_path / "bomb", film(), DEFLATED).read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    opening = struct.pack("<HH2sHI", 0x0008, 0x0000, b"UN", 0, 2**30)
    packed = packer.compress(opening) + b"".join(packer.compress(bytes(2**24)) for _ in range(18)) + packer.flush()
    (tmp_path / "bomb").write_bytes(content[:start] + packed)
    assert len(packed) < 2**20
    assert reason_of(tmp_path, "bomb") == "header_too_large"


def test_unreadable_values_are_no_values(tmp_path):
    path = write_film(tmp_path / "a", film(), RescaleSlope="1.5", PatientAge="045Y", StudyDate="20200102")
    content = path.read_bytes()
    content = content.replace(b"1.5 ", b"1,5 ").replace(b"045Y", b"old ").replace(b"20200102", b"20201399")
    path.write_bytes(content.replace(b"00123 ", b"\xff\xfe\x80\x81\xff "))
    row = indexed(tmp_path)[0].row(0, named=True)
    assert row["rescale_slope"] is row["age_years"] is row["study_date"] is None
    assert row["eligible"]


def test_impossible_ages_are_no_ages_and_weeks_count(tmp_path):
    write_film(tmp_path / "a", film(), PatientBirthDate="18000101")
    write_film(tmp_path / "b", film(), PatientAge="026W")
    write_film(tmp_path / "c", film(), PatientBirthDate="19700102")
    ages = indexed(tmp_path)[0]["age_years"].to_list()
    assert ages[0] is None
    assert ages[1] == pytest.approx(0.5, abs=0.01)
    assert ages[2] == pytest.approx(50, abs=0.01)


def test_no_value_of_a_header_reaches_a_warning_or_a_log(tmp_path, caplog, recwarn):
    content = write_film(tmp_path / "a", film(), RescaleSlope="1.5", NumberOfFrames=1).read_bytes()
    (tmp_path / "a").write_bytes(content.replace(b"1.5 ", b"SECR"))
    warnings.simplefilter("always")
    with caplog.at_level(logging.DEBUG):
        indexed(tmp_path)
    assert "SECR" not in caplog.text
    assert not [warning for warning in recwarn if "SECR" in str(warning.message)]


def test_names_of_any_bytes_become_plain_ascii(tmp_path):
    write_film(tmp_path / "a", film())
    names = [b"M\xfcller.dcm", b"<script>alert(1)</script>".replace(b"/", b"_"), b"line\nbreak", "größe %41".encode()]
    for number, name in enumerate(names):
        target = write_film(tmp_path / f"_{number}", film(seed=number), SOPInstanceUID=f"1.2.{number}")
        target.rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    rows, refusals = indexed(tmp_path)
    assert refusals.is_empty()
    assert rows["eligible"].all()
    assert rows["uri"].to_list() == sorted(["a", *(quote(name) for name in names)])
    assert all(uri.isascii() for uri in rows["uri"])


def test_links_are_followed_inside_the_root_and_refused_outside(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    outside.mkdir()
    write_film(outside / "a", film())
    write_film(root / "folder" / "b", film(seed=1))
    (root / "escaping").symlink_to(outside / "a")
    (root / "escaping_folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "folder" / "same").symlink_to(root / "folder")
    (root / "self").symlink_to(root / "self")
    (root / "broken").symlink_to(root / "absent")
    (root / "again").symlink_to(root / "folder" / "b")
    os.mkfifo(root / "pipe")
    rows, refusals = indexed(root)
    assert rows["uri"].to_list() == ["again", "folder/b"]
    assert dict(refusals.select("uri", "reason").iter_rows()) == {
        "broken": "missing_file",
        "escaping": "outside_root",
        "escaping_folder": "outside_root",
        "pipe": "not_a_file",
        "self": "unreadable_file",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open every file")
def test_files_without_permission_are_refused(tmp_path):
    write_film(tmp_path / "a", film()).chmod(0)
    assert reason_of(tmp_path, "a") == "unreadable_file"


def test_an_absent_root_is_a_fault_of_the_study_file(tmp_path):
    with pytest.raises(StudyFileError):
        find_files(tmp_path / "absent", None)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (PermissionError, {"b": "unreadable_file"}),
        (FileNotFoundError, {}),
        (NotADirectoryError, {}),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused_and_one_that_vanished_is_not_there(
    tmp_path, monkeypatch, fault, found
):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write_film(tmp_path / name / "film", film())
    scan = os.scandir

    def scanned(folder: bytes):
        if folder.endswith(b"/b"):
            raise fault
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scanned)
    rows, refusals = indexed(tmp_path)
    assert rows["uri"].to_list() == ["a/film", "c/film"]
    assert dict(refusals.select("uri", "reason").iter_rows()) == found


def test_an_archive_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    def scanned(folder: bytes):
        raise PermissionError

    monkeypatch.setattr(os, "scandir", scanned)
    with pytest.raises(PermissionError):
        find_files(tmp_path, None)


def test_a_file_that_vanished_since_its_folder_was_read_is_missing(tmp_path, monkeypatch):
    write_film(tmp_path / "a", film())
    scan = os.scandir

    class Scanned(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            (tmp_path / "a").unlink()

    monkeypatch.setattr(os, "scandir", lambda folder: Scanned(scan(folder)))
    assert indexed(tmp_path)[1]["reason"].to_list() == ["missing_file"]


def test_a_listing_names_files_that_may_not_escape_the_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_film(tmp_path / "secret", film())
    write_film(root / "a b", film())
    (root / "link").symlink_to(tmp_path / "secret")
    uris = ["../secret", "x/%2e%2e/../../secret", "/etc/passwd", "link", "absent", "a%00b", "a b", "a%20b", "."]
    rows, refusals = indexed(root, listing_of(*uris[:6], uris[6], uris[8]))
    assert rows["uri"].to_list() == ["a%20b"]
    assert sorted(refusals["reason"]) == ["missing_file"] * 2 + ["outside_root"] * 5
    assert refusals["radiograph"].all()
    rows, refusals = indexed(root, listing_of("a b", "a%20b", "./a b"))
    assert rows.is_empty()
    assert refusals["reason"].to_list() == ["listed_twice"]


def test_a_listing_stands_above_the_header_and_admits_what_it_names(tmp_path):
    write_film(tmp_path / "a", film(), BodyPartExamined="EXTREMITY", Modality="OT", ViewPosition="LL")
    Image.fromarray(film(bits=8)).save(tmp_path / "b.png")
    Image.fromarray(film(bits=8)).save(tmp_path / "c.jpg")
    write_film(tmp_path / "d", film(), BitsAllocated=32)
    (tmp_path / "e.png").write_bytes(b"\x89PNG\r\n\x1a\n but then nothing")
    listing = listing_of(
        "a",
        "b.png",
        "c.jpg",
        "d",
        "e.png",
        view=["PA", "AP", "LATERAL", "PA", "PA"],
        site=["x", None, None, None, None],
    )
    rows, refusals = indexed(tmp_path, listing)
    assert rows["reason"].to_list() == [None, None, "view", "unsupported_pixels"]
    assert rows["patient_id"].to_list() == ["77"] * 4
    assert rows["site"].to_list() == ["x", None, None, None]
    assert rows["view_source"].to_list() == ["listing"] * 4
    assert rows["view_conflict"].to_list() == [True, False, False, False]
    assert rows["file_format"].to_list() == ["dicom", "png", "jpeg", "dicom"]
    assert rows["study_id"].to_list() == [None] * 4
    assert rows["image_id"][1].startswith("sha256:")
    assert refusals["reason"].to_list() in (["not_dicom"], ["header_unreadable"])


def test_order_of_files_and_workers_change_nothing(tmp_path, monkeypatch):
    for number in range(8):
        write_film(tmp_path / f"{number}", film(seed=number))
    (tmp_path / "x").write_text("no film")
    files = find_files(tmp_path, None)
    plain = read_headers(files, tmp_path, "archive", None, RULES, 1, lambda n: None)
    turned = read_headers(files.reverse(), tmp_path, "archive", None, RULES, 1, lambda n: None)
    assert plain[0].equals(turned[0].reverse())
    monkeypatch.setattr(reading, "_FILES_WORTH_PROCESSES", 1)
    monkeypatch.setattr(reading, "_FILES_PER_TASK", 2)
    in_processes = read_headers(files, tmp_path, "archive", None, RULES, 2, lambda n: None)
    assert plain[0].equals(in_processes[0]) and plain[1].equals(in_processes[1])


def paths_of_many(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One film two hundred times, in tasks of two, for processes."""
    monkeypatch.setattr(reading, "_FILES_WORTH_PROCESSES", 1)
    monkeypatch.setattr(reading, "_FILES_PER_TASK", 2)
    return [str(write_film(folder / "a", film()))] * 200


def test_a_process_that_is_killed_from_outside_is_a_fault_of_the_machine(tmp_path, monkeypatch):
    paths = paths_of_many(tmp_path, monkeypatch)
    outcomes = reading.read_all(iter(paths), len(paths), False, 2)
    next(outcomes)
    for child in multiprocessing.active_children():
        child.kill()
    with pytest.raises(MachineError, match="was killed"):
        list(outcomes)
    assert multiprocessing.active_children() == []


def test_reading_that_ends_early_takes_no_more_files_than_are_read_ahead_and_leaves_no_process(tmp_path, monkeypatch):
    paths = iter(paths_of_many(tmp_path, monkeypatch))
    outcomes = reading.read_all(paths, 200, False, 2)
    assert next(outcomes)[0] is not None
    outcomes.close()
    assert multiprocessing.active_children() == []
    assert len(list(paths)) > 150


def test_one_identifier_for_one_film_keeps_the_smallest_uri(tmp_path):
    for name, syntax in (("b", RLE), ("a", EXPLICIT), ("c", EXPLICIT)):
        write_film(tmp_path / name, film(), syntax, SOPInstanceUID="1.2.3")
    write_film(tmp_path / "other", film(seed=1), SOPInstanceUID="1.2.4")
    rows, _ = indexed(tmp_path)
    kept, refusals = resolve_duplicates(rows.sample(fraction=1, shuffle=True, seed=1), {"archive": tmp_path})
    assert sorted(kept["uri"]) == ["a", "other"]
    assert refusals["uri"].to_list() == ["b", "c"]
    assert refusals["reason"].to_list() == ["duplicate"] * 2
    assert refusals["radiograph"].all()


@pytest.mark.parametrize("change", [{"pixels": film(seed=1)}, {"PhotometricInterpretation": "MONOCHROME1"}])
def test_one_identifier_for_several_films_refuses_all_of_them(tmp_path, change):
    for name in ("a", "b"):
        write_film(tmp_path / name, film(), SOPInstanceUID="1.2.3")
    write_film(tmp_path / "c", **({"pixels": film()} | change), SOPInstanceUID="1.2.3")
    kept, refusals = resolve_duplicates(indexed(tmp_path)[0], {"archive": tmp_path})
    assert kept.is_empty()
    assert refusals["reason"].to_list() == ["conflicting_id"] * 3


def test_nothing_is_refused_where_no_identifier_repeats(tmp_path):
    write_film(tmp_path / "a", film(), SOPInstanceUID=None)
    write_film(tmp_path / "b", film())
    rows, _ = indexed(tmp_path)
    assert rows["image_id"][0].startswith("sha256:")
    kept, refusals = resolve_duplicates(rows, {"archive": tmp_path})
    assert kept.equals(rows)
    assert refusals.is_empty()


def test_an_empty_archive_gives_empty_tables(tmp_path):
    rows, refusals = indexed(tmp_path)
    assert rows.is_empty() and refusals.is_empty()
    kept, refused = resolve_duplicates(rows, {"archive": tmp_path})
    assert kept.is_empty() and refused.is_empty()


def test_the_closed_lists_are_those_that_the_code_uses():
    sources = "".join(path.read_text() for path in Path(index.__file__).parent.glob("*.py"))
    raised = set(re.findall(r'Refused\(\s*"(\w+)"', sources))
    assert raised <= set(schemas.vocabulary("refusals", "reason"))
    for reason in (*schemas.vocabulary("refusals", "reason"), *schemas.vocabulary("index", "reason")):
        assert f'"{reason}"' in sources, reason


def test_indexing_and_decoding_do_not_import_torch():
    modules = "index, header, codecs, radiograph"
    script = f"import sys; from cohort_scorer.imaging import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", ["index", "refusals", "network_outputs"])
def test_every_column_is_described(name):
    for field in schemas.load(name)["fields"]:
        assert field["description"].endswith("."), field["name"]


@pytest.mark.skipif(not REALDATA.is_dir(), reason="no real films beside the repository (../shared/realdata)")
def test_every_real_file_is_a_row_or_a_refusal():
    rows, refusals = indexed(REALDATA)
    kept, refused = resolve_duplicates(rows, {"archive": REALDATA})
    assert kept.height + refused.height == rows.height
    counts = dict(refusals.group_by("reason").len().iter_rows())
    assert counts == {"dicomdir": 8, "not_dicom": 2}
    assert kept["age_years"].drop_nulls().is_between(0, 130).all()


def twins(folder: Path, *changes: dict) -> pl.DataFrame:
    for name, change in zip("abcdef", changes, strict=False):
        write_film(folder / name, **({"pixels": film()} | change), SOPInstanceUID="1.2.3")
    return indexed(folder)[0]


def verdicts_of(rows: pl.DataFrame, refusals: pl.DataFrame) -> pl.DataFrame:
    """What the stage keeps of rows that share an identifier."""
    file = ["root", "uri", "file_size", "file_mtime_ns"]
    return rows.join(refusals.select(*file, verdict="reason"), on=file, how="left")


def test_one_identifier_for_two_patients_refuses_both_though_their_pixels_are_the_same(tmp_path):
    rows = twins(tmp_path, {"PatientID": "1"}, {"PatientID": "2"})
    kept, refusals = resolve_duplicates(rows, {"archive": tmp_path})
    assert kept.is_empty()
    assert refusals["reason"].to_list() == ["conflicting_id"] * 2


def test_files_that_shared_an_identifier_before_are_not_opened_again(tmp_path, monkeypatch):
    rows = twins(tmp_path, {}, {}, {})
    kept, refusals = resolve_duplicates(rows, {"archive": tmp_path})
    settled = verdicts_of(rows, refusals)
    opened = []
    monkeypatch.setattr(index, "_same_pixels", lambda films, roots: opened.append(len(films)) or False)
    again = resolve_duplicates(rows, {"archive": tmp_path}, settled)
    assert again[0].equals(kept) and again[1].equals(refusals)
    assert opened == []
    resolve_duplicates(rows.head(2), {"archive": tmp_path}, settled)
    resolve_duplicates(rows, {"archive": tmp_path}, settled.head(2))
    changed = settled.with_columns(pl.col("file_mtime_ns") + (pl.col("uri") == "b").cast(pl.Int64))
    resolve_duplicates(rows, {"archive": tmp_path}, changed)
    assert opened == [2, 3, 3]


def test_files_that_cannot_be_read_to_compare_them_are_not_said_to_conflict(tmp_path):
    rows = twins(tmp_path, {}, {})
    (tmp_path / "b").rename(tmp_path / "away")
    kept, refusals = resolve_duplicates(rows, {"archive": tmp_path})
    assert kept.is_empty()
    assert refusals["reason"].to_list() == ["unreadable_file"] * 2
    (tmp_path / "away").rename(tmp_path / "b")
    kept, refusals = resolve_duplicates(rows, {"archive": tmp_path}, verdicts_of(rows, refusals))
    assert kept["uri"].to_list() == ["a"]
    assert refusals["reason"].to_list() == ["duplicate"]


def test_an_index_is_judged_again_by_other_rules(tmp_path):
    write_film(tmp_path / "a", film())
    write_film(tmp_path / "b", film(), ViewPosition="AP")
    write_film(tmp_path / "c", film(), BodyPartExamined="HAND")
    rows, _ = indexed(tmp_path)
    only_pa = Rules(("CR",), ("CHEST",), ("PA",), "exclude")
    assert judge_again(rows, only_pa, listed=False)["reason"].to_list() == [None, "view", "body_part"]
    assert judge_again(rows, only_pa, listed=True)["eligible"].to_list() == [True, False, True]
    assert judge_again(rows, RULES, listed=False).equals(rows)
