"""The README of a packed record, as a function of its submission.json and audit.json."""

import html
import shlex
from pathlib import Path

from eval.errors import UserError
from eval.papers.audits.reading import audit_findings
from eval.papers.audits.report import AuditReport
from eval.papers.folder import LOSS_PICTURE, SCORE_PICTURE
from eval.papers.rendering.tables import markdown_table
from eval.papers.submission.schema import (
    AUDIT_TEXT,
    CODE_FILE,
    TRACKS,
    Data,
    SeedResult,
    Submission,
)

CHANGES_BEGIN = "<!-- changes:begin -->"
CHANGES_END = "<!-- changes:end -->"
NOTHING = "–"
RESULT_COLUMNS = (
    "seed",
    "val_bpb",
    "val_loss (nats/token)",
    "neural val_bpb",
    "steps",
    "train s",
    "eval s",
    "artifact bytes",
    "code + artifact",
)


def readme(submission: Submission, folder: Path, changes: str, audit: AuditReport | None) -> str:
    """Text of a record's README; every figure is read from `submission`."""
    blurb = "" if changes == submission.blurb else _escaped(submission.blurb)
    loss = f"![Training and validation loss]({LOSS_PICTURE})"
    score = f"![Score per seed]({SCORE_PICTURE})"
    parts = [
        f"# {_escaped(submission.name)}",
        blurb,
        _facts(submission),
        "## What changed",
        f"{CHANGES_BEGIN}\n{changes}\n{CHANGES_END}",
        "## Results",
        results_table(submission),
        loss,
        score,
        "## Audit",
        audit_text(audit),
        "## Reproduce",
        reproduction(submission, folder),
        "## Files",
        files_text(submission),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _escaped(text: str) -> str:
    """Text of others without HTML, so that no marker of ours is among it."""
    return html.escape(text, quote=False)


def _facts(submission: Submission) -> str:
    """One line each: who made it when and where, on what text, from which record."""
    author = f"{_escaped(submission.author)} (@{_escaped(submission.github_id)})"
    data = submission.data
    lines = [
        f"Track `{submission.track}` ({TRACKS[submission.track].title}), {submission.date}, "
        f"by {author}, rules `{submission.rules_version}`.",
        f"Corpus `{data.corpus}` version `{data.version[:12]}…`, "
        f"validation {data.val_tokens:,} tokens, {data.val_bytes:,} bytes.",
    ]
    base = submission.base_record
    if base:
        lines.append(f"Builds on [`{base}`](../{base}/).")
    if data.xz_bytes:
        scale = f"{bits_per_byte(data):.4f} bits per byte"
        lines.append(f"For scale: `xz -9e` needs {scale} on the same text.")
    return "\n".join(lines)


# --- What changed ---


def default_changes(submission: Submission) -> str:
    """What changed, if the author says nothing: the blurb, else what the logs prove."""
    if submission.blurb:
        return submission.blurb
    config = submission.config
    if config.preset:
        basis = f"Preset `{config.preset}` of `{CODE_FILE}`"
    else:
        basis = f"`{CODE_FILE}` with its defaults"
    if not config.overrides:
        return f"{basis}, nothing changed."
    settings = ", ".join(f"`{override}`" for override in config.overrides)
    return f"{basis}, changed: {settings}."


def changes_of(folder: Path) -> str | None:
    """The hand-written part of a record's README, between its markers; None where there is none.

    Raises UserError when the README cannot be read.
    """
    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a UTF-8 text, found {error}; "
            "repair it, pack never overwrites what it cannot read"
        ) from None
    return changes_in(text)


def changes_in(text: str) -> str | None:
    """The hand-written part of a README's text; None where it has no markers."""
    _, begin, rest = text.partition(CHANGES_BEGIN)
    changes, end, _ = rest.partition(CHANGES_END)
    return changes.strip() if begin and end else None


# --- Results ---


def results_table(submission: Submission) -> str:
    """Markdown table, one row per seed and one for the mean."""
    rows = [seed_row(seed, row) for seed, row in submission.seed_results.items()]
    rows.append(_mean_row(submission))
    return markdown_table(RESULT_COLUMNS, rows, ["---:"] * len(RESULT_COLUMNS))


def seed_row(seed: str, row: SeedResult) -> list[str]:
    """A seed's cells under RESULT_COLUMNS."""
    neural = row.neural_val_bpb
    return [
        seed,
        f"{row.val_bpb:.8f}",
        f"{row.val_loss:.8f}",
        NOTHING if neural is None else f"{neural:.8f}",
        f"{row.steps:,}",
        f"{row.train_s:.1f}",
        f"{row.eval_s:.1f}",
        f"{row.artifact_bytes:,}",
        f"{row.bytes_total:,}",
    ]


