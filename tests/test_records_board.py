"""The boards: generated texts, and `--check`."""

import json
import re
import shutil

import pytest
from board_support import pack_one, site
from records_support import audit, cli, upstream_records

from eval.commands import board
from eval.errors import UserError
from eval.papers.rendering.board import BEGIN, END
from eval.papers.rendering.listing import thin

__all__ = ["site"]  # a fixture

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>')


@pytest.fixture
def copy(site, tmp_path):
    """The site once more, to be changed."""
    root = tmp_path / "site"
    shutil.copytree(site, root)
    return root


def page_data(root):
    """What the page of all records knows."""
    return json.loads(DATA.search((root / "records" / "index.html").read_text())[1])


def row_of(path, name):
    """The one line of a Markdown file that names a record."""
    (row,) = [line for line in path.read_text().splitlines() if name in line]
    return row


def test_everything_is_generated_and_in_step(site, capsys):
    assert cli(board, "--root", site, "--check") == 0
    assert "files, 7 records: in step" in capsys.readouterr().out
    assert cli(board, "--root", site) == 0
    assert "wrote nothing" in capsys.readouterr().out
    readme = (site / "README.md").read_text()
    assert readme.startswith(f"# Top\n\nbefore\n{BEGIN}\n`track_docs_cpu")
    assert readme.endswith(f"{END}\nafter\n")
    assert "old table" not in readme


FRONT_PAGE = """`track_docs_cpu, corpus docs aaaaaaaaaaaa`

| # | val_bpb | audit | record | code + artifact, bytes |
|---:|---:|---|---|---:|
| 1 | 1.50500 ± 0.00707 (n = 2) | PASS (quick) | \
[Delta audited](records/track_docs_cpu/2026-11-27_delta-audited/) | 1,221 |

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
    row = r"^\| (\S) \| (\S+) ± (\S+) \(n = 2\) \| [^|]+ \| \[(.*?)\]\((\S+)\)"
    rows = re.findall(row, docs, re.M)
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
    place = "track_docs_cpu/2026-11-26_hashed-tables"
    reason = "normalisation: sum of 512 tokens: expected 1, found 6.25"
    link = f"[{reason}]({place}/AUDIT.md#normalisation-invalid)"
    name = f"~~[Hashed tables]({place}/)~~<br>Blurb of Hashed ta"
    assert row.startswith(
        f"| – | ~~0.65500 ± 0.00707 (n = 2)~~ | INVALID (quick): {link} | {name} |"
    )
    heading = "### normalisation: INVALID"
    assert heading in (site / "records" / place / "AUDIT.md").read_text()
    docs = (site / "records" / "README.md").read_text().split("aaaaaaaaaaaa")[1]
    # It stands below every record that was not rejected.
    assert docs.index("Delta audited") < docs.index("Hashed tables")


def test_an_audit_of_another_script_does_not_count(copy):
    script = copy / "records" / "track_docs_cpu" / "2026-11-27_delta-audited" / "train_gpt.py"
    script.write_text(script.read_text() + "\n")
    assert cli(board, "--root", copy) == 0
    row = row_of(copy / "records" / "README.md", "Delta audited")
    assert row.startswith("| – | 1.50500")
    assert "| audit does not count: [code_sha256: expected that of train_gpt.py, " in row
    assert "Delta audited" not in (copy / "README.md").read_text()
    rows = page_data(copy)["records"]
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
        ("records/records.json", '"rank": 1', '"rank": 2'),
        ("records/assets/charts.js", "#0000dd", "#0000de"),
        ("records/pages/track_docs_cpu/2026-11-25_beta-record.html", "1.20500", "1.10500"),
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
    page = copy / "records" / "pages" / "track_docs_cpu" / "2026-11-27_delta-audited.html"
    assert page.is_file()
    assert cli(board, "--root", copy) == 0
    assert not page.exists()
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


def test_pages_load_their_neighbours_alone(site):
    """No other host, no script inside the page; every file that one names is there."""
    records = site / "records"
    pages = [records / "index.html", *records.glob("pages/*/*.html")]
    assert len(pages) == 8
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|link)[^>]* (?:src|href)="(?!data:)([^"]+)"', text)
        assert {(page.parent / name).resolve().is_file() for name in loaded} == {True}
        assert "default-src 'none'" in text
        assert re.findall("<script>", text) == []
    weight = sum(path.stat().st_size for path in records.glob("assets/*"))
    assert weight < 760_000
    assert len((records / "index.html").read_text()) < 40_000


def test_vendored_libraries_name_their_licence(site):
    assets = site / "records" / "assets"
    page = (site / "records" / "index.html").read_text()
    for name in ("chart-4.6.1", "chartjs-plugin-zoom-2.2.0", "tabulator-6.5.3"):
        (licence,) = assets.glob(f"{name}.LICENSE*")
        assert "MIT" in licence.read_text()
    for name in ("Chart.js 4.6.1", "chartjs-plugin-zoom 2.2.0", "Tabulator 6.5.3"):
        assert f"{name}, MIT licence" in page


def test_page_takes_names_for_text(tmp_path):
    """A record may be called like a place in the template."""
    pack_one(tmp_path, "{{ data }} {% raw %} <b>", 1.0)
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    assert cli(board, "--root", tmp_path) == 0
    (row,) = page_data(tmp_path)["records"]
    assert row["name"] == "{{ data }} {% raw %} <b>"
    page = (tmp_path / "records" / row["page"]).read_text()
    assert "<h1>{{ data }} {% raw %} &lt;b&gt;</h1>" in page


def test_programs_read_what_people_see(site):
    listing = json.loads((site / "records" / "records.json").read_text())
    (docs,) = [board for board in listing["boards"] if "aaaaaaaaaaaa" in board["board"]][:1]
    ranks = {row["name"]: row["rank"] for row in docs["records"]}
    assert (ranks["Delta audited"], ranks["Beta record"]) == (1, None)
    first = docs["records"][0]
    assert first["val_bpb"] == 1.505
    assert first["val_bpb_by_seed"] == {"1337": 1.5, "42": 1.51}
    assert first["settings"] == {"preset": "docs_cpu", "muon_lr": "0.03"}
    assert first["base_record"] == "2026-11-25_beta-record"
    assert first["audit"] == {"status": "accepted", "label": "PASS (quick)", "reasons": []}
    assert (site / "records" / first["page"]).is_file()


def test_every_two_records_are_compared(site):
    """By the code of `compare`: nothing beats by numbers that an audit refutes."""
    data = page_data(site)
    number = {row["name"]: i for i, row in enumerate(data["records"])}

    def contest(a, b):
        return data["contests"][f"{number[a]}|{number[b]}"]

    gain = contest("Alpha record", "Beta record")
    assert gain["answer"] == "better"
    assert gain["gain"] == pytest.approx(0.1)
    assert gain["p_bar"] < 0.01
    assert contest("Beta record", "Alpha record")["answer"] == "not better"
    assert contest("Beta record", "Hashed tables")["answer"] == "not better"
    assert contest("Hashed tables", "Beta record")["answer"] == "cannot tell"
    other = f"{number['Beta record']}|{number['Other corpus']}"
    assert other not in data["contests"]


def test_thinning_keeps_the_ends():
    points = list(range(1000))
    thinned = thin(points, 240)
    assert len(thinned) == 240
    assert (thinned[0], thinned[-1]) == (0, 999)
    assert sorted(set(thinned)) == thinned
    assert thin(points[:240], 240) == points[:240]
