"""Train, export and score one Parameter Golf model: code + compressed weights <= 16,000,000 bytes, bits per byte on a fixed validation set.

  torchrun --standalone --nproc_per_node=8 train_gpt.py   the reference record (8xH100, FineWeb, 600 s); writes --out/train.log, --out/artifact.bin
  python train_gpt.py --preset docs_cpu                   the embedded track (any laptop, fixed step count)
  python train_gpt.py score --artifact A --tokens S.bin --out DIR [--probes P.json]   the scoring contract
  python train_gpt.py params | generate --artifact A --prompt "..."

Twelve sections, each of which uses earlier ones only; 8 (scoring) and 9 (n-gram mixer) know nothing of training.
"""

# --- 1. Imports and format constants ---

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path

import constriction
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

SHARD_MAGIC, SHARD_VERSION, SHARD_HEADER_INTS = 20240520, 1, 256
ARTIFACT_MAGIC, ARTIFACT_VERSION = b"PGOLFART", 2
SIZE_CAP_BYTES = 16_000_000  # decimal; code + artifact
PAD_ID, BOS_ID = 0, 1
WORKERS = functools.cache(
    ThreadPoolExecutor
)  # by number of threads; they live as long as the process
BF16_PAYS = {
    "cuda": True,
    "cpu": bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16")),
}  # on such CPUs at double speed


class UserError(Exception):
    """Bad input, not a bug: one line naming what was expected, what was found and what to do. The process exits with code 2."""


# --- 2. Config ---
@dataclass(frozen=True, kw_only=True)
class Config:
    """The committed defaults are the reference record. Switches are ints whose 0 means off."""

    data_dir: str = "data/datasets/fineweb10B_sp1024"
    out: str = "runs/train"
    seed: int = 1337
    # model
    vocab_size: int = 1024
    model_dim: int = 512
    num_layers: int = 10
    num_encoder_layers: int = (
        5  # encoder blocks push skip connections, the remaining (decoder) blocks pop them
    )
    encoder_recurrence: int = 0  # 1: run the encoder blocks twice, RMSNorm between the passes
    num_heads: int = 8
    num_kv_heads: int = 4
    mlp_hidden: int = 1536
    mlp_negative_slope: float = 0.0  # 0 = ReLU^2, 0.5 = LeakyReLU(1/2)^2
    pre_enrich_hidden: int = 768
    bigram_buckets: int = 2048
    bigram_dim: int = 128
    rope_base: float = 1e4
    q_gain_init: float = 1.5
    xsa_layers: int = 4  # exclusive self-attention on the last n layers
    logit_softcap: float = 30.0
    phase_init: int = 0  # 1: residual mix starts as sigmoid(3(i/(L-1) - 1/2)) instead of (1, 0)
    embed_init_std: float = 0.005
    # training
    train_batch_tokens: int = 524_288  # global, per optimizer step
    train_seq_len: int = 2048
    micro_batch_tokens: int = 65_536  # per rank and forward pass
    iterations: int = 20_000
    train_seconds: float = 588.0  # 0 = no clock; the cap on training is 600 s
    warmup_steps: int = 20  # compile warm-up: all state is restored afterwards
    warmdown_steps: int = 3500
    grad_clip: float = 0.0
    qat_lr_scale: float = (
        0.0  # straight-through fake quantisation once the learning-rate scale is below this
    )
    bf16: int = 1  # train with activations and Newton-Schulz in bfloat16 where that is fast: GPUs, CPUs with AVX-512 BF16; else in float32
    compile: int = 1  # torch.compile; needs a C++ compiler on CPU
    log_every: int = 50
    val_every: int = 1000  # 0 = only the final evaluation
    checkpoint_every: int = 0  # steps; 0 = only on SIGTERM or SIGINT
    resume: int = 0  # go on from this run's newest checkpoint in --out, where there is one
    # optimizers and averaging
    muon_lr: float = 0.025
    muon_momentum: float = 0.99
    muon_momentum_start: float = 0.92
    muon_momentum_warmup_steps: int = 1500
    newton_schulz_steps: int = 5
    embed_lr: float = 0.035
    scalar_lr: float = 0.025
    weight_decay: float = 0.04
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    ema_decay: float = 0.997
    swa_every: int = 50  # 0 = EMA alone
    swa_lr_scale: float = 0.2  # weights are collected once the learning-rate scale is below this
    # export
    matrix_format: str = "int6"
    embed_format: str = "fp16"
    control_format: str = "fp32"
    late_k_fp16_layers: int = 0  # key projections of the last n layers stay fp16
    fit_cap: int = (
        1  # coarsen the quantisation steps just enough to stay under the cap; 0 = refuse instead
    )
    # scoring
    eval_seq_len: int = 2048
    eval_stride: int = 64
    eval_batch_tokens: int = 131_072
    ngram_order: int = 12  # longest n-gram mixed in; 0 = the neural model alone


PRESETS = {  # docs_cpu is sized by step count, not by the clock, so that its score is reproducible
    "reference": "",
    "docs_cpu": "--data-dir data/datasets/docs_sp1024 --model-dim 128 --num-layers 2 --num-encoder-layers 1 --num-heads 4 --num-kv-heads 2 --mlp-hidden 384 "
    "--pre-enrich-hidden 192 --bigram-buckets 8192 --bigram-dim 64 --xsa-layers 1 --train-batch-tokens 4096 --train-seq-len 128 --micro-batch-tokens 2048 "
    "--iterations 480 --train-seconds 0 --warmup-steps 0 --warmdown-steps 320 --compile 0 --log-every 20 --val-every 0 --muon-momentum-warmup-steps 100 "
    "--muon-momentum 0.95 --muon-momentum-start 0.85 --ema-decay 0.98 --swa-every 0 --eval-seq-len 128 --eval-stride 32 --eval-batch-tokens 8192",
}
MODEL_FIELDS = [f.name for f in fields(Config)][
    3 : [f.name for f in fields(Config)].index("embed_init_std") + 1
]
SCORING_FIELDS = ["eval_seq_len", "eval_stride", "eval_batch_tokens", "ngram_order"]


def validate(cfg: Config) -> Config:
    """Returns cfg or raises UserError naming the first rule that does not hold and the values found."""
    formats, large, values = ("fp16", "fp32", "int8", "int6", "int5"), 1 << 40, vars(cfg)
    bounds = [
        (-1e300, 1e300, " ".join(f.name for f in fields(Config) if isinstance(f.default, float)))
    ]  # what is not finite ends here
    bounds += [
        (
            1,
            1 << 20,
            "model_dim num_heads num_kv_heads mlp_hidden pre_enrich_hidden bigram_buckets bigram_dim iterations log_every",
        )
    ]
    bounds += [
        (1, 1024, "num_layers"),
        (0, "num_layers", "num_encoder_layers xsa_layers late_k_fp16_layers"),
        (2, 65_536, "vocab_size"),
    ]  # uint16 shards
    bounds += [
        (1, large, "train_seq_len micro_batch_tokens train_batch_tokens"),
        (1, "eval_seq_len", "eval_stride"),
        (0, (1 << 63) - 1, "seed"),
    ]
    bounds += [
        (1, "eval_batch_tokens", "eval_seq_len"),
        (0, 255, "ngram_order"),
        (1e-9, 1000, "logit_softcap"),
    ]  # orders are stored as bytes
    bounds += [
        (
            0,
            large,
            "train_seconds warmup_steps warmdown_steps grad_clip val_every checkpoint_every swa_every muon_momentum_warmup_steps",
        )
    ]
    bounds += [
        (0, large, "newton_schulz_steps"),
        (0, 1 - 1e-9, "ema_decay muon_momentum muon_momentum_start adam_beta1 adam_beta2"),
    ]
    rules = [
        (f"{low} <= {n} <= {high}", [n, high], low <= values[n] <= values.get(high, high))
        for low, high, names in bounds
        for n in names.split()
    ]
    divisors = {
        "num_heads": "model_dim",
        "num_kv_heads": "num_heads",
        "train_seq_len": "micro_batch_tokens",
        "micro_batch_tokens": "train_batch_tokens",
    }
    rules += [
        (f"{n} to divide {whole}", [whole, n], values[whole] % max(1, values[n]) == 0)
        for n, whole in divisors.items()
    ]
    rules += [
        (
            "an even head size",
            ["model_dim", "num_heads"],
            cfg.model_dim // max(1, cfg.num_heads) % 2 == 0,
        )
    ]  # rotary pairs
    choices = {
        "matrix_format": formats,
        "embed_format": formats,
        "control_format": formats[:2],
    }  # gates are too few to pay for row scales
    rules += [
        (f"one of {', '.join(known)}", [n], values[n] in known) for n, known in choices.items()
    ]
    for rule, names, holds in rules:
        if not holds:
            raise UserError(
                f"config: expected {rule}, found {', '.join(f'{n}={values[n]}' for n in names if n in values)}; change these flags"
            )
    return cfg


def parse_config(argv: Sequence[str], environ: dict[str, str]) -> tuple[Config, list[str]]:
    """Preset, then upper-case field names in the environment (SEED=42), then flags (--seed 42); returns the config and its log lines.
    Raises UserError for an environment value of the wrong type or a broken rule; argparse refuses unknown flags (exit code 2)."""
    parser = argparse.ArgumentParser(
        prog="train_gpt.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=PRESETS, default=environ.get("PRESET", "reference"))
    for f in fields(Config):
        parser.add_argument(
            "--" + f.name.replace("_", "-"),
            type=type(f.default),
            metavar=type(f.default).__name__,
            help=f"default {f.default}",
        )
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset")
    if preset not in PRESETS:
        raise UserError(
            f"environment PRESET: expected one of {', '.join(PRESETS)}, found {preset!r}; correct or unset it"
        )
    base = dataclasses.replace(
        Config(),
        **{
            k: v
            for k, v in vars(parser.parse_args(PRESETS[preset].split())).items()
            if k != "preset" and v is not None
        },
    )
    sources, lines = (
        dict.fromkeys((k for k, v in given.items() if v is not None), "flag"),
        [f"config:preset {preset}"],
    )
    for f in (f for f in fields(Config) if given[f.name] is None and f.name.upper() in environ):
        raw, sources[f.name] = environ[f.name.upper()], f"environment {f.name.upper()}"
        try:
            given[f.name] = type(f.default)(raw)
        except ValueError:
            raise UserError(
                f"{sources[f.name]}: expected {type(f.default).__name__}, found {raw!r}; correct or unset it"
            ) from None
    cfg = validate(dataclasses.replace(base, **{name: given[name] for name in sources}))
    changed = [n for n in sources if getattr(cfg, n) != getattr(base, n)]
    lines += [
        f"config:override {n}={getattr(cfg, n)} (default {getattr(base, n)}, from {sources[n]})"
        for n in changed
    ]
    own = (
        "data_dir",
        "out",
        "seed",
        "checkpoint_every",
        "resume",
    )  # the rest is one for all seeds of a record
    comparable = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in own}
    return cfg, [
        *lines,
        f"config sha256:{hashlib.sha256(json.dumps(comparable, sort_keys=True).encode()).hexdigest()}",
    ]


def trains_in_bf16(cfg: Config, device: torch.device) -> bool:
    return bool(cfg.bf16) and BF16_PAYS[device.type]


