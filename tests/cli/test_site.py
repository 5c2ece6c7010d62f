"""The documentation as a site: every link leads somewhere, and a browser needs nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eplb_cli import __version__

ROOT = Path(__file__).parents[2]
STRICT = ("--quiet", "--nitpicky", "--fail-on-warning")
SIZES = ((1440, 1000), (390, 844))
WIDE = ("docs/performance.html", "docs/python.html", "docs/jobs/new-load.html")
"""Pages with wide tables, long names and output; the last has all of it."""
pytest.importorskip("furo", reason="furo is not installed")


def build(source, site):
    """What Sphinx says; nothing where all is well."""
    command = [sys.executable, "-m", "sphinx", *STRICT, "-c", "docs", ".", site]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site of this tree."""
    path = tmp_path_factory.mktemp("site")
    done = build(ROOT, path)
    assert (done.returncode, done.stderr) == (0, "")
    return path


@pytest.fixture
def page(browser):
    """An empty page, which has asked for nothing that is not a file."""
    opened = browser.new_page()
    asked: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    opened.close()
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_scripts_site_is_as_strict():
    """The script for people has the same options."""
    assert " ".join((*STRICT, "-c docs .")) in (ROOT / "scripts/site").read_text()


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    """To a page, to a heading of one, to a file; and a page that no heading of the sidebar has."""
    for name in ("docs", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "configs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    with (tmp_path / "docs" / "planning.md").open("a") as file:
        file.write("[a](nowhere.md) [b](dialects.md#nothing) [c](../configs/none.json)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for target in ("nowhere.md", "nothing", "none.json"):
        assert target in done.stderr


def test_every_page_is_in_the_sidebar(site):
    """So Markdown in docs is on the site, or the build fails."""
    begin = (site / "README.html").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        assert f'href="{path.relative_to(ROOT).with_suffix(".html")}"' in begin, path


def test_the_beginning(site, page):
    """Whoever opens the directory comes to the README."""
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/README.html")
    assert f"eplb {__version__}" in page.title()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES, ids=["wide", "phone"])
def test_what_is_wide_scrolls_by_itself(site, page, size, scheme):
    """Tables and output, so that the page does not; and text stands out from what is behind it."""
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    page.emulate_media(color_scheme=scheme)
    for name in WIDE:
        page.goto((site / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], name
    for selector in ("p", "pre", "td", "td code", "a"):
        assert contrast(page, f"article {selector}") >= 4.5, selector


def contrast(page, selector):
    """Of the text of the first such element, as WCAG 2 has it, from 1 to 21."""
    script = """node => {
        let behind = node;
        while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        return [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
    }"""
    dark, bright = sorted(map(luminance, page.eval_on_selector(selector, script)))
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour):
    """Of a colour as a browser writes it."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_search(site, page):
    """From a directory, without a server: the pages about a word, and none for nonsense."""
    page.goto((site / "README.html").as_uri())
    page.fill("input[name=q]", "relabel")
    page.keyboard.press("Enter")
    page.wait_for_selector("ul.search li a")
    found = page.eval_on_selector_all("ul.search li a", "links => links.map(link => link.href)")
    assert any("docs/planning.html" in link for link in found)
    page.fill("input[name=q]", "xylophone")
    page.keyboard.press("Enter")
    page.wait_for_function("document.body.innerText.includes('did not match any documents')")
