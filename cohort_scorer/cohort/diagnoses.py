"""Events from raw diagnosis tables: lists of code prefixes, and where in the record the code must stand."""

from collections.abc import Mapping
from typing import Any

import polars as pl


def normalised(code: str) -> str:
    """A code as it is compared: capitals and digits alone, so that `i21.4` and `I214` are one."""
    return "".join(filter(str.isalnum, code.upper()))


def events(diagnoses: pl.DataFrame, codes: Mapping[str, Any]) -> tuple[pl.DataFrame, dict[str, dict[str, Any]]]:
    """Make events of the diagnoses whose code begins with a prefix of a list.

    Args:
        diagnoses: patient_id, code, diagnosis_date, position (1 is the principal diagnosis; null where not told),
            system (for example ICD-10; null where not told).
        codes: By event type: prefixes, maximum_position (None: any) and system (empty: any).

    Returns:
        patient_id, event_type, event_date, each once, sorted; and by event type what the manifest holds: the list as it
        was given, n_events, and n_without_position, diagnoses of the list that are no events as nobody said where in
        the record they stood.
    """
    code = pl.col("code").str.to_uppercase().str.replace_all(r"[^A-Z0-9]", "")
    found, told = [], {}
    for event_type, given in codes.items():
        prefixes = [normalised(prefix) for prefix in given.prefixes]
        listed = pl.any_horizontal(code.str.starts_with(prefix) for prefix in prefixes)
        if given.system:
            listed &= (pl.col("system") == given.system).fill_null(False)
        hits = diagnoses.filter(listed)
        placed = hits
        if given.maximum_position is not None:
            placed = hits.filter(pl.col("position") <= given.maximum_position)
        mine = placed.select(
            "patient_id", pl.lit(event_type).alias("event_type"), pl.col("diagnosis_date").alias("event_date")
        ).unique()
        found.append(mine)
        unplaced = hits["position"].null_count() if given.maximum_position is not None else 0
        told[event_type] = {**given.model_dump(), "n_events": len(mine), "n_without_position": unplaced}
    return pl.concat(found).sort("patient_id", "event_date", "event_type"), told
