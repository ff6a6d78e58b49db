"""The boards: Markdown tables and the page, from the records themselves."""

import html
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.papers.audits.reading import audit_findings, mismatch, read_audit
from eval.papers.audits.report import AuditReport
from eval.papers.logs.log import Log, Step
from eval.papers.logs.reading import parse_log
from eval.papers.rendering.readme import bits_per_byte
from eval.papers.submission.reading import load_submission
from eval.papers.submission.schema import SUBMISSION_FILE, TRACKS, Submission, json_schema, mean

ASSETS = Path(__file__).parent / "assets"
CHART_VERSION = "4.6.1"
BEGIN, END = "<!-- board:begin -->", "<!-- board:end -->"
STATUS = {"PASS": "accepted", "WARN": "accepted", "POLICY": "policy", "INVALID": "rejected"}
UNRANKED = ("unaudited", "rejected")  # below the ranked ones, in this order
REASON_LENGTH = 160
CURVE_POINTS = 240  # per seed: finer than a phone's pixels, and a hundred records still make a page of a few MB


@dataclass(frozen=True)
class Entry:
    """One record as the boards show it."""

    folder: Path
    track: str
    submission: Submission
    audit: AuditReport | None

    @cached_property
    def mismatch(self) -> str | None:
        """Why the audit beside the record is not one of this record."""
        return None if self.audit is None else mismatch(self.audit, self.folder, self.submission)

    @property
    def status(self) -> str:
        """`policy`: valid as a probability, but against a choice of the rule set; ranked, and marked as disputed."""
        return "unaudited" if self.audit is None or self.mismatch else STATUS[self.audit.verdict]

    @property
    def label(self) -> str:
        if self.audit is None:
            return "not audited"
        return (
            "audit does not count"
            if self.mismatch
            else f"{self.audit.verdict} ({self.audit.level})"
        )

    @property
    def reasons(self) -> list[str]:
        """Findings as heavy as the verdict, or why the audit does not count, cut to what a table cell can hold."""
        findings = [] if self.audit is None or self.mismatch else audit_findings(self.audit)
        heavy = [
            f.removeprefix(f"{self.audit.verdict} ")
            for f in findings
            if f.startswith(self.audit.verdict)
        ]
        heavy += [self.mismatch] if self.mismatch else []
        return [f if len(f) <= REASON_LENGTH else f[: REASON_LENGTH - 1] + "…" for f in heavy]

    @property
    def board(self) -> str:
        data = self.submission.data
        return (
            f"{self.track}, corpus {data.corpus} {data.version[:12]}"
            if data
            else f"{self.track}, corpus not stated"
        )

    @property
    def seeds(self) -> int | None:
        """Number of seeds behind the headline; None where the author states none."""
        return len(self.submission.seeds) or None

    @property
    def neural(self) -> float | None:
        values = [row.neural_val_bpb for row in self.submission.seed_results.values()]
        return mean(values) if values and None not in values else None

    def largest(self, name: str) -> float | None:
        return max(
            (
                v
                for row in self.submission.seed_results.values()
                if (v := getattr(row, name)) is not None
            ),
            default=None,
        )

    @cached_property
    def logs(self) -> list[Log]:
        named = [row.log for row in self.submission.seed_results.values() if row.log]
        paths = [self.folder / name for name in named] or sorted(self.folder.glob("*.log"))
        return [parse_log(path) for path in paths]


def collect(records: Path) -> list[Entry]:
    """All records below records/track_*/: within a board the audited ones, then those without an audit that counts, then the rejected ones,
    best score first. Raises UserError for a broken one."""
    folders = [
        path.parent
        for path in sorted(records.glob(f"track_*/*/{SUBMISSION_FILE}"))
        if not path.parent.name.startswith(".")
    ]
    entries = []
    for folder in folders:
        submission = load_submission(folder)
        track = folder.parent.name
        if submission.track not in (None, track):
            raise UserError(
                f"{folder}: lies in {track} but states {submission.track}; move the folder or pack it again"
            )
        entries.append(Entry(folder, track, submission, read_audit(folder)))
    sizes = {entry.board: sum(other.board == entry.board for other in entries) for entry in entries}
    group = {status: i for i, status in enumerate(UNRANKED, 1)}
    return sorted(
        entries,
        key=lambda e: (
            -sizes[e.board],
            e.board,
            group.get(e.status, 0),
            e.submission.val_bpb,
            e.folder.name,
        ),
    )


def generate(root: Path, entries: list[Entry]) -> dict[Path, str]:
    """Every generated file with the text it should hold. Raises UserError when the root README lacks its markers."""
    records = root / "records"
    return {
        records / "README.md": records_readme(entries),
        records / "index.html": page(entries),
        records / "schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        root / "README.md": root_readme(root / "README.md", entries),
    }


