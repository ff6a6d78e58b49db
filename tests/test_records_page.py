"""The board's page in a real browser."""

import json

import pytest
from board_support import NASTY, pack_one, site
from records_browser import CHROMIUM, Browser
from records_support import audit, cli

from eval.commands import board
from eval.papers.rendering.board import BEGIN, END

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
    """The page of all records; afterwards nothing has gone wrong and nothing left the disk."""
    start(browser, site)
    yield browser
    assert browser.problems == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}


def start(browser, site, name="index.html", state="", **size):
    browser.problems.clear()
    browser.requests.clear()
    browser.open(site / "records" / name, state=state, **size)


NAMES = "[...document.querySelectorAll('#table .tabulator-row a')].map(a => a.textContent)"
GROUPS = (
    "[...document.querySelectorAll('#table .tabulator-group')]"
    ".filter(e => e.offsetHeight).map(e => e.textContent)"
)
HASH = "Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"
DRAWN = "[...new Set(charts.curves.data.datasets.map(d => d.record))].sort()"
ALPHA = "track_docs_cpu/2026-11-24_alpha-record"
BETA = "track_docs_cpu/2026-11-25_beta-record"


def choose(page, identifier, text):
    """Choose the option of a list whose value or text holds a text."""
    wanted = json.dumps(text)
    page.run(
        f"""(() => {{
          const select = document.getElementById('{identifier}');
          const fits = o => o.value.includes({wanted}) || o.text.includes({wanted});
          select.value = [...select.options].find(fits).value;
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


def tick(page, identifier):
    page.run(f"document.getElementById('{identifier}').click()")


def box_of(name):
    return f"document.querySelector('#table input[aria-label=\"losses of {name}\"]')"


@needs_chromium
def test_page_shows_the_largest_board_best_first(page):
    expected = ["Delta audited", "Beta record", "Alpha record", NASTY, "Hashed tables"]
    assert page.run(NAMES) == expected
    assert page.run(GROUPS) == [
        "ranked (1)",
        "without an audit that counts (3)",
        "rejected by the audit (1)",
    ]
    assert page.run("document.title") == "Parameter Golf records"
    assert page.run("document.querySelector('#table b').textContent") == "1.50500"
    assert page.run("[...document.querySelectorAll('#board option')].length") == 3
    link = "document.querySelector('#table .tabulator-row a').getAttribute('href')"
    assert page.run(link) == "pages/track_docs_cpu/2026-11-27_delta-audited.html"


@needs_chromium
def test_page_strikes_a_rejected_record_through(page):
    row = "[...document.querySelectorAll('#table .tabulator-row:not(.tabulator-group)')].at(-1)"
    for part in ("a", "b"):
        element = f"{row}.querySelector('.rejected {part}')"
        assert "line-through" in page.run(f"getComputedStyle({element}).textDecorationLine")
    audit = f"{row}.querySelector('[tabulator-field=status]').innerText"
    assert page.run(audit) == (
        "INVALID (quick)\nnormalisation: sum of 512 tokens: expected 1, found 6.25"
    )
    assert page.run("document.querySelectorAll('#table .rejected').length") == 2 + 1  # and its tag


@needs_chromium
def test_page_sorts_within_its_groups(page):
    def click(field):
        page.run(f"document.querySelector('.tabulator-col[tabulator-field={field}]').click()")
        first, *names, last = page.run(NAMES)
        # Audited records come first and rejected ones last, whatever the order.
        assert (first, last) == ("Delta audited", "Hashed tables")
        return names

    assert click("name") == [NASTY, "Alpha record", "Beta record"]
    assert click("name") == ["Beta record", "Alpha record", NASTY]
    assert page.run(f"{HASH}.sort") == "name-desc"
    assert click("date") == ["Alpha record", "Beta record", NASTY]
    assert click("author")[-1] == "Beta record"


@needs_chromium
def test_page_filters(page):
    type_into(page, "search", "bauer")
    assert page.run(NAMES) == ["Beta record"]
    # The charts show what the table shows.
    assert page.run("charts['by-date'].data.datasets[0].data.length") == 1
    type_into(page, "search", "nobody")
    assert page.run(NAMES) == []
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
    assert page.run(f"{HASH}.status") == "unaudited"
    type_into(page, "status", "", "change")


@needs_chromium
def test_a_rejected_record_sets_no_axis(page):
    """Delta 1.505 and Beta 1.205 do; 0.655 stands at the edge, with its own number to read."""
    scale = page.run("(({min, max}) => [min, max])(charts['by-date'].scales.y)")
    assert 1.1 < scale[0] < 1.21
    assert 1.5 < scale[1] < 1.6
    points = "charts['by-date'].data.datasets[0].data"
    rejected = f"{points}.find(p => p.record.name === 'Hashed tables')"
    assert page.run(f"{rejected}.y") == pytest.approx(scale[0])
    label = "charts['by-date'].options.plugins.tooltip.callbacks.label"
    told = page.run(f"{label}({{raw: {rejected}}})")
    assert told[0] == "0.65500 bits per byte, beyond the axes"
    styles = page.run("charts['by-date'].data.datasets[0].pointStyle")
    assert sorted(styles) == ["circle", "crossRot", "triangle", "triangle", "triangle"]


@needs_chromium
def test_page_overlays_the_losses_of_ticked_records(page):
    shown = page.run(DRAWN)
    assert {ALPHA, BETA} <= set(shown)
    page.run(f"{box_of('Alpha record')}.click()")
    assert page.run(DRAWN) == [identifier for identifier in shown if identifier != ALPHA]
    slots = page.run(f"{HASH}.series").split(",")
    assert len(slots) == 8
    page.run(f"{box_of('Alpha record')}.click()")
    assert page.run(DRAWN) == shown
    curves = "charts.curves.data.datasets"
    first = f"{curves}.find(d => d.record === '{BETA}').data"
    # The log's line: step:50/400 train_loss:4.7778 train_time:7500ms, the same for both seeds
    assert page.run(first)[1] == {"x": 50, "y": 4.7778}
    type_into(page, "axis", "seconds", "change")
    assert page.run(f"{first}[1].x") == 7.5
    # The mean of two seeds, training and validation; then every seed's own.
    assert page.run(f"{curves}.filter(d => d.record === '{BETA}').length") == 2
    type_into(page, "seeds", "each", "change")
    assert page.run(f"{curves}.filter(d => d.record === '{BETA}').length") == 4
    looks = page.run(f"{curves}.filter(d => d.showLine).map(d => d.borderColor + d.borderDash)")
    assert len(set(looks)) == len(shown)


@needs_chromium
def test_losses_are_smoothed_zoomed_and_logarithmic(page):
    first = f"charts.curves.data.datasets.find(d => d.record === '{BETA}').data"
    raw = page.run(first)
    type_into(page, "smooth", "0.5")
    soft = page.run(first)
    assert soft[0]["y"] == pytest.approx(raw[0]["y"])  # the start does not pull
    expected = (raw[0]["y"] / 4 + raw[1]["y"] / 2) / (1 / 4 + 1 / 2)
    assert soft[1]["y"] == pytest.approx(expected)
    tick(page, "logy")
    tick(page, "logx")
    assert page.run("[charts.curves.scales.x.type, charts.curves.scales.y.type]") == [
        "logarithmic",
        "logarithmic",
    ]
    assert page.run(f"{first}.every(p => p.x > 0)")
    drag(page, "curves", (0.3, 0.3), (0.7, 0.7))
    low, high = page.run("(({min, max}) => [min, max])(charts.curves.scales.x)")
    assert 0 < low < high < 400
    assert page.run("document.getElementById('reset').hidden") is False
    zoomed = page.run(f"{HASH}.zoom").split(",")
    assert [float(part) for part in zoomed[:2]] == pytest.approx([low, high], rel=1e-4)
    tick(page, "reset")
    assert page.run(f"{HASH}.zoom ?? null") is None


def drag(page, identifier, start, end):
    """Press the mouse at one place of an element, in parts of its size, let go at another."""
    element = f"document.getElementById('{identifier}')"
    page.run(f"{element}.scrollIntoView({{block: 'center'}})")
    box = page.run(
        f"(({{x, y, width, height}}) => [x, y, width, height])({element}.getBoundingClientRect())"
    )
    x, y, width, height = box
    steps = [("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)]
    for kind, (across, down) in steps:
        page.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x + across * width,
            y=y + down * height,
            button="left",
            buttons=1,
            clickCount=1,
        )
    page.run("new Promise(done => setTimeout(done, 300))")


@needs_chromium
def test_a_view_can_be_sent(page, site):
    """Everything chosen stands in the address, and the address chooses it again."""
    type_into(page, "search", "record")
    page.run(f"{box_of('Beta record')}.click()")
    type_into(page, "axis", "seconds", "change")
    choose(page, "a", "Hashed tables")
    choose(page, "b", "Beta record")
    drawn = page.run(DRAWN)
    colours = page.run("charts.curves.data.datasets.map(d => d.borderColor)")
    state = page.run("location.hash.slice(1)")
    start(page, site, state=state)
    assert page.run(DRAWN) == drawn
    assert page.run("charts.curves.data.datasets.map(d => d.borderColor)") == colours
    assert page.run("document.getElementById('search').value") == "record"
    assert page.run("document.getElementById('axis').value") == "seconds"
    assert page.run("document.getElementById('b').selectedOptions[0].text") == "Beta record"
    assert page.run(NAMES)[0] == "Beta record"
    start(page, site, state="board=none&series=x,y&zoom=1,x&smooth=9&axis=z&sort=b-d&a=me")
    assert page.run(NAMES)[0] == "Delta audited"


@needs_chromium
def test_two_records_side_by_side(page):
    choose(page, "a", "Alpha record")
    choose(page, "b", "Beta record")
    answer = "document.getElementById('answer').textContent"
    assert page.run(answer).startswith("B is better; above the bar, p < 0.01: met.")
    assert "One-sided Welch: p 0.00" in page.run(answer)
    lines = "[...document.querySelectorAll('#side-rows tr')]"
    rows = f"{lines}.map(row => [...row.children].map(cell => cell.textContent))"
    assert page.run(rows)[0] == ["bits per byte", "1.30500", "1.20500"]
    choose(page, "b", "Hashed tables")
    assert page.run(answer).startswith("B is not better; B's audit says INVALID (quick)")
    assert "Welch" not in page.run(answer)
    choose(page, "b", "Delta audited")
    assert ["muon_lr", "–", "0.03"] in page.run(rows)
    choose(page, "a", "Delta audited")
    assert page.run(answer) == "Choose two records."


@needs_chromium
def test_page_changes_boards_and_colours(page):
    choose(page, "board", "eeeeeeeeeeee")
    assert page.run(NAMES) == ["Other corpus"]
    assert page.run("document.getElementById('sides').hidden")
    choose(page, "board", "non_record")
    assert page.run(NAMES) == ["Big track"]
    megabytes = page.run("charts['by-bytes'].data.datasets[0].data[0].x")
    assert megabytes == pytest.approx(2.1, abs=0.001)
    theme = "document.documentElement.dataset.theme"
    ground = "getComputedStyle(document.body).backgroundColor"
    # Of scrollbars and of the lists that selects open.
    native = "getComputedStyle(document.documentElement).colorScheme"
    assert (page.run(theme), page.run(native)) == ("light", "light")
    before = page.run(ground)
    tick(page, "theme")
    assert (page.run(theme), page.run(native)) == ("dark", "dark")
    assert page.run(ground) != before


@needs_chromium
def test_at_most_eight_records_are_drawn(browser, tmp_path):
    for i in range(9):
        audit(pack_one(tmp_path, f"Record {i}", 1 + i / 10), "PASS")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert cli(board, "--root", tmp_path) == 0
    start(browser, tmp_path)
    for i in range(3, 9):
        browser.run(f"{box_of(f'Record {i}')}.click()")
    assert len(browser.run(DRAWN)) == 8
    assert browser.run("document.getElementById('full').hidden") is False
    assert browser.run(f"{box_of('Record 8')}.checked") is False
    colours = "charts.curves.data.datasets.filter(d => d.showLine).map(d => d.borderColor)"
    assert len(set(browser.run(colours))) == 8
    assert browser.problems == []


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
  const texts = '.card p, .card td, #table small, #table a, #table b, .tag, h2, th';
  const contrasts = [...document.querySelectorAll(texts)].map(element => {
    const [dark, bright] = [light(getComputedStyle(element).color), ground].sort((x, y) => x - y);
    return (bright + 0.05) / (dark + 0.05);
  });
  return Math.min(...contrasts);
})()"""
WCAG_AA = 4.5  # for text of this size


DELTA = "pages/track_docs_cpu/2026-11-27_delta-audited.html"


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_pages_fit_and_paint(site, browser, tmp_path, width, dark):
    """At phone and desktop width: no sideways scrolling, every chart painted, text readable."""
    for name, canvases in (("index.html", ["by-date", "by-bytes", "curves"]), (DELTA, ["curves"])):
        start(browser, site, name, width=width, height=844, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") <= width
        for canvas in canvases:
            assert browser.run(PAINTED.replace("NAME", canvas)), canvas
        assert browser.run(CONTRAST) >= WCAG_AA
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 20_000


@needs_chromium
def test_a_phone_keeps_every_column_below_its_row(site, browser):
    start(browser, site, width=390)
    browser.run("document.querySelector('.tabulator-responsive-collapse-toggle').click()")
    below = browser.run("document.querySelector('.tabulator-responsive-collapse').innerText")
    for text in ("PASS (quick)", "1,221", "Ann Author", "2026-11-27"):
        assert text in below
    assert browser.run("document.querySelectorAll('.tabulator-responsive-collapse input').length")


@needs_chromium
def test_a_records_page_draws_its_losses_beside_its_base(site, browser):
    start(browser, site, DELTA, state="axis=seconds&logy=1")
    assert browser.run(DRAWN) == [BETA, "track_docs_cpu/2026-11-27_delta-audited"]
    assert browser.run("charts.curves.scales.y.type") == "logarithmic"
    assert browser.run("charts.curves.options.scales.x.title.text") == "training time, s"
    assert browser.problems == []
    assert {url.partition(":")[0] for url in browser.requests} <= {"file", "data"}


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
