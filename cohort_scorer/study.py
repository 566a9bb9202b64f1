"""The study file: everything that changes a number, typed and frozen. Knows nothing of the machine that runs it."""

import difflib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from cohort_scorer import schemas
from cohort_scorer.errors import StudyFileError
from cohort_scorer.table_map import UNITS, TableMap

THRESHOLDS = (0, 100, 400)
"""Agatston units; the three models answer CACS > 0, >= 100 and >= 400 (Hong et al., JCCT 2025)."""

_FILE = "\0file"  # Not a key that a study file can have.
CATEGORY_RULE = r"prevalence|youden|argmax|(sensitivity|specificity):0?\.\d+"
CATEGORY_RULES = "prevalence, youden, argmax, sensitivity:0.90, specificity:0.90 or three numbers between 0 and 1"
_MAPPED = ("listing", "cacs", "clinical", "follow_up", "events", "diagnoses", "scores")
COMPONENTS = "mace3, mace4, mace5 or all_cause_death"
Probability = Annotated[float, Field(gt=0, lt=1)]
Covariate = Literal["age_years", "sex", "bmi"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class StudySection(_Section):
    """[study]: what this is and where its outputs go."""

    title: Annotated[str, Field(min_length=1)]
    seed: Annotated[int, Field(ge=0)] = 2025
    output: str = "outputs"
    simulated: bool = False
    dates_shifted_per_subject: bool = False


class ArchiveSection(_Section):
    """[archive]: which files are radiographs of the study."""

    root: str | list[str]
    listing: str = ""
    index: str = ""
    modalities: list[str] = ["CR", "DX", "RG"]
    body_parts: list[str] = ["CHEST", "THORAX", ""]
    views: list[Literal["PA", "AP", "LATERAL"]] = ["PA", "AP"]
    unknown_view: Literal["exclude", "include"] = "exclude"
    maximum_refused_percent: Annotated[float, Field(ge=0, le=100)] = 20.0


class TablesSection(_Section):
    """[tables]: what is known of the patients."""

    cacs: str = ""
    clinical: str = ""
    follow_up: str = ""
    events: str = ""
    diagnoses: str = ""
    scores: str = ""
    faulty_rows: Literal["stop", "drop"] = "stop"
    map: dict[str, TableMap] = {}

    @field_validator("map")
    @classmethod
    def _fits_the_schemas(cls, maps: dict[str, TableMap]) -> dict[str, TableMap]:
        """What no table could make right: columns that the schema does not have, units that are none of the column."""
        for name, given in maps.items():
            if name not in _MAPPED:
                raise ValueError(f"expected the map of {', '.join(_MAPPED)}, not of {name}")
            known, units = schemas.columns(name), schemas.units(name)
            if given.wide and name != "events":
                raise ValueError(f"expected wide for events alone, not for {name}")
            for column, source in given.columns.items():
                if column not in known and name != "clinical":
                    nearest = difflib.get_close_matches(column, known, n=1)
                    hint = f", did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(known)}"
                    raise ValueError(f"{name} has no column {column}{hint}")
                if source.unit and source.unit not in UNITS.get(units.get(column, ""), {}):
                    possible = ", ".join(UNITS.get(units.get(column, ""), {})) or "none but its own"
                    raise ValueError(f"expected a unit of {name}.{column}: {possible}")
                if source.latest and known.get(column) != pl.Date():
                    raise ValueError(f"expected latest for a date, not for {name}.{column}")
                if source.where:
                    raise ValueError(f"expected where under wide alone, not for {name}.{column}")
        return maps


class CodeList(_Section):
    """[codes]: which diagnoses are an event, named like one."""

    prefixes: Annotated[list[Annotated[str, Field(pattern=r"[A-Za-z0-9]")]], Field(min_length=1)]
    maximum_position: Annotated[int, Field(ge=1)] | None = None
    system: str = ""


class CohortSection(_Section):
    """[cohort]: who is in."""

    maximum_days_between: Annotated[int, Field(ge=0)] = 180
    pairing: Literal["nearest", "nearest_before", "nearest_after"] = "nearest"
    minimum_age_years: Annotated[float, Field(ge=0)] = 18
    exclude_if: list[str] = []
    exclude_between: list[str] = []


class ModelSection(_Section):
    """[model]: which bundle scores, and how three outputs become one category."""

    bundle: str = "outputs/model"
    category_rule: (
        Annotated[str, Field(pattern=f"^({CATEGORY_RULE})$")] | tuple[Probability, Probability, Probability]
    ) = "prevalence"
    members: Literal["refit", "folds"] = "refit"
    trained_elsewhere: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"


class TrainSection(_Section):
    """[train]: how the networks are made."""

    sites: list[str] = []
    design: Literal["three_models", "shared"] = "three_models"
    backbone: str = "resnet-small"
    trainable: Literal["all", "head"] = "all"
    image_size: Annotated[int, Field(ge=32, le=2048)] = 512
    folds: Annotated[int, Field(ge=2, le=50)] = 10
    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    integrate: Annotated[list[Covariate], Field(min_length=1)] = ["age_years", "sex", "bmi"]
    stacking: Literal["simple", "nested"] = "simple"

    @field_validator("stacking")
    @classmethod
    def _nested_leaves_two_folds_out(cls, stacking: str, given: ValidationInfo) -> str:
        if stacking == "nested" and given.data.get("folds", 3) < 3:
            raise ValueError("expected simple, or 3 folds at least, since nested leaves two of them out")
        return stacking


class OutcomeSection(_Section):
    """[outcome]: what counts as an event, and from when."""

    name: str = "MACE"
    components: Annotated[list[str], Field(min_length=1)] | Literal["mace3", "mace4", "mace5", "all_cause_death"]
    competing: list[str] = []
    terminal: list[str] | None = None
    blanking_days: dict[str, Annotated[int, Field(ge=0)]] = {}
    prior_events: Literal["exclude", "ignore"] = "exclude"
    landmark_days: Annotated[int, Field(ge=0)] = 0
    horizon_years: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [1, 3, 5]


class ComparisonSection(_Section):
    """[comparison]: how the predicted categories are held against the true ones."""

    adjust_for: list[str] = ["age_at_t0_years", "sex", "bmi"]
    bootstrap_replicates: Annotated[int, Field(ge=0)] = 1000
    confidence_level: Probability = 0.95
    noninferiority_margin_c: Annotated[float, Field(gt=0, lt=0.5)] | Literal[""] = ""
    allow_in_sample: bool = False


class SensitivitySection(_Section):
    """[sensitivity]: values that [cohort] and [outcome] might have had, each tried by itself."""

    maximum_days_between: list[Annotated[int, Field(ge=0)]] = []
    pairing: list[Literal["nearest", "nearest_before", "nearest_after"]] = []
    landmark_days: list[Annotated[int, Field(ge=0)]] = []

    @model_validator(mode="after")
    def _names_something(self) -> "SensitivitySection":
        if not (self.maximum_days_between or self.pairing or self.landmark_days):
            raise ValueError("expected maximum_days_between, pairing or landmark_days, each a list; found none")
        return self


class AuditSection(_Section):
    """[audit]: a screening audit by stratum."""

    strata: list[str] = ["sex", "age_band", "site"]
    threshold: Literal[0, 100, 400] = 100


class ReleaseSection(_Section):
    """[release]: what may leave, and how it is protected."""

    disclosure: Literal["none"] = "none"
    formats: Annotated[list[Literal["svg", "png", "pdf"]], Field(min_length=1)] = ["svg", "png"]


class Study(_Section):
    """A whole study file.

    Attributes:
        folder: The folder of the file; paths in the file are relative to it.
        file: The study file itself.
    """

    study: StudySection
    archive: ArchiveSection | None = None
    tables: TablesSection = TablesSection()
    codes: dict[str, CodeList] = {}
    cohort: CohortSection | None = None
    model: ModelSection | None = None
    train: TrainSection | None = None
    outcome: OutcomeSection | None = None
    comparison: ComparisonSection = ComparisonSection()
    sensitivity: SensitivitySection | None = None
    audit: AuditSection | None = None
    release: ReleaseSection = ReleaseSection()
    file: Annotated[Path, Field(exclude=True, validation_alias=_FILE)]

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self.file.parent

    @property
    def output(self) -> Path:
        """Everything the tool writes."""
        return self.folder / self.study.output

    @property
    def patient_level(self) -> Path:
        """One row per person or image: never leaves the institution."""
        return self.output / "patient_level"

    @property
    def unprotected(self) -> Path:
        """Aggregates before disclosure control: stay inside."""
        return self.output / "unprotected"

    @property
    def release_folder(self) -> Path:
        """What may leave."""
        return self.output / "release"

    @property
    def bundle(self) -> Path:
        """The folder of the model bundle."""
        section: ModelSection = self.require("model")
        return self.folder / section.bundle

    @property
    def roots(self) -> dict[str, Path]:
        """The archive's roots: the name in the study file, and the folder."""
        section: ArchiveSection = self.require("archive")
        root = section.root
        return {name: self.folder / name for name in ([root] if isinstance(root, str) else root)}

    def require(self, section: str) -> Any:
        """A section that a step cannot do without.

        Raises:
            StudyFileError: the study file does not have it.
        """
        found = getattr(self, section)
        if found is None:
            raise StudyFileError(
                f"{self.file.name}: the section [{section}] is missing.",
                f"Expected [{section}], which this step needs; found {', '.join(f'[{s}]' for s in self.sections)}.",
                f"Add a line [{section}]; its keys have defaults, except those that the README marks required.",
            )
        return found

    @property
    def sections(self) -> list[str]:
        """The sections that the file has."""
        return [name for name in type(self).model_fields if name != "file" and name in self.model_fields_set]

    def choices(self) -> Iterator[tuple[str, str, Any, str]]:
        """Every setting in force: section, key, value, and whether the file declared it or it is a default."""
        for section in type(self).model_fields:
            held = getattr(self, section)
            if isinstance(held, _Section):
                for key in type(held).model_fields:
                    origin = "declared" if key in held.model_fields_set else "default"
                    yield section, key, _plain(getattr(held, key)), origin
        for name, codes in self.codes.items():
            yield "codes", name, _plain(codes), "declared"


def _plain(value: Any) -> Any:
    """Models within a setting as what the file says of them."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    return {name: _plain(inner) for name, inner in value.items()} if isinstance(value, dict) else value


def load(path: Path) -> Study:
    """Read a study file, or the study.toml of a folder.

    Raises:
        StudyFileError: absent, not TOML, or faulty; all faults are told together.
    """
    file = path if path.suffix == ".toml" and not path.is_dir() else path / "study.toml"
    if not file.is_file():
        raise StudyFileError(
            "There is no study file here.",
            "Expected a folder with a study.toml, or that file (default: the current folder); found none.",
            "Name the study's folder, or make one with `cohort-scorer simulate FOLDER`.",
        )
    content = _toml(file)
    try:
        return Study.model_validate({**content, _FILE: file.absolute()})
    except ValidationError as fault:
        faults = list({_place(error): _describe(error) for error in fault.errors()}.values())
        raise StudyFileError(
            f"{file.name}: {len(faults)} fault{'s' if len(faults) > 1 else ''}.",
            "Expected and found: " + "; ".join(faults) + ".",
            "Correct each of them; all that could be found are listed.",
        ) from fault


def _toml(file: Path) -> dict[str, Any]:
    data = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as fault:
        found = f"a character in another encoding (at line {data[: fault.start].count(bytes([10])) + 1})"
        advice = "Save the file as UTF-8."
    except tomllib.TOMLDecodeError as fault:
        found = str(fault)[0].lower() + str(fault)[1:]
        advice = "Correct the line named: text stands in double quotes; in a path, write / instead of \\."
    raise StudyFileError(f"{file.name}: the file is not valid TOML.", f"Expected UTF-8 TOML; found: {found}.", advice)


def _place(error: Any) -> str:
    section, *keys = (str(part) for part in error["loc"])
    if keys and section == "codes":
        section, keys = f"codes.{keys[0]}", keys[1:]
    if len(keys) > 1 and keys[0] == "map":
        section, keys = f"tables.map.{keys[1]}", [key for key in keys[2:] if key != "columns"]
    return f"[{section}]" + "".join(f" {key}" for key in keys[:1])


def _describe(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    place = _place(error)
    if error["type"] == "extra_forbidden":
        known = _keys(location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(known)}"
        named = place if place.endswith(f" {location[-1]}") or len(location) == 1 else f"{place}: {location[-1]}"
        return f"{named} is unknown, {hint}"
    if place == "[comparison] noninferiority_margin_c":
        return f"{place}: expected a number between 0 and 0.5, or nothing, found {error['input']!r}"
    if place == "[model] category_rule":
        return f"{place}: expected {CATEGORY_RULES}"
    if error["type"] == "missing":
        return f"{place} is required"
    if place == "[outcome] components":
        return f"{place}: expected a list of event types, or {COMPONENTS}"
    if error["type"] == "model_type":
        return f"{place} is a section: expected keys below a line [{location[0]}]"
    message = error["msg"].removeprefix("Value error, ")
    found = "" if isinstance(error["input"], dict) else f", found {repr(error['input'])[:60]}"
    return f"{place}: {message[0].lower() + message[1:]}{found}"


def _keys(location: list[str]) -> list[str]:
    model: type[BaseModel] = Study
    for part in location:
        if part in model.model_fields:
            model = next(_models(model.model_fields[part].annotation), model)
    return [name for name in model.model_fields if name != "file"]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
