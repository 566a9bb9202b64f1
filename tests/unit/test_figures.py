import re

import matplotlib as mpl
import polars as pl
import pytest
from reported_tables import reported_tables

from cohort_scorer.reporting import canvas, figures, wording

STAMPS = ("SIMULATED DATA", "NOT DISCLOSURE-CONTROLLED")
HARMFUL = r"St. $\foo$ <script> & 서울 University Hospital with a very long name indeed"


@pytest.fixture(scope="module")
def tables():
    return reported_tables(n=300, hazards=(0.01, 0.03, 0.08, 0.15))


@pytest.fixture(scope="module")
def drawn(tables):
    return figures.draw(tables, STAMPS)


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text)]


def test_every_table_with_a_figure_has_it_under_its_name(drawn):
    assert set(drawn) == {
        "attrition", "interval", "training_curves", "discrimination", "roc",
        "calibration", "calibration_curve", "decision_curve", "audit_positivity",
        "cox", "cox-subgroups", "comparison", "horizon", "risk_curve", "sensitivity", "kaplan_meier",
        "schoenfeld-true", "schoenfeld-cxr", "schoenfeld-integrated",
        "cumulative_incidence-true", "cumulative_incidence-cxr", "cumulative_incidence-integrated",
        "kaplan_meier-true", "kaplan_meier-cxr", "kaplan_meier-integrated", "crosstab-cxr", "crosstab-integrated",
        "discordance-cxr", "discordance-integrated",
    }  # fmt: skip


def test_the_same_tables_give_the_same_bytes(tables, drawn, tmp_path):
    some = {
        name: tables[name] for name in ("attrition", "discrimination", "crosstab", "kaplan_meier", "at_risk", "cox")
    }
    again = figures.draw(some, STAMPS)
    for name in ("attrition", "discrimination", "crosstab-cxr", "kaplan_meier", "cox"):
        assert canvas.svg(again[name]) == canvas.svg(drawn[name]), name
    for number, figure in enumerate((drawn["crosstab-cxr"], again["crosstab-cxr"])):
        canvas.save(figure, tmp_path / str(number), ("png", "pdf"))
    for name in ("png", "pdf"):
        assert (tmp_path / f"0.{name}").read_bytes() == (tmp_path / f"1.{name}").read_bytes()


def test_saved_files_are_named_after_the_stem_and_hold_no_date(drawn, tmp_path):
    written = canvas.save(drawn["kaplan_meier-cxr"], tmp_path / "kaplan_meier-cxr", ("svg",))
    assert written == [tmp_path / "kaplan_meier-cxr.svg"]
    assert not re.search(r"<dc:date>|20\d\d-\d\d-\d\d", written[0].read_text())


def test_every_figure_is_stamped(drawn):
    for name, figure in drawn.items():
        assert any(all(stamp in text for stamp in STAMPS) for text in texts(figure)), name


def test_without_stamps_nothing_is_stamped(tables):
    figure = figures.draw({"attrition": tables["attrition"]}, ())["attrition"]
    assert not any("SIMULATED" in text for text in texts(figure))


def test_a_site_name_is_text_whatever_it_holds():
    drawn = figures.draw(reported_tables(n=100, sites=(HARMFUL,)), STAMPS)
    for figure in drawn.values():
        assert "<script>" not in canvas.svg(figure)
    assert any(r"$\foo$" in text for text in texts(drawn["cox"]))


