"""The one way out: tables go to unprotected/, and after disclosure control, with their figures, to release/."""

from collections.abc import Mapping, Sequence

import polars as pl

from cohort_scorer import schemas, storage
from cohort_scorer.provenance import Step
from cohort_scorer.reporting import canvas, disclosure, figures


def publish(step: Step, tables: Mapping[str, pl.DataFrame], stamps: Sequence[str]) -> None:
    """Write tables and their figures, and note them as outputs of the step.

    Args:
        step: The step that made them.
        tables: By file name, without ending; columns as data_schemas/ says.
        stamps: What every figure must say.
    """
    study = step.study
    protected = {}
    for name, table in tables.items():
        frame = schemas.conform(table, name).select(list(schemas.columns(name)))
        inside = study.unprotected / "tables" / f"{name}.csv"
        storage.write_csv(frame, inside)
        protected[name] = disclosure.protect(name, frame, study.release.disclosure)
        outside = study.release_folder / "tables" / f"{name}.csv"
        storage.write_csv(protected[name], outside)
        step.wrote(inside, outside)
    for name, figure in figures.draw(protected, stamps).items():
        step.wrote(*canvas.save(figure, study.release_folder / "figures" / name, study.release.formats))
