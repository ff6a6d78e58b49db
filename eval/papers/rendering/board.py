"""The boards: Markdown tables and the page, from the records themselves."""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.papers.audits.reading import audit_findings, mismatch
from eval.papers.audits.report import AuditReport
from eval.papers.folder import Record, open_record
from eval.papers.logs.log import Log, Step
from eval.papers.rendering.readme import bits_per_byte
from eval.papers.rendering.tables import markdown_table
from eval.papers.submission.schema import SUBMISSION_FILE, TRACKS, Submission, json_schema, mean

ASSETS = Path(__file__).parent / "assets"
PAGE_TEMPLATE = "board.html"
CHART_VERSION = "4.6.1"
BEGIN = "<!-- board:begin -->"
END = "<!-- board:end -->"
STATUS = {"PASS": "accepted", "WARN": "accepted", "POLICY": "policy", "INVALID": "rejected"}
UNRANKED = ("unaudited", "rejected")  # below the ranked ones, in this order
NOTHING = "–"
REASON_LENGTH = 160  # characters of a finding that a table cell shows
FRONT_PAGE_RECORDS = 5
# Per seed. That is finer than a phone's pixels; a hundred records still make a page of a few MB.
CURVE_POINTS = 240

FULL_BOARD = {  # heads of the columns and their alignment
    "#": "---:",
    "val_bpb": "---:",
    "record": "---",
    "parameters": "---:",
    "code + artifact, bytes": "---:",
    "training, s": "---:",
    "evaluation, s": "---:",
    "author": "---",
    "date": "---",
    "audit": "---",
}
SHORT_BOARD = {
    "#": "---:",
    "val_bpb": "---:",
    "record": "---",
    "code + artifact, bytes": "---:",
    "audit": "---",
}


@dataclass(frozen=True)
class Entry:
    """One record as the boards show it."""

    record: Record
    submission: Submission

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def track(self) -> str:
        return self.folder.parent.name

    @property
    def audit(self) -> AuditReport | None:
        return self.record.audit

    @cached_property
    def mismatch(self) -> str | None:
        """Why the audit beside the record is not one of this record."""
        if self.audit is None:
            return None
        return mismatch(self.audit, self.record.files, self.submission)

    @property
    def status(self) -> str:
        """`accepted`, `policy`, `rejected` or `unaudited`.

        `policy`: valid as a probability, but against a choice of the rule set. Such a record has a
        rank and is marked as disputed.
        """
        return "unaudited" if self.audit is None or self.mismatch else STATUS[self.audit.verdict]

    @property
    def ranked(self) -> bool:
        return self.status not in UNRANKED

    @property
    def label(self) -> str:
        if self.audit is None:
            return "not audited"
        if self.mismatch:
            return "audit does not count"
        return f"{self.audit.verdict} ({self.audit.level})"

    @property
    def reasons(self) -> list[str]:
        """Findings as heavy as the verdict, or why the audit does not count, cut for a cell."""
        if self.audit is None:
            return []
        if self.mismatch:
            return [_cut(self.mismatch)]
        head = self.audit.verdict
        heavy = [finding for finding in audit_findings(self.audit) if finding.startswith(head)]
        return [_cut(finding.removeprefix(f"{head} ")) for finding in heavy]

    @property
    def board(self) -> str:
        """Records are compared within one track and one corpus version."""
        data = self.submission.data
        corpus = f"corpus {data.corpus} {data.version[:12]}" if data else "corpus not stated"
        return f"{self.track}, {corpus}"

    @property
    def seeds(self) -> int | None:
        """Number of seeds behind the headline; None where the author states none."""
        return len(self.submission.seeds) or None

    @property
    def neural(self) -> float | None:
        """Mean bits per byte of the model alone; None where a seed does not state it."""
        values = [row.neural_val_bpb for row in self.submission.seed_results.values()]
        return mean(values) if values and None not in values else None

    def largest(self, name: str) -> float | None:
        """The largest stated value of a seed's field."""
        values = [getattr(row, name) for row in self.submission.seed_results.values()]
        return max((value for value in values if value is not None), default=None)

    @property
    def logs(self) -> list[Log]:
        """The logs that the record names, else all that lie in the folder."""
        named = [row.log for row in self.submission.seed_results.values() if row.log]
        names = named or sorted([*self.record.logs, *self.record.duplicates])
        return [self.record.log(name) for name in names]


def _cut(text: str) -> str:
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 1] + "…"


# --- All records ---


