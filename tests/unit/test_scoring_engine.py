"""Raw network outputs depend on the film and the network, and on nothing else."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from films import DEFLATED, EXPLICIT, JPEG_2000_LOSSLESS, JPEG_LS, LOSSLESS_SV1, RLE, film, write_film
from test_codecs import index_of
from test_radiograph import seen
from torch import nn

from cohort_scorer import schemas
from cohort_scorer.imaging import familiarity
from cohort_scorer.imaging.decoding import radiographs
from cohort_scorer.imaging.scoring import STAGES, Model, score

CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self, seed: int, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, 1),
        )
        self.classifier = self.layers[-1]
        self.factor = factor

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.layers(pixel_values) * self.factor)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    syntaxes = (EXPLICIT, JPEG_LS, RLE, LOSSLESS_SV1, JPEG_2000_LOSSLESS, DEFLATED)
    for number in range(17):
        write_film(folder / f"{number:02}", film(80 + number, 90, seed=number), syntaxes[number % 6])
    return folder, in_shards(index_of(folder), 5)


def in_shards(rows, size):
    """Rows with shards of `size`, as an index has them."""
    return rows.with_columns(
        shard=pl.format("00000-{}", (pl.int_range(pl.len()) // size * size).cast(pl.String).str.zfill(5))
    )


def scored(archive, rows=None, batch_size=4, workers=2, networks=None, familiar=None):
    """Outputs and refusals of all shards, each in the order in which the shards were done."""
    folder, every = archive
    networks = networks or {"gt0": Tiny(1), "ge100": Tiny(2)}
    model = Model(networks, {name: [name] for name in networks}, 48, familiar, "gt0")
    done = []
    rows = every if rows is None else rows
    films = radiographs(rows.iter_rows(named=True), {"archive": folder}, 48, workers)
    parts = list(score(rows, films, model, batch_size, CPU, workers, done.append))
    assert sorted(part.shard for part in parts) == rows["shard"].unique().sort().to_list()
    for part in parts:
        wanted = rows.filter(pl.col("shard") == part.shard)["uri"].to_list()
        found = {*part.outputs["uri"], *part.refusals["uri"]}
        assert found == set(wanted) and part.outputs.height + part.refusals.height == len(wanted)
        for frame in (part.outputs, part.refusals):
            assert frame["uri"].to_list() == [uri for uri in wanted if uri in frame["uri"]]
        assert part.seconds.keys() <= set(STAGES)
    assert sum(done) == rows.height
    parts.sort(key=lambda part: part.shard)
    return pl.concat(part.outputs for part in parts), pl.concat(part.refusals for part in parts)


def test_outputs_have_the_columns_of_the_schema_and_a_logit_per_network(archive):
    outputs, refusals = scored(archive)
    expected = [name for name in schemas.columns("network_outputs") if name != "network_id"]
    assert outputs.columns == [*expected, "logit_gt0", "logit_ge100"]
    assert outputs["uri"].to_list() == archive[1]["uri"].to_list()
    assert refusals.is_empty()
    assert outputs["logit_gt0"].n_unique() == 17
    assert outputs["logit_gt0"].cast(pl.Float32).cast(pl.Float64).equals(outputs["logit_gt0"])


def test_order_chunks_and_workers_change_no_bit(archive):
    rows = archive[1]
    plain, _ = scored(archive)
    shuffled, _ = scored(archive, rows.sample(fraction=1, shuffle=True, seed=3), workers=1)
    chunks = pl.concat([scored(archive, part)[0] for part in (rows[:3], rows[3:4], rows[4:])])
    other_shards, _ = scored(archive, in_shards(rows, 3), workers=3)
    assert plain.equals(shuffled.sort("uri"))
    assert plain.equals(chunks)
    assert plain.equals(other_shards)


def test_another_batch_size_changes_no_more_than_rounding(archive):
    plain, _ = scored(archive)
    single, _ = scored(archive, batch_size=1)
    assert (plain["logit_gt0"] - single["logit_gt0"]).abs().max() < 1e-5


def test_refused_films_are_rows_of_the_refusals_and_neighbours_do_not_notice(archive, tmp_path):
    rows = archive[1]
    broken = rows.with_columns(
        uri=pl.when(pl.col("uri").is_in(["03", "11"])).then(pl.lit("absent") + pl.col("uri")).otherwise("uri")
    )
    outputs, refusals = scored(archive, broken)
    plain, _ = scored(archive)
    assert refusals["uri"].to_list() == ["absent03", "absent11"]
    assert refusals["reason"].to_list() == ["missing_file"] * 2
    assert refusals["step"].to_list() == ["score"] * 2
    assert outputs.equals(plain.filter(~pl.col("uri").is_in(["03", "11"])))


def test_a_network_that_gives_no_number_scores_nobody(archive):
    outputs, refusals = scored(archive, networks={"gt0": Tiny(1), "ge100": Tiny(2, float("nan"))})
    assert outputs.is_empty()
    assert set(refusals["reason"]) == {"non_finite_output"}
    assert refusals["uri"].to_list() == archive[1]["uri"].to_list()


def test_no_rows_give_no_shard(archive):
    films = radiographs([], {"archive": archive[0]}, 48, 1)
    assert not list(score(archive[1].head(0), films, Model({"gt0": Tiny(1)}, {"gt0": ["gt0"]}, 48), 4, CPU, 1, print))


def test_a_film_unlike_the_training_films_is_told_by_its_distance(archive):
    """The films of the archive are blobs; the stranger is a fine chequerboard."""
    folder, rows = archive
    plain, _ = scored(archive)
    assert plain["feature_distance_percent"].is_null().all()
    network = Tiny(1).eval()
    given = torch.stack([torch.from_numpy(seen(folder / uri, 48).image / 65535.0) for uri in rows["uri"]])
    with torch.inference_mode():
        features = network.layers[:-1](given.float().unsqueeze(1)).numpy()
    familiar = familiarity.fit(features[:12], features[12:])
    write_film(folder / "stranger", (np.indices((80, 90)).sum(0) % 2 * 4095).astype(np.uint16))
    try:
        with_stranger = in_shards(index_of(folder), 5)
        outputs, _ = scored((folder, with_stranger), familiar=familiar, networks={"gt0": network})
        again, _ = scored((folder, with_stranger), familiar=familiar, networks={"gt0": network}, workers=1)
    finally:
        (folder / "stranger").unlink()
    assert outputs.equals(again)
    stranger = outputs.filter(pl.col("uri") == "stranger")
    others = outputs.filter(pl.col("uri") != "stranger")
    assert stranger["feature_distance_percent"].item() == 100
    assert stranger["feature_distance"].item() > 3 * others["feature_distance"].max()
    assert others["feature_distance_percent"].min() < 50


def test_networks_are_evaluated_not_trained(archive):
    network = Tiny(1).train()
    before = network.layers[1].running_mean.clone()
    scored(archive, networks={"gt0": network})
    assert torch.equal(network.layers[1].running_mean, before)