# --- 3. Runtime ---
@dataclass(kw_only=True)
class Runtime:
    """This process among its peers. Communication is skipped at world size 1; the mathematics is the same lines."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log_path: Path | None = None
    events: list[torch.cuda.Event] = field(default_factory=list)

    def log(self, text: str, echo: bool = True) -> None:
        """Rank 0 appends to the log file and prints."""
        if self.rank == 0 and echo:
            print(text, flush=True)
        if self.rank == 0 and self.log_path is not None:
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def clock(self) -> float:
        """Seconds, once the device has done all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def pace(self) -> None:
        """Waits for the step before last, so that the host's clock is never more than two steps ahead of the GPU and its queue never drains."""
        if self.device.type == "cuda":
            self.events.append(torch.cuda.current_stream().record_event())
            if len(self.events) > 2:
                self.events.pop(0).synchronize()

    def all_reduce(self, tensor: Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(tensor, op)
        return tensor

    @contextlib.contextmanager
    def together(self) -> Iterable[None]:
        """If any rank finds bad input inside, every rank leaves, so that nobody waits in a collective for a peer that has gone; one of them says why."""
        error = None
        try:
            yield
        except (UserError, OSError) as caught:
            error = caught
        first = int(
            self.all_reduce(
                torch.tensor([self.world_size if error is None else self.rank]), dist.ReduceOp.MIN
            ).item()
        )
        if first < self.world_size:
            raise error if error is not None and first == self.rank else SystemExit(2)


def parallel(job: Callable, items: Sequence, device: torch.device) -> Iterable:
    """map(job, items). On a CPU up to 8 items (all in memory) run side by side in threads that share its cores: no layer then waits for another core."""
    threads, side_by_side = torch.get_num_threads(), min(torch.get_num_threads(), len(items), 8)
    if device.type != "cpu" or side_by_side < 2:
        return (yield from map(job, items))
    try:
        yield from WORKERS(side_by_side).map(
            lambda item: (torch.set_num_threads(threads // side_by_side), job(item))[1], items
        )
    finally:
        torch.set_num_threads(threads)  # MKL has one number for the whole process


def reuse_memory() -> None:
    """Under glibc, freed blocks stay with the process (up to 2 GiB) and large ones lie on huge pages: a steady step on a CPU meets no page fault."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    with contextlib.suppress(OSError, AttributeError, TypeError):
        for option in (
            (-4, 0),
            (-8, 1),
            (-1, (1 << 31) - 1),
        ):  # M_MMAP_MAX and M_ARENA_MAX: all from one heap; M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(*option)


@contextlib.contextmanager
def runtime(environ: dict[str, str]) -> Iterable[Runtime]:
    """The only place that reads RANK, LOCAL_RANK and WORLD_SIZE and that opens the process group."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    found = [environ.get(name, default) for name, default in names.items()]
    if not all(value.isdecimal() for value in found):
        raise UserError(
            f"environment {', '.join(names)}: expected integers, found {', '.join(found)}; start with torchrun or unset them"
        )
    rank, world_size, local_rank, local_world_size = map(int, found)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK: expected one of {torch.cuda.device_count()} visible GPUs, found {local_rank}; start fewer processes"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    else:
        reuse_memory()
    if device.type == "cpu" and (
        world_size > 1 or "OMP_NUM_THREADS" not in environ
    ):  # torchrun sets it to 1 for each process; share the cores instead
        torch.set_num_threads(
            max(
                1,
                len(os.sched_getaffinity(0)) // local_world_size
                if hasattr(os, "sched_getaffinity")
                else 1,
            )
        )
    if world_size > 1:
        # torch.optim imports this sooner or later; if later, its modules keep the group alive in default arguments and an exiting rank may abort
        from torch import _dynamo  # noqa: F401

        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            rank=rank,
            world_size=world_size,
        )
    try:
        rt = Runtime(rank=rank, world_size=world_size, device=device)
        BF16_PAYS["cpu"] = bool(
            rt.all_reduce(torch.tensor(int(BF16_PAYS["cpu"])), dist.ReduceOp.MIN).item()
        )  # one precision, whatever CPUs the ranks have
        yield rt
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def describe_environment(rt: Runtime, cfg: Config) -> list[str]:
    """Log lines that let a reader reproduce or distrust the run: versions, hardware, commit, and nvidia-smi where there is one."""

    def run(*command: str) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
                cwd=Path(__file__).parent,
            ).stdout.strip()
        return ""

    cuda, cpu = rt.device.type == "cuda", platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        cpu = next(
            (
                x.split(":", 1)[1].strip()
                for x in Path("/proc/cpuinfo").read_text().splitlines()
                if x.startswith("model name")
            ),
            cpu,
        )
    driver = (
        run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        if cuda
        else ""
    )
    known = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver,
        "cpu": cpu,
    }
    known |= {
        "gpus": torch.cuda.device_count() if cuda else 0,
        "gpu": torch.cuda.get_device_name(rt.device) if cuda else "",
        "cores": os.cpu_count(),
    }
    known |= {
        "platform": platform.platform(),
        "git_commit": run("git", "rev-parse", "HEAD"),
        "world_size": rt.world_size,
    }
    known |= {"train_dtype": "bfloat16" if trains_in_bf16(cfg, rt.device) else "float32"}
    smi = (
        ["===== nvidia-smi =====", run("nvidia-smi"), "===== end nvidia-smi ====="] if cuda else []
    )
    quoted = {
        k: "none" if v in ("", None) else json.dumps(v) if " " in str(v) else v
        for k, v in known.items()
    }
    return ["env " + " ".join(f"{k}:{v}" for k, v in quoted.items()), *smi]


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old file or the whole new one. Raises UserError when the folder cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: expected a writable place, found {error.strerror}; choose another --out or free space"
        ) from None


# --- 4. Data ---
def open_shard(path: Path, vocab_size: int | None = None) -> np.ndarray:
    """Read-only memory map, uint16 [num_tokens]. Raises UserError for a missing, truncated or foreign file or a token id >= vocab_size."""
    header_bytes = SHARD_HEADER_INTS * 4
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=SHARD_HEADER_INTS)
    except OSError as error:
        raise UserError(
            f"{path}: expected a token shard, found {error.strerror}; run `python -m data` to (re)build the data set"
        ) from None
    if len(header) < SHARD_HEADER_INTS or header[0] != SHARD_MAGIC or header[1] != SHARD_VERSION:
        found = f"magic {header[0]}, version {header[1]}" if len(header) >= 2 else f"{size} bytes"
        raise UserError(
            f"{path}: expected shard magic {SHARD_MAGIC}, version {SHARD_VERSION}, found {found}; rebuild it with `python -m data`"
        )
    num_tokens = int(header[2])
    if num_tokens < 1 or size != header_bytes + 2 * num_tokens:
        held = (size - header_bytes) // 2
        raise UserError(
            f"{path}: header promises {num_tokens:,} tokens, file holds {held:,}; delete it and rebuild with `python -m data`"
        )
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=header_bytes, shape=(num_tokens,))
    if (
        vocab_size is not None
        and vocab_size < 65_536
        and (largest := int(tokens.max())) >= vocab_size
    ):
        raise UserError(
            f"{path}: expected token ids < {vocab_size}, found {largest}; the shards belong to another tokenizer"
        )
    return tokens


class TokenStream:
    """The shards of one split, in name order, as one sequence."""

    def __init__(self, shards: Sequence[np.ndarray]):
        self.shards, self.starts = list(shards), np.cumsum([0] + [len(s) for s in shards])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """uint16 [length]; may cross shard borders."""
        first, last = np.searchsorted(self.starts, (start, start + length - 1), side="right") - 1
        return np.concatenate(
            [
                self.shards[i][max(0, start - self.starts[i]) : start + length - self.starts[i]]
                for i in range(first, last + 1)
            ]
        )


@dataclass(frozen=True)
class Dataset:
    train: TokenStream
    val: np.ndarray  # uint16 [num_tokens]
    val_bytes: int  # what val_bpb divides by
    tokenizer_sha256: str
    log_line: str


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_tokenizer(folder: Path, entry: dict) -> Path | None:
    """The manifest's tokenizer file (verified by sha256), beside the shards or in ../../tokenizers; None for plain bytes."""
    if entry["kind"] == "bytes":
        return None
    places = [
        p
        for p in (folder / entry["file"], folder.parent.parent / "tokenizers" / entry["file"])
        if p.is_file()
    ]
    if entry["sha256"] in (found := {sha256_file(p): p for p in reversed(places)}):
        return found[entry["sha256"]]
    what = f"expected the manifest's tokenizer, sha256 {entry['sha256']}, found {', '.join(found) or 'no file'}"
    raise UserError(
        f"{folder.parent.parent / 'tokenizers' / entry['file']}: {what}; rebuild the data set with `python -m data`"
    )


def count_bytes(tokens: np.ndarray, tokenizer: Path | None) -> int:
    """Bytes that the tokens stand for, by the contest's byte table: a byte-fallback piece is 1 byte, a control piece 0, a leading U+2581 is the
    space before the piece, which the tokenizer invents (its dummy prefix) right after a control token."""
    if tokenizer is None:
        return int((tokens >= 4).sum())  # byte260: ids 0..3 are control, the rest are bytes
    from sentencepiece import SentencePieceProcessor

    try:
        sp = SentencePieceProcessor(model_file=str(tokenizer))
    except RuntimeError:
        raise UserError(
            f"{tokenizer}: expected a SentencePiece model, found something else; rebuild the data set with `python -m data`"
        ) from None
    pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
    control = np.array(
        [sp.is_control(i) or sp.is_unused(i) or sp.is_unknown(i) for i in range(len(pieces))]
    )
    space = np.array([piece.startswith("\u2581") for piece in pieces]) & ~control
    text = [
        1 if sp.is_byte(i) else len(piece.removeprefix("\u2581").replace("\u2581", " ").encode())
        for i, piece in enumerate(pieces)
    ]
    invented = control & sp.encode("a", out_type=str)[0].startswith(
        "\u2581"
    )  # the space after these
    previous = np.concatenate([np.array([BOS_ID], tokens.dtype), tokens[:-1]])
    return int(
        np.where(control, 0, text)[tokens].sum() + (space[tokens] & ~invented[previous]).sum()
    )


def open_dataset(folder: Path, cfg: Config, rt: Runtime) -> Dataset:
    """Both splits; every shard's sha256, the tokenizer and the byte count agree with manifest.json, or UserError. Ranks share the hashing."""
    path = folder / "manifest.json"
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw)
        json.dumps(
            manifest, ensure_ascii=False
        ).encode()  # half of a surrogate pair is no text, and no log could hold it
        tokenizer, splits = manifest["tokenizer"], manifest["splits"]
        files = {
            name: [
                (folder / f["name"], int(f"{f['tokens']:d}"), str(f["sha256"]))
                for f in splits[name]["files"]
            ]
            for name in ("train", "val")
        }
        corpus, version, source_bytes = (
            manifest["corpus"],
            manifest["version"],
            splits["val"]["source_bytes"],
        )
        vocab_size, in_context = tokenizer["vocab_size"], bool(splits["val"].get("byte_files"))
        counted = int(
            f"{splits['val'].get('counted_bytes', source_bytes):d}"
        )  # 5.0 and "5" are no counts
        identity = {name: str(tokenizer[name]) for name in ("kind", "file", "sha256")}
        xz_line = (
            f" xz_bpb:{8 * xz / source_bytes:.4f}" if (xz := splits["val"].get("xz_bytes")) else ""
        )
    except OSError as error:
        raise UserError(
            f"{path}: expected a data set's manifest, found {error.strerror}; build one with `python -m data docs`"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: expected the manifest that `python -m data` writes, found {type(error).__name__} {error}; rebuild the data set"
        ) from None
    if empty := [name for name, entries in files.items() if not entries]:
        raise UserError(
            f"{path}: expected at least one {empty[0]} shard, found none; rebuild the data set with more documents"
        )
    if vocab_size != cfg.vocab_size:
        raise UserError(
            f"{path}: expected vocabulary {cfg.vocab_size}, found {vocab_size}; pass --vocab-size {vocab_size} or another --data-dir"
        )
    with rt.together():
        tokenizer_path = find_tokenizer(folder, identity)
        shards = {name: [open_shard(p) for p, _, _ in entries] for name, entries in files.items()}
        for p, n, expected in (files["train"] + files["val"])[rt.rank :: rt.world_size]:
            held, found = len(open_shard(p, cfg.vocab_size)), sha256_file(p)
            if (held, found) != (n, expected):
                raise UserError(
                    f"{p}: expected {n:,} tokens with sha256 {expected}, found {held:,} with {found}; rebuild the data set"
                )
        val_tokens = np.concatenate(shards["val"])
        if len(val_tokens) < 2:
            raise UserError(
                f"{files['val'][0][0]}: expected at least 2 validation tokens, found {len(val_tokens)}; rebuild with more documents"
            )
        # bytes that depend on context are in the sidecar that `python -m data` counted; the table cannot know them
        if not in_context and (found := count_bytes(val_tokens[1:], tokenizer_path)) != counted:
            raise UserError(
                f"{path}: expected {counted:,} validation bytes, found {found:,} by the byte table; rebuild the data set"
            )
    train = TokenStream(shards["train"])
    if len(train) < cfg.train_seq_len + 1:
        raise UserError(
            f"{folder}: expected more than train_seq_len={cfg.train_seq_len} training tokens, found {len(train)}; lower it or add text"
        )
    line = f"data corpus:{corpus} version:{version} dataset:{folder.name} tokenizer_sha256:{identity['sha256']} train_tokens:{len(train)} "
    line += f"val_tokens:{len(val_tokens)} val_bytes:{counted} train_files:{len(files['train'])} manifest_sha256:{hashlib.sha256(raw).hexdigest()}{xz_line}"
    return Dataset(train, val_tokens, counted, identity["sha256"], line)


