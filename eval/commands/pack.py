"""`python -m eval pack`: from the run folders of one experiment to a record folder that can be submitted as it stands.

Every number comes from the logs (checked against each other and against the artifacts), every text from the command line; README and
pictures are rendered from the finished `submission.json`. `--refresh` renders them again, after an audit for example, and keeps the
`changes` text.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from eval.errors import UserError
from eval.files import DATASETS, RECORDS, REPOSITORY
from eval.papers.logs.proof import derived_fields
from eval.papers.rendering.packing import (
    Run,
    compare_runs,
    is_readable,
    load_run,
    refresh,
    write_folder,
)
from eval.papers.rendering.readme import CHANGES_BEGIN, CHANGES_END, bits_per_byte, default_changes
from eval.papers.submission.schema import (
    ANONYMOUS,
    DOCS_TRACK,
    SUBMISSION_FILE,
    TRACKS,
    Data,
    Submission,
    Track,
    mean,
)
from eval.rules import CURRENT


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
        if args.changes and is_readable(args.changes)
        else default_changes(submission)
    )
    if CHANGES_BEGIN in changes or CHANGES_END in changes:
        raise UserError(
            f"{args.changes or '--blurb'}: holds the marker {CHANGES_BEGIN} or {CHANGES_END}; take it out, pack writes it"
        )
    write_folder(folder, submission, runs, changes, args.requirements, args.replace)
    print(summary(folder, submission))
    return 0


def slug_of(args: argparse.Namespace) -> str:
    """Kebab-case folder slug. Raises UserError for anything else, so that folder, board and branch names need no quoting."""
    slug = args.slug or re.sub(r"[^a-z0-9]+", "-", args.name.lower()).strip("-")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise UserError(f"--slug: expected kebab-case like ema-late-warmdown, found {slug!r}")
    return slug


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
    path = (dataset or DATASETS / data.dataset) / "manifest.json"
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
        ("neural alone", f"{mean(neural):.8f}" if neural else None),
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
