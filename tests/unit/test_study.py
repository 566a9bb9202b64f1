"""The study file: the contract's defaults, and every fault told at once."""

import re
from pathlib import Path
from typing import Any

import pytest

from cohort_scorer.errors import StudyFileError
from cohort_scorer.study import load

# contract.md, `study.toml`: the value of every key that has a default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "study": {"seed": 2025, "output": "outputs", "simulated": False, "dates_shifted_per_subject": False},
    "archive": {
        "listing": "",
        "index": "",
        "modalities": ["CR", "DX", "RG"],
        "body_parts": ["CHEST", "THORAX", ""],
        "views": ["PA", "AP"],
        "unknown_view": "exclude",
        "maximum_refused_percent": 20.0,
    },
    "tables": {
        **dict.fromkeys(["cacs", "clinical", "follow_up", "events", "diagnoses", "scores"], ""),
        "faulty_rows": "stop",
        "map": {},
    },
    "cohort": {
        "maximum_days_between": 180,
        "pairing": "nearest",
        "minimum_age_years": 18,
        "exclude_if": [],
        "exclude_between": [],
    },
    "model": {
        "bundle": "outputs/model",
        "category_rule": "prevalence",
        "members": "refit",
        "trained_elsewhere": False,
        "precision": "float32",
    },
    "train": {
        "sites": [],
        "design": "three_models",
        "backbone": "resnet-small",
        "trainable": "all",
        "image_size": 512,
        "folds": 10,
        "epochs": 30,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "integrate": ["age_years", "sex", "bmi"],
        "stacking": "simple",
    },
    "outcome": {
        "name": "MACE",
        "competing": [],
        "terminal": None,  # Every type that contains "death": known once the events are read.
        "blanking_days": {},
        "prior_events": "exclude",
        "landmark_days": 0,
        "horizon_years": [1, 3, 5],
    },
    "comparison": {
        "adjust_for": ["age_at_t0_years", "sex", "bmi"],
        "bootstrap_replicates": 1000,
        "confidence_level": 0.95,
        "noninferiority_margin_c": "",
        "allow_in_sample": False,
    },
    "audit": {"strata": ["sex", "age_band", "site"], "threshold": 100},
    "release": {"disclosure": "none", "formats": ["svg", "png"]},
}

REQUIRED = """
[study]
title = "A study"
[archive]
root = "archive"
[tables]
[cohort]
[model]
[train]
[outcome]
components = ["death"]
[comparison]
[audit]
[release]
"""


def write(folder: Path, text: str) -> Path:
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return folder


def fault(folder: Path, text: str) -> str:
    with pytest.raises(StudyFileError) as caught:
        load(write(folder, text))
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    return message


def test_every_default_is_the_contracts(tmp_path: Path) -> None:
    study = load(write(tmp_path, REQUIRED))
    for section, keys in DEFAULTS.items():
        held = getattr(study, section).model_dump()
        required = {"study": {"title"}, "archive": {"root"}, "outcome": {"components"}}.get(section, set())
        assert {key: value for key, value in held.items() if key not in required} == keys, section


def test_a_study_is_frozen(tmp_path: Path) -> None:
    study = load(write(tmp_path, REQUIRED))
    with pytest.raises(ValueError, match="frozen"):
        study.study.seed = 1


def test_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, REQUIRED)
    monkeypatch.chdir(tmp_path)
    study = load(Path("study.toml"))
    assert study.folder == tmp_path.resolve()
    assert study.patient_level == tmp_path.resolve() / "outputs/patient_level"
    assert study.roots == {"archive": tmp_path.resolve() / "archive"}


def test_several_roots_keep_their_names(tmp_path: Path) -> None:
    study = load(write(tmp_path, REQUIRED.replace('"archive"', '["a", "/b"]')))
    assert study.roots == {"a": tmp_path.resolve() / "a", "/b": Path("/b")}


