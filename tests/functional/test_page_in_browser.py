"""report.html in a real browser: every figure is seen, nothing is fetched, nothing complains."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")


@pytest.fixture
def report(tables_study_run: Path) -> Path:
    return tables_study_run / "outputs" / "release" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


def test_every_figure_is_drawn_and_described(browser: webdriver.Chrome, report: Path) -> None:
    browser.get(report.as_uri())
    images = browser.find_elements(By.TAG_NAME, "img")
    assert len(images) == len(list((report.parent / "figures").glob("*.svg"))) > 5
    for image in images:
        assert int(image.get_property("naturalWidth")) > 100
        assert len(image.get_attribute("alt")) > 20


def test_console_is_silent_and_nothing_is_fetched(browser: webdriver.Chrome, report: Path) -> None:
    browser.get(report.as_uri())
    # Chromium's own start page may complain of a slow network.
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert [message for message in said if not message.startswith("chrome://")] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = [request["request"]["url"] for request in asked if request["documentURL"] == report.as_uri()]
    assert report.as_uri() in urls
    assert [url for url in urls if url != report.as_uri() and not url.startswith("data:")] == []


def test_page_says_that_it_is_simulated_and_not_disclosure_controlled(browser: webdriver.Chrome, report: Path) -> None:
    browser.get(report.as_uri())
    banner = browser.find_element(By.TAG_NAME, "body").text.split("\n")[0]
    assert "SIMULATED DATA" in banner
    assert "NOT DISCLOSURE-CONTROLLED" in banner


def test_every_table_of_the_page_names_a_csv_that_is_there(browser: webdriver.Chrome, report: Path) -> None:
    browser.get(report.as_uri())
    links = {link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, "a[href$='.csv']")}
    assert len(links) > 10
    assert all(Path(link.removeprefix("file://")).is_file() for link in links)