class Loader:
    """Batches in an order that depends on the seed alone, not on world size and micro-batches: the stream is cut into rows of train_seq_len at a random
    phase per epoch, an epoch visits every row once. The whole state is `row`, rows consumed by all ranks. The next batch is read during the step."""

    def __init__(self, stream: TokenStream, cfg: Config, rt: Runtime):
        self.stream, self.seed, self.seq_len, self.rt = stream, cfg.seed, cfg.train_seq_len, rt
        self.rows_per_batch = cfg.train_batch_tokens // cfg.train_seq_len
        self.micro_rows = max(
            1,
            min(cfg.micro_batch_tokens // cfg.train_seq_len, self.rows_per_batch // rt.world_size),
        )
        if self.rows_per_batch % (self.micro_rows * rt.world_size):
            shape = f"{rt.world_size} ranks x micro-batches of {self.micro_rows} rows"
            raise UserError(
                f"config: expected {shape} to divide the batch of {self.rows_per_batch} rows; change --micro-batch-tokens or the number of ranks"
            )
        self.row, self.pool, self.pending = 0, ThreadPoolExecutor(1), None
        self.rows_per_epoch = max(1, (len(stream) - self.seq_len) // self.seq_len)
        self.epoch, self.phase, self.order = (
            -1,
            0,
            np.zeros(0, dtype=np.int64),
        )  # of the epoch last used

    def row_start(self, row: int) -> int:
        epoch, i = divmod(row, self.rows_per_epoch)
        if epoch != self.epoch:
            rng = np.random.default_rng([self.seed, epoch])
            slack = (
                len(self.stream) - self.seq_len * self.rows_per_epoch
            )  # >= 1: every row also needs its last target
            self.epoch, self.phase, self.order = (
                epoch,
                int(rng.integers(min(self.seq_len, slack))),
                rng.permutation(self.rows_per_epoch),
            )
        return self.phase + self.seq_len * int(self.order[i])

    def read(self, row: int) -> Tensor:
        """This rank's share of the global batch that starts at `row`: uint16 tokens as int32 [micro-steps, rows, seq_len + 1]."""
        first = row + self.rt.rank * (share := self.rows_per_batch // self.rt.world_size)
        rows = [
            self.stream.read(self.row_start(r), self.seq_len + 1)
            for r in range(first, first + share)
        ]
        batch = torch.from_numpy(np.stack(rows).astype(np.int32)).view(
            -1, self.micro_rows, self.seq_len + 1
        )
        return batch.pin_memory() if self.rt.device.type == "cuda" else batch

    def next(self) -> list[tuple[Tensor, Tensor]]:
        """Micro-batches (inputs, targets), int64 [rows, seq_len] on the device, for one optimizer step."""
        batch = self.pending.result() if self.pending is not None else self.read(self.row)
        self.row += self.rows_per_batch
        self.pending = self.pool.submit(self.read, self.row)
        return [
            (micro[:, :-1], micro[:, 1:])
            for micro in batch.to(self.rt.device, non_blocking=True).long()
        ]


# --- 5. Model ---
HEAD_ELEMENTS = {
    "cpu": 1 << 18,
    "cuda": 1 << 24,
}  # logits at a time: what a cache holds in float64, or fills a GPU
# Shapes: B batch, T time, D model, H query heads, G key/value heads, K head size, V vocabulary, N tokens of a stream, M = N - 1 targets.


def rms_norm(x: Tensor) -> Tensor:
    """Weightless RMSNorm over the last axis (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.size(-1),))


def rotary_tables(positions: Tensor, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """cos, sin, float32 [T, K], for half-split rotation (Su et al. 2021). Angles in float64: position x frequency exceeds float32's precision."""
    inverse = base ** (
        -torch.arange(0, head_size, 2, dtype=torch.float64, device=positions.device) / head_size
    )
    angles = positions.double()[:, None] * inverse
    return torch.cat([angles.cos()] * 2, dim=1).float(), torch.cat(
        (-angles.sin(), angles.sin()), dim=1
    ).float()


def rotate(x_BTHK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of each head, positions from the last rows of the tables."""
    T, H, K = x_BTHK.shape[1:]
    cos, sin = (
        t[-T:, None].to(x_BTHK.dtype).repeat(1, H, 1) for t in (cos_TK, sin_TK)
    )  # a product broadcast over heads is slow on a CPU
    return torch.addcmul(x_BTHK * cos, x_BTHK.roll(K // 2, dims=-1), sin)


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy, nats, of the logits cap tanh(x E^T / cap) for x [n, D], E [V, D], int64 targets [n]. The gradients are made with the loss, some
    rows at a time, so that logits never leave the cache and nothing of size n V is kept. tanh u = 2 s(2u) - 1 with the logistic s, for its speed on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, embed: Tensor, targets: Tensor, cap: float) -> Tensor:
        weight, wide, rows = (
            embed.to(x.dtype),
            torch.promote_types(x.dtype, torch.float32),
            max(1, HEAD_ELEMENTS[x.device.type] // len(embed)),
        )
        dx, d_embed, total = (
            [],
            torch.zeros_like(embed),
            torch.zeros((), dtype=wide, device=x.device),
        )
        for part, target in zip(x.split(rows), targets[:, None].split(rows), strict=True):
            s = F.linear(part, weight).to(wide).mul_(2 / cap).sigmoid_()
            z = s * (2 * cap)  # the logit + cap
            p = torch.softmax(z, -1)
            total += (z.amax(-1) - p.amax(-1).log() - z.gather(1, target).squeeze(1)).sum()
            dz = (
                p.scatter_add_(1, target, p.new_full((), -1.0).expand_as(target))
                .mul_(s.addcmul_(s, s, value=-1))
                .to(x.dtype)
            )
            dx.append(dz @ weight)
            d_embed += dz.mT @ part
        ctx.save_for_backward(torch.cat(dx), d_embed)
        return total / len(x)

    @staticmethod
    def backward(ctx, d_loss: Tensor) -> tuple:
        dx, d_embed = ctx.saved_tensors
        scale = d_loss * (4 / len(dx))  # d logit / d(x E^T) = 1 - tanh^2 = 4 s (1 - s)
        return dx * scale.to(dx.dtype), d_embed * scale, None, None


class Linear(nn.Linear):
    """Bias-free, float32 master weight cast to the activation's dtype. With `levels` set, fake-quantised: symbols -levels..levels per row with a
    straight-through gradient (Bengio et al. 2013), about what the export, which also searches a clip, will store."""

    levels = 0

    def __init__(self, fan_in: int, fan_out: int, zero_init: bool = False):
        super().__init__(fan_in, fan_out, bias=False)
        if zero_init:
            nn.init.zeros_(self.weight)

    def cast(self, dtype: torch.dtype) -> Tensor:
        w = self.weight
        if self.levels:
            scale = w.detach().abs().amax(-1, keepdim=True).clamp_min(1e-12) / self.levels
            w = w + ((w / scale).round() * scale - w).detach()
        return w.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.cast(x.dtype))


class Attention(nn.Module):
    """Causal grouped-query attention with QK-norm, a gain per query head, rotary positions and, optionally, exclusion of the own value (XSA)."""

    def __init__(self, cfg: Config, xsa: bool):
        super().__init__()
        self.heads, self.kv_heads, self.head_size, self.xsa = (
            cfg.num_heads,
            cfg.num_kv_heads,
            cfg.model_dim // cfg.num_heads,
            xsa,
        )
        self.q = Linear(cfg.model_dim, self.heads * self.head_size)
        self.k = Linear(cfg.model_dim, self.kv_heads * self.head_size)
        self.v = Linear(cfg.model_dim, self.kv_heads * self.head_size)
        self.out = Linear(self.heads * self.head_size, cfg.model_dim, zero_init=True)
        self.q_gain = nn.Parameter(torch.full((self.heads,), cfg.q_gain_init))

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], tail: int) -> Tensor:
        """[B, tail, D], for the last `tail` positions."""
        B, T, _ = x_BTD.shape
        H, G, groups = self.heads, self.kv_heads, self.heads // self.kv_heads
        kv = F.linear(x_BTD, torch.cat([m.cast(x_BTD.dtype) for m in (self.k, self.v)])).view(
            B, T, 2 * G, self.head_size
        )
        q = rotate(rms_norm(self.q(x_BTD[:, T - tail :]).view(B, tail, H, self.head_size)), *rotary)
        k, v = rotate(rms_norm(kv[:, :, :G]), *rotary), kv[:, :, G:]
        own_v, q = v[:, T - tail :], q * self.q_gain[:, None].to(q.dtype)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, heads, T, K]
        if q.is_cpu:  # its flash kernel is slow in bfloat16, and without a grouped-query mode it would fall back to the unfused one
            q, k, v = (
                t.to(torch.promote_types(t.dtype, torch.float32)).repeat_interleave(
                    H // t.size(1), dim=1
                )
                for t in (q, k, v)
            )
        mask = (
            None
            if tail == T
            else torch.ones(tail, T, dtype=torch.bool, device=q.device).tril(T - tail)
        )
        y_BTHK = (
            F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=mask is None, enable_gqa=k.size(1) != H
            )
            .to(x_BTD.dtype)
            .transpose(1, 2)
        )
        if self.xsa:  # y <- y - (y.v)v with v the token's own unit value: attention may not copy what the residual stream already holds
            unit = F.normalize(own_v, dim=-1).unsqueeze(3)  # [B, tail, G, 1, K]
            y = y_BTHK.reshape(B, tail, G, groups, self.head_size)
            y_BTHK = y - (y * unit).sum(-1, keepdim=True) * unit
        return self.out(y_BTHK.reshape(B, tail, -1))


class Block(nn.Module):
    def __init__(self, cfg: Config, layer: int):
        super().__init__()
        self.attention = Attention(cfg, xsa=layer >= cfg.num_layers - cfg.xsa_layers)
        self.fc = Linear(cfg.model_dim, cfg.mlp_hidden)
        self.proj = Linear(cfg.mlp_hidden, cfg.model_dim, zero_init=True)
        self.slope = cfg.mlp_negative_slope
        keep = (
            1 / (1 + math.exp(-3 * (layer / max(1, cfg.num_layers - 1) - 0.5)))
            if cfg.phase_init
            else 1.0
        )
        self.mix = nn.Parameter(torch.tensor([[keep], [1 - keep]]).repeat(1, cfg.model_dim))
        self.attention_scale = nn.Parameter(torch.ones(cfg.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(cfg.model_dim))

    def forward(self, x: Tensor, stem: Tensor, rotary: tuple[Tensor, Tensor], tail: int) -> Tensor:
        mix, a, b = (
            self.mix.to(x.dtype),
            self.attention_scale.to(x.dtype),
            self.mlp_scale.to(x.dtype),
        )
        x = torch.addcmul(mix[0] * x, mix[1], stem)
        y = self.attention(rms_norm(x), rotary, tail)
        x = torch.addcmul(x[:, -tail:], a, y)
        return torch.addcmul(
            x, b, self.proj(F.leaky_relu(self.fc(rms_norm(x)), self.slope).square())
        )


class GPT(nn.Module):
    """The reference model: bigram-hash and smeared stem, pre-enrichment, U-Net of blocks, tied softcapped head."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        u, s, vh = torch.linalg.svd(
            torch.randn(cfg.vocab_size, cfg.model_dim) * cfg.embed_init_std, full_matrices=False
        )
        self.embed = nn.Parameter(
            u * (s[0] * torch.arange(1, len(s) + 1).rsqrt()) @ vh
        )  # S_k = S_1 k^(-1/2), the decay that trained embeddings show
        self.bigram = nn.Parameter(torch.randn(cfg.bigram_buckets, cfg.bigram_dim) * 0.01)
        self.bigram_proj = Linear(cfg.bigram_dim, cfg.model_dim)
        self.smear = nn.Parameter(torch.full((cfg.model_dim,), 3.0))
        self.enrich_in = Linear(cfg.model_dim, cfg.pre_enrich_hidden)
        self.enrich_out = Linear(cfg.pre_enrich_hidden, cfg.model_dim)
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.num_layers))
        num_skips = min(cfg.num_encoder_layers, cfg.num_layers - cfg.num_encoder_layers)
        self.skips = nn.Parameter(torch.ones(num_skips, cfg.model_dim))

    def hidden(
        self, ids_BT: Tensor, tail: int = 0, bf16: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Final normalised states [B, T, D] and pe_delta float32 [B, T], |change by pre-enrichment| / |input|. Position t sees ids <= t.
        With `tail`, both of the last positions alone, [B, tail, D] and [B, tail]: the last block does no more than they need.
        Activations are bfloat16 on request, by default on a GPU, float32 else: a score must not depend on the CPU that it was made on."""
        cfg, T, positions = (
            self.cfg,
            ids_BT.size(1),
            torch.arange(ids_BT.size(1), device=ids_BT.device),
        )
        dtype = (
            torch.bfloat16
            if (self.embed.is_cuda if bf16 is None else bf16) and self.embed.dtype == torch.float32
            else self.embed.dtype
        )
        inside = (ids_BT != BOS_ID) & (
            positions > 0
        )  # nothing is carried over a document's start, nor over the start of the window
        bucket = (
            92821 * torch.where(inside, F.pad(ids_BT[:, :-1], (1, 0)), 0) + ids_BT
        ) % cfg.bigram_buckets
        e = F.embedding(ids_BT, self.embed).to(dtype) + self.bigram_proj(
            F.embedding(bucket, self.bigram).to(dtype)
        )
        carry = torch.sigmoid(-self.smear).to(dtype) * inside.unsqueeze(-1)
        before = e + carry * (F.pad(e[:, :-1], (0, 0, 1, 0)) - e)
        after = self.enrich_out(F.gelu(self.enrich_in(before)))
        delta = (after - before).float().norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
        x = stem = rms_norm(after)
        rotary = rotary_tables(positions, cfg.model_dim // cfg.num_heads, cfg.rope_base)
        for repeat in range(cfg.encoder_recurrence + 1):
            skips, x = [], rms_norm(x) if repeat else x
            for block in self.blocks[: cfg.num_encoder_layers]:
                x = block(x, stem, rotary, T)
                skips.append(x)
        for i, block in enumerate(self.blocks[cfg.num_encoder_layers :]):
            if i < len(self.skips):
                x = x + self.skips[i].to(dtype) * skips.pop()
            x = block(x, stem, rotary, tail or T if block is self.blocks[-1] else T)
        return rms_norm(x[:, -tail:]), delta[:, -tail:]

    def logits(self, x: Tensor) -> Tensor:
        """float32 (float64 for a float64 model) [..., V]: tied head and tanh softcap, so |logit| <= logit_softcap."""
        z = F.linear(x, self.embed.to(x.dtype)).to(torch.promote_types(x.dtype, torch.float32))
        return self.cfg.logit_softcap * torch.tanh(z / self.cfg.logit_softcap)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean next-token cross-entropy, nats."""
        bf16 = trains_in_bf16(self.cfg, self.embed.device)
        return HeadLoss.apply(
            self.hidden(ids_BT, bf16=bf16)[0].flatten(0, 1),
            self.embed,
            targets_BT.flatten(),
            self.cfg.logit_softcap,
        )


# --- 6. Optimizers ---
PARAM_GROUPS = {
    "embed": lambda name, p: name in ("embed", "bigram"),
    "matrix": lambda name, p: p.ndim == 2 and name.endswith(".weight"),
}
PARAM_GROUPS["scalar"] = lambda name, p: p.ndim == 1 or name == "skips" or name.endswith(".mix")


def partition(
    model: nn.Module, rules: dict[str, Callable[[str, Tensor], bool]], what: str
) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters by rule; every parameter must be claimed by exactly one. Raises ValueError with the offending names."""
    claims = {
        n: [g for g, claim in rules.items() if claim(n, p)] for n, p in model.named_parameters()
    }
    if bad := {n: c for n, c in claims.items() if len(c) != 1}:
        raise ValueError(f"{what}: every parameter needs exactly one rule, found {bad}")
    return {g: {n: p for n, p in model.named_parameters() if claims[n] == [g]} for g in rules}


def newton_schulz(g: Tensor, steps: int) -> Tensor:
    """Approximate orthogonalisation U V^T of each matrix in [n, R, C], by the quintic iteration of Muon (Jordan et al. 2024), in g's dtype."""
    x = g.mT if (tall := g.size(-2) > g.size(-1)) else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Optimizers:
    """Muon on matrices, AdamW on embeddings and on scalars. `step` expects this rank's gradient of the mean loss over its share."""

    def __init__(self, model: nn.Module, cfg: Config, rt: Runtime):
        groups, by_shape = partition(model, PARAM_GROUPS, "optimizer groups"), {}
        self.cfg, self.rt, self.params, self.zero_grad = (
            cfg,
            rt,
            [p for p in model.parameters() if p.numel()],
            model.zero_grad,
        )
        for p in groups["matrix"].values():
            by_shape.setdefault(p.shape, []).append(p)
        self.matrices = [
            (same, torch.zeros(len(same), *shape, device=same[0].device))
            for shape, same in by_shape.items()
        ]  # and their momenta
        by_lr = [
            {"params": list(groups[g].values()), "base_lr": lr}
            for g, lr in (("embed", cfg.embed_lr), ("scalar", cfg.scalar_lr))
        ]
        self.adam = torch.optim.AdamW(
            by_lr,
            betas=(cfg.adam_beta1, cfg.adam_beta2),
            eps=1e-8,
            weight_decay=cfg.weight_decay,
            fused=True,
        )
        for p in (p for group in by_lr for p in group["params"]):
            self.adam.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
        self.state = {f"muon.{i}": momenta for i, (_, momenta) in enumerate(self.matrices)}
        self.state |= {
            f"adam.{i}.{kind}": t
            for i, moments in enumerate(self.adam.state.values())
            for kind, t in moments.items()
        }

    def step(self, step: int, lr_scale: float) -> None:
        if self.rt.world_size > 1:
            flat = torch.cat([p.grad.flatten() for p in self.params])
            self.rt.all_reduce(flat).div_(self.rt.world_size)
            for p, g in zip(self.params, flat.split([p.numel() for p in self.params]), strict=True):
                p.grad = g.view_as(p)
        if self.cfg.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.params, self.cfg.grad_clip)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        self.adam.step()
        ramp = (
            min(1.0, step / self.cfg.muon_momentum_warmup_steps)
            if self.cfg.muon_momentum_warmup_steps
            else 1.0
        )
        self.muon(
            self.cfg.muon_lr * lr_scale,
            self.cfg.muon_momentum_start
            + ramp * (self.cfg.muon_momentum - self.cfg.muon_momentum_start),
        )
        self.zero_grad(set_to_none=True)

    @torch.no_grad()
    def muon(self, lr: float, momentum: float) -> None:
        """Nesterov momentum, then Newton-Schulz, on all matrices [n, R, C] of one shape at a time; ranks share the matrices and gather the updates.
        Update: p <- p (1 - lr wd) - lr max(1, R/C)^(1/2) NS(g + mu m), with m <- mu m + g."""
        for params, buffer in self.matrices:
            grads = torch.stack([p.grad for p in params])
            buffer.mul_(momentum).add_(grads)
            update = grads.add_(buffer, alpha=momentum)
            share = -(-len(params) // self.rt.world_size)
            mine = update[self.rt.rank * share : (self.rt.rank + 1) * share]
            mine = (
                mine.bfloat16()
                if trains_in_bf16(self.cfg, mine.device) and mine.dtype == torch.float32
                else mine
            )  # half the bytes to gather
            mine = newton_schulz(mine, self.cfg.newton_schulz_steps) if len(mine) else mine
            if self.rt.world_size > 1:
                mine = F.pad(mine, (0, 0, 0, 0, 0, share - len(mine)))
                update = mine.new_empty(share * self.rt.world_size, *mine.shape[1:])
                dist.all_gather_into_tensor(update, mine.contiguous())
                mine = update[: len(params)]
            torch._foreach_mul_(params, 1 - lr * self.cfg.weight_decay)
            torch._foreach_add_(
                params,
                list(mine.to(params[0].dtype).unbind(0)),
                alpha=-lr * max(1.0, params[0].size(0) / params[0].size(1)) ** 0.5,
            )


def learning_rate_scale(step: int, elapsed: float, cfg: Config) -> float:
    """1, then linearly to 0 over the last warmdown_steps, measured in wall-clock seconds where there is a clock, at the mean step time so far."""
    by_steps = (cfg.iterations - step) / max(1, cfg.warmdown_steps)
    warmdown_seconds = cfg.warmdown_steps * elapsed / max(1, step)
    by_clock = (
        (cfg.train_seconds - elapsed) / warmdown_seconds
        if cfg.train_seconds > 0 and warmdown_seconds > 0
        else 1.0
    )
    return max(0.0, min(1.0, by_steps, by_clock))


# --- 7. Averaging ---
class Average:
    """EMA of the weights on their own device, plus the mean of snapshots taken late in the warm-down (SWA, Izmailov et al. 2018)."""

    def __init__(self, model: nn.Module, cfg: Config):
        self.params, self.decay, self.swa_count = list(model.parameters()), cfg.ema_decay, 0
        self.ema = [p.detach().clone() for p in self.params]
        self.swa = [torch.zeros_like(p) for p in self.params] if cfg.swa_every else []

    @torch.no_grad()
    def update(self, snapshot: bool) -> None:
        """After the optimizer step, so that the average never lags the weights by one."""
        torch._foreach_lerp_(self.ema, self.params, 1 - self.decay)
        if snapshot:
            self.swa_count += 1
            torch._foreach_add_(self.swa, self.params)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Half EMA, half SWA where snapshots were taken, else the EMA alone."""
        if self.swa_count:
            torch._foreach_mul_(self.swa, 1 / self.swa_count)
            torch._foreach_lerp_(self.ema, self.swa, 0.5)
        torch._foreach_copy_(self.params, self.ema)


# --- 8. Scoring ---
def plan_windows(num_positions: int, seq_len: int, stride: int) -> list[tuple[int, int, int]]:
    """Triples (start, first, end): the window reads positions [start, end) and scores [first, end); every position is scored exactly once.
    The grid is anchored at the start of the stream, so a shorter stream has the same windows, the last one cut. Raises ValueError."""
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride must be in 1..{seq_len}, got {stride}")
    windows, scored = [], 0
    while scored < num_positions:
        full_end = seq_len if scored == 0 else scored + stride
        windows.append((full_end - seq_len, scored, min(num_positions, full_end)))
        scored = full_end
    return windows


def plan_batches(
    lengths: Sequence[int], cfg: Config
) -> list[tuple[int, list[tuple[int, int, int, int]]]]:
    """(padded length, windows as (stream, start, first, end)) per batch. Depends on the streams and the config, never on the number of ranks.
    Short windows are padded to a multiple of 64 only, so that many short streams cost what they hold."""
    by_length: dict[int, list[tuple[int, int, int, int]]] = {}
    for stream, n in enumerate(lengths):
        for start, first, end in plan_windows(n, cfg.eval_seq_len, cfg.eval_stride):
            padded = min(cfg.eval_seq_len, -(-(end - start) // 64) * 64)
            by_length.setdefault(padded, []).append((stream, start, first, end))
    rows = {padded: max(1, cfg.eval_batch_tokens // padded) for padded in by_length}
    return [
        (n, windows[i : i + rows[n]])
        for n, windows in sorted(by_length.items())
        for i in range(0, len(windows), rows[n])
    ]


@dataclass
class StreamScores:
    """What the model says of one stream of N tokens. Position i is the prediction made after reading x[0..i]."""

    nll: Tensor  # float64 [M], nats: -ln p(x[i+1] | x[0..i])
    entropy: Tensor  # float64 [N], nats, of each prediction
    confidence: Tensor  # float64 [N], pe_delta of x[i]
    probes: dict[int, Tensor]  # position -> ln p(. | x[0..i]), float64 [V]


@torch.inference_mode()
def score_streams(
    model: GPT,
    streams: Sequence[np.ndarray],
    cfg: Config,
    rt: Runtime,
    probes: Sequence[Sequence[int]] = (),
) -> list[StreamScores]:
    """Sliding-window scores of every stream, each from a fresh state; ranks share the batches and all receive all results."""
    offsets = np.cumsum([0] + [len(s) for s in streams])
    wanted = np.unique(
        [offsets[s] + i for s, positions in enumerate(probes) for i in positions]
    ).astype(np.int64)
    table = torch.zeros(
        3, int(offsets[-1]), dtype=torch.float64, device=rt.device
    )  # nll, entropy, confidence
    probe_table = torch.zeros(
        len(wanted), model.cfg.vocab_size, dtype=torch.float64, device=rt.device
    )
    rows = max(1, HEAD_ELEMENTS[rt.device.type] // model.cfg.vocab_size)

    @torch.inference_mode()
    def score(padded: int, windows: list[tuple[int, int, int, int]]) -> None:
        ids = np.full((len(windows), padded), PAD_ID, dtype=np.int64)
        for row, (s, start, _, end) in enumerate(windows):
            ids[row, : end - start] = streams[s][start:end]
        tail = padded - min(first - start for _, start, first, _ in windows)
        inside = np.concatenate(
            [
                (row + 1) * tail - padded + np.arange(first - start, end - start)
                for row, (_, start, first, end) in enumerate(windows)
            ]
        )
        where = np.concatenate([offsets[s] + np.arange(first, end) for s, _, first, end in windows])
        target = np.concatenate(
            [
                np.append(streams[s][first + 1 : end + 1], [PAD_ID] * (end == len(streams[s])))
                for s, _, first, end in windows
            ]
        )
        ids, inside, where_t, target = (
            torch.from_numpy(a.astype(np.int64)).to(rt.device) for a in (ids, inside, where, target)
        )
        scored, delta = (t.flatten(0, 1)[inside] for t in model.hidden(ids, tail))
        table[2, where_t] = delta.double()
        for i in range(0, len(scored), rows):
            at = slice(i, i + rows)
            z = model.logits(scored[at])
            p = torch.softmax(z, -1, dtype=torch.float64)
            log_total = z.amax(-1) - p.amax(-1).log()  # ln of the sum of e^z
            table[0, where_t[at]] = log_total - z.gather(1, target[at, None]).squeeze(1)
            table[1, where_t[at]] = log_total - p.mul_(z).sum(-1)
            if len(hits := np.flatnonzero(np.isin(where[at], wanted))):
                probe_table[np.searchsorted(wanted, where[at][hits])] = (
                    z[hits] - log_total[hits, None]
                )

    list(
        parallel(
            lambda batch: score(*batch),
            plan_batches([len(s) for s in streams], cfg)[rt.rank :: rt.world_size],
            rt.device,
        )
    )
    rt.all_reduce(table)  # disjoint slots, zeros elsewhere: the sum is exact
    rt.all_reduce(probe_table)
    probed = [
        {int(i - a): probe_table[k] for k, i in enumerate(wanted) if a <= i < b}
        for a, b in itertools.pairwise(offsets)
    ]
    return [
        StreamScores(table[0, a : b - 1], *table[1:, a:b], mine)
        for (a, b), mine in zip(itertools.pairwise(offsets), probed, strict=True)
    ]


# --- 9. N-gram mixer ---
# All tokens are known, so a count of what came before t is a rank. Positions are kept sorted by (context of k tokens, time); a stable sort by (context,
# next token) refines them to k + 1. Ranks inside runs give, without hashing, c = earlier visits of the context, c_w = those followed by the target, D =
# distinct continuations seen. A context that occurs once leaves the active set. A context never spans a BOS, but counts outlive documents.
#   back-off    p_k(w) = (c_w + θ·D·p_{k-1}(w)) / (c + θ·D), p_0 = the neural model (Witten-Bell's escape, θ times stronger); it sums to 1
#               over w because Σ_w c_w = c, so the target's own counts suffice.
#   gate        p = (1 - α)·p_0 + α·p_K, α mixed over a grid by Bayes' rule with the losses of earlier positions in the same bucket (at most
#               ln|grid| nats of regret each). Buckets use only what is known before the target.

NGRAM_ESCAPE = 5.0  # θ
GATE_GRID = 8  # values of α, logistic from 0.02 to 0.98
GATE_WINDOW = 16  # targets behind the recency feature
GATE_UNIT = (
    2.0**-26
)  # nats; losses are summed in multiples of it, so float64 sums are exact (to 1e8 nats) in any order and chunking
RECENT_EDGES = (
    -0.3,
    -0.1,
    0.0,
    0.1,
    0.2,
    0.4,
    0.8,
)  # mean ln((1 + p_K/p_0)/2) over the last targets: is the chain winning now?
ENTROPY_EDGES = (0.5, 1.0, 2.0, 3.0, 4.0)  # nats
CONFIDENCE_EDGES = (1.0, 2.0)  # pe_delta
CONTINUATION_EDGES = (1.5, 3.5, 8.5, 32.5)  # distinct continuations of the longest match
COUNT_CHUNK, GATE_CHUNK = (
    1 << 17,
    1 << 15,
)  # positions per block: memory and cache only, never the result
NLL_CLAMP = 500.0  # nats; below e^-500 the chain's start is floored, so that no product of escapes leaves float64


def run_starts(sorted_keys: Tensor) -> Tensor:
    """Of a sorted 1-D tensor: mask of the elements that start a run of equal ones."""
    new = torch.ones(len(sorted_keys), dtype=torch.bool, device=sorted_keys.device)
    torch.ne(sorted_keys[1:], sorted_keys[:-1], out=new[1:])
    return new


def context_counts(
    tokens_N: Tensor,
    n_max: int,
    vocab_size: int,
    visit: Callable[[int, Tensor, Tensor, Tensor, Tensor], None],
) -> None:
    """Exact counts before each target, order by order: visit(n, at, c, c_w, D) for every block of whole contexts, n = 2, 3 ... context + target tokens;
    blocks of one order run in parallel on a CPU. at int64: index of the last context token, the target is x[at + 1]; c int32 earlier visits of the n - 1
    context tokens, c_w int32 those followed by the target, D int32 distinct continuations. A context never visited twice does not appear (c would be 0)."""
    V, n, index_N = (
        vocab_size + 1,
        1,
        torch.arange(len(tokens_N), dtype=torch.int32, device=tokens_N.device),
    )
    next_N = F.pad(
        tokens_N[1:].to(torch.int32), (0, 1), value=vocab_size
    )  # the last token has no target: what stands there is unique
    group, ends = (t.to(torch.int32) for t in torch.sort(tokens_N.to(torch.int32), stable=True))
    visits = index_N - torch.cummax(index_N * run_starts(group), 0).values

    def count(lo: int, hi: int) -> tuple[Tensor, Tensor, Tensor]:
        at, ids, index, c = (
            ends[lo:hi].long(),
            group[lo:hi] - group[lo],
            index_N[: hi - lo],
            visits[lo:hi],
        )
        target = next_N.index_select(0, at)
        wide = int(ids[-1]) >= (1 << 31) // V - 1  # narrow keys take fewer radix passes
        pairs, by_pair = torch.sort((ids.long() if wide else ids).mul_(V).add_(target), stable=True)
        pair_start = torch.cummax(index * (new_pair := run_starts(pairs)), 0).values
        rank = index - pair_start
        pair_count = torch.empty_like(rank).scatter_(0, by_pair, rank)
        novel = (pair_count == 0).to(torch.int32)
        distinct = torch.cumsum(novel, 0, dtype=torch.int32).sub_(novel)
        visit(n, at, c, pair_count, distinct.sub_(distinct.index_select(0, index - c)))
        # the pair is a context of order n + 1, unless it is unique or holds a BOS beyond its first token
        keep = target.index_select(0, by_pair) != BOS_ID
        keep &= ~(new_pair & F.pad(new_pair[1:], (0, 1), value=True))
        kept = keep.nonzero().squeeze(1)
        ends_of_pairs = at.index_select(0, by_pair.index_select(0, kept)) + 1
        return (
            pair_start.index_select(0, kept).add_(lo),
            ends_of_pairs.to(torch.int32),
            rank.index_select(0, kept),
        )

    while (n := n + 1) <= n_max and len(ends):
        cuts = (
            torch.searchsorted(group, group[::COUNT_CHUNK].contiguous())
            .unique_consecutive()
            .tolist()
        )  # no count crosses a block's edge
        blocks = parallel(
            lambda block: count(*block), [*itertools.pairwise([*cuts, len(ends)])], ends.device
        )
        group, ends, visits = map(torch.cat, zip(*blocks, strict=True))


def ngram_chain(
    tokens_N: Tensor, p_N: Tensor, n_max: int, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Backs off from p_N (float64 [N], the model's probability of the target after each position) through all orders. Returns the chain's probability
    float64 [N] and the longest match int32 [N]: 65536 n + (distinct continuations seen, at most 65535), n the highest order whose context was visited
    before (0 = none). The last position has no target: its probability is meaningless, its match is that of the prediction after the stream."""
    p_N, match_N = (
        F.pad(p_N, (0, 1)),
        torch.zeros(len(tokens_N) + 1, dtype=torch.int32, device=tokens_N.device),
    )  # first visits write to the last slot

    def back_off(n: int, at: Tensor, visits: Tensor, pair_visits: Tensor, distinct: Tensor) -> None:
        escape, p, at = (
            distinct.double().mul_(NGRAM_ESCAPE),
            p_N.index_select(0, at),
            at.masked_fill(visits == 0, len(tokens_N)),
        )
        p_N.scatter_(0, at, p.mul_(escape).add_(pair_visits).div_(escape.add_(visits)))
        match_N.scatter_(0, at, distinct.clamp_(max=65_535).add_(n << 16))

    context_counts(tokens_N, n_max, vocab_size, back_off)
    return p_N[:-1], match_N[:-1]


def gate_buckets(
    gain_N: Tensor, match_N: Tensor, entropy_N: Tensor, confidence_N: Tensor, n_max: int
) -> tuple[Tensor, int]:
    """Bucket of each position's gate int32 [N] and the number of buckets; gain_N = ln(p_K / p_0) of the targets, used strictly before each."""
    total = torch.cumsum(
        (torch.log1p(gain_N.exp()) - math.log(2)).clamp_(-3, 6).div_(GATE_UNIT).round_(), 0
    )
    recent = F.pad(total[:-1], (1, 0))
    recent[GATE_WINDOW + 1 :] -= total[: -GATE_WINDOW - 1]
    bucket, size = match_N >> 16, n_max + 1
    features = [
        (recent.mul_(GATE_UNIT / GATE_WINDOW), RECENT_EDGES),
        (entropy_N, ENTROPY_EDGES),
        (confidence_N, CONFIDENCE_EDGES),
    ]
    for feature, edges in [*features, (match_N & 65_535, CONTINUATION_EDGES)]:
        bucket, size = bucket * (len(edges) + 1), size * (len(edges) + 1)
        for edge in edges:  # faster than a search
            bucket += feature > edge
    return bucket, size


def bayes_gate(gain_N: Tensor, bucket_N: Tensor, num_buckets: int) -> Tensor:
    """α float64 [N] of p = (1 - α)·p_0 + α·p_K: posterior mean over the grid, given the gains at earlier positions of the same bucket."""
    grid = torch.sigmoid(
        torch.linspace(-4, 4, GATE_GRID, dtype=torch.float64, device=gain_N.device)
    )
    carry = torch.zeros(GATE_GRID, num_buckets, dtype=torch.float64, device=gain_N.device)
    alpha_N = torch.empty_like(gain_N)
    for lo in range(0, len(gain_N), GATE_CHUNK):
        bucket, by_bucket = torch.sort(bucket_N[lo : lo + GATE_CHUNK], stable=True)
        odds = torch.expm1(gain_N[lo : lo + GATE_CHUNK].index_select(0, by_bucket))
        earned = torch.log1p(grid[:, None] * odds).div_(GATE_UNIT).round_()
        total, starts = torch.cumsum(earned, 1), run_starts(bucket).nonzero().squeeze(1)
        ends = F.pad(starts[1:], (0, 1), value=len(bucket)) - 1
        seen = bucket.index_select(0, starts).long()
        evidence = total - earned
        base = carry.index_select(1, seen) - evidence.index_select(1, starts)
        carry.index_copy_(1, seen, base + total.index_select(1, ends))
        evidence += torch.cumsum(
            torch.zeros_like(total).index_copy_(
                1, starts, torch.diff(base, dim=1, prepend=base.new_zeros(GATE_GRID, 1))
            ),
            1,
        )
        alpha_N[lo : lo + GATE_CHUNK].scatter_(
            0, by_bucket, grid @ torch.softmax(evidence.mul_(GATE_UNIT), 0)
        )
    return alpha_N


def probe_chain(tokens_N: Tensor, i: int, p_V: Tensor, n_max: int) -> Tensor:
    """The chain's whole distribution [V] after position i, from the model's p_V, by scanning x[0..i] once: no shared data structure."""
    visits, n = (tokens_N[:i] == tokens_N[i]).nonzero().squeeze(1), 1
    while (n := n + 1) <= n_max and len(visits):
        counts = torch.bincount(tokens_N[visits + 1], minlength=len(p_V))
        escape = NGRAM_ESCAPE * int((counts > 0).sum())
        p_V = (counts + escape * p_V) / (len(visits) + escape)
        if i < n - 1 or tokens_N[i - n + 2] == BOS_ID:
            break
        visits = visits[visits >= n - 1]
        visits = visits[tokens_N[visits - n + 1] == tokens_N[i - n + 1]]
    return p_V


def final_scores(
    scores: StreamScores, stream: np.ndarray, cfg: Config
) -> tuple[Tensor, dict[int, Tensor]]:
    """The stream's reported nll, float64 [M], nats, and the whole ln p [V] at each probed position: the model's, mixed with the n-gram chain.
    Entry i depends on x[0..i] and the model's outputs at 0..i alone, whatever the chunks, batches and ranks."""
    if (n_max := cfg.ngram_order) < 2:
        return scores.nll, scores.probes
    tokens_N, nll_N = (
        torch.from_numpy(stream.astype(np.int64)).to(scores.nll.device),
        torch.cat([scores.nll, scores.nll.new_zeros(1)]),
    )
    p_N, match_N = ngram_chain(
        tokens_N, torch.exp(-nll_N.clamp(max=NLL_CLAMP)), n_max, cfg.vocab_size
    )
    gain_N = torch.log(p_N) + nll_N.clamp(max=NLL_CLAMP)
    alpha_N = bayes_gate(
        gain_N, *gate_buckets(gain_N, match_N, scores.entropy, scores.confidence, n_max)
    )
    mixed_N = torch.logaddexp(torch.log1p(-alpha_N) - nll_N, torch.log(alpha_N * p_N))
    chains = {
        i: probe_chain(tokens_N, i, log_p.clamp(min=-NLL_CLAMP).exp(), n_max)
        for i, log_p in scores.probes.items()
    }
    return -mixed_N[:-1], {
        i: torch.logaddexp(torch.log1p(-alpha_N[i]) + scores.probes[i], torch.log(alpha_N[i] * p_V))
        for i, p_V in chains.items()
    }


# --- 10. Export ---
LEVELS = {"int8": 127, "int6": 31, "int5": 15}  # symmetric: the symbols are -levels..levels
FLOAT_TYPES = {"fp16": torch.float16, "fp32": torch.float32}


def export_formats(model: nn.Module, cfg: Config) -> dict[str, str]:
    """Parameter name -> storage format; every parameter is claimed by exactly one rule."""
    late = [
        f"blocks.{i}.attention.k.weight"
        for i in range(cfg.num_layers - cfg.late_k_fp16_layers, cfg.num_layers)
    ]
    rules = {
        "embed": PARAM_GROUPS["embed"],
        "late_k": lambda name, p: name in late,
        "control": PARAM_GROUPS["scalar"],
    }
    rules["matrix"] = lambda name, p: PARAM_GROUPS["matrix"](name, p) and name not in late
    formats = {
        "embed": cfg.embed_format,
        "late_k": "fp16",
        "control": cfg.control_format,
        "matrix": cfg.matrix_format,
    }
    return {
        name: formats[rule]
        for rule, names in partition(model, rules, "export rules").items()
        for name in names
    }


def quantize_rows(w: Tensor, levels: int, coarsen: float = 1.0) -> tuple[Tensor, Tensor]:
    """Symbols int8 [R, C] and scales bfloat16 [R]: per row the clip among 16 fractions of its largest weight with the least squared error.
    The symbols are computed against the rounded scale, so its 8 bits of precision cost nothing. coarsen > 1 widens every step: fewer bits."""
    largest = w.abs().amax(-1)
    best_error, best_scale = torch.full_like(largest, math.inf), torch.ones_like(largest)
    for fraction in torch.linspace(0.4, 1.0, 16).tolist():
        scale = (largest * fraction / levels).bfloat16().float()
        scale = torch.where(scale > 0, scale, 1.0)
        error = (
            ((w / scale[:, None]).round().clamp(-levels, levels) * scale[:, None] - w)
            .square()
            .sum(-1)
        )
        better = error < best_error
        best_error, best_scale = (
            torch.where(better, error, best_error),
            torch.where(better, scale, best_scale),
        )
    scale = (best_scale * coarsen).bfloat16()
    return (w / scale.float()[:, None]).round().clamp(-levels, levels).to(torch.int8), scale


def byte_planes(t: Tensor) -> list[np.ndarray]:
    """uint8 arrays: all low bytes, then all next bytes ...: equal exponents lie side by side."""
    return list(t.contiguous().view(torch.uint8).view(-1, t.element_size()).T.contiguous().numpy())


def entropy_bytes(tensors: Iterable[Tensor]) -> float:
    """Zero-order entropy of their byte planes: what no coder of independent symbols can beat."""
    counts = [n[n > 0] for t in tensors for n in map(np.bincount, byte_planes(t))]
    return sum(float(-(n * np.log2(n / n.sum())).sum() / 8) for n in counts)


def encode(plane: np.ndarray) -> bytes:
    """uint8 [n] within a few bytes of its entropy, by asymmetric numeral systems (Duda 2013). Layout: u32 bytes that follow, or 0 when the n bytes
    are stored as they are; bitmap of the values that occur; a frequency u16 for each; the coder's u32 words."""
    counts = np.bincount(plane, minlength=256)
    present = counts > 0
    frequencies = np.maximum(1, np.round(counts[present] * (65_535 / max(1, counts.max())))).astype(
        "<u2"
    )
    coder = constriction.stream.stack.AnsCoder()
    if len(frequencies) > 1:
        model = constriction.stream.model.Categorical(
            frequencies / frequencies.sum(dtype=np.int64), perfect=False
        )
        coder.encode_reverse((np.cumsum(present) - 1)[plane].astype(np.int32), model)
    coded = (
        np.packbits(present).tobytes()
        + frequencies.tobytes()
        + coder.get_compressed().astype("<u4").tobytes()
    )
    return (
        struct.pack("<I", len(coded)) + coded
        if len(coded) < len(plane)
        else struct.pack("<I", 0) + plane.tobytes()
    )


def decode(data: memoryview, at: int, size: int) -> tuple[np.ndarray, int]:
    """The plane of `size` bytes that `encode` put at offset `at`, and the offset behind it. Raises ValueError, struct.error."""
    coded_bytes, at = struct.unpack_from("<I", data, at)[0], at + 4
    end = at + (coded_bytes or size)
    if not coded_bytes:
        return np.frombuffer(data, np.uint8, size, at), end  # ValueError where the data end before
    values = np.flatnonzero(
        np.unpackbits(np.frombuffer(data, np.uint8, coded_bytes, at)[:32])
    ).astype(np.uint8)
    coded = np.frombuffer(data[at + 32 : end], "<u2")
    frequencies, words = coded[: len(values)], coded[len(values) :].tobytes()
    if (
        not len(values)
        or len(frequencies) != len(values)
        or not frequencies.all()
        or (len(values) == 1 and words)
    ):
        raise ValueError("a tensor's table of frequencies is damaged")
    if len(values) == 1:
        return np.full(size, values[0]), end
    model = constriction.stream.model.Categorical(
        frequencies / frequencies.sum(dtype=np.int64), perfect=False
    )
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    plane = values[coder.decode(model, size)]
    if not coder.is_empty():
        raise ValueError("a tensor has more words than symbols")
    return plane, end


Stored = tuple[
    str, list[Tensor], int
]  # format; integer symbols and a bfloat16 scale per row, or floats alone; bytes in the artifact


def pack(
    model: GPT, cfg: Config, tokenizer_sha256: str, coarsen: float = 1.0
) -> tuple[bytes, dict[str, Stored]]:
    """The artifact's bytes, and its tensors: magic, version u32, header length u32, payload length u64, JSON header, payload, sha256 of all before it.
    The payload holds, in header order, the byte planes of every tensor's values and then of its row scales, each plane by `encode`."""
    stored, payload, parameters = {}, [], dict(model.named_parameters())
    for name, fmt in export_formats(model, cfg).items():
        w = parameters[name].detach().float()
        if not torch.isfinite(w).all():
            raise UserError(
                f"export: expected finite weights, found NaN or infinity in {name}; the run has diverged, lower the learning rates"
            )
        if fmt == "fp16" and (largest := float(w.abs().amax()) if w.numel() else 0) > 65_504:
            raise UserError(
                f"export: expected {name} within fp16's range, found {largest:.4g}; store it as fp32"
            )
        tensors = [
            t.cpu()
            for t in (
                quantize_rows(w, LEVELS[fmt], coarsen)
                if fmt in LEVELS
                else [w.to(FLOAT_TYPES[fmt])]
            )
        ]
        payload.append(b"".join(encode(plane) for t in tensors for plane in byte_planes(t)))
        stored[name] = fmt, tensors, len(payload[-1])
    payload = b"".join(payload)
    header = {
        "config": {name: getattr(cfg, name) for name in MODEL_FIELDS + SCORING_FIELDS},
        "tokenizer_sha256": tokenizer_sha256,
    }
    header["tensors"] = [
        [name, list(tensors[0].shape), fmt] for name, (fmt, tensors, _) in stored.items()
    ]
    header = json.dumps(header, separators=(",", ":")).encode()
    body = (
        ARTIFACT_MAGIC
        + struct.pack("<IIQ", ARTIFACT_VERSION, len(header), len(payload))
        + header
        + payload
    )
    return body + hashlib.sha256(body).digest(), stored


def export(model: GPT, cfg: Config, tokenizer_sha256: str, rt: Runtime, code_bytes: int) -> bytes:
    """The artifact under the cap: with fit_cap, quantisation steps are widened just enough (entropy falls by log2 of the factor per weight)."""
    limit, coarsen, formats = SIZE_CAP_BYTES - code_bytes, 1.0, export_formats(model, cfg)
    quantised = sum(p.numel() for name, p in model.named_parameters() if formats[name] in LEVELS)
    while True:
        data, stored = pack(model, cfg, tokenizer_sha256, coarsen)
        excess = len(data) - limit
        if excess <= 0:
            bound = sum(entropy_bytes(tensors) for _, tensors, _ in stored.values())
            rt.log(
                f"export coarsen:{coarsen:.4f} headroom_bytes:{-excess} entropy_bound_bytes:{bound:.0f}"
            )
            return data
        if not cfg.fit_cap or coarsen > 4 or not quantised:
            heaviest = ", ".join(
                f"{n} {t[2]:,}" for n, t in sorted(stored.items(), key=lambda item: -item[1][2])[:5]
            )
            found = (
                f"{len(data) + code_bytes:,}, {excess:,} over; heaviest tensors (bytes): {heaviest}"
            )
            raise UserError(
                f"export: expected code + artifact <= {SIZE_CAP_BYTES:,} bytes, found {found}; use a smaller format, model or --fit-cap 1"
            )
        coarsen *= 2 ** (1.02 * 8 * excess / quantised + 0.002)


def read_header(data: bytes, where: str) -> tuple[bytes, memoryview]:
    """JSON header and compressed payload of an artifact whose every byte is verified. Raises UserError."""
    start = len(ARTIFACT_MAGIC) + 16
    if len(data) < start + 32 or data[: len(ARTIFACT_MAGIC)] != ARTIFACT_MAGIC:
        raise UserError(
            f"{where}: expected an artifact that starts with {ARTIFACT_MAGIC!r}, found {bytes(data[:8])!r} in {len(data)} bytes; export it again"
        )
    version, header_bytes, payload_bytes = struct.unpack_from("<IIQ", data, len(ARTIFACT_MAGIC))
    size = start + header_bytes + payload_bytes + 32
    if version != ARTIFACT_VERSION:
        raise UserError(
            f"{where}: expected artifact version {ARTIFACT_VERSION}, found {version}; use the train_gpt.py that wrote it"
        )
    if len(data) != size or hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise UserError(
            f"{where}: expected {size:,} bytes that match their own sha256, found {len(data):,} that do not; copy the file again"
        )
    return data[start : start + header_bytes], memoryview(data)[start + header_bytes : -32]


def read_tensors(
    entries: list[tuple[str, list[int], str]], payload: memoryview
) -> dict[str, Stored]:
    """What `pack` wrote, by name. Raises ValueError, struct.error."""
    at, stored = 0, {}

    def take(dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        nonlocal at
        planes = []
        for _ in range(dtype.itemsize):
            plane, at = decode(payload, at, math.prod(shape))
            planes.append(plane)
        return torch.from_numpy(np.stack(planes, -1).reshape(-1)).view(dtype).view(*shape)

    for name, shape, fmt in entries:
        start, quantised = at, [(torch.int8, shape), (torch.bfloat16, shape[:1])]
        tensors = [
            take(*what) for what in (quantised if fmt in LEVELS else [(FLOAT_TYPES[fmt], shape)])
        ]
        stored[name] = fmt, tensors, at - start
    if at != len(payload):
        raise ValueError(f"its payload has {len(payload) - at} bytes too many")
    return stored


def unpack(data: bytes, where: str) -> tuple[GPT, Config, str]:
    """Model (float32, CPU), its config and the tokenizer's sha256. Nothing in the file is executed or unpickled. Raises UserError."""
    header, payload = read_header(data, where)
    try:
        header = json.loads(header)
        stored = header["config"]
        types = {f.name: type(f.default) for f in fields(Config)}
        if set(stored) != set(MODEL_FIELDS + SCORING_FIELDS) or any(
            type(v) is not types[k] for k, v in stored.items()
        ):
            raise ValueError("its config has other fields than this train_gpt.py")
        cfg = validate(Config(**stored))
        with torch.device("meta"):
            model = GPT(cfg)
        expected = {n: list(p.shape) for n, p in model.named_parameters()}
        tensors = [(str(name), list(shape), str(fmt)) for name, shape, fmt in header["tensors"]]
        if (
            {n: s for n, s, _ in tensors} != expected
            or len(tensors) != len(expected)
            or any(f in LEVELS and len(s) != 2 for _, s, f in tensors)
        ):
            raise ValueError("its tensors are not those of its config")
        if (
            count := sum(map(math.prod, expected.values()))
        ) > 1 << 28:  # a few bytes may claim to hold any number of equal ones
            raise ValueError(
                f"{count:,} parameters, more than twice as many as {SIZE_CAP_BYTES:,} bytes have bits"
            )
        stored = read_tensors(tensors, payload)
        state = {
            name: t[0].float() * t[1].float()[:, None] if t[1:] else t[0].float()
            for name, (_, t, _) in stored.items()
        }
        model.load_state_dict(state, assign=True)
        tokenizer_sha256 = str(header["tokenizer_sha256"])
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        OverflowError,
        MemoryError,
        RuntimeError,
        struct.error,
        UserError,
    ) as error:
        raise UserError(
            f"{where}: expected an artifact of this train_gpt.py, found: {error}; use the code that wrote it"
        ) from None
    return model.requires_grad_(False), cfg, tokenizer_sha256


def load_artifact(path: Path, rt: Runtime) -> tuple[GPT, Config, str]:
    try:
        model, cfg, tokenizer_sha256 = unpack(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(
            f"{path}: expected an artifact, found {error.strerror}; train one first"
        ) from None
    return model.to(rt.device), cfg, tokenizer_sha256


# --- 11. Training loop ---
def training_step(
    compute: Callable[[Tensor, Tensor], Tensor],
    batch: list[tuple[Tensor, Tensor]],
    params: list[nn.Parameter],
    rt: Runtime,
) -> Tensor:
    """Sets the gradients of the mean loss over this rank's micro-batches; returns that loss, float32 scalar on the device, nats."""

    def micro_step(micro: tuple[Tensor, Tensor]) -> list[Tensor]:
        loss = compute(*micro) / len(batch)
        return [loss.detach(), *torch.autograd.grad(loss, params)]

    total = next(gradients := parallel(micro_step, batch, rt.device))
    for other in gradients:
        torch._foreach_add_(total, other)  # in the order of the batch, whoever was first
    for p, g in zip(params, total[1:], strict=True):
        p.grad = g
    return total[0]


def warm_up(
    model: GPT, compute: Callable, optimizers: Optimizers, rows: int, cfg: Config, rt: Runtime
) -> None:
    """Compiles everything the loop will run on synthetic tokens (never on data), then restores weights and optimizer state bit for bit."""
    saved, formats, generator = (
        [p.detach().clone() for p in model.parameters()],
        export_formats(model, cfg),
        torch.Generator().manual_seed(0),
    )
    for step in range(cfg.warmup_steps):
        quantize_matrices(model, formats if cfg.qat_lr_scale > 0 and step % 2 == 1 else {})
        tokens = torch.randint(
            cfg.vocab_size, (rows, cfg.train_seq_len + 1), generator=generator
        ).to(rt.device)
        training_step(compute, [(tokens[:, :-1], tokens[:, 1:])], optimizers.params, rt)
        optimizers.step(step, 1.0)
    quantize_matrices(model, {})
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), saved)
        torch._foreach_zero_(list(optimizers.state.values()))


def quantize_matrices(model: GPT, formats: dict[str, str]) -> None:
    """Fake quantisation of the matrices whose export format is an integer, to as many levels; no formats turn it off."""
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.levels = LEVELS.get(formats.get(f"{name}.weight", ""), 0)


class Checkpoints:
    """The last two states of a run in --out, checkpoint_RUN_NUMBER_STEP_SHA256.npz: RUN names code, config, seed and data, NUMBER grows, SHA256 is the
    file's. All ranks hold the same state, so any number may go on from it; it needs no random generator, as a batch follows from seed and row."""

    def __init__(self, run: str, state: dict[str, Tensor], cfg: Config, rt: Runtime):
        self.run, self.state, self.cfg, self.folder, self.rt = (
            hashlib.sha256(run.encode()).hexdigest()[:12],
            state,
            cfg,
            Path(cfg.out),
            rt,
        )

    def find(self) -> list[Path]:
        return sorted(self.folder.glob(f"checkpoint_{self.run}_??????_*_*.npz"))

    def save(self, *progress: float) -> bool:
        """Whether it could be written; if not, the run goes on without. progress: step, row, SWA snapshots, seconds."""
        with self.rt.together():
            if self.rt.rank == 0:
                log, arrays = (
                    np.frombuffer(self.rt.log_path.read_bytes(), np.uint8),
                    {name: t.detach().cpu().numpy() for name, t in self.state.items()},
                )
                np.savez(buffer := io.BytesIO(), progress=np.array(progress), log=log, **arrays)
                number = 1 + max((int(path.name.split("_")[2]) for path in self.find()), default=0)
                name = f"checkpoint_{self.run}_{number:06d}_{progress[0]:07d}_{hashlib.sha256(data := buffer.getbuffer()).hexdigest()}.npz"
                try:
                    write_atomically(self.folder / name, data)
                except UserError as error:
                    self.rt.log(f"checkpoint not written: {error}")
                    return False
                self.rt.log(f"checkpoint step:{progress[0]} file:{name} bytes:{len(data)}")
                for old in [*self.find()[:-2], *self.folder.glob(f".checkpoint_{self.run}_*.tmp")]:
                    old.unlink(missing_ok=True)
        return True

    @torch.no_grad()
    def load(self) -> tuple[int, int, int, float]:
        """What `save` was told last, zeros where it never was, after restoring state and log. Raises UserError for another run's checkpoints."""
        progress = torch.zeros(4, dtype=torch.float64)
        with self.rt.together():
            if self.rt.rank == 0 and (others := sorted(self.folder.glob("checkpoint_*.npz"))):
                if not (whole := [p for p in self.find() if sha256_file(p) == p.stem[-64:]]):
                    raise UserError(
                        f"{others[-1]}: expected a whole checkpoint of this code, config, seed and data; undo changes or leave --resume out"
                    )
                try:
                    with np.load(path := whole[-1], allow_pickle=False) as arrays:
                        for name, t in {**self.state, "progress": progress}.items():
                            t.copy_(torch.from_numpy(arrays[name]).view(t.shape))
                        step, *_ = map(int, progress.tolist())
                        write_atomically(self.rt.log_path, arrays["log"].tobytes())
                except Exception as e:
                    raise (
                        e
                        if isinstance(e, UserError)
                        else UserError(
                            f"{path}: expected a checkpoint, found {type(e).__name__} {e}; remove it"
                        )
                    ) from None
                self.rt.log(
                    f"resume step:{step} train_time:{1000 * progress[3]:.0f}ms file:{path.name} {describe_environment(self.rt, self.cfg)[0]}"
                )
        for t in (progress, *self.state.values()):
            self.rt.all_reduce(t if self.rt.rank == 0 else t.zero_())
        return *map(int, progress[:3]), progress[3].item()


def train(
    model: GPT, dataset: Dataset, cfg: Config, rt: Runtime, run: str = ""
) -> tuple[int, float]:
    """Leaves averaged weights in the model; returns steps and seconds of training. SystemExit after SIGTERM or SIGINT; checkpoints are named after `run`."""
    optimizers, average, loader = (
        Optimizers(model, cfg, rt),
        Average(model, cfg),
        Loader(dataset.train, cfg, rt),
    )
    if (
        cfg.compile
        and rt.device.type == "cpu"
        and not os.environ.get("CXX")
        and not any(map(shutil.which, ("c++", "g++", "clang++")))
    ):
        raise UserError(
            "--compile: expected a C++ compiler for torch.compile on a CPU, found none; install one or pass --compile 0"
        )
    formats, compute = (
        export_formats(model, cfg),
        torch.compile(model, fullgraph=True, dynamic=False) if cfg.compile else model,
    )
    started = time.perf_counter()
    warm_up(model, compute, optimizers, loader.micro_rows, cfg, rt)
    rt.log(f"warmup steps:{cfg.warmup_steps} time:{time.perf_counter() - started:.1f}s")
    state = {
        f"{kind}.{i}": t
        for kind, held in (("weight", average.params), ("ema", average.ema), ("swa", average.swa))
        for i, t in enumerate(held)
    }
    checkpoints, signals = Checkpoints(run, state | optimizers.state, cfg, rt), []
    handlers = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        step, loader.row, average.swa_count, elapsed = (
            checkpoints.load() if cfg.resume else (0, 0, 0, 0.0)
        )
        loss, good, resumed, saved = (
            torch.zeros((), device=rt.device),
            torch.full((), step, device=rt.device),
            step or -1,
            True,
        )
        started = rt.clock() - elapsed
        while True:
            mine = torch.tensor(
                [(time.perf_counter() - started) * (rt.rank == 0), len(signals)],
                dtype=torch.float64,
            )
            elapsed, stop = rt.all_reduce(
                mine
            ).tolist()  # rank 0's clock, anybody's signal: all ranks leave after the same step, and no GPU waits
            lr_scale = learning_rate_scale(step, elapsed, cfg)
            done = step == cfg.iterations or (
                cfg.train_seconds > 0 and elapsed >= cfg.train_seconds
            )
            fresh = (
                step != resumed
            )  # the step of the checkpoint has been logged, validated and saved
            due = (
                fresh
                and step
                and (stop or (cfg.checkpoint_every and (done or step % cfg.checkpoint_every == 0)))
            )
            look = fresh and cfg.val_every and (done or step % cfg.val_every == 0)
            if fresh and step and (done or due or step <= 10 or step % cfg.log_every == 0):
                log_step(step, loss, good, lr_scale, elapsed, checkpoints, cfg, rt)
            if look or due:
                pause = rt.clock()
                if look:  # non-overlapping windows: cheaper and a little worse than the final sliding score
                    nll = score_streams(
                        model,
                        [dataset.val],
                        dataclasses.replace(cfg, eval_stride=cfg.eval_seq_len),
                        rt,
                    )[0].nll
                    loss_and_bpb = f"val_loss:{nll.mean():.4f} val_bpb:{nll.sum() / math.log(2) / dataset.val_bytes:.4f}"
                    rt.log(
                        f"step:{step}/{cfg.iterations} {loss_and_bpb} train_time:{1000 * (pause - started):.0f}ms"
                    )
                if due:
                    saved = checkpoints.save(step, loader.row, average.swa_count, pause - started)
                started += rt.clock() - pause  # neither is training time
            if stop:
                rt.log(
                    f"stopped step:{step} by a signal; --resume 1 goes on from the newest checkpoint"
                )
                raise SystemExit(0 if saved else 2)
            if done:
                break
            quantize_matrices(model, formats if lr_scale < cfg.qat_lr_scale else {})
            loss = training_step(compute, loader.next(), optimizers.params, rt)
            good += (
                torch.stack([loss, *torch._foreach_norm([p.grad for p in optimizers.params])])
                .isfinite()
                .all()
            )
            optimizers.step(step, lr_scale)
            step += 1
            average.update(
                snapshot=cfg.swa_every > 0
                and lr_scale < cfg.swa_lr_scale
                and step % cfg.swa_every == 0
            )
            rt.pace()
    finally:
        loader.pool.shutdown(wait=True, cancel_futures=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if signals and not stop:
        signal.raise_signal(signals[0])  # it came too late for a checkpoint
    seconds = rt.clock() - started
    quantize_matrices(model, {})
    rt.log(f"averaging ema_decay:{cfg.ema_decay} swa_snapshots:{average.swa_count}")
    average.copy_to_model()
    return step, seconds


def log_step(
    step: int,
    loss: Tensor,
    good: Tensor,
    lr_scale: float,
    elapsed: float,
    checkpoints: Checkpoints,
    cfg: Config,
    rt: Runtime,
) -> None:
    """`good` counts, on the device, this rank's steps with a finite loss: no step waits to be checked. Raises UserError for numbers that are not finite."""
    seen = torch.zeros(2, rt.world_size, dtype=torch.float64, device=rt.device)
    seen[:, rt.rank] = torch.stack([loss.double(), good.double()])
    losses, counts = rt.all_reduce(seen).tolist()
    if (first := int(min(counts))) < step or not torch.stack(
        torch._foreach_norm([*checkpoints.state.values()])
    ).isfinite().all():
        found = (
            f"others in step {first + 1} on rank {counts.index(first)}"
            if first < step
            else f"others after step {step}"
        )
        last = next((p.name for p in reversed(checkpoints.find())), "none")
        text = f"training: expected finite losses, gradients and weights, found {found}; start again with lower learning rates; last good checkpoint: {last}"
        raise UserError(text) if rt.rank == 0 else SystemExit(2)
    mean_loss = sum(losses) / rt.world_size
    left = min(
        (cfg.iterations - step) * elapsed / step,
        cfg.train_seconds - elapsed if cfg.train_seconds > 0 else math.inf,
    )
    line = f"step:{step}/{cfg.iterations} train_loss:{mean_loss:.4f} lr_scale:{lr_scale:.4f} train_time:{1000 * elapsed:.0f}ms "
    rt.log(
        line
        + f"step_avg:{1000 * elapsed / step:.2f}ms tokens_per_s:{step * cfg.train_batch_tokens / elapsed:.0f} left:{max(0.0, left):.0f}s"
    )


# --- 12. Commands ---
def command_train(argv: Sequence[str], rt: Runtime) -> None:
    """parse -> train -> average -> export -> reload the artifact from disk -> score -> result line."""
    cfg, config_lines = parse_config(argv, dict(os.environ))
    out, source = Path(cfg.out), Path(__file__).read_bytes()
    code_sha256, rt.log_path = hashlib.sha256(source).hexdigest(), out / "train.log"
    with rt.together():
        if rt.rank == 0:
            if rt.log_path.is_file() and b"\nstep:" in (log := rt.log_path.read_bytes()):
                write_atomically(out / "train.log.previous", log)
            write_atomically(rt.log_path, b"log_format:1\n")
    rt.log(
        f"===== source train_gpt.py bytes:{len(source)} sha256:{code_sha256} =====\n{source.decode()}\n===== end source =====",
        echo=False,
    )
    rt.log("\n".join(describe_environment(rt, cfg) + config_lines))
    dataset = open_dataset(Path(cfg.data_dir), cfg, rt)
    rt.log(dataset.log_line)
    torch.manual_seed(cfg.seed)
    model = GPT(cfg).to(rt.device)
    rt.log(f"model parameters:{sum(p.numel() for p in model.parameters())}")
    steps, train_seconds = train(
        model,
        dataset,
        cfg,
        rt,
        f"{code_sha256} {config_lines[-1]} seed:{cfg.seed} {dataset.log_line}",
    )
    if rt.device.type == "cuda":
        rt.log(
            f"memory peak_allocated_mib:{torch.cuda.max_memory_allocated() >> 20} peak_reserved_mib:{torch.cuda.max_memory_reserved() >> 20}"
        )
    path, started, artifact = out / "artifact.bin", time.perf_counter(), [b""]
    with rt.together():
        if rt.rank == 0:
            data = export(model, cfg, dataset.tokenizer_sha256, rt, len(source))
            write_atomically(path, data)
            artifact = [path.read_bytes()]
            export_time = time.perf_counter() - started
            rt.log(
                f"artifact file:{path.name} bytes:{len(data)} sha256:{hashlib.sha256(data).hexdigest()} export_time:{export_time:.1f}s"
            )
    if rt.world_size > 1:
        dist.broadcast_object_list(
            artifact, 0
        )  # another machine may not see the file, or an older one
    started = time.perf_counter()
    scores = score_streams(unpack(artifact[0], str(path))[0].to(rt.device), [dataset.val], cfg, rt)[
        0
    ]
    if rt.rank != 0:
        return
    targets, num_bytes, neural = len(scores.nll), dataset.val_bytes, scores.nll.sum().item()
    eval_time = time.perf_counter() - started
    rt.log(
        f"neural val_loss:{neural / targets:.8f} val_bpb:{neural / math.log(2) / num_bytes:.8f} eval_time:{eval_time:.1f}s"
    )
    nats, artifact_bytes = final_scores(scores, dataset.val, cfg)[0].sum().item(), len(artifact[0])
    line = f"result val_loss:{nats / targets:.8f} val_bpb:{nats / math.log(2) / num_bytes:.8f} nats:{nats:.6f} scored_tokens:{targets} "
    line += f"scored_bytes:{num_bytes} steps:{steps} train_s:{train_seconds:.1f} eval_s:{time.perf_counter() - started:.1f} artifact_bytes:{artifact_bytes} "
    rt.log(
        line
        + f"code_bytes:{len(source)} bytes_total:{artifact_bytes + len(source)} code_sha256:{code_sha256} seed:{cfg.seed}"
    )


def command_score(argv: Sequence[str], rt: Runtime) -> None:
    """The scoring contract: DIR/S.nll.npy float64 [N-1] in nats and, where probed, DIR/S.probe.npy float64 [K, V] of ln p."""
    parser = argparse.ArgumentParser(
        prog="train_gpt.py score", description=command_score.__doc__, allow_abbrev=False
    )
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, metavar="S.bin")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--probes", type=Path, metavar="P.json", help='{"S": [positions]}')
    args = parser.parse_args(argv)
    model, cfg, _ = load_artifact(args.artifact, rt)
    streams = {
        path.name.removesuffix(".bin"): np.asarray(open_shard(path, cfg.vocab_size))
        for path in args.tokens
    }
    if len(streams) != len(args.tokens):
        raise UserError(
            f"--tokens: expected distinct file names, found {[p.name for p in args.tokens]}; rename one"
        )
    try:
        probes = dict(json.loads(args.probes.read_bytes())) if args.probes else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f'{args.probes}: expected JSON like {{"stream": [0, 5]}}, found {error}; correct the file'
        ) from None
    for stem, positions in probes.items():
        length = len(streams.get(stem, []))
        if (
            not isinstance(positions, list)
            or not all(type(i) is int and 0 <= i < length for i in positions)
            or not length
        ):
            expected = (
                f"positions 0..{length - 1} for {stem!r}"
                if length
                else f"one of the streams {sorted(streams)} (a file name without .bin)"
            )
            raise UserError(
                f"{args.probes}: expected {expected}, found {positions if length else stem!r}; correct it"
            )
    scores = score_streams(
        model, list(streams.values()), cfg, rt, [probes.get(stem, []) for stem in streams]
    )
    for (stem, stream), result in zip(streams.items(), scores, strict=True) if rt.rank == 0 else ():
        nll, distributions = final_scores(result, stream, cfg)
        rows = torch.stack(
            [nll.new_zeros(cfg.vocab_size), *(distributions[i] for i in probes.get(stem, []))]
        )[1:]
        for name, array in (
            {"nll": nll, "probe": rows}.items() if stem in probes else [("nll", nll)]
        ):
            np.save(buffer := io.BytesIO(), array.cpu().numpy(), allow_pickle=False)
            write_atomically(args.out / f"{stem}.{name}.npy", buffer.getvalue())
        print(f"scored {stem}: {len(nll):,} targets, {nll.sum().item():.6f} nats", flush=True)


