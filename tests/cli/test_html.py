"""`plan --html`: one page, looked at in a real browser without a screen."""

from __future__ import annotations

import importlib.util
import re

import pytest

from eplb_cli import __version__
from tests.cli.case import assert_error
from tests.cli.tree import NEW, OLD, fingerprint, placement, write_json

FIGURES = ("traffic", "ranks", "layers", "replicas")


@pytest.fixture
def html(eplb, tmp_path):
    """A page with all that it can have, for placements whose names are hostile."""
    pytest.importorskip("plotly", reason="plotly is not installed")
    old = write_json(tmp_path / "<img src=x onerror=alert(1)>[[figures]]&.json", OLD)
    new = write_json(tmp_path / "new.json", NEW)
    page = tmp_path / "report.html"
    options = ("--expert-bytes", 1000, "--ranks-per-node", 1, "--bandwidth", "disk=1kB/s")
    result = eplb("plan", old, new, *options, "--html", page)
    assert result.code == 0, result.err
    return page


class Looked:
    """A page that is open, and everything it said or asked for."""

    def __init__(self, browser, html, scheme="light"):
        self.page = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 900})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(html.as_uri())
        self.page.wait_for_selector("body[data-drawn=yes]")

    def colour(self, selector, prop):
        """A colour as the browser shows it, as three numbers."""
        text = self.page.eval_on_selector(selector, f"node => getComputedStyle(node).{prop}")
        return [int(number) for number in re.findall(r"\d+", text)[:3]]


@pytest.fixture
def looked(browser, html):
    found = Looked(browser, html)
    yield found
    found.page.close()


def test_every_picture_is_drawn(looked):
    """With cells and bars in them; the tables have the totals beside their bounds."""
    for name in FIGURES:
        assert looked.page.locator(f"#{name} .main-svg").count() > 0
    assert looked.page.locator("#traffic .heatmaplayer image").count() == 1
    assert looked.page.locator("#replicas .heatmaplayer image").count() == 2
    assert looked.page.locator("#ranks .barlayer .point path").count() == 4
    assert looked.page.locator("#layers .barlayer .point path").count() == 2
    text = looked.page.inner_text("body")
    assert "busiest sender\t2.00 kB, bound 2.00 kB" in text
    assert "between nodes\t4.00 kB, bound 4.00 kB" in text
    assert "bound by\tdisk" in text


def test_nothing_is_asked_for_and_nothing_goes_wrong(looked, html):
    """No console message, no error, no dialog of a hostile name, and no request but for the page itself."""
    assert looked.said == []
    assert [url for url in looked.asked if not url.startswith(("data:", "blob:"))] == [html.as_uri()]
    assert "<img src=x onerror=alert(1)>[[figures]]&.json" in looked.page.inner_text("h1")
    assert looked.page.locator("h1 img").count() == 0


def test_words_are_explained_as_on_a_terminal(looked, eplb, html):
    """With the same names, numbers and meanings."""
    old = html.parent / "<img src=x onerror=alert(1)>[[figures]]&.json"
    options = ("--expert-bytes", 1000, "--ranks-per-node", 1, "--bandwidth", "disk=1kB/s")
    page = eplb("plan", old, html.parent / "new.json", *options).out
    text = looked.page.inner_text("body")
    for line in text[text.index("between ranks") : text.index("estimate")].strip().splitlines():
        cells = [cell.strip() for cell in line.split("\t") if cell.strip()]
        assert re.search(r"\s+".join(map(re.escape, cells)), page), cells
    assert "copied from a row that arrived" in text


def test_it_says_what_it_is_of(looked):
    """R and R' in the title; at its end the command, the version and when it was made."""
    title = looked.page.title()
    assert title.endswith("&.json → " + title.split(" → ")[1].split(", ")[0] + ", 2 → 2 ranks")
    footer = looked.page.inner_text("footer").splitlines()
    assert re.fullmatch(r"eplb plan '.*<img src=x onerror=alert\(1\)>\[\[figures\]\]&.json' .*", footer[0])
    assert re.fullmatch(rf"eplb {re.escape(__version__)}, \d{{4}}-\d\d-\d\d \d\d:\d\d UTC", footer[1])
    assert looked.page.locator("footer img").count() == 0


