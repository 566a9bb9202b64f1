"""release/analysis.R: the survival analysis once more in R, for a reader who trusts no second program. Code only."""

import json
from collections.abc import Mapping, Sequence

import jinja2


def render(
    title: str,
    covariates: Mapping[str, bool],
    categories: Sequence[str],
    level: float,
    tau_days: float,
    competing: bool,
) -> str:
    """The script as text.

    Args:
        title: The study's title.
        covariates: Columns of adjust_for, and whether each is a number.
        categories: The four categories, lowest first.
        level: Confidence level.
        tau_days: The largest horizon.
        competing: Whether competing events are declared.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cohort_scorer.reporting", "."),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    kinds = (f'{_quoted(name)} = "{"number" if number else "text"}"' for name, number in covariates.items())
    return environment.get_template("analysis.R.jinja").render(
        title=" ".join(title.split()),
        covariates=", ".join(kinds),
        categories=", ".join(map(_quoted, categories)),
        level=level,
        tau_days=repr(tau_days),
        competing="TRUE" if competing else "FALSE",
    )


def _quoted(text: str) -> str:
    """A string of R, whose escapes are those of JSON."""
    return json.dumps(text)
