"""The board's page in a real browser."""

import json
import re

import pytest
from board_support import NASTY, site
from records_browser import CHROMIUM, Browser

__all__ = ["site"]  # a fixture

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)


@pytest.fixture(scope="module")
def browser():
    with Browser() as running:
        yield running


@pytest.fixture
def page(site, browser):
    browser.problems.clear()
    browser.requests.clear()
    browser.open(site / "records" / "index.html")
    yield browser
    assert browser.problems == []
    address = re.compile(r"file:.*/index\.html")
    assert [url for url in browser.requests if not address.fullmatch(url)] == []


NAMES = "[...document.querySelectorAll('#rows tr td.name a')].map(a => a.textContent)"


def choose(page, board_text):
    """Choose the board whose name holds a text."""
    wanted = json.dumps(board_text)
    page.run(
        f"""(() => {{
          const select = document.getElementById('board');
          select.value = [...select.options].find(o => o.value.includes({wanted})).value;
          select.dispatchEvent(new Event('change'));
        }})()"""
    )


def type_into(page, identifier, text, event="input"):
    page.run(
        f"""(() => {{
          const input = document.getElementById('{identifier}');
          input.value = {json.dumps(text)};
          input.dispatchEvent(new Event('{event}'));
        }})()"""
    )


@needs_chromium
def test_page_shows_the_largest_board_best_first(page):
    assert page.run(NAMES) == [
        "Delta audited",
        "Beta record",
        "Alpha record",
        NASTY,
        "Hashed tables",
    ]
    assert page.run("document.title") == "Parameter Golf records"
    assert page.run("document.querySelector('#rows td.score b').textContent") == "1.50500"
    assert page.run("[...document.querySelectorAll('#board option')].length") == 3


@needs_chromium
def test_page_strikes_a_rejected_record_through(page):
    row = "document.querySelector('#rows tr.rejected')"
    assert page.run(f"{row}.querySelector('td.name a').textContent") == "Hashed tables"
    for part in ("td.name a", "td.score b"):
        element = f"{row}.querySelector('{part}')"
        assert "line-through" in page.run(f"getComputedStyle({element}).textDecorationLine")
    assert (
        page.run(f"{row}.querySelector('td.verdict').textContent")
        == "INVALID (quick)normalisation: sum of 512 tokens: expected 1, found 6.25"
    )
    others = "[...document.querySelectorAll('#rows tr:not(.rejected) td.score b')]"
    lines = page.run(f"{others}.map(e => getComputedStyle(e).textDecorationLine)")
    assert set(lines) == {"none"}


@needs_chromium
def test_page_sorts_by_every_column(page):
    def click(key):
        page.run(f"document.querySelector('th[data-key={key}] button').click()")
        first, *names, last = page.run(NAMES)
        # Audited records come first and rejected ones last, whatever the order.
        assert (first, last) == ("Delta audited", "Hashed tables")
        return names

    by_name = "document.querySelector('th[data-key=name]').getAttribute('aria-sort')"
    assert click("name") == [NASTY, "Alpha record", "Beta record"]
    assert click("name") == ["Beta record", "Alpha record", NASTY]
    assert page.run(by_name) == "descending"
    assert click("date") == ["Alpha record", "Beta record", NASTY]
    assert click("author") == ["Alpha record", NASTY, "Beta record"]
    assert click("bpb") == ["Beta record", "Alpha record", NASTY]
    assert click("bpb") == [NASTY, "Alpha record", "Beta record"]
    assert click("verdict") == ["Beta record", "Alpha record", NASTY]
    assert page.run(by_name) == "none"


@needs_chromium
def test_page_filters(page):
    type_into(page, "search", "bauer")
    assert page.run(NAMES) == ["Beta record"]
    # The charts show what the table shows.
    assert page.run("charts['by-date'].data.datasets[0].data.length") == 1
    type_into(page, "search", "nobody")
    assert page.run(NAMES) == []
    assert page.run("document.getElementById('empty').hidden") is False
    type_into(page, "search", "")
    names_by_status = {
        "accepted": ["Delta audited"],
        "rejected": ["Hashed tables"],
        "policy": [],
        "unaudited": ["Beta record", "Alpha record", NASTY],
    }
    for status, names in names_by_status.items():
        type_into(page, "status", status, "change")
        assert page.run(NAMES) == names
    type_into(page, "status", "", "change")
    assert page.run("charts['by-date'].data.datasets[0].pointStyle") == [
        "circle",
        "triangle",
        "triangle",
        "triangle",
        "crossRot",
    ]