def boards(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Entries by board, in the order of `entries`."""
    out: dict[str, list[Entry]] = {}
    for entry in entries:
        out.setdefault(entry.board, []).append(entry)
    return out


def table(entries: list[Entry], prefix: str) -> str:
    """Markdown table; links start with `prefix`. Only audited records have a rank; rejected ones are struck through and carry the reason."""
    lines = [
        "| # | val_bpb | record | parameters | code + artifact, bytes | training, s | evaluation, s | author | date | audit |",
        "|---:|---:|---|---:|---:|---:|---:|---|---|---|",
    ]
    rank = 0
    for entry in entries:
        s = entry.submission
        spread = f" ± {s.val_bpb_std:.5f}" if s.val_bpb_std is not None else ""
        seeds = f" (n = {entry.seeds})" if entry.seeds else ""
        score, name = (
            f"{s.val_bpb:.5f}{spread}{seeds}",
            f"[{_cell(s.name)}]({prefix}{entry.track}/{entry.folder.name}/)",
        )
        if entry.status == "rejected":
            score, name = f"~~{score}~~", f"~~{name}~~"
        rank += entry.status not in UNRANKED
        place = "–" if entry.status in UNRANKED else str(rank)
        name += f"<br>{_cell(s.blurb)}" if s.blurb else ""
        numbers = [
            _number(entry.largest("parameters")),
            _number(s.bytes_total),
            _number(entry.largest("train_s")),
            _number(entry.largest("eval_s")),
        ]
        verdict = _cell(
            "; ".join([entry.label, *entry.reasons]) if entry.status != "accepted" else entry.label
        )
        lines.append(
            "| "
            + " | ".join(
                [place, score, name, *numbers, _cell(s.author or "–"), str(s.date or "–"), verdict]
            )
            + " |"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _cell(text: str) -> str:
    """Text of others for a table cell: no HTML (so no marker of ours), no brackets of a link, no second cell."""
    return re.sub(r"[\\|\[\]]", r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))


def records_readme(entries: list[Entry]) -> str:
    parts = [
        "# Records",
        "Generated by `python -m eval board` from the `submission.json`, logs and `audit.json` of every folder; do not edit. "
        "[index.html](index.html) shows the same with charts, [schema.json](schema.json) describes `submission.json`.",
        "Bits per byte, lower is better, mean ± standard deviation over n seeds; seconds are those of the slowest seed. "
        "Scores of different corpus versions are not comparable and have boards of their own. Only audited records have a rank.",
    ]
    for board, members in boards(entries).items():
        track, _, corpus = board.partition(", ")
        title = TRACKS[track].title if track in TRACKS else "unknown track"
        scale = next(
            (
                e.submission.data
                for e in members
                if e.submission.data and e.submission.data.xz_bytes
            ),
            None,
        )
        parts += [
            f"## {track}: {title}",
            f"{_cell(corpus).capitalize()}."
            + (f" `xz -9e`: {bits_per_byte(scale):.4f} bits per byte." if scale else ""),
        ]
        parts.append(table(members, ""))
    if not entries:
        parts.append("No records yet.")
    return "\n\n".join(parts) + "\n"


def root_readme(path: Path, entries: list[Entry]) -> str:
    """The root README with the text between its markers replaced by one table per board, nothing else touched."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.rpartition(END)
    if not (begin and end):
        raise UserError(
            f"{path}: expected the markers {BEGIN} and {END}, found none; put them where the table of records belongs"
        )
    tables = [
        f"`{_cell(board)}`\n\n{table(members, 'records/')}"
        for board, members in boards(entries).items()
    ]
    return f"{before}{BEGIN}\n" + ("\n\n".join(tables) or "No records yet.") + f"\n{END}{after}"


def page(entries: list[Entry]) -> str:
    """The page as one HTML text: template, chart library and data."""
    template = (ASSETS / "board.html").read_text(encoding="utf-8")
    chart = (ASSETS / f"chart-{CHART_VERSION}.umd.min.js").read_text(encoding="utf-8").strip()
    # "<" can begin a closing script tag inside a record's name; its escape means the same to JSON.
    data = json.dumps(
        [page_row(entry) for entry in entries], ensure_ascii=False, separators=(",", ":")
    ).replace("<", "\\u003c")
    values = {"CHART_VERSION": CHART_VERSION, "DATA": data, "CHART_JS": chart}
    return re.sub(
        r"@@([A-Z_]+)@@", lambda mark: values[mark[1]], template
    )  # one pass: a record may be called @@DATA@@


def page_row(entry: Entry) -> dict[str, Any]:
    s = entry.submission
    return {
        "id": f"{entry.track}/{entry.folder.name}",
        "board": entry.board,
        "name": s.name,
        "blurb": s.blurb,
        "author": s.author,
        "github": s.github_id,
        "date": s.date.isoformat() if s.date else None,
        "bpb": s.val_bpb,
        "sd": s.val_bpb_std,
        "n": entry.seeds,
        "neural": entry.neural,
        "bytes": s.bytes_total,
        "train": entry.largest("train_s"),
        "eval": entry.largest("eval_s"),
        "status": entry.status,
        "label": entry.label,
        "reasons": entry.reasons,
        "href": f"{entry.track}/{entry.folder.name}/README.md",
        "curves": [curve(log) for log in entry.logs if log.steps],
    }


def curve(log: Log) -> dict[str, Any]:
    """Training and validation points as [step, seconds, nats per token]; training thinned to CURVE_POINTS, first and last kept."""
    train = [step for step in log.steps if step.train_loss is not None]
    validation = [step for step in log.steps if step.val_loss is not None]
    return {
        "seed": log.seed,
        "train": [_point(step, step.train_loss) for step in thin(train, CURVE_POINTS)],
        "val": [_point(step, step.val_loss) for step in thin(validation, CURVE_POINTS)],
    }


def _point(step: Step, loss: float) -> list[float | None]:
    return [step.step, step.train_s, loss]


def thin(points: list[Step], limit: int) -> Iterable[Step]:
    """At most `limit` points, evenly spaced by index, ends included."""
    if len(points) <= limit:
        return points
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]
