"""A copy of the project that trains, exports, scores and packs, and that may be killed."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import train_gpt as tg
from bench.machine import ROOT

SIZE = "--preset docs_cpu --iterations 30 --warmdown-steps 20 --log-every 5"
TRACK = "track_non_record_16mb"
UNDISTURBED = "undisturbed"
# Log lines that begin a phase.
MARKS = {"training": "step:1/", "export": "averaging ", "scoring": "artifact "}
PACKAGING = "packaging"


class Pipeline:
    """A copy of the project in `folder`, with a data set of its own text.

    Runs go by name. `start` begins one, or goes on with it.
    """

    def __init__(self, folder: Path, checkpoint_every: int):
        self.root = folder / "project"
        self.checkpoint_every = checkpoint_every
        self.copy_project()
        self.build_dataset(folder / "text")

    def copy_project(self) -> None:
        """What git tracks, apart from the records."""
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", ":!records/track_*"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)

    def build_dataset(self, text: Path) -> None:
        text.mkdir()
        for path in sorted([*self.root.glob("*/*.py"), *self.root.glob("*.md")]):
            shutil.copyfile(path, text / f"{path.parent.name}_{path.stem}.txt")
        data_root = str(self.root / "data")
        command = [sys.executable, "-m", "data", "text", "--data-root", data_root]
        files = map(str, sorted(text.iterdir()))
        subprocess.run([*command, *files], check=True, cwd=self.root, capture_output=True)

    def train_command(self, name: str) -> list[str]:
        """--resume 1 on the first start as on any other."""
        command = [sys.executable, "train_gpt.py", *SIZE.split()]
        command += ["--data-dir", "data/datasets/text_sp1024", "--out", str(self.out(name))]
        return [*command, "--resume", "1", "--checkpoint-every", str(self.checkpoint_every)]

    def pack_command(self, name: str) -> list[str]:
        log = str(self.out(name) / "train.log")
        command = [sys.executable, "-m", "eval", "pack", log, "--name", name, "--slug", name]
        command += ["--track", TRACK, "--author", "faults", "--github-id", "faults"]
        return [*command, "--replace"]

    def start(self, name: str) -> subprocess.Popen:
        """One shell, a process group of its own."""
        train = shlex.join(self.train_command(name))
        pack = shlex.join(self.pack_command(name))
        with open(self.error_file(name), "w") as errors:
            return subprocess.Popen(
                ["bash", "-c", f"{train} && exec {pack}"],
                cwd=self.root,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )

    def out(self, name: str) -> Path:
        return self.root / "runs" / name

    def error_file(self, name: str) -> Path:
        return self.root / f"{name}.err"

    def errors(self, name: str) -> str:
        return self.error_file(name).read_text()

    def log_lines(self, name: str) -> list[str]:
        """Behind the source that the log begins with."""
        log = self.out(name) / "train.log"
        text = log.read_text(errors="replace") if log.is_file() else ""
        return text.rpartition("===== end source =====")[2].splitlines()

    def has_logged(self, name: str, start: str) -> bool:
        return any(line.startswith(start) for line in self.log_lines(name))

    def record(self, name: str) -> Path | None:
        found = (self.root / "records" / TRACK).glob(f"*_{name}")
        return next(found, None)

    def is_packing(self, name: str) -> bool:
        """Whether the new record is being built beside the old one, which it will replace."""
        return any((self.root / "records" / TRACK).glob(f".*_{name}.*.tmp"))

    def phases_begun(self, name: str) -> list[str]:
        lines = self.log_lines(name)
        begun = []
        for phase, mark in MARKS.items():
            if any(line.startswith(mark) for line in lines):
                begun.append(phase)
        if self.is_packing(name):
            begun.append(PACKAGING)
        return begun

    def plant_older_record(self, name: str) -> None:
        """The undisturbed run's, under the name that the pipeline will give its own."""
        record = self.record(UNDISTURBED)
        shutil.copytree(record, record.with_name(record.name.replace(UNDISTURBED, name)))

    def outcome(self, name: str) -> dict:
        """What a user keeps: the score to the last printed digit, the record, the artifact."""
        lines = self.log_lines(name)
        result = next(line for line in lines if line.startswith("result "))
        submission = json.loads((self.record(name) / "submission.json").read_text())
        return {
            "val_bpb": result.split("val_bpb:")[1].split()[0],
            "packed_val_bpb": submission["val_bpb"],
            "artifact_sha256": tg.sha256_file(self.out(name) / "artifact.bin"),
            "packed_anew": submission["name"] == name,
        }
