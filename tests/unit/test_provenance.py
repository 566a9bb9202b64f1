"""What a step leaves behind, and what the next run of it takes away."""

import hashlib
import json
from pathlib import Path

import pytest

from cohort_scorer import errors, provenance
from cohort_scorer.provenance import Step
from cohort_scorer.study import Study, load


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "study.toml").write_text('[study]\ntitle = "A study"\nseed = 7\n')
    return load(tmp_path)


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def finished(study: Study, name: str, *paths: Path) -> None:
    step = Step(study, name)
    step.wrote(*paths)
    step.finish()


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert provenance.digest({"a": 1, "b": [1, 2]}) == provenance.digest({"b": [1, 2], "a": 1})
    assert provenance.digest({"a": 1, "b": [1, 2]}) != provenance.digest({"a": 1, "b": [2, 1]})


def test_a_manifest_names_inputs_outputs_and_their_hashes(study: Study) -> None:
    table, output = write(study.folder / "t.csv", "in"), write(study.output / "release/o.csv", "out")
    step = Step(study, "link")
    step.read(table, "t.csv")
    step.read(study.folder / "absent.csv", "absent.csv")
    step.facts["n_patients"] = 3
    step.wrote(output, output)
    manifest = json.loads(step.finish().read_text())
    assert manifest["inputs"] == {"t.csv": hashlib.sha256(b"in").hexdigest()}
    assert manifest["outputs"] == {"release/o.csv": hashlib.sha256(b"out").hexdigest()}
    assert manifest["facts"] == {"n_patients": 3}
    assert (manifest["step"], manifest["seed"], manifest["simulated"]) == ("link", 7, False)
    assert manifest["study_sha256"] == provenance.sha256(study.file)
    assert manifest["versions"]["polars"] != "not installed"


def test_an_output_outside_the_output_folder_is_named_from_there(study: Study) -> None:
    step = Step(study, "train")
    step.wrote(write(study.folder / "models/bundle.json"))
    assert list(json.loads(step.finish().read_text())["outputs"]) == ["../models/bundle.json"]


def test_a_step_forgets_what_it_wrote_before(study: Study) -> None:
    old = write(study.output / "release/old.csv")
    finished(study, "validate", old)
    Step(study, "validate").forget_outputs()
    assert not old.exists()
    assert not Step(study, "validate").path.exists()


def test_a_step_keeps_what_another_wrote_too(study: Study) -> None:
    """attrition.csv holds rows of link and of prognosis: prognosis again must not lose those of link."""
    shared = write(study.output / "unprotected/tables/attrition.csv")
    finished(study, "link", shared)
    finished(study, "prognosis", shared)
    Step(study, "prognosis").forget_outputs()
    assert shared.exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"outputs": 3}'])
def test_an_edited_manifest_names_nothing(study: Study, text: str) -> None:
    write(Step(study, "link").path, text)
    Step(study, "link").forget_outputs()
    assert not Step(study, "link").path.exists()


def test_every_error_has_a_code_of_its_own_and_three_lines() -> None:
    classes = errors.CohortScorerError.__subclasses__()
    codes = {kind.__name__: kind.exit_code for kind in classes}
    assert sorted(codes.values()) == [10, 11, 12, 13, 14, 15, 16, 17]
    message = str(errors.StudyFileError("a\nb", "c\x1b[31m", "d\r\ne\u2028f"))
    assert message.split("\n") == ["a b", "c [31m", "d  e f"]
