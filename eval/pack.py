"""`python -m eval pack`: from the run folders of one experiment to a record folder that can be submitted as it stands.

Every number comes from the logs (checked against each other and against the artifacts), every text from the command line; README and
pictures are rendered from the finished `submission.json`. `--refresh` renders them again, after an audit for example, and keeps the
`changes` text.
"""

import argparse
import ctypes
import hashlib
import html
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import ValidationError

from eval import rules, schema
from eval.errors import UserError
from eval.logs import Log, data_of, environment_of, override_settings, parse_log, seed_result
from eval.report import SEVERITY, AuditReport
from eval.schema import (
    ANONYMOUS,
    CODE_FILE,
    SUBMISSION_FILE,
    TRACKS,
    Data,
    RunConfig,
    SeedResult,
    Submission,
    Track,
)

REPOSITORY = Path(__file__).resolve().parents[1]
RECORDS = REPOSITORY / "records"
AUDIT_FILE, AUDIT_TEXT = "audit.json", "AUDIT.md"
LOSS_PICTURE, SCORE_PICTURE = "loss.png", "score.png"
CHANGES_BEGIN, CHANGES_END = "<!-- changes:begin -->", "<!-- changes:end -->"
PACKED_NAMES = re.compile(
    rf"README\.md|{re.escape(SUBMISSION_FILE)}|{re.escape(CODE_FILE)}|requirements\.txt|(?:loss|score)\.png|audit\.json|AUDIT\.md"
    r"|train_seed\d+\.log|artifact_seed\d+\.bin|__pycache__"
)


@dataclass(frozen=True)
class Run:
    """One seed: its log, the artifact beside it and what the log proves."""

    log: Log
    artifact: Path
    result: SeedResult

    @property
    def seed(self) -> int:
        return self.log.seed


