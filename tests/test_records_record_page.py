"""The generated page of one record, as text, and how an artifact's bytes are told apart."""

import io
import json
import re
import struct

import numpy as np
import pytest
from board_support import NASTY, site
from records_support import FakeRun

from eval.papers.rendering.entries import collect
from eval.papers.rendering.listing import settings_of
from eval.papers.rendering.pages import ASSETS, byte_bars, pages
from eval.papers.rendering.tensors import MAGIC, SIZES, Artifact, read_artifact

__all__ = ["site"]  # a fixture

DELTA = "pages/track_docs_cpu/2026-11-27_delta-audited.html"
ROW = re.compile(r"<tr>(.*?)</tr>", re.S)


def cells(row):
    return [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.S)]


def section(page, identifier):
    """The text of one card of a page."""
    return page.partition(f'<section class="card" id="{identifier}">')[2].partition("</section>")[0]


@pytest.fixture(scope="module")
def page(site):
    return (site / "records" / DELTA).read_text()


def test_a_record_shows_its_score_and_its_seeds(page):
    assert "<h1>Delta audited</h1>" in page
    assert "<b>1.50500 ± 0.00707</b> bits per byte, rank 1 of its board" in page
    model = section(page, "model")
    assert "400 steps" in model
    assert "training tokens of corpus docs" in model
    rows = [cells(row) for row in ROW.findall(section(page, "seeds-table"))]
    assert [row[:2] for row in rows[1:]] == [["1337", "1.50000000"], ["42", "1.51000000"]]


def test_a_record_is_held_against_its_base(page):
    base = section(page, "base")
    assert (
        '<a href="../../pages/track_docs_cpu/2026-11-25_beta-record.html">Beta record</a>' in base
    )
    assert "It scores 0.30000 more bits per byte. Is it (B) better than its base (A)?" in base
    assert "Not better; below the bar" in base
    rows = [cells(row) for row in ROW.findall(base)]
    assert rows == [
        ["setting", "2026-11-25_beta-record", "2026-11-27_delta-audited"],
        ["muon_lr", "not stated", "0.03"],
    ]
    assert "<summary>1 lines added, 1 removed</summary>" in base
    assert '<span class="removed">-\treturn math.exp(-x)' in base
    assert '<span class="added">+\treturn math.exp(-2 * x)' in base
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert [one["name"] for one in data["series"]] == ["Delta audited", "Beta record"]


def test_a_record_without_a_base_says_so(site):
    text = (
        site / "records" / "pages" / "track_docs_cpu" / "2026-11-25_beta-record.html"
    ).read_text()
    assert "It names none (python -m eval pack --base RECORD writes it)." in section(text, "base")
    assert "Nobody has audited it." in section(text, "audit")


def test_a_record_shows_its_audit_and_how_to_repeat_it(site, page):
    rejected = (site / "records" / DELTA).with_name("2026-11-26_hashed-tables.html").read_text()
    audit = section(rejected, "audit")
    assert '<span class="tag rejected">INVALID (quick)</span>' in audit
    (row,) = re.findall(r'<tr id="audit-normalisation">(.*?)</tr>', audit, re.S)
    assert [cell.strip() for cell in cells(row)[1:]] == [
        "INVALID",
        "sum of 512 tokens: expected 1, found 6.25",
    ]
    commands = section(page, "reproduce")
    assert "python -m eval audit records/track_docs_cpu/2026-11-27_delta-audited" in commands
    assert "--muon-lr 0.03" in commands


def test_text_of_others_stays_text_on_the_page(site):
    (path,) = (site / "records" / "pages").glob("*/*-script-*.html")
    text = path.read_text()
    assert NASTY not in text
    assert "<script>document" not in text


def test_an_authors_words_are_rendered_without_tags_of_theirs(site, tmp_path):
    """Markdown becomes HTML, links keep their target, tags and scripts become text."""
    entries, _ = collect(site / "records")
    (entry,) = [entry for entry in entries if entry.name == "Delta audited"]
    words = "**Bold** [beside](loss.png) [bad](javascript:alert(1)) <img src=x onerror=alert(1)>"
    entry.record.__dict__["readme"] = f"<!-- changes:begin -->\n{words}\n<!-- changes:end -->"
    changes = section(pages(entries, {})[DELTA], "model")
    assert "<strong>Bold</strong>" in changes
    assert '<a href="../../track_docs_cpu/2026-11-27_delta-audited/loss.png">beside</a>' in changes
    assert "The two are on different boards" in section(pages(entries, {})[DELTA], "base")
    assert "<img" not in changes
    assert 'href="javascript' not in changes


# --- Artifacts ---


def test_settings_inside_an_artifact_are_text_of_others(site):
    entries, _ = collect(site / "records")
    entry = entries[0]
    inside = {"ok": 2, "\ud800": "\ud800<b>", "long": "x" * 1000}
    entry.__dict__["artifact"] = Artifact(1, (), inside)
    settings = settings_of(entry)
    assert settings["ok"] == "2"
    assert len(settings["long"]) == 100
    page = pages(entries, {})[f"pages/{entry.place}.html"]
    assert "\\ud800&lt;b&gt;" in page.encode().decode()


