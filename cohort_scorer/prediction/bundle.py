"""The model bundle on disk: what it holds, how it is sealed, and how it is refused. Loads no network, sees no pixel.

sha256 guards against damage and mix-ups, not against forgery: whoever can change a file can change its hash.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import polars as pl

from cohort_scorer import provenance, storage
from cohort_scorer.errors import BundleError
from cohort_scorer.prediction.integration import EXPOSURES, THRESHOLD_NAMES, Layer
from cohort_scorer.study import THRESHOLDS

FORMAT = 3
NEW = -1
"""The `fold` of layers and cuts for patients the bundle never saw."""

FIRST_PART = -2
"""The `fold` of layers and cuts for the first part of the recalibration patients; the others count down from it."""

RECALIBRATED = "recalibration_patients.parquet"

KEY_CHECK = "key of cohort-scorer"
"""What bundle.json holds hashed with the key, so that the key of another bundle is known as such."""

FAMILIARITY = "familiarity.safetensors"
"""The training films in the features of the network `familiar_to`: by it `score` tells a film that is unlike them."""

CUT_GRID = "cut_grid.parquet"
CARD = "MODEL_CARD.md"
CURVES = "training_curves.parquet"
"""Losses and AUCs of every network by epoch."""

_KEYS = {
    "key_check", "familiar_to", "cut_points", "accuracy",
    "format", "title", "simulated", "versions", "categories", "preprocessing_id", "image_size", "design", "backbone",
    "integrate", "networks", "training", "layers", "thresholds", "files",
}  # fmt: skip
_ALLOWED_ENDINGS = (".json", ".safetensors", ".parquet", ".md")


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been read and found whole.

    Attributes:
        folder: Where it stands; one folder per network lies in it.
        content: bundle.json.
        layers: Per (exposure, threshold name, fold) the logistic layer; fold is NEW for new patients.
        grid: Cuts per exposure, threshold, fold (NEW for new patients).
        training_patients: patient_hash, pixel_hash, fold.
        recalibration_patients: The same, where the bundle was recalibrated: fold is that of the layers and cuts which
            were made without the patient (FIRST_PART and below).
    """

    folder: Path
    content: Mapping[str, Any]
    layers: Mapping[tuple[str, str, int], Layer]
    grid: pl.DataFrame
    training_patients: pl.DataFrame
    recalibration_patients: pl.DataFrame | None = None

    @property
    def networks(self) -> dict[str, list[str]]:
        """Name of each network -> its outputs, in the order in which it gives them."""
        return {
            entry["name"]: [output_name(output["threshold"], output["fold"]) for output in entry["outputs"]]
            for entry in self.content["networks"]
        }

    @property
    def folds(self) -> int:
        """How many folds the training had."""
        return int(self.content["training"]["folds"])

    def network_id(self, precision: str) -> str:
        """Identity of a raw output: weights, preprocessing and precision."""
        weights = {name: sha for name, sha in self.content["files"].items() if name.endswith(".safetensors")}
        return provenance.digest([weights, self.content["preprocessing_id"], precision])[:16]

    def model_id(self, model_section: Mapping[str, Any]) -> str:
        """Identity of a score: bundle.json (which holds the hashes of the weights) without prose, and [model]."""
        numbers = {key: value for key, value in self.content.items() if key not in ("title", "versions", "key_check")}
        # The hashes of the training patients depend on a secret key, not on the model.
        prose = (CARD, "training_patients.parquet", RECALIBRATED)
        files = {name: sha for name, sha in numbers["files"].items() if name not in prose}
        settings = {key: value for key, value in model_section.items() if key != "bundle"}
        return provenance.digest([{**numbers, "files": files}, settings])[:16]


def output_name(threshold_name: str, fold: int) -> str:
    """What an output is called, by threshold and fold held out: `ge100-fold3`, or `ge100-refit`."""
    return f"{threshold_name}-refit" if fold == NEW else f"{threshold_name}-fold{fold}"