@needs_chromium
def test_page_overlays_loss_curves(page):
    drawn = "[...new Set(charts.curves.data.datasets.map(d => d.record))].sort()"
    alpha = "track_docs_cpu/2026-11-24_alpha-record"
    beta = "track_docs_cpu/2026-11-25_beta-record"
    tick = f"document.querySelector('tr[data-id=\"{alpha}\"] input').click()"
    shown = page.run(drawn)
    assert {alpha, beta} <= set(shown)
    page.run(tick)
    assert page.run(drawn) == [identifier for identifier in shown if identifier != alpha]
    page.run(tick)
    assert page.run(drawn) == shown
    curves = "charts.curves.data.datasets"
    first = f"{curves}.find(d => d.record === '{beta}').data"
    # The log's line: step:50/400 train_loss:4.7778 train_time:7500ms
    assert page.run(first)[1] == {"x": 50, "y": 4.7778}
    type_into(page, "axis", "seconds", "change")
    assert page.run(f"{first}[1].x") == 7.5
    # Two seeds with training and validation each.
    assert page.run(f"{curves}.filter(d => d.record === '{beta}').length") == 4


@needs_chromium
def test_page_changes_boards_and_colours(page):
    choose(page, "eeeeeeeeeeee")
    assert page.run(NAMES) == ["Other corpus"]
    choose(page, "non_record")
    assert page.run(NAMES) == ["Big track"]
    megabytes = page.run("charts['by-bytes'].data.datasets[0].data[0].x")
    assert megabytes == pytest.approx(2.1, abs=0.001)
    theme = "document.documentElement.dataset.theme"
    ground = "getComputedStyle(document.body).backgroundColor"
    # Of scrollbars and of the lists that selects open.
    native = "getComputedStyle(document.documentElement).colorScheme"
    assert (page.run(theme), page.run(native)) == ("light", "light")
    before = page.run(ground)
    page.run("document.getElementById('theme').click()")
    assert (page.run(theme), page.run(native)) == ("dark", "dark")
    assert page.run(ground) != before


# Whether a canvas has a pixel that is not transparent.
PAINTED = """(() => {
  const canvas = document.getElementById('NAME');
  const image = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return image.data.some((value, i) => i % 4 === 3 && value > 0);
})()"""
# The smallest contrast of any text with the card that it stands on, by WCAG's formula.
CONTRAST = r"""(() => {
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = colour => {
    const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.querySelector('.card')).backgroundColor);
  const texts = '#rows small, #rows a, #rows b, #rows .tag, h2, th';
  const contrasts = [...document.querySelectorAll(texts)].map(element => {
    const [dark, bright] = [light(getComputedStyle(element).color), ground].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
  });
  return Math.min(...contrasts);
})()"""
WCAG_AA = 4.5  # for text of this size


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (320, False), (1280, True)])
def test_page_fits_and_paints(site, browser, tmp_path, width, dark):
    """At phone and desktop width: no sideways scrolling, every chart painted, text readable."""
    browser.open(site / "records" / "index.html", width=width, height=844, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    for name in ("by-date", "by-bytes", "curves"):
        assert browser.run(PAINTED.replace("NAME", name)), name
    assert browser.run(CONTRAST) >= WCAG_AA
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


BAD_PAGE = """<img src='http://127.0.0.1:9/x.png'>
<script>console.error('oops'); undefinedFunction();</script>"""


@needs_chromium
def test_browser_reports_errors_and_requests(tmp_path, browser):
    """The harness itself: an exception, a console error and a foreign picture are noticed."""
    path = tmp_path / "bad.html"
    path.write_text(BAD_PAGE)
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path)
    browser.run("new Promise(done => setTimeout(done, 50))")
    for complaint in ("oops", "undefinedFunction"):
        assert any(complaint in problem for problem in browser.problems)
    assert "http://127.0.0.1:9/x.png" in browser.requests
    browser.problems.clear()
    browser.requests.clear()
