"""The boards: generated texts, `--check`, and the page in a real browser."""

import argparse
import itertools
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


def pack_one(root, name, bits, date="2026-11-24", track="track_docs_cpu", size=700, **more):
    """A packed record of two seeds, the second 0.01 bits per byte worse; returns its folder.

    `more` may name the `author`; everything else belongs to the runs."""
    author = more.pop("author", "Ann Author")
    runs = []
    for seed, extra in ((1337, 0.0), (42, 0.01)):
        nats = 2000 * math.log(2) * (bits + extra)
        run = FakeRun(seed=seed, nats=nats, artifact=b"w" * size, **more)
        runs.append(run.write(root / "runs" / f"{name[:5]}{seed}"))
    options = {
        "--name": name,
        "--date": date,
        "--author": author,
        "--github-id": "ann",
        "--blurb": f"Blurb of {name[:9]}",
        "--track": track,
        "--records-dir": root / "records",
    }
    assert cli(pack, *runs, *itertools.chain(*options.items())) == 0
    slug = slug_of(argparse.Namespace(slug=None, name=name))
    return root / "records" / track / f"{date}_{slug}"


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


@pytest.fixture
def copy(site, tmp_path):
    """The site once more, to be changed."""
    root = tmp_path / "site"
    shutil.copytree(site, root)
    return root


def row_of(path, name):
    """The one line of a Markdown file that names a record."""
    (row,) = [line for line in path.read_text().splitlines() if name in line]
    return row


def test_everything_is_generated_and_in_step(site, capsys):
    assert cli(board, "--root", site, "--check") == 0
    assert "4 files, 7 records: in step" in capsys.readouterr().out
    assert cli(board, "--root", site) == 0
    assert "wrote nothing" in capsys.readouterr().out
    readme = (site / "README.md").read_text()
    assert readme.startswith(f"# Top\n\nbefore\n{BEGIN}\n`track_docs_cpu")
    assert readme.endswith(f"{END}\nafter\n")
    assert "old table" not in readme


FRONT_PAGE = """`track_docs_cpu, corpus docs aaaaaaaaaaaa`

| # | val_bpb | record | code + artifact, bytes | audit |
|---:|---:|---|---:|---|
| 1 | 1.50500 ± 0.00707 (n = 2) | \
[Delta audited](records/track_docs_cpu/2026-11-27_delta-audited/) | 1,217 | PASS (quick) |

All records, including the rejected one: [records/README.md](records/README.md).
"""


def test_the_front_page_holds_accepted_records_alone(site):
    """No blurb, no finding, no board without an accepted record."""
    text = (site / "README.md").read_text()
    _, _, rest = text.partition(f"{BEGIN}\n")
    assert rest.partition(END)[0] == FRONT_PAGE


def test_the_front_page_holds_five_records(tmp_path):
    for i in range(6):
        audit(pack_one(tmp_path, f"Record {i}", 1 + i / 10), "PASS")
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert cli(board, "--root", tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert [i for i in range(6) if f"| {i + 1} | 1.{i}05" in text] == [0, 1, 2, 3, 4]
    assert "All records: [records/README.md](records/README.md)." in text


def test_boards_rank_within_one_corpus(site):
    text = (site / "records" / "README.md").read_text()
    sections = text.split("\n## ")[1:]
    assert len(sections) == 3
    (docs,) = [s for s in sections if "aaaaaaaaaaaa" in s and s.startswith("track_docs_cpu")]
    rows = re.findall(r"^\| (\S) \| (\S+) ± (\S+) \(n = 2\) \| \[(.*?)\]\((\S+)\)", docs, re.M)
    # Nobody has audited the others, so they have no rank, however good they claim to be.
    assert [(rank, score) for rank, score, *_ in rows] == [
        ("1", "1.50500"),
        ("–", "1.20500"),
        ("–", "1.30500"),
        ("–", "1.40500"),
    ]
    _, _, spread, _, place = rows[1]
    assert spread == "0.00707"  # 0.01 / sqrt 2
    assert place == "track_docs_cpu/2026-11-25_beta-record/"
    assert "0.90500" not in docs  # better, but of another corpus version


def test_a_rejected_record_is_struck_through_with_its_reason(site):
    row = row_of(site / "records" / "README.md", "Hashed tables")
    link = "~~[Hashed tables](track_docs_cpu/2026-11-26_hashed-tables/)~~"
    assert row.startswith(f"| – | ~~0.65500 ± 0.00707 (n = 2)~~ | {link}<br>Blurb of Hashed ta | ")
    assert row.endswith(
        "| INVALID (quick); normalisation: sum of 512 tokens: expected 1, found 6.25 |"
    )
    docs = (site / "records" / "README.md").read_text().split("aaaaaaaaaaaa")[1]
    # It stands below every record that was not rejected.
    assert docs.index("Delta audited") < docs.index("Hashed tables")


def test_an_audit_of_another_script_does_not_count(copy):
    script = copy / "records" / "track_docs_cpu" / "2026-11-27_delta-audited" / "train_gpt.py"
    script.write_text(script.read_text() + "\n")
    assert cli(board, "--root", copy) == 0
    row = row_of(copy / "records" / "README.md", "Delta audited")
    assert row.startswith("| – | 1.50500")
    assert "| audit does not count; code_sha256: expected that of train_gpt.py, " in row
    assert "Delta audited" not in (copy / "README.md").read_text()
    rows = json.loads(DATA.search((copy / "records" / "index.html").read_text())[1])
    (entry,) = [row for row in rows if row["name"] == "Delta audited"]
    assert (entry["status"], entry["label"]) == ("unaudited", "audit does not count")
    assert entry["reasons"][0].startswith("code_sha256: ")


def test_text_of_others_stays_text(tmp_path):
    """A marker in a name would be taken for the end of the table.

    Tags and brackets would become page elements."""
    blurb = f"x {END} y <b>z</b> [link](http://x) a|b\nc \\"
    folder = pack_one(tmp_path, "One", 1.0)
    submission = json.loads((folder / "submission.json").read_text())
    submission |= {"blurb": blurb, "name": f"{BEGIN}{END}"}
    (folder / "submission.json").write_text(json.dumps(submission))
    audit(folder, "PASS")
    (tmp_path / "README.md").write_text(f"top\n{BEGIN}\n{END}\nbottom\n")
    assert cli(board, "--root", tmp_path) == 0
    assert cli(board, "--root", tmp_path, "--check") == 0
    front = (tmp_path / "README.md").read_text()
    assert front.count(END) == 1
    assert front.endswith(f"{END}\nbottom\n")
    assert "[&lt;!-- board:begin --&gt;&lt;!-- board:end --&gt;](records/" in front
    full = (tmp_path / "records" / "README.md").read_text()
    shown = r"x &lt;!-- board:end --&gt; y &lt;b&gt;z&lt;/b&gt; \[link\](http://x) a\|b c \\ |"
    assert shown in full


def test_a_marker_left_in_the_table_goes_away(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "README.md").write_text(f"top\n{BEGIN}\n| x {END} y |\n{END}\nbottom\n")
    assert cli(board, "--root", tmp_path) == 0
    assert (tmp_path / "README.md").read_text() == f"top\n{BEGIN}\nNo records yet.\n{END}\nbottom\n"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("records/README.md", "1.20500", "1.10500"),
        ("records/index.html", '"bpb":1.205', '"bpb":1.105'),
        ("records/schema.json", '"nats"', '"nots"'),
        ("README.md", "1.50500", "1.10500"),
    ],
)
def test_check_names_what_is_out_of_step(copy, capsys, name, old, new):
    path = copy / name
    before = path.read_text()
    path.write_text(before.replace(old, new, 1))
    assert path.read_text() != before
    assert cli(board, "--root", copy, "--check") == 1
    out = capsys.readouterr().out
    assert f"{name}:" in out
    assert "1 out of date" in out
    path.unlink()
    if name == "README.md":
        with pytest.raises(UserError, match="expected the markers"):
            cli(board, "--root", copy, "--check")
    else:
        assert cli(board, "--root", copy, "--check") == 1