def keyed_hash(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 of identifiers, as hexadecimal digits: recognisable only with the key."""
    return hmac.new(key, "\x1f".join(parts).encode(), hashlib.sha256).hexdigest()


def category_grid(categories: Sequence[str]) -> list[dict[str, Any]]:
    """The four categories with their bounds in Agatston units and which side is closed."""
    bounds = [(0, True, 0, True), (0, False, 100, False), (100, True, 400, False), (400, True, None, False)]
    names = ("name", "lower", "lower_closed", "upper", "upper_closed")
    return [dict(zip(names, (name, *bound), strict=True)) for name, bound in zip(categories, bounds, strict=True)]


def seal(folder: Path, content: Mapping[str, Any], layers: Mapping[tuple[str, str, int], Layer]) -> None:
    """Write bundle.json beside the files of a bundle, with the sha256 of each.

    Args:
        folder: Holds the networks, familiarity.safetensors, cut_grid.parquet, training_patients.parquet, MODEL_CARD.md.
        content: Everything of bundle.json but format, thresholds, layers and files.
        layers: The logistic layers.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "bundle.json"]
    whole = {
        "format": FORMAT,
        **content,
        "thresholds": list(THRESHOLDS),
        "layers": [
            {"exposure": exposure, "threshold": threshold, "fold": fold, **_said(layer)}
            for (exposure, threshold, fold), layer in layers.items()
        ],
        "files": {path.relative_to(folder).as_posix(): provenance.sha256(path) for path in sorted(files)},
    }
    storage.write_text(json.dumps(whole, indent=2) + "\n", folder / "bundle.json")


def _said(layer: Layer) -> dict[str, Any]:
    return {"intercept": layer.intercept, "coefficients": dict(layer.coefficients)}


def load(folder: Path, categories: Sequence[str]) -> Bundle:
    """Read a bundle and hold every file against its sha256.

    Args:
        folder: The bundle.
        categories: The study's categories; a bundle with another grid is refused.

    Raises:
        BundleError: absent, damaged, of another format, or with a grid that contradicts the study.
    """
    try:
        content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        files = dict(content["files"])
    except FileNotFoundError as fault:
        raise BundleError(
            "There is no model bundle where [model] bundle says.",
            "Expected a folder with bundle.json; found none.",
            "Train one (`cohort-scorer train`), or correct [model] bundle.",
        ) from fault
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise _damaged("bundle.json cannot be read") from fault
    _verify(folder, files)
    if not content.keys() >= _KEYS:
        raise _damaged(f"bundle.json lacks {len(_KEYS - content.keys())} of its keys")
    if content.get("format") != FORMAT or content.get("categories") != category_grid(categories):
        raise BundleError(
            "The bundle's categories or format contradict this study.",
            f"Expected format {FORMAT} and {', '.join(categories)} with the bounds of this version.",
            "Use a bundle made for these categories.",
        )
    try:
        layers = {
            (entry["exposure"], entry["threshold"], entry["fold"]): Layer(entry["intercept"], entry["coefficients"])
            for entry in content["layers"]
        }
        grid = pl.read_parquet(folder / CUT_GRID)
        patients = pl.read_parquet(folder / "training_patients.parquet")
        is_recalibrated = "recalibration" in content
        others = pl.read_parquet(folder / RECALIBRATED) if is_recalibrated else None
        bundle = Bundle(folder, content, layers, grid, patients, others)
        whole = _names_every_part(bundle, files)
    except (OSError, KeyError, TypeError, pl.exceptions.PolarsError) as fault:
        raise _damaged("a part of it is missing") from fault
    if not whole:
        raise _damaged("it lacks layers or networks, or does not name their files")
    _refuse_two_folds(patients)
    return bundle


def _names_every_part(bundle: Bundle, files: Mapping[str, str]) -> bool:
    """Whether a layer and one verified output stand for each threshold, for new patients and for every fold."""
    wanted = {(threshold, fold) for threshold in THRESHOLD_NAMES for fold in (NEW, *range(bundle.folds))}
    needed = {CUT_GRID, "training_patients.parquet", FAMILIARITY, CURVES}
    if bundle.recalibration_patients is not None:
        needed.add(RECALIBRATED)
        wanted_parts = bundle.recalibration_patients["fold"].unique()
        parts = {(exposure, name, fold) for exposure in EXPOSURES for name in THRESHOLD_NAMES for fold in wanted_parts}
        if not parts <= bundle.layers.keys():
            return False
    needed |= {f"{name}/{file}" for name in bundle.networks for file in ("config.json", "model.safetensors")}
    outputs = [output for given in bundle.networks.values() for output in given]
    return (
        sorted(outputs) == sorted(output_name(*key) for key in wanted)
        and {(exposure, *key) for exposure in EXPOSURES for key in wanted} <= bundle.layers.keys()
        and needed <= files.keys()
        and bundle.content["familiar_to"] in bundle.networks
    )


