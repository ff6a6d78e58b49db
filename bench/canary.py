"""Public scripts, drawn at random, through `python -m eval canary`: `python bench/canary.py GIT`.

GIT is a git directory of the contest's repository, bare or not. The population is every record
folder of the commit --base, and of each pull request from --pulls the first record folder that it
adds to --base. --seed shuffles it, and the first --count of it are tried, one after the other.
Other folders can be named: `REF:PATH` of the repository, or a folder on disk.

Each script gives a line of JSON in --lines as soon as it is done. A script that has a line there
of the same code of the canary and the same options is not tried again, so a stopped run goes on.
At the end --out holds all lines of this draw and what they come to. No source of any script is
written anywhere.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.machine import RESULTS, ROOT, software, write_json
from eval.errors import UserError
from eval.files import sha256_of_tree

RECORD = re.compile(r"records/track_[^/]+/[^/]+")
SCRIPT = re.compile(r"train_gpt(?!.*mlx)[^/]*\.py")
PULL = "refs/pull/{}/head"
LARGEST_FILE = 32 << 20  # bytes; record folders hold logs and scripts
MOST_SECONDS = 1800.0  # of one script: three times the most that the canary gives itself
SECONDS_TO_TIDY = 20.0
JUDGE = ROOT / "eval" / "trial" / "canary"


@dataclass(frozen=True)
class Entry:
    """A record folder: `ref` and `path` in the repository, or a folder on disk without a ref.

    `label` is the number of the pull request, or the folder's name."""

    label: str
    ref: str | None
    path: str


class Repository:
    """Reads a git directory by its commands, and checks nothing out."""

    def __init__(self, directory: Path):
        self.directory = directory
        if self.git("rev-parse", "--git-dir") is None:
            raise UserError(f"{directory}: expected a git directory, found none; clone one there")

    def git(self, *words: str) -> bytes | None:
        """What git prints, None where it fails."""
        command = ["git", f"--git-dir={self.directory}", *words]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def lines(self, *words: str) -> list[str]:
        printed = self.git(*words) or b""
        return [line for line in printed.decode(errors="replace").split("\0") if line]

    def records_of(self, ref: str) -> list[str]:
        """Record folders of a commit that hold a training script."""
        return _record_folders(self.lines("ls-tree", "-rz", "--name-only", ref, "records"))

    def records_added(self, base: str, ref: str) -> list[str]:
        """Record folders in which a branch adds or changes a training script."""
        start = (self.git("merge-base", base, ref) or b"").decode().strip()
        if not start:
            return []
        names = self.lines(
            "diff", "-z", "--name-only", "--diff-filter=AM", start, ref, "--", "records"
        )
        return _record_folders(names)

    def write_folder(self, ref: str, path: str, folder: Path) -> None:
        """Copy the plain files of a folder of a commit to `folder`; symbolic links are left out."""
        for line in self.lines("ls-tree", "-rzl", ref, f"{path}/"):
            facts, _, name = line.partition("\t")
            mode, kind, sha, size = facts.split()
            inside = Path(name).relative_to(path)
            plain = kind == "blob" and mode != "120000" and size.isdecimal()
            if not plain or int(size) > LARGEST_FILE or ".." in inside.parts:
                continue
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.git("cat-file", "blob", sha) or b"")


def _record_folders(names: Sequence[str]) -> list[str]:
    """Folders, in order and once each, in which a training script lies."""
    found: dict[str, None] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if RECORD.fullmatch(folder) and SCRIPT.fullmatch(file):
            found[folder] = None
    return list(found)


def population(repository: Repository, base: str, pulls: tuple[int, int] | None) -> list[Entry]:
    """All that may be drawn, in a fixed order."""
    merged = repository.records_of(base)
    entries = [Entry(path.rpartition("/")[2], base, path) for path in merged]
    for number in range(pulls[0], pulls[1] + 1) if pulls else ():
        ref = PULL.format(number)
        if repository.git("rev-parse", "--verify", "--quiet", ref) is None:
            continue
        own = [path for path in repository.records_added(base, ref) if path not in merged]
        entries += [Entry(str(number), ref, path) for path in own[:1]]
    return entries


