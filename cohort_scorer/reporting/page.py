"""One self-contained page from published tables, drawn figures and the run's manifest.

No script, no external resource, and every cell escaped. A number on the page comes from the inputs only; the page
knows no patient and computes no statistic.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jinja2
import polars as pl

from cohort_scorer import schemas
from cohort_scorer.reporting import comparison_tables, summary, tables, wording
from cohort_scorer.reporting.tables import Printed

Choice = tuple[str, str, Any, str]
"""Section, key, value, and `declared` or `default`."""

_SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "archive": ("Archive and refusals", ()),
    "data": ("Data problems", ("data_problems",)),
    "flow": ("Cohort flow", ("attrition",)),
    "baseline": ("Baseline characteristics", ("baseline",)),
    "model": ("Model", ()),
    "performance": ("Discrimination, calibration, categories", ("discrimination", "crosstab")),
    "prognosis": ("Prognosis", ("kaplan_meier", "cox", "event_rates")),
    "audit": ("Screening audit", ("audit_coverage", "audit_positivity")),
    "choices": ("Declared choices", ()),
    "limits": ("Limits, and how to read this", ()),
    "provenance": ("Provenance", ()),
}
"""Sections in their order: title, and the tables any of which makes it part of a run."""

_CAPTIONS = {
    "attrition": "Flow of patients from all considered to those analysed.",
    "interval": "Patients by the days from CT to radiograph; negative: the radiograph first. Darker: the same day.",
    "training_curves": "Loss by epoch: of the training images, and of the tenth of them set apart to choose the epoch; "
    "a dot where the network was kept. Both outcomes weigh the same.",
    "discrimination": "Area under the ROC curve with its interval at each CACS threshold. Dashed: no discrimination.",
    "roc": "ROC curves with pointwise bootstrap bands, and AUCs with intervals. Dashed: no discrimination.",
    "calibration": "Calibration statistics with intervals; dashed: the ideal value.",
    "calibration_curve": "Smoothed observed share over the predicted probability with pointwise bands, cut off at the "
    "frame; dashed: the two are equal.",
    "decision_curve": "Net benefit over the threshold probability, by CACS threshold.",
    "crosstab": "Patients by true and predicted category; shaded by the share of each true category.",
    "discordance": "Events per 1,000 person-years by true and predicted category, with events / patients.",
    "kaplan_meier": "Cumulative events (1 - Kaplan-Meier) with log-log bands; at risk, events and censored below.",
    "cox": "Hazard ratios against CAC 0 with intervals; open markers crude, filled markers adjusted.",
    "comparison": "Adjusted hazard ratio of each predicted category over that of the true one, with paired "
    "intervals; thin: those of resamples. The frame cuts off below 1/50 and above 100.",
    "cumulative_incidence": "Cumulative incidence (Aalen-Johansen) of the event with bands; dashed: what competes.",
    "schoenfeld": "Adjusted hazard ratio over time, smoothed from scaled Schoenfeld residuals, with pointwise bands; "
    "dotted: the constant ratio of the model; dashed: 1. A dotted line outside the band speaks against proportional "
    "hazards.",
    "horizon": "Time-dependent AUC and index of prediction accuracy of the adjusted models at each horizon, with "
    "intervals from resamples; dotted: the covariates alone.",
    "risk_curve": "Risk by the largest horizon over the predicted probability, with pointwise bands from resamples.",
    "cox-subgroups": "Adjusted hazard ratios of the highest category against CAC 0 in parts of the patients; the "
    "frame cuts off below 1/50 and above 100.",
    "sensitivity": "Adjusted hazard ratios against CAC 0 with intervals, as declared and with one choice changed; a "
    "model that was not fitted has no marker.",
    "audit_positivity": "Share of scored patients called positive, with Wilson intervals, by stratum.",
}
_DRAWN_FROM = {
    "kaplan_meier": ("kaplan_meier", "at_risk"),
    "roc": ("roc", "discrimination"),
    "schoenfeld": ("schoenfeld", "cox"),
}
_LINKED = frozenset(
    (
        *("kaplan_meier", "cumulative_incidence", "decision_curve", "roc", "calibration_curve", "training_curves"),
        *("schoenfeld", "risk_curve", "comparison"),
    )
)
"""Tables that are data for a figure: named with their CSV, never printed."""

_COMPARISONS = {
    "comparison_likelihoods": (("lr_chi2",), "Likelihood ratios of nested models"),
    "comparison_means": (("rmst", "rmst_difference"), "Restricted mean time free of the event"),
    "comparison_calibration": (("risk", "observed_expected"), "Risk by category, and observed over predicted risk"),
    "comparison_interactions": (("interaction_lr_chi2",), "Tests of interaction"),
}
"""Parts of comparison.csv that the page prints row by row: statistics and caption."""

_CONCORDANCE = ("harrell_c", "harrell_c_se", "harrell_c_corrected", "uno_c", "uno_c_se", "tau_days")
"""Columns of cox_fit.csv that the page prints as a table of their own."""

_TOLERATED_DIFFERENCE = 1e-6
"""From lifelines, of a log hazard ratio."""

_WIDEST_RECORD = 5
"""Columns of a manifest's table; records with more are printed one by one."""

