"""`python -m eval pack`: makes a record folder from the run folders of one experiment.

Every number comes from the logs, which are checked against each other and against the artifacts.
Every text comes from the command line. README and pictures are rendered from the finished
`submission.json`; `--refresh` renders them again, after an audit for example, and keeps the
`changes` text.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic import ValidationError

from eval.errors import UserError, typed_command
from eval.files import DATASETS, RECORDS, REPOSITORY
from eval.papers.logs.log import Log
from eval.papers.logs.proof import derived_fields
from eval.papers.rendering.packing import (
    Run,
    Texts,
    compare_runs,
    load_run,
    refresh,
    require_file,
    write_folder,
)
from eval.papers.rendering.readme import CHANGES_BEGIN, CHANGES_END, bits_per_byte, default_changes
from eval.papers.rendering.tables import aligned
from eval.papers.submission.schema import (
    ANONYMOUS,
    DOCS_TRACK,
    SUBMISSION_FILE,
    TRACKS,
    Data,
    SeedResult,
    Submission,
    Track,
    mean,
)
from eval.rules import CURRENT

LABEL_WIDTHS = (12,)  # characters: of the summary's labels


def configure(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--track", choices=sorted(TRACKS), default=DOCS_TRACK)
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


def run(args: argparse.Namespace) -> int:
    if args.refresh:
        if args.logs or args.name:
            raise UserError(
                "pack: --refresh takes a record folder and no logs or name; "
                "its contents come from that folder"
            )
        refresh(args.refresh)
        print(f"refreshed {args.refresh / 'README.md'}")
        return 0
    if not args.logs or not args.name:
        raise UserError(
            "pack: expected LOG... and --name; example: "
            + typed_command("eval", "pack", "runs/x_seed1337", "runs/x_seed42", "--name", "My idea")
        )
    runs = [load_run(path) for path in args.logs]
    compare_runs(runs)
    submission = build_submission(args, runs)
    folder = args.records_dir / args.track / f"{submission.date}_{slug_of(args)}"
    texts = Texts(changes_from(args, submission), args.requirements)
    write_folder(folder, submission, runs, texts, args.replace)
    print(summary(folder, submission))
    return 0


def changes_from(args: argparse.Namespace, submission: Submission) -> str:
    """What changed, by the author's file or by default. Raises UserError for a marker in it."""
    if args.changes:
        require_file(args.changes)
        changes = args.changes.read_text(encoding="utf-8").strip()
    else:
        changes = default_changes(submission)
    if CHANGES_BEGIN in changes or CHANGES_END in changes:
        raise UserError(
            f"{args.changes or '--blurb'}: holds the marker {CHANGES_BEGIN} or {CHANGES_END}; "
            "take it out, pack writes it"
        )
    return changes


def slug_of(args: argparse.Namespace) -> str:
    """Kebab-case folder slug, so that folder, board and branch names need no quoting.

    Raises UserError for anything else.
    """
    slug = args.slug or re.sub(r"[^a-z0-9]+", "-", args.name.lower()).strip("-")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise UserError(f"--slug: expected kebab-case like ema-late-warmdown, found {slug!r}")
    return slug


def build_submission(args: argparse.Namespace, runs: list[Run]) -> Submission:
    """Typed record of the runs. Raises UserError when it breaks the track's caps or the schema."""
    logs = [run.log for run in runs]
    try:
        derived = derived_fields(TRACKS[args.track], logs)
        xz = xz_bytes(derived["data"], args.dataset)
        derived["data"] = derived["data"].model_copy(update={"xz_bytes": xz})
        submission = Submission(
            origin="packed",
            author=args.author or _git("user.name") or ANONYMOUS,
            github_id=args.github_id or _git("github.user") or ANONYMOUS,
            name=args.name,
            blurb=args.blurb,
            date=args.date or day_of_newest(logs),
            track=args.track,
            rules_version=CURRENT,
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


def day_of_newest(logs: list[Log]) -> date:
    """Day, in UTC, on which the newest log was written."""
    newest = max(log.path.stat().st_mtime for log in logs)
    return datetime.fromtimestamp(newest, UTC).date()


def check_caps(submission: Submission, track: Track) -> None:
    """Raises UserError for more bytes than the track allows."""
    if submission.bytes_total > track.bytes_cap:
        raise UserError(
            f"code + artifact are {submission.bytes_total:,} bytes, "
            f"the cap is {track.bytes_cap:,}; shrink the artifact"
        )
    if track.artifact_cap is not None and submission.bytes_artifact > track.artifact_cap:
        raise UserError(
            f"an artifact of {submission.bytes_artifact:,} bytes, "
            f"{submission.track} commits at most {track.artifact_cap:,} to git"
        )


def xz_bytes(data: Data, dataset: Path | None) -> int | None:
    """Size of the validation text under xz -9e, from the dataset's manifest.

    None where there is no manifest of the same corpus version. Raises UserError for a broken one.
    """
    path = (dataset or DATASETS / data.dataset) / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["version"] != data.version:
            return None
        validation = manifest["splits"]["val"]
        same_text = validation["source_bytes"] == data.val_bytes
        return validation.get("xz_bytes") if same_text else None
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
    """Name of the record that this one builds on. Raises UserError where there is none."""
    if args.base is None:
        return None
    name = Path(args.base).name
    folder = args.records_dir / args.track / name
    if not (folder / SUBMISSION_FILE).is_file():
        raise UserError(
            f"--base {args.base}: expected a record of {args.track}, found none at {folder}"
        )
    return name


def summary(folder: Path, submission: Submission) -> str:
    """What `pack` prints: the figures a user wants, where they are and what to look at next."""
    place = os.path.relpath(folder)
    rows = list(submission.seed_results.values())
    steps = (["check"], ["audit"], ["pack", "--refresh"])
    facts = {
        "record": place,
        "val_bpb": _headline(submission),
        "neural alone": _neural(rows),
        "xz -9e": _scale(submission.data),
        "artifact": (
            f"{submission.bytes_artifact:,} bytes; with code {submission.bytes_total:,} "
            f"of {TRACKS[submission.track].bytes_cap:,}"
        ),
        "time": (
            f"training {max(row.train_s for row in rows):.1f} s, "
            f"evaluation {max(row.eval_s for row in rows):.1f} s (slowest seed)"
        ),
        "author": _author(submission),
        "look at": f"{place}/README.md (figures, pictures, how to repeat it)",
        "next": "; ".join(typed_command("eval", *step, folder) for step in steps),
    }
    return aligned([(label, value) for label, value in facts.items() if value], LABEL_WIDTHS)


def _headline(submission: Submission) -> str:
    deviation = submission.val_bpb_std
    spread = "" if deviation is None else f" ± {deviation:.6f}"
    return f"{submission.val_bpb:.8f}{spread}, {len(submission.seeds)} seed(s)"


def _neural(rows: list[SeedResult]) -> str | None:
    """Mean bits per byte of the model alone."""
    values = [row.neural_val_bpb for row in rows if row.neural_val_bpb is not None]
    return f"{mean(values):.8f}" if values else None


def _scale(data: Data) -> str | None:
    return f"{bits_per_byte(data):.4f} bits per byte on the same text" if data.xz_bytes else None


def _author(submission: Submission) -> str:
    author = f"{submission.author} (@{submission.github_id})"
    if ANONYMOUS in (submission.author, submission.github_id):
        return f"{author}; give --author and --github-id before a pull request"
    return author