def named(words: Sequence[str]) -> list[Entry]:
    """Entries of `REF:PATH` and of folders on disk."""
    entries = []
    for word in words:
        ref, colon, path = word.partition(":")
        pull = re.fullmatch(r"refs/pull/(\d+)/head", ref)
        if colon and not Path(word).exists():
            label = pull[1] if pull else path.rstrip("/").rpartition("/")[2]
            entries.append(Entry(label, ref, path.rstrip("/")))
        else:
            entries.append(Entry(Path(word).resolve().name, None, word))
    return entries


# --- One script ---


def state_of_the_code(folder: Path = JUDGE) -> str:
    """sha256 over the names and contents of all Python files below a folder."""
    return sha256_of_tree(folder, ".py")


@dataclass(frozen=True)
class Conditions:
    """What a line was made with: `code` as by state_of_the_code, further `options` of the command.

    `seconds` bounds the whole command: what a script prints must not hold up the others."""

    code: str
    options: tuple[str, ...] = ()
    seconds: float = MOST_SECONDS

    @property
    def row(self) -> dict:
        return {"code": self.code, "options": " ".join(self.options)}


def try_entry(entry: Entry, repository: Repository, conditions: Conditions) -> dict:
    """What the canary says of one record folder, without anything of its source."""
    with tempfile.TemporaryDirectory(prefix="canary-") as place:
        folder = Path(place) / "record"
        if entry.ref is None:
            folder = Path(entry.path)
        else:
            folder.mkdir()
            repository.write_folder(entry.ref, entry.path, folder)
        began = time.monotonic()
        command = [sys.executable, "-m", "eval", "canary", str(folder), "--json"]
        done = _ended([*command, *conditions.options], conditions.seconds)
    row = {"label": entry.label, "ref": entry.ref, "folder": Path(entry.path).name}
    row |= conditions.row
    row["minutes"] = round((time.monotonic() - began) / 60, 2)
    if done is None:
        return _unreported(row, f"the canary itself took more than {conditions.seconds:.0f} s")
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return _unreported(row, last.replace(str(folder), "").strip()[:300])
    return row | _summary(report)


