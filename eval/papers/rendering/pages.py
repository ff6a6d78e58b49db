"""The pages: one of all records, one for each record, and the libraries that they load.

Pages are Jinja2 templates in `assets`. They are static files that load nothing but their own
neighbours, from a disk as well as from a server.
"""

import itertools
import json
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.papers.audits.report import MEANING
from eval.papers.rendering.differences import changed_settings, improvement, script_diff
from eval.papers.rendering.entries import Entry, boards, with_ranks
from eval.papers.rendering.listing import Contests, page_data, page_name, series, settings_of
from eval.papers.rendering.readme import (
    RESULT_COLUMNS,
    bits_per_byte,
    changes_in,
    environment_facts,
    reproduction_commands,
    seed_row,
)
from eval.papers.rendering.tables import printable
from eval.papers.submission.schema import TRACKS

if TYPE_CHECKING:
    from jinja2 import Environment

ASSETS = Path(__file__).parent / "assets"
UP = {"index": "", "record": "../../"}  # from a page to records/


@dataclass(frozen=True)
class Library:
    """A third-party script as its authors built it, under the MIT licence."""

    name: str
    version: str
    owner: str
    files: tuple[str, ...]
    licence: str


CHART = Library(
    "Chart.js",
    "4.6.1",
    "Chart.js Contributors",
    ("chart-4.6.1.umd.min.js",),
    "chart-4.6.1.LICENSE.md",
)
ZOOM = Library(
    "chartjs-plugin-zoom",
    "2.2.0",
    "chartjs-plugin-zoom contributors",
    ("chartjs-plugin-zoom-2.2.0.min.js",),
    "chartjs-plugin-zoom-2.2.0.LICENSE.md",
)
TABULATOR = Library(
    "Tabulator",
    "6.5.3",
    "Oli Folkerd",
    ("tabulator-6.5.3.min.js", "tabulator-6.5.3.min.css"),
    "tabulator-6.5.3.LICENSE",
)
LIBRARIES = {"index": (CHART, ZOOM, TABULATOR), "record": (CHART, ZOOM)}
OWN = {
    "index": ("page.css", "charts.js", "board.js"),
    "record": ("page.css", "charts.js", "record.js"),
}


def pages(entries: list[Entry], contests: Contests) -> dict[str, str]:
    """Every page, and every file that pages load, by its place below records/."""
    environment = _environment()
    by_place = {entry.place: entry for entry in entries}
    texts = {"index.html": _render(environment, "index", page_data(entries, contests))}
    for members in boards(entries).values():
        for entry, rank in with_ranks(members):
            base = by_place.get(f"{entry.track}/{entry.submission.base_record}")
            against = _base(entry, base, contests) if base else None
            drawn = [entry, base] if base else [entry]
            data = {"series": [series(one) for one in drawn]}
            texts[page_name(entry)] = record_page(environment, entry, rank, against, data)
    for name in _asset_names():
        texts[f"assets/{name}"] = (ASSETS / name).read_text(encoding="utf-8")
    return texts


def _asset_names() -> list[str]:
    names = {*OWN["index"], *OWN["record"]}
    for library in LIBRARIES["index"]:
        names |= {*library.files, library.licence}
    return sorted(names)


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(environment: "Environment", kind: str, data: Any, **context: Any) -> str:
    libraries = LIBRARIES[kind]
    vendored = itertools.chain.from_iterable(library.files for library in libraries)
    files = [*vendored, *OWN[kind]]
    return environment.get_template(f"{kind}.html").render(
        up=UP[kind],
        libraries=libraries,
        styles=[name for name in files if name.endswith(".css")],
        scripts=[name for name in files if name.endswith(".js")],
        data=_script_json(data),
        **context,
    )


def _script_json(value: Any) -> str:
    """JSON for a script tag.

    `<` can begin a closing tag inside a record's name; its escape means the same to JSON.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


# --- The page of one record ---


def record_page(
    environment: "Environment",
    entry: Entry,
    rank: str,
    base: dict[str, Any] | None,
    data: dict[str, Any],
) -> str:
    """The page of `entry`.

    `base` holds what it changed, None where the boards lack the record that it builds on; `data`
    is what the page's script draws.
    """
    submission = entry.submission
    spread = "" if submission.val_bpb_std is None else f" ± {submission.val_bpb_std:.5f}"
    reproducible = submission.origin == "packed"
    return _render(
        environment,
        "record",
        data,
        entry=entry,
        rank=rank,
        score=f"{submission.val_bpb:.5f}{spread}",
        byline=_byline(entry),
        files=UP["record"] + entry.place,
        script=entry.record.script_name,
        model=model_text(entry),
        changes=_changes(entry),
        hint="beside those of the record that it builds on" if base else "",
        seeds=_seed_table(entry) if reproducible else None,
        settings=_settings_table(entry),
        meaning=MEANING,
        bytes=byte_bars(entry),
        base=base,
        no_base=_no_base(entry),
        commands=reproduction_commands(submission, entry.folder) if reproducible else [],
        machine=_machine(entry),
    )


def _byline(entry: Entry) -> str:
    submission = entry.submission
    known = [submission.author, submission.date and submission.date.isoformat()]
    rules = submission.rules_version
    return ", ".join([*(str(word) for word in known if word), f"rules {rules or 'not stated'}."])


def _machine(entry: Entry) -> str:
    if entry.submission.environment is None:
        return ""
    facts = [f"{label} {value}" for label, value in environment_facts(entry.submission)]
    return f"Made with {', '.join(facts)}." if facts else ""


def model_text(entry: Entry) -> str:
    """The model and its run in a paragraph, from what the papers and the artifact state."""
    settings = entry.artifact.settings if entry.artifact else {}
    sentences = [_shape(settings), _run(entry), *_scores(entry)]
    return " ".join(sentence for sentence in sentences if sentence)


def _shape(settings: dict[str, Any]) -> str:
    """Of a transformer whose artifact states its sizes under this project's names."""
    names = ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_hidden", "vocab_size")
    if not all(isinstance(settings.get(name), int) for name in names):
        return ""
    layers, width, heads, key_heads, hidden, words = (settings[name] for name in names)
    return (
        f"A transformer of {layers} layers, {width} wide, with {heads} attention heads "
        f"({key_heads} for keys and values), MLPs {hidden} wide and a vocabulary of {words:,}."
    )


