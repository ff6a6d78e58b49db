"""`python -m eval check`: does the evidence in a record folder support what the record says? Reads files only, runs nothing of the record.

Works on folders made by `pack` and on any public one: what a foreign format cannot show is CANNOT-TELL, never PASS. Each verdict carries the
lines that prove it. A passing check says that the papers agree with each other; whether the score is a probability is `audit`'s question.
"""

import argparse
import hashlib
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from eval import pack, schema
from eval.bytes import KNOWN_EXPORTS, check_fineweb_bytes
from eval.compare import Side, compare_sides, comparison_rules
from eval.errors import UserError
from eval.logs import Fact, Log, Score, other_machine, parse_log
from eval.report import AuditReport, mismatch
from eval.schema import CODE_FILE, SUBMISSION_FILE, TRACKS, Strict, Submission

CONTEST_FIELDS = (
    "author",
    "github_id",
    "name",
    "blurb",
    "date",
    "val_loss",
    "val_bpb",
    "bytes_total",
    "bytes_code",
)
SIZE_FILE = CODE_FILE + ".size"  # stands for the script where a folder is kept as data only
FOREIGN_CODE = re.compile(
    r".*\.(py|pyc|so|c|cc|cpp|cu|rs|js|sh|pyx|pth?|bin|npz|npy|model|zst|xz|br|gz|7z|zip)"
)
MAX_LOG_IN_GIT = 1_000_000


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    CANNOT_TELL = "CANNOT-TELL"


class Evidence(Strict):
    """A line that proves a verdict; `line` is 1-based, None for a whole file."""

    file: str
    line: int | None = None
    text: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.text}" if self.text else place


class Check(Strict):
    name: str
    verdict: Verdict
    detail: str
    evidence: list[Evidence] = Field(default_factory=list)


class Report(Strict):
    """All checks of one folder; `verdict` is the worst of them."""

    folder: str
    name: str | None
    verdict: Verdict
    checks: list[Check]


@dataclass
class Record:
    """A folder as read once for all checks. `logs` holds each distinct log once, keyed by file name."""

    folder: Path
    submission: Submission | None
    stated: dict[str, Any]
    json_lines: list[str]
    logs: dict[str, Log]
    duplicates: dict[str, str]
    code: bytes | None
    shipped_size: int | None
    problem: str | None = None
    with_audit: bool = False
    audit: AuditReport | None = None
    audit_problem: str | None = None
    by_seed: dict[int, Log] = field(default_factory=dict)

    @property
    def track(self) -> str | None:
        """Stated track, else the 10-minute one where the logs show its clock."""
        if self.submission and self.submission.track:
            return self.submission.track
        caps = [log.number("config.max_wallclock_seconds") for log in self.logs.values()]
        return "track_10min_16mb" if caps and all(cap == 600 for cap in caps) else None

    def say(self, key: str, seed: str | None = None) -> Evidence:
        """The line of submission.json that states a key, inside one seed's block where given."""
        begin = 0
        if seed is not None:
            begin = next(
                (
                    i
                    for i, text in enumerate(self.json_lines)
                    if re.match(rf'\s*"\s*(?:seed[_ -]?)?{re.escape(seed)}\s*"\s*:', text)
                ),
                0,
            )
        for i, text in enumerate(self.json_lines[begin:], begin):
            if f'"{key}"' in text:
                return Evidence(file=SUBMISSION_FILE, line=i + 1, text=_short(text))
        return Evidence(file=SUBMISSION_FILE)

    def final_scores(self) -> dict[str, Score]:
        return {name: log.final for name, log in self.logs.items() if log.final is not None}


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "check",
        help="check the evidence in record folders",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="RECORD",
        help="also test the improvement over this record for significance",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON list of reports instead of text"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    reports = [
        check_folder(folder, with_audit=True, against=args.against) for folder in args.folders
    ]
    if args.json:
        print(
            json.dumps(
                [report.model_dump(mode="json") for report in reports], indent=2, ensure_ascii=False
            )
        )
    else:
        print("\n\n".join(format_report(report) for report in reports))
    return int(any(report.verdict is Verdict.FAIL for report in reports))


def check_folder(folder: Path, with_audit: bool = False, against: Path | None = None) -> Report:
    """All checks of one folder, in the order of CHECKS, and the significance of its improvement over `against`. Without `with_audit` an
    earlier audit.json decides nothing, so that an audit may rest on these checks.

    Raises UserError when it is no folder; everything that is wrong inside it becomes a verdict."""
    record = load_record(folder)
    record.with_audit = with_audit
    checks = [
        outcome
        for check in (*CHECKS, *([check_audit] if with_audit else []))
        for outcome in check(record)
    ]
    if against is not None:
        checks.append(check_significance(record, load_record(against)))
    order = [Verdict.FAIL, Verdict.CANNOT_TELL, Verdict.PASS]
    worst = min((check.verdict for check in checks), key=order.index)
    name = record.submission.name if record.submission else None
    return Report(folder=str(folder), name=name, verdict=worst, checks=checks)


def format_report(report: Report) -> str:
    counts = {verdict: sum(c.verdict is verdict for c in report.checks) for verdict in Verdict}
    lines = [report.folder, f"  {report.name or 'unreadable record'}"]
    for check in report.checks:
        lines.append(f"  {check.verdict:<12}{check.name:<14}{check.detail}")
        lines += [f"{'':<28}| {evidence}" for evidence in check.evidence]
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "\n".join([*lines, f"  {tally}: {report.verdict}"])