def _ended(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess | None:
    """The command at its end, None where it had to be stopped."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        printed, said = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(command, process.returncode, printed, said)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it ends its sandbox and removes its files
    try:
        process.communicate(timeout=SECONDS_TO_TIDY)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def _unreported(row: dict, stopped_by: str) -> dict:
    """The row of a script of which there is no report."""
    return row | {
        "verdict": "NOT RUN",
        "bits": None,
        "some_score": False,
        "ended_well": False,
        "stopped_by": stopped_by,
    }


def _summary(report: dict) -> dict:
    """The facts of a report that a table needs."""
    runs = report["runs"]
    judged = [run for run in runs if run["scores"]]
    ended_well = [run for run in judged if run["stopped_by"] is None]
    bits = []
    findings = list(report["findings"])
    for run in runs:
        bits += [score["certain_bits"] for score in run["scores"]]
        findings += run["findings"]
    stopped = [run["stopped_by"] for run in runs if run["stopped_by"]]
    return {
        "script": report["script"],
        "verdict": report["verdict"],
        "bits": round(max(bits), 1) if bits else None,
        "some_score": bool(judged),
        "ended_well": bool(ended_well),
        "seconds_to_a_score": round(ended_well[0]["seconds"], 1) if ended_well else None,
        "stopped_by": stopped[0] if stopped else None,
        "help": next((run["help"] for run in runs if run["help"]), None),
        "findings": [f"{found['verdict']} {found['theme']}: {found['what']}" for found in findings],
        "runs": [_run_row(run) for run in runs],
        "left_out": report["left_out"],
        "fixed": report["fixed"],
    }


def _run_row(run: dict) -> dict:
    lowest = max(run["scores"], key=lambda score: score["certain_bits"], default=None)
    row = {name: run[name] for name in ("source", "world_size", "targets", "verdict", "tries")}
    row["seconds"] = round(run["seconds"], 1)
    if lowest is not None:
        kept = ("label", "unit", "claimed", "needed", "bits_below", "certain_bits")
        row |= {name: lowest[name] for name in kept}
    return row


# --- All of them ---


def draw(entries: list[Entry], seed: int, count: int) -> list[Entry]:
    """`count` entries in a random order that the seed gives."""
    shuffled = list(entries)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:count]


def known_rows(path: Path) -> dict[tuple[str | None, str], dict]:
    """The last lines that earlier runs wrote, by ref and folder; a line cut short is none."""
    rows = {}
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["ref"], row["folder"]] = row
    return rows


class Ledger:
    """The lines of all scripts tried so far; threads may write to it.

    A line counts only if it was made with these conditions."""

    def __init__(self, path: Path, conditions: Conditions):
        self.path = path
        self.conditions = conditions
        self.rows = known_rows(path)
        self.lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def row_of(self, entry: Entry, attempt: Callable[[Entry], dict]) -> dict:
        """The row of an entry: the one that is there, or that of an attempt, written down."""
        row = self.rows.get((entry.ref, Path(entry.path).name))
        if row is None or not row.items() >= self.conditions.row.items():
            row = attempt(entry)
            with self.lock, self.path.open("a", encoding="utf-8") as file:
                # The last line may have been cut short.
                file.write("\n" + json.dumps(row) + "\n")
        bits = "" if row["bits"] is None else f"{row['bits']:,.0f} bits"
        stopped = row["stopped_by"] if row["verdict"] == "NOT RUN" else ""
        minutes = f"{row['minutes']:.1f} min"
        print(row["label"], row["verdict"], bits, minutes, stopped, flush=True)
        return row


def try_all(
    entries: Sequence[Entry], attempt: Callable[[Entry], dict], ledger: Ledger, jobs: int
) -> list[dict]:
    """The rows of the entries, in their order; `jobs` scripts run side by side."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda entry: ledger.row_of(entry, attempt), entries))


def totals(rows: Sequence[dict]) -> dict:
    """How many came to a score and how many to their end, to which verdicts, in how much time.

    Only `ended_well` have printed all their scores: a run that is stopped may print one of its
    training and never reach that of the record."""
    return {
        "scripts": len(rows),
        "ended_well": sum(row["ended_well"] for row in rows),
        "some_score": sum(row["some_score"] for row in rows),
        "verdicts": dict(Counter(row["verdict"] for row in rows)),
        "median_minutes": sorted(row["minutes"] for row in rows)[len(rows) // 2],
        "most_minutes": max(row["minutes"] for row in rows),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("git", type=Path, metavar="GIT", help="a git directory")
    parser.add_argument(
        "records", nargs="*", metavar="REF:PATH", help="these instead of a random draw"
    )
    parser.add_argument("--base", default="HEAD", help="a commit (default HEAD)")
    parser.add_argument(
        "--pulls", nargs=2, type=int, metavar=("FIRST", "LAST"), help="numbers of pull requests"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=1, help="scripts side by side (default 1)")
    parser.add_argument(
        "--lines", type=Path, default=ROOT / "runs" / "canary.jsonl", help="JSON lines, resumed"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "canary.json")
    parser.add_argument(
        "--options",
        default="",
        help="further options of the command, as one word: --options='--seconds 300'",
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(words)
    try:
        repository = Repository(args.git)
        pulls = tuple(args.pulls) if args.pulls else None
        drawn_from = [] if args.records else population(repository, args.base, pulls)
        entries = named(args.records) or draw(drawn_from, args.seed, args.count)
        if not entries:
            raise UserError(f"{args.git}: expected record folders in {args.base}, found none")
        conditions = Conditions(state_of_the_code(), tuple(args.options.split()))
        attempt = partial(try_entry, repository=repository, conditions=conditions)
        rows = try_all(entries, attempt, Ledger(args.lines, conditions), args.jobs)
        result = {
            "environment": software(),
            "load_average": os.getloadavg(),
            "base": (repository.git("rev-parse", args.base) or b"").decode().strip(),
            "pulls": args.pulls,
            "population": len(drawn_from),
            "seed": args.seed,
            "jobs": args.jobs,
            "totals": totals(rows),
            "scripts": rows,
        }
        write_json(args.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result["totals"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