def _mean_row(submission: Submission) -> list[str]:
    return [
        f"**mean of {len(submission.seeds)}**",
        f"**{submission.val_bpb:.8f}**{_spread(submission.val_bpb_std)}",
        f"{submission.val_loss:.8f}{_spread(submission.val_loss_std)}",
        *[""] * 5,
        f"{submission.bytes_total:,} (largest)",
    ]


def _spread(deviation: float | None) -> str:
    return "" if deviation is None else f" ± {deviation:.8f}"


# --- Audit, reproduction, files ---


def audit_text(audit: AuditReport | None, linked: bool = True) -> str:
    """Verdict and findings, with a link to the report or its name alone."""
    if audit is None:
        return "Not audited yet."
    ran = [test.name for test in audit.tests if test.verdict != "NOT RUN"]
    report = f"[{AUDIT_TEXT}]({AUDIT_TEXT})" if linked else AUDIT_TEXT
    tests = f"{len(ran)} of {len(audit.tests)} tests: {', '.join(ran)}"
    summary = (
        f"**{audit.verdict}** (`--{audit.level}`, referee rules `{audit.rules_version}`; {tests}). "
        f"Numbers in {report}."
    )
    findings = "\n".join(f"* {finding}" for finding in audit_findings(audit))
    return f"{summary}\n\n{findings}".rstrip()


def reproduction(submission: Submission, folder: Path) -> str:
    """Shell commands that repeat every seed and check the result, and where it was made."""
    block = "\n".join(["```bash", *reproduction_commands(submission, folder), "```"])
    where = ", ".join(f"{label} {value}" for label, value in environment_facts(submission))
    return f"{block}\n\nMade with {where}."


def reproduction_commands(submission: Submission, folder: Path) -> list[str]:
    """What repeats every seed from the repository root and checks the result."""
    place = f"records/{submission.track}/{folder.name}"
    slug = folder.name.partition("_")[2] or folder.name
    ranks = submission.environment.world_size
    alone = ranks in (None, 1)
    launcher = "python" if alone else f"torchrun --standalone --nproc_per_node={ranks}"
    data_folder = f"data/datasets/{submission.data.dataset}"
    options = " ".join([*_settings(submission), f"--data-dir {data_folder}"])
    seeds = " ".join(map(str, submission.seeds))
    return [
        f"python -m data {submission.data.corpus}",
        f"for seed in {seeds}; do {launcher} {place}/{CODE_FILE} train {options} "
        f"--seed $seed --out runs/{slug}_seed$seed; done",
        f"python -m eval score {place}",
        f"python -m eval audit {place}",
    ]


def _settings(submission: Submission) -> list[str]:
    """The options that make the experiment."""
    config = submission.config
    settings = [f"--preset {shlex.quote(config.preset)}"] if config.preset else []
    for override in config.overrides:
        name, _, value = override.partition("=")
        settings.append(f"--{name.replace('_', '-')} {shlex.quote(value)}")
    return settings


def environment_facts(submission: Submission) -> list[tuple[str, str]]:
    """(label, value) of what is known about where a record was made."""
    environment = submission.environment
    name = environment.gpu
    gpus = f"{environment.gpus}× {name}" if environment.gpus and name else None
    cores = f" ({environment.cores} cores)" if environment.cores else ""
    cpu = f"{environment.cpu}{cores}" if environment.cpu else None
    ranks = environment.world_size
    commit = environment.git_commit
    facts = {
        "Python": environment.python,
        "torch": environment.torch,
        "CUDA": environment.cuda,
        "driver": environment.driver,
        "GPU": gpus,
        "CPU": cpu,
        "ranks": str(ranks) if ranks else None,
        "commit": commit[:12] if commit else None,
    }
    return [(label, value) for label, value in facts.items() if value]


def files_text(submission: Submission) -> str:
    """A list of the folder's files with sizes and hashes."""
    rows = submission.seed_results.values()
    logs = ", ".join(f"`{row.log}`" for row in rows)
    lines = [
        f"* `{CODE_FILE}`: {submission.bytes_code:,} bytes, sha256 `{submission.code_sha256}`, "
        "byte-equal to the source embedded in every log",
        f"* {logs}: self-contained logs",
    ]
    for row in rows:
        where = f"`{row.artifact}`" if row.artifact else "artifact outside git"
        lines.append(f"* {where}: {row.artifact_bytes:,} bytes, sha256 `{row.artifact_sha256}`")
    return "\n".join(lines)


def bits_per_byte(data: Data) -> float:
    """What `xz -9e` needs on the validation text."""
    return 8 * data.xz_bytes / data.val_bytes
