"""The README of a packed record, as a function of its submission.json and audit.json."""

import html
import shlex
from pathlib import Path

from eval.errors import UserError
from eval.papers.audits.reading import audit_findings
from eval.papers.audits.report import AUDIT_TEXT, AuditReport
from eval.papers.folder import LOSS_PICTURE, SCORE_PICTURE
from eval.papers.submission.schema import CODE_FILE, TRACKS, Data, Submission

CHANGES_BEGIN, CHANGES_END = "<!-- changes:begin -->", "<!-- changes:end -->"


def default_changes(submission: Submission) -> str:
    """What changed, if the author says nothing: the blurb, else the settings that the logs prove."""
    c = submission.config
    preset = (
        f"Preset `{c.preset}` of `{CODE_FILE}`" if c.preset else f"`{CODE_FILE}` with its defaults"
    )
    return submission.blurb or preset + (
        f", changed: {', '.join(f'`{o}`' for o in c.overrides)}."
        if c.overrides
        else ", nothing changed."
    )


def changes_of(folder: Path) -> str | None:
    """The hand-written part of a record's README, between its markers. Raises UserError when it cannot be read."""
    path = folder / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: expected a UTF-8 text, found {error}; repair it, pack never overwrites what it cannot read"
        ) from None
    _, begin, rest = text.partition(CHANGES_BEGIN)
    changes, end, _ = rest.partition(CHANGES_END)
    return changes.strip() if begin and end else None


def results_table(submission: Submission) -> str:
    """Markdown table, one row per seed and one for the mean."""
    s = submission
    head = "| seed | val_bpb | val_loss (nats/token) | neural val_bpb | steps | train s | eval s | artifact bytes | code + artifact |"
    rows = [head, "|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for seed, r in s.seed_results.items():
        neural = "–" if r.neural_val_bpb is None else f"{r.neural_val_bpb:.8f}"
        scores = f"{r.val_bpb:.8f} | {r.val_loss:.8f} | {neural} | {r.steps:,} | {r.train_s:.1f} | {r.eval_s:.1f}"
        rows.append(f"| {seed} | {scores} | {r.artifact_bytes:,} | {r.bytes_total:,} |")
    spread = f" ± {s.val_bpb_std:.8f}" if s.val_bpb_std is not None else ""
    loss_spread = f" ± {s.val_loss_std:.8f}" if s.val_loss_std is not None else ""
    mean = f"**{s.val_bpb:.8f}**{spread} | {s.val_loss:.8f}{loss_spread}"
    rows.append(f"| **mean of {len(s.seeds)}** | {mean} | | | | | | {s.bytes_total:,} (largest) |")
    return "\n".join(rows)


def readme(submission: Submission, folder: Path, changes: str, audit: AuditReport | None) -> str:
    """Text of a record's README; every figure is read from `submission`."""
    s = submission
    name, blurb, author, github = (
        html.escape(text, quote=False) for text in (s.name, s.blurb, s.author, s.github_id)
    )  # no marker among them
    facts = [
        f"Track `{s.track}` ({TRACKS[s.track].title}), {s.date}, by {author} (@{github}), rules `{s.rules_version}`.",
        f"Corpus `{s.data.corpus}` version `{s.data.version[:12]}…`, validation {s.data.val_tokens:,} tokens, {s.data.val_bytes:,} bytes.",
    ]
    if s.base_record:
        facts.append(f"Builds on [`{s.base_record}`](../{s.base_record}/).")
    if s.data.xz_bytes:
        facts.append(
            f"For scale: `xz -9e` needs {bits_per_byte(s.data):.4f} bits per byte on the same text."
        )
    parts = [f"# {name}", blurb if changes != s.blurb else "", "\n".join(facts)]
    parts += ["## What changed", f"{CHANGES_BEGIN}\n{changes}\n{CHANGES_END}"]
    parts += [
        "## Results",
        results_table(s),
        f"![Training and validation loss]({LOSS_PICTURE})\n\n![Score per seed]({SCORE_PICTURE})",
    ]
    parts += [
        "## Audit",
        audit_text(audit),
        "## Reproduce",
        reproduction(s, folder),
        "## Files",
        files_text(s),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def audit_text(audit: AuditReport | None, linked: bool = True) -> str:
    if audit is None:
        return "Not audited yet."
    ran = [test.name for test in audit.tests if test.verdict != "NOT RUN"]
    report = f"[{AUDIT_TEXT}]({AUDIT_TEXT})" if linked else AUDIT_TEXT
    tests = f"{len(ran)} of {len(audit.tests)} tests: {', '.join(ran)}"
    lines = [
        f"**{audit.verdict}** (`--{audit.level}`, referee rules `{audit.rules_version}`; {tests}). Numbers in {report}.",
        "",
    ]
    return "\n".join(lines + [f"* {finding}" for finding in audit_findings(audit)]).rstrip()


def reproduction(submission: Submission, folder: Path) -> str:
    """Shell commands that repeat every seed from the repository root and check the result."""
    s = submission
    place = f"records/{s.track}/{folder.name}"
    launcher = (
        "python"
        if s.environment.world_size in (None, 1)
        else f"torchrun --standalone --nproc_per_node={s.environment.world_size}"
    )
    settings = [f"--preset {shlex.quote(s.config.preset)}"] if s.config.preset else []
    for override in s.config.overrides:
        name, _, value = override.partition("=")
        settings.append(f"--{name.replace('_', '-')} {shlex.quote(value)}")
    slug = folder.name.partition("_")[2] or folder.name
    lines = [f"python -m data {s.data.corpus}"]
    options = " ".join([*settings, f"--data-dir data/datasets/{s.data.dataset}"])
    seeds = " ".join(map(str, s.seeds))
    lines.append(
        f"for seed in {seeds}; do {launcher} {place}/{CODE_FILE} train {options} --seed $seed --out runs/{slug}_seed$seed; done"
    )
    lines += [f"python -m eval score {place}", f"python -m eval audit {place}"]
    where = ", ".join(f"{label} {value}" for label, value in environment_facts(s))
    return "```bash\n" + "\n".join(lines) + f"\n```\n\nMade with {where}."


def environment_facts(submission: Submission) -> list[tuple[str, str]]:
    e = submission.environment
    gpus = f"{e.gpus}× {e.gpu}" if e.gpus and e.gpu else None
    cpu = f"{e.cpu} ({e.cores} cores)" if e.cpu and e.cores else e.cpu
    pairs = [
        ("Python", e.python),
        ("torch", e.torch),
        ("CUDA", e.cuda),
        ("driver", e.driver),
        ("GPU", gpus),
        ("CPU", cpu),
    ]
    pairs += [
        ("ranks", e.world_size and str(e.world_size)),
        ("commit", e.git_commit and e.git_commit[:12]),
    ]
    return [(label, value) for label, value in pairs if value]


def files_text(submission: Submission) -> str:
    s = submission
    logs = ", ".join(f"`{r.log}`" for r in s.seed_results.values())
    lines = [
        f"* `{CODE_FILE}`: {s.bytes_code:,} bytes, sha256 `{s.code_sha256}`, byte-equal to the source embedded in every log",
        f"* {logs}: self-contained logs",
    ]
    for r in s.seed_results.values():
        where = f"`{r.artifact}`" if r.artifact else "artifact outside git"
        lines.append(f"* {where}: {r.artifact_bytes:,} bytes, sha256 `{r.artifact_sha256}`")
    return "\n".join(lines)


def bits_per_byte(data: Data) -> float:
    return 8 * data.xz_bytes / data.val_bytes