_NOT_STATED = frozenset(
    (
        ("archive", "views"), ("archive", "unknown_view"), ("cohort", "pairing"), ("cohort", "exclude_if"),
        ("cohort", "exclude_between"), ("model", "category_rule"), ("model", "members"), ("train", "design"),
        ("train", "backbone"), ("train", "trainable"), ("train", "image_size"), ("train", "epochs"),
        ("train", "batch_size"), ("train", "learning_rate"), ("train", "stacking"), ("train", "sites"),
        ("outcome", "components"), ("outcome", "competing"), ("outcome", "terminal"), ("outcome", "blanking_days"),
        ("outcome", "prior_events"), ("outcome", "landmark_days"), ("outcome", "horizon_years"),
        ("comparison", "adjust_for"), ("comparison", "allow_in_sample"),
    )
)  # fmt: skip
"""Choices that the published abstract leaves open."""


@dataclass(frozen=True)
class Page:
    """Everything that a page is made of.

    Attributes:
        title: The study's title.
        simulated: The data are simulated.
        stamps: What every page and figure must say.
        tables: Published tables by name; absent ones leave their part of the page out.
        figures: SVG text by figure name, `<table>` or `<table>-<exposure>`.
        archive: Counts of files: `files` {found, indexed, eligible, scored}, and by reason `refused_index`,
            `ineligible`, `refused_score`. Empty without an archive.
        choices: The study's settings in force, each with its origin.
        model: Facts about the bundle: text, numbers, truth values or lists. `trained_on_simulated_data` is warned of.
        manifest: The run's manifest: scalars, mappings of scalars, mappings or lists of records.
    """

    title: str
    simulated: bool
    stamps: Sequence[str]
    tables: Mapping[str, pl.DataFrame]
    figures: Mapping[str, str]
    archive: Mapping[str, Mapping[str, int]]
    choices: Sequence[Choice]
    model: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class _Drawn:
    name: str
    source: str
    alternative: str
    caption: str
    tables: tuple[str, ...]


def render(content: Page) -> str:
    """The page as HTML text."""
    present = [name for name in _SECTIONS if _has(content, name)]
    settings = {(section, key): value for section, key, value, _ in content.choices}
    level = settings.get(("comparison", "confidence_level"))
    landmark = settings.get(("outcome", "landmark_days"))
    margin = settings.get(("comparison", "noninferiority_margin_c")) or None
    return _template().render(
        title=content.title,
        simulated=content.simulated,
        stamps=content.stamps,
        lead=summary.sentences(content.tables, str(settings.get(("outcome", "name"), "the outcome"))),
        key=summary.key_results(content.tables),
        sections=[{"name": name, "title": _SECTIONS[name][0]} for name in present],
        absent=[title for name, (title, _) in _SECTIONS.items() if name not in present],
        printed=_printed(content.tables, margin),
        penalised=_penalised(content.tables.get("cox_fit")),
        drawn=_drawn(content.figures),
        archive_tables=[_counts(name, counts) for name, counts in content.archive.items() if counts],
        archive_sums=list(_sums(content.archive)),
        trained_on_simulated=bool(content.model.get("trained_on_simulated_data")),
        model_facts=[(wording.sentence(key), plain(value)) for key, value in content.model.items()],
        lifelines=_lifelines(content.manifest),
        margin=margin,
        landmark=f", plus {landmark} days (landmark)" if landmark else "",
        choice_table=_choices(content.choices),
        interval_note=f"Intervals are at the {100 * float(level):g} % level." if level else "",
        provenance_facts=[(wording.sentence(k), plain(v)) for k, v in content.manifest.items() if not _nested(v)],
        provenance_tables=[table for k, v in content.manifest.items() if _nested(v) and v for table in _records(k, v)],
    )