def test_a_load(browser, eplb, tmp_path):
    """Two more pictures: lines above their bounds, and a map of ranks before and after."""
    pytest.importorskip("plotly", reason="plotly is not installed")
    sides = [write_json(tmp_path / f"{n}.json", content) for n, content in enumerate((OLD, NEW))]
    load = write_json(tmp_path / "load.json", [[8, 4, 2, 6], [2, 2, 30, 16]])
    page = tmp_path / "page.html"
    assert eplb("plan", *sides, "--load", load, "--html", page).code == 0
    looked = Looked(browser, page)
    assert looked.page.locator("#balance .scatterlayer .trace").count() == 4
    assert looked.page.locator("#loads .heatmaplayer image").count() == 2
    assert "max / mean load\t1.057 before, 1.343 after, bound 1.143" in looked.page.inner_text("body")
    assert looked.said == []
    looked.page.close()


def ticks(looked, place):
    """The words at the ticks of an axis or a scale."""
    return [tick.text_content() for tick in looked.page.locator(place).all()]


def test_counts_have_whole_ticks(browser, eplb, tmp_path):
    """Cells that are all alike have no five ticks of one number; ranks, rows and replicas have no halves."""
    pytest.importorskip("plotly", reason="plotly is not installed")
    rows = [list(range(8)), [2, 3, 4, 5, 6, 7, 0, 1]]
    sides = [write_json(tmp_path / f"{n}.json", placement([row], 4)) for n, row in enumerate(rows)]
    for options in ((), ("--expert-bytes", 3)):
        page = tmp_path / f"page{len(options)}.html"
        assert eplb("plan", *sides, *options, "--html", page).code == 0
        looked = Looked(browser, page)
        scale = ticks(looked, "#traffic .cbaxis text")
        assert scale == (["0", "1", "2"] if not options else ["0", "1", "2", "3", "4", "5", "6"])
        for axis in ("#traffic .xtick", "#traffic .ytick", "#ranks .xtick"):
            assert sorted(ticks(looked, f"{axis} text")) == ["0", "1", "2", "3"]
        assert ticks(looked, "#replicas .cbaxis text") == ["0", "1"]
        assert ticks(looked, "#layers .xtick text") == ["3"]
        assert all("m" not in str(tick) and "." not in str(tick) for tick in ticks(looked, ".ytick text"))
        looked.page.close()


@pytest.mark.parametrize("width", [390, 1200])
def test_the_toolbar_covers_nothing(browser, html, width):
    """Neither the legend nor the plot, its scale or its notes, on a telephone either."""
    looked = Looked(browser, html)
    looked.page.set_viewport_size({"width": width, "height": 900})
    for figure in FIGURES:
        show_toolbar(looked, figure)
        bar = looked.page.locator(f"#{figure} .modebar").bounding_box()
        assert bar is not None
        below = (".legend", ".nsewdrag", ".annotation", ".colorbar")
        for other in looked.page.locator(", ".join(f"#{figure} {name}" for name in below)).all():
            box = other.bounding_box()
            assert box is None or box["y"] >= bar["y"] + bar["height"]
    assert looked.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    looked.page.close()


def show_toolbar(looked, figure):
    """Point at a picture, and wait for its toolbar."""
    looked.page.locator(f"#{figure} .nsewdrag").first.hover()
    looked.page.wait_for_function(
        "name => getComputedStyle(document.querySelector(`#${name} .modebar`)).opacity !== '0'", arg=figure
    )


