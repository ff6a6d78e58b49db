"""What comes next after a list of tokens, asked of any record's script."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.shards import write_shard
from eval.errors import UserError
from tools.script import first_line, missing_names, refusals_of

# What a script must have for its model to be run here: that of today's train_gpt.py.
INTERFACE = ("Artifact", "Packed", "load_artifact", "open_ranks")
STREAM = "prompt"
SLOW = (
    "note: this script has another interface than today's train_gpt.py, "
    "so each token is one run of its score command, which is slow"
)


class NextToken(Protocol):
    """A model that continues lists of token ids."""

    tokenizer_sha256: str | None  # None where the artifact does not say

    def next_logits(self, tokens: list[int]) -> Tensor:
        """Of the token after these, logits or log-probabilities, float [V]."""


@contextlib.contextmanager
def open_model(module: ModuleType, script: Path, artifact: Path) -> Iterator[NextToken]:
    """Raises UserError for an artifact that the script refuses."""
    if not missing_names(module, INTERFACE):
        with refusals_of(module), module.open_ranks(os.environ) as ranks:
            loaded = module.load_artifact(artifact)
            yield ModelAlone(loaded, ranks)
        return
    print(SLOW, file=sys.stderr, flush=True)
    run_score = score_in_process(module) if callable(getattr(module, "main", None)) else None
    with tempfile.TemporaryDirectory() as folder:
        yield ScoringContract(run_score or score_in_child(script), artifact.resolve(), Path(folder))


class ModelAlone:
    """The model of an artifact of today's train_gpt.py. N-gram mixing takes no part."""

    def __init__(self, loaded: Any, ranks: Any):
        self.model = loaded.model.to(ranks.device)
        self.tokenizer_sha256 = loaded.tokenizer_sha256
        self.context = loaded.cfg.scoring.eval_seq_len
        self.dtype = ranks.score_dtype

    @torch.inference_mode()
    def next_logits(self, tokens: list[int]) -> Tensor:
        """After reading the last `context` tokens: windows like those of scoring."""
        window = torch.tensor([tokens[-self.context :]], device=self.model.embed.device)
        hidden, _ = self.model.hidden(window, dtype=self.dtype)
        return self.model.logits(hidden[0, -1]).float()


class ScoringContract:
    """Any record's script: its whole distribution after the last token, by its score command."""

    tokenizer_sha256 = None

    def __init__(self, run_score: Callable[[list[str]], None], artifact: Path, folder: Path):
        self.run_score = run_score
        self.artifact = artifact
        self.tokens = folder / f"{STREAM}.bin"
        self.probes = folder / "probes.json"
        self.out = folder / "out"
        self.out.mkdir()

    def next_logits(self, tokens: list[int]) -> Tensor:
        write_shard(self.tokens, [np.array(tokens, np.uint16)])
        self.probes.write_text(json.dumps({STREAM: [len(tokens) - 1]}))
        command = ["score", "--artifact", str(self.artifact), "--tokens", str(self.tokens)]
        command += ["--out", str(self.out), "--probes", str(self.probes)]
        self.run_score(command)
        return self.read_answer()

    def read_answer(self) -> Tensor:
        path = self.out / f"{STREAM}.probe.npy"
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path.name}: expected the distribution that the scoring contract asks for, "
                f"found {error}; the script does not answer the contract"
            ) from None
        path.unlink()
        if rows.ndim != 2 or len(rows) != 1 or np.isnan(rows).any():
            raise UserError(
                f"{path.name}: expected log-probabilities [1, V], found {rows.shape} "
                "or NaN; the script does not answer the contract"
            )
        return torch.from_numpy(rows[0].astype(np.float64))


def score_in_process(module: ModuleType) -> Callable[[list[str]], None]:
    """Calls the script's main(argv), which saves the start of Python for each token."""

    def run(command: list[str]) -> None:
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                exit_code = module.main(command)
        except SystemExit as leaving:
            exit_code = leaving.code
        except Exception as error:
            raise refused(f"{type(error).__name__}: {first_line(error)}") from error
        if exit_code:
            raise refused(said.getvalue())

    return run


def score_in_child(script: Path) -> Callable[[list[str]], None]:
    """Starts the script anew for each token."""

    def run(command: list[str]) -> None:
        done = subprocess.run(
            [sys.executable, str(script), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise refused(done.stdout)

    return run


def refused(said: str) -> UserError:
    lines = said.strip().splitlines() or ["no message"]
    return UserError(f"score: expected a distribution, found: {lines[-1].removeprefix('error: ')}")
