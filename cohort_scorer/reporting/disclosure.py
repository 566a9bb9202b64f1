"""What may leave: the disclosure rule of a study, and the stamps that say what a reader must not overlook.

This version knows the rule `none` alone; it protects nothing and says so on every figure and page.
"""

import polars as pl

from cohort_scorer.errors import DisclosureError

SIMULATED = "SIMULATED DATA"
IN_SAMPLE = "IN-SAMPLE SCORES: NOT A VALIDATION"
UNCONTROLLED = "NOT DISCLOSURE-CONTROLLED"


def protect(table_name: str, frame: pl.DataFrame, rule: str) -> pl.DataFrame:
    """Apply the study's disclosure rule to one aggregate table before it enters release/.

    Args:
        table_name: Name of the table, for the message.
        frame: The table as it stands in unprotected/.
        rule: The study's `[release] disclosure`.

    Raises:
        DisclosureError: the rule is not one that this version can keep.
    """
    if rule != "none":
        raise DisclosureError(
            f"The disclosure rule {rule} cannot be applied to {table_name}.csv; 1 table is held back.",
            f"Expected the rule none; found {rule}.",
            'Set [release] disclosure = "none" and keep release/ inside, or use a version that knows the rule.',
        )
    return frame


def stamps(simulated: bool, in_sample: bool, disclosure: str) -> tuple[str, ...]:
    """The stamps that every figure and page of a study carries, in order.

    Args:
        simulated: The data are simulated, or the model was trained on simulated data.
        in_sample: Some scores come from patients whom the model was fitted on.
        disclosure: The study's `[release] disclosure`.
    """
    carried = {SIMULATED: simulated, IN_SAMPLE: in_sample, UNCONTROLLED: disclosure == "none"}
    return tuple(text for text, applies in carried.items() if applies)