def collect(records: Path) -> tuple[list[Entry], list[str]]:
    """All records below records/track_*/, those of large boards first; and what is left out.

    Within a board the audited ones come first, then those without an audit that counts, then the
    rejected ones, best score first. A broken record stops no other: it is left out, with a line
    that says why.
    """
    entries = []
    left_out = []
    for path in sorted(records.glob(f"track_*/*/{SUBMISSION_FILE}")):
        if path.parent.name.startswith("."):
            continue
        try:
            entries.append(_entry(path.parent))
        except UserError as error:
            left_out.append(str(error))
    names = [entry.board for entry in entries]
    group = {status: i for i, status in enumerate(UNRANKED, 1)}

    def place(entry: Entry) -> tuple[int, str, int, float, str]:
        return (
            -names.count(entry.board),
            entry.board,
            group.get(entry.status, 0),
            entry.submission.val_bpb,
            entry.folder.name,
        )

    return sorted(entries, key=place), left_out


def _entry(folder: Path) -> Entry:
    """A record as its folder says. Raises UserError for one that no board can show.

    A stranger's word for the track decides nothing: the folder does. `pack` writes both.
    """
    record = open_record(folder)
    problem = record.problem or record.audit_problem
    if record.submission is None or problem:
        raise UserError(problem)
    if record.submission.val_bpb is None:
        raise UserError(f"{folder}: expected a stated val_bpb, found none; state it")
    track = folder.parent.name
    stated = record.submission.track
    if record.submission.origin == "packed" and stated != track:
        raise UserError(
            f"{folder}: lies in {track} but states {stated}; move the folder or pack it again"
        )
    return Entry(record, record.submission)


