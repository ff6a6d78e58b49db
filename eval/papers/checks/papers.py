"""Checks of the derived papers: submission.json against the logs, README and audit."""

import re
from collections.abc import Iterable

from eval.errors import UserError
from eval.papers.audits.reading import audit_findings, mismatch
from eval.papers.audits.report import AUDIT_FILE, AUDIT_TEXT
from eval.papers.checks.report import (
    Check,
    Evidence,
    cannot_tell,
    cite_json,
    fails,
    passes,
    say,
    shorten,
)
from eval.papers.folder import LOSS_PICTURE, SCORE_PICTURE, Record
from eval.papers.logs.proof import derived_fields
from eval.papers.rendering.readme import changes_of, readme
from eval.papers.submission.schema import TRACKS


def check_derived(record: Record) -> Iterable[Check]:
    """A packed submission.json is a function of its logs: derive it again and compare every field."""
    s = record.submission
    if s is None or s.origin != "packed":
        return
    logs = [record.by_seed.get(seed) for seed in s.seeds]
    if any(log is None or log.problems for log in logs):
        yield cannot_tell("derived", "needs a complete log of every seed")
        return
    try:
        derived = derived_fields(TRACKS[s.track], logs)
    except (UserError, ValueError) as error:
        yield fails("derived", str(error).splitlines()[0])
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
        yield fails("derived", f"{name} is not what the logs give", say(record, key, seed or None))
    if not differing:
        yield passes(
            "derived", f"submission.json is what its {len(logs)} log(s) give, field by field"
        )


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
            changes = changes_of(record.folder)
        except UserError as error:
            yield fails("readme", str(error))
            return
        expected = None if changes is None else readme(s, record.folder, changes, record.audit)
        pictures = [
            name for name in (LOSS_PICTURE, SCORE_PICTURE) if not (record.folder / name).is_file()
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
                file="README.md", line=place, text=shorten((text.splitlines() or [""])[place - 1])
            )
            yield fails(
                "readme",
                "differs from what submission.json and audit.json give; run python -m eval pack --refresh FOLDER",
                found,
            )
        elif pictures:
            yield fails(
                "readme",
                f"missing: {', '.join(pictures)}; run python -m eval pack --refresh FOLDER",
            )
        else:
            yield passes("readme", "every figure is that of submission.json, pictures in place")
        return
    wanted = {f"{s.val_bpb:.{digits}f}" for digits in range(4, 9)} | {str(s.val_bpb)}
    line = next(
        ((i, t) for i, t in enumerate(text.splitlines(), 1) if any(w in t for w in wanted)), None
    )
    if line:
        yield passes(
            "readme",
            "names the headline",
            Evidence(file="README.md", line=line[0], text=shorten(line[1])),
        )
    else:
        yield fails("readme", f"nowhere names val_bpb {s.val_bpb:.4f}", Evidence(file="README.md"))


def check_audit(record: Record) -> Iterable[Check]:
    """The referee's verdict, if it is one about these files. A policy is somebody's choice, so it decides nothing here."""
    audit, s = record.audit, record.submission
    if record.audit_problem:
        yield fails("audit", record.audit_problem)
        return
    if audit is None or s is None:
        yield cannot_tell("audit", f"not audited; run python -m eval audit {record.folder}")
        return
    line = cite_json(record.folder / AUDIT_FILE, "verdict")
    if not (record.folder / AUDIT_TEXT).is_file():
        yield fails("audit", f"{AUDIT_TEXT} is missing beside {AUDIT_FILE}; audit again")
    if why := mismatch(audit, record.folder, s):
        fact = cite_json(record.folder / AUDIT_FILE, why.partition(":")[0])
        yield fails(
            "audit",
            f"{AUDIT_FILE} is no audit of this folder as it stands: {why}; run python -m eval audit {record.folder}",
            fact,
        )
        return
    findings = "; ".join(audit_findings(audit))
    detail = f"{audit.verdict}, level {audit.level}, rules {audit.rules_version}" + (
        f": {shorten(findings, 300)}" if findings else ""
    )
    if audit.verdict == "INVALID":
        yield fails("audit", detail, line)
    elif audit.verdict == "POLICY":
        yield cannot_tell("audit", detail, line)
    else:
        yield passes("audit", detail, line)