def load_record(folder: Path) -> Record:
    """Read everything a folder holds. Raises UserError when it does not exist or a log is unreadable."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected a record folder, found {'a file' if folder.exists() else 'nothing'}"
        )
    submission, problem = None, None
    try:
        submission = schema.load_submission(folder)
    except UserError as error:
        problem = str(error)
    path = folder / SUBMISSION_FILE
    text = path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError):
        stated = {}
    logs, duplicates, seen = {}, {}, {}
    # Names that give a seed come first, so that a nameless copy is the one called duplicate.
    for log_path in sorted(
        filter(Path.is_file, folder.glob("*.log")),
        key=lambda p: (_seed_in_name(p.name) is None, p.name),
    ):
        log = parse_log(log_path)
        if log.sha256 in seen:
            duplicates[log_path.name] = seen[log.sha256]
        else:
            seen[log.sha256] = log_path.name
            logs[log_path.name] = log
    script, size = folder / CODE_FILE, folder / SIZE_FILE
    code = script.read_bytes() if script.is_file() else None
    counted = size.read_text(errors="replace").strip() if size.is_file() else ""
    shipped = (
        len(code)
        if code is not None
        else int(counted)
        if re.fullmatch(r"\d{1,12}", counted)
        else None
    )
    record = Record(
        folder,
        submission,
        stated if isinstance(stated, dict) else {},
        text.splitlines(),
        logs,
        duplicates,
        code,
        shipped,
        problem,
    )
    try:
        record.audit = pack.read_audit(folder)
    except UserError as error:
        record.audit_problem = str(error)
    for log in logs.values():
        if log.seed is not None:
            record.by_seed.setdefault(log.seed, log)
    return record


# --- Small helpers ---


def _ok(name: str, detail: str, *evidence: Evidence) -> Check:
    return Check(name=name, verdict=Verdict.PASS, detail=detail, evidence=list(evidence))


def _fail(name: str, detail: str, *evidence: Evidence) -> Check:
    return Check(name=name, verdict=Verdict.FAIL, detail=detail, evidence=list(evidence))


def _unknown(name: str, detail: str, *evidence: Evidence) -> Check:
    return Check(name=name, verdict=Verdict.CANNOT_TELL, detail=detail, evidence=list(evidence))


def _short(text: str, width: int = 150) -> str:
    text = text.strip().rstrip(",")
    return text if len(text) <= width else text[: width - 1] + "…"


def _line(log: Log, source: Fact | Score) -> Evidence:
    return Evidence(file=log.path.name, line=source.line, text=_short(source.text))


def _seed_in_name(name: str) -> int | None:
    match = re.search(r"seed_?(\d+)", name)
    return int(match[1]) if match else None


def decimals(value: float) -> int:
    """Digits after the point that a JSON number shows; trailing zeros are lost in JSON, so at least 4 are taken as meant."""
    return max(4, _shown(value))


def _shown(value: float) -> int:
    return len(f"{value:.15g}".partition(".")[2])


def agrees(stated: float, computed: float, least: int | None = None) -> bool:
    """Equal to the last digit stated, correctly rounded (`least` overrides how many digits count)."""
    digits = decimals(stated) if least is None else least
    return abs(stated - computed) <= 0.5 * 10.0**-digits + 1e-12


# --- Checks: files and JSON ---


def check_files(record: Record) -> Iterable[Check]:
    missing = [
        name
        for name in ("README.md", CODE_FILE, SUBMISSION_FILE)
        if not (record.folder / name).is_file()
    ]
    if not record.logs:
        missing.append("a training log (*.log)")
    data_only = record.code is None and record.shipped_size is not None
    absent_by_design = {"README.md", CODE_FILE} if data_only else set()
    broken = [name for name in missing if name not in absent_by_design]
    if broken:
        yield _fail("files", f"missing: {', '.join(broken)}")
    elif missing:
        yield _unknown(
            "files",
            f"kept as data only: {', '.join(missing)} not here",
            Evidence(file=SIZE_FILE, text=f"{record.shipped_size} bytes"),
        )
    else:
        yield _ok("files", f"README.md, {CODE_FILE}, {SUBMISSION_FILE}, {len(record.logs)} log(s)")
    helpers = [
        p.name
        for p in sorted(record.folder.rglob("*"))
        if p.is_file() and FOREIGN_CODE.fullmatch(p.name) and "__pycache__" not in p.parts
    ]
    uncounted = [name for name in helpers if not pack.PACKED_NAMES.fullmatch(name)]
    if uncounted:
        packed = record.submission is not None and record.submission.origin == "packed"
        yield (_fail if packed else _unknown)(
            "uncounted",
            f"further files that a run could load, in no byte count here: {', '.join(uncounted)}",
        )
    large = [name for name in record.logs if (record.folder / name).stat().st_size > MAX_LOG_IN_GIT]
    if large:
        yield _fail(
            "log_size",
            f"logs over {MAX_LOG_IN_GIT:,} bytes do not belong in git: {', '.join(large)}",
        )


def check_json(record: Record) -> Iterable[Check]:
    if record.submission is None:
        yield _fail("json", record.problem)
        return
    missing = [
        name
        for name in CONTEST_FIELDS
        if record.stated.get(name) in (None, "")
        and (name != "blurb" or "blurb" not in record.stated)
    ]
    unnamed = ", ".join(record.submission.unknown)
    if missing:
        yield _fail(
            "json",
            f"the contest asks for {', '.join(missing)}; not stated",
            Evidence(file=SUBMISSION_FILE),
        )
    else:
        yield _ok(
            "json",
            "valid, all nine contest fields"
            + (f"; keys without a name in our schema: {unnamed}" if unnamed else ""),
        )
    match = re.match(r"(\d{4}-\d{2}-\d{2})", record.folder.name)
    date = record.submission.date
    if match and date and str(date) != match[1]:
        # A public folder is named by whoever merged it, which need not be the day of the run.
        verdict = _unknown if record.submission.origin == "imported" else _fail
        yield verdict(
            "date", f"the folder says {match[1]}, submission.json {date}", record.say("date")
        )
    elif match and date:
        yield _ok("date", f"{date} in folder name and submission.json", record.say("date"))
    else:
        yield _unknown("date", "folder name or submission.json states no date")
    if record.submission.origin == "packed":
        parent = schema.track_of(record.folder)
        if not schema.FOLDER_PATTERN.fullmatch(record.folder.name):
            yield _fail("folder", f"expected DATE_slug-kebab-case, found {record.folder.name}")
        elif parent is not None and parent != record.submission.track:
            yield _fail(
                "folder", f"lies in {parent}, states {record.submission.track}", record.say("track")
            )
        else:
            yield _ok("folder", f"{record.submission.track}, name as required")


def check_logs(record: Record) -> Iterable[Check]:
    for name, log in record.logs.items():
        if log.problems:
            yield _fail("log", f"{name}: {log.problems[0]}", Evidence(file=name))
    clean = [name for name, log in record.logs.items() if not log.problems]
    if clean:
        copies = "".join(
            f"; {name} is a byte-identical copy of {other}"
            for name, other in record.duplicates.items()
        )
        yield _ok("log", f"{len(clean)} complete log(s): {', '.join(clean)}{copies}")


def check_seeds(record: Record) -> Iterable[Check]:
    if not record.logs:
        return
    wrong = [
        (n, log)
        for n, log in record.logs.items()
        if log.seed is not None and _seed_in_name(n) not in (None, log.seed)
    ]
    for name, log in wrong:
        yield _fail(
            "seeds", f"{name} is a log of seed {log.seed}", _line(log, log.facts["result.seed"])
        )
    silent = [name for name, log in record.logs.items() if log.seed is None]
    if silent:
        yield _unknown("seeds", f"no seed in {', '.join(silent)}")
    if len(record.by_seed) < len(record.logs) - len(silent):
        yield _fail(
            "seeds",
            f"{len(record.logs)} different logs, but only the seeds {sorted(record.by_seed)}: one seed was run more than once",
        )
    stated = record.submission.seeds if record.submission else []
    logged = sorted(record.by_seed)
    if stated and (lost := sorted(set(stated) - set(logged))):
        yield _fail("seeds", f"no log for seed {', '.join(map(str, lost))}", record.say("seeds"))
    elif stated and (extra := sorted(set(logged) - set(stated))):
        yield _fail(
            "seeds",
            f"log of seed {', '.join(map(str, extra))}, which submission.json leaves out",
            record.say("seeds"),
        )
    elif not wrong and not silent:
        said = "as stated" if stated else "submission.json names none"
        lines = [_line(log, log.facts["result.seed"]) for log in record.logs.values()]
        yield _ok("seeds", f"{', '.join(map(str, logged))} ({said})", *lines)


# --- Checks: scores ---


def check_headline(record: Record) -> Iterable[Check]:
    """The headline is the mean over the stated seeds, else over all logs: to the last digit stated, or at least to 4 decimals."""
    scores = record.final_scores()
    if record.submission is None or not scores:
        yield _unknown("headline", "no submission.json or no log with a final score")
        return
    stated = record.submission.val_bpb
    chosen = {
        name: s for name, s in scores.items() if record.logs[name].seed in record.submission.seeds
    } or scores
    mean = statistics.fmean(score.val_bpb for score in chosen.values())
    lines = [
        record.say("val_bpb"),
        *(_line(record.logs[name], score) for name, score in scores.items()),
    ]
    candidates = {name: record.logs[name].candidates for name in chosen}
    if any(len(found) > 1 for found in candidates.values()) and _within(
        stated, candidates.values()
    ):
        several = "; ".join(
            f"{name} {', '.join(f'{s.val_bpb:.8f}' for s in found)}"
            for name, found in candidates.items()
            if len(found) > 1
        )
        every = [
            _line(record.logs[name], score) for name, found in candidates.items() for score in found
        ]
        yield _unknown(
            "headline",
            f"val_bpb {stated}: a log prints several scores that could be its result: {several}",
            lines[0],
            *every,
        )
        return
    if agrees(stated, mean):
        what = (
            f"mean of {len(chosen)} logs, {mean:.8f}"
            if len(chosen) > 1
            else "the log's final score"
        )
        yield _ok("headline", f"val_bpb {stated} is {what}", *lines)
        return
    matching = [name for name, score in scores.items() if agrees(stated, score.val_bpb)]
    if matching:
        best = min(scores, key=lambda name: scores[name].val_bpb)
        choice = "the best of " if best in matching else "one of "
        detail = f"val_bpb {stated} is {matching[0]} alone, {choice}{len(scores)} logs; their mean is {mean:.8f}"
        yield _fail("headline", detail, *lines)
    elif round(stated, 4) == round(mean, 4) and record.submission.origin == "imported":
        yield _ok(
            "headline",
            f"val_bpb {stated} is the mean {mean:.8f} to 4 decimals; the further ones come from rounded parts",
            *lines,
        )
    else:
        yield _fail(
            "headline",
            f"val_bpb {stated} is neither the mean {mean:.8f} nor any log's final score",
            *lines,
        )


def _within(stated: float, candidates: Iterable[list[Score]]) -> bool:
    """Whether some choice among the logs' candidates could have this mean."""
    low, high = (
        statistics.fmean(end(score.val_bpb for score in found) for found in candidates)
        for end in (min, max)
    )
    return low <= stated <= high or agrees(stated, low) or agrees(stated, high)


