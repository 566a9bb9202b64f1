"""From stored integers to what a network sees."""

from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
from films import (
    BASELINE,
    ENCAPSULATED_LOSSLESS,
    EXPLICIT,
    EXTENDED,
    JPEG_2000_LOSSLESS,
    NATIVE,
    film,
    read_headers,
    write_film,
)
from PIL import Image
from test_codecs import EVERYTHING, REALDATA, index_of
from test_display import area_weights

from cohort_scorer import schemas
from cohort_scorer.imaging.index import find_files
from cohort_scorer.imaging.radiograph import PREPROCESSING, Preprocessing, Radiograph, develop, fetch, read
from cohort_scorer.imaging.refusal import Refused


def seen(path: Path, size: int = 32) -> Radiograph:
    row = index_of(path.parent).filter(pl.col("uri") == path.name).row(0, named=True)
    return read(row, path.parent, size)


def pictures(folder: Path, *names: str) -> pl.DataFrame:
    listing = pl.DataFrame({"uri": names, "patient_id": ["1"] * len(names), "view": ["PA"] * len(names)})
    found = find_files(folder, listing)
    return read_headers(found, folder, "archive", listing, EVERYTHING, 1, lambda n: None)[0]


@pytest.mark.parametrize(
    "inverting",
    [
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"RescaleSlope": "-1", "RescaleIntercept": "4095"},
    ],
    ids=str,
)
def test_films_stored_with_white_low_equal_their_inverse_to_the_bit(tmp_path, inverting):
    pixels = film(333, 271)
    plain = seen(write_film(tmp_path / "a", pixels))
    inverse = seen(write_film(tmp_path / "b", 4095 - pixels, **inverting))
    assert np.array_equal(plain.image, inverse.image)
    assert plain.pixel_sha256 == inverse.pixel_sha256
    assert plain.quality == inverse.quality


def test_a_negative_slope_of_a_monochrome1_film_inverts_back(tmp_path):
    pixels = film()
    plain = seen(write_film(tmp_path / "a", pixels))
    twice = seen(write_film(tmp_path / "b", pixels, PhotometricInterpretation="MONOCHROME1", RescaleSlope="-1"))
    assert np.array_equal(plain.image, twice.image)


def test_signed_films_equal_unsigned_ones(tmp_path):
    pixels = film()
    signed = (pixels.astype(np.int16) - 2048).view(np.uint16)
    plain = seen(write_film(tmp_path / "a", pixels))
    assert np.array_equal(plain.image, seen(write_film(tmp_path / "b", signed, PixelRepresentation=1)).image)
    assert np.array_equal(plain.image, seen(write_film(tmp_path / "c", signed & 0xFFF, PixelRepresentation=1)).image)


def test_bits_outside_of_bits_stored_are_not_seen(tmp_path):
    pixels = film()
    plain = seen(write_film(tmp_path / "a", pixels))
    overlay = seen(write_film(tmp_path / "b", pixels | 0x8000))
    shifted = seen(write_film(tmp_path / "c", (pixels << 4) | 0x5, HighBit=15))
    assert np.array_equal(plain.image, overlay.image)
    assert plain.image.tobytes() == shifted.image.tobytes()


@pytest.mark.parametrize("syntax", NATIVE + ENCAPSULATED_LOSSLESS)
def test_one_film_is_one_image_in_every_lossless_syntax(tmp_path, syntax):
    plain = seen(write_film(tmp_path / "a", film(301, 203)))
    other = seen(write_film(tmp_path / "b", film(301, 203), syntax))
    assert np.array_equal(plain.image, other.image)
    assert plain.pixel_sha256 == other.pixel_sha256


def test_the_pixel_hash_knows_films_and_not_sizes(tmp_path):
    path = write_film(tmp_path / "a", film(300, 200))
    assert seen(path, 32).pixel_sha256 == seen(path, 64).pixel_sha256
    assert seen(path).pixel_sha256 != seen(write_film(tmp_path / "b", film(300, 200, seed=1))).pixel_sha256
    assert seen(path).pixel_sha256 != seen(write_film(tmp_path / "c", film(200, 300))).pixel_sha256


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (100, 100), (20, 10)])
def test_films_are_centred_in_a_square_on_black(tmp_path, shape):
    pixels = film(*shape) // 2 + 2000
    image = seen(write_film(tmp_path / "a", pixels)).image
    assert image.shape == (32, 32) and image.dtype == np.uint16
    used = 32 * min(shape) // max(shape)
    band = image if shape[0] <= shape[1] else image.T
    border = (32 - used) // 2
    assert not band[:border].any() and not band[32 - border :].any()
    assert band[border : 32 - border].max() == 65535


