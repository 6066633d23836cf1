"""The page in a real browser: every chart drawn, no error, no request, sorting and selection, both themes, phone width.

Without Chromium these are skipped, loudly; where CI or SECATEUR_BROWSER is set they fail instead. Screenshots go to
the folder named by SECATEUR_SCREENSHOTS, to be looked at.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.report import Report, Run

spec = importlib.util.spec_from_file_location("report_samples", Path(__file__).with_name("report_samples.py"))
assert spec is not None
assert spec.loader is not None
samples = sys.modules.setdefault("report_samples", importlib.util.module_from_spec(spec))
if not hasattr(samples, "sweep"):
    spec.loader.exec_module(samples)

pytestmark = pytest.mark.browser

AXE = "axe-core@4.14.1"
HOSTILE = "</script><script>window.taken=1</script><img src=x onerror='window.taken=1'>"


def _without(reason: str) -> None:
    if os.environ.get("CI", "").lower() in ("1", "true") or os.environ.get("SECATEUR_BROWSER"):
        pytest.fail(f"the browser tests may not be skipped here: {reason}")
    pytest.skip(
        f"BROWSER TESTS NOT RUN: {reason}; apt-get install chromium chromium-driver, pip install selenium"
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        _without("no chromium and chromedriver on the path")
    if importlib.util.find_spec("selenium") is None:
        _without("selenium is not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(chromium)
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    provenance = {"command": "secateur demo", "seed": 0, "versions": {"torch": "2"}}
    made = {
        "demo": Report([Run("demo", samples.everything(), "What was done.", provenance)]),
        "sweep": Report([samples.sweep(72)]),
        "trials": Report([samples.sweep(8)]),
        "study": Report([samples.sweep(4), Run("again", samples.everything())], "A study"),
        "hostile": Report([Run(HOSTILE, samples.everything(HOSTILE), HOSTILE, {"command": HOSTILE})]),
    }
    for name, report in made.items():
        (folder / f"{name}.html").write_text(report.html(), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


def _open(browser: Any, page: Path, width: int = 1440, theme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    _wait(browser)


def _unfold(browser: Any) -> None:
    """Open every section; its charts are drawn then."""
    browser.execute_script("document.getElementById('all').click()")
    _until(
        browser, "return Array.from(document.querySelectorAll('.chart')).every(c => c.querySelector('svg'))"
    )
    _wait(browser)


def _until(browser: Any, script: str) -> None:
    end = time.monotonic() + 40
    while not browser.execute_script(script):
        assert time.monotonic() < end, (script, browser.get_log("browser"))
        time.sleep(0.05)


def _wait(browser: Any) -> None:
    end = time.monotonic() + 40
    while browser.execute_script("return document.documentElement.dataset.drawn") != "yes":
        assert time.monotonic() < end, browser.get_log("browser")
        time.sleep(0.05)


def _errors(browser: Any) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def _requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith(("data:", "blob:"))]


def _keep(browser: Any, name: str) -> None:
    folder = os.environ.get("SECATEUR_SCREENSHOTS")
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    size = browser.execute_script(
        "const r = document.documentElement; return [r.clientWidth, r.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], 16000), "scale": 1}
    told = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", told)
    (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["demo", "sweep"])
def test_every_chart_renders(browser: Any, pages: dict[str, Path], name: str, width: int, theme: str) -> None:
    _open(browser, pages[name], width, theme)
    _keep(browser, f"{name}-{width}-{theme}")
    _unfold(browser)
    assert _errors(browser) == []
    assert _requests(browser) == [pages[name].as_uri()]
    marks = browser.execute_script(
        "return Array.from(document.querySelectorAll('.chart')).map(c => [c.id, "
        "c.querySelectorAll('svg [role=graphics-symbol]').length])"
    )
    assert marks
    assert [place for place, count in marks if not count] == []
    wide, room = browser.execute_script(
        "const r = document.documentElement; return [r.scrollWidth, r.clientWidth]"
    )
    assert wide <= room  # nothing but tables and drawings scrolls sideways, and those within themselves
    cut = browser.execute_script(
        "return Array.from(document.querySelectorAll('.chart'))."
        "filter(c => c.scrollWidth > c.clientWidth + 2).map(c => c.id)"
    )
    assert cut == []
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert page == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 25, 28)"}[theme]


def test_a_header_sorts_up_and_down_by_value(browser: Any, pages: dict[str, Path]) -> None:
    _open(browser, pages["sweep"])
    read = (
        "const t = document.querySelector('#trials-table'); "
        "const i = Array.from(t.tHead.rows[0].cells).findIndex(c => c.textContent === 'accuracy'); "
        "if (arguments[0]) t.tHead.rows[0].cells[i].querySelector('button').click(); "
        "return [t.tHead.rows[0].cells[i].getAttribute('aria-sort'), "
        "Array.from(t.tBodies[1].rows).map(r => parseFloat(r.cells[i].dataset.value))]"
    )
    _, before = browser.execute_script(read, False)
    order, up = browser.execute_script(read, True)
    assert (order, up) == ("ascending", sorted(before))
    assert up != before
    order, down = browser.execute_script(read, True)
    assert (order, down) == ("descending", sorted(before, reverse=True))


def test_a_legend_entry_brings_its_line_out(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    _open(browser, pages["sweep"])
    _unfold(browser)
    faded = (
        "return Array.from(document.querySelectorAll('#chart-accuracy-sparsity .mark-line path'))"
        ".map(p => p.getAttribute('opacity') || p.style.opacity || '1')"
    )
    assert set(browser.execute_script(faded)) == {"1"}
    entry = browser.find_element(By.CSS_SELECTOR, "#chart-accuracy-sparsity .role-legend-symbol path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", entry)
    ActionChains(browser).move_to_element(entry).click().perform()
    time.sleep(0.3)
    assert sorted(set(browser.execute_script(faded))) == ["0.1", "1"]


def test_a_point_tells_its_values(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    _open(browser, pages["demo"])
    point = browser.find_element(By.CSS_SELECTOR, "#chart-pareto-bytes .mark-symbol.role-mark path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", point)
    ActionChains(browser).move_to_element(point).perform()
    time.sleep(0.3)
    assert "accuracy" in browser.find_element(By.ID, "vg-tooltip-element").text


def test_the_button_turns_the_theme_and_the_charts_with_it(browser: Any, pages: dict[str, Path]) -> None:
    _open(browser, pages["demo"])
    _unfold(browser)
    colour = "return document.querySelector('#chart-training-loss .role-axis text').getAttribute('fill')"
    light = browser.execute_script(colour)
    browser.execute_script("document.getElementById('theme').click()")
    _wait(browser)
    assert (
        browser.execute_script("return document.getElementById('theme').getAttribute('aria-pressed')")
        == "true"
    )
    assert browser.execute_script(colour) != light
    assert _errors(browser) == []


def test_names_from_outside_run_nothing(browser: Any, pages: dict[str, Path]) -> None:
    _open(browser, pages["hostile"])
    _unfold(browser)
    assert browser.execute_script("return window.taken === undefined")
    assert _errors(browser) == []


def test_the_page_reads_without_a_mouse(browser: Any, pages: dict[str, Path]) -> None:
    _open(browser, pages["demo"])
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    stops = []
    for _ in range(20):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        stops.append(
            browser.execute_script(
                "const e = document.activeElement; return e.id || e.className || e.tagName"
            )
        )
    assert stops[0] == "skip"
    assert "theme" in stops[:3]
    assert len(set(stops)) >= 4


def test_the_first_screen_has_the_figures_and_the_rest_is_folded(
    browser: Any, pages: dict[str, Path]
) -> None:
    _open(browser, pages["demo"])
    seen = browser.execute_script(
        "return ['.headline', '.tiles', '#chart-pareto-bytes svg', '#drawing svg'].map("
        "q => document.querySelector(q).getBoundingClientRect().top)"
    )
    assert seen == sorted(seen[:2]) + seen[2:]
    assert max(seen) < 900  # all begin on the first screen
    beside = "const d = document.querySelector('#drawing .scroll'); return d.scrollWidth - d.clientWidth"
    assert browser.execute_script(beside) == 0  # the vertical scroll bar covers nothing of the drawing
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0
    assert browser.execute_script("return document.querySelector('#chart-training-loss svg')") is None
    browser.execute_script("document.querySelector('nav a[href=\"#training\"]').click()")
    _until(browser, "return document.querySelectorAll('#chart-training-loss svg').length === 1")
    assert browser.execute_script("return document.querySelector('#training details').open")


def test_trials_are_filtered_and_pinned(browser: Any, pages: dict[str, Path]) -> None:
    _open(browser, pages["sweep"], 390)
    state = (
        "const t = document.getElementById('trials-table'), text = r => Array.from(r.cells, c => c.textContent);"
        "return [Array.from(t.tBodies[0].rows, text), "
        "Array.from(t.tBodies[1].rows).filter(r => !r.hidden).map(text)]"
    )
    pinned, shown = browser.execute_script(state)
    assert [row[1] for row in pinned] == ["dense"]  # what the others are compared with
    assert len(shown) == 3 * 72 - 1
    act = (
        "const find = document.getElementById('find'), pick = document.querySelector('select[data-column=\"1\"]');"
        "find.value = arguments[0]; pick.value = arguments[1];"
        "find.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    browser.execute_script(act, "FPGM", "retrained")
    pinned, shown = browser.execute_script(state)
    assert len(shown) == 18
    assert {(row[1], row[2]) for row in shown} == {("retrained", "fpgm")}
    assert browser.execute_script("return document.getElementById('found').textContent").startswith(
        "18 of 215 rows"
    )
    browser.execute_script(
        "document.querySelector('#trials-table tbody:last-child tr:not([hidden]) .pin').click()"
    )
    browser.execute_script(act, "", "pruned")
    pinned, shown = browser.execute_script(state)
    assert [row[1] for row in pinned] == ["dense", "retrained"]
    assert {row[1] for row in shown} == {"pruned"}
    left = (
        "const b = document.querySelector('#trials .scroll.tall'); b.scrollLeft = 300;"
        "return [b.scrollLeft, b.querySelector('tbody tr th').getBoundingClientRect().left - "
        "b.getBoundingClientRect().left]"
    )
    scrolled, first = browser.execute_script(left)
    assert scrolled == 300
    assert abs(first) < 2  # the first column stays


def test_no_text_is_evaluated(browser: Any, pages: dict[str, Path]) -> None:
    _open(browser, pages["demo"])
    refused = (
        "const found = []; for (const make of [() => eval('1'), () => new Function('return 1')()]) "
        "{ try { make(); } catch (error) { found.push(error.name); } }"
        "const s = document.createElement('script'); s.textContent = 'window.taken = 1'; document.body.append(s);"
        "return [found, window.taken === undefined]"
    )
    # The driver's own scripts are outside the policy; a timer of the page is inside.
    asked = f"const done = arguments[0]; setTimeout(() => done((() => {{ {refused} }})()), 0)"
    assert browser.execute_async_script(asked) == [["EvalError", "EvalError"], True]


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's script: where SECATEUR_AXE says, else from npm, once, into the user's cache."""
    named = os.environ.get("SECATEUR_AXE")
    if named:
        return Path(named).read_text(encoding="utf-8")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur-tests" / "axe"
    script = cache / "node_modules" / "axe-core" / "axe.min.js"
    npm = shutil.which("npm")
    if not script.is_file() and npm is not None:
        cache.mkdir(parents=True, exist_ok=True)
        words = [npm, "install", "--prefix", str(cache), "--no-audit", "--no-fund", "--ignore-scripts", AXE]
        subprocess.run(words, check=False, capture_output=True, timeout=120)
    if not script.is_file():
        pytest.skip(f"AXE NOT RUN: {AXE} could not be installed by npm; name its axe.min.js in SECATEUR_AXE")
    return script.read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["demo", "trials", "study"])
def test_axe_finds_no_violation(
    browser: Any, pages: dict[str, Path], axe: str, name: str, theme: str
) -> None:
    _open(browser, pages[name], 1440 if theme == "light" else 390, theme)
    _unfold(browser)
    assert _violations(browser, axe) == []


def test_axe_finds_what_is_planted(browser: Any, pages: dict[str, Path], axe: str) -> None:
    _open(browser, pages["study"])
    browser.execute_script(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<button></button>')"
    )
    assert _violations(browser, axe) == ["button-name: <button></button>"]


def _violations(browser: Any, axe: str) -> list[str]:
    browser.set_script_timeout(110)
    browser.execute_script(axe)
    # What is in a chart is presentational (role img): its text alternative and its numbers beside it are checked.
    asked = "axe.run({exclude: ['.chart svg']}, {resultTypes: ['violations']})"
    found = browser.execute_async_script(f"const done = arguments[0]; {asked}.then(done)")
    return [f"{one['id']}: {node['html']}" for one in found["violations"] for node in one["nodes"]]
