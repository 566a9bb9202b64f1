"""A bundle is whole or refused; and who of an archive had been seen by its networks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from small_bundle import CATEGORIES, KEY, edit, in_memory, write

from cohort_scorer import provenance, schemas
from cohort_scorer.errors import BundleError
from cohort_scorer.prediction import bundle
from cohort_scorer.prediction.bundle import keyed_hash

RULES = {"category_rule": "prevalence", "members": "refit", "bundle": "outputs/model"}


def test_a_bundle_that_nobody_touched_is_read(tmp_path):
    found = bundle.load(write(tmp_path / "model"), CATEGORIES)
    assert found.folds == 2
    assert len(found.networks) == len(found.layers) / 3 == 9
    assert found.networks["ge100-refit"] == ["ge100-refit"]


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def name_another(folder: Path, name: str, held: bytes) -> None:
    path = folder / name
    path.write_bytes(held)
    edit(folder, lambda content: content["files"].update({name: provenance.sha256(path)}))


def two_folds(folder: Path, *people: tuple[str, str, int]) -> None:
    """Other training patients, with their sha256: patient, pixels, fold."""
    rows = [(keyed_hash(KEY, "A", patient), keyed_hash(KEY, pixels), fold) for patient, pixels, fold in people]
    path = folder / "training_patients.parquet"
    pl.DataFrame(rows, schema=schemas.columns("training_patients"), orient="row").write_parquet(path)
    edit(folder, lambda content: content["files"].update({path.name: provenance.sha256(path)}))


def link_away(folder: Path) -> None:
    path = folder / "ge100-refit" / "model.safetensors"
    path.rename(folder.parent / "elsewhere.safetensors")
    path.symlink_to(folder.parent / "elsewhere.safetensors")


def forget(folder: Path, key: str, name: object) -> None:
    edit(folder, lambda content: content[key].remove(name) if isinstance(name, dict) else content[key].pop(name))


NETWORK = {"name": "ge100-fold1", "outputs": [{"threshold": "ge100", "fold": 1}]}
DAMAGE = {
    "a flipped byte in weights": lambda m: flip(m / "gt0-fold1" / "model.safetensors"),
    "a flipped byte in the cut grid": lambda m: flip(m / "cut_grid.parquet"),
    "a flipped byte in the training patients": lambda m: flip(m / "training_patients.parquet"),
    "a flipped byte in the model card": lambda m: flip(m / "MODEL_CARD.md"),
    "weights missing": lambda m: (m / "ge400-refit" / "model.safetensors").unlink(),
    "config missing": lambda m: (m / "ge400-refit" / "config.json").unlink(),
    "training patients missing": lambda m: (m / "training_patients.parquet").unlink(),
    "cut grid missing": lambda m: (m / "cut_grid.parquet").unlink(),
    "a pickle named": lambda m: name_another(m, "layers.pkl", b"cos\nsystem\n"),
    "a pickle that nobody named": lambda m: (m / "gt0-refit" / "pytorch_model.bin").write_bytes(b"cos"),
    "a network that nobody named": lambda m: shutil.copytree(m / "gt0-refit", m / "gt0-fold7"),
    "an output twice": lambda m: edit(m, lambda c: c["networks"][0]["outputs"].append({"threshold": "gt0", "fold": 0})),
    "a patient in two folds": lambda m: two_folds(m, ("1", "a", 0), ("1", "b", 1)),
    "a film in two folds": lambda m: two_folds(m, ("1", "a", 0), ("2", "a", 1)),
    "a .pt named": lambda m: name_another(m, "weights.pt", b"x"),
    "an absolute name": lambda m: edit(m, lambda c: c["files"].update({"/etc/hosts.json": "0" * 64})),
    "a name that climbs out": lambda m: edit(m, lambda c: c["files"].update({"../other.json": "0" * 64})),
    "a name that climbs out midway": lambda m: edit(m, lambda c: c["files"].update({"a/../../other.json": "0" * 64})),
    "a link to a file elsewhere": link_away,
    "another grid: 300 for 400": lambda m: edit(m, lambda c: c["categories"][3].update({"lower": 300})),
    "another grid: the side": lambda m: edit(m, lambda c: c["categories"][2].update({"upper_closed": True})),
    "another grid: the names": lambda m: edit(m, lambda c: c["categories"][0].update({"name": "zero"})),
    "another format": lambda m: edit(m, lambda c: c.update({"format": 99})),
    "bundle.json truncated": lambda m: (m / "bundle.json").write_bytes((m / "bundle.json").read_bytes()[:200]),
    "bundle.json empty": lambda m: (m / "bundle.json").write_text(""),
    "bundle.json a list": lambda m: (m / "bundle.json").write_text("[]"),
    "bundle.json not UTF-8": lambda m: (m / "bundle.json").write_bytes(b"\xff\xfe\x00{"),
    "bundle.json missing": lambda m: (m / "bundle.json").unlink(),
    "the folder missing": shutil.rmtree,
    "no simulated": lambda m: edit(m, lambda c: c.pop("simulated")),
    "no image_size": lambda m: edit(m, lambda c: c.pop("image_size")),
    "no files": lambda m: edit(m, lambda c: c.pop("files")),
    "no layers": lambda m: edit(m, lambda c: c.pop("layers")),
    "layers empty": lambda m: edit(m, lambda c: c["layers"].clear()),
    "one layer of a fold gone": lambda m: edit(m, lambda c: c["layers"].pop()),
    "no networks": lambda m: edit(m, lambda c: c["networks"].clear()),
    "a network not listed": lambda m: edit(m, lambda c: c["networks"].remove(NETWORK)),
    "weights that nobody verified": lambda m: edit(m, lambda c: c["files"].pop("ge100-fold1/model.safetensors")),
    "patients that nobody verified": lambda m: edit(m, lambda c: c["files"].pop("training_patients.parquet")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_is_refused_in_three_lines(tmp_path, damage):
    folder = write(tmp_path / "model")
    DAMAGE[damage](folder)
    with pytest.raises(BundleError) as refused:
        bundle.load(folder, CATEGORIES)
    assert len(str(refused.value).splitlines()) == 3
    assert refused.value.exit_code == 12
    assert str(tmp_path) not in str(refused.value)


def test_a_study_with_other_categories_refuses_the_bundle(tmp_path):
    with pytest.raises(BundleError, match="contradict"):
        bundle.load(write(tmp_path / "model"), ("CAC 0", "CAC 1-99", "CAC 100-299", "CAC 300+"))


def test_the_grid_has_the_closed_sides_of_methods():
    grid = {row.pop("name"): tuple(row.values()) for row in bundle.category_grid(CATEGORIES)}
    assert grid == {
        "CAC 0": (0, True, 0, True),
        "CAC 1-99": (0, False, 100, False),
        "CAC 100-399": (100, True, 400, False),
        "CAC 400+": (400, True, None, False),
    }


def ids(folder: Path, rules: dict[str, object] = RULES) -> tuple[str, str]:
    found = bundle.load(folder, CATEGORIES)
    return found.model_id(rules), found.network_id("float32")


def test_neither_prose_nor_place_is_part_of_the_model_id(tmp_path):
    first = ids(write(tmp_path / "model"))
    assert ids(write(tmp_path / "deep" / "elsewhere", title="Another title, another card")) == first
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "model", moved)
    assert ids(moved, {**RULES, "bundle": "somewhere/else"}) == first
    edit(moved, lambda content: content.update({"versions": {"python": "4"}}))
    assert ids(moved) == first


def test_every_number_of_bundle_and_study_file_is_part_of_the_model_id(tmp_path):
    folder = write(tmp_path / "model")
    first = ids(folder)
    assert ids(folder, {**RULES, "category_rule": "youden"})[0] != first[0]
    assert ids(folder, {**RULES, "members": "folds"})[0] != first[0]
    assert bundle.load(folder, CATEGORIES).network_id("bfloat16") != first[1]
    edit(folder, lambda content: content["layers"][0].update({"intercept": 0.25}))
    other_layer = ids(folder)
    assert (other_layer[0] != first[0], other_layer[1] == first[1]) == (True, True)
    weights = folder / "gt0-fold0" / "model.safetensors"
    flip(weights)
    name = "gt0-fold0/model.safetensors"
    edit(folder, lambda content: content["files"].update({name: provenance.sha256(weights)}))
    other_weights = ids(folder)
    assert other_weights[0] not in (first[0], other_layer[0])
    assert other_weights[1] != first[1]


def test_what_is_written_is_json_that_names_every_file(tmp_path):
    folder = write(tmp_path / "model")
    named = json.loads((folder / "bundle.json").read_text())["files"]
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(named) == there - {"bundle.json"}


# Site A trained the bundle: patient 1 (pixels p1) in fold 0, patient 2 (pixels p2) in fold 1.
TRAINED = {("A", "1"): ("p1", 0), ("A", "2"): ("p2", 1)}
# Films of an archive as (site, patient_id, pixels) -> what they are.
ARCHIVES = {
    "the same ids": {("A", "1", "p1"): "oof 0", ("A", "2", "p2"): "oof 1"},
    "another film of a training patient": {("A", "1", "new"): "oof 0"},
    "a new patient of the training site": {("A", "2", "p2"): "oof 1", ("A", "3", "p3"): "external"},
    "the same id at another site is another person": {("B", "1", "p9"): "external"},
    "another site": {("B", "7", "p7"): "external", ("B", "8", "p8"): "external"},
    "a training site none of whose patients match": {("A", "x", "p7"): "unknown", ("A", "y", "p8"): "unknown"},
    "a training site unmatched beside another": {("A", "x", "p7"): "unknown", ("B", "y", "p8"): "external"},
    "ids that lost their zeros": {("A", "01", "p7"): "unknown"},
    "new pseudonyms, the same pixels": {("A", "x", "p1"): "oof 0", ("A", "y", "p2"): "oof 1"},
    "new pseudonyms, another film of one": {
        ("A", "x", "p1"): "oof 0",
        ("A", "x", "later film"): "oof 0",
        ("A", "z", "p7"): "external",
    },
    "new site name too": {("C", "x", "p2"): "oof 1", ("C", "x", "later film"): "oof 1", ("C", "z", "p7"): "external"},
    "no patient id, the same pixels": {("A", None, "p1"): "oof 0", ("A", None, "p7"): "external"},
    "no site": {(None, "7", "p7"): "external"},
}


def films(archive):
    rows = list(archive)
    schema = {"site": pl.String, "patient_id": pl.String, "pixel_sha256": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")


def told(found: pl.DataFrame) -> list[str]:
    return [
        origin if fold is None else f"{origin} {fold}"
        for origin, fold in found.select("score_origin", "fold").iter_rows()
    ]


@pytest.mark.parametrize("case", ARCHIVES)
def test_who_had_been_seen_is_told_by_id_and_by_pixels(case):
    archive = ARCHIVES[case]
    model = in_memory(TRAINED)
    assert told(bundle.origins(films(archive), model, KEY, trained_elsewhere=False)) == list(archive.values())
    backwards = films(archive).reverse()
    assert told(bundle.origins(backwards, model, KEY, trained_elsewhere=False)) == list(archive.values())[::-1]


@pytest.mark.parametrize(("trained_elsewhere", "origin"), [(False, "unknown"), (True, "external")])
def test_without_the_key_nothing_is_known_unless_the_study_vouches_for_it(trained_elsewhere, origin):
    archive = films(ARCHIVES["the same ids"])
    assert told(bundle.origins(archive, in_memory(TRAINED), None, trained_elsewhere)) == [origin, origin]


def test_the_key_of_another_bundle_makes_nobody_external():
    films = pl.DataFrame({"patient_id": ["x"], "site": ["elsewhere"], "pixel_sha256": ["p"]})
    found = bundle.origins(films, in_memory(TRAINED), b"another key", False)
    assert found["score_origin"].to_list() == ["unknown"]


def test_another_key_recognises_nobody():
    archive = films(ARCHIVES["the same ids"])
    assert told(bundle.origins(archive, in_memory(TRAINED), b"x" * 32, trained_elsewhere=False)) == ["unknown"] * 2


def test_nobody_is_told_apart_from_the_hashes_without_the_key():
    hashes = in_memory(TRAINED).training_patients["patient_hash"].to_list()
    assert bundle.keyed_hash(KEY, "A", "1") in hashes
    assert bundle.keyed_hash(b"", "A", "1") not in hashes
    assert bundle.keyed_hash(KEY, "A1", "") not in hashes


# Site B recalibrated the bundle: patients 7 and 8, in the parts -2 and -3.
RECALIBRATED = {("B", "7"): ("p7", -2), ("B", "8"): ("p8", -3)}
OTHER_KEY = b"r" * 32


def recalibrated() -> bundle.Bundle:
    model = in_memory(TRAINED)
    content = {"sites": ["B"], "key_check": bundle.keyed_hash(OTHER_KEY, bundle.KEY_CHECK)}
    rows = [
        (keyed_hash(OTHER_KEY, site, patient), keyed_hash(OTHER_KEY, pixels), fold)
        for (site, patient), (pixels, fold) in RECALIBRATED.items()
    ]
    patients = pl.DataFrame(rows, schema=schemas.columns("recalibration_patients"), orient="row")
    return replace(model, content={**model.content, "recalibration": content}, recalibration_patients=patients)


# Films -> origin and layer_fold, with both keys, then without that of the recalibration.
AGAIN = {
    ("A", "1", "p1"): ("oof", 0, "oof"),
    ("B", "7", "p7"): ("external", -2, "unknown"),
    ("B", "8", "another film"): ("external", -3, "unknown"),
    ("B", "new pseudonym", "p8"): ("external", -3, "unknown"),
    ("B", "9", "p9"): ("external", bundle.NEW, "unknown"),
    ("C", "10", "p0"): ("external", bundle.NEW, "external"),
}


@pytest.mark.parametrize("trained_elsewhere", [False, True])
def test_patients_a_bundle_was_recalibrated_on_stay_external_and_get_the_layers_without_them(trained_elsewhere):
    found = bundle.origins(films(AGAIN), recalibrated(), KEY, trained_elsewhere, OTHER_KEY)
    assert found.select("score_origin", "layer_fold").rows() == [told[:2] for told in AGAIN.values()]
    for key in (None, KEY):
        lost = bundle.origins(films(AGAIN), recalibrated(), KEY, trained_elsewhere, key)
        assert lost["score_origin"].to_list() == [told[2] for told in AGAIN.values()]


def test_a_bundle_without_the_layers_of_its_recalibration_patients_is_refused(tmp_path):
    folder = write(tmp_path / "model")
    recalibrated().recalibration_patients.write_parquet(folder / bundle.RECALIBRATED)
    sha256 = provenance.sha256(folder / bundle.RECALIBRATED)
    edit(folder, lambda content: content["files"].update({bundle.RECALIBRATED: sha256}))
    edit(folder, lambda content: content.update({"recalibration": {"key_check": "x", "sites": []}}))
    with pytest.raises(BundleError, match="lacks layers"):
        bundle.load(folder, CATEGORIES)