def register(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "pack",
        help="build a record folder from run folders",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument(
        "logs",
        nargs="*",
        type=Path,
        metavar="LOG",
        help="train.log of one seed, its artifact beside it; or the run folder",
    )
    parser.add_argument(
        "--refresh",
        type=Path,
        metavar="FOLDER",
        help="render README.md and pictures of an existing record again, nothing else",
    )
    parser.add_argument("--name", help="title of the record")
    parser.add_argument("--slug", help="kebab-case folder name (default: from the name)")
    parser.add_argument("--track", choices=sorted(TRACKS), default=schema.DOCS_TRACK)
    parser.add_argument("--author", help="default: git's user.name")
    parser.add_argument("--github-id", help="default: git's github.user")
    parser.add_argument("--blurb", default="", help="one sentence for the board")
    parser.add_argument(
        "--changes",
        type=Path,
        metavar="FILE.md",
        help="what changed and why, for the README (default: the blurb)",
    )
    parser.add_argument(
        "--base", metavar="RECORD", help="folder name of the record that this one builds on"
    )
    parser.add_argument(
        "--date", help="day of the run, YYYY-MM-DD (default: that of the newest log, UTC)"
    )
    parser.add_argument(
        "--requirements", type=Path, metavar="FILE", help="packages beyond the project's own"
    )
    parser.add_argument(
        "--dataset",
        type=Path,
        metavar="DIR",
        help="holds manifest.json, for the xz figure (default: data/datasets/NAME)",
    )
    parser.add_argument("--records-dir", type=Path, default=RECORDS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--replace", action="store_true", help="replace a record of the same date and slug"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.refresh:
        if args.logs or args.name:
            raise UserError(
                "pack: --refresh takes a record folder and no logs or name; its contents come from that folder"
            )
        refresh(args.refresh)
        print(f"refreshed {args.refresh / 'README.md'}")
        return 0
    if not args.logs or not args.name:
        raise UserError(
            "pack: expected LOG... and --name; example: python -m eval pack runs/x_seed1337 runs/x_seed42 --name 'What it is'"
        )
    runs = [load_run(path) for path in args.logs]
    compare_runs(runs)
    submission = build_submission(args, runs)
    folder = args.records_dir / args.track / f"{submission.date}_{slug_of(args)}"
    changes = (
        args.changes.read_text(encoding="utf-8").strip()
        if args.changes and _readable(args.changes)
        else default_changes(submission)
    )
    if CHANGES_BEGIN in changes or CHANGES_END in changes:
        raise UserError(
            f"{args.changes or '--blurb'}: holds the marker {CHANGES_BEGIN} or {CHANGES_END}; take it out, pack writes it"
        )
    write_folder(folder, submission, runs, changes, args.requirements, args.replace)
    print(summary(folder, submission))
    return 0


def _readable(path: Path) -> bool:
    if not path.is_file():
        raise UserError(
            f"{path}: expected a text file, found none; write it or leave the option out"
        )
    return True


# --- Reading and comparing runs ---


def load_run(path: Path) -> Run:
    """A run whose log is complete, agrees with itself and with the artifact beside it.

    Raises UserError naming the log, what was expected and what was found."""
    path = path / "train.log" if path.is_dir() else path
    log = parse_log(path)
    if not log.native:
        raise UserError(
            f"{path}: expected a log that starts with log_format:1, found another format; `check` reads it, `pack` does not"
        )
    if log.problems:
        raise UserError(f"{path}: {log.problems[0]}; train again, the packager does not guess")
    wanted = (
        "artifact.file",
        "artifact.bytes",
        "artifact.sha256",
        "config.sha256",
        "source.sha256",
    )
    if missing := [name for name in wanted if log.text(name) is None]:
        raise UserError(
            f"{path}: expected a line that states {missing[0].replace('.', ' ')}, found none; train again with the current script"
        )
    artifact = path.parent / Path(log.text("artifact.file")).name
    if not artifact.is_file():
        raise UserError(
            f"{artifact}: missing; the log {path.name} names it, keep it beside the log"
        )
    result = seed_result(log)
    check_arithmetic(log, artifact, result)
    return Run(log, artifact, result)


def check_arithmetic(log: Log, artifact: Path, result: SeedResult) -> None:
    """What a result line must satisfy whoever wrote it: division, additions, sizes and hashes. Raises UserError."""
    weights = artifact.read_bytes()
    code = log.source
    expected = {
        "val_loss": (round(result.nats / result.scored_tokens, 8), result.val_loss, 1.1e-8),
        "val_bpb": (
            round(result.nats / math.log(2) / result.scored_bytes, 8),
            result.val_bpb,
            1.1e-8,
        ),
        "bytes_total": (
            log.integer("result.artifact_bytes") + log.integer("result.code_bytes"),
            result.bytes_total,
            0,
        ),
        "artifact_bytes": (len(weights), result.artifact_bytes, 0),
        "code_bytes": (len(code), log.integer("result.code_bytes"), 0),
        "scored_tokens": (
            log.integer("data.val_tokens") - 1 if log.integer("data.val_tokens") else None,
            result.scored_tokens,
            0,
        ),
    }
    for name, (computed, stated, tolerance) in expected.items():
        if computed is None or abs(computed - stated) > tolerance:
            raise UserError(
                f"{log.path}: result says {name}:{stated}, its parts and files give {computed}; train again"
            )
    hashes = {
        "artifact": (hashlib.sha256(weights).hexdigest(), log.text("artifact.sha256"), artifact),
        "code": (hashlib.sha256(code).hexdigest(), log.text("result.code_sha256"), log.path),
    }
    for what, (computed, stated, path) in hashes.items():
        if computed != stated:
            raise UserError(
                f"{path}: sha256 of the {what} is {computed[:12]}…, {log.path.name} says {stated[:12]}…; use the files of one run"
            )


def compare_runs(runs: list[Run]) -> None:
    """Seeds of one record differ in the seed alone. Raises UserError naming both logs and the first difference."""
    first = runs[0]
    seeds: dict[int, Run] = {}
    for run in runs:
        if (known := seeds.setdefault(run.seed, run)) is not run:
            raise UserError(
                f"{run.log.path}: seed {run.seed} again, as in {known.log.path}; give every seed once"
            )
        aspects = {
            "code (sha256)": lambda r: r.log.text("source.sha256"),
            "config (sha256)": lambda r: r.log.text("config.sha256"),
            "config overrides": lambda r: sorted(override_settings(r.log)),
            "preset": lambda r: r.log.text("config.preset"),
            "data": lambda r: data_of(r.log).model_copy(
                update={"manifest_sha256": None}
            ),  # the manifest also says where it was made
            "number of ranks": lambda r: r.log.integer("env.world_size"),
            "training precision": lambda r: r.log.text("env.train_dtype"),
        }
        for aspect, read in aspects.items():
            if read(run) != read(first):
                raise UserError(
                    f"{run.log.path}: {aspect} {read(run)}, but {first.log.path} has {read(first)}; pack only runs of one experiment"
                )


# --- submission.json ---


def slug_of(args: argparse.Namespace) -> str:
    """Kebab-case folder slug. Raises UserError for anything else, so that folder, board and branch names need no quoting."""
    slug = args.slug or re.sub(r"[^a-z0-9]+", "-", args.name.lower()).strip("-")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise UserError(f"--slug: expected kebab-case like ema-late-warmdown, found {slug!r}")
    return slug


def derived_fields(track: Track, logs: list[Log]) -> dict[str, Any]:
    """Everything of a Submission that the logs of its seeds prove, seeds in the order given. `check` derives it again.

    Raises UserError when a log lacks its data line, pydantic.ValidationError when a value is malformed."""
    first = logs[0]
    environment = environment_of(first)
    results = {}
    for log in logs:
        files = {
            "log": f"train_seed{log.seed}.log",
            "artifact": f"artifact_seed{log.seed}.bin" if track.commits_artifacts else None,
        }
        own = environment_of(log)
        results[str(log.seed)] = seed_result(log).model_copy(
            update=files | {"environment": None if own == environment else own}
        )
    rows = list(results.values())
    return {
        "val_loss": schema.mean([row.val_loss for row in rows]),
        "val_bpb": schema.mean([row.val_bpb for row in rows]),
        "val_loss_std": schema.sd([row.val_loss for row in rows]),
        "val_bpb_std": schema.sd([row.val_bpb for row in rows]),
        "bytes_total": max(row.bytes_total for row in rows),
        "bytes_code": first.integer("result.code_bytes"),
        "bytes_artifact": max(row.artifact_bytes for row in rows),
        "code_sha256": first.text("source.sha256"),
        "seeds": [log.seed for log in logs],
        "seed_results": results,
        "config": RunConfig(
            preset=first.text("config.preset"),
            sha256=first.text("config.sha256"),
            overrides=override_settings(first),
        ),
        "data": data_of(first),
        "environment": environment,
    }


def build_submission(args: argparse.Namespace, runs: list[Run]) -> Submission:
    """Typed record of the runs. Raises UserError when it breaks the track's caps or the schema."""
    logs = [run.log for run in runs]
    try:
        derived = derived_fields(TRACKS[args.track], logs)
        derived["data"] = derived["data"].model_copy(
            update={"xz_bytes": xz_bytes(derived["data"], args.dataset)}
        )
        submission = Submission(
            origin="packed",
            author=args.author or _git("user.name") or ANONYMOUS,
            github_id=args.github_id or _git("github.user") or ANONYMOUS,
            name=args.name,
            blurb=args.blurb,
            date=args.date
            or datetime.fromtimestamp(max(log.path.stat().st_mtime for log in logs), UTC).date(),
            track=args.track,
            rules_version=rules.CURRENT,
            base_record=_base_record(args),
            **derived,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "record"
        raise UserError(
            f"{logs[0].path}: {where}: {problem['msg']}, found {problem['input']!r}"
        ) from None
    check_caps(submission, TRACKS[args.track])
    return submission


def check_caps(submission: Submission, track: Track) -> None:
    if submission.bytes_total > track.bytes_cap:
        raise UserError(
            f"code + artifact are {submission.bytes_total:,} bytes, the cap is {track.bytes_cap:,}; shrink the artifact"
        )
    if track.artifact_cap is not None and submission.bytes_artifact > track.artifact_cap:
        raise UserError(
            f"an artifact of {submission.bytes_artifact:,} bytes, {submission.track} commits at most {track.artifact_cap:,} to git"
        )


def xz_bytes(data: Data, dataset: Path | None) -> int | None:
    """Size of the validation text under xz -9e from the dataset's manifest, if that manifest is of the same corpus version."""
    path = (dataset or REPOSITORY / "data" / "datasets" / data.dataset) / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        same = (
            manifest["version"] == data.version
            and manifest["splits"]["val"]["source_bytes"] == data.val_bytes
        )
        return manifest["splits"]["val"].get("xz_bytes") if same else None
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected a dataset manifest, found {error!r}; prepare the dataset again"
        ) from None


def _git(key: str) -> str | None:
    if shutil.which("git") is None:
        return None
    answer = subprocess.run(
        ["git", "config", "--get", key], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    return answer.stdout.strip() or None


def _base_record(args: argparse.Namespace) -> str | None:
    if args.base is None:
        return None
    name = Path(args.base).name
    if not (args.records_dir / args.track / name / SUBMISSION_FILE).is_file():
        raise UserError(
            f"--base {args.base}: expected a record of {args.track}, found none at {args.records_dir / args.track / name}"
        )
    return name


# --- The folder ---


def write_folder(
    folder: Path,
    submission: Submission,
    runs: list[Run],
    changes: str,
    requirements: Path | None,
    replace: bool,
) -> None:
    """Build everything under a temporary name, then rename: the folder is there whole or not at all."""
    for aside in folder.parent.glob(
        f".{folder.name}.*.tmp.old"
    ):  # a swap in three steps was killed in the middle
        if not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
    check_target(folder, runs[0].log.source, replace)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a packing that was killed
        if (pid := left.name.split(".")[-2]).isdigit() and (
            int(pid) == os.getpid() or not _runs(int(pid))
        ):
            shutil.rmtree(left, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        (building / CODE_FILE).write_bytes(runs[0].log.source)
        (building / SUBMISSION_FILE).write_text(
            schema.dump_submission(submission), encoding="utf-8"
        )
        for run in runs:
            row = submission.seed_results[str(run.seed)]
            shutil.copyfile(run.log.path, building / row.log)
            if row.artifact:
                shutil.copyfile(run.artifact, building / row.artifact)
        if requirements is not None and _readable(requirements):
            shutil.copyfile(requirements, building / "requirements.txt")
        render(building, folder, changes)
        if folder.exists():
            _exchange(building, folder)
        else:
            os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _exchange(a: Path, b: Path) -> None:
    """Two folders swap names: in one step on Linux (renameat2 with RENAME_EXCHANGE), so that `b` is there at every moment; else in three."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here = -100  # AT_FDCWD
    if rename is not None and rename(here, os.fsencode(a), here, os.fsencode(b), 2) == 0:
        return
    aside = b.with_name(f"{a.name}.old")
    os.replace(b, aside)
    try:
        os.replace(a, b)
    except OSError:
        os.replace(aside, b)
        raise
    os.replace(aside, a)


def check_target(folder: Path, code: bytes, replace: bool) -> None:
    """A folder that holds nothing but the script that trained is not yet a record; packing completes it. Raises UserError otherwise."""
    if not folder.exists():
        return
    foreign = sorted(
        item.name for item in folder.iterdir() if not PACKED_NAMES.fullmatch(item.name)
    )
    if foreign:
        raise UserError(
            f"{folder}: holds {', '.join(foreign)}, which packing would lose; move it away or choose another --slug"
        )
    if (folder / SUBMISSION_FILE).exists() and not replace:
        raise UserError(
            f"{folder}: a record of this name exists; give --replace to build it anew or another --slug"
        )
    script = folder / CODE_FILE
    if script.exists() and script.read_bytes() != code and not replace:
        raise UserError(
            f"{script}: differs from the source in the logs; train with the committed script or give --replace"
        )


def refresh(folder: Path) -> None:
    """Render README and pictures of a packed record again from its submission.json, logs and audit.json; the `changes` text stays."""
    submission = schema.load_submission(folder)
    if submission.origin != "packed":
        raise UserError(
            f"{folder / SUBMISSION_FILE}: expected a record made by `pack`, found an imported one; it stays as its author wrote it"
        )
    render(folder, folder, changes_of(folder) or default_changes(submission))


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


def render(folder: Path, final: Path, changes: str) -> None:
    """Write pictures and README.md into `folder`, which will be known as `final`."""
    submission = schema.load_submission(folder)
    logs = {seed: parse_log(folder / row.log) for seed, row in submission.seed_results.items()}
    schema.write_atomic(folder / LOSS_PICTURE, loss_picture(submission, logs))
    schema.write_atomic(folder / SCORE_PICTURE, score_picture(submission))
    schema.write_atomic(
        folder / "README.md", readme(submission, final, changes, read_audit(folder))
    )


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


def read_audit(folder: Path) -> AuditReport | None:
    """The folder's audit.json, None when it was never audited. Raises UserError when the file is not one."""
    path = folder / AUDIT_FILE
    try:
        return AuditReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{path}: expected a readable file, found {error.strerror}; audit the record again (python -m eval audit {folder})"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(
            f"{path}: {where}: {first['msg']}; audit the record again (python -m eval audit {folder})"
        ) from None


def audit_findings(audit: AuditReport) -> list[str]:
    """One line for each test that did not pass, worst first."""
    failed = [test for test in audit.tests if test.verdict not in ("PASS", "NOT RUN")]
    failed.sort(key=lambda test: SEVERITY.index(test.verdict), reverse=True)
    return [f"{test.verdict} {test.name}: {test.reason}" for test in failed]


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


# --- Pictures ---

SEED_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
)  # Okabe–Ito: told apart without red-green vision


def loss_picture(submission: Submission, logs: dict[str, Log]) -> bytes:
    """PNG: training loss of every seed against the step, validation points as dots."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (seed, log), colour in zip(logs.items(), _colours(len(logs)), strict=True):
        train = [(p.step, p.train_loss) for p in log.steps if p.train_loss is not None]
        validation = [(p.step, p.val_loss) for p in log.steps if p.val_loss is not None]
        if train:
            axes.plot(
                *zip(*train, strict=True), color=colour, linewidth=1, label=f"seed {seed}, training"
            )
        if validation:
            axes.plot(
                *zip(*validation, strict=True),
                "o",
                color=colour,
                markersize=4,
                label=f"seed {seed}, validation",
            )
    axes.set(xlabel="step", ylabel="nats per token", title=submission.name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    return _png(figure, axes)


def score_picture(submission: Submission) -> bytes:
    """PNG: bits per byte of every seed, before and after what the scorer adds, with xz for scale."""
    rows = submission.seed_results
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    series = (
        ("pre_quant_val_bpb", "before quantisation", "|", "#666666"),
        ("neural_val_bpb", "model alone", "o", SEED_COLOURS[4]),
        ("val_bpb", "record", "D", SEED_COLOURS[0]),
    )
    for name, label, marker, colour in series:
        points = [
            (getattr(row, name), i)
            for i, row in enumerate(rows.values())
            if getattr(row, name) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=8, label=label)
    axes.axvline(submission.val_bpb, color=SEED_COLOURS[0], linewidth=1, alpha=0.5)
    if submission.data.xz_bytes:
        axes.axvline(
            bits_per_byte(submission.data),
            color=SEED_COLOURS[1],
            linewidth=1,
            linestyle="--",
            label="xz -9e",
        )
    axes.set_yticks(range(len(rows)), [f"seed {seed}" for seed in rows])
    axes.set(xlabel="bits per byte, lower is better", ylim=(-0.6, len(rows) - 0.4))
    axes.invert_yaxis()
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=4)
    return _png(figure, axes)


def _colours(count: int) -> list[str]:
    return [SEED_COLOURS[i % len(SEED_COLOURS)] for i in range(count)]


def _png(figure: Figure, axes: Axes) -> bytes:
    """PNG bytes that depend on the content alone: matplotlib's version stamp is left out."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def summary(folder: Path, submission: Submission) -> str:
    """What `pack` prints: the figures a user wants, where they are and what to look at next."""
    s = submission
    rows = list(s.seed_results.values())
    neural = [r.neural_val_bpb for r in rows if r.neural_val_bpb is not None]
    spread = f" ± {s.val_bpb_std:.6f}" if s.val_bpb_std is not None else ""
    place = os.path.relpath(folder)
    unsigned = (
        "; give --author and --github-id before a pull request"
        if ANONYMOUS in (s.author, s.github_id)
        else ""
    )
    lines = [
        ("record", place),
        ("val_bpb", f"{s.val_bpb:.8f}{spread}, {len(s.seeds)} seed(s)"),
        ("neural alone", f"{schema.mean(neural):.8f}" if neural else None),
        (
            "xz -9e",
            f"{bits_per_byte(s.data):.4f} bits per byte on the same text"
            if s.data.xz_bytes
            else None,
        ),
        (
            "artifact",
            f"{s.bytes_artifact:,} bytes; with code {s.bytes_total:,} of {TRACKS[s.track].bytes_cap:,}",
        ),
        (
            "time",
            f"training {max(r.train_s for r in rows):.1f} s, evaluation {max(r.eval_s for r in rows):.1f} s (slowest seed)",
        ),
        ("author", f"{s.author} (@{s.github_id}){unsigned}"),
        ("look at", f"{place}/README.md (figures, pictures, how to repeat it)"),
        (
            "next",
            f"python -m eval check {place}; python -m eval audit {place}; python -m eval pack --refresh {place}",
        ),
    ]
    return "\n".join(f"{label:<13}{value}" for label, value in lines if value)