def _lifelines(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The largest difference of a coefficient from lifelines in this run, as text, and whether it is too large."""
    facts = manifest.get("facts", {}).get("prognosis", {})
    difference = facts.get("largest_difference_from_lifelines")
    if difference is None:
        return {}
    # Written so that a difference which is no number is warned of, too.
    return {"difference": f"{difference:.0e}", "too_large": not difference <= _TOLERATED_DIFFERENCE}


def _penalised(fits: pl.DataFrame | None) -> list[str]:
    """Sites and score origins whose models are fitted by Firth's likelihood."""
    if fits is None:
        return []
    return [heading for heading, rows in tables.grouped(fits.filter(pl.col("method") == "firth")) if len(rows)]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cohort_scorer.reporting", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.jinja")


def _has(content: Page, section: str) -> bool:
    own = {
        "archive": content.archive,
        "model": content.model,
        "choices": content.choices,
        "provenance": content.manifest,
    }
    if section in own:
        return bool(own[section])
    needed = _SECTIONS[section][1]
    return not needed or any(name in content.tables and len(content.tables[name]) for name in needed)


def _printed(published: Mapping[str, pl.DataFrame], margin: float | None) -> dict[str, Printed]:
    """Every table that has rows; of those too long for a page, or made for a figure, only the name and the CSV."""
    made = {name: _one(name, frame) for name, frame in published.items() if len(frame)}
    if "cox" in made:
        made |= _cox(published["cox"])
    if "cox_fit" in made:
        made |= _fits(published["cox_fit"])
    if "logrank" in made and len(pairs := published["logrank"].filter(pl.col("test") == "pairwise")):
        caption = "Log-rank tests of pairs of categories"
        made["logrank_pairs"] = replace(
            tables.printed("logrank", pairs), caption=caption, note="", n_rows=len(published["logrank"])
        )
    if "comparison" in made:
        frame = published["comparison"]
        parts = {name: comparison_tables.part(frame, *wanted) for name, wanted in _COMPARISONS.items()}
        parts |= {
            "comparison_ratios": comparison_tables.ratios(frame),
            "comparison_adequacy": comparison_tables.adequacy(frame),
            "comparison_c": comparison_tables.concordances(frame),
            "comparison_horizon": comparison_tables.horizons(frame),
            "comparison_margin": comparison_tables.margin(frame, margin),
        }
        made |= {name: part for name, part in parts.items() if part}
    if "baseline" in made and len(rows := published["baseline"].filter(pl.col("site") != schemas.ALL)):
        made["baseline_sites"] = replace(tables.baseline(rows), caption="Baseline characteristics by site")
    return made


def _cox(frame: pl.DataFrame) -> dict[str, Printed]:
    """All terms of the models, and their hazard ratios in parts of the follow-up and of the patients."""
    part = pl.concat_str(pl.col("subgroup", "period").fill_null(""))
    terms = tables.printed("cox", frame.filter(part == ""))
    made = {"cox_terms": replace(terms, caption="Cox regression, all terms of all models", n_rows=len(frame))}
    for column, caption in (("period", "Hazard ratios by period of follow-up"), ("subgroup", "Hazard ratios in parts")):
        if (frame[column].fill_null("") != "").any():
            made[f"cox_{column}"] = tables.cox_parts(frame, column, caption)
    return made


def _fits(frame: pl.DataFrame) -> dict[str, Printed]:
    """Likelihoods of the models, and their concordance."""
    likelihoods = tables.printed("cox_fit", frame.drop(_CONCORDANCE))
    concordance = tables.printed("cox_fit", frame.select("site", "score_origin", "model", *_CONCORDANCE))
    return {
        "cox_fit": likelihoods,
        "cox_concordance": replace(concordance, caption="Concordance of the models", note=""),
    }


def _one(name: str, frame: pl.DataFrame) -> Printed:
    if name == "baseline":
        return replace(tables.baseline(frame.filter(pl.col("site") == schemas.ALL)), n_rows=len(frame))
    if name == "data_problems":
        shown = frame.filter(pl.col("n") > 0)
        made = tables.data_problems(shown) if len(shown) else tables.linked(name, frame)
        return replace(made, n_rows=len(frame))
    special = {"crosstab": tables.crosstab, "cox": tables.cox, "sensitivity": tables.sensitivity}
    if name in special:
        return special[name](frame)
    shown = frame
    if name == "discrimination":
        shown = frame.filter(pl.col("fold").fill_null("").is_in(["", "mean"]))
    if name == "subgroups":
        shown = frame.with_columns(pl.col("subgroup").map_elements(wording.sentence, return_dtype=pl.String))
    if name == "logrank":
        shown = frame.filter(pl.col("test") != "pairwise")
    if name in _LINKED or len(shown) > tables.LONGEST_ROWS:
        return tables.linked(name, frame)
    return replace(tables.printed(name, shown), n_rows=len(frame))