def test_sensitivity_draws_every_analysis_though_one_has_a_single_site_or_nobody():
    table = reported_tables(n=2000, hazards=(0.01, 0.03, 0.08, 0.15))["sensitivity"]
    landmark = pl.col("analysis") == "landmark_days"
    one_site = table.filter(~landmark | (pl.col("site") == "Hospital A"))
    nobody = table.filter(landmark, pl.col("site") == "all", pl.col("level") == "CAC 0").with_columns(
        level=pl.lit(None, pl.String), hr=pl.lit(None, pl.Float64), method=pl.lit("not_fitted")
    )
    only_a = pl.concat([table.filter(~landmark, pl.col("site") == "Hospital A"), nobody])
    order = {"main": "0", "pairing": "1", "landmark_days": "2"}  # as the step writes them
    for rows in (table, one_site, only_a):
        written = rows.sort(pl.col("analysis").replace(order), maintain_order=True)
        figure = figures.draw({"sensitivity": written}, STAMPS)["sensitivity"]
        labels = [text.get_text().split("\n")[0] for text in figure.axes[0].get_yticklabels()]
        assert labels == ["As declared", "Pairing: nearest before", "Landmark: 90 days"]


def test_ratios_of_hazard_ratios_are_printed_as_in_the_table(tables, drawn):
    rows = tables["comparison"].filter(statistic="ratio_of_hazard_ratios", method="dfbeta")
    printed = texts(drawn["comparison"])
    for row in rows.iter_rows(named=True):
        assert f"{row['estimate']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})" in printed


def test_a_ratio_that_is_not_known_is_a_dash(tables):
    known = tables["comparison"].with_columns(
        pl.when(pl.col("level") == "CAC 400+").then(None).otherwise("estimate").alias("estimate")
    )
    printed = texts(figures.draw({"comparison": known}, STAMPS)["comparison"])
    assert printed.count(wording.ABSENT) == 6  # two exposures of three groups


