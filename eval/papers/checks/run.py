"""All checks of one record folder, in order."""

from dataclasses import replace
from pathlib import Path

from eval.papers.checks.aggregates import check_aggregates
from eval.papers.checks.clocks import check_eval_time, check_training_time
from eval.papers.checks.code import check_code
from eval.papers.checks.coverage import check_coverage, check_implied_bytes, check_overlap
from eval.papers.checks.enough_seeds import check_enough_seeds
from eval.papers.checks.files import check_files, check_json
from eval.papers.checks.headline import check_headline
from eval.papers.checks.machine import check_parameters, check_world_size
from eval.papers.checks.papers import check_audit, check_derived, check_readme
from eval.papers.checks.provenance import check_provenance
from eval.papers.checks.report import Check, Report, Severity, verdict_of
from eval.papers.checks.scores import check_arithmetic, check_headline_loss
from eval.papers.checks.seed_results import check_seed_results
from eval.papers.checks.seeds import check_comparable, check_logs, check_seeds
from eval.papers.checks.sizes import check_artifacts, check_bytes
from eval.papers.folder import Record, open_record
from eval.rules import Verdict

CHECKS = (
    check_files,
    check_json,
    check_logs,
    check_provenance,
    check_seeds,
    check_enough_seeds,
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
    check_world_size,
    check_parameters,
    check_implied_bytes,
    check_coverage,
    check_overlap,
)


def check_folder(folder: Path, with_audit: bool = False, against: Path | None = None) -> Report:
    """All checks of one folder, and the significance of its improvement over `against`.

    Raises UserError when it is no folder or a log cannot be read; everything else that is wrong
    inside it becomes a verdict.
    """
    record = open_record(folder)
    record.with_audit = with_audit
    return check_record(record, None if against is None else open_record(against))


def check_record(record: Record, against: Record | None = None) -> Report:
    """All checks of one record, in the order of CHECKS.

    Where `record.with_audit` is False an earlier audit.json decides nothing, so that an audit may
    rest on these checks. Raises UserError when a log cannot be read.
    """
    for opened in (record, against):
        if opened is not None:
            opened.read_logs()
    wanted = (*CHECKS, check_audit) if record.with_audit else CHECKS
    checks: list[Check] = []
    for check in wanted:
        checks += check(record)
    if against is not None:
        from eval.papers.checks.significance import check_significance

        checks.append(check_significance(record, against))
    submission = record.submission
    if submission is not None and submission.origin == "packed":
        checks = [_weighed_as_packed(check) for check in checks]
    return Report(
        folder=str(record.folder),
        name=submission.name if submission else None,
        verdict=verdict_of(checks),
        checks=checks,
        val_bpb=submission.val_bpb if submission else None,
    )


def _weighed_as_packed(check: Check) -> Check:
    """What `pack` wrote agrees throughout: where a packed record does not, somebody changed it."""
    broken = check.verdict is Verdict.FAIL
    return replace(check, severity=Severity.BLOCKING) if broken else check
