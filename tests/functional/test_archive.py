"""No film is lost between the archive, the index and the scores: whatever stops a run, changes a file or a bundle."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pydicom
import pytest
from sklearn.metrics import roc_auc_score
from studies import COMMAND, Answer, cli, copy, members, substitute, told, wait_for_the_end

from cohort_scorer import storage

LEVEL = "outputs/patient_level"


def parts(study: Path, pattern: str) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted((study / LEVEL).glob(pattern)))


def counts(study: Path) -> dict[str, int]:
    """The two identities: files found = index rows + refusals; eligible rows = scores + refusals."""
    index, refused = parts(study, "index/part-*.parquet"), parts(study, "refusals/index-*.parquet")
    files = sum(path.is_file() for path in (study / "archive").rglob("*"))
    assert files == len(index) + len(refused)
    found = {"files": files, "rows": len(index), "refused_index": len(refused)}
    if (study / LEVEL / "scores.parquet").is_file():
        eligible = index.filter("eligible")
        scores, not_scored = pl.read_parquet(study / LEVEL / "scores.parquet"), parts(study, "refusals/score-*.parquet")
        assert len(eligible) == len(scores) + len(not_scored)
        assert not set(scores["uri"]) & set(not_scored["uri"])
        found |= {"eligible": len(eligible), "scored": len(scores), "refused_score": len(not_scored)}
    return found


def stop_writing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Kill the next run when it is about to write a file of this name."""
    original = storage.write_parquet

    def stopped(frame: pl.DataFrame, path: Path) -> None:
        if path.name.startswith(name):
            raise KeyboardInterrupt
        original(frame, path)

    monkeypatch.setattr(storage, "write_parquet", stopped)


def broken_film(study: Path) -> Path:
    """The film that the simulator broke so that only its decoder finds out."""
    refused = parts(study, "refusals/score-*.parquet")
    assert refused["reason"].to_list() == ["decode_failed"]
    return study / "archive" / refused["uri"].item()


def mend(film: Path) -> None:
    """Store another picture in its place, uncompressed."""
    dataset = pydicom.dcmread(film)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    picture = np.random.default_rng(0).integers(0, 2**dataset.BitsStored, (dataset.Rows, dataset.Columns))
    dataset.PixelData = picture.astype(np.uint16).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.save_as(film, enforce_file_format=True)


def attrition(study: Path) -> dict[str, int]:
    table = pl.read_csv(study / "outputs/unprotected/tables/attrition.csv")
    return dict(table.select("reason", "n_excluded").iter_rows())


def test_a_film_that_only_its_decoder_refuses_is_counted_to_the_end(image_study_run: Path) -> None:
    truth = json.loads((image_study_run / "truth.json").read_text())["planted"]
    assert truth["films"]["broken_stream"] == 1
    assert truth["patients"]["unreadable_film"] == truth["films"]["unreadable_film"] + 1
    found = counts(image_study_run)
    assert found["scored"] > 0
    assert found["refused_score"] == 1
    assert attrition(image_study_run)["unreadable"] == 1
    assert parts(image_study_run, "refusals/score-*.parquet")["network_id"].is_not_null().all()