def test_absent_sections_are_absent_and_asked_for_by_name(tmp_path: Path) -> None:
    study = load(write(tmp_path, '[study]\ntitle = "A study"\n'))
    assert study.cohort is study.model is study.train is study.outcome is study.audit is study.archive is None
    with pytest.raises(StudyFileError, match=r"the section \[train\] is missing"):
        study.require("train")


def test_choices_tell_what_was_declared(tmp_path: Path) -> None:
    study = load(write(tmp_path, '[study]\ntitle = "A study"\nseed = 2025\n'))
    origins = {(section, key): origin for section, key, _, origin in study.choices()}
    assert origins["study", "seed"] == "declared"
    assert origins["study", "simulated"] == "default"
    assert ("cohort", "pairing") not in origins


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[study]\ntitel = "x"\n', "[study] titel is unknown, did you mean title?"),
        ('[study]\ntitle = "x"\n[outcom]\n', "[outcom] is unknown, did you mean outcome?"),
        ('[study]\ntitle = "x"\nzzz = 1\n', "[study] zzz is unknown, known: title, seed"),
        ('[study]\ntitle = ""\n', "[study] title: "),
        ('[study]\ntitle = "x"\n[outcome]\n', "[outcome] components is required"),
        ('[study]\ntitle = "x"\n[outcome]\ncomponents = []\n', "[outcome] components: "),
        ('[study]\ntitle = "x"\n[archive]\n', "[archive] root is required"),
        ('[study]\ntitle = "x"\n[model]\ncategory_rule = "prevalance"\n', "expected prevalence, youden, argmax"),
        ('[study]\ntitle = "x"\n[model]\ncategory_rule = "sensitivity:1.5"\n', "[model] category_rule: expected"),
        ('[study]\ntitle = "x"\n[model]\ncategory_rule = [0.1, 0.2]\n', "[model] category_rule: expected"),
        ('[study]\ntitle = "x"\n[comparison]\nconfidence_level = 95\n', "less than 1, found 95"),
        (
            '[study]\ntitle = "x"\n[outcome]\ncomponents = ["d"]\nblanking_days = { d = -1 }\n',
            "[outcome] blanking_days",
        ),
        ('cohort = 3\n[study]\ntitle = "x"\n', "[cohort] is a section"),
        ('file = "x"\n[study]\ntitle = "x"\n', "[file] is unknown"),
        ("", "[study] is required"),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    assert told in fault(tmp_path, text)


def test_all_faults_are_told_once_and_counted(tmp_path: Path) -> None:
    message = fault(tmp_path, "[study]\nseed = -1\n[train]\nfolds = 1\nepochs = 0\n[audit]\nthreshold = 50\n")
    assert "5 faults" in message
    for place in ("[study] title", "[study] seed", "[train] folds", "[train] epochs", "[audit] threshold"):
        assert len(re.findall(re.escape(place), message)) == 1


@pytest.mark.parametrize("rule", ['"youden"', '"argmax"', '"sensitivity:0.90"', '"specificity:.8"', "[0.5, 0.3, 0.1]"])
def test_every_category_rule_of_the_contract_is_taken(tmp_path: Path, rule: str) -> None:
    load(write(tmp_path, f'[study]\ntitle = "x"\n[model]\ncategory_rule = {rule}\n'))


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_bytes(b'\xef\xbb\xbf[study]\ntitle = "x"\n')
    assert load(tmp_path).study.title == "x"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"[study\n", "at line 1"),
        (b'[study]\ntitle = "C:\\data"\n', "write / instead of \\"),
        (b'[study]\ntitle = "K\xf6ln"\n', "another encoding (at line 2)"),
        (b'[study]\ntitle = "x"\n[study]\n', "at line 3"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "study.toml").write_bytes(data)
    with pytest.raises(StudyFileError) as caught:
        load(tmp_path)
    assert told in str(caught.value)


@pytest.mark.parametrize("named", ["", "study.toml", "nowhere"])
def test_an_absent_study_file_is_told(tmp_path: Path, named: str) -> None:
    with pytest.raises(StudyFileError, match="no study file here"):
        load(tmp_path / named)