def test_percentiles_fill_the_range_and_outliers_do_not_move_it(tmp_path):
    pixels = film(128, 128)
    marked = pixels.copy()
    marked[:3, :3] = 4095
    plain, burned = (seen(write_film(tmp_path / name, p), 128).image for name, p in (("a", pixels), ("b", marked)))
    assert plain.min() == 0 and plain.max() == 65535
    assert np.abs(plain[8:].astype(int) - burned[8:]).max() < 200


@pytest.mark.parametrize("shape", [(250, 204), (301, 203), (96, 331), (320, 2), (128, 99)], ids=str)
def test_pixels_are_area_means_to_the_last_step_of_16_bits(tmp_path, shape):
    pixels = np.random.default_rng(7).integers(0, 2**16, shape).astype(np.uint16)
    pixels[: shape[0] // 3], pixels[-shape[0] // 3 :] = 0, 65535  # so that the percentiles are the whole range
    rows, columns = (max(1, int(length * 64 / max(shape) + 0.5)) for length in shape)
    exact = area_weights(shape[0], rows) @ pixels @ area_weights(shape[1], columns).T
    image = seen(write_film(tmp_path / "a", pixels, BitsStored=16, HighBit=15), 64).image
    top, left = (64 - rows) // 2, (64 - columns) // 2
    assert np.abs(image[top : top + rows, left : left + columns] - exact).max() < 1.01


def test_a_film_of_one_value_has_no_contrast(tmp_path):
    path = write_film(tmp_path / "a", np.full((40, 40), 7, np.uint16))
    with pytest.raises(Refused, match="no_contrast"):
        seen(path)


def test_pictures_of_every_kind_are_read(tmp_path):
    grey = film(90, 70, bits=8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 9)])).save(tmp_path / "rgba.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    rows = pictures(tmp_path, "grey.png", "rgb.png", "rgba.png", "deep.png", "palette.png")
    images = {row["uri"]: read(row, tmp_path, 70).image for row in rows.iter_rows(named=True)}
    assert rows["eligible"].all()
    for name in ("rgb.png", "rgba.png", "palette.png"):
        assert np.array_equal(images[name], images["grey.png"])
    assert np.abs(images["deep.png"].astype(int) - images["grey.png"]).max() <= 65535 // 100


def test_pictures_are_turned_as_their_exif_orientation_says(tmp_path):
    grey = film(90, 70, bits=8)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise to be upright
    Image.fromarray(grey).save(tmp_path / "upright.png")
    Image.fromarray(np.rot90(grey)).save(tmp_path / "turned.png", exif=exif)
    rows = pictures(tmp_path, "upright.png", "turned.png")
    upright, turned = (read(row, tmp_path, 32).image for row in rows.iter_rows(named=True))
    assert np.array_equal(upright, turned)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_picture_is_refused(tmp_path, name):
    Image.fromarray(film(90, 70, bits=8)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    row = pictures(tmp_path, name).row(0, named=True)
    with pytest.raises(Refused, match="decode_failed"):
        read(row, tmp_path, 32)


def test_a_row_whose_uri_climbs_out_is_not_read(tmp_path):
    row = index_of(write_film(tmp_path / "a", film()).parent).row(0, named=True)
    for uri in ("../a", "b/%2e%2e/%2e%2e/a", "/etc/passwd", "a%00"):
        with pytest.raises(Refused, match="outside_root"):
            read(row | {"uri": uri}, tmp_path / "b", 32)


def test_the_preprocessing_id_covers_size_and_every_parameter():
    known = PREPROCESSING.identifier(512)
    assert known == Preprocessing().identifier(512)
    assert len(known) == 16
    assert known != PREPROCESSING.identifier(256)
    for name, value in asdict(PREPROCESSING).items():
        other = value + 1 if isinstance(value, int | float) else f"{value} or another"
        assert known != Preprocessing(**{name: other}).identifier(512), name


def test_quality_columns_are_those_of_the_schema_and_see_an_inverted_film(tmp_path):
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    body = ((np.hypot(x, y) < 0.8) * 3000 + film(200, 200) // 8).astype(np.uint16)
    quality = seen(write_film(tmp_path / "a", body), 64).quality
    inverted = seen(write_film(tmp_path / "b", body, PhotometricInterpretation="MONOCHROME1"), 64).quality
    assert set(quality) < set(schemas.columns("network_outputs"))
    assert quality["border_centre"] < -0.3 < 0.3 < inverted["border_centre"]
    assert quality["aspect"] == 1.0
    saturated = np.where(body > 1000, 4095, body).astype(np.uint16)
    assert seen(write_film(tmp_path / "c", saturated), 64).quality["clipped_percent"] > 30 > quality["clipped_percent"]


def test_blur_lowers_sharpness_and_contrast_does_not(tmp_path):
    pixels = film(256, 256, seed=3)
    blurred = cv2.GaussianBlur(pixels, (0, 0), 4)
    sharp, dim, soft = (
        seen(write_film(tmp_path / name, values), 256).quality["sharpness"]
        for name, values in (("a", pixels), ("b", pixels // 2 + 900), ("c", blurred))
    )
    assert dim == pytest.approx(sharp, rel=0.01)
    assert soft < sharp / 5


def test_quality_carries_what_the_header_says_and_nothing_where_it_is_silent(tmp_path):
    silent = seen(write_film(tmp_path / "a", film())).quality
    names = ("view_conflict", "for_processing", "burned_in_annotation", "lossy")
    assert [silent[name] for name in names] == [False, None, None, None]
    said = {"PresentationIntentType": "FOR PROCESSING", "BurnedInAnnotation": "YES", "LossyImageCompression": "01"}
    loud = seen(write_film(tmp_path / "b", film(), ViewPosition="PA", SeriesDescription="Chest AP", **said)).quality
    assert [loud[name] for name in names] == [True] * 4
    said = {"PresentationIntentType": "FOR PRESENTATION", "BurnedInAnnotation": "NO", "LossyImageCompression": "00"}
    assert [seen(write_film(tmp_path / "c", film(), **said)).quality[name] for name in names] == [False] * 4


@pytest.mark.parametrize("stated", [None, "00", "01"])
@pytest.mark.parametrize(("syntax", "bits"), [(BASELINE, 8), (EXTENDED, 12)])
def test_a_syntax_that_is_lossy_by_nature_is_lossy_whatever_the_header_says(tmp_path, syntax, bits, stated):
    path = write_film(tmp_path / "a", film(bits=bits), syntax, LossyImageCompression=stated)
    assert seen(path).quality["lossy"] is True


def test_a_strip_one_pixel_wide_is_measured_too(tmp_path):
    quality = seen(write_film(tmp_path / "a", film(200, 1))).quality
    assert all(np.isfinite(quality[name]) for name in ("sharpness", "border_centre", "clipped_percent"))


def test_what_was_fetched_needs_no_file(tmp_path):
    path = write_film(tmp_path / "a", film(), WindowCenter="2000", WindowWidth="3000")
    row = index_of(tmp_path).row(0, named=True)
    plain, fetched = read(row, tmp_path, 32), fetch(row, tmp_path)
    path.unlink()
    assert np.array_equal(develop(row, fetched, 32).image, plain.image)


@pytest.mark.skipif(not REALDATA.is_dir(), reason="no real films beside the repository (../shared/realdata)")
def test_one_real_film_in_four_lossless_syntaxes_is_one_image():
    rows = index_of(REALDATA).filter(pl.col("uri").str.contains("RG3_(J2KR|JLSL|JPLL|RLE)"))
    assert rows["transfer_syntax"].n_unique() == 4
    found = [read(row, REALDATA, 256) for row in rows.iter_rows(named=True)]
    assert len({film.image.tobytes() for film in found}) == 1
    assert len({film.pixel_sha256 for film in found}) == 1
    assert {EXPLICIT, JPEG_2000_LOSSLESS} - set(rows["transfer_syntax"]) == {EXPLICIT}