@pytest.mark.parametrize("stopped_at", ["part-", "scores"])
def test_refusals_outlast_a_kill_before_their_part_is_written(
    image_study_done: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    wanted = counts(image_study_done)
    for folder in ("network_outputs", "refusals"):
        for path in (image_study_done / LEVEL / folder).glob("[ps]*.parquet"):
            path.unlink()
    with monkeypatch.context() as patched:
        stop_writing(patched, stopped_at)
        assert cli("score", image_study_done).code == 130
    assert cli("score", image_study_done).code == 0
    assert counts(image_study_done) == wanted


def test_refusals_outlast_outputs_that_are_moved_away(image_study_done: Path) -> None:
    wanted = counts(image_study_done)
    shutil.rmtree(image_study_done / LEVEL / "network_outputs")
    assert cli("score", image_study_done).code == 0
    assert counts(image_study_done) == wanted


@pytest.fixture
def large_study(image_study: Path) -> Path:
    """The study with 2,300 films more, enough for two parts: one film under many identifiers."""
    film = next((image_study / "archive").rglob("1.dcm"))
    uid = pydicom.dcmread(film, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
    content = film.read_bytes()
    (image_study / "archive/many").mkdir()
    for number in range(2_300):
        copied = content.replace(uid.encode(), f"{uid[:-4]}{1_000 + number}".encode())
        (image_study / f"archive/many/{number}.dcm").write_bytes(copied)
    return image_study


def index_of(study: Path) -> pl.DataFrame:
    found = parts(study, "index/part-*.parquet").sort("uri")
    assert found["uri"].is_unique().all()
    return found


def started_index(study: Path, ready: Callable[[], bool]) -> subprocess.Popen[str]:
    """A process that indexes in children of its own, once it is as far as wanted."""
    process = subprocess.Popen(
        [*COMMAND, "index", str(study), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("written", ["refusals/index-00001", "index/part-00000", "index/set_aside"])
def test_no_file_is_lost_or_doubled_when_index_is_killed(large_study: Path, written: str) -> None:
    """Killed as soon as this file stands: before the first part, before the second, and while the index settles."""
    process = started_index(large_study, (large_study / LEVEL / f"{written}.parquet").is_file)
    process.kill()
    process.communicate()
    wait_for_the_end(process.pid)
    standing = parts(large_study, "index/part-*.parquet") if "refusals" not in written else None
    assert cli("index", large_study).code == 0
    found, refused = index_of(large_study), parts(large_study, "refusals/index-*.parquet").sort("uri")
    counts(large_study)
    if standing is not None:
        kept = found.join(standing, on=["uri", "shard"], how="semi")
        assert len(kept) == standing.join(found, on="uri", how="semi").height > 1_900
    shutil.rmtree(large_study / "outputs")
    assert cli("index", large_study, "--workers", "1").code == 0
    assert found.drop("shard").equals(index_of(large_study).drop("shard"))
    assert refused.equals(parts(large_study, "refusals/index-*.parquet").sort("uri"))


def reading_index(study: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that indexes, and children of its own that read headers."""
    process = started_index(study, (study / "outputs/.lock").is_file)
    children: list[int] = []
    while not children:
        assert process.poll() is None, process.communicate()
        children = [pid for pid in members(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return process, children


def test_index_interrupted_ends_at_once_and_leaves_no_process(large_study: Path) -> None:
    """The signal reaches the command alone: its children are ended by it."""
    process, _ = reading_index(large_study)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[-3:] == [
        "Interrupted.",
        "What was finished stands.",
        "Run the same command again to go on.",
    ]
    wait_for_the_end(process.pid)


def test_index_ends_with_17_when_a_process_of_its_own_is_killed(large_study: Path) -> None:
    process, children = reading_index(large_study)
    os.kill(children[0], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=60)
    told(Answer(process.returncode, stdout, stderr), 17, "A process that read headers was killed")
    wait_for_the_end(process.pid)
    assert cli("index", large_study).code == 0
    counts(large_study)


@pytest.mark.parametrize("stopped_at", ["part-", "set_aside", "index-00000"])
def test_no_file_is_lost_by_a_kill_of_index(
    image_study: Path, image_study_run: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: str
) -> None:
    with monkeypatch.context() as patched:
        stop_writing(patched, stopped_at)
        assert cli("index", image_study).code == 130
    assert cli("index", image_study).code == 0
    assert counts(image_study) == {name: counts(image_study_run)[name] for name in ("files", "rows", "refused_index")}


def test_a_film_that_is_mended_and_scored_is_no_longer_unreadable(image_study_done: Path) -> None:
    assert attrition(image_study_done)["unreadable"] == 1
    film = broken_film(image_study_done)
    mend(film)
    for verb in ("index", "link", "score", "prognosis"):
        assert cli(verb, image_study_done).code == 0
    assert attrition(image_study_done).get("unreadable", 0) == 0
    assert counts(image_study_done)["refused_score"] == 0


def test_a_refusal_stands_for_the_networks_that_made_it(
    image_study_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film that another bundle's networks gave no number for is tried again."""
    from cohort_scorer.imaging import scoring

    wanted = counts(image_study_done)
    path = next((image_study_done / LEVEL / "refusals").glob("score-*.parquet"))
    refused = pl.read_parquet(path)
    sound = pl.read_parquet(image_study_done / LEVEL / "scores.parquet")["uri"][0]
    film = parts(image_study_done, "index/part-*.parquet").filter(pl.col("uri") == sound)
    place = film.select("uri", "root", "file_size", "file_mtime_ns")
    other = place.with_columns(
        network_id=pl.lit("another"),
        step=pl.lit("score"),
        reason=pl.lit("non_finite_output"),
        detail=pl.lit("a network gave no finite number"),
        radiograph=pl.lit(True),
    ).select(refused.columns)
    pl.concat([refused, other]).write_parquet(path)
    shutil.rmtree(image_study_done / LEVEL / "network_outputs")
    tried: list[int] = []
    original = scoring.score

    def counted(rows: pl.DataFrame, *others: Any) -> Any:
        tried.append(len(rows))
        return original(rows, *others)

    monkeypatch.setattr(scoring, "score", counted)
    assert cli("score", image_study_done).code == 0
    assert tried == [wanted["scored"]]
    assert counts(image_study_done) == wanted


def test_an_index_of_an_older_version_is_made_again(image_study_done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cohort_scorer.imaging import index as archive

    def opened() -> int:
        assert cli("index", image_study_done).code == 0
        manifest = json.loads((image_study_done / "outputs/unprotected/manifests/index.json").read_text())
        return int(manifest["facts"]["n_opened"])

    assert opened() == 0
    monkeypatch.setattr(archive, "VERSION", archive.VERSION + 1)
    assert opened() == counts(image_study_done)["files"]


def test_a_file_that_was_away_or_locked_is_tried_again(image_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cohort_scorer.imaging import header
    from cohort_scorer.imaging.refusal import Refused

    original = header.read
    with monkeypatch.context() as patched:

        def locked(path: Path) -> dict[str, Any]:
            if path.name == "1.dcm" and path.parent.name.endswith("3"):
                raise Refused("unreadable_file", "PermissionError")
            return original(path)

        patched.setattr(header, "read", locked)
        cli("index", image_study)
    assert "unreadable_file" in set(parts(image_study, "refusals/index-*.parquet")["reason"])
    assert cli("index", image_study).code == 0
    assert "unreadable_file" not in set(parts(image_study, "refusals/index-*.parquet")["reason"])
    counts(image_study)


@pytest.fixture
def other_study(image_study_run: Path, tmp_path: Path) -> Path:
    """A study without films that uses the index, archive and bundle of another."""
    theirs = os.path.relpath(image_study_run, tmp_path / "other")
    study = copy(image_study_run, tmp_path / "other")
    shutil.rmtree(study / "archive")
    substitute(
        study / "study.toml",
        '^root = "archive"',
        f'root = "{theirs}/archive"\nindex = "{theirs}/{LEVEL}/index"\nviews = ["PA"]',
    )
    substitute(study / "study.toml", '^bundle = "outputs/model"', f'bundle = "{theirs}/outputs/model"')
    substitute(study / "study.toml", r"^\[train\][\s\S]*?(?=^\[)", "")
    substitute(study / "study.toml", r"^\[model\]", "[model]\ntrained_elsewhere = true")
    return study


def test_the_index_of_another_study_serves_with_own_roots_and_rules(other_study: Path, image_study_run: Path) -> None:
    answer = cli("index", other_study, "--json")
    assert answer.code == 0
    facts = json.loads(answer.stdout)["facts"]
    index = parts(image_study_run, "index/part-*.parquet")
    n_pa = index.filter(pl.col("eligible") & (pl.col("view") == "PA")).height
    assert facts["n_rows"] == len(index)
    assert facts["n_opened"] == 0
    assert 0 < n_pa == facts["n_eligible"] < index["eligible"].sum()
    for verb in ("check", "link", "score"):
        assert cli(verb, other_study).code == 0
    scores = pl.read_parquet(other_study / LEVEL / "scores.parquet")
    refused = parts(other_study, "refusals/score-*.parquet")
    assert len(scores) + len(refused) == n_pa
    assert set(scores["view"]) == {"PA"}
    assert not (other_study / LEVEL / "index").exists()


@pytest.mark.parametrize("fault", ["another root", "a listing"])
def test_an_index_of_another_study_that_does_not_fit_ends_with_10(other_study: Path, fault: str) -> None:
    if fault == "another root":
        substitute(other_study / "study.toml", '^root = (".*")', r'root = [\1, "more"]')
    else:
        substitute(other_study / "study.toml", "^views = ", 'listing = "listing.csv"\nviews = ')
    told(cli("index", other_study), 10, "does not fit the index of the other study")


def distances_of_strange_films(study: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Let hands and lateral films through to `score`: the feature distances of those films, and of the others."""
    let_through = '[archive]\nbody_parts = ["CHEST", "HAND"]\nviews = ["PA", "AP", "LATERAL"]'
    substitute(study / "study.toml", r"^\[archive\]", let_through)
    assert cli("index", study).code == 0
    assert cli("score", study).code == 0
    index = parts(study, "index/part-*.parquet").select("image_id", "body_part_examined")
    found = pl.read_parquet(study / LEVEL / "scores.parquet").join(index, on="image_id")
    is_strange = (pl.col("body_part_examined") == "HAND") | (pl.col("view") == "LATERAL")
    strange, ordinary = found.filter(is_strange), found.filter(~is_strange)
    assert set(strange["body_part_examined"]) == {"CHEST", "HAND"}
    return strange, ordinary


def test_hands_and_other_views_lie_far_from_the_training_films(image_study_done: Path) -> None:
    """Nearly all, where a network was fitted to 42 patients; the soak tests have one that saw enough to part them."""
    strange, ordinary = distances_of_strange_films(image_study_done)
    is_strange = [True] * len(strange) + [False] * len(ordinary)
    assert roc_auc_score(is_strange, pl.concat([strange, ordinary])["feature_distance"]) > 0.95
    assert strange["feature_distance_percent"].median() == 100