def packed(tensors, payload, version=3):
    """An artifact of the layout of train_gpt.py: header, planes, 32 bytes of sha256."""
    header = json.dumps({"model": {"num_layers": 2}, "tensors": tensors}).encode()
    sizes = SIZES.pack(version, len(header), len(payload))
    return MAGIC + sizes + header + payload + bytes(32), len(header)


def plane(coded):
    return struct.pack("<I", len(coded)) + coded


TENSORS = {
    "embed": {"format": "fp16", "shape": [3, 2]},
    "blocks.0.q.weight": {"format": "int6", "shape": [4, 5]},
    "blocks.1.q.weight": {"format": "int6", "shape": [4, 5]},
}


def test_bytes_by_group_of_tensors():
    """Planes by hand: two of embed, coded; three of each q, the scales as they are."""
    embed = plane(b"low") + plane(b"highs")
    scales = 2 * (struct.pack("<I", 0) + bytes(4))
    q = plane(b"symbols") + scales
    data, header = packed(TENSORS, embed + q + q)
    artifact = read_artifact(data)
    assert [(group.name, group.bytes, group.tensors) for group in artifact.groups] == [
        ("blocks.q", 2 * (11 + 16), 2),
        ("embed", 7 + 9, 1),
        ("header and hashes", 8 + 16 + header + 32, 0),
    ]
    assert sum(group.bytes for group in artifact.groups) == artifact.size == len(data)
    assert artifact.settings == {"num_layers": 2}


def test_a_zip_of_arrays_is_read_too():
    buffer = io.BytesIO()
    weights = {f"{i}.up": np.arange(1000) for i in range(2)}
    np.savez_compressed(buffer, flat=np.zeros(50), **weights)
    data = b"MINIGPT1" + bytes(32) + buffer.getvalue()
    artifact = read_artifact(data)
    assert [(group.name, group.tensors) for group in artifact.groups[:2]] == [
        ("up", 2),
        ("flat", 1),
    ]
    assert sum(group.bytes for group in artifact.groups) == len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"weights" * 100,
        packed(TENSORS, b"short")[0],
        packed({"x": {"format": "fp16", "shape": "many"}}, b"")[0],
        packed({"x": {"format": "int6", "shape": []}}, b"")[0],
        packed(TENSORS, b"", version=1)[0],
        MAGIC + SIZES.pack(3, 4, 0) + b"null",
        MAGIC + SIZES.pack(3, 100_000, 0) + b"[" * 100_000,
    ],
)
def test_an_artifact_of_another_kind_has_a_size_alone(data):
    artifact = read_artifact(data)
    assert (artifact.size, artifact.groups) == (len(data), ())


def test_the_bars_add_up_to_the_bytes_that_count(site):
    entries, _ = collect(site / "records")
    for entry in entries:
        shown = byte_bars(entry)
        total = sum(int(bar["bytes"].replace(",", "")) for bar in shown["bars"])
        assert total == entry.submission.bytes_total
    assert shown["bars"][0]["bytes"] == f"{len(FakeRun().code):,}"


# --- Colours ---

# Linear RGB as seen with normal sight and without one kind of cones (Machado et al. 2009).
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [
        [0.3673, 0.8606, -0.2280],
        [0.2801, 0.6725, 0.0474],
        [-0.0118, 0.0429, 0.9689],
    ],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_CONES = np.array(
    [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
)
TO_LAB = np.array(
    [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
)
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
GROUNDS = {"light": "#ffffff", "dark": "#181d24"}  # --card of page.css


def linear(colours):
    """float64 [N, 3] of #rrggbb."""
    values = np.array([list(bytes.fromhex(colour[1:])) for colour in colours]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Ottosson 2020, of linear RGB; a distance of 0.02 is just seen."""
    return np.cbrt(np.clip(rgb, 0, 1) @ TO_CONES.T) @ TO_LAB.T


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_eight_colours_stay_apart_for_every_sight(theme):
    script = (ASSETS / "charts.js").read_text()
    colours = re.findall("#[0-9a-f]{6}", re.search(rf"  {theme}: \[(.*?)\]", script)[1])
    assert len(colours) == 8
    rgb = linear(colours)
    apart = np.triu_indices(8, 1)
    for sight, matrix in SIGHTS.items():
        lab = oklab(rgb @ np.array(matrix).T)
        distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[apart]
        assert distances.min() > 0.12, sight
    ground = linear([GROUNDS[theme]]) @ LUMINANCE
    bright = np.maximum(rgb @ LUMINANCE, ground)
    dark = np.minimum(rgb @ LUMINANCE, ground)
    assert ((bright + 0.05) / (dark + 0.05)).min() >= 3