def command_params(argv: Sequence[str], rt: Runtime) -> None:
    """Parameters by group and their bytes after export, for an artifact or for a config's initial weights."""
    parser = argparse.ArgumentParser(
        prog="train_gpt.py params",
        description=command_params.__doc__,
        epilog="other flags: as for training",
        allow_abbrev=False,
    )
    parser.add_argument("--artifact", type=Path)
    args, rest = parser.parse_known_args(argv)
    title = args.artifact or "initial weights (zero-initialised projections compress to nothing)"
    if args.artifact and rest:
        parser.error(f"expected no other flag beside --artifact, found {' '.join(rest)}")
    model, cfg, _ = (
        load_artifact(args.artifact, rt)
        if args.artifact
        else (GPT(cfg := parse_config(rest, dict(os.environ))[0]), cfg, "")
    )
    raw, payload = read_header(
        args.artifact.read_bytes() if args.artifact else pack(model, cfg, "")[0], str(title)
    )
    stored = read_tensors(json.loads(raw)["tensors"], payload)
    parameters, groups = dict(model.named_parameters()), {}
    for name in parameters:
        groups.setdefault(re.sub(r"\.\d+|\.weight", "", name), []).append(name)
    total = sum(p.numel() for p in parameters.values())
    print(
        f"{title}\n{'group':<24}{'tensors':>8}{'parameters':>14}{'share':>8}  {'format':<12}{'stored bytes':>14}{'entropy bytes':>15}"
    )
    for group, names in [*groups.items(), ("total", list(parameters))]:
        count, kinds = (
            sum(parameters[n].numel() for n in names),
            "" if group == "total" else "/".join(sorted({stored[n][0] for n in names})),
        )
        coded, entropy = (
            sum(stored[n][2] for n in names),
            sum(entropy_bytes(stored[n][1]) for n in names),
        )
        print(
            f"{group:<24}{len(names):>8}{count:>14,}{count / total:>8.1%}  {kinds:<12}{coded:>14,}{entropy:>15,.0f}"
        )


