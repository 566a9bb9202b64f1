"""Shards: whatever is killed, split, reordered or resized, a film's raw outputs are the same to the last bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from studies import COMMAND, cli, copy, shell, told, wait_for_the_end

from cohort_scorer import storage
from cohort_scorer.imaging import decoding, ledger

LEVEL = "outputs/patient_level"
SHARD_ROWS = 16


@pytest.fixture(scope="module")
def scored_run(image_study_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of films in shards of 16 rows, scored in one go. Read only."""
    study = copy(image_study_run, tmp_path_factory.mktemp("shards") / "study", outputs=True)
    for folder in ("index", "refusals", "network_outputs"):
        shutil.rmtree(study / LEVEL / folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger, "_SHARD_ROWS", SHARD_ROWS)
        assert cli("index", study).code == 0
    assert cli("score", study).code == 0
    return study


@pytest.fixture
def scored(scored_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copy(scored_run, tmp_path / "study", outputs=True)


@pytest.fixture
def indexed(scored: Path) -> Path:
    """The same study before it is scored."""
    forget(scored)
    return scored


def forget(study: Path) -> None:
    shutil.rmtree(study / LEVEL / "network_outputs", ignore_errors=True)
    for path in [*(study / LEVEL / "refusals").glob("score-*"), study / LEVEL / "scores.parquet"]:
        path.unlink(missing_ok=True)


def results(study: Path) -> dict[str, bytes]:
    """All bytes that scoring leaves at patient level."""
    patterns = ("network_outputs/*", "refusals/score-*", "scores.parquet")
    found = [path for pattern in patterns for path in (study / LEVEL).glob(pattern)]
    return {path.relative_to(study).as_posix(): path.read_bytes() for path in found}


def outputs(study: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted((study / LEVEL / "network_outputs").glob("part-*")))


def parts(study: Path) -> int:
    return len(list((study / LEVEL / "network_outputs").glob("part-*")))


def test_shards_are_ranges_of_index_parts_and_outputs_carry_their_names(scored_run: Path) -> None:
    index = pl.read_parquet(scored_run / LEVEL / "index/part-00000.parquet")
    sizes = index.group_by("shard").len()
    assert len(sizes) > 8
    assert sizes["len"].max() <= SHARD_ROWS
    assert index["shard"].is_sorted()
    for path in (scored_run / LEVEL / "network_outputs").iterdir():
        mine = index.filter("eligible", pl.col("shard") == path.stem.removeprefix("part-"))["uri"].to_list()
        found = pl.read_parquet(path)["uri"].to_list()
        assert found == [uri for uri in mine if uri in found]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_workers_change_no_byte(indexed: Path, scored_run: Path, workers: str) -> None:
    assert cli("score", indexed, "--workers", workers).code == 0
    assert results(indexed) == results(scored_run)


def test_jobs_with_a_share_each_give_the_same_bytes_in_any_order(indexed: Path, scored_run: Path) -> None:
    for share in ("3/3", "1/3", "2/3"):
        answer = cli("score", indexed, "--shard", share)
        assert answer.code == 0
        assert answer.stdout.strip().endswith("network_outputs")
        assert not (indexed / LEVEL / "scores.parquet").exists()
    assert cli("score", indexed).code == 0
    assert results(indexed) == results(scored_run)


def test_jobs_may_run_side_by_side_and_keep_others_out(indexed: Path, scored_run: Path) -> None:
    commands = [[*COMMAND, "score", str(indexed), "--shard", f"{i}/2", "--workers", "1", "--quiet"] for i in (1, 2)]
    jobs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    while len(list((indexed / "outputs").glob(".lock-*"))) < 2:
        assert all(job.poll() is None for job in jobs)
        time.sleep(0.01)
    told(cli("score", indexed), 17, "locked")
    told(cli("score", indexed, "--shard", "1/2"), 17, "locked")
    assert [job.wait() for job in jobs] == [0, 0]
    assert cli("score", indexed).code == 0
    assert results(indexed) == results(scored_run)


@pytest.mark.parametrize("share", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_share_that_is_none_ends_with_2(indexed: Path, share: str) -> None:
    assert cli("score", indexed, "--shard", share).code == 2


def kill_when(study: Path, ready: Callable[[], bool]) -> None:
    """Kill a scoring command, not its children: these must end by themselves."""
    process = subprocess.Popen([*COMMAND, "score", str(study), "--quiet"], stdout=subprocess.DEVNULL)
    while not ready():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("n_parts", [0, 1, 5])
def test_a_killed_run_goes_on_to_the_same_bytes(indexed: Path, scored_run: Path, n_parts: int) -> None:
    lock = indexed / "outputs/.lock"
    lock.unlink(missing_ok=True)
    kill_when(indexed, lambda: lock.exists() and parts(indexed) >= n_parts)
    assert parts(indexed) >= n_parts
    assert cli("score", indexed).code == 0
    assert results(indexed) == results(scored_run)


@pytest.mark.soak
def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(indexed: Path, scored_run: Path) -> None:
    """From its start, through reading the index and every shard, to the assembly of the scores; 20 kills."""
    n_shards, moments, standing = parts(scored_run), random.Random(3), []
    for number in range(20):
        if number % 4 == 0:
            forget(indexed)
        stood = parts(indexed)
        wanted = moments.choice([0, *range(stood, n_shards)])
        process = subprocess.Popen(
            [*COMMAND, "score", str(indexed), "--quiet"], stdout=subprocess.DEVNULL, start_new_session=True
        )
        while parts(indexed) < wanted and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3 if wanted else 6))
        process.kill()
        process.wait()
        wait_for_the_end(process.pid)
        standing.append(parts(indexed))
    assert len(set(standing)) > 5, standing
    assert cli("score", indexed).code == 0
    assert results(indexed) == results(scored_run)
    assert not list((indexed / "outputs").rglob("*.half"))