def _drawn(figures: Mapping[str, str]) -> dict[str, list[_Drawn]]:
    """Figures by the table that they are named after."""
    found: dict[str, list[_Drawn]] = {}
    for name, drawing in figures.items():
        table, _, exposure = name.partition("-")
        caption = _CAPTIONS.get(name) or _CAPTIONS.get(table, f"{wording.sentence(table)}.")
        if exposure and name not in _CAPTIONS:
            caption = f"{wording.words(exposure)}. {caption}"
        source = "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()
        alternative = f"Figure: {caption} The numbers stand in the tables named below it."
        found.setdefault(table, []).append(_Drawn(name, source, alternative, caption, _DRAWN_FROM.get(table, (table,))))
    for drawn in found.values():
        drawn.sort(key=lambda figure: "-" in figure.name)
    return found


def _counts(name: str, counts: Mapping[str, int]) -> Printed:
    captions = {
        "files": "Files",
        "refused_index": "Refused while indexing, by reason",
        "ineligible": "Indexed but not eligible, by reason",
        "refused_score": "Refused while scoring, by reason",
    }
    rows = [(wording.sentence(reason), f"{n:,}") for reason, n in counts.items()]
    if name != "files":
        rows.append(("Total", f"{sum(counts.values()):,}"))
    unit = "Reason" if name != "files" else "Stage"
    headers = ((unit, "", False), ("Files", "", True))
    return Printed(name, captions.get(name, wording.sentence(name)), "", headers, (("", tuple(rows)),), len(rows))


def _sums(archive: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """The two identities that no film is lost between, as far as the counts are there."""
    files = archive.get("files", {})
    for whole, part, refused, text in (
        ("found", "indexed", "refused_index", "Files found = index rows + refusals while indexing"),
        ("eligible", "scored", "refused_score", "Eligible films = scored + refusals while scoring"),
    ):
        if whole in files and part in files:
            n_refused = sum(archive.get(refused, {}).values())
            holds = "" if files[whole] == files[part] + n_refused else " These do not add up: a step has not finished."
            yield f"{text}: {files[whole]:,} = {files[part]:,} + {n_refused:,}.{holds}"


def _choices(choices: Sequence[Choice]) -> Printed:
    bodies: dict[str, list[tuple[str, ...]]] = {}
    for section, key, value, origin in choices:
        mark = " †" if (section, key) in _NOT_STATED else ""
        bodies.setdefault(f"[{section}]", []).append((f"{key}{mark}", plain(value), origin))
    headers = (("Key", "", False), ("Value", "", False), ("Origin", "", False))
    grouped = tuple((section, tuple(rows)) for section, rows in bodies.items())
    return Printed("choices", "Study file as it was applied", "", headers, grouped, len(choices))


def _nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value)
    )


def _records(name: str, value: Any) -> Iterator[Printed]:
    """A mapping of scalars, or a mapping or list of records, as a table; records with little in common as one each."""
    items = list(value.items()) if isinstance(value, Mapping) else [(str(i), v) for i, v in enumerate(value, start=1)]
    if not any(isinstance(item, Mapping) for _, item in items):
        yield _listing(name, ("value",), [(key, plain(item)) for key, item in items])
        return
    records = [(key, item) for key, item in items if isinstance(item, Mapping)]
    columns = list(dict.fromkeys(column for _, record in records for column in record))
    if len(columns) <= _WIDEST_RECORD:
        yield _listing(
            name, columns, [(key, *(plain(item.get(column)) for column in columns)) for key, item in records]
        )
        return
    for key, record in records:
        yield _listing(f"{name}: {key}", ("value",), [(column, plain(item)) for column, item in record.items()])


def _listing(name: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Printed:
    headers = (("Name", "", False), *((wording.sentence(column), "", False) for column in columns))
    return Printed(name, wording.sentence(name), "", headers, (("", tuple(rows)),), len(rows))


def plain(value: Any) -> str:
    """A setting or a fact in one line: yes and no, lists with commas, and a dash for nothing."""
    if value is None or value == "" or value == [] or value == {}:
        return wording.ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(plain(item) for item in value)
    return str(value)
