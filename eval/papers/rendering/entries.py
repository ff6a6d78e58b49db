"""The records that a board shows, in their order, and the boards that they belong to."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval.errors import UserError
from eval.papers.audits.report import AuditReport
from eval.papers.audits.standing import REJECTED, UNAUDITED, Standing
from eval.papers.folder import Record, open_record
from eval.papers.logs.log import Log
from eval.papers.rendering.tensors import Artifact, read_artifact
from eval.papers.submission.schema import SUBMISSION_FILE, Submission, mean

UNRANKED = (UNAUDITED, REJECTED)  # below the ranked ones, in this order
NOTHING = "–"


@dataclass(frozen=True)
class Entry:
    """One record as the boards show it."""

    record: Record
    submission: Submission

    @property
    def folder(self) -> Path:
        return self.record.folder

    @property
    def track(self) -> str:
        return self.folder.parent.name

    @property
    def place(self) -> str:
        """The folder below records/, as a path and as the record's identity on the boards."""
        return f"{self.track}/{self.folder.name}"

    @property
    def name(self) -> str:
        return self.submission.name or self.folder.name

    @property
    def audit(self) -> AuditReport | None:
        return self.record.audit

    @property
    def standing(self) -> Standing:
        return self.record.standing

    @property
    def status(self) -> str:
        """`accepted`, `policy`, `rejected` or `unaudited`.

        `policy`: valid as a probability, but against a choice of the rule set. Such a record has a
        rank and is marked as disputed.
        """
        return self.standing.status

    @property
    def ranked(self) -> bool:
        return self.status not in UNRANKED

    @property
    def board(self) -> str:
        """Records are compared within one track and one corpus version."""
        data = self.submission.data
        corpus = f"corpus {data.corpus} {data.version[:12]}" if data else "corpus not stated"
        return f"{self.track}, {corpus}"

    @property
    def seeds(self) -> int | None:
        """Number of seeds behind the headline; None where the author states none."""
        return len(self.submission.seeds) or None

    @property
    def neural(self) -> float | None:
        """Mean bits per byte of the model alone; None where a seed does not state it."""
        values = [row.neural_val_bpb for row in self.submission.seed_results.values()]
        return mean(values) if values and None not in values else None

    def largest(self, name: str) -> float | None:
        """The largest stated value of a seed's field."""
        values = [getattr(row, name) for row in self.submission.seed_results.values()]
        return max((value for value in values if value is not None), default=None)

    @cached_property
    def logs(self) -> list[Log]:
        """The logs that the record names, else all that lie in the folder."""
        named = [row.log for row in self.submission.seed_results.values() if row.log]
        names = named or sorted([*self.record.logs, *self.record.duplicates])
        return [self.record.log(name) for name in names]

    @cached_property
    def artifact(self) -> Artifact | None:
        """The largest artifact in the folder, which the board's bytes are of; None without one."""
        names = [row.artifact for row in self.submission.seed_results.values() if row.artifact]
        present = [name for name in names if name in self.record.names]
        if not present:
            return None
        largest = max(present, key=lambda name: self.record.names[name])
        return read_artifact(self.record.files.read(largest))


def collect(records: Path) -> tuple[list[Entry], list[str]]:
    """All records below records/track_*/, those of large boards first; and what is left out.

    Within a board the audited ones come first, then those without an audit that counts, then the
    rejected ones, best score first. A broken record stops no other: it is left out, with a line
    that says why.
    """
    entries = []
    left_out = []
    for path in sorted(records.glob(f"track_*/*/{SUBMISSION_FILE}")):
        if path.parent.name.startswith("."):
            continue
        try:
            entries.append(_entry(path.parent))
        except UserError as error:
            left_out.append(str(error))
    names = [entry.board for entry in entries]
    group = {status: i for i, status in enumerate(UNRANKED, 1)}

    def place(entry: Entry) -> tuple[int, str, int, float, str]:
        return (
            -names.count(entry.board),
            entry.board,
            group.get(entry.status, 0),
            entry.submission.val_bpb,
            entry.folder.name,
        )

    return sorted(entries, key=place), left_out


def _entry(folder: Path) -> Entry:
    """A record as its folder says. Raises UserError for one that no board can show.

    A stranger's word for the track decides nothing: the folder does. `pack` writes both.
    """
    record = open_record(folder)
    problem = record.problem or record.audit_problem
    if record.submission is None or problem:
        raise UserError(problem)
    if record.submission.val_bpb is None:
        raise UserError(f"{folder}: expected a stated val_bpb, found none; state it")
    track = folder.parent.name
    stated = record.submission.track
    if record.submission.origin == "packed" and stated != track:
        raise UserError(
            f"{folder}: lies in {track} but states {stated}; move the folder or pack it again"
        )
    return Entry(record, record.submission)


def boards(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Entries by board, in the order of `entries`."""
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        members.setdefault(entry.board, []).append(entry)
    return members


def with_ranks(entries: list[Entry]) -> Iterator[tuple[Entry, str]]:
    """Each with its place on its board, for people; only audited records have one."""
    ranked = 0
    for entry in entries:
        ranked += entry.ranked
        yield entry, str(ranked) if entry.ranked else NOTHING