def check_headline_loss(record: Record) -> Iterable[Check]:
    """The stated loss belongs to the same score as the stated bpb."""
    stated = record.submission.val_loss if record.submission else None
    scores = record.final_scores()
    if stated is None or not scores:
        yield _unknown(
            "val_loss",
            "submission.json states no val_loss" if record.submission else "no submission.json",
        )
        return
    if unclear := _ambiguous(record):
        yield _unknown(
            "val_loss",
            f"{unclear} prints several scores that could be its result",
            record.say("val_loss"),
        )
        return
    paired = {name: partner_loss(record.logs[name], score) for name, score in scores.items()}
    evidence = [record.say("val_loss")]
    if None not in paired.values():
        evidence += [_line(record.logs[name], score) for name, score in paired.items()]
        losses = [score.val_loss for score in paired.values()]
        mean = statistics.fmean(losses)
        if agrees(stated, mean):
            yield _ok(
                "val_loss",
                f"{stated} is the mean of the final losses, {mean:.8f}"
                if len(losses) > 1
                else f"{stated} as logged",
                *evidence,
            )
        elif any(agrees(stated, loss) for loss in losses):
            yield _fail(
                "val_loss",
                f"{stated} is one seed's loss; the mean of the final losses is {mean:.8f}",
                *evidence,
            )
        else:
            yield _fail(
                "val_loss", f"{stated}, but the logs' final losses average {mean:.8f}", *evidence
            )
        return
    printed = [
        s
        for log in record.logs.values()
        for s in log.scores
        if s.val_loss is not None and s.val_bpb > 0
    ]
    evidence += [_line(record.logs[name], score) for name, score in scores.items()]
    ratio = statistics.median(s.val_loss / s.val_bpb for s in printed) if printed else None
    implied = (
        f"; at these logs' {ratio:.5f} nats per bpb it means {stated / ratio:.5f} bpb"
        if ratio
        else ""
    )
    yield _fail(
        "val_loss",
        f"{stated} is printed beside no final score{implied}, the headline says {record.submission.val_bpb}",
        *evidence,
    )


def _ambiguous(record: Record) -> str | None:
    """The first log that does not say which of its scores is the result."""
    return next((name for name, log in record.logs.items() if log.ambiguous), None)