@pytest.mark.parametrize(
    ("figure", "place", "says"),
    [
        ("traffic", (0.75, 0.25), r"old rank 0 to new rank 1\s*2\.00kB"),
        ("traffic", (0.25, 0.75), r"old rank 1 to new rank 0\s*2\.00kB"),
        ("ranks", (0.15, 0.9), r"rank 0: sent 2\.00kB"),
        ("layers", (0.25, 0.9), r"layer 3: "),
        ("replicas", (0.06, 0.25), r"layer 3, expert 0\s*2 replicas before"),
        ("replicas", (0.94, 0.25), r"layer 3, expert 3\s*1 replicas after"),
    ],
)
def test_hover(looked, figure, place, says):
    """A cell or a bar says what it is, in words and with a unit."""
    box = looked.page.locator(f"#{figure} .cartesianlayer .xy").first.bounding_box()
    plot = looked.page.locator(f"#{figure} .nsewdrag").first
    plot.scroll_into_view_if_needed()
    boxes = [each.bounding_box() for each in looked.page.locator(f"#{figure} .nsewdrag").all()]
    left, right = min(b["x"] for b in boxes), max(b["x"] + b["width"] for b in boxes)
    top, height = boxes[0]["y"], boxes[0]["height"]
    assert box is not None
    looked.page.mouse.move(left + place[0] * (right - left), top + place[1] * height)
    text = looked.page.locator(f"#{figure} .hoverlayer .hovertext").first
    text.wait_for()
    assert re.search(says, text.text_content() or "")


def test_dark_and_light(browser, html):
    """Ink and paper follow the reader's choice, also when it changes, and are far apart in both."""
    expect = pytest.importorskip("playwright.sync_api").expect
    looked = Looked(browser, html, scheme="dark")
    for scheme in ("dark", "light", "dark"):
        looked.page.emulate_media(color_scheme=scheme)
        ink = f"rgb({'28, 30, 33' if scheme == 'light' else '228, 230, 233'})"
        expect(looked.page.locator("#ranks .xtick text").first).to_have_css("fill", ink)
        paper, words = looked.colour("body", "backgroundColor"), looked.colour("body", "color")
        assert (sum(paper) > sum(words)) is (scheme == "light")
        assert abs(sum(paper) - sum(words)) > 500
    assert looked.said == []
    looked.page.close()


def test_many_ranks(browser, eplb, tmp_path):
    """1,100 ranks are a map of blocks and lines instead of bars; rows where no sizes are known."""
    rows = [[(slot + layer) % 1100 for slot in range(1100)] for layer in range(2)]
    many = write_json(
        tmp_path / "many.json",
        {**OLD, "num_ranks": 1100, "num_logical_experts": 1100, "physical_to_logical_map": rows},
    )
    page = tmp_path / "many.html"
    assert eplb("plan", "linear", many, "--html", page, "--format", "json").code == 0
    looked = Looked(browser, page)
    assert looked.page.locator("#ranks .scatterlayer .trace").count() == 2
    assert "new block of 8 ranks" in (looked.page.text_content("#traffic") or "")
    assert "rows" in (looked.page.text_content("#ranks .ytitle") or "")
    assert looked.said == []
    looked.page.close()


def test_without_plotly(case, monkeypatch):
    """EP002 says what to install, before anything is read or written."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else find(name))
    before = fingerprint(case.home)
    result = case.eplb("plan", "a", "b", "--html", case.home / "page.html")
    assert_error(result, "EP002", "plotly", ".[html]", exit_code=2)
    assert fingerprint(case.home) == before


def test_the_page_is_not_written_over_what_is_read(case):
    """EP001 for a placement, and for the plan that --out writes."""
    old, new = case.home / "old.json", case.home / "new.json"
    assert_error(case.eplb("plan", old, new, "--html", new), "EP001", "new.json", exit_code=2)
    both = case.home / "both"
    result = case.eplb("plan", old, new, "--html", both, "--out", both)
    assert_error(result, "EP001", "both", exit_code=2)
    assert not both.exists()
