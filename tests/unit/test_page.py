import dataclasses
import itertools
import re
from html.parser import HTMLParser

import polars as pl
import pytest
from reported_tables import reported_tables

from cohort_scorer.reporting import tables, wording
from cohort_scorer.reporting.page import Page, render

STAMPS = ("SIMULATED DATA", "NOT DISCLOSURE-CONTROLLED")
FIGURES = (
    *("attrition", "training_curves", "discrimination", "roc", "calibration", "calibration_curve", "decision_curve"),
    *("crosstab-cxr", "crosstab-integrated"),
    *("kaplan_meier", "kaplan_meier-true", "kaplan_meier-cxr", "cox", "discordance-cxr", "audit_positivity"),
    *("comparison", "schoenfeld-cxr", "horizon", "cox-subgroups", "cumulative_incidence-cxr"),
)
VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects addresses and headings, and checks that every element is closed."""

    def __init__(self):
        super().__init__()
        self.addresses, self.headings, self.open, self.tags, self.images = [], [], [], set(), []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def content():
    made = reported_tables(n=300, sites=("<script>alert(1)</script>", "B & C"), hazards=(0.01, 0.03, 0.08, 0.15))
    return Page(
        title="A <b>study</b>",
        simulated=True,
        stamps=STAMPS,
        tables=made,
        figures=dict.fromkeys(FIGURES, "<svg xmlns='http://www.w3.org/2000/svg'/>"),
        archive={
            "files": {"found": 1261, "indexed": 1200, "eligible": 900, "scored": 892},
            "refused_index": {"not_dicom": 41, "not_a_radiograph": 20},
            "refused_score": {"decoder_refused": 8},
        },
        choices=[
            ("model", "category_rule", "youden", "declared"),
            ("outcome", "name", "MACE", "default"),
            ("comparison", "confidence_level", 0.95, "default"),
        ],
        model={"model_id": "a3f8", "n_training_patients": 1043, "trained_on_simulated_data": True},
        manifest={"seed": 7, "versions": {"polars": "1.35"}, "steps": {"train": {"seconds": 12.5}}},
    )


@pytest.fixture(scope="module")
def html(content):
    return render(content)


def test_it_asks_for_nothing_from_outside(html):
    reader = read(html)
    assert all(address.startswith(("data:", "#", "tables/")) for address in reader.addresses)
    assert not reader.tags & {"script", "iframe", "object", "embed"}
    assert not re.search(r"@import|url\(", html)


def test_names_and_titles_are_text(html):
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "A &lt;b&gt;study&lt;/b&gt;" in html


def test_stamps_and_simulation_stand_on_top(html):
    top = html[html.index("<body>") : html.index("<h1>")]
    assert all(stamp in top for stamp in STAMPS)
    assert "The model was trained on simulated data" in html


def test_headings_follow_one_another(html):
    headings = read(html).headings
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))


def test_every_figure_is_shown_with_words_and_its_tables(content, html):
    images = read(html).images
    assert len(images) == len(content.figures)
    assert all(image["alt"] and image["src"].startswith("data:image/svg+xml;base64,") for image in images)
    for name in content.figures:
        assert f'href="tables/{name.partition("-")[0]}.csv"' in html


def test_every_table_is_named_with_its_csv(content, html):
    for name in content.tables:
        assert f'href="tables/{name}.csv"' in html


def test_the_lead_counts_this_run(content, html):
    rates = content.tables["event_rates"].filter(pl.col("site") == "all", pl.col("exposure") == "true")
    assert f"compared in {rates['n'].sum():,} patients" in html
    assert f"of whom {rates['events'].sum():,} had MACE" in html


def test_published_areas_stand_beside_discrimination_as_words_and_never_in_a_table(html):
    section = html[html.index("<h3>Discrimination</h3>") : html.index("<h3>Operating points</h3>")]
    note = re.search(r'<p class="note">For context only: the published study(.*?)</p>', section, re.DOTALL)
    assert note is not None
    assert html.count("jcct.2025.03.010") == 1
    assert "another population and other networks; nothing in this run computes them" in note[1]


def test_the_page_says_why_a_paired_test_has_no_p(html):
    assert "p stands only where every score is external" in html


def test_subgroups_are_named_in_words(html):
    section = html[html.index("<h3>Subgroups</h3>") :]
    section = section[: section.index("</section>")]
    assert "<td>Age band</td>" in section
    assert "<td>age_band</td>" not in section


def test_key_results_are_those_of_the_tables(content, html):
    row = content.tables["cox"].filter(
        pl.col("site") == "all", pl.col("model") == "covariates+cxr", pl.col("level") == "CAC 400+"
    )
    key = html[html.index('id="key"') : html.index('id="archive"')]
    assert tables.hazard_ratio(row.row(0, named=True)) in key
    compared = content.tables["comparison"].filter(site="all", exposure="cxr").filter(pl.col("method") != "bootstrap")
    for statistic, decimals in (("ratio_of_hazard_ratios", 2), ("harrell_c_difference", 3)):
        chosen = compared.filter(
            pl.col("statistic") == statistic, pl.col("level").is_null() | (pl.col("level") == "CAC 400+")
        )
        assert tables.estimate(*chosen.select("estimate", "lower", "upper").row(0), decimals=decimals) in key


def section(html, heading):
    start = html.index(f"<h3>{heading}</h3>")
    return html[start : html.index("<h3>", start + 4)]


def test_ratios_of_hazard_ratios_stand_beside_the_risks_and_the_warning(content, html):
    part = section(html, "Predicted against true")
    row = content.tables["comparison"].filter(
        site="all", statistic="ratio_of_hazard_ratios", level="CAC 400+", exposure="cxr", method="dfbeta"
    )
    assert tables.estimate(*row.select("estimate", "lower", "upper").row(0), decimals=2) in part
    risk = content.tables["comparison"].filter(site="all", statistic="risk", level="CAC 400+", exposure="true")
    scaled = (100 * value for value in risk.select("estimate", "lower", "upper").row(0))
    assert tables.estimate(*scaled, decimals=1) in part
    assert "A ratio of 1 is not equal risk" in part
    assert "not nested" in part


def test_without_a_margin_no_word_says_that_models_are_as_good(content, html):
    for word in ("equivalen", "non-inferior", "noninferior"):
        assert word not in html.lower().replace("noninferiority_margin_c", "")
    row = content.tables["comparison"].filter(statistic="harrell_c_difference").head(1)
    margin = row.with_columns(statistic=pl.lit("noninferiority_c"))
    declared = dataclasses.replace(
        content,
        tables=content.tables | {"comparison": pl.concat([content.tables["comparison"], margin])},
        choices=[*content.choices, ("comparison", "noninferiority_margin_c", 0.03, "declared")],
    )
    page = render(declared)
    assert "The margin was declared as 0.03" in page
    assert 'class="number">no</td>' in section(page, "Predicted against true")
    assert 'class="number">yes</td>' in section(
        render(dataclasses.replace(declared, choices=[("comparison", "noninferiority_margin_c", 0.05, "declared")])),
        "Predicted against true",
    )


def test_differences_of_c_and_adequacy_stand_in_one_row_and_say_why_one_is_absent(html):
    part = section(html, "Predicted against true")
    cells = ("-0.021 (-0.042 to 0.000)", "0.051", "-0.021 (-0.044 to 0.003)", "-0.025 (-0.047 to -0.003)", "0.026")
    row = "".join(f'<td class="number">{cell}</td>'.replace("-", "\N{MINUS SIGN}") for cell in cells)
    assert f'<th scope="row">Covariates + CXR v Covariates + True CACS</th>{row}' in part
    adequacy = ("0.714 (0.552 to 0.831)", "0.943 (0.883 to 0.971)", wording.ABSENT)
    row = "".join(f'<td class="number">{cell}</td>' for cell in adequacy)
    assert f'<th scope="row">CXR</th>{row}<td>a model was not fitted</td>' in part


def test_differences_at_horizons_stand_beside_the_performance(html):
    part = section(html, "Performance at horizons")
    assert '<td>5 years</td><td class="number">\N{MINUS SIGN}0.0340 (\N{MINUS SIGN}0.0710 to 0.0020)</td>' in part


def test_resamples_without_a_value_are_told(html):
    assert "Up to 1 of 200 resamples gave no value" in section(html, "Predicted against true")


def test_c_is_printed_apparent_and_corrected(html):
    part = section(html, "Cox regression")
    assert '<td class="number">0.684</td><td class="number">0.671</td><td class="number">0.693</td>' in part
    assert "less by its mean optimism" in part


def test_groups_fitted_by_firth_are_named(content, html):
    assert "Firth" not in section(html, "Cox regression")
    fits = content.tables["cox_fit"].with_columns(
        pl.when(pl.col("site") == "B & C").then(pl.lit("firth")).otherwise("method").alias("method")
    )
    page = render(dataclasses.replace(content, tables=content.tables | {"cox_fit": fits}))
    assert "a resample none in one: Site B &amp; C (external)." in section(page, "Cox regression")


def test_pairs_of_categories_are_folded_below_the_log_rank_tests(html):
    part = section(html, "Kaplan-Meier")
    folded = part[part.index("<summary>Log-rank tests of pairs") :]
    assert "0.086" in folded
    assert "0.086" not in part[: part.index("<summary>Log-rank tests of pairs")]


@pytest.mark.parametrize(("difference", "warned"), [(3e-11, False), (2e-6, True), (float("nan"), True)])
def test_the_distance_from_lifelines_is_told_and_warned_of(content, difference, warned):
    facts = {"prognosis": {"largest_difference_from_lifelines": difference}}
    part = section(render(dataclasses.replace(content, manifest=content.manifest | {"facts": facts})), "Cox regression")
    assert f"{difference:.0e}" in part
    assert ('class="warning"' in part) == warned
    assert "lifelines" not in section(render(content), "Cox regression")


def test_hazard_ratios_in_parts_are_not_among_those_of_all_patients(html):
    assert "Sex: F" in section(html, "Parts of the patients")
    assert "1 to 5 years" in section(html, "Proportional hazards")
    assert "Sex: F" not in section(html, "Cox regression")
    assert "1 to 5 years" not in section(html, "Cox regression")


def test_files_add_up_or_the_page_says_that_they_do_not(content, html):
    assert "1,261 = 1,200 + 61." in html
    assert "900 = 892 + 8." in html
    short = render(
        dataclasses.replace(content, archive={"files": {"found": 10, "indexed": 8}, "refused_index": {"not_dicom": 1}})
    )
    assert "10 = 8 + 1. These do not add up" in short


def test_choices_say_whether_they_were_declared(html):
    section = html[html.index('<section id="choices"') :]
    assert re.search(r"category_rule †</th><td>youden</td><td>declared", section)
    assert re.search(r"confidence_level</th><td>0.95</td><td>default", section)


def test_parts_without_data_are_left_out_and_named(content):
    html = render(
        dataclasses.replace(content, tables={"attrition": content.tables["attrition"]}, figures={}, archive={})
    )
    read(html)
    absent = re.search(r"Not part of this run: (.*)\.</p>", html)
    assert absent is not None
    assert absent[1].split("; ") == [
        "Archive and refusals", "Data problems", "Baseline characteristics", "Discrimination, calibration, categories",
        "Prognosis", "Screening audit",
    ]  # fmt: skip
    assert 'id="prognosis"' not in html and 'id="key"' not in html


def test_a_page_of_nothing_is_still_a_page():
    empty = Page("T", False, (), {}, {}, {}, (), {}, {})
    html = render(empty)
    read(html)
    assert "SIMULATED" not in html and "simulated" not in html


def test_the_same_content_gives_the_same_page(content, html):
    assert render(content) == html


@pytest.mark.parametrize(("p", "text"), [(0.00001, "<0.001"), (0.0432, "0.043"), (0.5, "0.50"), (None, wording.ABSENT)])
def test_p_values_read_as_in_journals(p, text):
    assert tables.p_value(p) == text


def test_an_estimate_without_limits_stands_alone():
    assert tables.estimate(2.3111, 1.7, 3.138, decimals=2) == "2.31 (1.70 to 3.14)"
    assert tables.estimate(-2.3111, None, None, decimals=1) == "\N{MINUS SIGN}2.3"


def test_columns_without_values_are_not_printed(content):
    printed = tables.printed("cox", content.tables["cox"].filter(pl.col("subgroup").is_null()))
    assert "Subgroup" not in [label for label, _, _ in printed.headers]


def test_long_tables_are_linked_and_not_printed(content, html):
    assert len(content.tables["kaplan_meier"]) > tables.LONGEST_ROWS
    assert f"tables/kaplan_meier.csv</a> ({len(content.tables['kaplan_meier']):,} rows)" in html
