"""MODEL_CARD.md: what a bundle is, for whoever receives it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cohort_scorer.prediction.integration import EXPOSURES
from cohort_scorer.study import THRESHOLDS

_SPOKEN = {"cxr": "radiograph", "integrated": "radiograph + clinical", "clinical": "clinical only"}
_UPDATES = {"none": "none", "intercept": "intercept", "intercept_slope": "intercept and slope"}
_SUBGROUPS = {"all": "all", "sex": "sex", "age_band": "age", "site": "site"}


def write(content: Mapping[str, Any]) -> str:
    """The card in Markdown, from what bundle.json holds."""
    training = content["training"]
    total = training["n_patients"]
    origin = "**Trained on SIMULATED data: it knows nothing of people.**\n\n" if content["simulated"] else ""
    counts = "\n".join(
        f"| {name} | {count:,} | {100 * count / total:.1f} |" for name, count in training["n_by_category"].items()
    )
    return f"""# Model card: {content["title"]}

{origin}Research use. Not a medical device: no diagnosis or treatment may rest on its outputs.

## What it is
{_networks(content)} that tell from a frontal chest radiograph ({content["image_size"]} pixels a side) whether the
coronary artery calcium score is above 0, at least 100, at least 400 Agatston units; and logistic models that join each
answer with {", ".join(content["integrate"])} ({training["stacking"]} stacking).
{training["folds"]}-fold cross-validation: a training patient is scored by what had not seen the patient; refits on all
training patients score everybody else.

## Intended use
Retrospective research on patients like those below: prognosis by predicted category, audits of archives. For a new
site, probabilities and cut points need to be held against true scores of that site first (`cohort-scorer validate`,
`cohort-scorer recalibrate`).

## Trained on
{total:,} patients of {", ".join(training["sites"])}, \
radiographs from {training["first_study_date"]} to {training["last_study_date"]}.

| true category | patients | % |
|---|---|---|
{counts}

At most {training["epochs"]} epochs of which early stopping inside the training part kept \
{min(training["epochs_kept"].values())} to {max(training["epochs_kept"].values())}; batches of \
{training["batch_size"]}, learning rate {training["learning_rate"]}, seed {training["seed"]}. Every choice is in \
bundle.json, every epoch in training_curves.parquet.

## Performance in the training patients, out of fold
AUC (interval by DeLong, conditional on the fitted networks; folds pooled). It says nothing of other sites.

{_performance(content["performance"])}

{_recalibration(content)}## Limits
- Patients sent to calcium CT are not a screening population: probabilities need recalibration elsewhere.
- Calibration and cut points were found on the fold networks; whether they hold for the refit networks can be
  checked only on patients of other sites.
- Subgroups with fewer than 10 patients on a side of a threshold are not listed.
- The sha256 of every file is in bundle.json: it shows damage, not forgery.
- The training patients are listed as keyed hashes; without the key nobody can tell who they are.
"""


def _networks(content: Mapping[str, Any]) -> str:
    if content["trainable"] == "head":
        return f"Linear heads on the features of one fixed network ({content['backbone']})"
    number = {"shared": "One network", "three_models": "Three networks"}[content["design"]]
    return f"{number} ({content['backbone']})"


def _recalibration(content: Mapping[str, Any]) -> str:
    """What was changed for another site, where something was."""
    if "recalibration" not in content:
        return ""
    found = content["recalibration"]
    cells = [
        (_SPOKEN[row["exposure"]], _above(row["threshold"]), _UPDATES[row["update"]], row["intercept"], row["slope"])
        for row in found["updates"]
    ]
    rows = "\n".join("| {} | {} | {} | {:.3f} | {:.3f} |".format(*row) for row in cells)
    return f"""## Recalibrated
On {found["n_patients"]:,} patients of {", ".join(found["sites"]) or "one site"}, radiographs from \
{found["first_study_date"]} to {found["last_study_date"]} ({found["title"]}). The networks are those above; new logit =
intercept + slope x old logit, the kind of update chosen by patients on whom it was not fitted.

| | CACS | update | intercept | slope |
|---|---|---|---|---|
{rows}

These patients are scored by updates and cut points that were made without them.

"""


def _above(threshold: int) -> str:
    return f">= {threshold}" if threshold else "> 0"


def _performance(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| CACS | subgroup | patients | " + " | ".join(_SPOKEN[name] for name in EXPOSURES) + " |"]
    lines.append("|---|---|---|" + "---|" * len(EXPOSURES))
    found = {(row["threshold"], row["subgroup"], row["value"], row["exposure"]): row for row in rows}
    for threshold in THRESHOLDS:
        for subgroup, value in dict.fromkeys(key[1:3] for key in found if key[0] == threshold):
            mine = [found.get((threshold, subgroup, value, exposure)) for exposure in EXPOSURES]
            n = max(row["n"] for row in mine if row)
            name = _SUBGROUPS[subgroup] + (f" {value}" if subgroup != "all" else "")
            lines.append(f"| {_above(threshold)} | {name} | {n:,} | " + " | ".join(map(_area, mine)) + " |")
    return "\n".join(lines)


def _area(row: Mapping[str, Any] | None) -> str:
    if row is None or row["lower"] is None:
        return "too few"
    return f"{row['auc']:.2f} ({row['lower']:.2f}-{row['upper']:.2f})"