def test_films_of_shards_that_stand_are_not_decoded_again(
    indexed: Path, scored_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = storage.write_parquet, []

    def stopped(frame: pl.DataFrame, path: Path) -> None:
        if path.parent.name == "network_outputs":
            written.append(path)
            if len(written) == 4:
                raise KeyboardInterrupt
        original(frame, path)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_parquet", stopped)
        assert cli("score", indexed).code == 130
    assert parts(indexed) == 3
    stood = set(outputs(indexed)["uri"])
    decoded: list[str] = []
    radiographs = decoding.radiographs
    monkeypatch.setattr(
        decoding,
        "radiographs",
        lambda rows, *others: radiographs((decoded.append(r["uri"]) or r for r in rows), *others),
    )
    assert cli("score", indexed).code == 0
    assert decoded
    assert not stood & set(decoded)
    assert results(indexed) == results(scored_run)


def test_another_batch_size_changes_no_more_than_rounding(indexed: Path, scored_run: Path) -> None:
    assert cli("score", indexed, "--batch-size", "3").code == 0
    plain, other = outputs(scored_run), outputs(indexed)
    assert plain["uri"].equals(other["uri"])
    for name in [column for column in plain.columns if column.startswith("logit_")]:
        plain_p, other_p = (1 / (1 + (-frame[name]).exp()) for frame in (plain, other))
        assert (plain_p - other_p).abs().max() < 1e-5


def test_a_growing_archive_keeps_its_shards(scored: Path) -> None:
    """One film goes, a copy of it under another SOPInstanceUID comes: no part that stood is written again."""
    before = results(scored)
    archive = scored / "archive"
    uri, image_id = outputs(scored).select("uri", "image_id").row(0)
    content = (archive / uri).read_bytes()
    new_id = image_id[:-1] + ("8" if image_id.endswith("7") else "7")
    assert content.count(image_id.encode()) == 2
    (archive / uri).with_name("new.dcm").write_bytes(content.replace(image_id.encode(), new_id.encode()))
    (archive / uri).unlink()
    assert cli("index", scored).code == 0
    assert cli("score", scored).code == 0
    after = results(scored)
    assert {name for name in before if before[name] != after.get(name)} == {f"{LEVEL}/scores.parquet"}
    ids = set(pl.read_parquet(scored / LEVEL / "scores.parquet")["image_id"])
    assert new_id in ids
    assert image_id not in ids


def test_outputs_of_another_network_are_never_mixed_in(scored: Path) -> None:
    part = sorted((scored / LEVEL / "network_outputs").iterdir())[2]
    pl.read_parquet(part).with_columns(network_id=pl.lit("another")).write_parquet(part)
    told(cli("score", scored), 12, "another bundle, preprocessing or precision")


def test_the_manifest_says_where_the_time_went(indexed: Path) -> None:
    answer = cli("score", indexed, "--json")
    spent = json.loads(answer.stdout)["facts"]["seconds"]
    assert set(spent) == {"read", "decode", "resize", "network", "write"}
    assert all(seconds > 0 for seconds in spent.values())


def test_kept_images_serve_training_and_scoring(image_study: Path, image_study_run: Path) -> None:
    assert cli("run", image_study, "--keep-images").code == 0
    kept = list((image_study / LEVEL / "images").glob("*/part-*.npy"))
    assert kept
    columns = pl.exclude("model_id")
    plain, found = (pl.read_parquet(study / LEVEL / "scores.parquet") for study in (image_study_run, image_study))
    assert plain.select(columns).equals(found.select(columns))


def test_ctrl_c_ends_with_130_at_once_and_no_child_stays(indexed: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "score", str(indexed)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while parts(indexed) < 1:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-3] == "Interrupted."
    wait_for_the_end(process.pid)
    assert shell("score", str(indexed), "--quiet").code == 0
