"""How the exposures look in every figure: their order, colours, markers, intervals side by side, and the key."""

from collections.abc import Callable, Mapping, Sequence

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cohort_scorer.reporting import canvas, wording
from cohort_scorer.reporting.canvas import EXPOSURE_COLOURS, EXPOSURE_MARKERS, GRID, MUTED


def by_exposure(table: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The table's parts by exposure, in the order of the legend."""
    parts = {str(key[0]): rows for key, rows in table.partition_by("exposure", as_dict=True).items()}
    return [(exposure, parts[exposure]) for exposure in wording.EXPOSURES if exposure in parts]


Slots = tuple[dict[tuple[object, str], float], list[str]]


def slots(table: pl.DataFrame, keys: tuple[str, str], label: Callable[..., str]) -> Slots:
    """Heights of (row, exposure) markers, rows one unit apart from the top, and the rows' labels."""
    row, _ = keys
    values = table[row].unique(maintain_order=True).to_list()
    exposures = [exposure for exposure, _ in by_exposure(table)]
    offset = {exposure: 0.22 * (number - (len(exposures) - 1) / 2) for number, exposure in enumerate(exposures)}
    heights = {(value, name): number + offset[name] for number, value in enumerate(values) for name in exposures}
    return heights, [label(value) for value in values]


def intervals(
    axis: Axes, part: pl.DataFrame, slots: Slots, estimate: str, keys: tuple[str, str], text: str = ""
) -> None:
    """Markers with intervals; an absent limit draws the marker alone."""
    heights, labels = slots
    for row in part.iter_rows(named=True):
        y, exposure = heights[row[keys[0]], row[keys[1]]], row[keys[1]]
        colour = EXPOSURE_COLOURS[exposure]
        if row["lower"] is not None and row["upper"] is not None:
            axis.plot((row["lower"], row["upper"]), (y, y), color=colour, lw=1.5, solid_capstyle="butt")
        axis.plot(row[estimate], y, EXPOSURE_MARKERS[exposure], color=colour, ms=5, mec="white", mew=0.6)
        if text:
            side = max(row[estimate], row["upper"] or 0.0)
            axis.annotate(
                text.format(row[estimate]), (side, y), (4, 0), textcoords="offset points", va="center", fontsize=7
            )
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color=GRID, lw=0.7)
    axis.set_axisbelow(True)
    for border in range(1, len(labels)):
        axis.axhline(border - 0.5, color=GRID, lw=0.7)


def exposure_key(
    figure: Figure, table: pl.DataFrame, others: Mapping[str, object] | None = None, *, marked: bool | None = None
) -> None:
    """Name the exposures' colours and markers, and other lines by their dashes, in one line under the title.

    Args:
        figure: The figure.
        table: Rows whose exposures are named.
        others: Dashes of further lines by label; given, the figure is one of curves.
        marked: Whether the exposures have markers; by default where there are no others.
    """
    marked = others is None if marked is None else marked
    handles = [
        Line2D([], [], color=EXPOSURE_COLOURS[name], marker=EXPOSURE_MARKERS[name] if marked else "", lw=1.6, ms=5,
                         label=wording.EXPOSURES[name])
        for name, _ in by_exposure(table)
    ]  # fmt: skip
    for label, dashes in (others or {}).items():
        handles.append(Line2D([], [], color=MUTED, lw=1, ls=dashes, label=label))
    key(figure, handles)


def key(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A key in one line under the title."""
    width, height = figure.get_size_inches()
    wrapped = figure.texts[0].get_text().count("\n")  # the title, as canvas.panels wrote it
    place = (0.04 / width, 1 - (0.55 + canvas.LINE_INCHES * wrapped) / height)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, ncols=len(handles), fontsize=8.5, borderpad=0.3
    )