def partner_loss(log: Log, final: Score) -> Score | None:
    """The score line with a loss that belongs to the final bpb: itself, or its twin with the same bpb to 8 decimals."""
    if final.val_loss is not None:
        return final
    return next(
        (
            s
            for s in log.scores
            if s.val_loss is not None and abs(s.val_bpb - final.val_bpb) < 5.1e-9
        ),
        None,
    )


def check_seed_results(record: Record) -> Iterable[Check]:
    """Every number that submission.json states for a seed, against that seed's log."""
    if record.submission is None or not record.submission.seed_results:
        return
    wrong, unproven, count = [], [], 0
    for seed, row in record.submission.seed_results.items():
        log = _log_of(record, seed)
        for name, value in row.model_dump(exclude_none=True).items():
            if not isinstance(value, int | float):
                continue
            proof = _logged(log, name) if log else None
            if proof is None:
                unproven.append(f"{name} of seed {seed}" if seed.isdigit() else name)
                continue
            count += 1
            computed, line = proof
            if not agrees(
                value,
                computed,
                decimals(value) if name.endswith(("loss", "bpb", "nats")) else _shown(value),
            ):
                stated = (
                    record.say(name, seed)
                    if seed.isdigit()
                    else record.say(next((k for k, v in record.stated.items() if v == value), name))
                )
                wrong.append(
                    (
                        f"seed {seed}: {name} {value:.10g}, its log says {computed:.10g}",
                        [stated, _line(log, line)],
                    )
                )
    for detail, evidence in wrong:
        yield _fail("seed_results", detail, *evidence)
    if unproven:
        yield _unknown("seed_results", f"in no log: {', '.join(unproven)}")
    if count and not wrong:
        yield _ok("seed_results", f"{count} stated values agree with their logs to the last digit")


def _log_of(record: Record, seed: str) -> Log | None:
    if seed.isdigit():
        return record.by_seed.get(int(seed))
    return next(iter(record.logs.values())) if len(record.logs) == 1 else None


def _logged(log: Log, name: str) -> tuple[float, Fact | Score] | None:
    """(value, line) that a log states for a field of SeedResult."""
    final = log.final
    if final is None:
        return None
    if name in ("val_bpb", "val_loss") and log.ambiguous:
        return None
    if name == "val_bpb":
        return final.val_bpb, final
    if name == "val_loss":
        partner = partner_loss(log, final)
        return (partner.val_loss, partner) if partner else None
    if name == "step_avg_ms" and log.number("result.train_s") and log.number("result.steps"):
        return 1000 * log.number("result.train_s") / log.number("result.steps"), log.facts[
            "result.steps"
        ]
    if name in ("pre_quant_val_loss", "pre_quant_val_bpb") and not log.native:
        return _pre_quant(log, name.removeprefix("pre_quant_"))
    prefixes = {
        "parameters": "model.",
        "pre_quant_val_loss": "final.",
        "pre_quant_val_bpb": "final.",
    }
    prefix = "neural." if name.startswith("neural_") else prefixes.get(name, "result.")
    fact = log.facts.get(prefix + name.removeprefix("neural_"))
    value = log.number(prefix + name.removeprefix("neural_"))
    return (value, fact) if fact and value is not None else None


def _pre_quant(log: Log, name: str) -> tuple[float, Any] | None:
    """Public logs print the unquantised score as the last validation step, 4 decimals."""
    last = next((step for step in reversed(log.steps) if step.val_loss is not None), None)
    return (getattr(last, name), last) if last and getattr(last, name) is not None else None


AGGREGATE = re.compile(r"(?:train_)?(?P<field>[a-z_]+?)_(?P<kind>mean|max|min|std)")
AGGREGATE_FIELDS = {"steps": "steps", "eval_time_s": "eval_s", "eval_time": "eval_s"}
KINDS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "min": min,
    "std": statistics.stdev,
}


def check_aggregates(record: Record) -> Iterable[Check]:
    """Standard deviations, means, maxima and claimed differences, recomputed from the logs."""
    if record.submission is None:
        return
    s = record.submission
    stated = {
        k: v
        for k, v in (("val_bpb_std", s.val_bpb_std), ("val_loss_std", s.val_loss_std))
        if v is not None
    } | s.stated
    good, n = [], len(record.logs)
    for key, value in stated.items():
        computed = _aggregate(record, key)
        if computed is None:
            yield _unknown(
                "aggregates", f"{key} {value:g}: nothing in the folder proves it", record.say(key)
            )
        elif agrees(value, computed, _shown(value)) or _delta_agrees(record, key, value, computed):
            good.append(f"{key} {value:.10g}")
        elif key.endswith("_std") and agrees(
            value, computed * math.sqrt((n - 1) / n), _shown(value)
        ):
            good.append(f"{key} {value:.10g} (divides by n; the sample value is {computed:.5f})")
        else:
            yield _fail(
                "aggregates", f"{key} {value:.10g}, recomputed {computed:.10g}", record.say(key)
            )
    if good:
        yield _ok("aggregates", f"recomputed: {', '.join(good)}")


def _aggregate(record: Record, key: str) -> float | None:
    s = record.submission
    base = s.stated.get("comparison_baseline_bpb")
    if key.startswith("delta_") and base is not None:
        bits = s.val_bpb - base
        return (
            bits * s.val_loss / s.val_bpb
            if key.endswith("nats") and s.val_loss
            else bits
            if key.endswith("bpb")
            else None
        )
    if (match := AGGREGATE.fullmatch(key)) is None:
        return None
    name = AGGREGATE_FIELDS.get(match["field"], match["field"])
    if name == "artifact_bytes" and all(
        row.artifact_bytes is None for row in s.seed_results.values()
    ):
        name = "bytes_total"  # the author's word for it, see schema._settle_totals
    values = [proof[0] for log in record.logs.values() if (proof := _logged(log, name))]
    enough = len(values) == len(record.logs) and len(values) >= (2 if match["kind"] == "std" else 1)
    return KINDS[match["kind"]](values) if enough else None


def _delta_agrees(record: Record, key: str, value: float, computed: float) -> bool:
    """Differences in nats are products of rounded figures: half a unit of the stated bpb difference is allowed to propagate."""
    bits = record.submission.stated.get("delta_vs_leaderboard_bpb")
    if not key.startswith("delta_") or bits is None or not key.endswith("nats"):
        return False
    ratio = record.submission.val_loss / record.submission.val_bpb
    return abs(value - computed) <= ratio * 0.5 * 10.0 ** -decimals(bits) + 0.5 * 10.0 ** -decimals(
        value
    )


# --- Checks: bytes ---