def _refuse_two_folds(patients: pl.DataFrame) -> None:
    """A patient in two folds was seen by every network: nothing out of fold is left of the patient."""
    for name in ("patient_hash", "pixel_hash"):
        folds = patients.group_by(name).agg(pl.col("fold").n_unique()).filter(pl.col("fold") > 1)
        if len(folds):
            raise _damaged(f"{len(folds):,} of its training patients stand in more than one fold")


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        plain = PurePosixPath(name)
        if plain.is_absolute() or ".." in plain.parts or not name.endswith(_ALLOWED_ENDINGS):
            raise _damaged("it names a file that no bundle may hold")
        path = folder / plain
        if path.is_symlink() or not path.is_file() or provenance.sha256(path) != expected:
            raise _damaged(f"{plain.name} is missing or differs from its sha256")
    unnamed = [
        path
        for path in folder.rglob("*")
        if not path.is_dir() and path.relative_to(folder).as_posix() not in files.keys() | {"bundle.json"}
    ]
    if not all(path.name.startswith(".") for path in unnamed):
        raise _damaged("it holds files that bundle.json does not name")


def _damaged(found: str) -> BundleError:
    return BundleError(
        f"The model bundle cannot be used: {found}.",
        "Expected every file that bundle.json names, with the sha256 that it names.",
        "Get the bundle again from where it was made, or train it again.",
    )


def origins(
    films: pl.DataFrame,
    bundle: Bundle,
    key: bytes | None,
    trained_elsewhere: bool,
    recalibration_key: bytes | None = None,
) -> pl.DataFrame:
    """Tell for every film whether the bundle's networks had seen the patient, and which layers had not.

    A training patient is known again by (site, patient_id) or by the pixels of any film, and gets, on every film, the
    fold that held the patient out: `oof`. Others are `external`, but `unknown` where their site trained the bundle and
    none of the site's patients is known again. Without the key nobody can be known: `unknown`, or `external` where the
    study says that no training patient can be in this archive.

    A patient on whom a bundle was recalibrated stays `external` to its networks, and gets the layers and cuts that were
    made without the patient; without the recalibration key, films of the sites it was recalibrated on are `unknown`.

    Args:
        films: patient_id, site, pixel_sha256.
        bundle: The bundle.
        key: The key of its hashes, or None; the key of another bundle tells nothing either.
        trained_elsewhere: [model] trained_elsewhere.
        recalibration_key: The key of the hashes of its recalibration patients, or None, likewise.

    Returns:
        The films with score_origin, fold (null unless oof) and layer_fold (of layers and cuts: NEW for new patients).
    """
    content = bundle.content
    if _is_key(key, content["key_check"]):
        known = _recognised(films, bundle.training_patients, key)
        unrecognised = pl.col("site").is_in(content["training"]["sites"]) & ~(
            pl.col("fold").is_not_null().any().over("site")
        )
    else:
        known = films.with_columns(pl.lit(None, pl.Int64).alias("fold"))
        unrecognised = pl.lit(not trained_elsewhere)
    part = pl.Series([None] * len(films), dtype=pl.Int64)
    if bundle.recalibration_patients is not None:
        if _is_key(recalibration_key, content["recalibration"]["key_check"]):
            part = _recognised(films, bundle.recalibration_patients, recalibration_key)["fold"]
        else:
            unrecognised = unrecognised | pl.col("site").is_in(content["recalibration"]["sites"])
    return known.with_columns(
        pl.when(pl.col("fold").is_not_null())
        .then(pl.lit("oof"))
        .when(unrecognised)
        .then(pl.lit("unknown"))
        .otherwise(pl.lit("external"))
        .alias("score_origin"),
        pl.coalesce("fold", part, pl.lit(NEW, pl.Int64)).alias("layer_fold"),
    )


def _is_key(key: bytes | None, check: str) -> TypeGuard[bytes]:
    return key is not None and keyed_hash(key, KEY_CHECK) == check


def _recognised(films: pl.DataFrame, patients: pl.DataFrame, key: bytes) -> pl.DataFrame:
    """The films with the `fold` of the patients known again; null for others."""
    by_person = dict(patients.select("patient_hash", "fold").iter_rows())
    by_pixels = dict(patients.select("pixel_hash", "fold").iter_rows())
    folds = [
        by_person.get(keyed_hash(key, site or "", patient or ""), by_pixels.get(keyed_hash(key, pixels)))
        for site, patient, pixels in films.select("site", "patient_id", "pixel_sha256").iter_rows()
    ]
    # One known film makes its patient known: a second film under a new pseudonym is no external film.
    return films.with_columns(pl.Series("fold", folds, pl.Int64)).with_columns(
        pl.coalesce("fold", pl.when(pl.col("patient_id").is_not_null()).then(pl.col("fold").min().over("patient_id")))
    )
