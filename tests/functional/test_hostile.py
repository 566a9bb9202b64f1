"""Nothing that is in an archive stops a run, fills the memory, or becomes a score that it is not."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from films import (
    BASELINE,
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    EXTENDED,
    HTJ2K,
    IMPLICIT,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LS,
    JPEG_LS_NEAR,
    LOSSLESS,
    LOSSLESS_SV1,
    RLE,
    film,
    write_film,
)
from memory import peak_bytes
from PIL import Image
from studies import COMMAND

from cohort_scorer import study as study_file
from cohort_scorer.errors import EmptyCohortError
from cohort_scorer.imaging import decoding
from cohort_scorer.stages import Machine, Silent
from cohort_scorer.stages.index import index
from cohort_scorer.stages.score import score

GIB = 2**30
SYNTAXES = (
    IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN, RLE, BASELINE, EXTENDED, LOSSLESS, LOSSLESS_SV1, JPEG_LS, JPEG_LS_NEAR,
    JPEG_2000_LOSSLESS, JPEG_2000, HTJ2K,
)  # fmt: skip


def study_of(folder: Path, bundle: Path, archive: str = "") -> Path:
    """A study of folder/archive that a bundle scores, whatever is refused."""
    (folder / "study.toml").write_text(
        f'[study]\ntitle = "Hostile"\n[archive]\nroot = "archive"\nmaximum_refused_percent = 100\n{archive}\n'
        f'[model]\nbundle = "{bundle}"\ntrained_elsewhere = true\n'
    )
    return folder


def level(folder: Path, pattern: str) -> pl.DataFrame:
    paths = sorted((folder / "outputs/patient_level").glob(pattern))
    return pl.concat([pl.read_parquet(path) for path in paths], how="diagonal") if paths else pl.DataFrame()


def accounted(folder: Path, n_files: int) -> dict[str, str]:
    """What became of each file (`scored`, or why not): files = rows + refusals, eligible = scores + refusals."""
    rows, refused = level(folder, "index/part-*"), level(folder, "refusals/index-*")
    assert len(rows) + len(refused) == n_files
    scores, not_scored = level(folder, "scores.parquet"), level(folder, "refusals/score-*")
    assert len(scores) + len(not_scored) == rows["eligible"].sum()
    found = dict(rows.filter(~pl.col("eligible")).select("uri", "reason").iter_rows())
    for frame in (refused, not_scored):
        if len(frame):
            found |= dict(frame.select("uri", "reason").iter_rows())
    if len(scores):
        found |= dict.fromkeys(scores["uri"], "scored")
    assert len(found) == n_files
    return found


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """One of: bytes changed in the header or in the stream, cut, a piece zeroed, doubled or moved, another syntax."""
    data, kind = bytearray(content), generator.integers(7)
    first, second = sorted(generator.integers(132, len(data), 2).tolist())
    middle = len(data) // 3
    if kind == 0:
        for place in generator.integers(132, middle, 3):
            data[place] = generator.integers(256)
    elif kind == 1:
        for place in generator.integers(middle, len(data), 4):
            data[place] = generator.integers(256)
    elif kind == 2:
        del data[second:]
    elif kind == 3:
        data[first:second] = bytes(second - first)
    elif kind == 4:
        data[first:first] = data[first:second]
    elif kind == 5:
        data[first:], data[132:first] = data[132 : 132 + len(data) - first], data[first:][: first - 132]
    else:
        old, new = (SYNTAXES[generator.integers(len(SYNTAXES))].encode() for _ in range(2))
        data = bytearray(bytes(data).replace(old.ljust(22, b"\0"), new.ljust(22, b"\0"), 1))
    return bytes(data)


def fuzz(folder: Path, bundle: Path, n: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Index and score n mutants of films in every syntax."""
    generator = np.random.default_rng(seed)
    (folder / "archive").mkdir()
    monkeypatch.setattr(decoding, "LIMIT_SECONDS", 2.0)
    for number in range(n):
        syntax = SYNTAXES[number % len(SYNTAXES)]
        path = folder / "archive" / f"{number:05}"
        pixels = film(60 + number % 7, 50, bits=8 if syntax == BASELINE else 12, seed=number)
        write_film(path, pixels, syntax, SOPInstanceUID=f"1.2.{number}")
        path.write_bytes(mutated(path.read_bytes(), generator))
    study = study_file.load(study_of(folder, bundle, 'unknown_view = "include"'))
    index(study, Machine(), Silent())
    score(study, Machine(), Silent())
    return accounted(folder, n)