def sample(
    logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator
) -> int:
    """One token id. temperature 0 is greedy; top_k 0 and top_p 1 keep all; top_p keeps the smallest set with that mass (Holtzman et al. 2020)."""
    if temperature < 1e-6:  # greedy to double precision, and no division by 0
        return int(logits_V.argmax())
    p, order = torch.softmax(logits_V.double() / temperature, dim=-1).sort(
        descending=True, stable=True
    )
    p = p * (p.cumsum(0) - p < top_p)
    return int(order[torch.multinomial(p[: top_k or None].cpu(), 1, generator=generator).item()])


@torch.inference_mode()
def generate(
    model: GPT, prompt: list[int], max_new: int, context: int, pick: Callable[[Tensor], int]
) -> Iterable[int]:
    """Yields max_new token ids, each after reading the last `context` tokens: windows like those of scoring, whatever the length."""
    tokens = list(prompt)
    for _ in range(max_new):
        hidden, _ = model.hidden(torch.tensor([tokens[-context:]], device=model.embed.device))
        tokens.append(pick(model.logits(hidden[0, -1]).float()))
        yield tokens[-1]


def command_generate(argv: Sequence[str], rt: Runtime) -> None:
    """Continues a prompt with an artifact's model (the n-gram mixer scores streams; it takes no part in generation)."""
    parser = argparse.ArgumentParser(
        prog="train_gpt.py generate", description=command_generate.__doc__, allow_abbrev=False
    )
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="SentencePiece model; default: the one in data/tokenizers that the artifact names by sha256",
    )
    parser.add_argument("--prompt", default="")
    for flag, default in {
        "max-new-tokens": 200,
        "temperature": 0.8,
        "top-k": 0,
        "top-p": 1.0,
        "seed": 1337,
    }.items():
        parser.add_argument(
            f"--{flag}",
            type=type(default),
            default=default,
            help=f"default {default}" + "; 0 = greedy" * (flag == "temperature"),
        )
    args = parser.parse_args(argv)
    if (
        min(args.top_k, args.max_new_tokens) < 0
        or not 0 <= args.temperature < math.inf
        or not 0 < args.top_p <= 1
    ):
        raise UserError(
            "generate: expected a finite temperature >= 0, top-k >= 0, 0 < top-p <= 1, max-new-tokens >= 0; change these flags"
        )
    from sentencepiece import SentencePieceProcessor

    model, cfg, tokenizer_sha256 = load_artifact(args.artifact, rt)
    candidates = (
        [args.tokenizer]
        if args.tokenizer
        else sorted((Path(__file__).parent / "data" / "tokenizers").glob("*.model"))
    )
    path = next((c for c in candidates if c.is_file() and sha256_file(c) == tokenizer_sha256), None)
    if path is None:
        raise UserError(
            f"{args.tokenizer or 'data/tokenizers'}: expected the tokenizer with sha256 {tokenizer_sha256}, found none; pass --tokenizer FILE"
        )
    sp, generator = (
        SentencePieceProcessor(model_file=str(path)),
        torch.Generator().manual_seed(args.seed),
    )
    prompt = [BOS_ID, *sp.encode(args.prompt)]
    new = generate(
        model,
        prompt,
        args.max_new_tokens,
        cfg.eval_seq_len,
        lambda z: sample(z, args.temperature, args.top_k, args.top_p, generator),
    )
    print(
        sp.decode(prompt[1:] + list(itertools.takewhile(lambda token: token != BOS_ID, new)))
    )  # a BOS begins another document


COMMANDS = {
    "train": command_train,
    "score": command_score,
    "params": command_params,
    "generate": command_generate,
}


def main(argv: Sequence[str]) -> int:
    command, rest = (argv[0], argv[1:]) if argv and argv[0] in COMMANDS else ("train", argv)
    try:
        with runtime(dict(os.environ)) as rt:
            COMMANDS[command](rest, rt)
    except (
        UserError,
        OSError,
        RuntimeError,
        KeyboardInterrupt,
    ) as error:  # an OSError here is a full disk or a file that vanished
        if isinstance(error, RuntimeError) and not re.search(
            "by peer|Broken pipe|NCCL", str(error)
        ):  # these: a rank died, gloo names its address
            raise
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