def _run(entry: Entry) -> str:
    data = entry.submission.data
    steps = entry.largest("steps")
    parameters = entry.largest("parameters")
    seconds = [entry.largest(name) for name in ("train_s", "eval_s")]
    parts = [
        f"{parameters:,} parameters" if parameters else None,
        f"{steps:,} steps" if steps else None,
        f"{data.train_tokens:,} training tokens of corpus {data.corpus}" if data else None,
        f"training {seconds[0]:.0f} s" if seconds[0] is not None else None,
        f"scoring {seconds[1]:.0f} s (slowest seed)" if seconds[1] is not None else None,
    ]
    known = [part for part in parts if part]
    track = TRACKS.get(entry.track)
    where = f"Track {entry.track}" + (f" ({track.title})" if track else "")
    return f"{where}: {', '.join(known)}." if known else f"{where}."


def _scores(entry: Entry) -> list[str]:
    sentences = []
    if entry.neural is not None:
        sentences.append(
            f"The model alone scores {entry.neural:.5f} bits per byte, "
            f"with what its scorer adds {entry.submission.val_bpb:.5f}."
        )
    data = entry.submission.data
    if data is not None and data.xz_bytes:
        sentences.append(f"xz -9e needs {bits_per_byte(data):.4f} on the same text.")
    return sentences


def _changes(entry: Entry) -> str:
    """The author's words in the README, as HTML without any tag of theirs."""
    text = changes_in(entry.record.readme) if entry.submission.origin == "packed" else None
    if not text or text == entry.submission.blurb:
        return ""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        for inner in token.children or ():
            for name in ("href", "src"):
                address = inner.attrGet(name)
                if address is not None:
                    inner.attrSet(name, _from_the_page(entry, str(address)))
    return parser.renderer.render(tokens, parser.options, {})


def _from_the_page(entry: Entry, address: str) -> str:
    """An address that is relative to the record's folder, as seen from its page."""
    relative = ":" not in address and not address.startswith(("/", "#"))
    return posixpath.normpath(f"{UP['record']}{entry.place}/{address}") if relative else address


def _seed_table(entry: Entry) -> dict[str, Any]:
    rows = [seed_row(seed, row) for seed, row in entry.submission.seed_results.items()]
    return {"columns": [(name, True) for name in RESULT_COLUMNS], "rows": rows}


def _settings_table(entry: Entry) -> dict[str, Any] | None:
    rows = list(settings_of(entry).items())
    return {"columns": [("setting", False), ("value", False)], "rows": rows} if rows else None


# --- Bytes ---


def byte_bars(entry: Entry) -> dict[str, Any] | None:
    """Code and artifact as bars on one scale, the artifact by group of tensors where it is known.

    The bars add up to the bytes that the track counts. None where the record states no bytes.
    """
    submission = entry.submission
    code = submission.bytes_code
    total = submission.bytes_total
    if code is None or total is None or not total:
        return None
    artifact = entry.artifact
    parts = [("script", code, True)]
    note = ""
    if artifact is None or not artifact.groups or code + artifact.size != total:
        parts.append(("artifact", total - code, False))
        note = "How the artifact's bytes divide among its tensors cannot be read from here."
    else:
        for group in artifact.groups:
            details = [f"{group.tensors} tensors"] if group.tensors > 1 else []
            details += group.formats
            more = f" ({', '.join(details)})" if details else ""
            parts.append((printable(group.name) + more, group.bytes, False))
    widest = max(size for _, size, _ in parts)
    bars = []
    for name, size, is_code in parts:
        bar = {
            "name": name,
            "bytes": f"{size:,}",
            "share": f"{size / total:.1%}",
            "width": round(1000 * size / widest, 1),
            "code": is_code,
        }
        bars.append(bar)
    track = TRACKS.get(entry.track)
    cap = f" of {track.bytes_cap:,} allowed" if track else ""
    caption = f"{total:,}{cap}, largest seed" + ("" if note else ", by group of tensors")
    return {"caption": caption, "bars": bars, "note": note}


# --- The base ---


def _base(entry: Entry, base: Entry, contests: Contests) -> dict[str, Any]:
    diff = script_diff(base, entry)
    settings = changed_settings(base, entry)
    columns = [("setting", False), (base.folder.name, False), (entry.folder.name, False)]
    complete = base.record.code is not None and entry.record.code is not None
    return {
        "name": base.name,
        "page": UP["record"] + page_name(base),
        "answer": improvement(contests.get((base.place, entry.place))),
        "settings": {"columns": columns, "rows": settings} if settings else None,
        "diff": diff.lines if complete else [],
        "added": f"{diff.added:,}",
        "removed": f"{diff.removed:,}",
        "cut": diff.cut,
        "same": "The scripts are equal." if complete else "A script is not in its folder.",
    }


def _no_base(entry: Entry) -> str:
    named = entry.submission.base_record
    if named:
        return f"It names {named}, which is on no board here."
    return "It names none (python -m eval pack --base RECORD writes it)."