def test_a_changed_record_changes_the_boards(copy):
    shutil.rmtree(copy / "records" / "track_docs_cpu" / "2026-11-27_delta-audited")
    assert cli(board, "--root", copy, "--check") == 1
    assert cli(board, "--root", copy) == 0
    for path in (copy / "records" / "index.html", copy / "README.md"):
        assert "delta-audited" not in path.read_text()


def test_a_packed_record_in_the_wrong_track_is_left_out(copy, capsys):
    records = copy / "records"
    folder = records / "track_docs_cpu" / "2026-11-24_alpha-record"
    shutil.move(folder, records / "track_non_record_16mb")
    assert cli(board, "--root", copy) == 1
    assert "lies in track_non_record_16mb but states track_docs_cpu" in capsys.readouterr().err
    assert "alpha-record" not in (records / "README.md").read_text()


@pytest.mark.parametrize("track", ["non-record-16mb", "10min_16mb", "of my own"])
def test_one_odd_record_stops_no_board(copy, capsys, track):
    """A stranger's record goes to the board of its folder, whatever it calls its track."""
    records = copy / "records"
    for name in ("2026-05-01_Odd", "2026-05-01_Broken"):
        folder = records / "track_non_record_16mb" / name
        folder.mkdir(parents=True)
        stated = {"name": name, "author": "a", "val_bpb": 1.25, "track": track}
        (folder / "submission.json").write_text(json.dumps(stated))
    (records / "track_non_record_16mb" / "2026-05-01_Broken" / "submission.json").write_text("{")
    assert cli(board, "--root", copy) == 1
    assert "2026-05-01_Broken" in capsys.readouterr().err
    text = (records / "README.md").read_text()
    board_of_folder = text.partition("## track_non_record_16mb")[2]
    assert "2026-05-01_Odd" in board_of_folder
    assert "alpha-record" in text


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
    assert "| – | 1.06108 ± 0.00090 (n = 3) |" in text
    assert "| – | 1.12278 |" in text  # no seeds stated: no n is invented
    assert "records/README.md" in (tmp_path / "README.md").read_text()


def test_page_is_one_file(site):
    """Nothing is loaded from anywhere: no address in a tag, and a policy that forbids it."""
    page = (site / "records" / "index.html").read_text()
    markup = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"(src|href)=\"(?!data:)", markup)
    assert "default-src 'none'" in page
    assert "Chart.js v4.6.1" in page
    assert "Released under the MIT License" in page
    assert len(page) < 600_000


def test_page_takes_names_for_text(tmp_path):
    """A record may be called like a place in the template."""
    pack_one(tmp_path, "{{ data }} {% raw %}", 1.0)
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert cli(board, "--root", tmp_path) == 0
    (row,) = json.loads(DATA.search((tmp_path / "records" / "index.html").read_text())[1])
    assert row["name"] == "{{ data }} {% raw %}"


def test_thinning_keeps_the_ends():
    points = list(range(1000))
    thinned = thin(points, 240)
    assert len(thinned) == 240
    assert (thinned[0], thinned[-1]) == (0, 999)
    assert sorted(set(thinned)) == thinned
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
