"""The boards: generated texts, `--check`, and the page in a real browser."""

import argparse
import json
import math
import re
import shutil

import pytest
from records_browser import CHROMIUM, Browser
from records_support import FakeRun, audit, cli, upstream_records

from eval.commands import board, pack
from eval.commands.pack import slug_of
from eval.errors import UserError
from eval.papers.rendering.board import BEGIN, END, thin

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>')
NASTY = "A </script><script>document.title='broken'</script> | record & more"


def pack_one(
    root,
    name,
    bits,
    date="2026-11-24",
    track="track_docs_cpu",
    author="Ann Author",
    size=700,
    **overrides,
):
    runs = []
    for seed, extra in ((1337, 0.0), (42, 0.01)):
        run = FakeRun(
            **(
                {"seed": seed, "nats": 2000 * math.log(2) * (bits + extra), "artifact": b"w" * size}
                | overrides
            )
        )
        runs.append(run.write(root / "runs" / f"{name[:5]}{seed}"))
    options = [
        "--name",
        name,
        "--date",
        date,
        "--author",
        author,
        "--github-id",
        "ann",
        "--blurb",
        f"Blurb of {name[:9]}",
        "--track",
        track,
    ]
    args = [*runs, "--records-dir", root / "records", *options]
    assert cli(pack, *args) == 0
    return next(
        (root / "records" / track).glob(
            f"{date}_{slug_of(argparse.Namespace(slug=None, name=name))}"
        )
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two corpora, two tracks, one record with a hostile name."""
    root = tmp_path_factory.mktemp("site")
    pack_one(root, "Beta record", 1.20, date="2026-11-25", author="Bo Bauer")
    pack_one(root, "Alpha record", 1.30)
    pack_one(root, NASTY, 1.40, date="2026-12-02")
    pack_one(root, "Other corpus", 0.90, version="e" * 64)
    pack_one(root, "Big track", 1.10, track="track_non_record_16mb", size=2_100_000)
    audit(pack_one(root, "Hashed tables", 0.65, date="2026-11-26"), "INVALID")
    audit(pack_one(root, "Delta audited", 1.50, date="2026-11-27"), "PASS")
    (root / "README.md").write_text(f"# Top\n\nbefore\n{BEGIN}\nold table\n{END}\nafter\n")
    assert cli(board, "--root", root) == 0
    return root


def test_everything_is_generated_and_in_step(site, capsys):
    assert cli(board, "--root", site, "--check") == 0
    assert "4 files, 7 records: in step" in capsys.readouterr().out
    assert cli(board, "--root", site) == 0
    assert "wrote nothing" in capsys.readouterr().out
    readme = (site / "README.md").read_text()
    assert (
        readme.startswith(f"# Top\n\nbefore\n{BEGIN}\n`track_docs_cpu")
        and readme.endswith(f"{END}\nafter\n")
        and "old table" not in readme
    )


def test_boards_rank_within_one_corpus(site):
    text = (site / "records" / "README.md").read_text()
    sections = text.split("\n## ")[1:]
    assert len(sections) == 3
    docs = next(s for s in sections if "aaaaaaaaaaaa" in s and s.startswith("track_docs_cpu"))
    rows = re.findall(r"^\| (\S) \| (\S+) ± (\S+) \(n = 2\) \| \[(.*?)\]\((\S+)\)", docs, re.M)
    # Nobody has audited the others, so they have no rank, however good they claim to be.
    assert [(r[0], r[1]) for r in rows] == [
        ("1", "1.50500"),
        ("–", "1.20500"),
        ("–", "1.30500"),
        ("–", "1.40500"),
    ]
    assert (
        rows[1][2] == "0.00707" and rows[1][4] == "track_docs_cpu/2026-11-25_beta-record/"
    )  # 0.01 / sqrt 2
    assert "0.90500" not in docs  # better, but of another corpus version


def test_a_rejected_record_is_struck_through_with_its_reason(site):
    rows = [
        line for line in (site / "README.md").read_text().splitlines() if "Hashed tables" in line
    ]
    assert len(rows) == 1
    place = "records/track_docs_cpu/2026-11-26_hashed-tables/"
    assert rows[0].startswith(
        f"| – | ~~0.65500 ± 0.00707 (n = 2)~~ | ~~[Hashed tables]({place})~~<br>Blurb of Hashed ta | "
    )
    assert rows[0].endswith(
        "| INVALID (quick); normalisation: sum of 512 tokens: expected 1, found 6.25 |"
    )
    docs = (site / "records" / "README.md").read_text().split("aaaaaaaaaaaa")[1]
    assert docs.index("Delta audited") < docs.index(
        "Hashed tables"
    )  # below every record that stands


def test_an_audit_of_another_script_does_not_count(site, tmp_path):
    root = tmp_path / "site"
    shutil.copytree(site, root)
    script = root / "records" / "track_docs_cpu" / "2026-11-27_delta-audited" / "train_gpt.py"
    script.write_text(script.read_text() + "\n")
    assert cli(board, "--root", root) == 0
    row = next(
        line for line in (root / "README.md").read_text().splitlines() if "Delta audited" in line
    )
    assert (
        row.startswith("| – | 1.50500")
        and "| audit does not count; code_sha256: expected that of train_gpt.py, " in row
    )
    entry = next(
        r
        for r in json.loads(DATA.search((root / "records" / "index.html").read_text())[1])
        if r["name"] == "Delta audited"
    )
    assert (entry["status"], entry["label"]) == ("unaudited", "audit does not count") and entry[
        "reasons"
    ][0].startswith("code_sha256: ")


def test_text_of_others_stays_text(tmp_path):
    """A marker in a blurb would be taken for the end of the table; tags and brackets would become page elements."""
    blurb = f"x {END} y <b>z</b> [link](http://x) a|b\nc \\"
    folder = pack_one(tmp_path, "One", 1.0)
    submission = json.loads((folder / "submission.json").read_text()) | {
        "blurb": blurb,
        "name": f"{BEGIN}{END}",
    }
    (folder / "submission.json").write_text(json.dumps(submission))
    (tmp_path / "README.md").write_text(f"top\n{BEGIN}\n{END}\nbottom\n")
    assert cli(board, "--root", tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert cli(board, "--root", tmp_path, "--check") == 0
    assert text.count(END) == 1 and text.endswith(f"{END}\nbottom\n")
    assert (
        r"x &lt;!-- board:end --&gt; y &lt;b&gt;z&lt;/b&gt; \[link\](http://x) a\|b c \\ |" in text
    )


def test_a_marker_left_in_the_table_goes_away(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "README.md").write_text(f"top\n{BEGIN}\n| x {END} y |\n{END}\nbottom\n")
    assert cli(board, "--root", tmp_path) == 0
    assert (tmp_path / "README.md").read_text() == f"top\n{BEGIN}\nNo records yet.\n{END}\nbottom\n"


@pytest.mark.parametrize(
    "name", ["records/README.md", "records/index.html", "records/schema.json", "README.md"]
)
def test_check_names_what_is_out_of_step(site, tmp_path, capsys, name):
    root = tmp_path / "site"
    shutil.copytree(site, root)
    path = root / name
    before = path.read_text()
    path.write_text(
        before.replace("1.20500", "1.10500")
        .replace('"bpb":1.205', '"bpb":1.105')
        .replace('"nats"', '"nots"', 1)
    )
    assert path.read_text() != before
    assert cli(board, "--root", root, "--check") == 1
    out = capsys.readouterr().out
    assert f"{name}:" in out and "1 out of date" in out
    path.unlink()
    if name == "README.md":
        with pytest.raises(UserError, match="expected the markers"):
            cli(board, "--root", root, "--check")
    else:
        assert cli(board, "--root", root, "--check") == 1


def test_a_changed_record_changes_the_boards(site, tmp_path):
    root = tmp_path / "site"
    shutil.copytree(site, root)
    shutil.rmtree(root / "records" / "track_docs_cpu" / "2026-11-25_beta-record")
    assert cli(board, "--root", root, "--check") == 1
    assert cli(board, "--root", root) == 0
    assert (
        "beta-record"
        not in (root / "records" / "index.html").read_text() + (root / "README.md").read_text()
    )


def test_a_record_in_the_wrong_track_is_refused(site, tmp_path):
    root = tmp_path / "site"
    shutil.copytree(site, root)
    shutil.move(
        root / "records" / "track_docs_cpu" / "2026-11-24_alpha-record",
        root / "records" / "track_non_record_16mb",
    )
    with pytest.raises(UserError, match="lies in track_non_record_16mb but states track_docs_cpu"):
        cli(board, "--root", root)


def test_no_records_and_public_records(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert cli(board, "--root", tmp_path) == 0
    assert "No records yet." in (tmp_path / "records" / "README.md").read_text()
    for folder in upstream_records().iterdir():
        if folder.is_dir():
            shutil.copytree(folder, tmp_path / "records" / "track_10min_16mb" / folder.name)
    assert cli(board, "--root", tmp_path) == 0
    text = (tmp_path / "records" / "README.md").read_text()
    assert (
        "| – | 1.06108 ± 0.00090 (n = 3) |" in text and "| – | 1.12278 |" in text
    )  # no seeds stated: no n is invented


def test_page_is_one_file(site):
    """Nothing is loaded from anywhere: no address in a tag, and a policy that forbids it."""
    page = (site / "records" / "index.html").read_text()
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=\"(?!data:)", markup)
    assert "default-src 'none'" in page
    assert "Chart.js v4.6.1" in page and "Released under the MIT License" in page
    assert len(page) < 600_000


def test_thinning_keeps_the_ends():
    points = list(range(1000))
    thinned = thin(points, 240)
    assert (
        len(thinned) == 240
        and thinned[0] == 0
        and thinned[-1] == 999
        and sorted(set(thinned)) == thinned
    )
    assert thin(points[:240], 240) == points[:240]


# --- in the browser ---


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
    assert [
        url
        for url in browser.requests
        if not url.startswith("file:") or not url.endswith("/index.html")
    ] == []


NAMES = "[...document.querySelectorAll('#rows tr td.name a')].map(a => a.textContent)"


def choose(page, board_text):
    script = f"""(() => {{ const s = document.getElementById('board');
      s.value = [...s.options].find(o => o.value.includes({json.dumps(board_text)})).value; s.dispatchEvent(new Event('change')); }})()"""
    page.run(script)


def type_into(page, identifier, text, event="input"):
    page.run(
        f"(() => {{ const i = document.getElementById('{identifier}'); i.value = {json.dumps(text)}; i.dispatchEvent(new Event('{event}')); }})()"
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
        assert "line-through" in page.run(
            f"getComputedStyle({row}.querySelector('{part}')).textDecorationLine"
        )
    assert (
        page.run(f"{row}.querySelector('td.verdict').textContent")
        == "INVALID (quick)normalisation: sum of 512 tokens: expected 1, found 6.25"
    )
    others = "[...document.querySelectorAll('#rows tr:not(.rejected) td.score b')].map(e => getComputedStyle(e).textDecorationLine)"
    assert set(page.run(others)) == {"none"}


@needs_chromium
def test_page_sorts_by_every_column(page):
    def click(key):
        page.run(f"document.querySelector('th[data-key={key}] button').click()")
        first, *names, last = page.run(NAMES)
        assert (first, last) == (
            "Delta audited",
            "Hashed tables",
        )  # audited first and rejected last, whatever the order
        return names

    assert click("name") == [NASTY, "Alpha record", "Beta record"]
    assert click("name") == ["Beta record", "Alpha record", NASTY]
    assert (
        page.run("document.querySelector('th[data-key=name]').getAttribute('aria-sort')")
        == "descending"
    )
    assert click("date") == ["Alpha record", "Beta record", NASTY]
    assert click("author") == ["Alpha record", NASTY, "Beta record"]
    assert click("bpb") == ["Beta record", "Alpha record", NASTY]
    assert click("bpb") == [NASTY, "Alpha record", "Beta record"]
    assert click("verdict") == ["Beta record", "Alpha record", NASTY]
    assert (
        page.run("document.querySelector('th[data-key=name]').getAttribute('aria-sort')") == "none"
    )


@needs_chromium
def test_page_filters(page):
    type_into(page, "search", "bauer")
    assert page.run(NAMES) == ["Beta record"]
    assert (
        page.run("charts['by-date'].data.datasets[0].data.length") == 1
    )  # the charts show what the table shows
    type_into(page, "search", "nobody")
    assert page.run(NAMES) == [] and page.run("document.getElementById('empty').hidden") is False
    type_into(page, "search", "")
    for status, names in (
        ("accepted", ["Delta audited"]),
        ("rejected", ["Hashed tables"]),
        ("policy", []),
        ("unaudited", ["Beta record", "Alpha record", NASTY]),
    ):
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
    identifiers = [
        f"track_docs_cpu/{name}" for name in ("2026-11-24_alpha-record", "2026-11-25_beta-record")
    ]
    shown = page.run(drawn)
    assert set(identifiers) <= set(shown)
    page.run(f"document.querySelector('tr[data-id=\"{identifiers[0]}\"] input').click()")
    assert page.run(drawn) == [i for i in shown if i != identifiers[0]]
    page.run(f"document.querySelector('tr[data-id=\"{identifiers[0]}\"] input').click()")
    assert page.run(drawn) == shown
    points = page.run(
        f"charts.curves.data.datasets.find(d => d.record === '{identifiers[1]}').data"
    )
    assert points[1] == {
        "x": 50,
        "y": 4.7778,
    }  # the log's line: step:50/400 train_loss:4.7778 train_time:7500ms
    type_into(page, "axis", "seconds", "change")
    assert (
        page.run(
            f"charts.curves.data.datasets.find(d => d.record === '{identifiers[1]}').data[1].x"
        )
        == 7.5
    )
    # Two seeds with training and validation each.
    assert (
        page.run(f"charts.curves.data.datasets.filter(d => d.record === '{identifiers[1]}').length")
        == 4
    )


@needs_chromium
def test_page_changes_boards_and_colours(page):
    choose(page, "eeeeeeeeeeee")
    assert page.run(NAMES) == ["Other corpus"]
    choose(page, "non_record")
    assert page.run(NAMES) == ["Big track"]
    assert page.run("charts['by-bytes'].data.datasets[0].data[0].x") == pytest.approx(
        2.1, abs=0.001
    )
    assert page.run("document.documentElement.dataset.theme") == "light"
    before = page.run("getComputedStyle(document.body).backgroundColor")
    native = "getComputedStyle(document.documentElement).colorScheme"  # of scrollbars and of the lists that selects open
    assert page.run(native) == "light"
    page.run("document.getElementById('theme').click()")
    assert page.run(native) == "dark"
    assert (
        page.run("document.documentElement.dataset.theme") == "dark"
        and page.run("getComputedStyle(document.body).backgroundColor") != before
    )


@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (320, False), (1280, True)])
def test_page_fits_and_paints(site, browser, tmp_path, width, dark):
    """No sideways scrolling, every chart painted, text in contrast with its ground, at phone and desktop width."""
    browser.open(site / "records" / "index.html", width=width, height=844, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    for name in ("by-date", "by-bytes", "curves"):
        painted = f"""(() => {{ const c = document.getElementById('{name}');
          return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, i) => i % 4 === 3 && v > 0); }})()"""
        assert browser.run(painted), name
    contrast = browser.run("""(() => { const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = getComputedStyle(document.querySelector('.card')).backgroundColor;
      return Math.min(...[...document.querySelectorAll('#rows small, #rows a, #rows b, #rows .tag, h2, th')].map(e => {
        const [a, b] = [light(getComputedStyle(e).color), light(ground)].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); })); })()""")
    assert contrast >= 4.5  # WCAG AA for text of this size
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@needs_chromium
def test_browser_reports_errors_and_requests(tmp_path, browser):
    """The harness itself: a page with an exception, a console error and a foreign picture must not look clean."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<img src='http://127.0.0.1:9/x.png'><script>console.error('oops'); undefinedFunction();</script>"
    )
    browser.problems.clear()
    browser.requests.clear()
    browser.open(path)
    browser.run("new Promise(done => setTimeout(done, 50))")
    assert any("oops" in p for p in browser.problems) and any(
        "undefinedFunction" in p for p in browser.problems
    )
    assert "http://127.0.0.1:9/x.png" in browser.requests
    browser.problems.clear()
    browser.requests.clear()