def boards(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Entries by board, in the order of `entries`."""
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        members.setdefault(entry.board, []).append(entry)
    return members


def generate(root: Path, entries: list[Entry]) -> dict[Path, str]:
    """Every generated file with the text it should hold.

    Raises UserError when the root README lacks its markers.
    """
    records = root / "records"
    return {
        records / "README.md": records_readme(entries),
        records / "index.html": page(entries),
        records / "schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        root / "README.md": root_readme(root / "README.md", entries),
    }


# --- Markdown ---


def records_readme(entries: list[Entry]) -> str:
    """records/README.md: every board in full."""
    parts = [
        "# Records",
        "Generated by `python -m eval board` from the `submission.json`, logs and `audit.json` of "
        "every folder; do not edit. [index.html](index.html) shows the same with charts, "
        "[schema.json](schema.json) describes `submission.json`.",
        "Bits per byte, lower is better, mean ± standard deviation over n seeds; seconds are those "
        "of the slowest seed. Scores of different corpus versions are not comparable and have "
        "boards of their own. Only audited records have a rank.",
    ]
    for board, members in boards(entries).items():
        track, _, corpus = board.partition(", ")
        title = TRACKS[track].title if track in TRACKS else "unknown track"
        about = f"{_cell(corpus).capitalize()}.{_scale(members)}"
        parts += [f"## {track}: {title}", about, full_board(members)]
    if not entries:
        parts.append("No records yet.")
    return "\n\n".join(parts) + "\n"


def _scale(members: list[Entry]) -> str:
    """What `xz -9e` needs on the same text, by the first record that knows."""
    for entry in members:
        data = entry.submission.data
        if data and data.xz_bytes:
            return f" `xz -9e`: {bits_per_byte(data):.4f} bits per byte."
    return ""


def full_board(entries: list[Entry]) -> str:
    """Markdown table of one board. Only audited records have a rank.

    Rejected ones are struck through and carry the reason.
    """
    rows = []
    for entry, rank in zip(entries, _ranks(entries), strict=True):
        submission = entry.submission
        blurb = f"<br>{_cell(submission.blurb)}" if submission.blurb else ""
        reasons = [] if entry.status == "accepted" else entry.reasons
        row = [
            rank,
            _struck(entry, _score(entry)),
            _struck(entry, _link(entry, "")) + blurb,
            _number(entry.largest("parameters")),
            _number(submission.bytes_total),
            _number(entry.largest("train_s")),
            _number(entry.largest("eval_s")),
            _cell(submission.author or NOTHING),
            str(submission.date or NOTHING),
            _cell("; ".join([entry.label, *reasons])),
        ]
        rows.append(row)
    return markdown_table(list(FULL_BOARD), rows, list(FULL_BOARD.values()))


def short_board(entries: list[Entry]) -> str:
    """Markdown table of the best accepted records of one board, for the front page."""
    accepted = [entry for entry in entries if entry.status == "accepted"]
    ranks = dict(zip([entry.folder for entry in entries], _ranks(entries), strict=True))
    rows = []
    for entry in accepted[:FRONT_PAGE_RECORDS]:
        size = _number(entry.submission.bytes_total)
        rank = ranks[entry.folder]
        rows.append([rank, _score(entry), _link(entry, "records/"), size, _cell(entry.label)])
    return markdown_table(list(SHORT_BOARD), rows, list(SHORT_BOARD.values()))


def _ranks(entries: list[Entry]) -> list[str]:
    ranked = 0
    ranks = []
    for entry in entries:
        ranked += entry.ranked
        ranks.append(str(ranked) if entry.ranked else NOTHING)
    return ranks


def _score(entry: Entry) -> str:
    submission = entry.submission
    spread = "" if submission.val_bpb_std is None else f" ± {submission.val_bpb_std:.5f}"
    seeds = f" (n = {entry.seeds})" if entry.seeds else ""
    return f"{submission.val_bpb:.5f}{spread}{seeds}"


def _link(entry: Entry, prefix: str) -> str:
    name = _cell(entry.submission.name or entry.folder.name)
    return f"[{name}]({prefix}{entry.track}/{entry.folder.name}/)"


def _struck(entry: Entry, text: str) -> str:
    return f"~~{text}~~" if entry.status == "rejected" else text


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _cell(text: str) -> str:
    """Text of others for a table cell: no HTML (so no marker of ours), no link, no second cell."""
    return re.sub(r"[\\|\[\]]", r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def root_readme(path: Path, entries: list[Entry]) -> str:
    """The root README with the text between its markers replaced, nothing else touched.

    Raises UserError when it lacks the markers.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.rpartition(END)
    if not (begin and end):
        raise UserError(
            f"{path}: expected the markers {BEGIN} and {END}, found none; "
            "put them where the table of records belongs"
        )
    return f"{before}{BEGIN}\n{front_page(entries)}\n{END}{after}"


def front_page(entries: list[Entry]) -> str:
    """The best accepted records of every board that has one, and where all others are."""
    parts = []
    for board, members in boards(entries).items():
        if any(entry.status == "accepted" for entry in members):
            parts += [f"`{_cell(board)}`", short_board(members)]
    rejected = sum(entry.status == "rejected" for entry in entries)
    including = {0: "", 1: ", including the rejected one"}.get(
        rejected, ", including rejected ones"
    )
    if entries:
        parts.append(f"All records{including}: [records/README.md](records/README.md).")
    return "\n\n".join(parts) or "No records yet."


# --- The page ---


def page(entries: list[Entry]) -> str:
    """The page as one HTML text: template, chart library and data."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # The three values are ours: a script, its version, and JSON without any `<`.
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=False,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    chart = (ASSETS / f"chart-{CHART_VERSION}.umd.min.js").read_text(encoding="utf-8").strip()
    rows = [page_row(entry) for entry in entries]
    return environment.get_template(PAGE_TEMPLATE).render(
        chart_version=CHART_VERSION, chart_script=chart, data=_script_json(rows)
    )


def _script_json(value: Any) -> str:
    """JSON for a script tag.

    `<` can begin a closing tag inside a record's name; its escape means the same to JSON.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def page_row(entry: Entry) -> dict[str, Any]:
    """What the page knows of one record."""
    submission = entry.submission
    place = f"{entry.track}/{entry.folder.name}"
    return {
        "id": place,
        "board": entry.board,
        "name": submission.name or entry.folder.name,
        "blurb": submission.blurb,
        "author": submission.author,
        "github": submission.github_id,
        "date": submission.date.isoformat() if submission.date else None,
        "bpb": submission.val_bpb,
        "sd": submission.val_bpb_std,
        "n": entry.seeds,
        "neural": entry.neural,
        "bytes": submission.bytes_total,
        "train": entry.largest("train_s"),
        "eval": entry.largest("eval_s"),
        "status": entry.status,
        "label": entry.label,
        "reasons": entry.reasons,
        "href": f"{place}/README.md",
        "curves": [curve(log) for log in entry.logs if log.steps],
    }


def curve(log: Log) -> dict[str, Any]:
    """Training and validation points as [step, seconds, nats per token], thinned."""
    train = [step for step in log.steps if step.train_loss is not None]
    validation = [step for step in log.steps if step.val_loss is not None]
    return {
        "seed": log.seed,
        "train": [[s.step, s.train_s, s.train_loss] for s in thin(train, CURVE_POINTS)],
        "val": [[s.step, s.train_s, s.val_loss] for s in thin(validation, CURVE_POINTS)],
    }


def thin(points: Sequence[Step], limit: int) -> Sequence[Step]:
    """At most `limit` points, evenly spaced by index, first and last kept."""
    if len(points) <= limit:
        return points
    last = len(points) - 1
    return [points[round(i * last / (limit - 1))] for i in range(limit)]