def check_code(record: Record) -> Iterable[Check]:
    """Size and identity of the script: file, submission.json and every log."""
    stated = record.submission.bytes_code if record.submission else None
    shipped = record.shipped_size
    logged = {
        name: log
        for name, log in record.logs.items()
        if log.integer("result.code_bytes") is not None
    }
    evidence = [_line(log, log.facts["result.code_bytes"]) for log in logged.values()]
    evidence += [
        _line(log, log.facts["result.code_bytes_packed"])
        for log in logged.values()
        if "result.code_bytes_packed" in log.facts
    ]
    if stated is not None:
        evidence.insert(0, record.say("bytes_code"))
    if shipped is None:
        yield _unknown("code_bytes", f"no {CODE_FILE} to measure", *evidence)
    else:
        source = Evidence(
            file=CODE_FILE if record.code is not None else SIZE_FILE, text=f"{shipped} bytes"
        )
        sizes = {log.integer("result.code_bytes") for log in logged.values()} | (
            {stated} if stated is not None else set()
        )
        if not sizes:
            yield _unknown(
                "code_bytes", f"the script has {shipped:,} bytes; nobody states a size", source
            )
        elif sizes == {shipped}:
            yield _ok("code_bytes", f"{shipped:,} bytes everywhere", source, *evidence)
        else:
            others = ", ".join(f"{size:,}" for size in sorted(sizes - {shipped}))
            yield _fail(
                "code_bytes",
                f"the script has {shipped:,} bytes, stated or logged {others}",
                source,
                *evidence,
            )
    if record.code is None:
        yield _unknown("compiles", f"no {CODE_FILE} here")
        return
    try:
        compile(record.code, CODE_FILE, "exec", dont_inherit=True)
        yield _ok("compiles", f"{CODE_FILE} compiles")
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # the last two: nesting that no script needs
        yield _fail(
            "compiles",
            f"{CODE_FILE}: {error}",
            Evidence(file=CODE_FILE, line=getattr(error, "lineno", None)),
        )
    yield from _check_source(record)


def _check_source(record: Record) -> Iterable[Check]:
    native = {name: log for name, log in record.logs.items() if log.native}
    if not native:
        yield _unknown("source", "the logs embed no source, so nothing ties them to this script")
        return
    sha256 = hashlib.sha256(record.code).hexdigest()
    for name, log in native.items():
        if log.source != record.code:
            fact = log.facts.get("source.sha256")
            detail = (
                f"{name} was written by another script than {CODE_FILE} (sha256 {sha256[:12]}…)"
            )
            yield _fail("source", detail, *([_line(log, fact)] if fact else []))
    if all(log.source == record.code for log in native.values()):
        lines = [_line(log, log.facts["source.sha256"]) for log in native.values()]
        yield _ok("source", f"{CODE_FILE} is byte for byte what {len(native)} log(s) embed", *lines)
    stated = record.submission.code_sha256 if record.submission else None
    if stated and stated != sha256:
        yield _fail(
            "source",
            f"{CODE_FILE} has sha256 {sha256[:12]}…, submission.json states {stated[:12]}…",
            record.say("code_sha256"),
        )


def check_bytes(record: Record) -> Iterable[Check]:
    """Total = artifact + code for every log, the stated total covers them, and the cap holds for the script that is shipped."""
    rows = [
        (n, log)
        for n, log in record.logs.items()
        if log.integer("result.artifact_bytes") and log.integer("result.bytes_total")
    ]
    stated = record.submission.bytes_total if record.submission else None
    if not rows:
        yield _unknown("bytes_total", "no log states artifact and total bytes")
        return
    totals = {name: log.integer("result.bytes_total") for name, log in rows}
    sums_wrong = [
        (n, log)
        for n, log in rows
        if totals[n] - log.integer("result.artifact_bytes") not in _logged_code_sizes(log)
    ]
    for name, log in sums_wrong:
        parts = (
            f"{log.integer('result.artifact_bytes'):,} + {log.integer('result.code_bytes') or 0:,}"
        )
        yield _fail(
            "bytes_total",
            f"{name}: total {totals[name]:,} is not artifact + code ({parts})",
            _line(log, log.facts["result.bytes_total"]),
        )
    lines = [_line(log, log.facts["result.bytes_total"]) for _, log in rows]
    readings = {
        max(totals.values()): "the largest log",
        round(statistics.fmean(totals.values())): "the mean of the logs",
    }
    readings |= {total: name for name, total in totals.items() if total not in readings}
    if stated is None:
        yield _fail("bytes_total", "submission.json states none", *lines)
    elif stated in readings:
        yield _ok(
            "bytes_total",
            f"{stated:,} is that of {readings[stated]}" if len(rows) > 1 else f"{stated:,}",
            record.say("bytes_total"),
            *lines,
        )
    else:
        yield _fail(
            "bytes_total",
            f"{stated:,} stated, the logs say {', '.join(f'{t:,}' for t in totals.values())}",
            record.say("bytes_total"),
            *lines,
        )
    yield from _check_cap(record, rows)


def _logged_code_sizes(log: Log) -> set[int | None]:
    return {log.integer("result.code_bytes"), log.integer("result.code_bytes_packed")}


def _check_cap(record: Record, rows: list[tuple[str, Log]]) -> Iterable[Check]:
    cap = TRACKS[record.track].bytes_cap if record.track in TRACKS else schema.Track.bytes_cap
    _, log = max(rows, key=lambda row: row[1].integer("result.artifact_bytes"))
    artifact = log.integer("result.artifact_bytes")
    evidence = [_line(log, log.facts["result.artifact_bytes"])]
    if record.shipped_size is None:
        total = max(log.integer("result.bytes_total") for _, log in rows)
        verdict = _unknown if total <= cap else _fail
        yield verdict(
            "cap",
            f"logged total {total:,} of {cap:,}; the script itself is not here to be measured",
            *evidence,
        )
        return
    evidence.append(
        Evidence(
            file=CODE_FILE if record.code is not None else SIZE_FILE,
            text=f"{record.shipped_size} bytes",
        )
    )
    total = artifact + record.shipped_size
    over = [n for n, other in rows if other.integer("result.bytes_total") > cap]
    if total <= cap and not over:
        yield _ok(
            "cap",
            f"largest artifact {artifact:,} + script {record.shipped_size:,} = {total:,} of {cap:,}",
            *evidence,
        )
    else:
        packed = log.integer("result.code_bytes_packed")
        counted = (
            f"; the log counts the script compressed, {packed:,} bytes, which is not the file"
            if packed
            else ""
        )
        detail = f"largest artifact {artifact:,} + script as shipped {record.shipped_size:,} = {total:,}, cap {cap:,}{counted}"
        yield _fail("cap", detail, *evidence)


