"""The built site in a browser: `python docs/site/check.py site`, after `make site`.

Every page is opened from its folder, without a server: no request may leave it, no script may fail and no picture may
be missing. axe-core
looks for what a screen reader or a keyboard cannot use, in the light and the dark theme, on a sample of the pages (all
with `--every`). The search has to find a word. Needs chromium, chromedriver, selenium, and npm for axe-core.
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
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
)


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
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def problems_of(chromium: Any, page: Path, axe: str | None, theme: str) -> list[str]:
    """What is wrong with a page: failed scripts, requests to elsewhere, and violations that axe finds."""
    scheme = [{"name": "prefers-color-scheme", "value": theme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
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
    if axe is not None:
        scheme_of = {"light": "default", "dark": "slate"}
        chromium.execute_script(f"document.body.setAttribute('data-md-color-scheme', '{scheme_of[theme]}')")
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
        chromium.set_script_timeout(110)
        for page in pages:
            sampled = given.every or page in SAMPLE
            for theme in ("light", "dark") if sampled else ("light",):
                judged += sampled
                for problem in problems_of(chromium, site / page, axe if sampled else None, theme):
                    wrong += 1
                    print(f"{page} ({theme}): {problem}", flush=True)
        if not search_finds(chromium, site, "compensate"):
            wrong += 1
            print("search: nothing found for 'compensate'")
    finally:
        chromium.quit()
    print(f"{len(pages)} pages opened without a server, axe-core run {judged} times, {wrong} problems")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
