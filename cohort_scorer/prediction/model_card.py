"""MODEL_CARD.md: what a bundle is, for whoever receives it."""

from collections.abc import Mapping
from typing import Any


def write(content: Mapping[str, Any]) -> str:
    """The card in Markdown, from bundle.json alone."""
    training = content["training"]
    origin = "**Trained on SIMULATED data: it knows nothing of people.**\n\n" if content["simulated"] else ""
    counts = "\n".join(f"| {name} | {count:,} |" for name, count in training["n_by_category"].items())
    return f"""# Model card: {content["title"]}

{origin}Research use. Not a medical device: no diagnosis or treatment may rest on its outputs.

## What it is
Three networks ({content["backbone"]}, {content["design"]}, {content["image_size"]} pixels a side) that tell from a
frontal chest radiograph whether the coronary artery calcium score is above 0, at least 100, at least 400 Agatston
units; and logistic models that join each with {", ".join(content["integrate"])}.
{training["folds"]} fold networks per threshold score the training patients they were not trained on; refit networks
score everybody else.

## Trained on
{training["n_patients"]:,} patients of {", ".join(training["sites"])}, \
radiographs from {training["first_study_date"]} to {training["last_study_date"]}.

| true category | patients |
|---|---|
{counts}

{training["epochs"]} epochs, batches of {training["batch_size"]}, learning rate {training["learning_rate"]}, \
seed {training["seed"]}. Every choice is in bundle.json.

## Limits
- Patients sent to calcium CT are not a screening population: probabilities need recalibration elsewhere.
- Calibration and cut points were found on the fold networks; whether they hold for the refit networks can be
  checked only on patients of other sites.
- The sha256 of every file is in bundle.json: it shows damage, not forgery.
- The training patients are listed as keyed hashes; without the key nobody can tell who they are.
"""