def check_artifacts(record: Record) -> Iterable[Check]:
    """Committed artifacts against size and hash in submission.json and logs."""
    s = record.submission
    if s is None or s.origin != "packed":
        yield _unknown(
            "artifacts",
            "no artifact in the folder and no hash stated: the weights cannot be identified",
        )
        return
    if not TRACKS[s.track].commits_artifacts:
        yield _ok(
            "artifacts",
            "outside git; size and sha256 of every seed stated",
            record.say("artifact_sha256"),
        )
        return
    good = []
    for seed, row in s.seed_results.items():
        path = record.folder / (row.artifact or "")
        log = record.by_seed.get(int(seed))
        if not path.is_file():
            yield _fail(
                "artifacts",
                f"{row.artifact or f'artifact of seed {seed}'} is missing",
                record.say("artifact", seed),
            )
            continue
        weights = path.read_bytes()
        sha256 = hashlib.sha256(weights).hexdigest()
        if (len(weights), sha256) != (row.artifact_bytes, row.artifact_sha256):
            detail = f"{path.name}: {len(weights):,} bytes, sha256 {sha256[:12]}…, stated {row.artifact_bytes:,}, {row.artifact_sha256[:12]}…"
            yield _fail("artifacts", detail, record.say("artifact_sha256", seed))
        elif log is not None and log.text("artifact.sha256") != sha256:
            yield _fail(
                "artifacts",
                f"{path.name} is not what {log.path.name} wrote",
                _line(log, log.facts["artifact.sha256"]),
            )
        else:
            good.append(path.name)
    if len(good) == len(s.seed_results):
        yield _ok("artifacts", f"size and sha256 of {', '.join(good)} as stated and logged")


# --- Checks: budgets, comparability, data ---


def check_training_time(record: Record) -> Iterable[Check]:
    yield from _check_clock(
        record, "train_time", "train_seconds", "result.train_s", "export", _one_step
    )


def check_eval_time(record: Record) -> Iterable[Check]:
    yield from _check_clock(
        record, "eval_time", "eval_seconds", "result.eval_s", "eval", lambda log: 0.0
    )


def _one_step(log: Log) -> float:
    steps = log.number("result.steps")
    return log.number("result.train_s") / steps if steps else 0.0


def _check_clock(
    record: Record, name: str, budget: str, fact: str, stage: str, slack: Callable[[Log], float]
) -> Iterable[Check]:
    """The log's own clock against the limit, and what the log times outside that clock: whether that counts is a rule, not a measurement."""
    limit = getattr(TRACKS[record.track], budget) if record.track in TRACKS else None
    if record.track is None:
        yield _unknown(name, "no track stated, so no limit is known")
        return
    if limit is None:
        yield _ok(name, f"{record.track} has no limit")
        return
    fine, evidence = [], []
    for file, log in record.logs.items():
        spent = log.number(fact)
        if spent is None:
            yield _unknown(name, f"{file} states none")
            continue
        line = _line(log, log.facts[fact])
        # Validation between training and export changes no weights; the final score's own time is the evaluation clock itself.
        validations = {score.line for score in log.scores}
        inside = validations if stage == "export" else {log.facts[fact].line}
        outside = [p for p in log.phases if p.stage == stage and p.line not in inside]
        total = spent + sum(p.seconds for p in outside)
        if spent > limit + slack(log):
            yield _fail(
                name,
                f"{file}: {spent:.3f} s, limit {limit:.0f} s"
                + (" + one step" if stage == "export" else ""),
                line,
            )
        elif stage == "export" and log.resumes:
            steps = ", ".join(
                " ".join([resume.value, *(f"({change})" for change in other_machine(log, resume))])
                for resume in log.resumes
            )
            detail = f"{file}: {spent:.1f} s of {limit:.0f} s, but interrupted and resumed at step {steps}: its clock leaves out the work that was lost"
            yield _unknown(name, detail, line, *(_line(log, resume) for resume in log.resumes))
        elif total > limit + slack(log):
            detail = f"{file}: {spent:.1f} s of {limit:.0f} s on its clock, {total:.1f} s with the phases that it leaves out; what counts is a rule"
            yield _unknown(
                name,
                detail,
                line,
                *(Evidence(file=file, line=p.line, text=_short(p.text)) for p in outside),
            )
        else:
            fine.append(f"{spent:.1f}")
            evidence.append(line)
    if len(fine) == len(record.logs):
        yield _ok(
            name, f"{', '.join(fine)} s of {limit:.0f} s, other timed phases included", *evidence
        )


def check_comparable(record: Record) -> Iterable[Check]:
    """Seeds of one record share code, settings, data and machine shape; the seed alone differs."""
    names = {
        "parameters": "model.parameters",
        "world_size": "env.world_size",
        "code_bytes": "result.code_bytes",
        "torch": "env.torch",
        "training precision": "env.train_dtype",
        "dataset": "data.dataset",
        "data version": "data.version",
        "tokenizer": "data.tokenizer_sha256",
        "val_tokens": "data.val_tokens",
        "train shards": "data.train_files",
        "config": "config.sha256",
        "source": "source.sha256",
    }
    if not record.logs:
        return
    same = []
    for label, key in names.items():
        facts = {name: log.facts[key] for name, log in record.logs.items() if key in log.facts}
        values = {fact.value for fact in facts.values()}
        if len(values) > 1:
            lines = [_line(record.logs[name], fact) for name, fact in facts.items()]
            yield _fail(
                "comparable", f"the logs differ in {label}: {', '.join(sorted(values))}", *lines
            )
        elif values:
            same.append(f"{label} {next(iter(values))[:40]}")
    if len(record.logs) > 1:
        yield _ok("comparable", f"all {len(record.logs)} logs: {', '.join(same)}")
    track = TRACKS.get(record.track)
    if track and track.gpus:
        ranks = {
            name: log
            for name, log in record.logs.items()
            if log.integer("env.world_size") is not None
        }
        wrong = [log for log in ranks.values() if log.integer("env.world_size") != track.gpus]
        if wrong:
            yield _fail(
                "world_size",
                f"{record.track} is {track.gpus} GPUs",
                *(_line(log, log.facts["env.world_size"]) for log in wrong),
            )
        elif ranks:
            yield _ok(
                "world_size",
                f"{track.gpus} ranks",
                *(_line(log, log.facts["env.world_size"]) for log in ranks.values()),
            )
        else:
            yield _unknown("world_size", "no log states the number of ranks")