def test_horizons_stand_in_order_with_auc_ipa_and_what_the_covariates_reach(tables):
    absent = (pl.col("site") == "Hospital A") & (pl.col("horizon_years") == 1)
    some = tables["horizon"].with_columns(pl.when(absent).then(None).otherwise("auc").alias("auc"))
    figure = figures.draw({"horizon": some}, STAMPS)["horizon"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["1 year", "3 years", "5 years"]
    printed = texts(figure)
    assert {"0.78", "0.75", "0.72", "0.08", "covariates alone"} <= set(printed)
    for axis, value in zip(figure.axes[2:4], (0.661, 0.031), strict=True):
        assert sum(list(line.get_xdata()) == [value, value] for line in axis.lines) == 3


def test_schoenfeld_draws_the_ratio_over_time_and_the_constant_one(tables, drawn):
    axis = drawn["schoenfeld-cxr"].axes[-2]
    one = {"site": "all", "model": "covariates+cxr", "level": "CAC 100-399"}
    constant = tables["cox"].filter(pl.col("subgroup").is_null(), pl.col("period").is_null(), **one)["hr"][0]
    heights = [list(line.get_ydata()) for line in axis.lines]
    assert tables["schoenfeld"].filter(**one)["coef"].exp().to_list() in heights
    assert [1, 1] in heights
    assert [constant] * 2 in heights


def test_a_part_whose_model_is_not_fitted_says_so(tables):
    female = pl.col("subgroup").fill_null("") == "sex: F"
    before = texts(figures.draw({"cox": tables["cox"]}, STAMPS)["cox-subgroups"]).count("not fitted")
    gone = [pl.when(female).then(None).otherwise(name).alias(name) for name in ("hr", "lower", "upper")]
    absent = tables["cox"].filter(female, pl.col("level") == "CAC 400+", pl.col("hr").is_not_null())
    after = texts(figures.draw({"cox": tables["cox"].with_columns(gone)}, STAMPS)["cox-subgroups"]).count("not fitted")
    assert after == before + len(absent) > before


def test_ticks_of_a_wide_axis_do_not_touch(tables):
    wide = tables["cox"].with_columns(pl.when(pl.col("lower").is_null()).then(None).otherwise(0.01).alias("lower"))
    axis = figures.draw({"cox": wide}, STAMPS)["cox-subgroups"].axes[0]
    assert axis.get_xlim()[0] == 0.02
    assert list(axis.get_xticks()) == [0.1, 1, 10, 100]


def test_a_key_stands_below_a_title_of_two_lines():
    figure = figures.draw(reported_tables(n=300, sites=("A",)), STAMPS)["cox-subgroups"]
    assert "\n" in figure.texts[0].get_text()
    canvas.svg(figure)
    assert figure.legends[0].get_window_extent().y1 < figure.texts[0].get_window_extent().y0 + 4


def test_a_ratio_without_resamples_and_a_curve_without_a_model_are_drawn(tables):
    alone = tables["comparison"].filter(pl.col("method").ne_missing("bootstrap"))
    assert "comparison" in figures.draw({"comparison": alone}, STAMPS)
    some = {"schoenfeld": tables["schoenfeld"].filter(pl.col("level") != "CAC 400+"), "cox": tables["cox"]}
    assert texts(figures.draw(some, STAMPS)["schoenfeld-cxr"]).count("no curve") == 3


def test_a_category_without_events_is_drawn_and_its_model_is_said_not_to_be_fitted():
    drawn = figures.draw(reported_tables(n=300, sites=("A",), hazards=(0.01, 0.0, 0.05, 0.1)), STAMPS)
    assert "not fitted" in texts(drawn["cox"])
    assert "kaplan_meier-true" in drawn
    canvas.svg(drawn["kaplan_meier-true"])


def test_a_table_without_rows_to_draw_gives_no_figure(tables):
    assert figures.draw({name: table.head(0) for name, table in tables.items()}, STAMPS) == {}
    assert figures.draw({}, STAMPS) == {}


def test_the_flow_prints_every_exclusion_and_what_remains(tables, drawn):
    printed = "\n".join(texts(drawn["attrition"]))
    for reason, n in tables["attrition"].select("reason", "n_excluded").iter_rows():
        assert f"{wording.sentence(reason)} (n = {n:,})" in printed
    assert f"n = {tables['attrition']['n_after'][-1]:,}" in printed


def test_counts_under_the_curves_are_those_of_at_risk(tables, drawn):
    counts = tables["at_risk"].filter(
        pl.col("exposure") == "cxr", pl.col("site") == "all", pl.col("category") == "CAC 0"
    )
    printed = texts(drawn["kaplan_meier-cxr"])
    for column in ("n_at_risk", "cumulative_events", "cumulative_censored"):
        assert {f"{n:,}" for n in counts[column]} <= set(printed)


def test_areas_beside_the_roc_curves_are_those_of_discrimination(tables, drawn):
    pooled = tables["discrimination"].filter(pl.col("fold").is_null(), pl.col("exposure") == "cxr")
    printed = texts(drawn["roc"])
    for row in pooled.iter_rows(named=True):
        assert f"CXR {row['auc']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})" in printed


def test_a_roc_curve_of_a_site_without_a_name_has_its_area():
    made = {name: reported_tables(n=200, sites=("A",))[name] for name in ("roc", "discrimination")}
    made = {
        name: table.with_columns(site=pl.lit(None, pl.String), lower=None, upper=None) for name, table in made.items()
    }
    assert "Clinical only 0.72" in texts(figures.draw(made, STAMPS)["roc"])


@pytest.mark.parametrize("name", ["roc", "calibration_curve", "decision_curve"])
def test_a_panel_without_rows_says_so(tables, name):
    absent = (pl.col("site") == "Hospital A") & (pl.col("threshold") == 400)
    some = {name: tables[name].filter(~absent), "discrimination": tables["discrimination"]}
    assert texts(figures.draw(some, STAMPS)[name]).count("no curve") == 1


def test_a_calibration_curve_with_a_reason_alone_is_left_out(tables):
    none = tables["calibration_curve"].with_columns(
        observed=pl.lit(None, pl.Float64), reason=pl.lit("too few patients")
    )
    assert figures.draw({"calibration_curve": none}, STAMPS) == {}


def test_settings_of_matplotlib_are_left_as_they_were(tables):
    before = dict(mpl.rcParams)
    figures.draw({"crosstab": tables["crosstab"]}, STAMPS)
    assert dict(mpl.rcParams) == before
