"""The house style of all figures: palette, fonts, panels, stamps and reproducible files. Knows no table's meaning.

Figures are made through matplotlib's object interface alone; pyplot and its global state are never imported. Text is
never read as mathematics (a site may be called `$A`).
"""

import io
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import polars as pl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cohort_scorer import schemas, storage
from cohort_scorer.reporting import wording

INK, MUTED, GRID, WARNING = "#1b1b1f", "#5c5f66", "#e4e5ea", "#a3121f"
CATEGORIES = schemas.vocabulary("kaplan_meier", "category")
CATEGORY_COLOURS = dict(zip(CATEGORIES, ("#e8961e", "#d1495b", "#84307b", "#27104e"), strict=True))
"""Light to dark with rising CACS: ordered in greyscale and with every common colour vision deficiency."""
EXPOSURE_COLOURS = {"true": "#1b1b1f", "cxr": "#0072b2", "integrated": "#d55e00", "clinical": "#009e73"}
EXPOSURE_MARKERS = {"true": "D", "cxr": "o", "integrated": "s", "clinical": "^"}
HEADER_INCHES = 0.75
"""Room above the panels for one line of stamps and the title."""
LINE_INCHES = 0.19
"""Further room for each further line of the title."""

_EAST_ASIAN = ("Noto Sans CJK KR", "Noto Sans CJK JP", "Noto Sans CJK SC", "Malgun Gothic", "Apple SD Gothic Neo")


def style() -> AbstractContextManager[None]:
    """The settings of matplotlib under which figures must be made and saved."""
    installed = set(font_manager.get_font_names())
    settings: Any = {
        "font.family": ["DejaVu Sans", *(name for name in _EAST_ASIAN if name in installed)],
        "font.size": 9,
        "text.parse_math": False,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.unicode_minus": True,
        "axes.formatter.use_mathtext": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.frameon": False,
        "figure.facecolor": "white",
        "savefig.dpi": 200,
        "svg.hashsalt": "cohort-scorer",
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
    }
    return mpl.rc_context(settings)


def panels(
    titles: Sequence[str],
    size: tuple[float, float],
    title: str,
    *,
    columns: int = 3,
    margin: float = 0.2,
    left: float = 0.5,
    right: float = 0.2,
    below: float = 0.55,
    above: float = 0.15,
    title_width: float | None = None,
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels in rows, measured in inches.

    Args:
        titles: One heading per panel; long ones are wrapped and make room for themselves.
        size: Width and height of one panel's axes.
        title: The figure's own title.
        columns: Panels in a row.
        margin: Room left of the first column, for labels that all panels of a row share.
        left: Room left of every panel.
        right: Room right of every panel.
        below: Room below every panel.
        above: Room above every panel, beside what its heading needs.
        title_width: Width that a heading may take; by default the panel's.
    """
    width, height = size
    wrapped = [textwrap.fill(text, max(12, int((title_width or width) * 11))) for text in titles]
    above += 0.17 * max(text.count("\n") + 1 for text in wrapped)
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    full_width = max(margin + columns * (left + width + right), 6.2)
    title = textwrap.fill(title, int(full_width * 10))
    header = HEADER_INCHES + LINE_INCHES * title.count("\n")
    full_height = header + rows * (above + height + below)
    figure = Figure(figsize=(full_width, full_height))
    figure.text(0.12 / full_width, 1 - 0.4 / full_height, title, fontsize=11, weight="bold", va="top")
    axes = []
    for number, text in enumerate(wrapped):
        row, column = divmod(number, columns)
        x = margin + left + column * (left + width + right)
        y = full_height - header - above - height - row * (above + height + below)
        axis = figure.add_axes((x / full_width, y / full_height, width / full_width, height / full_height))
        axis.set_title(text, pad=6)
        axes.append(axis)
    return figure, axes


def stamp(figure: Figure, stamps: Iterable[str]) -> None:
    """Print the stamps on the figure's first line."""
    width, height = figure.get_size_inches()
    text = "  ·  ".join(stamps)
    figure.text(0.12 / width, 1 - 0.12 / height, text, color=WARNING, fontsize=8.5, weight="bold", va="top")


def groups(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The table's parts by site and score origin as (heading, rows), in the table's order, the pooled part last."""
    parts = frame.partition_by("site", "score_origin", as_dict=True, maintain_order=True)
    ordered = sorted(parts.items(), key=lambda part: part[0] == ("all", "all"))
    return [(wording.group(*key), rows) for key, rows in ordered]


def save(figure: Figure, stem_path: Path, formats: Iterable[str]) -> list[Path]:
    """Write a figure, whole or not at all, with the same bytes for the same tables.

    Args:
        figure: A figure of this package.
        stem_path: The path without its ending.
        formats: svg, png, pdf.
    """
    written = []
    for name in formats:
        path = stem_path.with_name(f"{stem_path.name}.{name}")
        storage.write_bytes(_rendered(figure, name), path)
        written.append(path)
    return written


def svg(figure: Figure) -> str:
    """The figure as SVG text."""
    return _rendered(figure, "svg").decode()


def _rendered(figure: Figure, name: str) -> bytes:
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with style(), warnings.catch_warnings():
        # A name in a script that no installed font has is drawn as boxes; the table beside the figure has it in full.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(buffer, format=name, metadata=undated.get(name))
    return _short(buffer.getvalue()) if name == "svg" else buffer.getvalue()


def _short(drawing: bytes) -> bytes:
    """Path coordinates to a hundredth of a point: half the bytes, the same picture."""
    return re.sub(rb'(?m)^(?:.*d=")?[MLCQ] .*$', lambda line: re.sub(rb"(\.\d\d)\d+", rb"\1", line[0]), drawing)
