"""The built site in a browser: `python docs/site/check.py site`, after `make site`.

Every page is opened from its folder, without a server: no request may leave it, no script may fail and no picture may
be missing. axe-core
looks for what a screen reader or a keyboard cannot use, in the light and the dark theme and on a phone's screen, which
no page may be wider than, on a sample of the pages (all with `--every`). The search has to find a word. Needs chromium,
chromedriver, selenium, and npm for axe-core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

AXE = "axe-core@4.14.1"
SAMPLE = (
    "index.html",
    "guide/shrink.html",
    "guide/export.html",
    "explanation/ideas.html",
    "reference/python.html",
    "reference/commands.html",
    "reference/errors.html",
    "notebooks/shrink-a-cnn.html",
    "results.html",
    "zoo.html",
)
VIEWS = {  # what is emulated: colours, width and height
    "light": ("light", 1280, 900),
    "dark": ("dark", 1280, 900),
    "phone": ("light", 390, 844),
}
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
)


# Elements that make the page wider than the screen; what scrolls by itself, as a table does, may be wide.
WIDER = """
const page = document.scrollingElement, wide = page.clientWidth + 1;
if (page.scrollWidth <= wide) return [];
return [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > wide)
  .map(e => e.outerHTML.slice(0, 120)).slice(0, 3);
"""


def axe_script(folder: Path) -> str:
    """axe-core's script, from npm."""
    words = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", AXE]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


def browser() -> Any:
    """Chromium without a window, its log and its requests recorded."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(shutil.which("chromium") or shutil.which("google-chrome"))
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    found.command_executor.client_config.timeout = 900  # axe takes minutes for a long page on a busy machine
    found.set_script_timeout(850)
    return found


def view(chromium: Any, name: str) -> None:
    """Have pages drawn as one of `VIEWS`."""
    theme, width, height = VIEWS[name]
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def problems_of(chromium: Any, page: Path, axe: str | None, seen: str) -> list[str]:
    """What is wrong with a page: failed scripts, requests to elsewhere, and violations that axe finds."""
    view(chromium, seen)
    for kind in ("browser", "performance"):
        chromium.get_log(kind)
    chromium.get(page.as_uri())
    found = [
        f"log: {line['message'][:200]}" for line in chromium.get_log("browser") if line["level"] == "SEVERE"
    ]
    for line in chromium.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:")):
                found.append(f"request: {url}")
    lacking = "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    found += [f"picture: {source}" for source in chromium.execute_script(lacking)]
    if seen == "phone":
        found += [f"wider than the screen: {one}" for one in chromium.execute_script(WIDER)]
    if axe is not None:
        scheme = {"light": "default", "dark": "slate"}[VIEWS[seen][0]]
        shown = chromium.execute_script("return document.body.getAttribute('data-md-color-scheme')")
        if shown != scheme:
            found.append(f"colours: expected the scheme {scheme}, got {shown}")
        time.sleep(0.5)  # colours fade into each other
        chromium.execute_script(axe)
        asked = "axe.run({resultTypes: ['violations']}).then(arguments[0])"
        violations = chromium.execute_async_script(asked)["violations"]
        found += [f"axe {one['id']}: {node['html'][:160]}" for one in violations for node in one["nodes"]]
    return found


def search_finds(chromium: Any, site: Path, word: str) -> bool:
    """Whether the search of the first page lists a page for a word."""
    chromium.get((site / "index.html").as_uri())
    chromium.execute_script(
        "const box = document.querySelector('.md-search__input'); box.focus(); "
        f"box.value = {json.dumps(word)}; box.dispatchEvent(new Event('keyup', {{bubbles: true}}))"
    )
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if chromium.execute_script("return document.querySelectorAll('.md-search-result__link').length"):
            return True
        time.sleep(0.2)
    return False


def main() -> int:
    """Check the pages and print what is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", type=Path, nargs="?", default=Path("site"))
    parser.add_argument("--every", action="store_true", help="run axe on every page, not on a sample")
    given = parser.parse_args()
    site = given.site.resolve()
    pages = [str(page.relative_to(site)) for page in sorted(site.rglob("*.html"))]
    pages = [page for page in pages if page != "404.html"]  # only a server shows it
    if not pages:
        raise SystemExit(f"{site}: no page; build it with `make site`")
    lacking = [page for page in SAMPLE if page not in pages]
    if lacking:
        raise SystemExit(f"{site}: {lacking[0]} is missing")
    with tempfile.TemporaryDirectory() as folder:
        axe = axe_script(Path(folder))
    chromium, wrong, judged = browser(), 0, 0
    try:
        for page in pages:
            sampled = given.every or page in SAMPLE
            for seen in VIEWS if sampled else ("light",):
                judged += sampled
                for problem in problems_of(chromium, site / page, axe if sampled else None, seen):
                    wrong += 1
                    print(f"{page} ({seen}): {problem}", flush=True)
        if not search_finds(chromium, site, "compensate"):
            wrong += 1
            print("search: nothing found for 'compensate'")
    finally:
        chromium.quit()
    print(f"{len(pages)} pages opened without a server, axe-core run {judged} times, {wrong} problems")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