def check_parameters(record: Record) -> Iterable[Check]:
    counts = {
        name: log
        for name, log in record.logs.items()
        if log.integer("model.parameters") is not None
    }
    if not counts:
        yield _unknown("parameters", "no log states the number of parameters")
        return
    log = next(iter(counts.values()))
    yield _ok(
        "parameters",
        f"{log.integer('model.parameters'):,}",
        _line(log, log.facts["model.parameters"]),
    )


def check_arithmetic(record: Record) -> Iterable[Check]:
    """Native result lines: the quotients follow from their parts, and as many targets and bytes were scored as the data has."""
    good = []
    for name, log in record.logs.items():
        if not log.native or "result.nats" not in log.facts:
            continue
        nats, tokens, size = (
            log.number("result.nats"),
            log.integer("result.scored_tokens"),
            log.integer("result.scored_bytes"),
        )
        line = _line(log, log.facts["result.nats"])
        # 6 decimals of nats: the quotients are good to 5e-7 / tokens, far below the 8th decimal for any real split.
        if abs(nats / tokens - log.number("result.val_loss")) > 1.1e-8 + 1e-6 / tokens:
            yield _fail("arithmetic", f"{name}: nats / scored_tokens is {nats / tokens:.8f}", line)
        elif abs(nats / math.log(2) / size - log.number("result.val_bpb")) > 1.1e-8 + 1e-6 / size:
            yield _fail(
                "arithmetic",
                f"{name}: nats / ln 2 / scored_bytes is {nats / math.log(2) / size:.8f}",
                line,
            )
        elif (promised := log.integer("data.val_tokens")) is not None and tokens != promised - 1:
            detail = f"{name}: {tokens:,} targets scored, the validation stream of {promised:,} tokens has {promised - 1:,}"
            yield _fail("coverage", detail, line, _line(log, log.facts["data.val_tokens"]))
        else:
            good.append(line)
    if good and len(good) == len(record.logs):
        yield _ok(
            "arithmetic",
            "loss and bpb follow from nats, tokens and bytes; every target of the split is scored",
            *good,
        )


def check_derived(record: Record) -> Iterable[Check]:
    """A packed submission.json is a function of its logs: derive it again and compare every field."""
    s = record.submission
    if s is None or s.origin != "packed":
        return
    logs = [record.by_seed.get(seed) for seed in s.seeds]
    if any(log is None or log.problems for log in logs):
        yield _unknown("derived", "needs a complete log of every seed")
        return
    try:
        derived = pack.derived_fields(TRACKS[s.track], logs)
    except (UserError, ValueError) as error:
        yield _fail("derived", str(error).splitlines()[0])
        return
    derived["data"] = derived["data"].model_copy(
        update={"xz_bytes": s.data.xz_bytes}
    )  # comes from the dataset's manifest
    differing = [
        name
        for name, value in derived.items()
        if getattr(s, name) != value and name != "seed_results"
    ]
    rows = derived["seed_results"]
    differing += [
        f"{seed}.{n}"
        for seed, row in rows.items()
        for n, value in row
        if getattr(s.seed_results[seed], n) != value
    ]
    for name in differing:
        seed, _, key = name.rpartition(".")
        yield _fail("derived", f"{name} is not what the logs give", record.say(key, seed or None))
    if not differing:
        yield _ok("derived", f"submission.json is what its {len(logs)} log(s) give, field by field")


AUDIT_SECTION = re.compile(r"^## Audit$.*?(?=^## Reproduce$)", re.MULTILINE | re.DOTALL)


def check_readme(record: Record) -> Iterable[Check]:
    """Ours is rendered from submission.json and audit.json; anybody's names the headline."""
    path = record.folder / "README.md"
    s = record.submission
    if s is None or not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    if s.origin == "packed":
        try:
            changes = pack.changes_of(record.folder)
        except UserError as error:
            yield _fail("readme", str(error))
            return
        expected = None if changes is None else pack.readme(s, record.folder, changes, record.audit)
        pictures = [
            name
            for name in (pack.LOSS_PICTURE, pack.SCORE_PICTURE)
            if not (record.folder / name).is_file()
        ]
        if not record.with_audit and expected is not None:
            text, expected = (AUDIT_SECTION.sub("", t) for t in (text, expected))
        if text != expected:
            place = next(
                (
                    i
                    for i, (a, b) in enumerate(
                        zip(text.splitlines(), (expected or "").splitlines(), strict=False), 1
                    )
                    if a != b
                ),
                1,
            )
            found = Evidence(
                file="README.md", line=place, text=_short((text.splitlines() or [""])[place - 1])
            )
            yield _fail(
                "readme",
                "differs from what submission.json and audit.json give; run python -m eval pack --refresh FOLDER",
                found,
            )
        elif pictures:
            yield _fail(
                "readme",
                f"missing: {', '.join(pictures)}; run python -m eval pack --refresh FOLDER",
            )
        else:
            yield _ok("readme", "every figure is that of submission.json, pictures in place")
        return
    wanted = {f"{s.val_bpb:.{digits}f}" for digits in range(4, 9)} | {str(s.val_bpb)}
    line = next(
        ((i, t) for i, t in enumerate(text.splitlines(), 1) if any(w in t for w in wanted)), None
    )
    if line:
        yield _ok(
            "readme",
            "names the headline",
            Evidence(file="README.md", line=line[0], text=_short(line[1])),
        )
    else:
        yield _fail("readme", f"nowhere names val_bpb {s.val_bpb:.4f}", Evidence(file="README.md"))


def check_implied_bytes(record: Record) -> Iterable[Check]:
    """bytes = tokens · val_loss / val_bpb / ln 2, from the papers alone: does the denominator belong to the text that was scored?"""
    for name, log in record.logs.items():
        if (
            size := log.integer("result.scored_bytes")
        ) is not None and "data.val_bytes" in log.facts:
            lines = [
                _line(log, log.facts["result.scored_bytes"]),
                _line(log, log.facts["data.val_bytes"]),
            ]
            verdict = _ok if size == log.integer("data.val_bytes") else _fail
            yield verdict(
                "implied_bytes",
                f"{name}: {size:,} bytes in the denominator, the split has {log.integer('data.val_bytes'):,}",
                *lines,
            )
            continue
        yield _from_published_sizes(record, log)


