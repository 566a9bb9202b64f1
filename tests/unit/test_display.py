"""What is displayed, against pydicom at full resolution: modality, then VOI, then at most one inversion."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pydicom
import pytest
from films import BASELINE, BIG_ENDIAN, ENCAPSULATED_LOSSLESS, EXPLICIT, EXTENDED, IMPLICIT, NATIVE, film, write_film
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from test_codecs import REALDATA, index_of

from cohort_scorer.imaging.display import FULL_RANGE, display_of, table
from cohort_scorer.imaging.files import path_of
from cohort_scorer.imaging.radiograph import Radiograph, fetch, read
from cohort_scorer.imaging.refusal import Refused

TOLERANCE = 5e-5  # of the displayed range: three of its 65,535 steps, for what is rounded before the percentiles


def row_of(path: Path) -> dict[str, Any]:
    return index_of(path.parent).filter(pl.col("uri") == path.name).row(0, named=True)


def seen(path: Path, size: int = 32) -> Radiograph:
    return read(row_of(path), path.parent, size)


def area_weights(length: int, target: int) -> np.ndarray:
    """(target, length): the share of each target pixel that each pixel covers."""
    edges = np.arange(target + 1) * length / target
    covered = np.minimum(edges[1:, None], np.arange(1, length + 1)) - np.maximum(edges[:-1, None], np.arange(length))
    return covered.clip(0) * target / length


def presented(path: Path) -> np.ndarray:
    """Displayed values at full resolution, float64, as pydicom and one inversion make them."""
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset)
    for keyword in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"):
        if keyword in dataset:  # pydicom's output range of a window would follow the sign of the slope
            del dataset[keyword]
    values = apply_voi_lut(values, dataset, prefer_lut=True).astype(np.float64)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"
    return -values if inverted else values


def oracle(path: Path, size: int) -> tuple[np.ndarray, float]:
    """The image (size, size), 0 to 1, and the share of the displayed range that its percentiles span."""
    values = presented(path)
    rows, columns = (max(1, int(length * size / max(values.shape) + 0.5)) for length in values.shape)
    small = area_weights(values.shape[0], rows) @ values @ area_weights(values.shape[1], columns).T
    low, high = np.quantile(small, (0.01, 0.99), method="inverted_cdf")
    image = np.zeros((size, size))
    top, left = (size - rows) // 2, (size - columns) // 2
    image[top : top + rows, left : left + columns] = ((small - low) / (high - low)).clip(0, 1)
    return image, (high - low) / (values.max() - values.min())


def difference(path: Path, size: int = 32) -> float:
    """The largest difference from the oracle, in shares of the displayed range."""
    expected, span = oracle(path, size)
    return float(np.abs(seen(path, size).image / FULL_RANGE - expected).max()) * span


def signed_film(rows: int = 60, columns: int = 50) -> np.ndarray:
    return (film(rows, columns).astype(np.int16) - 2048).view(np.uint16)


def look_up_item(entries: np.ndarray | bytes, first: int = 0, bits: int = 16, declared: int | None = None) -> Dataset:
    """An item of a LUT sequence: words in LUTData, or bytes as they are."""
    item = Dataset()
    n_entries = len(entries) if declared is None else declared
    item.add_new(0x00283002, "SS" if first < 0 else "US", [n_entries % 2**16, first, bits])
    item.add_new(0x00283006, "OW", entries if isinstance(entries, bytes) else entries.astype("<u2").tobytes())
    return item


def curve(n: int, highest: int, falls: bool = False) -> np.ndarray:
    rising = np.round(highest * np.linspace(0, 1, n) ** 1.7).astype(np.uint16)
    return rising[::-1].copy() if falls else rising


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [None, (1, -1024), (-0.5, 3000), (2.5, 100.5)], ids=str)
def test_windows_of_every_kind_are_displayed_as_pydicom_does(tmp_path, function, rescale):
    slope, intercept = rescale or (1, 0)
    header = {} if rescale is None else {"RescaleSlope": str(slope), "RescaleIntercept": str(intercept)}
    for photometric, shape, signed, width in itertools.product(
        ("MONOCHROME1", "MONOCHROME2"), (None, "INVERSE"), (0, 1), (3000, 400.5)
    ):
        header |= {
            "PhotometricInterpretation": photometric,
            "PresentationLUTShape": shape,
            "PixelRepresentation": signed,
            "WindowCenter": str((2000.5 - 2048 * signed) * slope + intercept),
            "WindowWidth": str(width * abs(slope)),
            "VOILUTFunction": function,
        }
        path = write_film(tmp_path / "a", signed_film(133, 97) if signed else film(133, 97), **header)
        assert seen(path).quality["voi"] == "window"
        assert difference(path) < TOLERANCE, header


@pytest.mark.filterwarnings("ignore:Applying a VOI LUT on a float")
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("signed", [0, 1])
def test_look_up_tables_are_displayed_as_pydicom_does(tmp_path, photometric, falls, signed):
    pixels = signed_film(133, 97) if signed else film(133, 97)
    modality = look_up_item(curve(3000, 60000, falls), first=600 - 2048 * signed)
    voi = look_up_item(curve(3000, 4095, falls), first=600 - 2048 * signed, bits=12)
    after = look_up_item(curve(20000, 1023, falls), first=35000, bits=10)
    window = {"WindowCenter": "30000", "WindowWidth": "40000"}
    for tables in (
        {"ModalityLUTSequence": [modality]},
        {"VOILUTSequence": [voi, look_up_item(curve(7, 7))]},
        {"VOILUTSequence": [voi]} | window,
        {"ModalityLUTSequence": [modality], "VOILUTSequence": [after]},
        {"ModalityLUTSequence": [modality]} | window,
        {"VOILUTSequence": [voi], "RescaleSlope": "1", "RescaleIntercept": "0"},
    ):
        path = write_film(
            tmp_path / "a", pixels, PhotometricInterpretation=photometric, PixelRepresentation=signed, **tables
        )
        declared = "lut" if "VOILUTSequence" in tables else "window" if "WindowCenter" in tables else "none"
        assert seen(path).quality["voi"] == declared
        assert difference(path) < TOLERANCE, tables.keys()


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("signed", [0, 1])
def test_a_first_input_below_zero_is_known_by_what_the_inputs_can_be(tmp_path, syntax, signed):
    """PS3.3 C.11.2.1.1: US or SS in the file, the sign follows the input of the table."""
    first = -1500 if signed else -1000
    rescale = {} if signed else {"RescaleSlope": "1", "RescaleIntercept": "-1024"}
    found = []
    for name, value, vr in (("a", first, "SS"), ("b", first + 2**16, "US")):
        item = Dataset()
        item.add_new(0x00283002, vr, [3000, value, 12])
        entries = curve(3000, 4095)
        item.add_new(0x00283006, "OW", entries.astype(">u2" if syntax == BIG_ENDIAN else "<u2").tobytes())
        path = write_film(
            tmp_path / name,
            signed_film() if signed else film(),
            syntax,
            PixelRepresentation=signed,
            VOILUTSequence=[item],
            **rescale,
        )
        fetched = fetch(row_of(path), tmp_path)
        assert fetched.voi_lut is not None and fetched.voi_lut.first == first
        assert np.array_equal(np.frombuffer(fetched.voi_lut.entries, "<u2"), entries)
        found.append(seen(path).image.tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("n", [4000, 4001])
def test_entries_of_one_byte_are_read_packed_or_padded_whatever_width_is_declared(tmp_path, syntax, n):
    entries = curve(n, 255)
    packed = entries.astype(np.uint8).tobytes() + b"\0" * (n % 2)
    words = entries.astype("<u2").tobytes()
    if syntax == BIG_ENDIAN:
        packed, words = (np.frombuffer(data, "<u2").byteswap().tobytes() for data in (packed, words))
    for data, bits in itertools.product((packed, words), (8, 16)):
        path = write_film(tmp_path / "a", film(), syntax, VOILUTSequence=[look_up_item(data, 0, bits, n)])
        found = fetch(row_of(path), tmp_path).voi_lut
        assert found is not None
        assert np.array_equal(np.frombuffer(found.entries, "<u2"), entries), (len(data), bits)


def test_a_table_of_65536_entries_is_read_and_declared_as_zero(tmp_path):
    pixels = film(bits=16)
    path = write_film(
        tmp_path / "a", pixels, BitsStored=16, HighBit=15, VOILUTSequence=[look_up_item(curve(2**16, 65535))]
    )
    assert row_of(path)["voi_lut"]
    found = fetch(row_of(path), tmp_path).voi_lut
    assert found is not None and len(found.entries) == 2**17
    assert difference(path) < TOLERANCE


@pytest.mark.parametrize("declared", [0, 3000, 5000])
def test_of_entries_wrongly_counted_those_are_used_that_are_declared_and_there(tmp_path, declared):
    entries = curve(4096, 4095)
    path = write_film(tmp_path / "a", film(), VOILUTSequence=[look_up_item(entries, 0, 12, declared)])
    found = fetch(row_of(path), tmp_path).voi_lut
    assert found is not None
    assert np.array_equal(np.frombuffer(found.entries, "<u2"), entries[: declared or None])


@pytest.mark.parametrize("fault", ["no data", "no descriptor", "no entries", "two numbers", "a text", "no item"])
@pytest.mark.parametrize("keyword", ["ModalityLUTSequence", "VOILUTSequence"])
def test_a_table_that_cannot_be_read_refuses_the_film(tmp_path, keyword, fault):
    item = look_up_item(curve(100, 100))
    if fault == "no data":
        del item[0x00283006]
    elif fault == "no descriptor":
        del item[0x00283002]
    elif fault == "no entries":
        item[0x00283006].value = b""
    elif fault == "two numbers":
        item[0x00283002].value = [100, 0]
    elif fault == "a text":
        item.add_new(0x00283002, "LO", "100")
    path = write_film(tmp_path / "a", film(), **{keyword: [item]})
    if fault == "no item":
        content = path.read_bytes()
        at = content.index(b"SQ\0\0") + 8
        path.write_bytes(content[:at] + b"\xfe\xff\xdd\xe0\0\0\0\0" + content[at + 8 :])
    row = row_of(path)
    assert row["eligible"]
    with pytest.raises(Refused, match="look_up_table"):
        read(row, tmp_path, 32)


@pytest.mark.parametrize(
    ("window", "voi"),
    [
        ({}, "none"),
        ({"WindowCenter": ["2000", "9"], "WindowWidth": ["3000", "1"]}, "window"),
        ({"WindowCenter": "2000", "WindowWidth": "0"}, "invalid_window"),
        ({"WindowCenter": "2000", "WindowWidth": "-7"}, "invalid_window"),
        ({"WindowCenter": "2000", "WindowWidth": "0.5"}, "invalid_window"),
        ({"WindowCenter": "2000", "WindowWidth": "0", "VOILUTFunction": "SIGMOID"}, "invalid_window"),
        ({"WindowCenter": "2000", "WindowWidth": "0.5", "VOILUTFunction": "LINEAR_EXACT"}, "window"),
        ({"WindowCenter": "2000", "WindowWidth": "300", "VOILUTFunction": "GAMMA"}, "invalid_window"),
        ({"WindowCenter": "2000"}, "invalid_window"),
        ({"WindowWidth": "2000"}, "invalid_window"),
        ({"WindowCenter": "1e300", "WindowWidth": "1e-300", "VOILUTFunction": "SIGMOID"}, "window"),
    ],
    ids=str,
)
def test_the_first_window_counts_and_one_without_meaning_is_flagged_and_not_applied(tmp_path, window, voi):
    row = row_of(write_film(tmp_path / "a", film(), **window))
    shown = display_of(row, None, None)
    assert shown.voi == voi
    if voi != "window":
        assert table(shown) is None
        plain = seen(write_film(tmp_path / "b", film()))
        assert np.array_equal(read(row, tmp_path, 32).image, plain.image)
    else:
        assert table(shown) is not None
    if window.get("WindowCenter") == ["2000", "9"]:
        assert (row["window_center"], row["window_width"]) == (2000, 3000)


def test_a_window_one_wide_is_a_step(tmp_path):
    """PS3.3 C.11.2.1.2.1: above centre - 0.5 is white."""
    row = row_of(write_film(tmp_path / "a", film(), WindowCenter="2000", WindowWidth="1"))
    values = table(display_of(row, None, None))
    assert values is not None
    assert set(values[:4096].tolist()) == {0, FULL_RANGE}
    assert values[1999] == 0 and values[2000] == FULL_RANGE


def test_a_window_that_leaves_no_contrast_is_refused(tmp_path):
    row = row_of(write_film(tmp_path / "a", film(), WindowCenter="60000", WindowWidth="100"))
    with pytest.raises(Refused, match="no_contrast"):
        read(row, tmp_path, 32)


@pytest.mark.parametrize("voi", ["window", "lut"])
@pytest.mark.parametrize("syntax", NATIVE[:3] + ENCAPSULATED_LOSSLESS)
def test_one_film_is_one_image_in_every_lossless_syntax_with_a_window_or_table_too(tmp_path, voi, syntax):
    facts = {"WindowCenter": "1700", "WindowWidth": "2100"}
    if voi == "lut":
        facts = {"VOILUTSequence": [look_up_item(curve(4096, 4095), bits=12)]}
    plain = seen(write_film(tmp_path / "a", film(301, 203), **facts))
    other = seen(write_film(tmp_path / "b", film(301, 203), syntax, **facts))
    assert np.array_equal(plain.image, other.image)
    assert plain.quality["voi"] == other.quality["voi"] == voi


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_a_monochrome1_film_with_the_mirrored_window_equals_its_twin_to_the_bit(tmp_path, function):
    pixels = film(133, 97)
    for center, width in np.random.default_rng(5).uniform((1000, 100), (3000, 4000), (20, 2)).round(2):
        window = {"WindowWidth": str(width), "VOILUTFunction": function}
        plain = seen(write_film(tmp_path / "a", pixels, WindowCenter=str(center), **window))
        mirrored = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": str(round(4095 - center, 2))} | window
        assert np.array_equal(plain.image, seen(write_film(tmp_path / "b", 4095 - pixels, **mirrored)).image)


@pytest.mark.skipif(not REALDATA.is_dir(), reason="no real films beside the repository (../shared/realdata)")
def test_real_files_are_displayed_as_pydicom_does():
    n_windows = 0
    rows = index_of(REALDATA).filter(pl.col("eligible") | pl.col("window_width").is_not_null())
    for row in rows.filter(pl.max_horizontal("rows", "columns") >= 96).iter_rows(named=True):
        path = path_of(REALDATA, row["uri"])
        try:
            found = read(row, REALDATA, 96)
            expected, span = oracle(path, 96)
        except (Refused, RuntimeError, TypeError):  # broken on purpose, or pydicom has no decoder here
            continue
        n_windows += found.quality["voi"] == "window"
        # Two stored steps are lost where a film uses few of the 16 bits; JPEG decoders differ by a grey level.
        stored = pydicom.dcmread(path).pixel_array
        steps = float(np.ptp(stored)) * 2 ** (16 - row["bits_stored"])
        tolerance = TOLERANCE + 2 / steps
        if row["transfer_syntax"] in (BASELINE, EXTENDED):
            tolerance = 0.0035
        assert np.abs(found.image / FULL_RANGE - expected).max() * span < tolerance, path.name
    assert n_windows >= 20