def test_every_mutant_of_200_ends_as_a_score_or_a_refusal(
    tmp_path: Path, image_study_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fuzz(tmp_path, image_study_run / "outputs/model", 200, 1, monkeypatch)
    assert {"scored", "truncated", "decode_failed"} <= set(found.values())


@pytest.mark.soak
def test_every_mutant_of_2000_ends_as_a_score_or_a_refusal(
    tmp_path: Path, image_study_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fuzz(tmp_path, image_study_run / "outputs/model", 2000, 2, monkeypatch)
    print(pl.Series(list(found.values())).value_counts(sort=True))
    assert "scored" in set(found.values())


def explicit_element(group: int, element: int, vr: bytes, length: int) -> bytes:
    return struct.pack("<HH2sHI", group, element, vr, 0, length)


def deflate(content: bytes, pieces: list[bytes]) -> bytes:
    """A deflated film whose data set begins with other elements."""
    start = 144 + struct.unpack("<I", content[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return content[:start] + b"".join(packer.compress(piece) for piece in pieces) + packer.flush()


def hostile_archive(folder: Path) -> dict[str, set[str]]:
    """Names of hostile files, and what may become of each; beside them three sound films."""
    folder.mkdir()
    for number in range(3):
        write_film(folder / f"sound{number}", film(90, 80, seed=number), SOPInstanceUID=f"1.1.{number}")
    wanted: dict[str, set[str]] = {f"sound{number}": {"scored"} for number in range(3)}
    refused = {"truncated", "decode_failed", "shape_mismatch", "too_large", "unsupported_transfer_syntax"}
    huge = {"Rows": 65535, "Columns": 65535}
    for place, syntax in enumerate(SYNTAXES):
        bits = 8 if syntax == BASELINE else 12
        write_film(folder / f"huge{place}", film(bits=bits), syntax, SOPInstanceUID=f"1.3.{place}", **huge)
        wanted[f"huge{place}"] = {"too_large"}
        large = {"Rows": 9999, "Columns": 9999}
        write_film(folder / f"large{place}", film(bits=bits), syntax, SOPInstanceUID=f"1.4.{place}", **large)
        wanted[f"large{place}"] = refused
        half = write_film(folder / f"half{place}", film(bits=bits), syntax, SOPInstanceUID=f"1.5.{place}")
        half.write_bytes(half.read_bytes()[: -half.stat().st_size // 3])
        wanted[f"half{place}"] = {*refused, "no_pixels", "header_unreadable"}
        other = SYNTAXES[(place + 5) % len(SYNTAXES)]
        wrong = write_film(folder / f"wrong{place}", film(bits=bits), syntax, SOPInstanceUID=f"1.6.{place}")
        wrong.write_bytes(
            wrong.read_bytes().replace(syntax.encode().ljust(22, b"\0"), other.encode().ljust(22, b"\0"), 1)
        )
        wanted[f"wrong{place}"] = {*refused, "header_unreadable", "not_dicom", "modality", "scored"}
    plain = write_film(folder / "plain", film(), SOPInstanceUID="1.7.0").read_bytes()
    (folder / "plain").unlink()
    packed = write_film(folder / "packed", film(), DEFLATED, SOPInstanceUID="1.7.1").read_bytes()
    (folder / "packed").unlink()
    zeros = [explicit_element(0x0008, 0x0000, b"UN", 2**31), *([bytes(2**24)] * 120)]
    (folder / "bomb").write_bytes(deflate(packed, zeros))
    wanted["bomb"] = {"header_too_large"}
    head = plain[: plain.index(b"\x08\x00\x16\x00UI")]
    opening = explicit_element(0x0008, 0x1140, b"SQ", 2**32 - 1) + struct.pack("<HHI", 0xFFFE, 0xE000, 2**32 - 1)
    (folder / "deep").write_bytes(head + opening * 20_000)
    wanted["deep"] = {"header_unreadable", "header_too_large"}
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 4_000_000
    (folder / "items").write_bytes(head + explicit_element(0x0008, 0x1140, b"SQ", 2**32 - 1) + items)
    wanted["items"] = {"header_unreadable", "header_too_large"}
    return wanted


def test_hostile_files_end_as_refusals_within_a_gibibyte(tmp_path: Path, image_study_run: Path) -> None:
    """Through the command line: the peak is that of the largest process of the two commands."""
    wanted = hostile_archive(tmp_path / "archive")
    study_of(tmp_path, image_study_run / "outputs/model")
    for verb in ("index", "score"):
        code, peak, stderr = peak_bytes([*COMMAND, verb, str(tmp_path)])
        assert code == 0, stderr
        assert "Traceback" not in stderr
        print(f"\n{verb}: largest process {peak / 2**20:.0f} MiB")
        assert peak < GIB
    found = accounted(tmp_path, len(wanted))
    wrong = {name: found[name] for name, allowed in wanted.items() if found[name] not in allowed}
    assert not wrong


def test_hostile_names_and_links_cost_nothing_but_themselves(tmp_path: Path, image_study_run: Path) -> None:
    archive = tmp_path / "archive"
    (archive / "inside").mkdir(parents=True)
    names = [b"M\xfcller.dcm", b"<script>alert(1)<", b"line\nbreak", b"tab\there", b"-rf", b"%2e%2e", b"=cmd()"]
    for number, name in enumerate(names):
        path = write_film(archive / "_", film(90, 80, seed=number), SOPInstanceUID=f"1.2.{number}")
        path.rename(os.fsdecode(os.fsencode(archive) + b"/inside/" + name))
    secret = write_film(tmp_path / "secret", film(seed=9), SOPInstanceUID="1.3.9")
    (archive / "loop").symlink_to(archive)
    (archive / "self").symlink_to(archive / "self")
    (archive / "escape").symlink_to(secret)
    (archive / "escape_folder").symlink_to(tmp_path)
    study = study_file.load(study_of(tmp_path, image_study_run / "outputs/model"))
    index(study, Machine(), Silent())
    score(study, Machine(), Silent())
    found = accounted(tmp_path, len(names) + 3)
    assert sorted(found.values()) == ["outside_root", "outside_root", *["scored"] * len(names), "unreadable_file"]
    assert all(uri.isascii() and "<" not in uri and "\n" not in uri for uri in found)


def test_a_listing_that_escapes_the_root_reads_nothing_there(tmp_path: Path, image_study_run: Path) -> None:
    (tmp_path / "archive").mkdir()
    Image.fromarray(film(90, 80, bits=8)).save(tmp_path / "archive" / "film.png")
    Image.fromarray(film(90, 80, bits=8, seed=1)).save(tmp_path / "secret.png")
    (tmp_path / "archive" / "link.png").symlink_to(tmp_path / "secret.png")
    uris = ["film.png", "%2e%2e/secret.png", "x/../../other/secret.png", str(tmp_path / "secret.png"), "link.png"]
    listing = pl.DataFrame({"uri": uris, "patient_id": [f"{n}" for n in range(5)], "view": ["PA"] * 5})
    listing.write_csv(tmp_path / "listing.csv")
    study = study_file.load(study_of(tmp_path, image_study_run / "outputs/model", 'listing = "listing.csv"'))
    index(study, Machine(), Silent())
    score(study, Machine(), Silent())
    assert level(tmp_path, "scores.parquet")["uri"].to_list() == ["film.png"]
    assert level(tmp_path, "refusals/index-*")["reason"].to_list() == ["outside_root"] * 4


def test_an_archive_of_nothing_but_rubbish_ends_with_a_told_fault(tmp_path: Path, image_study_run: Path) -> None:
    (tmp_path / "archive").mkdir()
    generator = np.random.default_rng(3)
    for number in range(30):
        (tmp_path / "archive" / f"{number}").write_bytes(generator.bytes(500 * number))
    study = study_file.load(study_of(tmp_path, image_study_run / "outputs/model"))
    with pytest.raises(EmptyCohortError):
        index(study, Machine(), Silent())
    assert len(level(tmp_path, "refusals/index-*")) == 30