def _from_published_sizes(record: Record, log: Log) -> Check:
    name, tokens = log.path.name, log.integer("data.val_tokens")
    if tokens is None:
        return _unknown("implied_bytes", f"{name}: no validation token count in the log")
    if log.ambiguous:
        return _unknown("implied_bytes", f"{name}: several scores could be its result")
    evidence = [_line(log, log.facts["data.val_tokens"])]
    final = log.final and partner_loss(log, log.final)
    if final and final.val_bpb > 0:
        loss, bpb = final.val_loss, final.val_bpb
        evidence.append(_line(log, final))
    elif record.submission and record.submission.val_loss:
        loss, bpb = record.submission.val_loss, record.submission.val_bpb
        evidence += [record.say("val_loss"), record.say("val_bpb")]
    else:
        return _unknown(
            "implied_bytes", f"{name}: no loss is given beside the final bpb", *evidence
        )
    export, implied, complaint = check_fineweb_bytes(tokens, loss, bpb)
    if complaint is None:
        label = export.label if export else "the whole split"
        return _ok(
            "implied_bytes",
            f"{name}: {implied / 1e6:.3f} MB from {loss} nats and {bpb} bpb, as {label} has",
            *evidence,
        )
    if export is None:
        return _unknown("implied_bytes", f"{name}: {complaint}", *evidence)
    return _fail(
        "implied_bytes", f"{name}: {complaint}, if loss and bpb are of one score at all", *evidence
    )


def check_audit(record: Record) -> Iterable[Check]:
    """The referee's verdict, if it is one about these files. A policy is somebody's choice, so it decides nothing here."""
    audit, s = record.audit, record.submission
    if record.audit_problem:
        yield _fail("audit", record.audit_problem)
        return
    if audit is None or s is None:
        yield _unknown("audit", f"not audited; run python -m eval audit {record.folder}")
        return
    line = _json_line(record.folder / pack.AUDIT_FILE, "verdict")
    if not (record.folder / pack.AUDIT_TEXT).is_file():
        yield _fail("audit", f"{pack.AUDIT_TEXT} is missing beside {pack.AUDIT_FILE}; audit again")
    if why := mismatch(audit, record.folder, s):
        fact = _json_line(record.folder / pack.AUDIT_FILE, why.partition(":")[0])
        yield _fail(
            "audit",
            f"{pack.AUDIT_FILE} is no audit of this folder as it stands: {why}; run python -m eval audit {record.folder}",
            fact,
        )
        return
    findings = "; ".join(pack.audit_findings(audit))
    detail = f"{audit.verdict}, level {audit.level}, rules {audit.rules_version}" + (
        f": {_short(findings, 300)}" if findings else ""
    )
    if audit.verdict == "INVALID":
        yield _fail("audit", detail, line)
    elif audit.verdict == "POLICY":
        yield _unknown("audit", detail, line)
    else:
        yield _ok("audit", detail, line)


def _json_line(path: Path, key: str) -> Evidence:
    for i, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if f'"{key}"' in text:
            return Evidence(file=path.name, line=i, text=_short(text))
    return Evidence(file=path.name)


def check_significance(record: Record, base: Record) -> Check:
    """One-sided Welch test, in nats per byte, of the per-seed scores that the logs prove, against the bar of the rule set."""
    name = "significance"
    try:
        a, b = (logged_side(r) for r in (base, record))
        rules = comparison_rules(a, b)
    except UserError as error:
        return _unknown(name, str(error))
    lines = [
        (r, _line(log, log.final))
        for r in (base, record)
        for log in r.by_seed.values()
        if log.final is not None
    ]
    evidence = [
        line.model_copy(update={"file": f"{r.folder.name}/{line.file}"}) for r, line in lines
    ]
    result = compare_sides(a, b, rules)
    per_token = result.difference * b.bytes / b.tokens
    gain = f"{result.difference:+.6f} nats/byte, {per_token:+.6f} nats/token over {base.folder.name}, n {len(a.values)} and {len(b.values)}"
    bar, level = rules.policy.improvement_nats, rules.policy.p_value
    if result.p_bar is None:
        return _unknown(
            name, f"{gain}; one seed on a side or no spread, so no test is possible", *evidence
        )
    test = f"t {result.t:.3f}, df {result.df:.2f}, p {result.p:.3g}; bar {bar:g} nats/token: p {result.p_bar:.3g}, wanted below {level:g}"
    detail = f"{gain}; {test}; detectable {result.detectable:.6f} nats/byte"
    return (_ok if result.p_bar < level else _fail)(name, detail, *evidence)


def logged_side(record: Record) -> Side:
    """A record for `compare`, by its logs alone. Raises UserError where they do not say on what text, or with which scores."""
    if record.submission is None:
        raise UserError(record.problem)
    if (text := _scored_text(record)) is None:
        raise UserError(
            f"{record.folder}: the logs do not say how large the validation text is, so nothing tells whether both texts are the same"
        )
    if unclear := _ambiguous(record):
        raise UserError(
            f"{record.folder / unclear}: prints several scores that could be its result; nothing tells which one to compare"
        )
    values = [
        log.final.val_bpb * math.log(2) for log in record.by_seed.values() if log.final is not None
    ]
    if not values:
        raise UserError(
            f"{record.folder}: expected a log with a seed and a final score, found none; a mean alone cannot be compared"
        )
    return Side(
        record.folder,
        record.submission.model_copy(update={"track": record.track}),
        np.array(values),
        *text,
    )


def _scored_text(record: Record) -> tuple[float, float] | None:
    """(tokens, bytes) of the validation text by the first log that tells: its own count, or the published export of that many tokens."""
    for log in record.logs.values():
        if (tokens := log.integer("data.val_tokens")) is None:
            continue
        if (size := log.integer("result.scored_bytes")) is not None:
            return tokens, size
        export = next((e for e in KNOWN_EXPORTS if tokens in e.val_tokens), None)
        if export is not None:
            return tokens, export.bytes
    return None


CHECKS = (
    check_files,
    check_json,
    check_logs,
    check_seeds,
    check_headline,
    check_headline_loss,
    check_seed_results,
    check_derived,
    check_readme,
    check_arithmetic,
    check_aggregates,
    check_code,
    check_bytes,
    check_artifacts,
    check_training_time,
    check_eval_time,
    check_comparable,
    check_parameters,
    check_implied_bytes,
)
