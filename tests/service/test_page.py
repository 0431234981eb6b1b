"""The page: complete without anything from outside, and in a real browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.api.pages import page
from service.errors import InfeasibleError
from tests.service.live import Live, live_server
from tests.service.stub_detector import FACES, StubDetector, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
PAGES = ("index.html", "docs.html")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_are_served_with_a_policy_that_lets_only_their_own_code_run(path: str) -> None:
    with serving() as client:
        response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    script = re.search(r"<script>(.*?)</script>", response.text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", PAGES)
def test_pages_need_nothing_from_outside_and_nothing_that_the_policy_forbids(name: str) -> None:
    html = page(name).html.decode()
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", html)
    assert not re.findall(r"@import|url\(", html)
    assert not re.findall(r"""<[^>]+\s(?:on\w+|style)=""", html), "inline handlers and styles would be blocked"
    assert 'lang="en"' in html
    assert 'name="viewport"' in html


def test_page_names_what_its_script_uses() -> None:
    html = page("index.html").html.decode()
    ids = set(re.findall(r'\bid="([\w-]+)"', html))
    used = {name for name in re.findall(r'\$\("([\w-]+)"\)', html)}
    assert used <= ids
    inputs = re.findall(r"<input[^>]*>", html)
    assert inputs
    for tag in inputs:  # each one has a label: around it, by `for`, or of its own
        identifier = re.search(r'id="([\w-]+)"', tag)
        assert (
            "aria-label" in tag
            or re.search(r"<label[^>]*>[^<]*" + re.escape(tag), html)
            or (identifier and f'for="{identifier[1]}"' in html)
        ), tag


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory, astronaut: Any) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(np.asarray(astronaut)).save(path, quality=90)
    return path


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Live, StubDetector]]:
    stub = StubDetector()
    with live_server(stub) as live:
        yield live, stub


@pytest.fixture(params=[(1200, 900), (390, 844)], ids=["desktop", "phone"])
def browser(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install selenium)")
    from selenium.webdriver.chrome.service import Service

    width, height = request.param
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage",
        f"user-data-dir={tmp_path / 'profile'}", f"window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument("--" + flag)
    if width < 500:
        metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


def shown(browser: Any, identifier: str, seconds: float = 15) -> str:
    """Text of an element, once there is some."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, seconds).until(lambda driver: driver.find_element("id", identifier).text.strip())
    return str(browser.find_element("id", identifier).text)


def test_a_person_chooses_a_photo_and_sees_faces_timings_and_variant(
    browser: Any, served: tuple[Live, StubDetector], photo: Path
) -> None:
    live, stub = served
    stub.asks.clear()
    browser.get(live.url)
    assert "standard" in shown(browser, "tiers")
    browser.find_element("id", "file").send_keys(str(photo))
    assert shown(browser, "headline") == f"{len(FACES)} faces found"
    assert "of 1000 ms, in time" in shown(browser, "verdict")
    assert "stub" in shown(browser, "variant")
    assert browser.find_element("id", "view").get_attribute("aria-label") == "Your photo with 2 faces marked"
    corner = [int(value) for value in FACES[0][:2]]
    pixel = browser.execute_script(
        "return [...document.getElementById('view').getContext('2d').getImageData(...arguments, 1, 1).data]",
        corner[0], (corner[1] + int(FACES[0][3])) // 2,
    )  # fmt: skip
    assert pixel[1] > 180, "no box where the face is"
    assert pixel[0] < 140, "no box where the face is"

    browser.find_element("css selector", "input[value=realtime]").click()
    browser.execute_script("document.getElementById('verdict').scrollIntoView()")
    wait_until(browser, lambda: "of 150 ms" in browser.find_element("id", "verdict").text)
    assert [ask.tier for ask in stub.asks] == ["standard", "realtime"]
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, "the page scrolls sideways"
    assert browser.get_log("browser") == []


def test_errors_are_told_in_words(browser: Any, served: tuple[Live, StubDetector], tmp_path: Path, photo: Path) -> None:
    live, stub = served
    browser.get(live.url)
    shown(browser, "tiers")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"hello")
    browser.find_element("id", "file").send_keys(str(broken))
    assert "cannot be decoded" in shown(browser, "error-title")
    assert "JPEG, PNG or WebP" in shown(browser, "error-text")
    stub.error = InfeasibleError(budget_ms=5, predicted_ms=40, smallest_feasible_ms=42)
    try:
        browser.find_element("id", "file").send_keys(str(photo))
        wait_until(browser, lambda: "at least 42 ms" in browser.find_element("id", "error-text").text)
        assert not browser.find_element("id", "result").is_displayed()
    finally:
        stub.error = None
    browser.find_element("id", "again").click()
    assert "2 faces found" in shown(browser, "headline")
    assert not browser.find_element("id", "error").is_displayed()


def test_reference_lists_every_operation(browser: Any, served: tuple[Live, StubDetector]) -> None:
    live, _ = served
    browser.get(live.url + "/docs")
    text = shown(browser, "operations")
    for words in (
        "POST/detect",
        "latency_ms",
        "on_infeasible",
        "GET/tiers",
        "GET/metrics",
        "deadline_met",
    ):
        assert words in text.replace("POST /", "POST/").replace("GET /", "GET/")
    assert browser.get_log("browser") == []


def wait_until(browser: Any, condition: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 15).until(lambda _driver: condition())
