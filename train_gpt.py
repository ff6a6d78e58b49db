"""Train, export and score one Parameter Golf model.

The contest: code + compressed weights of at most 16,000,000 bytes, trained in at most 600 s on
8xH100, scored in at most 600 s by bits per byte on a fixed validation set.

    torchrun --standalone --nproc_per_node=8 train_gpt.py
        The reference record (8xH100, FineWeb). Writes --out/train.log and --out/artifact.bin.
    python train_gpt.py --preset docs_cpu
        The embedded track: any laptop, a fixed number of steps.
    python train_gpt.py --preset docs_cpu --help
        Every setting, with the values of that preset.
    python train_gpt.py score --artifact A --tokens S.bin --out DIR [--probes P.json]
        The scoring contract.

Sections, each of which uses earlier ones only:

     1 Settings       2 Ranks and log    3 Data          4 Kernels
     5 Model          6 Optimizers       7 Averaging     8 Scoring
     9 N-gram mixing  10 Export          11 Training     12 Commands

Scoring and n-gram mixing know nothing of training.

Shape suffixes: B batch, T time, D model, H query heads, G key/value heads, K head size,
V vocabulary, N tokens of a stream, M = N - 1 targets. Losses are in nats unless said otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import functools
import hashlib
import importlib
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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import constriction
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

SHARD_MAGIC = 20240520
SHARD_VERSION = 1
SHARD_HEADER_INTS = 256
ARTIFACT_MAGIC = b"PGOLFART"
ARTIFACT_VERSION = 3
SIZE_CAP_BYTES = 16_000_000  # decimal; code + artifact
PAD_ID = 0
BOS_ID = 1


class UserError(Exception):
    """Bad input, not a bug. One line: what was expected, what was found, what to do.

    The process exits with code 2 and shows no traceback.
    """


# --- 1. Settings ---
# A setting is declared once, with its default, bounds, unit and help. The command line, the
# environment, the checks and the artifact's header all follow from that declaration. The parser
# is argparse: it must tell a flag that was not given from one that was given its default, and a
# library for that would be one more dependency of every submission.


def setting(
    default: Any,
    text: str,
    unit: str = "",
    *,
    low: float = 0,
    high: float = math.inf,
    below: float = math.inf,
) -> Any:
    """A dataclass field: a string, or a finite number with low <= value <= high and value < below.

    `text` is its help.
    """
    if isinstance(default, int) and math.isinf(high):
        high = 10**12
    facts = {"help": text, "unit": unit, "low": low, "high": high, "below": below, "choices": ()}
    return field(default=default, metadata=facts)


def choice(default: Any, text: str, choices: tuple[Any, ...]) -> Any:
    """A dataclass field that accepts a few values only."""
    return field(default=default, metadata={"help": text, "unit": "", "choices": choices})


def switch(default: int, text: str) -> Any:
    """A setting that is on (1) or off (0)."""
    return choice(default, text, (0, 1))


def accepted(f: dataclasses.Field) -> str:
    """What a setting accepts, in words: for errors and for --help."""
    if f.metadata["choices"]:
        return f"{f.name} to be one of {', '.join(map(str, f.metadata['choices']))}"
    low, high, below = (f.metadata[key] for key in ("low", "high", "below"))
    if math.isfinite(high):
        return f"{low} <= {f.name} <= {high}"
    if math.isfinite(below):
        return f"{low} <= {f.name} < {below}"
    if math.isfinite(low):
        return f"{f.name} >= {low}"
    return f"a finite {f.name}"


DEVICES = ("auto", "cpu", "cuda", "mps")
SINKS = ("none", "tensorboard", "wandb", "trackio")
MATRIX_FORMATS = ("fp16", "fp32", "int8", "int7", "int6", "int5")
NEWTON_SCHULZ = ("quintic", "polar_express")
CONTROL_FORMATS = ("fp16", "fp32")  # gates are too few to pay for row scales


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run reads and writes. These may differ between the seeds of one record."""

    data_dir: str = setting("data/datasets/fineweb10B_sp1024", "shards and manifest.json", "folder")
    out: str = setting("runs/train", "for the log, the artifact and the checkpoints", "folder")
    seed: int = setting(1337, "decides initial weights and order of batches", high=2**63 - 1)
    checkpoint_every: int = setting(
        0, "between checkpoints; 0 = only on SIGTERM or SIGINT", "steps"
    )
    resume: int = switch(0, "go on from the newest checkpoint in --out, if there is one")
    device: str = choice("auto", "where to train; auto = a CUDA GPU if there is one", DEVICES)
    sink: str = choice("none", "package that also receives the numbers of metrics.jsonl", SINKS)


@dataclass(frozen=True, kw_only=True)
class MechanismConfig:
    """Mechanisms that a model may have. With the defaults it has none of them.

    The artifact stores these; one that was written before a mechanism existed lacks its setting.
    """

    rope_dims: int = setting(0, "first dimensions of a head that rotate; 0 = all", high=2**20)
    norm_scale: int = switch(0, "the norms of block i, from 0, are divided by sqrt(i + 1)")
    smear_inputs: int = setting(
        0, "channels that gate what enters of the previous token; 0 = a share for each channel"
    )
    attention_gate_inputs: int = setting(
        0, "channels that gate each head's attention; 0 = no gates"
    )
    skip_gates: int = switch(0, "a skip is weighed against the stream by a gate for each channel")
    loop_first: int = setting(0, "first of the blocks that run several times, from 0")
    loop_last: int = setting(0, "last of the blocks that run several times")
    loop_passes: int = setting(1, "how often these run; 1 = no loop", low=1, high=64)
    parallel_layers: int = setting(0, "number of last blocks with attention and MLP side by side")
    isolate_documents: int = switch(0, "attention does not look back over a document's start")
    orthogonal_init: int = switch(0, "matrices that do not start at zero start orthogonal")
    overtone_init: int = switch(1, "reshape the spectrum of the embedding's initial values")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(MechanismConfig):
    """The shape of the model. The artifact stores these."""

    vocab_size: int = setting(1024, "in the vocabulary", "tokens", low=2, high=65_536)
    model_dim: int = setting(512, "width of the residual stream", low=1, high=2**20)
    num_layers: int = setting(10, "transformer blocks", low=1, high=1024)
    num_encoder_layers: int = setting(5, "first blocks, which push skips that later blocks pop")
    encoder_recurrence: int = setting(0, "extra passes through the encoder blocks", high=64)
    num_heads: int = setting(8, "query heads", low=1, high=2**20)
    num_kv_heads: int = setting(
        4, "key and value heads, each for some query heads", low=1, high=2**20
    )
    mlp_hidden: int = setting(1536, "width inside the MLP", low=1, high=2**20)
    mlp_negative_slope: float = setting(0.0, "0 = ReLU^2, 0.5 = LeakyReLU(1/2)^2", low=-math.inf)
    pre_enrich_hidden: int = setting(768, "width of the pre-enrichment MLP; 0 = none", high=2**20)
    bigram_buckets: int = setting(2048, "rows of the hashed bigram table; 0 = none", high=2**20)
    bigram_dim: int = setting(128, "columns of the bigram table", low=1, high=2**20)
    rope_base: float = setting(1e4, "base of the rotary frequencies", low=1e-9)
    q_gain_init: float = setting(1.5, "initial gain of each query head", low=-math.inf)
    xsa_layers: int = setting(4, "number of last blocks that use XSA")
    logit_softcap: float = setting(30.0, "c in: logits are c tanh(z / c)", low=1e-9, high=1000)
    phase_init: int = switch(0, "residual mix starts as a sigmoid of depth instead of (1, 0)")
    embed_init_std: float = setting(0.005, "initial standard deviation of the token embedding")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training run: batches, clock, optimizers and averages."""

    train_batch_tokens: int = setting(
        524_288, "per optimizer step, over all ranks", "tokens", low=1
    )
    train_seq_len: int = setting(2048, "of a training row", "tokens", low=1)
    micro_batch_tokens: int = setting(65_536, "per rank and forward pass", "tokens", low=1)
    iterations: int = setting(20_000, "optimizer steps at most", "steps", low=1, high=2**20)
    train_seconds: float = setting(588.0, "for training; 0 = no clock. The cap is 600", "seconds")
    warmup_steps: int = setting(20, "that compile; they leave no trace in the weights", "steps")
    warmdown_steps: int = setting(3500, "at the end, while learning rates fall to 0", "steps")
    warmdown_share: float = setting(
        0.0, "of the training that the warm-down takes; 0 = by warmdown_steps", high=1
    )
    lr_floor: float = setting(0.0, "lowest share of the learning rates", high=1)
    loop_from: float = setting(0.0, "share of the training after which blocks loop", high=1)
    grad_clip: float = setting(0.0, "largest norm of the gradient; 0 = no limit")
    qat_lr_scale: float = setting(0.0, "fake-quantise while learning rates are below this share")
    bf16: int = switch(1, "train in bfloat16 if every rank's device multiplies it fast")
    compile: int = choice(
        1,
        "torch.compile: 0 = off, 1 = on (a CPU needs a C++ compiler), 2 = tune products",
        (0, 1, 2),
    )
    log_every: int = setting(50, "between lines of the log", "steps", low=1, high=2**20)
    val_every: int = setting(1000, "between validations; 0 = only the final score", "steps")
    val_tokens: int = setting(0, "that such a validation reads; 0 = the whole split", "tokens")
    muon_lr: float = setting(0.025, "learning rate of matrices")
    muon_momentum: float = setting(0.99, "momentum of matrices after its warm-up", below=1)
    muon_momentum_start: float = setting(0.92, "momentum of matrices at the first step", below=1)
    muon_momentum_warmup_steps: int = setting(1500, "from the first momentum to the last", "steps")
    newton_schulz_steps: int = setting(
        5, "iterations that orthogonalise a matrix's update", high=64
    )
    newton_schulz: str = choice("quintic", "coefficients of these", NEWTON_SCHULZ)
    muon_row_norm: int = switch(0, "bring each row of an update to length 1 before these")
    bigram_muon: int = switch(0, "train the bigram table as a matrix, not as an embedding")
    embed_lr: float = setting(0.035, "learning rate of the embedding and bigram tables")
    scalar_lr: float = setting(0.025, "learning rate of gains, gates and scales")
    weight_decay: float = setting(
        0.04, "of matrices; decoupled, it is multiplied by the learning rate"
    )
    embed_weight_decay: float = setting(0.04, "the same, of the embedding and bigram tables")
    scalar_weight_decay: float = setting(0.04, "the same, of gains, gates and scales")
    adam_beta1: float = setting(0.9, "decay of AdamW's first moment", below=1)
    adam_beta2: float = setting(0.95, "decay of AdamW's second moment", below=1)
    ema_decay: float = setting(0.997, "of the weights' moving average, per step", below=1)
    swa_every: int = setting(50, "between snapshots that are averaged; 0 = EMA alone", "steps")
    swa_lr_scale: float = setting(0.2, "take snapshots while learning rates are below this share")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How weights are stored."""

    matrix_format: str = choice("int6", "format of projections", MATRIX_FORMATS)
    embed_format: str = choice("fp16", "format of the embedding", MATRIX_FORMATS)
    bigram_format: str = choice(
        "same", "format of the bigram table; same = the embedding's", ("same", *MATRIX_FORMATS)
    )
    small_matrix_elements: int = setting(0, "matrices of at most so many elements stay fp16")
    control_format: str = choice("fp32", "format of gains and scales", CONTROL_FORMATS)
    late_k_fp16_layers: int = setting(0, "number of last blocks whose key projections stay fp16")
    size_cap: int = setting(
        SIZE_CAP_BYTES, "for code + artifact; the contest's or less", "bytes", high=SIZE_CAP_BYTES
    )
    fit_cap: int = switch(1, "coarsen the quantisation just enough to stay under the size cap")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How streams are scored. The artifact stores these."""

    eval_seq_len: int = setting(2048, "of a window", "tokens", low=1)
    eval_stride: int = setting(64, "that each window after the first scores", "tokens", low=1)
    eval_batch_tokens: int = setting(131_072, "per rank and forward pass", "tokens", low=1)
    ngram_order: int = setting(12, "longest n-gram mixed in; 0 = the model alone", high=255)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings, by group. The defaults are the reference model, without any mechanism."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    export: ExportConfig = ExportConfig()
    scoring: ScoringConfig = ScoringConfig()

    def flat(self) -> dict[str, Any]:
        """Every setting by its own name. No two groups share a name (a test checks that)."""
        values: dict[str, Any] = {}
        for group in asdict(self).values():
            values.update(group)
        return values

    def with_settings(self, **changes: Any) -> Config:
        """A copy with some settings changed, by their own names. Raises KeyError for others."""
        groups = {}
        for group_field in fields(self):
            group = getattr(self, group_field.name)
            names = {f.name for f in fields(group)} & changes.keys()
            own = {name: changes.pop(name) for name in names}
            groups[group_field.name] = dataclasses.replace(group, **own)
        if changes:
            raise KeyError(f"no such settings: {', '.join(sorted(changes))}")
        return Config(**groups)


# What the presets `frontier` and `docs_frontier` share.
FRONTIER_MODEL: dict[str, Any] = {
    "mlp_negative_slope": 0.5,
    "pre_enrich_hidden": 0,
    "bigram_buckets": 0,
    "q_gain_init": 5.0,
    "norm_scale": 1,
    "smear_inputs": 12,
    "attention_gate_inputs": 12,
    "skip_gates": 1,
    "isolate_documents": 1,
    "orthogonal_init": 1,
    "overtone_init": 0,
    "num_encoder_layers": 5,
    "xsa_layers": 11,
    "rope_dims": 16,
    "loop_first": 3,
    "loop_last": 5,
    "loop_passes": 3,
    "parallel_layers": 3,
}
FRONTIER_TRAINING: dict[str, Any] = {
    "warmdown_share": 0.85,
    "lr_floor": 0.1,
    "loop_from": 0.35,
    "grad_clip": 0.3,
    "muon_lr": 0.026,
    "weight_decay": 0.095,
    "muon_row_norm": 1,
    "newton_schulz": "polar_express",
    "embed_lr": 0.03,
    "embed_weight_decay": 0.085,
    "scalar_lr": 0.02,
    "scalar_weight_decay": 0.02,
    "adam_beta2": 0.99,
    "swa_every": 0,
}
# What the presets of the embedded track share. They are sized by a number of steps, not by the
# clock, so that anybody can reproduce their scores.
DOCS_TRAINING: dict[str, Any] = {
    "train_batch_tokens": 4096,
    "train_seq_len": 128,
    "micro_batch_tokens": 2048,
    "iterations": 480,
    "train_seconds": 0.0,
    "warmup_steps": 0,
    "compile": 0,
    "log_every": 20,
    "val_every": 80,
    "val_tokens": 65_536,  # a tenth of the split, enough for a curve
    "muon_momentum": 0.95,
    "muon_momentum_start": 0.85,
    "muon_momentum_warmup_steps": 100,
    "ema_decay": 0.98,
}
DOCS_SCORING = ScoringConfig(eval_seq_len=128, eval_stride=32, eval_batch_tokens=8192)

PRESETS = {
    # The published recipe: fake quantisation from the first step, the bigram table a matrix.
    "reference": Config(
        training=TrainingConfig(
            train_seconds=594.0,  # what is left of the cap of 600 s is for the export
            qat_lr_scale=2.0,
            bigram_muon=1,
        ),
        export=ExportConfig(bigram_format="int6", small_matrix_elements=65_536),
    ),
    # The mechanisms of the public contest's last records, at their size: 35,945,671 parameters.
    "frontier": Config(
        run=RunConfig(data_dir="data/datasets/fineweb10B_sp8192"),
        model=ModelConfig(vocab_size=8192, num_layers=11, mlp_hidden=2048, **FRONTIER_MODEL),
        training=TrainingConfig(
            train_batch_tokens=786_432,
            micro_batch_tokens=98_304,
            train_seconds=592.0,
            muon_momentum=0.97,
            ema_decay=0.9965,
            **FRONTIER_TRAINING,
        ),
        export=ExportConfig(embed_format="int7", control_format="fp16"),
    ),
    "docs_cpu": Config(
        run=RunConfig(data_dir="data/datasets/docs_sp1024"),
        model=ModelConfig(
            model_dim=128,
            num_layers=2,
            num_encoder_layers=1,
            num_heads=4,
            num_kv_heads=2,
            mlp_hidden=384,
            pre_enrich_hidden=192,
            bigram_buckets=8192,
            bigram_dim=64,
            xsa_layers=1,
        ),
        training=TrainingConfig(
            warmdown_steps=320,
            swa_every=0,
            **DOCS_TRAINING,
        ),
        scoring=DOCS_SCORING,
    ),
    # The mechanisms of `frontier` at the size of docs_cpu.
    "docs_frontier": Config(
        run=RunConfig(data_dir="data/datasets/docs_sp1024"),
        model=ModelConfig(
            **FRONTIER_MODEL
            | {
                "model_dim": 128,
                "num_layers": 4,
                "num_encoder_layers": 2,
                "num_heads": 4,
                "num_kv_heads": 2,
                "mlp_hidden": 512,
                "xsa_layers": 4,
                "rope_dims": 8,
                "loop_first": 1,
                "loop_last": 2,
                "loop_passes": 2,
                "parallel_layers": 1,
            }
        ),
        training=TrainingConfig(
            **DOCS_TRAINING,
            **FRONTIER_TRAINING,
        ),
        export=ExportConfig(embed_format="int7"),
        scoring=DOCS_SCORING,
    ),
}


def require(holds: bool, rule: str, **found: Any) -> None:
    """Raises ValueError with the rule and the values found, unless it holds."""
    if not holds:
        values = ", ".join(f"{name}={value}" for name, value in found.items())
        raise ValueError(f"expected {rule}, found {values}")


def validate(cfg: Config) -> Config:
    """Returns cfg, or raises ValueError naming the first rule that does not hold."""
    for group_field in fields(cfg):
        group = getattr(cfg, group_field.name)
        for f in fields(group):
            check_setting(f, getattr(group, f.name))
    check_relations(cfg)
    return cfg


def check_setting(f: dataclasses.Field, value: Any) -> None:
    """One setting against what it accepts. NaN fails every bound."""
    if f.metadata["choices"]:
        holds = value in f.metadata["choices"]
    elif isinstance(value, str):
        holds = True
    else:
        low, high, below = (f.metadata[key] for key in ("low", "high", "below"))
        holds = low <= value <= high and value < below and value > -math.inf
    require(holds, accepted(f), **{f.name: value})


def check_relations(cfg: Config) -> None:
    """The rules that tie settings to each other."""

    def at_most(name: str, value: int, limit_name: str, limit: int) -> None:
        require(value <= limit, f"{name} <= {limit_name}", **{name: value, limit_name: limit})

    def divides(name: str, part: int, whole_name: str, whole: int) -> None:
        rule = f"{name} to divide {whole_name}"
        require(whole % part == 0, rule, **{whole_name: whole, name: part})

    model, training, scoring = cfg.model, cfg.training, cfg.scoring
    layers = model.num_layers
    at_most("num_encoder_layers", model.num_encoder_layers, "num_layers", layers)
    at_most("xsa_layers", model.xsa_layers, "num_layers", layers)
    at_most("late_k_fp16_layers", cfg.export.late_k_fp16_layers, "num_layers", layers)
    check_mechanisms(model)
    window = scoring.eval_seq_len
    at_most("eval_stride", scoring.eval_stride, "eval_seq_len", window)
    at_most("eval_seq_len", window, "eval_batch_tokens", scoring.eval_batch_tokens)
    divides("num_heads", model.num_heads, "model_dim", model.model_dim)
    divides("num_kv_heads", model.num_kv_heads, "num_heads", model.num_heads)
    micro_batch = training.micro_batch_tokens
    divides("train_seq_len", training.train_seq_len, "micro_batch_tokens", micro_batch)
    batch = training.train_batch_tokens
    divides("micro_batch_tokens", micro_batch, "train_batch_tokens", batch)
    require(
        training.val_tokens != 1,
        "val_tokens to be 0 or at least 2, for one target",
        val_tokens=training.val_tokens,
    )
    require(
        model.model_dim // model.num_heads % 2 == 0,
        "an even head size, for rotary pairs",
        model_dim=model.model_dim,
        num_heads=model.num_heads,
    )
    require(
        model.encoder_recurrence == 0 or model.num_encoder_layers > 0,
        "encoder layers to repeat",
        encoder_recurrence=model.encoder_recurrence,
        num_encoder_layers=model.num_encoder_layers,
    )


def check_mechanisms(model: ModelConfig) -> None:
    """The rules that tie mechanisms to the shape of the model."""
    layers = model.num_layers
    head_size = model.model_dim // model.num_heads
    require(
        model.rope_dims % 2 == 0 and model.rope_dims <= head_size,
        "an even rope_dims of at most the head size",
        rope_dims=model.rope_dims,
        head_size=head_size,
    )
    for name in ("smear_inputs", "attention_gate_inputs"):
        inputs = getattr(model, name)
        rule = f"{name} <= model_dim"
        require(inputs <= model.model_dim, rule, **{name: inputs, "model_dim": model.model_dim})
    require(
        model.loop_first <= model.loop_last < layers,
        "loop_first <= loop_last < num_layers",
        loop_first=model.loop_first,
        loop_last=model.loop_last,
        num_layers=layers,
    )
    require(
        model.loop_passes == 1 or (model.encoder_recurrence == 0 < model.num_encoder_layers),
        "a loop to have encoder layers and no encoder_recurrence beside it",
        loop_passes=model.loop_passes,
        encoder_recurrence=model.encoder_recurrence,
        num_encoder_layers=model.num_encoder_layers,
    )
    # the decoder holds them all, and with a loop it is the second half of all visits
    parallel = model.parallel_layers
    require(
        parallel <= min(layers - model.num_encoder_layers, (layers + 1) // 2),
        "parallel_layers to be decoder layers and at most half of all",
        parallel_layers=parallel,
        num_layers=layers,
        num_encoder_layers=model.num_encoder_layers,
    )
    require(
        model.loop_passes == 1 or model.loop_last < layers - parallel,
        "the loop to end before the parallel layers",
        loop_last=model.loop_last,
        parallel_layers=parallel,
        num_layers=layers,
    )


class Parser(argparse.ArgumentParser):
    """argparse ignores it if nobody reads a long help; `main` wants to know."""

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)


def build_parser(preset: str) -> argparse.ArgumentParser:
    """Flags in the groups of Config. --help shows the chosen preset's values."""
    parser = Parser(
        prog="train_gpt.py",
        usage="train_gpt.py [train] [--preset NAME] [--SETTING VALUE ...] | score --help",
        description=__doc__.partition("Sections, ")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Each setting may also come from the environment: SEED=42 for --seed 42.",
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=PRESETS, help=f"what settings start from [{preset}]")
    for group_field in fields(Config):
        group = getattr(PRESETS[preset], group_field.name)
        section = parser.add_argument_group(f"{group_field.name} settings", type(group).__doc__)
        for f in fields(group):
            kind = type(f.default)
            choices = "|".join(map(str, f.metadata["choices"]))
            section.add_argument(
                "--" + f.name.replace("_", "-"),
                type=kind,
                metavar=choices or f.metadata["unit"] or kind.__name__,
                help=f"{f.metadata['help']} [{getattr(group, f.name)}]",
            )
    return parser


def chosen_preset(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """The name given by --preset, else by PRESET. Raises UserError for an unknown one."""
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--preset")
    from_flag = first_look.parse_known_args(argv)[0].preset
    if from_flag is not None:
        return from_flag if from_flag in PRESETS else "reference"  # the full parser refuses it
    preset = environ.get("PRESET", "reference")
    if preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(
            f"environment PRESET: expected one of {known}, found {preset!r}; correct or unset it"
        )
    return preset


def parse_config(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The config and its log lines: a preset, changed by the environment, changed by flags.

    Raises UserError for an environment value of the wrong type or a rule that does not hold;
    argparse refuses unknown flags (exit code 2).
    """
    preset = chosen_preset(argv, environ)
    given = vars(build_parser(preset).parse_args(argv))
    base = PRESETS[preset].flat()
    changes: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, default in base.items():
        variable = name.upper()
        if given[name] is not None:
            changes[name] = given[name]
            sources[name] = "flag"
        elif variable in environ:
            changes[name] = parse_variable(variable, environ[variable], type(default))
            sources[name] = f"environment {variable}"
    try:
        cfg = validate(PRESETS[preset].with_settings(**changes))
    except ValueError as error:
        raise UserError(f"config: {error}; change these flags") from None
    lines = [f"config:preset {preset}"]
    for name, value in changes.items():
        if value != base[name]:
            default = f"default {base[name]}, from {sources[name]}"
            lines.append(f"config:override {name}={published(value)} ({default})")
    return cfg, [*lines, f"config sha256:{config_sha256(cfg)}"]


def published(value: Any) -> Any:
    """A setting as a log that others will read shows it: no folders of this machine."""
    if not isinstance(value, str) or not os.path.isabs(value):
        return value
    relative = os.path.relpath(value)
    return f".../{Path(value).name}" if relative.startswith(os.pardir) else relative


def parse_variable(variable: str, raw: str, kind: type) -> Any:
    """The value of an environment variable. Raises UserError where it is of another type."""
    try:
        return kind(raw)
    except ValueError:
        raise UserError(
            f"environment {variable}: expected {kind.__name__}, found {raw!r}; correct or unset it"
        ) from None


def config_sha256(cfg: Config) -> str:
    """Digest of the settings that all seeds of a record share."""
    shared = asdict(cfg)
    del shared["run"]
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


# --- 2. Ranks and log ---


CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among its peers, and the machine that it runs on.

    Communication is skipped where there is one process; the mathematics is the same lines.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU
    train_dtype: torch.dtype = torch.float32  # of activations and of Newton-Schulz in training
    score_dtype: torch.dtype = torch.float32  # of activations in scoring

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def on_metal(self) -> bool:
        """Apple's GPUs. They have no float64, so scores and their sums are made on the CPU."""
        return self.device.type == "mps"

    def clock(self) -> float:
        """Seconds, after the device has finished its queue."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        elif self.on_metal:
            torch.mps.synchronize()
        return time.perf_counter()

    def all_reduce(self, tensor: Tensor, op: dist.ReduceOp = dist.ReduceOp.SUM) -> Tensor:
        """The tensor itself, reduced in place over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op)
        return tensor

    def all_gather(self, shard: Tensor, count: int) -> Tensor:
        """The first `count` rows of all ranks' shards [share, ...], end to end.

        Every rank but the last ones must hold `share` rows; those may hold fewer.
        """
        if self.world_size == 1:
            return shard
        share = -(-count // self.world_size)
        padded = shard.new_zeros(share, *shard.shape[1:])
        padded[: len(shard)] = shard
        gathered = shard.new_empty(share * self.world_size, *shard.shape[1:])
        dist.all_gather_into_tensor(gathered, padded)
        return gathered[:count]

    def broadcast(self, data: bytes) -> bytes:
        """Rank 0's data."""
        box = [data]
        if self.world_size > 1:
            dist.broadcast_object_list(box, 0)
        return box[0]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Every rank's tensors become those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """If any rank meets bad input inside, every rank leaves.

        Nobody then waits in a collective for a peer that has exited. The first rank that failed
        raises its UserError or OSError, the others raise SystemExit(2).
        """
        error = None
        try:
            yield
        except (UserError, OSError) as caught:
            error = caught
        vote = torch.tensor(self.world_size if error is None else self.rank)
        failed_rank = int(self.all_reduce(vote, dist.ReduceOp.MIN))
        if failed_rank == self.world_size:
            return
        if error is not None and failed_rank == self.rank:
            raise error
        raise SystemExit(2)

    def map(self, job: Callable, items: Sequence) -> Iterator:
        """map(job, items), in order. A CPU works on several items at once."""
        return map_on_cores(job, items) if self.device == CPU else map(job, items)


@contextlib.contextmanager
def open_ranks(
    environ: Mapping[str, str], bf16: bool = True, tune_cpu: bool = True, device_name: str = "auto"
) -> Iterator[Ranks]:
    """Opens the process group, and closes it at the end. Raises UserError.

    The only place that reads RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE and OMP_NUM_THREADS.
    Training is in bfloat16 if `bf16` is set and every rank's device multiplies it fast.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = [environ.get(name, "1" if name.endswith("SIZE") else "0") for name in names]
    if not all(value.isdecimal() for value in found):
        raise UserError(
            f"environment {', '.join(names)}: expected integers, found {', '.join(found)}; "
            "start with torchrun or unset them"
        )
    rank, world_size, local_rank, local_world_size = map(int, found)
    device = choose_device(device_name, local_rank, world_size, environ)
    if device.type == "cpu":
        # torchrun sets one thread for each process: share the cores instead
        given = "OMP_NUM_THREADS" in environ and world_size == 1
        prepare_cpu(None if given else local_world_size, keep_memory=tune_cpu)
    if world_size > 1:
        # torch.optim imports this sooner or later. If later, its modules keep the group alive
        # in default arguments, and an exiting rank may abort.
        from torch import _dynamo  # noqa: F401

        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size)
    try:
        peers = Ranks(rank=rank, world_size=world_size, device=device)
        vote = torch.tensor(int(bf16 and multiplies_bfloat16_fast(device)))
        all_fast = bool(peers.all_reduce(vote, dist.ReduceOp.MIN))
        yield dataclasses.replace(
            peers,
            train_dtype=torch.bfloat16 if all_fast else torch.float32,
            score_dtype=torch.bfloat16 if peers.on_gpu else torch.float32,
        )
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def choose_device(
    name: str, local_rank: int, world_size: int, environ: Mapping[str, str]
) -> torch.device:
    """What --device names. Raises UserError."""
    if name == "cpu":
        return CPU
    if name == "mps":
        return open_metal(environ, world_size)
    device = open_device(local_rank)
    if name == "cuda" and device == CPU:
        raise UserError(
            "--device cuda: expected a CUDA GPU, found none that torch can use; leave --device out"
        )
    return device


def open_metal(environ: Mapping[str, str], world_size: int) -> torch.device:
    """An Apple GPU. Raises UserError.

    torch reads PYTORCH_ENABLE_MPS_FALLBACK when it is imported, so only the user can set it. It
    then computes an operator that Metal lacks on the CPU, with a warning that names the operator.
    """
    if not torch.backends.mps.is_available():
        raise UserError(
            "--device mps: expected an Apple GPU and a torch built for it, found none; "
            "leave --device out"
        )
    if world_size > 1:
        raise UserError(
            f"--device mps: expected one process, found {world_size}; start without torchrun"
        )
    if environ.get("PYTORCH_ENABLE_MPS_FALLBACK") != "1":
        raise UserError(
            "--device mps: expected PYTORCH_ENABLE_MPS_FALLBACK=1 in the environment, so that an "
            "operator that Metal lacks runs on the CPU; set it and start again"
        )
    return torch.device("mps")


def open_device(local_rank: int) -> torch.device:
    """This process's GPU where there is one, else the CPU. Raises UserError."""
    if not torch.cuda.is_available():
        return CPU
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise UserError(
            f"LOCAL_RANK: expected one of {visible} visible GPUs, found {local_rank}; "
            "start fewer processes"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")
    return device


def multiplies_bfloat16_fast(device: torch.device) -> bool:
    """GPUs do, and CPUs with AVX-512 BF16, at twice the speed of float32 or more."""
    if device.type == "cuda":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16"))


class TensorBoard:
    """TensorBoard's writer behind the two functions of wandb and trackio that are used here."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(folder)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self) -> None:
        self.writer.close()


def open_sink(cfg: Config) -> Any:
    """What --sink asks for, imported only then; None for none. Raises UserError."""
    name = cfg.run.sink
    folder = Path(cfg.run.out)
    if name == "none":
        return None
    try:
        if name == "tensorboard":
            return TensorBoard(folder / "tensorboard")
        tracker = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--sink {name}: expected the package {name}, found {error}; "
            f"install it with `{typed_python()} -m pip install {name}` or leave --sink out"
        ) from None
    try:
        tracker.init(project="parameter-golf", name=folder.name, config=cfg.flat())
    except Exception as error:  # whatever a package raises: no account, no network
        raise UserError(
            f"--sink {name}: expected it to start, found {error}; set it up or leave --sink out"
        ) from None
    return tracker


class Metrics:
    """metrics.jsonl: the numbers of the log for programs, one JSON object a line.

    The file stays locked while the run lives, so a reader can tell a run at work from a killed one.
    """

    def __init__(self, path: Path, sink: Any = None):
        self.path = path
        self.sink = sink
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self.file = os.open(path, flags, 0o644)
        with contextlib.suppress(ImportError, OSError):  # Windows, or a disk without locks
            import fcntl

            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, event: str, step: int, numbers: Mapping[str, Any]) -> None:
        """Appends a whole line at once, so no reader finds two lines mixed."""
        record = {"event": event, "step": step, **numbers}
        os.write(self.file, json.dumps(record).encode() + b"\n")
        named = {
            f"{event}/{name}": value
            for name, value in numbers.items()
            if isinstance(value, int | float)
        }
        self.tell_sink(lambda sink: sink.log(named, step=step))

    def tell_sink(self, what: Callable[[Any], None]) -> None:
        """A sink that fails is left out from then on."""
        if self.sink is None:
            return
        try:
            what(self.sink)
        except Exception as error:  # whatever a package raises: the run is worth more
            print(f"--sink: {error}; the run goes on without", file=sys.stderr, flush=True)
            self.sink = None

    def forget_after(self, step: int) -> None:
        """Cuts off what an interrupted run wrote later than the checkpoint at this step.

        -1 is before the first step: nothing is left.
        """
        kept = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            if not 0 <= training_step_of(line) <= step:
                break
            kept += len(line)
        os.ftruncate(self.file, kept)

    def close(self) -> None:
        self.tell_sink(lambda sink: sink.finish())
        os.close(self.file)


def training_step_of(line: bytes) -> int:
    """Of a line of metrics.jsonl; -1 where it is half a line or tells what came after training."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        record = json.loads(line)
        if record["event"] in ("step", "validation"):
            return int(record["step"])
    return -1


def peak_memory_mib(device: torch.device) -> int | None:
    """The most that this process has used of the GPU's memory or, without one, of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) >> 20
    with contextlib.suppress(ImportError):  # Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
    return None


@dataclass(frozen=True)
class Log:
    """Rank 0 appends to a file and prints; the other ranks, with active False, do neither."""

    path: Path | None = None
    active: bool = True
    metrics: Metrics | None = None

    def point(self, text: str, event: str, step: int, **numbers: Any) -> None:
        """A line of the log whose numbers also go to metrics.jsonl."""
        self(text)
        if self.metrics is not None:
            self.metrics.write(event, step, numbers)

    def close(self) -> None:
        if self.metrics is not None:
            self.metrics.close()

    def __call__(self, text: str, echo: bool = True) -> None:
        if not self.active:
            return
        if echo:
            print(text, flush=True)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text + "\n")


class Meter:
    """How far a long piece of work is, on stderr: it is no evidence, so no log holds it.

    On a terminal one line is written over and over, elsewhere there is a line every 15 s. Work
    without a name is not shown.
    """

    def __init__(self, what: str = "", total: int = 0, shown: bool = True):
        self.what = what
        self.total = total
        self.done = 0
        self.started = time.perf_counter()
        self.in_place = sys.stderr.isatty()
        self.interval = 0.2 if self.in_place else 15.0
        self.next_line = self.started + self.interval if shown and what else math.inf

    def advance(self) -> None:
        """One of `total` pieces is done."""
        self.reach(self.done + 1)

    def reach(self, done: int) -> None:
        self.done = done
        now = time.perf_counter()
        if now < self.next_line or not done:
            return
        self.next_line = now + self.interval
        seconds = now - self.started
        left = seconds * (self.total - done) / done
        share = 100 * done // self.total
        self.show(f"{self.what}: {share}% after {seconds:.0f} s, about {left:.0f} s left")

    def show(self, text: str) -> None:
        line = f"\r{text:<79}\r" if self.in_place else f"{text}\n"
        with contextlib.suppress(OSError):  # nobody looks any more
            print(line, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves an empty line on a terminal."""
        if self.in_place and math.isfinite(self.next_line):
            self.show("")


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old file or the whole new one. Raises UserError."""
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
            f"{path}: expected a writable place, found {error.strerror}; "
            "choose another --out or free space"
        ) from None


def typed_python() -> str:
    """This interpreter as a user can type it in the current folder."""
    path = Path(sys.executable)
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return path.name if shutil.which(path.name) == str(path) else str(path)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def output_of(*command: str) -> str:
    """What a command prints, or nothing where it is missing, fails or takes over 20 s."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            cwd=Path(__file__).parent,
        )
        return done.stdout.strip()
    return ""


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment_line(ranks: Ranks) -> str:
    """Versions, hardware and commit: what a reader needs to reproduce or distrust the run."""
    cuda = ranks.on_gpu
    driver_query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": output_of(*driver_query) if cuda else "",
        "cpu": cpu_name(),
        "gpus": torch.cuda.device_count() if cuda else 0,
        "gpu": torch.cuda.get_device_name(ranks.device) if cuda else "Metal" * ranks.on_metal,
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "git_commit": output_of("git", "rev-parse", "HEAD"),
        "world_size": ranks.world_size,
        "train_dtype": str(ranks.train_dtype).removeprefix("torch."),
    }

    def quote(value: Any) -> str:
        if value in ("", None):
            return "none"
        return json.dumps(value) if " " in str(value) else str(value)

    return "env " + " ".join(f"{name}:{quote(value)}" for name, value in facts.items())


def environment_report(ranks: Ranks) -> list[str]:
    """The environment line and, where there are GPUs, what nvidia-smi says of them."""
    lines = [environment_line(ranks)]
    if ranks.on_gpu:
        # its list of processes names folders of this machine
        listing, _, _ = output_of("nvidia-smi").partition("| Processes:")
        lines += ["===== nvidia-smi =====", listing.rstrip(), "===== end nvidia-smi ====="]
    return lines


# CPU tuning, to the end of this section: `open_ranks` calls prepare_cpu, `Ranks.map` calls
# map_on_cores, and nothing else knows of it.


def prepare_cpu(processes: int | None, keep_memory: bool) -> None:
    """Gives this process its share of the cores, of which `processes` run on this machine.

    None leaves the number of threads as it is.
    """
    if keep_memory:
        keep_freed_memory()
    if processes is None:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    torch.set_num_threads(max(1, cores // processes))


def keep_freed_memory() -> None:
    """Under glibc, freed memory stays with the process, and large blocks lie on huge pages.

    A steady training step then meets no page fault.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # names of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # all from one heap
        mallopt(arena_max, 1)
        mallopt(trim_threshold, (1 << 31) - 1)


@functools.cache
def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that live as long as the process."""
    return ThreadPoolExecutor(threads)


def map_on_cores(job: Callable, items: Sequence) -> Iterator:
    """map(job, items) with up to 8 items side by side, in threads that share the cores.

    No layer then waits for another core. All items are in memory at once.
    """
    threads = torch.get_num_threads()
    side_by_side = min(threads, len(items), 8)
    if side_by_side < 2:
        yield from map(job, items)
        return

    def on_own_cores(item: Any) -> Any:
        torch.set_num_threads(threads // side_by_side)
        return job(item)

    try:
        yield from worker_pool(side_by_side).map(on_own_cores, items)
    finally:
        torch.set_num_threads(threads)  # MKL has one number for the whole process


# --- 3. Data ---


def how_to_get(folder: Path) -> str:
    """The command that makes a data set, which the name of its folder tells."""
    command = f"{typed_python()} -m data"
    corpus, _, vocab_size = folder.name.rpartition("_sp")
    if corpus == "docs":
        return f"build it with `{command} docs --vocab-size {vocab_size}`"
    if corpus == "fineweb10B":
        return (
            f"download it with `{command} fineweb --variant sp{vocab_size}`, "
            "or train on the embedded corpus with --preset docs_cpu"
        )
    return f"build it with `{command} text FILES --name {corpus or folder.name}`"


def open_shard(path: Path, vocab_size: int | None = None) -> np.ndarray:
    """Read-only memory map of a token shard, uint16 [num_tokens].

    Raises UserError for a missing, truncated or foreign file and, where vocab_size is given,
    for a token id that is not below it (which reads the whole file).
    """
    header_bytes = SHARD_HEADER_INTS * 4
    try:
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=SHARD_HEADER_INTS)
    except (OSError, ValueError) as error:  # a ValueError: no operating system takes this name
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: expected a token shard, found {reason}; {how_to_get(path.parent)}"
        ) from None
    if len(header) < SHARD_HEADER_INTS or tuple(header[:2]) != (SHARD_MAGIC, SHARD_VERSION):
        found = f"{size} bytes"
        if len(header) >= 2:
            found = f"magic {header[0]}, version {header[1]}"
        raise UserError(
            f"{path}: expected shard magic {SHARD_MAGIC}, version {SHARD_VERSION}, found {found}; "
            f"{how_to_get(path.parent)}"
        )
    num_tokens = int(header[2])
    if num_tokens < 1 or size != header_bytes + 2 * num_tokens:
        held = (size - header_bytes) // 2
        raise UserError(
            f"{path}: header promises {num_tokens:,} tokens, file holds {held:,}; "
            f"delete it and {how_to_get(path.parent)}"
        )
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=header_bytes, shape=(num_tokens,))
    if vocab_size is not None:
        check_token_ids(tokens, vocab_size, str(path))
    return tokens


def check_token_ids(tokens: np.ndarray, vocab_size: int, where: str) -> None:
    """Raises UserError for an id that the model has no row for."""
    if vocab_size == 65_536:
        return
    largest = int(tokens.max())
    if largest >= vocab_size:
        raise UserError(
            f"{where}: expected token ids < {vocab_size}, found {largest}; "
            "the shards belong to another tokenizer"
        )


class TokenStream:
    """The shards of one split, in name order, as one sequence."""

    def __init__(self, shards: Sequence[np.ndarray]):
        self.shards = list(shards)
        self.starts = np.cumsum([0] + [len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, length: int) -> np.ndarray:
        """uint16 [length]; may cross shard borders."""
        end = start + length
        first, last = np.searchsorted(self.starts, (start, end - 1), side="right") - 1
        parts = []
        for i in range(first, last + 1):
            shard_start = self.starts[i]
            parts.append(self.shards[i][max(0, start - shard_start) : end - shard_start])
        return np.concatenate(parts)


class ShardEntry(NamedTuple):
    """One shard as the manifest lists it."""

    path: Path
    tokens: int


@dataclass(frozen=True)
class Manifest:
    """What `python -m data` wrote about a data set, as far as training needs it.

    Its own sha256 goes into the log and names the data that the run claims to have used;
    `python -m data verify` holds every shard and the tokenizer against it.
    """

    sha256: str
    corpus: str
    version: str
    tokenizer_sha256: str
    vocab_size: int
    train: tuple[ShardEntry, ...]
    val: tuple[ShardEntry, ...]
    val_bytes: int  # what val_bpb divides by
    val_xz_bpb: float | None  # what xz makes of the same text


MANIFEST_DAMAGE = (
    ArithmeticError,
    AttributeError,
    KeyError,
    RecursionError,
    TypeError,
    ValueError,
)


def whole_number(value: Any, name: str) -> int:
    """The value, if it is a count. Raises ValueError: 5.0 and "5" are no counts."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} {value!r}")
    return value


def parse_manifest(raw: bytes, folder: Path) -> Manifest:
    """Raises one of MANIFEST_DAMAGE where the JSON is not what `python -m data` writes."""
    manifest = json.loads(raw)
    json.dumps(manifest, ensure_ascii=False).encode()  # no log could hold half a surrogate pair

    def shards(split: str) -> tuple[ShardEntry, ...]:
        entries = []
        for file in manifest["splits"][split]["files"]:
            entries.append(
                ShardEntry(folder / file["name"], whole_number(file["tokens"], "tokens"))
            )
        return tuple(entries)

    val = manifest["splits"]["val"]
    # a published export is counted by its tokens: it comes without its source
    val_bytes = val.get("counted_bytes", val["source_bytes"])
    val_xz_bpb = None
    if val.get("xz_bytes"):
        val_xz_bpb = 8 * val["xz_bytes"] / val["source_bytes"]
    tokenizer = manifest["tokenizer"]
    return Manifest(
        sha256=hashlib.sha256(raw).hexdigest(),
        corpus=manifest["corpus"],
        version=manifest["version"],
        tokenizer_sha256=str(tokenizer["sha256"]),
        vocab_size=whole_number(tokenizer["vocab_size"], "vocab_size"),
        train=shards("train"),
        val=shards("val"),
        val_bytes=whole_number(val_bytes, "validation bytes"),
        val_xz_bpb=val_xz_bpb,
    )


def read_manifest(folder: Path) -> Manifest:
    """Raises UserError for a missing or foreign manifest, or one without shards or bytes."""
    path = folder / "manifest.json"
    try:
        manifest = parse_manifest(path.read_bytes(), folder)
    except OSError as error:
        raise UserError(
            f"{path}: expected a data set's manifest, found {error.strerror}; {how_to_get(folder)}"
        ) from None
    except MANIFEST_DAMAGE as error:
        raise UserError(
            f"{path}: expected the manifest that `python -m data` writes, "
            f"found {type(error).__name__} {error}; rebuild the data set"
        ) from None
    for split, shards in (("train", manifest.train), ("val", manifest.val)):
        if not shards:
            raise UserError(
                f"{path}: expected at least one {split} shard, found none; "
                "rebuild the data set with more documents"
            )
    if manifest.val_bytes == 0:
        raise UserError(
            f"{path}: expected validation text, found 0 bytes; rebuild with more documents"
        )
    return manifest


@dataclass(frozen=True)
class Dataset:
    """Both splits of a data set, opened."""

    manifest: Manifest
    train: TokenStream
    val: np.ndarray  # uint16 [num_tokens]
    log_line: str


def open_shards(entries: Sequence[ShardEntry]) -> list[np.ndarray]:
    """Raises UserError for a shard that is damaged or longer or shorter than its manifest says."""
    shards = []
    for entry in entries:
        tokens = open_shard(entry.path)
        if len(tokens) != entry.tokens:
            raise UserError(
                f"{entry.path}: expected {entry.tokens:,} tokens by the manifest, "
                f"found {len(tokens):,}; rebuild the data set"
            )
        shards.append(tokens)
    return shards


def open_dataset(cfg: Config, ranks: Ranks) -> Dataset:
    """The data set in --data-dir. Raises UserError where it does not fit itself or the config.

    Checks the header and length of every shard, and that every token has a row in the model.
    Hashes and the byte count are taken from the manifest: `python -m data verify` checks those.
    """
    folder = Path(cfg.run.data_dir)
    with ranks.together():
        manifest = read_manifest(folder)
        if manifest.vocab_size != cfg.model.vocab_size:
            raise UserError(
                f"{folder / 'manifest.json'}: expected vocabulary {cfg.model.vocab_size}, "
                f"found {manifest.vocab_size}; pass --vocab-size {manifest.vocab_size} "
                "or another --data-dir"
            )
        train = TokenStream(open_shards(manifest.train))
        val = np.concatenate(open_shards(manifest.val))
        for entry in (manifest.train + manifest.val)[ranks.rank :: ranks.world_size]:
            open_shard(entry.path, cfg.model.vocab_size)
        if len(val) < 2:
            raise UserError(
                f"{manifest.val[0].path}: expected at least 2 validation tokens, "
                f"found {len(val)}; rebuild with more documents"
            )
        if len(train) < cfg.training.train_seq_len + 1:
            raise UserError(
                f"{folder}: expected more than train_seq_len={cfg.training.train_seq_len} "
                f"training tokens, found {len(train)}; lower it or add text"
            )
    line = (
        f"data corpus:{manifest.corpus} version:{manifest.version} dataset:{folder.name} "
        f"tokenizer_sha256:{manifest.tokenizer_sha256} train_tokens:{len(train)} "
        f"val_tokens:{len(val)} val_bytes:{manifest.val_bytes} "
        f"train_files:{len(manifest.train)} manifest_sha256:{manifest.sha256}"
    )
    if manifest.val_xz_bpb is not None:
        line += f" xz_bpb:{manifest.val_xz_bpb:.4f}"
    return Dataset(manifest, train, val, line)


class Loader:
    """Training batches, in an order that depends on the seed alone.

    Neither the number of ranks nor the size of micro-batches changes it. The stream is cut into
    rows of train_seq_len tokens at a random phase per epoch, and an epoch visits every row once.
    The whole state is `row`, the rows consumed by all ranks. The next batch is read during the
    step. Raises UserError where ranks and micro-batches do not share a batch evenly.
    """

    def __init__(self, stream: TokenStream, cfg: Config, ranks: Ranks):
        self.stream = stream
        self.ranks = ranks
        self.seed = cfg.run.seed
        self.seq_len = cfg.training.train_seq_len
        self.rows_per_batch = cfg.training.train_batch_tokens // self.seq_len
        self.rows_per_rank = self.rows_per_batch // ranks.world_size
        micro_rows = cfg.training.micro_batch_tokens // self.seq_len
        self.micro_rows = max(1, min(micro_rows, self.rows_per_rank))
        if self.rows_per_batch % (self.micro_rows * ranks.world_size):
            raise UserError(
                f"config: expected {ranks.world_size} ranks x micro-batches of "
                f"{self.micro_rows} rows to divide the batch of {self.rows_per_batch} rows; "
                "change --micro-batch-tokens or the number of ranks"
            )
        self.rows_per_epoch = max(1, (len(stream) - self.seq_len) // self.seq_len)
        self.row = 0
        self.reader = ThreadPoolExecutor(1)
        self.pending = None
        # of the epoch last used
        self.epoch = -1
        self.phase = 0
        self.order = np.zeros(0, dtype=np.int64)

    def close(self) -> None:
        self.reader.shutdown(wait=True, cancel_futures=True)

    def start_epoch(self, epoch: int) -> None:
        """Draws the epoch's phase and the order of its rows."""
        rng = np.random.default_rng([self.seed, epoch])
        # at least 1: every row also needs its last target
        slack = len(self.stream) - self.seq_len * self.rows_per_epoch
        self.epoch = epoch
        self.phase = int(rng.integers(min(self.seq_len, slack)))
        self.order = rng.permutation(self.rows_per_epoch)

    def row_start(self, row: int) -> int:
        """Where in the stream the row of this number begins."""
        epoch, i = divmod(row, self.rows_per_epoch)
        if epoch != self.epoch:
            self.start_epoch(epoch)
        return self.phase + self.seq_len * int(self.order[i])

    def read(self, row: int) -> Tensor:
        """This rank's share of the global batch that starts at `row`.

        int32 [micro-steps, rows, seq_len + 1].
        """
        first = row + self.ranks.rank * self.rows_per_rank
        rows = []
        for number in range(first, first + self.rows_per_rank):
            rows.append(self.stream.read(self.row_start(number), self.seq_len + 1))
        tokens = torch.from_numpy(np.stack(rows).astype(np.int32))
        batch = tokens.view(-1, self.micro_rows, self.seq_len + 1)
        return batch.pin_memory() if self.ranks.on_gpu else batch

    def next(self) -> list[tuple[Tensor, Tensor]]:
        """Micro-batches (inputs, targets) of one step, int64 [rows, seq_len] on the device."""
        batch = self.read(self.row) if self.pending is None else self.pending.result()
        self.row += self.rows_per_batch
        self.pending = self.reader.submit(self.read, self.row)
        micro_batches = batch.to(self.ranks.device, non_blocking=True).long()
        return [(micro[:, :-1], micro[:, 1:]) for micro in micro_batches]


# --- 4. Kernels ---
# The operations that take the time, each as a plain function of tensors.

# Logits at a time: what a CPU's cache holds in float64, and what fills a GPU.
CPU_LOGITS = 1 << 18
GPU_LOGITS = 1 << 24


def logit_rows(device: torch.device, vocab_size: int) -> int:
    """Positions whose logits are worked on together."""
    elements = GPU_LOGITS if device.type == "cuda" else CPU_LOGITS
    return max(1, elements // vocab_size)


def log_sum_exp(z: Tensor, p: Tensor) -> Tensor:
    """ln sum e^z over the last axis, from p = softmax(z), without another pass of exponentials.

    At the largest logit p is e^(z - ln sum e^z).
    """
    return z.amax(-1) - p.amax(-1).log()


def rms_norm(x: Tensor) -> Tensor:
    """Weightless RMSNorm over the last axis (Zhang & Sennrich 2019)."""
    return F.rms_norm(x, (x.size(-1),))


class Rotary(NamedTuple):
    """Rotation tables by position, float32 [T, K] each, for half-split heads.

    Where they have fewer columns than a head, the rest of the head stands still.
    """

    cos_TK: Tensor
    sin_TK: Tensor  # the first half of the columns is negated


def rotary_tables(positions_T: Tensor, head_size: int, base: float) -> Rotary:
    """Rotary position embedding (Su et al. 2021).

    Angles are in float64, because position x frequency exceeds the precision of float32.
    """
    device = positions_T.device
    exact = CPU if device.type == "mps" else device  # Metal has no float64
    exponents = torch.arange(0, head_size, 2, dtype=torch.float64, device=exact)
    frequencies = base ** (-exponents / head_size)
    angles = positions_T.to(exact).double()[:, None] * frequencies
    cos = torch.cat((angles.cos(), angles.cos()), dim=1)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=1)
    return Rotary(cos.float().to(device), sin.float().to(device))


def rotate(x_BTHK: Tensor, rotary: Rotary) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of each head.

    The T positions are those of the tables' last T rows.
    """
    K = rotary.cos_TK.size(1)
    if x_BTHK.size(-1) > K:
        turned = rotate(x_BTHK[..., :K], rotary)
        return torch.cat((turned, x_BTHK[..., K:]), dim=-1)
    T, H = x_BTHK.shape[1:3]

    def by_head(table_TK: Tensor) -> Tensor:
        # repeated, because a product broadcast over heads is slow on a CPU
        return table_TK[-T:, None].to(x_BTHK.dtype).repeat(1, H, 1)

    swapped = x_BTHK.roll(K // 2, dims=-1)
    return torch.addcmul(x_BTHK * by_head(rotary.cos_TK), swapped, by_head(rotary.sin_TK))


def attend(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, document_BS: Tensor | None = None
) -> Tensor:
    """Causal attention of the last T of S positions, [B, T, H, K]; H / G queries share a key.

    With the number of each position's document, no position sees another document.
    """
    T, H = q_BTHK.shape[1:3]
    S, G = k_BSGK.shape[1:3]
    dtype = q_BTHK.dtype
    if q_BTHK.is_cpu:
        dtype = torch.promote_types(dtype, torch.float32)  # its flash kernel is slow in bfloat16
    # no fused kernel for a CPU or for float32 knows grouped queries
    # nor does one that takes a mask by documents
    grouped = q_BTHK.is_cuda and dtype == torch.bfloat16 and document_BS is None
    copies = 1 if grouped else H // G

    def heads_first(x_BTHK: Tensor, copies: int = 1) -> Tensor:
        x_BHTK = x_BTHK.transpose(1, 2).to(dtype)
        return x_BHTK.repeat_interleave(copies, dim=1) if copies > 1 else x_BHTK

    mask = None
    if T < S or document_BS is not None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q_BTHK.device).tril(S - T)
    if document_BS is not None:
        same = document_BS[:, -T:, None] == document_BS[:, None, :]
        mask = (mask & same).unsqueeze(1)  # [B, 1, T, S]
    y_BHTK = F.scaled_dot_product_attention(
        heads_first(q_BTHK),
        heads_first(k_BSGK, copies),
        heads_first(v_BSGK, copies),
        mask,
        is_causal=mask is None,
        enable_gqa=grouped and G != H,
    )
    return y_BHTK.to(q_BTHK.dtype).transpose(1, 2)


def exclude_own_value(y_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """XSA: y - (y.v)v, with v the token's own value at unit length.

    Attention may not copy what the residual stream already holds.
    """
    B, T, H, K = y_BTHK.shape
    G = v_BTGK.size(2)
    unit = F.normalize(v_BTGK, dim=-1).unsqueeze(3)  # [B, T, G, 1, K]
    y = y_BTHK.reshape(B, T, G, H // G, K)
    own_share = (y * unit).sum(-1, keepdim=True) * unit
    return (y - own_share).reshape(B, T, H, K)


def head_loss_plain(x: Tensor, embed: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Mean cross-entropy, nats, of a tied and softcapped head.

    x [n, D], E [V, D], int64 targets [n].
    """
    logits = cap * torch.tanh(x @ embed.T / cap)
    return F.cross_entropy(logits, targets)


class HeadLoss(torch.autograd.Function):
    """`head_loss_plain`, with the gradients made together with the loss.

    It works on some rows at a time: logits never leave the cache, and nothing of size n V is
    kept. tanh u = 2 s(2u) - 1 with the logistic s, which is faster on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, embed: Tensor, targets: Tensor, cap: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        weight = embed.to(x.dtype)
        rows = logit_rows(x.device, len(embed))
        total = torch.zeros((), dtype=wide, device=x.device)
        dx = []
        d_embed = torch.zeros_like(embed)
        for part, target in zip(x.split(rows), targets[:, None].split(rows), strict=True):
            s = F.linear(part, weight).to(wide).mul_(2 / cap).sigmoid_()
            z = s * (2 * cap)  # the logit + cap
            p = torch.softmax(z, -1)
            total += (log_sum_exp(z, p) - z.gather(1, target).squeeze(1)).sum()
            minus_one = p.new_full((), -1.0).expand_as(target)
            d_logit = p.scatter_add_(1, target, minus_one)  # p minus the one-hot target
            slope = s.addcmul_(s, s, value=-1)  # s (1 - s) = (1 - tanh^2) / 4
            dz = d_logit.mul_(slope).to(x.dtype)
            dx.append(dz @ weight)
            d_embed += dz.mT @ part
        ctx.save_for_backward(torch.cat(dx), d_embed)
        return total / len(x)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        dx, d_embed = ctx.saved_tensors
        scale = d_loss * (4 / len(dx))  # 4 for `slope`, and the mean over rows
        return dx * scale.to(dx.dtype), d_embed * scale, None, None


QUINTIC = ((3.4445, -4.7750, 2.0315),)  # Jordan et al. 2024
POLAR_EXPRESS = (  # Amsel et al. 2025, for singular values from 0.001 to 1
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
COEFFICIENTS = dict(zip(NEWTON_SCHULZ, (QUINTIC, POLAR_EXPRESS), strict=True))


def newton_schulz(gradients: Tensor, steps: int, kind: str = "quintic") -> Tensor:
    """Approximately U V^T of each matrix X in [n, R, C].

    Each step is X <- a X + (b A + c A^2) X with A = X X^T and that step's (a, b, c); after the
    last coefficients these go on.
    """
    coefficients = COEFFICIENTS[kind]
    tall = gradients.size(-2) > gradients.size(-1)
    x = gradients.mT if tall else gradients
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for step in range(steps):
        of_x, of_a, of_a_squared = coefficients[min(step, len(coefficients) - 1)]
        a = x @ x.mT
        polynomial = torch.baddbmm(a, a, a, beta=of_a, alpha=of_a_squared)
        x = torch.baddbmm(x, polynomial, x, beta=of_x)
    return x.mT if tall else x


# --- 5. Model ---


class Linear(nn.Linear):
    """Bias-free, with a float32 master weight that is cast to the activation's dtype.

    With `levels` set it is fake-quantised: symbols -levels..levels per row, with a
    straight-through gradient (Bengio et al. 2013). That is about what the export will store,
    which also searches for a clip.
    """

    levels = 0

    def __init__(self, fan_in: int, fan_out: int, zero_init: bool = False):
        super().__init__(fan_in, fan_out, bias=False)
        if zero_init:
            nn.init.zeros_(self.weight)

    def cast(self, dtype: torch.dtype) -> Tensor:
        """The weight as the product sees it, [fan_out, fan_in]."""
        w = self.weight
        if self.levels:
            scale = w.detach().abs().amax(-1, keepdim=True).clamp_min(1e-12) / self.levels
            rounded = (w / scale).round() * scale
            w = w + (rounded - w).detach()
        return w.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.cast(x.dtype))


class Visit(NamedTuple):
    """One passage through a block: the depth of the model is a tuple of these."""

    layer: int
    pop: int | None = None  # first add the state kept last, weighted by skips[pop]
    push: bool = False  # keep the resulting state for a later visit
    normalise: bool = False  # first bring the residual stream to unit RMS
    parallel: bool = False  # attention and MLP work side by side, each on a lane of its own


def plan_depth(model: ModelConfig, looped: bool = True) -> tuple[Visit, ...]:
    """Which block runs when: a U-Net whose encoder visits push and decoder visits pop.

    With encoder_recurrence the encoder runs again, on the normalised stream, and only its last
    pass leaves skips. With a loop, unless `looped` is false, some blocks run several times in a
    row, and the first half of all visits is the encoder.
    """
    order = list(range(model.num_layers))
    encoder_visits = model.num_encoder_layers
    if looped and model.loop_passes > 1:
        loop = order[model.loop_first : model.loop_last + 1]
        order[model.loop_first : model.loop_last + 1] = loop * model.loop_passes
        encoder_visits = len(order) // 2
    visits = []
    for repeat in range(model.encoder_recurrence):
        for layer in order[:encoder_visits]:
            visits.append(Visit(layer, normalise=repeat > 0 and layer == 0))
    for layer in order[:encoder_visits]:
        again = model.encoder_recurrence > 0 and layer == 0
        visits.append(Visit(layer, push=True, normalise=again))
    first_parallel = model.num_layers - model.parallel_layers
    for i, layer in enumerate(order[encoder_visits:]):
        pop = i if i < encoder_visits else None
        visits.append(Visit(layer, pop, parallel=layer >= first_parallel))
    return tuple(visits)


def count_skips(plan: Iterable[Visit]) -> int:
    return sum(visit.pop is not None for visit in plan)


class Lanes(NamedTuple):
    """The residual stream as the attentions and as the MLPs of parallel blocks see it."""

    attention: Tensor  # [B, T, D]
    mlp: Tensor  # [B, T, D]


class Surroundings(NamedTuple):
    """What all blocks of a forward pass see beside their residual stream."""

    stem_BTD: Tensor
    rotary: Rotary
    document_BT: Tensor | None  # number of each position's document, where attention heeds it


class Attention(nn.Module):
    """Causal grouped-query attention with QK-norm, a gain per query head and rotary positions.

    With `xsa`, a position's own value is excluded from its result. A gate multiplies the result
    of each head by s(W x / 2), of the first channels of the input; it starts at one half.
    """

    def __init__(self, cfg: ModelConfig, xsa: bool):
        super().__init__()
        self.heads = cfg.num_heads
        self.kv_heads = cfg.num_kv_heads
        self.head_size = cfg.model_dim // cfg.num_heads
        self.xsa = xsa
        self.q = Linear(cfg.model_dim, self.heads * self.head_size)
        self.k = Linear(cfg.model_dim, self.kv_heads * self.head_size)
        self.v = Linear(cfg.model_dim, self.kv_heads * self.head_size)
        self.out = Linear(self.heads * self.head_size, cfg.model_dim, zero_init=True)
        self.q_gain = nn.Parameter(torch.full((self.heads,), cfg.q_gain_init))
        self.gate_inputs = cfg.attention_gate_inputs
        if self.gate_inputs:
            self.gate = nn.Parameter(torch.zeros(self.heads, self.gate_inputs))

    def forward(
        self, x_BTD: Tensor, rotary: Rotary, tail: int, document_BT: Tensor | None = None
    ) -> Tensor:
        """[B, tail, D], for the last `tail` positions."""
        B, T, _ = x_BTD.shape
        kv_weight = torch.cat((self.k.cast(x_BTD.dtype), self.v.cast(x_BTD.dtype)))
        kv = F.linear(x_BTD, kv_weight).view(B, T, 2 * self.kv_heads, self.head_size)
        keys, v_BTGK = kv.split(self.kv_heads, dim=2)
        k_BTGK = rotate(rms_norm(keys), rotary)
        queries = self.q(x_BTD[:, -tail:]).view(B, tail, self.heads, self.head_size)
        q_BtHK = rotate(rms_norm(queries), rotary) * self.q_gain[:, None].to(x_BTD.dtype)
        y_BtHK = attend(q_BtHK, k_BTGK, v_BTGK, document_BT)
        if self.xsa:
            y_BtHK = exclude_own_value(y_BtHK, v_BTGK[:, -tail:])
        if self.gate_inputs:
            first_channels = x_BTD[:, -tail:, : self.gate_inputs].contiguous()
            gate_BtH = F.linear(first_channels, self.gate.to(x_BTD.dtype) / 2).sigmoid()
            y_BtHK = y_BtHK * gate_BtH.unsqueeze(-1)
        return self.out(y_BtHK.reshape(B, tail, -1))


class Block(nn.Module):
    """A residual mix with the stem, then attention, then a squared (leaky) ReLU MLP.

    Two lanes may hold the residual stream; then attention and MLP do not wait for each other.
    """

    def __init__(self, cfg: ModelConfig, layer: int):
        super().__init__()
        self.attention = Attention(cfg, xsa=layer >= cfg.num_layers - cfg.xsa_layers)
        self.fc = Linear(cfg.model_dim, cfg.mlp_hidden)
        self.proj = Linear(cfg.mlp_hidden, cfg.model_dim, zero_init=True)
        self.slope = cfg.mlp_negative_slope
        self.norm_scale = (layer + 1) ** -0.5 if cfg.norm_scale else 1.0
        keep = 1.0
        if cfg.phase_init:
            depth = layer / max(1, cfg.num_layers - 1)
            keep = 1 / (1 + math.exp(-3 * (depth - 0.5)))
        self.mix = nn.Parameter(torch.full((2, cfg.model_dim), keep))
        nn.init.constant_(self.mix[1], 1 - keep)
        self.attention_scale = nn.Parameter(torch.ones(cfg.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(cfg.model_dim))

    def mlp(self, x: Tensor) -> Tensor:
        return self.proj(F.leaky_relu(self.fc(x), self.slope).square())

    def norm(self, x: Tensor) -> Tensor:
        normalised = rms_norm(x)
        return normalised if self.norm_scale == 1 else normalised * self.norm_scale

    def mixed(self, x_BTD: Tensor, around: Surroundings) -> Tensor:
        mix = self.mix.to(x_BTD.dtype)
        return torch.addcmul(mix[0] * x_BTD, mix[1], around.stem_BTD)

    def attend(self, x_BTD: Tensor, around: Surroundings, tail: int) -> Tensor:
        return self.attention(self.norm(x_BTD), around.rotary, tail, around.document_BT)

    def forward(self, x_BTD: Tensor, around: Surroundings, tail: int) -> Tensor:
        """[B, tail, D]: the residual stream after the block, for the last `tail` positions."""
        dtype = x_BTD.dtype
        x = self.mixed(x_BTD, around)
        attended = self.attend(x, around, tail)
        x = torch.addcmul(x[:, -tail:], self.attention_scale.to(dtype), attended)
        return torch.addcmul(x, self.mlp_scale.to(dtype), self.mlp(self.norm(x)))

    def side_by_side(self, lanes: Lanes, around: Surroundings, tail: int, weights: Tensor) -> Lanes:
        """Both lanes after the block, for the last `tail` positions.

        Each keeps a share of itself and takes shares of what attention and MLP made of theirs:
        `weights` [2, 3] holds those three shares for each lane.
        """
        dtype = lanes.mlp.dtype
        attention_lane, mlp_lane = (lane[:, -tail:] for lane in lanes)
        attended = self.attend(self.mixed(lanes.attention, around), around, tail)
        attended = self.attention_scale.to(dtype) * attended
        computed = self.mlp_scale.to(dtype) * self.mlp(self.norm(mlp_lane))
        (keep_0, attended_0, computed_0), (keep_1, attended_1, computed_1) = weights.to(dtype)
        return Lanes(
            keep_0 * attention_lane + attended_0 * attended + computed_0 * computed,
            keep_1 * mlp_lane + attended_1 * attended + computed_1 * computed,
        )


@torch.no_grad()
def overtone_(weight: Tensor, std: float) -> None:
    """Random [V, D] with singular values S_k = S_1 k^(-1/2), the decay of trained embeddings."""
    u, s, vh = torch.linalg.svd(torch.randn(weight.shape) * std, full_matrices=False)
    overtones = s[0] * torch.arange(1, len(s) + 1).rsqrt()
    weight.copy_(u * overtones @ vh)


class GPT(nn.Module):
    """The reference model.

    A stem of token and hashed bigram embeddings, smeared over neighbours and enriched by an MLP;
    the blocks in the order of `plan_depth`; a tied, softcapped head.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.plan = plan_depth(cfg)
        self.embed = nn.Parameter(torch.empty(cfg.vocab_size, cfg.model_dim))
        if cfg.bigram_buckets:
            self.bigram = nn.Parameter(torch.empty(cfg.bigram_buckets, cfg.bigram_dim))
        if not self.embed.is_meta:  # torch's arithmetic on bare shapes would load its compiler
            self.init_tables()
        if cfg.bigram_buckets:
            self.bigram_proj = Linear(cfg.bigram_dim, cfg.model_dim)
        if cfg.smear_inputs:
            self.smear = nn.Parameter(torch.zeros(cfg.smear_inputs))
            self.smear_strength = nn.Parameter(torch.zeros(1))
        else:
            self.smear = nn.Parameter(torch.full((cfg.model_dim,), 3.0))
        if cfg.pre_enrich_hidden:
            self.enrich_in = Linear(cfg.model_dim, cfg.pre_enrich_hidden)
            self.enrich_out = Linear(cfg.pre_enrich_hidden, cfg.model_dim)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.num_layers))
        num_skips = max(map(count_skips, (plan_depth(cfg, looped=False), self.plan)))
        self.skips = nn.Parameter(torch.ones(num_skips, cfg.model_dim))
        if cfg.skip_gates:
            self.skip_gates = nn.Parameter(torch.zeros(num_skips, cfg.model_dim))
        if cfg.parallel_layers:
            # a row for each layer, as published; those before the parallel layers are not used
            self.lane_weights = nn.Parameter(torch.ones(cfg.num_layers, 2, 3))
            with torch.no_grad():
                self.lane_weights[:, :, 0] = 1.1
        if cfg.orthogonal_init and not self.embed.is_meta:
            self.init_orthogonal()

    @torch.no_grad()
    def init_tables(self) -> None:
        if self.cfg.overtone_init:
            overtone_(self.embed, self.cfg.embed_init_std)
        else:
            nn.init.normal_(self.embed, std=self.cfg.embed_init_std)
        if self.cfg.bigram_buckets:
            nn.init.normal_(self.bigram, std=0.01)

    @torch.no_grad()
    def init_orthogonal(self) -> None:
        """All matrices except those that start at zero, so that a block starts as nothing."""
        for module in self.modules():
            if isinstance(module, Linear) and module.weight.any():
                nn.init.orthogonal_(module.weight)

    def loop(self, looped: bool) -> None:
        """Turns the loop of `plan_depth` on or off. A new model has it on."""
        self.plan = plan_depth(self.cfg, looped)

    def stem(self, ids_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Normalised embeddings [B, T, D] of `dtype`, and pe_delta float32 [B, T].

        pe_delta = |change by the enrichment| / |its input| says how sure the model is; it is 0
        where nothing is enriched. Nothing is carried over a document's start, nor over the start
        of the window.
        """
        positions = torch.arange(ids_BT.size(1), device=ids_BT.device)
        inside = (ids_BT != BOS_ID) & (positions > 0)
        e = F.embedding(ids_BT, self.embed).to(dtype)
        if self.cfg.bigram_buckets:
            previous = torch.where(inside, F.pad(ids_BT[:, :-1], (1, 0)), 0)
            bucket = (92821 * previous + ids_BT) % self.cfg.bigram_buckets
            e = e + self.bigram_proj(F.embedding(bucket, self.bigram).to(dtype))
        before = self.smeared(e, inside)
        if not self.cfg.pre_enrich_hidden:
            return rms_norm(before), torch.zeros_like(ids_BT, dtype=torch.float32)
        after = self.enrich_out(F.gelu(self.enrich_in(before)))
        change = (after - before).float().norm(dim=-1)
        pe_delta = change / before.float().norm(dim=-1).clamp_min(1e-12)
        return rms_norm(after), pe_delta

    def smeared(self, e_BTD: Tensor, inside_BT: Tensor) -> Tensor:
        """Embeddings with something of the previous one, where that is inside the document.

        By default a fixed share of each channel is replaced. With smear_inputs, a multiple is
        added that depends on the token's own first channels and starts at zero.
        """
        dtype = e_BTD.dtype
        previous_BTD = F.pad(e_BTD[:, :-1], (0, 0, 1, 0))
        inside_BT1 = inside_BT.unsqueeze(-1)
        if not self.cfg.smear_inputs:
            share_of_previous = torch.sigmoid(-self.smear).to(dtype) * inside_BT1
            return e_BTD + share_of_previous * (previous_BTD - e_BTD)
        first_channels = e_BTD[..., : self.cfg.smear_inputs].contiguous()
        gate_BT1 = F.linear(first_channels, self.smear.to(dtype)[None]).sigmoid()
        multiple = self.smear_strength.to(dtype) * gate_BT1 * inside_BT1
        return e_BTD + multiple * previous_BTD

    def surroundings(self, stem_BTD: Tensor, ids_BT: Tensor) -> Surroundings:
        positions = torch.arange(ids_BT.size(1), device=ids_BT.device)
        head_size = self.cfg.model_dim // self.cfg.num_heads
        rotated = self.cfg.rope_dims or head_size
        rotary = rotary_tables(positions, rotated, self.cfg.rope_base)
        document_BT = None
        if self.cfg.isolate_documents:
            document_BT = (ids_BT == BOS_ID).cumsum(1)
        return Surroundings(stem_BTD, rotary, document_BT)

    def add_skip(self, x: Tensor, kept: Tensor, i: int) -> Tensor:
        """The stream with an earlier state, weighted by channel; a gate may weigh them."""
        weighted = self.skips[i].to(x.dtype) * kept
        if not self.cfg.skip_gates:
            return x + weighted
        share_of_stream = self.skip_gates[i].to(x.dtype).sigmoid()
        return torch.lerp(weighted, x, share_of_stream)

    def run_blocks(self, around: Surroundings, tail: int) -> Tensor:
        """The residual stream [B, tail, D] after all visits, for the last `tail` positions."""
        x = around.stem_BTD
        lanes: Lanes | None = None
        kept: list[Tensor] = []
        for i, visit in enumerate(self.plan):
            # the last visit does no more than the scored positions need
            needed = tail if i == len(self.plan) - 1 else x.size(1)
            block = self.blocks[visit.layer]
            if visit.normalise:
                x = rms_norm(x)
            if visit.parallel and lanes is None:
                lanes = Lanes(x, x)
            if lanes is not None:
                stream = lanes.attention
                if visit.pop is not None:
                    stream = self.add_skip(stream, kept.pop(), visit.pop)
                weights = self.lane_weights[visit.layer]
                lanes = block.side_by_side(Lanes(stream, lanes.mlp), around, needed, weights)
                continue
            if visit.pop is not None:
                x = self.add_skip(x, kept.pop(), visit.pop)
            x = block(x, around, needed)
            if visit.push:
                kept.append(x)
        return x if lanes is None else (lanes.attention + lanes.mlp) / 2

    def hidden(
        self, ids_BT: Tensor, tail: int = 0, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Final normalised states [B, tail, D] and pe_delta float32 [B, tail].

        Both are of the last `tail` positions (0 = all). Position t sees ids <= t. Activations are
        of `dtype`, by default that of the weights; a float64 model keeps float64. Scores are made
        with Ranks.score_dtype.
        """
        if dtype is None or self.embed.dtype == torch.float64:
            dtype = self.embed.dtype
        stem_BTD, pe_delta_BT = self.stem(ids_BT, dtype)
        needed = tail or ids_BT.size(1)
        around = self.surroundings(stem_BTD, ids_BT)
        return rms_norm(self.run_blocks(around, needed)), pe_delta_BT[:, -needed:]

    def logits(self, x: Tensor) -> Tensor:
        """Softcapped logits [..., V], at most logit_softcap in size; float32, or float64."""
        wide = torch.promote_types(x.dtype, torch.float32)
        z = F.linear(x, self.embed.to(x.dtype)).to(wide)
        return self.cfg.logit_softcap * torch.tanh(z / self.cfg.logit_softcap)

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Mean next-token cross-entropy, nats; `dtype` as in `hidden`."""
        states = self.hidden(ids_BT, dtype=dtype)[0].flatten(0, 1)
        return HeadLoss.apply(states, self.embed, targets_BT.flatten(), self.cfg.logit_softcap)


# --- 6. Optimizers and schedules ---


def is_table(name: str, p: Tensor) -> bool:
    return name in ("embed", "bigram")


def is_matrix(name: str, p: Tensor) -> bool:
    return p.ndim == 2 and name.endswith(".weight")


def is_control(name: str, p: Tensor) -> bool:
    by_layer = ("skips", "skip_gates", "lane_weights")
    return p.ndim == 1 or name in by_layer or name.endswith((".mix", ".gate"))


Rule = Callable[[str, Tensor], bool]
PARAMETER_ROLES: dict[str, Rule] = {
    "embed": is_table,
    "matrix": is_matrix,
    "scalar": is_control,
}


def partition(
    model: nn.Module, rules: Mapping[str, Rule], what: str
) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters by rule and name.

    Raises ValueError with the names of those that not exactly one rule claims.
    """
    groups: dict[str, dict[str, nn.Parameter]] = {rule: {} for rule in rules}
    wrong = {}
    for name, p in model.named_parameters():
        claims = [rule for rule, applies in rules.items() if applies(name, p)]
        if len(claims) == 1:
            groups[claims[0]][name] = p
        else:
            wrong[name] = claims
    if wrong:
        raise ValueError(f"{what}: every parameter needs exactly one rule, found {wrong}")
    return groups


def optimizer_groups(model: nn.Module, cfg: TrainingConfig) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters by role and name; bigram_muon makes a matrix of the bigram table."""
    groups = partition(model, PARAMETER_ROLES, "optimizer groups")
    if cfg.bigram_muon and "bigram" in groups["embed"]:
        groups["matrix"]["bigram"] = groups["embed"].pop("bigram")
    return groups


@dataclass
class Bank:
    """All matrices of one shape: Muon treats them in one product."""

    params: list[nn.Parameter]  # n of [R, C]
    momenta: Tensor  # [n, R, C]


def make_banks(matrices: Iterable[nn.Parameter]) -> list[Bank]:
    """One bank for each shape, with momenta of zero."""
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for p in matrices:
        by_shape.setdefault(p.shape, []).append(p)
    banks = []
    for shape, params in by_shape.items():
        momenta = torch.zeros(len(params), *shape, device=params[0].device)
        banks.append(Bank(params, momenta))
    return banks


class Optimizers:
    """Muon on matrices, AdamW on embeddings and on gains, gates and scales.

    `step` expects this rank's gradient of the mean loss over its share of the batch.
    """

    def __init__(self, model: nn.Module, cfg: TrainingConfig, ranks: Ranks):
        self.cfg = cfg
        self.ranks = ranks
        groups = optimizer_groups(model, cfg)
        # a model without skip connections has a parameter without elements or gradient
        self.params = [p for p in model.parameters() if p.numel()]
        self.banks = make_banks(groups["matrix"].values())
        self.adam = torch.optim.AdamW(
            [
                {
                    "params": list(groups["embed"].values()),
                    "base_lr": cfg.embed_lr,
                    "weight_decay": cfg.embed_weight_decay,
                },
                {
                    "params": list(groups["scalar"].values()),
                    "base_lr": cfg.scalar_lr,
                    "weight_decay": cfg.scalar_weight_decay,
                },
            ],
            lr=0.0,
            betas=(cfg.adam_beta1, cfg.adam_beta2),
            eps=1e-8,
            fused=True,
        )
        self.create_adam_state()

    def create_adam_state(self) -> None:
        """AdamW makes its state in its first step.

        This one has no gradient and no learning rate, so it changes nothing else.
        """
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self.adam.step()
        self.zero_grad()
        self.reset()

    def state(self) -> dict[str, Tensor]:
        """All momenta and moments, by name: what a checkpoint must hold."""
        named = {f"muon.{i}": bank.momenta for i, bank in enumerate(self.banks)}
        for i, moments in enumerate(self.adam.state.values()):
            for kind, tensor in moments.items():
                named[f"adam.{i}.{kind}"] = tensor
        return named

    @torch.no_grad()
    def reset(self) -> None:
        """As if no step had been taken."""
        torch._foreach_zero_(list(self.state().values()))

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def step(self, step: int, lr_scale: float) -> None:
        """One update of all weights, at lr_scale times their learning rates."""
        self.average_gradients()
        if self.cfg.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.params, self.cfg.grad_clip)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * lr_scale
        self.adam.step()
        self.muon(self.cfg.muon_lr * lr_scale, muon_momentum(step, self.cfg))
        self.zero_grad()

    def average_gradients(self) -> None:
        """Over all ranks, in one message."""
        if self.ranks.world_size == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in self.params])
        self.ranks.all_reduce(flat).div_(self.ranks.world_size)
        parts = flat.split([p.numel() for p in self.params])
        for p, gradient in zip(self.params, parts, strict=True):
            p.grad = gradient.view_as(p)

    @torch.no_grad()
    def muon(self, lr: float, momentum: float) -> None:
        """Nesterov momentum, then Newton-Schulz, on all matrices [R, C] (Jordan et al. 2024).

        p <- p (1 - lr wd) - lr max(1, R/C)^(1/2) NS(g + mu m), with m <- mu m + g. muon_row_norm
        first brings the rows of g + mu m to length 1 (MuonEq-R, arXiv 2603.28254).
        """
        for bank in self.banks:
            gradients = torch.stack([p.grad for p in bank.params])
            bank.momenta.mul_(momentum).add_(gradients)
            update = self.orthogonalise(gradients.add_(bank.momenta, alpha=momentum))
            rows, columns = bank.params[0].shape
            scale = max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(bank.params, 1 - lr * self.cfg.weight_decay)
            torch._foreach_add_(bank.params, list(update.unbind(0)), alpha=-lr * scale)

    def orthogonalise(self, update: Tensor) -> Tensor:
        """Newton-Schulz of [n, R, C]. Ranks share the matrices and gather the results."""
        cfg = self.cfg
        if cfg.muon_row_norm:
            update = F.normalize(update, dim=-1)
        share = -(-len(update) // self.ranks.world_size)
        first = self.ranks.rank * share
        shard = update[first : first + share]
        if shard.dtype == torch.float32:
            shard = shard.to(self.ranks.train_dtype)  # in bfloat16, half the bytes to gather
        if len(shard):
            shard = newton_schulz(shard, cfg.newton_schulz_steps, cfg.newton_schulz)
        return self.ranks.all_gather(shard, len(update)).to(update.dtype)


def muon_momentum(step: int, cfg: TrainingConfig) -> float:
    """Rises linearly over the first muon_momentum_warmup_steps."""
    ramp = 1.0
    if cfg.muon_momentum_warmup_steps:
        ramp = min(1.0, step / cfg.muon_momentum_warmup_steps)
    return cfg.muon_momentum_start + ramp * (cfg.muon_momentum - cfg.muon_momentum_start)


def training_share(step: int, seconds: float, cfg: TrainingConfig) -> float:
    """How much of the training is over, from 0 to 1: by steps or by the clock, if there is one."""
    by_clock = seconds / cfg.train_seconds if cfg.train_seconds > 0 else 0.0
    return min(1.0, max(step / cfg.iterations, by_clock))


def learning_rate_scale(step: int, seconds: float, cfg: TrainingConfig) -> float:
    """1, then linearly to 0 over the last warmdown_share or warmdown_steps, but not below lr_floor.

    Where there is a clock, the steps are measured in seconds, at the mean step time so far.
    """
    if cfg.warmdown_share > 0:
        left = (1 - training_share(step, seconds, cfg)) / cfg.warmdown_share
        return max(cfg.lr_floor, min(1.0, left))
    by_steps = (cfg.iterations - step) / max(1, cfg.warmdown_steps)
    by_clock = 1.0
    warmdown_seconds = cfg.warmdown_steps * seconds / max(1, step)
    if cfg.train_seconds > 0 and warmdown_seconds > 0:
        by_clock = (cfg.train_seconds - seconds) / warmdown_seconds
    return max(cfg.lr_floor, min(1.0, by_steps, by_clock))


# --- 7. Averaging ---


class Average:
    """EMA of the weights, plus the mean of snapshots taken late in the warm-down.

    The latter is SWA (Izmailov et al. 2018). Both stay on the weights' own device.
    """

    def __init__(self, model: nn.Module, cfg: TrainingConfig):
        self.params = list(model.parameters())
        self.decay = cfg.ema_decay
        self.ema = [p.detach().clone() for p in self.params]
        self.swa = [torch.zeros_like(p) for p in self.params] if cfg.swa_every else []
        self.snapshots = 0

    def state(self) -> dict[str, Tensor]:
        """The weights and their averages, by name: what a checkpoint must hold."""
        named = {}
        for kind, tensors in (("weight", self.params), ("ema", self.ema), ("swa", self.swa)):
            for i, tensor in enumerate(tensors):
                named[f"{kind}.{i}"] = tensor
        return named

    @torch.no_grad()
    def update(self, snapshot: bool) -> None:
        """After the optimizer's step, so that the average never lags the weights by one."""
        torch._foreach_lerp_(self.ema, self.params, 1 - self.decay)
        if snapshot:
            self.snapshots += 1
            torch._foreach_add_(self.swa, self.params)

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Half EMA, half SWA where snapshots were taken, else the EMA alone."""
        if self.snapshots:
            torch._foreach_mul_(self.swa, 1 / self.snapshots)
            torch._foreach_lerp_(self.ema, self.swa, 0.5)
        torch._foreach_copy_(self.params, self.ema)


# --- 8. Scoring ---


class Windows(NamedTuple):
    """One window a row, int64 [n] each.

    Positions [start, end) of a stream are read, the predictions at [first, end) are scored.
    """

    stream: np.ndarray
    start: np.ndarray
    first: np.ndarray
    end: np.ndarray

    def take(self, which: np.ndarray | slice) -> Windows:
        """The rows of these indices."""
        return Windows(*(column[which] for column in self))

    def rows(self) -> list[tuple[int, int, int, int]]:
        """(stream, start, first, end) of each window."""
        return list(zip(*(column.tolist() for column in self), strict=True))


class WindowBatch(NamedTuple):
    """Windows that are scored in one forward pass, padded to one length."""

    padded_length: int
    windows: Windows


def plan_windows(num_positions: int, seq_len: int, stride: int, stream: int = 0) -> Windows:
    """Windows in which every position of a stream is scored exactly once.

    The grid is anchored at the start of the stream, so a shorter stream has the same windows,
    the last one cut. Raises ValueError.
    """
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride must be in 1..{seq_len}, got {stride}")
    behind_the_first = max(0, num_positions - seq_len)
    count = (num_positions > 0) + -(-behind_the_first // stride)
    start = stride * np.arange(count, dtype=np.int64)
    first = np.where(start > 0, start + seq_len - stride, 0)
    end = np.minimum(num_positions, start + seq_len)
    return Windows(np.full(count, stream, dtype=np.int64), start, first, end)


@dataclass(frozen=True)
class WindowPlan(Sequence):
    """The windows of all streams, in batches of equal padded length.

    A batch is cut out when it is asked for.
    """

    windows: Windows  # by padded length, then in the order of the streams
    padded_length: list[int]  # of each batch
    edges: list[int]  # batch i holds the windows [edges[i], edges[i + 1])

    def __len__(self) -> int:
        return len(self.padded_length)

    def __getitem__(self, i: int) -> WindowBatch:
        inside = slice(self.edges[i], self.edges[i + 1])
        return WindowBatch(self.padded_length[i], self.windows.take(inside))

    def commonest_shape(self) -> tuple[int, int, int]:
        """(windows, padded length, tail) of the most batches; tail as in ForwardInput."""
        shapes = Counter()
        shortest_context = np.minimum.reduceat(
            self.windows.first - self.windows.start, self.edges[:-1]
        )
        sizes = np.diff(self.edges).tolist()
        context = shortest_context.tolist()
        for rows, padded, unscored in zip(sizes, self.padded_length, context, strict=True):
            shapes[rows, padded, padded - unscored] += 1
        return shapes.most_common(1)[0][0]


def plan_batches(lengths: Sequence[int], cfg: ScoringConfig) -> WindowPlan:
    """Depends on the streams' lengths and the config, never on the number of ranks.

    Short windows are padded to a multiple of 64 only, so that many short streams cost what they
    hold.
    """
    planned = [plan_windows(0, cfg.eval_seq_len, cfg.eval_stride)]  # there may be no streams
    for stream, length in enumerate(lengths):
        planned.append(plan_windows(length, cfg.eval_seq_len, cfg.eval_stride, stream))
    windows = Windows(*map(np.concatenate, zip(*planned, strict=True)))
    planned.clear()  # a million windows for each 64 million tokens
    sizes = (windows.end - windows.start).astype(np.int32)
    padded = np.minimum(cfg.eval_seq_len, -(-sizes // 64) * 64)
    by_length = np.argsort(padded, kind="stable")
    batch_lengths = []
    edges = [0]
    for length, count in zip(*np.unique(padded, return_counts=True), strict=True):
        rows = max(1, cfg.eval_batch_tokens // int(length))
        behind = edges[-1] + int(count)
        edges += [*range(edges[-1] + rows, behind, rows), behind]
        batch_lengths += [int(length)] * (len(edges) - 1 - len(batch_lengths))
    return WindowPlan(windows.take(by_length), batch_lengths, edges)


@dataclass
class StreamScores:
    """What the model says of one stream.

    Position i is the prediction made after reading x[0..i].
    """

    nll: Tensor  # float64 [M], nats: -ln p(x[i+1] | x[0..i])
    entropy: Tensor  # float64 [N], nats, of each prediction
    confidence: Tensor  # float64 [N], pe_delta of x[i]
    probes: dict[int, Tensor]  # position -> ln p(. | x[0..i]), float64 [V]


class ForwardInput(NamedTuple):
    """A batch of windows on the device. n positions are scored in all."""

    ids: Tensor  # int64 [windows, padded_length]
    tail: int  # last positions of each row among which the scored ones are
    scored: Tensor  # int64 [n]: index into the flattened [windows, tail]
    targets: Tensor  # int64 [n]: the token that follows; PAD_ID behind a stream's end
    where: Tensor  # int64 [n]: position in all streams laid end to end
    positions: np.ndarray  # the same, on the host


def forward_input(
    batch: WindowBatch, streams: Sequence[np.ndarray], offsets: np.ndarray, device: torch.device
) -> ForwardInput:
    """Reads the windows of a batch from the streams; offsets [streams + 1] are their starts.

    All goes to the device in one copy, for which a GPU's host does not wait.
    """
    padded_length, windows = batch
    tail = padded_length - int((windows.first - windows.start).min())
    ids = np.full((len(windows.start), padded_length), PAD_ID, dtype=np.int64)
    scored, targets, positions = [], [], []
    for row, (stream, start, first, end) in enumerate(windows.rows()):
        tokens = streams[stream]
        ids[row, : end - start] = tokens[start:end]
        row_start = row * tail - (padded_length - tail)
        scored.append(row_start + np.arange(first - start, end - start))
        following = np.full(end - first, PAD_ID, dtype=np.int64)
        known = tokens[first + 1 : end + 1]
        following[: len(known)] = known
        targets.append(following)
        positions.append(offsets[stream] + np.arange(first, end))
    where = np.concatenate(positions)
    columns = (ids.ravel(), np.concatenate(scored), np.concatenate(targets), where)
    packed = torch.from_numpy(np.concatenate(columns))
    if device.type == "cuda":
        packed = packed.pin_memory()  # else the copy would make the host wait
    parts = packed.to(device, non_blocking=True).split([len(column) for column in columns])
    return ForwardInput(
        ids=parts[0].view(ids.shape),
        tail=tail,
        scored=parts[1],
        targets=parts[2],
        where=parts[3],
        positions=where,
    )


class ScoreTable:
    """The scores of all streams, laid end to end. Ranks and threads fill disjoint positions."""

    def __init__(
        self,
        streams: Sequence[np.ndarray],
        probes: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device,
    ):
        self.offsets = np.cumsum([0] + [len(stream) for stream in streams])
        probed = []
        for stream, positions in enumerate(probes):
            probed += [self.offsets[stream] + i for i in positions]
        self.probed = np.unique(probed).astype(np.int64)  # [K], rising
        shape = (3, int(self.offsets[-1]))
        self.per_position = torch.zeros(shape, dtype=torch.float64, device=device)
        self.nll, self.entropy, self.confidence = self.per_position
        shape = (len(self.probed), vocab_size)
        self.probe_log_p = torch.zeros(shape, dtype=torch.float64, device=device)

    def write(self, given: ForwardInput, part: slice, logits: Tensor) -> None:
        """Scores of part of a batch's positions, from their logits [n, V]."""
        where = given.where[part]
        targets = given.targets[part]
        p = torch.softmax(logits, -1, dtype=torch.float64)
        log_total = log_sum_exp(logits, p)
        self.nll[where] = log_total - logits.gather(1, targets[:, None]).squeeze(1)
        self.entropy[where] = log_total - p.mul_(logits).sum(-1)
        positions = given.positions[part]
        hits = np.flatnonzero(np.isin(positions, self.probed))
        if len(hits):
            probes = np.searchsorted(self.probed, positions[hits])
            self.probe_log_p[probes] = logits[hits] - log_total[hits, None]

    def sum_over_ranks(self, ranks: Ranks) -> None:
        """A slot is zero on all ranks but one, so the sum is exact."""
        ranks.all_reduce(self.per_position)
        ranks.all_reduce(self.probe_log_p)

    def by_stream(self) -> list[StreamScores]:
        """One entry a stream, in their order."""
        scores = []
        for start, end in itertools.pairwise(self.offsets):
            first, last = np.searchsorted(self.probed, (start, end))
            probes = {int(self.probed[k] - start): self.probe_log_p[k] for k in range(first, last)}
            nll = self.nll[start : end - 1]
            entropy = self.entropy[start:end]
            confidence = self.confidence[start:end]
            scores.append(StreamScores(nll, entropy, confidence, probes))
        return scores


# Forward passes that pay for a compilation, by bench/roofline.py: each moves 43 GB less, at least
# 13 ms on an H100, and the compiler is taken to need 20 s.
BATCHES_TO_COMPILE = 1500


def compile_hidden(
    model: GPT, plan: WindowPlan, own_batches: int, ranks: Ranks
) -> Callable[..., tuple[Tensor, Tensor]]:
    """`model.hidden`, compiled for the plan's commonest shape where a GPU has enough of it.

    All batches of other shapes, such as a stream's last, run as they are written.
    """
    if not ranks.on_gpu or own_batches < BATCHES_TO_COMPILE:
        return model.hidden
    shape = plan.commonest_shape()
    compiled = torch.compile(model.hidden, fullgraph=True, dynamic=False)

    def hidden(ids_BT: Tensor, tail: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        compute = compiled if (*ids_BT.shape, tail) == shape else model.hidden
        return compute(ids_BT, tail, dtype)

    return hidden


def read_ahead(read: Callable[[int], ForwardInput], numbers: Iterable[int]) -> Iterator:
    """map(read, numbers), two ahead in a thread: a GPU never waits for its next batch."""
    with ThreadPoolExecutor(1) as reader:
        pending = []
        for number in numbers:
            pending.append(reader.submit(read, number))
            if len(pending) > 2:
                yield pending.pop(0).result()
        for reading in pending:
            yield reading.result()


@torch.inference_mode()
def score_streams(
    model: GPT,
    streams: Sequence[np.ndarray],
    cfg: ScoringConfig,
    ranks: Ranks,
    probes: Sequence[Sequence[int]] = (),
    what: str = "",
) -> list[StreamScores]:
    """Sliding-window scores of every stream, each from a fresh state.

    Ranks share the batches, and all receive all results. `what` names the work while it is shown.
    """
    vocab_size = model.cfg.vocab_size
    table = ScoreTable(streams, probes, vocab_size, ranks.device)
    rows = logit_rows(ranks.device, vocab_size)
    plan = plan_batches([len(stream) for stream in streams], cfg)
    own = range(ranks.rank, len(plan), ranks.world_size)
    hidden_of = compile_hidden(model, plan, len(own), ranks)

    def read(number: int) -> ForwardInput:
        return forward_input(plan[number], streams, table.offsets, ranks.device)

    @torch.inference_mode()  # for the thread that runs it
    def score(given: ForwardInput) -> None:
        hidden, pe_delta = hidden_of(given.ids, given.tail, ranks.score_dtype)
        states = hidden.flatten(0, 1)[given.scored]
        # float32 logits halve what scoring in bfloat16 costs
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        table.confidence[given.where] = pe_delta.flatten()[given.scored].double()
        for i in range(0, len(states), rows):
            part = slice(i, i + rows)
            table.write(given, part, model.logits(states[part]))

    with contextlib.closing(Meter(what, len(own), ranks.rank == 0)) as meter:
        if ranks.on_gpu:
            for given in read_ahead(read, own):
                score(given)
                meter.advance()
        else:
            for _ in ranks.map(lambda number: score(read(number)), own):
                meter.advance()
    table.sum_over_ranks(ranks)
    return table.by_stream()


# --- 9. N-gram mixing ---
# All tokens of a stream are known, so a count of what came before t is a rank. Positions are kept
# sorted by (context of k tokens, time). A stable sort by (context, next token) refines them to
# contexts of k + 1 tokens. Ranks inside runs of equal keys give, without hashing,
#     c    earlier visits of the context,
#     c_w  those among them that the target followed,
#     D    the distinct tokens that followed.
# A context that occurs once leaves the active set. A context never spans a BOS, but counts outlive
# documents.
#
#   back-off   p_k(w) = (c_w + θ D p_{k-1}(w)) / (c + θ D), with p_0 the model's probability. This
#              is Witten-Bell's escape, θ times stronger. It sums to 1 over w because Σ_w c_w = c,
#              so the target's own counts suffice.
#   gate       p = (1 - α) p_0 + α p_K, with α mixed over a grid by Bayes' rule from the losses at
#              earlier positions of the same bucket: at most ln|grid| nats of regret each. Buckets
#              use only what is known before the target.

NGRAM_ESCAPE = 5.0  # θ
GATE_GRID = 8  # values of α, logistic from 0.02 to 0.98
GATE_WINDOW = 16  # targets behind the recency feature
# Losses are summed in multiples of this many nats. Sums in float64 are then exact (to 1e8 nats),
# whatever the order and the blocks.
GATE_UNIT = 2.0**-26
# Mean ln((1 + p_K/p_0)/2) over the last targets: is the chain winning now?
RECENT_EDGES = (-0.3, -0.1, 0.0, 0.1, 0.2, 0.4, 0.8)
ENTROPY_EDGES = (0.5, 1.0, 2.0, 3.0, 4.0)  # nats
CONFIDENCE_EDGES = (1.0, 2.0)  # pe_delta
CONTINUATION_EDGES = (1.5, 3.5, 8.5, 32.5)  # distinct continuations of the longest match
# Positions per block: what a CPU's cache holds, and what fills a GPU without many launches. Memory
# and speed alone depend on these, never the result.
COUNT_CHUNK = 1 << 17
GATE_CHUNK = 1 << 15
GPU_COUNT_CHUNK = 1 << 24
GPU_GATE_CHUNK = 1 << 21  # times GATE_GRID float64 numbers, of which a few live at once
# Nats. Below e^-500 the chain's start is floored, so that no product of escapes leaves float64.
NLL_CLAMP = 500.0


def run_starts(sorted_keys: Tensor) -> Tensor:
    """Bool mask of the elements of a sorted 1-D tensor that begin a run of equal ones."""
    new = torch.ones(len(sorted_keys), dtype=torch.bool, device=sorted_keys.device)
    torch.ne(sorted_keys[1:], sorted_keys[:-1], out=new[1:])
    return new


def count_chunk(device: torch.device) -> int:
    """Contexts that are counted together."""
    return GPU_COUNT_CHUNK if device.type == "cuda" else COUNT_CHUNK


def gate_chunk(device: torch.device) -> int:
    """Positions whose gates are made together."""
    return GPU_GATE_CHUNK if device.type == "cuda" else GATE_CHUNK


def start_of_each_plain(index: Tensor, new: Tensor) -> Tensor:
    """Index at which each element's run began, int32 [n]; `new` marks the beginnings."""
    return torch.cummax(index * new, 0).values


def start_of_each_on_gpu(index: Tensor, new: Tensor) -> Tensor:
    """The same by a sum and a look-up: a GPU computes cummax in one thread block, a sum in all."""
    run = torch.cumsum(new, 0, dtype=torch.int32) - 1
    return index.masked_select(new).index_select(0, run)


def start_of_each(index: Tensor, new: Tensor) -> Tensor:
    return (start_of_each_on_gpu if index.is_cuda else start_of_each_plain)(index, new)


class Contexts(NamedTuple):
    """The active contexts of one length, sorted by (context, time), int32 [n] each."""

    group: Tensor  # equal for equal contexts, rising
    last: Tensor  # position of the context's last token
    earlier: Tensor  # occurrences of the same context before


class Counts(NamedTuple):
    """Exact counts before n targets, for contexts of one length. Whoever gets them may write."""

    at: Tensor  # int64 [n]: position of the context's last token; the target is x[at + 1]
    context: Tensor  # int32 [n], c: earlier occurrences of the context
    pair: Tensor  # int32 [n], c_w: those that the target followed
    distinct: Tensor  # int32 [n], D: distinct tokens that followed the context


OnCounts = Callable[[int, Counts], None]
Map = Callable[[Callable, Sequence], Iterable]  # the built-in map, or Ranks.map


class ContextCounter:
    """Counts what came before each target, order by order."""

    def __init__(self, tokens_N: Tensor, vocab_size: int):
        N = len(tokens_N)
        self.tokens_N = tokens_N.to(torch.int32)
        self.index_N = torch.arange(N, dtype=torch.int32, device=tokens_N.device)
        # the last token has no target; what stands there is unique
        self.next_N = F.pad(self.tokens_N[1:], (0, 1), value=vocab_size)
        self.pair_stride = vocab_size + 1

    def single_tokens(self) -> Contexts:
        """The contexts of one token."""
        group, last = torch.sort(self.tokens_N, stable=True)
        run_start = start_of_each(self.index_N, run_starts(group))
        return Contexts(group, last.to(torch.int32), self.index_N - run_start)

    def blocks(self, contexts: Contexts) -> list[tuple[int, int]]:
        """Ranges [low, high) of about `count_chunk` contexts; no group crosses an edge."""
        group = contexts.group
        every = count_chunk(group.device)
        edges = torch.searchsorted(group, group[::every].contiguous())
        cuts = edges.unique_consecutive().tolist()
        return list(itertools.pairwise([*cuts, len(group)]))

    def count(self, contexts: Contexts, low: int, high: int) -> tuple[Counts, Contexts]:
        """Counts of a block of contexts, and the longer contexts that they grow into."""
        group, last, earlier = (column[low:high] for column in contexts)
        at = last.long()
        index = self.index_N[: high - low]
        target = self.next_N.index_select(0, at)
        group_in_block = group - group[0]
        # narrow keys take fewer radix passes
        fits_int32 = int(group_in_block[-1]) < (1 << 31) // self.pair_stride - 1
        pair_key = group_in_block if fits_int32 else group_in_block.long()
        pair_key.mul_(self.pair_stride).add_(target)
        pairs, by_pair = torch.sort(pair_key, stable=True)
        new_pair = run_starts(pairs)
        pair_start = start_of_each(index, new_pair)
        index_in_run = index - pair_start
        pair_count = torch.empty_like(index_in_run).scatter_(0, by_pair, index_in_run)
        novel = (pair_count == 0).to(torch.int32)
        novel_before = torch.cumsum(novel, 0, dtype=torch.int32).sub_(novel)
        before_group = novel_before.index_select(0, index - earlier)
        distinct = novel_before.sub_(before_group)
        # The pair is a context of the next order, unless it is unique or holds a BOS beyond its
        # first token.
        unique = new_pair & F.pad(new_pair[1:], (0, 1), value=True)
        keep = (target.index_select(0, by_pair) != BOS_ID) & ~unique
        kept = keep.nonzero().squeeze(1)
        longer = Contexts(
            group=pair_start.index_select(0, kept).add_(low),
            last=(at.index_select(0, by_pair.index_select(0, kept)) + 1).to(torch.int32),
            earlier=index_in_run.index_select(0, kept),
        )
        return Counts(at, earlier, pair_count, distinct), longer

    def grow(self, n: int, contexts: Contexts, on_counts: OnCounts, run: Map) -> Contexts:
        """Hands out the counts of order n, block by block; returns the longer contexts."""

        def work_on(block: tuple[int, int]) -> Contexts:
            counts, longer = self.count(contexts, *block)
            on_counts(n, counts)
            return longer

        columns = zip(*run(work_on, self.blocks(contexts)), strict=True)
        return Contexts(*map(torch.cat, columns))


def context_counts(
    tokens_N: Tensor, n_max: int, vocab_size: int, on_counts: OnCounts, run: Map = map
) -> None:
    """Calls on_counts(n, counts) for n = 2, 3 ... n_max (context and target), block by block.

    `run` may work on the blocks of one order side by side. A context that never occurred twice
    does not appear: its c would be 0.
    """
    counter = ContextCounter(tokens_N, vocab_size)
    contexts = counter.single_tokens()
    for n in range(2, n_max + 1):
        if not len(contexts.group):
            return
        contexts = counter.grow(n, contexts, on_counts, run)


class Chain(NamedTuple):
    """The back-off chain's view of each target.

    The last position has no target: its probability is meaningless, its match is that of the
    prediction after the stream.
    """

    p_N: Tensor  # float64 [N], probability of the target
    order_N: Tensor  # int32 [N], n of the longest context that occurred before; 0 = none
    distinct_N: Tensor  # int32 [N], tokens seen after that context, at most 65535


def ngram_chain(
    tokens_N: Tensor,
    p_N: Tensor,
    n_max: int,
    vocab_size: int,
    run: Map = map,
    meter: Meter | None = None,
) -> Chain:
    """Backs off from p_N through all orders, and tells the meter the order that it is at.

    p_N float64 [N] is the model's probability of the target after each position.
    """
    N = len(tokens_N)
    # first occurrences write to one slot more, at the end
    p = F.pad(p_N, (0, 1))
    match = torch.zeros(N + 1, dtype=torch.int32, device=tokens_N.device)

    def back_off(n: int, counts: Counts) -> None:
        if meter is not None:
            meter.reach(n - 2)
        escape = counts.distinct.double().mul_(NGRAM_ESCAPE)
        shorter = p.index_select(0, counts.at)
        longer = shorter.mul_(escape).add_(counts.pair).div_(escape.add_(counts.context))
        seen_at = counts.at.masked_fill(counts.context == 0, N)
        p.scatter_(0, seen_at, longer)
        # order and continuations in one number, so that they move in one pass
        match.scatter_(0, seen_at, counts.distinct.clamp_(max=65_535).add_(n << 16))

    context_counts(tokens_N, n_max, vocab_size, back_off, run)
    return Chain(p[:-1], match[:-1] >> 16, match[:-1] & 65_535)


def recent_gain(gain_N: Tensor) -> Tensor:
    """Mean ln((1 + p_K/p_0)/2) over the GATE_WINDOW targets before each, float64 [N]."""
    won = torch.log1p(gain_N.exp()) - math.log(2)
    total = torch.cumsum(won.clamp_(-3, 6).div_(GATE_UNIT).round_(), 0)
    recent = F.pad(total[:-1], (1, 0))
    recent[GATE_WINDOW + 1 :] -= total[: -GATE_WINDOW - 1]
    return recent.mul_(GATE_UNIT / GATE_WINDOW)


def gate_buckets(
    gain_N: Tensor, chain: Chain, scores: StreamScores, n_max: int
) -> tuple[Tensor, int]:
    """Bucket of each position's gate, int32 [N], and the number of buckets.

    gain_N = ln(p_K / p_0) of the targets; strictly those before a position are used.
    """
    features = (
        (recent_gain(gain_N), RECENT_EDGES),
        (scores.entropy, ENTROPY_EDGES),
        (scores.confidence, CONFIDENCE_EDGES),
        (chain.distinct_N, CONTINUATION_EDGES),
    )
    bucket_N = chain.order_N.clone()
    num_buckets = n_max + 1
    for feature_N, edges in features:
        bucket_N *= len(edges) + 1
        num_buckets *= len(edges) + 1
        for edge in edges:  # faster than a search
            bucket_N += feature_N > edge
    return bucket_N, num_buckets


def bayes_gate(gain_N: Tensor, bucket_N: Tensor, num_buckets: int) -> Tensor:
    """α float64 [N] of p = (1 - α) p_0 + α p_K.

    The posterior mean over the grid, given the gains at earlier positions of the same bucket.
    """
    logits = torch.linspace(-4, 4, GATE_GRID, dtype=torch.float64, device=gain_N.device)
    grid = torch.sigmoid(logits)
    carry = torch.zeros(GATE_GRID, num_buckets, dtype=torch.float64, device=gain_N.device)
    alpha_N = torch.empty_like(gain_N)
    positions = gate_chunk(gain_N.device)
    for low in range(0, len(gain_N), positions):
        chunk = slice(low, low + positions)
        bucket, by_bucket = torch.sort(bucket_N[chunk], stable=True)
        gain = gain_N[chunk].index_select(0, by_bucket)
        # log evidence that each α has earned, [grid, positions sorted by bucket]
        earned = torch.log1p(grid[:, None] * torch.expm1(gain)).div_(GATE_UNIT).round_()
        evidence = exclusive_sums_by_bucket(earned, bucket, carry)
        weights = torch.softmax(evidence.mul_(GATE_UNIT), 0)
        alpha_N[chunk].scatter_(0, by_bucket, grid @ weights)
    return alpha_N


def exclusive_sums_by_bucket(earned: Tensor, bucket: Tensor, carry: Tensor) -> Tensor:
    """What each position's bucket has earned before it, [grid, n], for a sorted bucket [n].

    carry [grid, buckets] is what earlier chunks earned; this chunk is added to it.
    """
    total = torch.cumsum(earned, 1)
    before = total - earned
    starts = run_starts(bucket).nonzero().squeeze(1)
    ends = F.pad(starts[1:], (0, 1), value=len(bucket)) - 1
    present = bucket.index_select(0, starts).long()
    # what a run must add to `before`: what its bucket had, less what other buckets earned here
    base = carry.index_select(1, present) - before.index_select(1, starts)
    carry.index_copy_(1, present, base + total.index_select(1, ends))
    # spread `base` over its run, as a running sum of its steps
    steps = torch.diff(base, dim=1, prepend=base.new_zeros(len(base), 1))
    base_of_each = torch.cumsum(torch.zeros_like(total).index_copy_(1, starts, steps), 1)
    return before.add_(base_of_each)


def probe_chain(tokens_N: Tensor, i: int, p_V: Tensor, n_max: int) -> Tensor:
    """The chain's whole distribution [V] after position i, from the model's p_V.

    Scans x[0..i] once and shares no data structure with `context_counts`.
    """
    visits = (tokens_N[:i] == tokens_N[i]).nonzero().squeeze(1)
    for n in range(2, n_max + 1):
        if not len(visits):
            break
        counts = torch.bincount(tokens_N[visits + 1], minlength=len(p_V))
        escape = NGRAM_ESCAPE * int((counts > 0).sum())
        p_V = (counts + escape * p_V) / (len(visits) + escape)
        if i < n - 1 or tokens_N[i - n + 2] == BOS_ID:
            break
        visits = visits[visits >= n - 1]
        visits = visits[tokens_N[visits - n + 1] == tokens_N[i - n + 1]]
    return p_V


def log_mix(alpha: Tensor, log_model: Tensor, p_chain: Tensor) -> Tensor:
    """ln((1 - α) p_0 + α p_K)."""
    return torch.logaddexp(torch.log1p(-alpha) + log_model, torch.log(alpha * p_chain))


def final_scores(
    scores: StreamScores, stream: np.ndarray, cfg: Config, run: Map = map, what: str = ""
) -> tuple[Tensor, dict[int, Tensor]]:
    """What is reported: nll float64 [M], nats, and ln p [V] at each probed position.

    The model's scores, mixed with the n-gram chain. Entry i depends on x[0..i] and the model's
    outputs at 0..i alone, whatever the blocks, batches and ranks. `what` names the work while it
    is shown.
    """
    n_max = cfg.scoring.ngram_order
    if n_max < 2:
        return scores.nll, scores.probes
    tokens_N = torch.from_numpy(stream.astype(np.int64)).to(scores.nll.device)
    log_model_N = -F.pad(scores.nll, (0, 1))
    floored_N = log_model_N.clamp(min=-NLL_CLAMP)
    with contextlib.closing(Meter(what, n_max - 1)) as meter:
        p_N = floored_N.exp()
        chain = ngram_chain(tokens_N, p_N, n_max, cfg.model.vocab_size, run, meter)
    gain_N = torch.log(chain.p_N) - floored_N
    bucket_N, num_buckets = gate_buckets(gain_N, chain, scores, n_max)
    alpha_N = bayes_gate(gain_N, bucket_N, num_buckets)
    nll_N = -log_mix(alpha_N, log_model_N, chain.p_N)
    probes = {}
    for i, log_model_V in scores.probes.items():
        p_V = log_model_V.clamp(min=-NLL_CLAMP).exp()
        chain_V = probe_chain(tokens_N, i, p_V, n_max)
        probes[i] = log_mix(alpha_N[i], log_model_V, chain_V)
    return nll_N[:-1], probes


def mix_streams(
    scores: Sequence[StreamScores], streams: Sequence[np.ndarray], cfg: Config, ranks: Ranks
) -> Iterator[tuple[Tensor, dict[int, Tensor]]]:
    """`final_scores` of every stream, in order.

    A stream of several blocks has them worked on side by side. Shorter streams are side by side
    themselves.
    """

    def mix(pair: tuple[StreamScores, np.ndarray]) -> tuple[Tensor, dict[int, Tensor]]:
        return final_scores(*pair, cfg)

    def is_long(pair: tuple[StreamScores, np.ndarray]) -> bool:
        return len(pair[1]) > COUNT_CHUNK

    for long, group in itertools.groupby(zip(scores, streams, strict=True), is_long):
        if long:
            for stream_scores, stream in group:
                yield final_scores(stream_scores, stream, cfg, ranks.map, "mixing n-grams")
        else:
            yield from ranks.map(mix, list(group))


# --- 10. Export ---

LEVELS = {
    "int8": 127,
    "int7": 63,
    "int6": 31,
    "int5": 15,
}  # symmetric: the symbols are -levels..levels
FLOAT_TYPES = {"fp16": torch.float16, "fp32": torch.float32}
# A few bytes may claim to hold any number of equal weights. This is over twice as many as the cap
# has bits.
MOST_PARAMETERS = 1 << 28


def export_formats(model: nn.Module, cfg: Config) -> dict[str, str]:
    """Parameter name -> storage format; exactly one rule claims every parameter."""
    num_layers = cfg.model.num_layers
    late_layers = range(num_layers - cfg.export.late_k_fp16_layers, num_layers)
    late_keys = {f"blocks.{layer}.attention.k.weight" for layer in late_layers}

    def is_embedding(name: str, p: Tensor) -> bool:
        return name == "embed"

    def is_bigram_table(name: str, p: Tensor) -> bool:
        return name == "bigram"

    def is_half_precision_matrix(name: str, p: Tensor) -> bool:
        small = p.numel() <= cfg.export.small_matrix_elements
        return is_matrix(name, p) and (small or name in late_keys)

    def is_other_matrix(name: str, p: Tensor) -> bool:
        return is_matrix(name, p) and not is_half_precision_matrix(name, p)

    bigram_format = cfg.export.bigram_format
    if bigram_format == "same":
        bigram_format = cfg.export.embed_format
    format_of = {
        is_embedding: cfg.export.embed_format,
        is_bigram_table: bigram_format,
        is_control: cfg.export.control_format,
        is_half_precision_matrix: "fp16",
        is_other_matrix: cfg.export.matrix_format,
    }
    rules = {rule.__name__: rule for rule in format_of}
    formats = {}
    for name, parameters in partition(model, rules, "export rules").items():
        formats.update(dict.fromkeys(parameters, format_of[rules[name]]))
    return formats


class Stored(NamedTuple):
    """A tensor as the artifact holds it."""

    format: str
    values: Tensor  # integer symbols int8 [R, C], or floats of any shape
    scales: Tensor | None  # bfloat16 [R] where the values are symbols

    def parts(self) -> list[Tensor]:
        return [self.values] if self.scales is None else [self.values, self.scales]

    def weights(self) -> Tensor:
        """float32, as the model computes with them."""
        if self.scales is None:
            return self.values.float()
        return self.values.float() * self.scales.float()[:, None]


def quantize_rows(w: Tensor, levels: int, coarsen: float = 1.0) -> tuple[Tensor, Tensor]:
    """Symbols int8 [R, C] and scales bfloat16 [R] of a float32 matrix.

    Each row is clipped at that one of 16 fractions of its largest weight which has the least
    squared error. The symbols are computed against the rounded scale, so its 8 bits of precision
    cost nothing. coarsen > 1 widens every step: fewer bits.
    """

    def symbols(scale: Tensor) -> Tensor:
        return (w / scale[:, None]).round().clamp(-levels, levels)

    largest = w.abs().amax(-1)
    best_error = torch.full_like(largest, math.inf)
    best_scale = torch.ones_like(largest)
    for fraction in torch.linspace(0.4, 1.0, 16).tolist():
        scale = (largest * fraction / levels).bfloat16().float()
        scale = torch.where(scale > 0, scale, 1.0)
        error = (symbols(scale) * scale[:, None] - w).square().sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    stored_scale = (best_scale * coarsen).bfloat16()
    return symbols(stored_scale.float()).to(torch.int8), stored_scale


def store(name: str, w: Tensor, storage: str, coarsen: float) -> Stored:
    """A float32 weight in one of the storage formats.

    Raises UserError for weights that are not finite or leave the range of their format.
    """
    if not torch.isfinite(w).all():
        raise UserError(
            f"export: expected finite weights, found NaN or infinity in {name}; "
            "the run has diverged, lower the learning rates"
        )
    if storage in LEVELS:
        symbols, scales = quantize_rows(w, LEVELS[storage], coarsen)
        return Stored(storage, symbols.cpu(), scales.cpu())
    values = w.to(FLOAT_TYPES[storage]).cpu()
    if not torch.isfinite(values).all():
        raise UserError(
            f"export: expected {name} within the range of {storage}, "
            f"found {float(w.abs().amax()):.4g}; store it as fp32"
        )
    return Stored(storage, values, None)


def byte_planes(t: Tensor) -> list[np.ndarray]:
    """uint8 arrays: all low bytes, then all next bytes ... Equal exponents lie side by side."""
    by_element = t.contiguous().view(torch.uint8).view(-1, t.element_size())
    return list(by_element.T.contiguous().numpy())


def entropy_bytes(tensors: Iterable[Tensor]) -> float:
    """Zero-order entropy of their byte planes: no coder of independent symbols can beat it."""
    bits = 0.0
    for tensor in tensors:
        for plane in byte_planes(tensor):
            counts = np.bincount(plane)
            counts = counts[counts > 0]
            bits -= float((counts * np.log2(counts / counts.sum())).sum())
    return bits / 8


# A coded plane is: u32, the bytes that follow, or 0 where the plane is stored as it is; a bitmap
# of the byte values that occur; a frequency u16 for each; the coder's u32 words.


def categorical(frequencies: np.ndarray) -> Any:
    """The coder's model of independent symbols with these relative frequencies."""
    probabilities = frequencies / frequencies.sum(dtype=np.int64)
    return constriction.stream.model.Categorical(probabilities, perfect=False)


def encode(plane: np.ndarray) -> bytes:
    """uint8 [n] within a few bytes of its entropy, by asymmetric numeral systems (Duda 2013)."""
    counts = np.bincount(plane, minlength=256)
    present = counts > 0
    scaled = np.round(counts[present] * (65_535 / max(1, counts.max())))
    frequencies = np.maximum(1, scaled).astype("<u2")
    coder = constriction.stream.stack.AnsCoder()
    if len(frequencies) > 1:
        index_of_value = np.cumsum(present) - 1
        coder.encode_reverse(index_of_value[plane].astype(np.int32), categorical(frequencies))
    words = coder.get_compressed().astype("<u4")
    coded = np.packbits(present).tobytes() + frequencies.tobytes() + words.tobytes()
    if len(coded) < len(plane):
        return struct.pack("<I", len(coded)) + coded
    return struct.pack("<I", 0) + plane.tobytes()


def decode(data: memoryview, at: int, size: int) -> tuple[np.ndarray, int]:
    """The plane of `size` bytes that `encode` put at offset `at`, and the offset behind it.

    Raises ValueError or struct.error.
    """
    coded_bytes = struct.unpack_from("<I", data, at)[0]
    start = at + 4
    if not coded_bytes:
        # a ValueError where the data end before
        return np.frombuffer(data, np.uint8, size, start), start + size
    end = start + coded_bytes
    bitmap = np.frombuffer(data, np.uint8, coded_bytes, start)[:32]
    values = np.flatnonzero(np.unpackbits(bitmap)).astype(np.uint8)
    shorts = np.frombuffer(data[start + 32 : end], "<u2")
    frequencies = shorts[: len(values)]
    words = shorts[len(values) :].tobytes()
    whole_table = len(values) > 0 and len(frequencies) == len(values) and frequencies.all()
    if not whole_table or (len(values) == 1 and words):
        raise ValueError("a tensor's table of frequencies is damaged")
    if len(values) == 1:
        return np.full(size, values[0]), end
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    plane = values[coder.decode(categorical(frequencies), size)]
    if not coder.is_empty():
        raise ValueError("a tensor has more words than symbols")
    return plane, end


@dataclass(frozen=True)
class Packed:
    """An artifact file, beside the tensors that it holds and the bytes that each takes in it."""

    data: bytes
    tensors: dict[str, Stored]
    coded_bytes: dict[str, int]

    def entropy_bytes(self) -> float:
        """What no coder of independent symbols can beat, for all tensors."""
        return sum(entropy_bytes(stored.parts()) for stored in self.tensors.values())


SIZES = struct.Struct("<IIQ")  # version, bytes of the header, bytes of the payload
DIGEST_BYTES = hashlib.sha256().digest_size
STORED_GROUPS = {"model": ModelConfig, "scoring": ScoringConfig}  # settings in the header


def dump_header(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def pack(model: GPT, cfg: Config, tokenizer_sha256: str, coarsen: float = 1.0) -> Packed:
    """The artifact of a model. Raises UserError for weights that cannot be stored.

    Layout: magic, version u32, header length u32, payload length u64, JSON header, payload,
    sha256 of all before it. The payload holds, in the order of the header's tensors, the byte
    planes of their values and then of their row scales, each plane by `encode`.
    """
    parameters = dict(model.named_parameters())
    tensors = {}
    coded = {}
    formats = export_formats(model, cfg)
    with contextlib.closing(Meter("export", len(formats))) as meter:
        for name, storage in formats.items():
            stored = store(name, parameters[name].detach().float(), storage, coarsen)
            planes = itertools.chain.from_iterable(map(byte_planes, stored.parts()))
            tensors[name] = stored
            coded[name] = b"".join(map(encode, planes))
            meter.advance()
    payload = b"".join(coded.values())
    header = {group: asdict(getattr(cfg, group)) for group in STORED_GROUPS}
    header["tokenizer_sha256"] = tokenizer_sha256
    header["tensors"] = {
        name: {"format": stored.format, "shape": list(stored.values.shape)}
        for name, stored in tensors.items()
    }
    raw_header = dump_header(header)
    sizes = SIZES.pack(ARTIFACT_VERSION, len(raw_header), len(payload))
    body = ARTIFACT_MAGIC + sizes + raw_header + payload
    coded_bytes = {name: len(planes) for name, planes in coded.items()}
    return Packed(body + hashlib.sha256(body).digest(), tensors, coded_bytes)


def export(model: GPT, cfg: Config, tokenizer_sha256: str, code_bytes: int, log: Log) -> bytes:
    """The artifact under the size cap. Raises UserError where it does not fit.

    With fit_cap, quantisation steps are widened just enough: entropy falls by log2 of the factor
    per weight.
    """
    limit = cfg.export.size_cap - code_bytes
    formats = export_formats(model, cfg)
    integers = [p for name, p in model.named_parameters() if formats[name] in LEVELS]
    quantised = sum(p.numel() for p in integers)
    coarsen = 1.0
    while True:
        packed = pack(model, cfg, tokenizer_sha256, coarsen)
        excess = len(packed.data) - limit
        if excess <= 0:
            log(
                f"export coarsen:{coarsen:.4f} headroom_bytes:{-excess} "
                f"entropy_bound_bytes:{packed.entropy_bytes():.0f}"
            )
            return packed.data
        if not cfg.export.fit_cap or coarsen > 4 or not quantised:
            by_size = sorted(packed.coded_bytes.items(), key=lambda item: -item[1])
            heaviest = ", ".join(f"{name} {size:,}" for name, size in by_size[:5])
            raise UserError(
                f"export: expected code + artifact <= {cfg.export.size_cap:,} bytes, "
                f"found {len(packed.data) + code_bytes:,}, {excess:,} over; "
                f"heaviest tensors (bytes): {heaviest}; "
                "use a smaller format, model or --fit-cap 1"
            )
        coarsen *= 2 ** (1.02 * 8 * excess / quantised + 0.002)


def split_artifact(data: bytes, where: str) -> tuple[bytes, memoryview]:
    """JSON header and coded payload of an artifact whose every byte is verified.

    Raises UserError.
    """
    magic_bytes = len(ARTIFACT_MAGIC)
    start = magic_bytes + SIZES.size
    if len(data) < start + DIGEST_BYTES or data[:magic_bytes] != ARTIFACT_MAGIC:
        raise UserError(
            f"{where}: expected an artifact that starts with {ARTIFACT_MAGIC!r}, "
            f"found {bytes(data[:magic_bytes])!r} in {len(data)} bytes; export it again"
        )
    version, header_bytes, payload_bytes = SIZES.unpack_from(data, magic_bytes)
    if version != ARTIFACT_VERSION:
        raise UserError(
            f"{where}: expected artifact version {ARTIFACT_VERSION}, found {version}; "
            "use the train_gpt.py that wrote it"
        )
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    size = start + header_bytes + payload_bytes + DIGEST_BYTES
    if len(data) != size or hashlib.sha256(body).digest() != digest:
        raise UserError(
            f"{where}: expected {size:,} bytes that match their own sha256, "
            f"found {len(data):,} that do not; copy the file again"
        )
    header_end = start + header_bytes
    return body[start:header_end], memoryview(body)[header_end:]


class PayloadReader:
    """Reads tensors one after the other. Raises ValueError or struct.error."""

    def __init__(self, payload: memoryview):
        self.payload = payload
        self.at = 0

    def read(self, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        planes = []
        for _ in range(dtype.itemsize):
            plane, self.at = decode(self.payload, self.at, math.prod(shape))
            planes.append(plane)
        flat = torch.from_numpy(np.stack(planes, -1).reshape(-1))
        return flat.view(dtype).view(*shape)

    def read_stored(self, storage: str, shape: Sequence[int]) -> Stored:
        if storage in LEVELS:
            symbols = self.read(torch.int8, shape)
            return Stored(storage, symbols, self.read(torch.bfloat16, shape[:1]))
        return Stored(storage, self.read(FLOAT_TYPES[storage], shape), None)


def read_tensors(
    entries: Mapping[str, Mapping[str, Any]], payload: memoryview
) -> tuple[dict[str, Stored], dict[str, int]]:
    """What `pack` wrote, by name, and the bytes of each. Raises ValueError, struct.error."""
    reader = PayloadReader(payload)
    tensors = {}
    coded_bytes = {}
    for name, entry in entries.items():
        start = reader.at
        tensors[name] = reader.read_stored(entry["format"], entry["shape"])
        coded_bytes[name] = reader.at - start
    if reader.at != len(payload):
        raise ValueError(f"its payload has {len(payload) - reader.at} bytes too many")
    return tensors, coded_bytes


def config_from_header(header: Mapping[str, Any]) -> Config:
    """Raises ValueError for other settings or types than this file's, or for bad values.

    The settings of mechanisms may be missing: the artifact is older than they are.
    """
    groups = {}
    without_mechanisms = asdict(MechanismConfig())
    for group, kind in STORED_GROUPS.items():
        found = header[group]
        if kind is ModelConfig:
            found = without_mechanisms | found
        expected = {f.name: type(f.default) for f in fields(kind)}
        if {name: type(value) for name, value in found.items()} != expected:
            raise ValueError(f"its {group} settings are not those of this train_gpt.py")
        groups[group] = kind(**found)
    return validate(Config(**groups))


def check_tensors(entries: Mapping[str, Mapping[str, Any]], model: nn.Module) -> None:
    """Raises ValueError unless the header's tensors are those of the model."""
    expected = {name: list(p.shape) for name, p in model.named_parameters()}
    if {name: entry["shape"] for name, entry in entries.items()} != expected:
        raise ValueError("its tensors are not those of its config")
    for name, entry in entries.items():
        storage = entry["format"]
        if storage not in MATRIX_FORMATS:
            raise ValueError(f"{name} is stored in an unknown format, {storage!r}")
        if storage in LEVELS and len(expected[name]) != 2:
            raise ValueError(f"{name} is no matrix and cannot be {storage}")
    count = sum(map(math.prod, expected.values()))
    if count > MOST_PARAMETERS:
        raise ValueError(f"{count:,} parameters, over the limit of {MOST_PARAMETERS:,}")


# What reading a damaged or hostile header or payload may raise.
DAMAGE = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class Artifact:
    """A model read back from its artifact: float32 weights without gradients."""

    model: GPT
    cfg: Config  # the model and scoring groups; the others are defaults
    tokenizer_sha256: str
    packed: Packed


def unpack(data: bytes, where: str) -> Artifact:
    """Nothing in the file is executed or unpickled. Raises UserError; `where` names the file."""
    raw_header, payload = split_artifact(data, where)
    try:
        header = json.loads(raw_header)
        if dump_header(header) != raw_header:  # such as one that names a tensor twice
            raise ValueError("its header is not written as `pack` writes it")
        cfg = config_from_header(header)
        with torch.device("meta"):
            model = GPT(cfg.model)
        check_tensors(header["tensors"], model)
        tensors, coded_bytes = read_tensors(header["tensors"], payload)
        weights = {name: stored.weights() for name, stored in tensors.items()}
        model.load_state_dict(weights, assign=True)
        tokenizer_sha256 = str(header["tokenizer_sha256"])
    except DAMAGE as error:
        raise UserError(
            f"{where}: expected an artifact of this train_gpt.py, found: {error}; "
            "use the code that wrote it"
        ) from None
    packed = Packed(data, tensors, coded_bytes)
    return Artifact(model.requires_grad_(False), cfg, tokenizer_sha256, packed)


def load_artifact(path: Path) -> Artifact:
    """Raises UserError for a missing or damaged file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: expected an artifact, found {error.strerror}; train one first"
        ) from None
    return unpack(data, str(path))


# --- 11. Training ---


def training_step(
    compute: Callable[[Tensor, Tensor], Tensor],
    batch: Sequence[tuple[Tensor, Tensor]],
    params: Sequence[nn.Parameter],
    ranks: Ranks,
) -> Tensor:
    """Sets the gradients of the mean loss over this rank's micro-batches.

    Returns that loss, float32 scalar on the device, nats.
    """

    def loss_and_gradients(micro: tuple[Tensor, Tensor]) -> list[Tensor]:
        loss = compute(*micro) / len(batch)
        return [loss.detach(), *torch.autograd.grad(loss, params)]

    results = ranks.map(loss_and_gradients, batch)
    total = next(results)
    for result in results:  # in the order of the batch, whichever was done first
        torch._foreach_add_(total, result)
    loss, *gradients = total
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = gradient
    return loss


def quantize_matrices(model: nn.Module, formats: Mapping[str, str]) -> None:
    """Fake quantisation of the matrices whose export format is an integer; no formats: off."""
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            module.levels = LEVELS.get(formats.get(f"{name}.weight", ""), 0)


def compile_model(model: GPT, cfg: TrainingConfig, ranks: Ranks) -> Callable[..., Tensor]:
    """The model's forward pass as training calls it: compiled if so set, in the ranks' dtype.

    Raises UserError where torch.compile finds no C++ compiler.
    """
    compute: Callable[..., Tensor] = model
    if cfg.compile:
        compilers = ("c++", "g++", "clang++")
        found = os.environ.get("CXX") or any(map(shutil.which, compilers))
        if not ranks.on_gpu and not found:
            raise UserError(
                "--compile: expected a C++ compiler for torch.compile on a CPU, found none; "
                "install one or pass --compile 0"
            )
        # tuning times the compiler's own products, with what follows in them, against the library's
        mode = "max-autotune-no-cudagraphs" if cfg.compile == 2 else None
        compute = torch.compile(model, fullgraph=True, dynamic=False, mode=mode)
    return functools.partial(compute, dtype=ranks.train_dtype)


def warm_up(
    model: GPT,
    compute: Callable[..., Tensor],
    optimizers: Optimizers,
    rows: int,
    cfg: Config,
    log: Log,
) -> None:
    """Compiles all that the loop will run, on synthetic tokens, never on data.

    Weights and optimizer state are restored bit for bit.
    """
    started = time.perf_counter()
    saved = [p.detach().clone() for p in model.parameters()]
    formats = export_formats(model, cfg)
    ranks = optimizers.ranks
    generator = torch.Generator().manual_seed(0)
    shape = (rows, cfg.training.train_seq_len + 1)
    steps = cfg.training.warmup_steps
    with contextlib.closing(Meter("warm-up", steps, ranks.rank == 0)) as meter:
        for step in range(steps):
            quantised = cfg.training.qat_lr_scale > 0 and step % 2 == 1
            quantize_matrices(model, formats if quantised else {})
            model.loop(cfg.training.loop_from == 0 or step // 2 % 2 == 1)
            on_host = torch.randint(cfg.model.vocab_size, shape, generator=generator)
            tokens = on_host.to(ranks.device)
            training_step(compute, [(tokens[:, :-1], tokens[:, 1:])], optimizers.params, ranks)
            optimizers.step(step, 1.0)
            meter.advance()
    quantize_matrices(model, {})
    with torch.no_grad():
        torch._foreach_copy_(list(model.parameters()), saved)
    optimizers.reset()
    seconds = time.perf_counter() - started
    log(f"warmup steps:{cfg.training.warmup_steps} time:{seconds:.1f}s")


class TrainingClock:
    """Seconds of training; what happens while it is paused does not count."""

    def __init__(self, ranks: Ranks, seconds: float):
        self.ranks = ranks
        self.started = ranks.clock() - seconds

    def host_seconds(self) -> float:
        """By the host's clock, without waiting for the device."""
        return time.perf_counter() - self.started

    def seconds(self) -> float:
        """After the device has finished its queue."""
        return self.ranks.clock() - self.started

    @contextlib.contextmanager
    def paused(self) -> Iterator[float]:
        """Yields the seconds at which it stands."""
        at = self.ranks.clock()
        yield at - self.started
        self.started += self.ranks.clock() - at


class StepPacer:
    """Keeps the host at most two steps ahead of the GPU, whose queue then never drains."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.events: list[torch.cuda.Event] = []

    def wait(self) -> None:
        if not self.ranks.on_gpu:
            return
        self.events.append(torch.cuda.current_stream().record_event())
        if len(self.events) > 2:
            self.events.pop(0).synchronize()


class StopSignals:
    """Collects SIGTERM and SIGINT instead of dying of them.

    One that arrived too late to act on is raised again on exit.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.handlers[number] = signal.signal(number, self.receive)
        return self

    def receive(self, number: int, frame: Any) -> None:
        self.received.append(number)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.received and kind is None:
            signal.raise_signal(self.received[0])


class Health:
    """Counts, on the device, this rank's steps with a finite loss and gradient.

    No step waits to be checked.
    """

    def __init__(self, ranks: Ranks, steps: int):
        self.ranks = ranks
        self.finite_steps = torch.full((), steps, device=ranks.device)
        self.loss = torch.zeros((), device=ranks.device)

    def observe(self, loss: Tensor, params: Sequence[nn.Parameter]) -> None:
        """After the gradients are made and before they are reduced over ranks."""
        self.loss = loss
        norms = torch._foreach_norm([p.grad for p in params])
        self.finite_steps += torch.stack([loss, *norms]).isfinite().all()

    def by_rank(self) -> tuple[list[float], list[float]]:
        """Each rank's last loss, nats, and its number of finite steps."""
        device = CPU if self.ranks.on_metal else self.ranks.device
        seen = torch.zeros(2, self.ranks.world_size, dtype=torch.float64, device=device)
        seen[0, self.ranks.rank] = self.loss.to(device).double()
        seen[1, self.ranks.rank] = self.finite_steps.to(device).double()
        losses, counts = self.ranks.all_reduce(seen).tolist()
        return losses, counts


@dataclass
class Progress:
    """How far a run is, and what its settings say is due at this point."""

    cfg: Config
    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # of training, as all ranks agreed before this step
    stopping: bool = False  # some rank has received a stop signal
    resumed_at: int | None = None  # the step of the checkpoint, which was logged and saved then

    def finished(self) -> bool:
        training = self.cfg.training
        out_of_time = 0 < training.train_seconds <= self.seconds
        return self.step == training.iterations or out_of_time

    def learning_rate_scale(self) -> float:
        return learning_rate_scale(self.step, self.seconds, self.cfg.training)

    def loops(self) -> bool:
        """Whether the blocks of the loop run several times in the next step."""
        training = self.cfg.training
        return training_share(self.step, self.seconds, training) >= training.loop_from

    def is_due(self, interval: int) -> bool:
        """At the last step, and every `interval` steps; never where that is 0."""
        return interval > 0 and (self.finished() or self.step % interval == 0)

    def is_new(self) -> bool:
        return self.step != self.resumed_at

    def should_save(self) -> bool:
        due = self.stopping or self.is_due(self.cfg.run.checkpoint_every)
        return self.is_new() and self.step > 0 and due

    def should_validate(self) -> bool:
        return self.is_new() and self.is_due(self.cfg.training.val_every)

    def should_log(self) -> bool:
        if not self.is_new() or self.step == 0:
            return False
        early = self.step <= 10
        return early or self.should_save() or self.is_due(self.cfg.training.log_every)

    def should_pause(self) -> bool:
        """For what is not training time."""
        return self.should_validate() or self.should_save()

    def should_snapshot(self, lr_scale: float) -> bool:
        """For SWA, after a step taken at lr_scale."""
        training = self.cfg.training
        late = lr_scale < training.swa_lr_scale
        return training.swa_every > 0 and late and self.step % training.swa_every == 0


class Checkpoint(NamedTuple):
    """The numbers in a checkpoint, beside its tensors and the log."""

    step: int
    row: int  # of the loader
    snapshots: int  # averaged so far
    seconds: float  # of training

    @staticmethod
    def from_array(numbers: np.ndarray) -> Checkpoint:
        """Raises ValueError for anything but four finite numbers >= 0."""
        if numbers.shape != (4,) or not (np.isfinite(numbers) & (numbers >= 0)).all():
            raise ValueError(f"progress {str(numbers.tolist())[:80]}")
        step, row, snapshots, seconds = numbers.tolist()
        return Checkpoint(int(step), int(row), int(snapshots), seconds)


class CheckpointName(NamedTuple):
    """checkpoint_RUN_NUMBER_STEP_SHA256.npz"""

    run: str  # digest of code, settings, seed and the data's manifest, 12 hex digits
    number: int  # grows with every checkpoint of a run
    step: int
    sha256: str  # of the file

    def __str__(self) -> str:
        return f"checkpoint_{self.run}_{self.number:06d}_{self.step:07d}_{self.sha256}.npz"

    @staticmethod
    def parse(path: Path) -> CheckpointName | None:
        found = re.fullmatch(
            r"checkpoint_([0-9a-f]{12})_(\d{6,})_(\d{7,})_([0-9a-f]{64})\.npz", path.name
        )
        if found is None:
            return None
        run, number, step, sha256 = found.groups()
        return CheckpointName(run, int(number), int(step), sha256)


class Checkpoints:
    """The last two states of a run in --out.

    All ranks hold the same state, so any number of them may go on from it. It needs no random
    generator, because a batch follows from seed and row.
    """

    def __init__(self, run_id: str, state: Mapping[str, Tensor], cfg: Config, ranks: Ranks):
        self.run = hashlib.sha256(run_id.encode()).hexdigest()[:12]
        self.state = state
        self.folder = Path(cfg.run.out)
        self.ranks = ranks

    def find(self) -> list[CheckpointName]:
        """Those of this run, oldest first."""
        names = map(CheckpointName.parse, self.folder.glob("checkpoint_*.npz"))
        return sorted(name for name in names if name is not None and name.run == self.run)

    def save(self, checkpoint: Checkpoint, log: Log) -> bool:
        """Returns whether it was written. Where the disk is full, say, the run goes on without."""
        with self.ranks.together():
            if self.ranks.rank == 0:
                return self.write(checkpoint, log)
        return True

    def write(self, checkpoint: Checkpoint, log: Log) -> bool:
        data = self.serialise(checkpoint, log)
        number = 1 + max((name.number for name in self.find()), default=0)
        digest = hashlib.sha256(data).hexdigest()
        name = CheckpointName(self.run, number, checkpoint.step, digest)
        try:
            write_atomically(self.folder / str(name), data)
        except UserError as error:
            log(f"checkpoint not written: {error}")
            return False
        log(f"checkpoint step:{checkpoint.step} file:{name} bytes:{len(data)}")
        self.prune()
        return True

    def serialise(self, checkpoint: Checkpoint, log: Log) -> memoryview:
        """An npz file of the state, the numbers and the log so far."""
        arrays = {name: t.detach().cpu().numpy() for name, t in self.state.items()}
        log_so_far = np.frombuffer(log.path.read_bytes(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, progress=np.array(checkpoint), log=log_so_far, **arrays)
        return buffer.getbuffer()

    def prune(self) -> None:
        """Removes all but the last two, and what a killed process left half-written."""
        for old in self.find()[:-2]:
            (self.folder / str(old)).unlink(missing_ok=True)
        for unfinished in self.folder.glob(f".checkpoint_{self.run}_*.tmp"):
            unfinished.unlink(missing_ok=True)

    @torch.no_grad()
    def load(self, log: Log) -> Checkpoint:
        """Restores state and log from the newest whole checkpoint; zeros where there is none.

        Raises UserError where the folder holds only damaged checkpoints or another run's.
        """
        found = Checkpoint(0, 0, 0, 0.0)
        with self.ranks.together():
            if self.ranks.rank == 0 and any(self.folder.glob("checkpoint_*.npz")):
                found = self.read(self.newest_whole(), log)
        numbers = torch.tensor(found, dtype=torch.float64)
        for tensor in (numbers, *self.state.values()):
            # the other ranks add zeros to what rank 0 has read
            self.ranks.all_reduce(tensor if self.ranks.rank == 0 else tensor.zero_())
        return Checkpoint.from_array(numbers.numpy())

    def newest_whole(self) -> Path:
        """Raises UserError where every checkpoint is damaged or of another run."""
        for name in reversed(self.find()):
            path = self.folder / str(name)
            if sha256_file(path) == name.sha256:
                return path
        newest = max(self.folder.glob("checkpoint_*.npz"))
        raise UserError(
            f"{newest}: expected a whole checkpoint of this code, config, seed and data; "
            "undo changes or leave --resume out"
        )

    def read(self, path: Path, log: Log) -> Checkpoint:
        """Copies the arrays into the state. Raises UserError for a file of another content."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                checkpoint = Checkpoint.from_array(arrays["progress"])
                log_then = arrays["log"].tobytes()
                for name, tensor in self.state.items():
                    tensor.copy_(torch.from_numpy(arrays[name]).view(tensor.shape))
        except Exception as error:  # whatever a zip file with our name may hold
            raise UserError(
                f"{path}: expected a checkpoint, found {type(error).__name__} {error}; remove it"
            ) from None
        write_atomically(log.path, log_then)
        log(
            f"resume step:{checkpoint.step} train_time:{1000 * checkpoint.seconds:.0f}ms "
            f"file:{path.name} {environment_line(self.ranks)}"
        )
        return checkpoint


def train(
    model: GPT, dataset: Dataset, cfg: Config, ranks: Ranks, log: Log, run_id: str = ""
) -> Progress:
    """Leaves averaged weights in the model; returns the steps and seconds that it took.

    Checkpoints are named after `run_id`. Raises UserError where ranks, compiler, checkpoints or
    numbers allow no training, and SystemExit after SIGTERM or SIGINT.
    """
    formats = export_formats(model, cfg)
    loader = Loader(dataset.train, cfg, ranks)
    optimizers = Optimizers(model, cfg.training, ranks)
    average = Average(model, cfg.training)
    compute = compile_model(model, cfg.training, ranks)
    warm_up(model, compute, optimizers, loader.micro_rows, cfg, log)
    checkpoints = Checkpoints(run_id, average.state() | optimizers.state(), cfg, ranks)
    pacer = StepPacer(ranks)
    with StopSignals() as signals, contextlib.closing(loader):
        progress = resume(checkpoints, loader, average, cfg, log)
        health = Health(ranks, progress.step)
        clock = TrainingClock(ranks, progress.seconds)
        saved = True
        while True:
            agree(progress, clock, signals, ranks)
            lr_scale = progress.learning_rate_scale()
            if progress.should_log():
                log_step(progress, health, checkpoints, log)
            if progress.should_pause():
                with clock.paused() as seconds:
                    if progress.should_validate():
                        log_validation(model, dataset, progress, seconds, ranks, log)
                    if progress.should_save():
                        state = Checkpoint(progress.step, loader.row, average.snapshots, seconds)
                        saved = checkpoints.save(state, log)
            if progress.stopping:
                stop(progress, saved, log)
            if progress.finished():
                break
            quantised = lr_scale < cfg.training.qat_lr_scale
            quantize_matrices(model, formats if quantised else {})
            model.loop(progress.loops())
            loss = training_step(compute, loader.next(), optimizers.params, ranks)
            health.observe(loss, optimizers.params)
            optimizers.step(progress.step, lr_scale)
            progress.step += 1
            average.update(snapshot=progress.should_snapshot(lr_scale))
            pacer.wait()
    progress.seconds = clock.seconds()
    quantize_matrices(model, {})
    model.loop(True)
    log(f"averaging ema_decay:{cfg.training.ema_decay} swa_snapshots:{average.snapshots}")
    average.copy_to_model()
    return progress


def resume(
    checkpoints: Checkpoints, loader: Loader, average: Average, cfg: Config, log: Log
) -> Progress:
    """From the newest checkpoint with --resume, else from the beginning."""
    if not cfg.run.resume:
        return Progress(cfg)
    found = checkpoints.load(log)
    if log.metrics is not None:
        log.metrics.forget_after(found.step or -1)
    loader.row = found.row
    average.snapshots = found.snapshots
    return Progress(cfg, found.step, found.seconds, resumed_at=found.step or None)


def agree(progress: Progress, clock: TrainingClock, signals: StopSignals, ranks: Ranks) -> None:
    """Rank 0's clock and anybody's signal: all ranks leave after the same step.

    Reduced on the CPU, so no GPU waits.
    """
    own_seconds = clock.host_seconds() if ranks.rank == 0 else 0.0
    ballot = torch.tensor([own_seconds, len(signals.received)], dtype=torch.float64)
    seconds, stop_votes = ranks.all_reduce(ballot).tolist()
    progress.seconds = seconds
    progress.stopping = stop_votes > 0


def stop(progress: Progress, saved: bool, log: Log) -> None:
    """Raises SystemExit, with code 0 where the state is on disk and 2 where it is not."""
    advice = "--resume 1 goes on from the newest checkpoint" if saved else "nothing was saved"
    log(f"stopped step:{progress.step} by a signal; {advice}")
    raise SystemExit(0 if saved else 2)


def where_float64_is(model: GPT, ranks: Ranks) -> tuple[GPT, Ranks]:
    """Both as they are, or copies on the CPU where the device has no float64 to score in."""
    if not ranks.on_metal:
        return model, ranks
    return copy.deepcopy(model).to(CPU), dataclasses.replace(ranks, device=CPU)


def log_validation(
    model: GPT, dataset: Dataset, progress: Progress, seconds: float, ranks: Ranks, log: Log
) -> None:
    """Logs val_loss of the model alone, and val_bpb where the whole split was read.

    On non-overlapping windows: cheaper and a little worse than the final sliding score. `seconds`
    of training have passed.
    """
    training = progress.cfg.training
    tokens = dataset.val[: training.val_tokens or None]
    sliding = progress.cfg.scoring
    side_by_side = dataclasses.replace(sliding, eval_stride=sliding.eval_seq_len)
    exact_model, exact_ranks = where_float64_is(model, ranks)
    nll = score_streams(exact_model, [tokens], side_by_side, exact_ranks)[0].nll
    numbers = {"val_loss": nll.mean().item()}
    extent = f"val_tokens:{len(tokens)}"
    if len(tokens) == len(dataset.val):  # nothing tells the bytes of a part
        val_bpb = nll.sum().item() / math.log(2) / dataset.manifest.val_bytes
        numbers["val_bpb"] = val_bpb
        extent = f"val_bpb:{val_bpb:.4f}"
    log.point(
        f"step:{progress.step}/{training.iterations} val_loss:{numbers['val_loss']:.4f} "
        f"{extent} train_time:{1000 * seconds:.0f}ms",
        "validation",
        progress.step,
        val_tokens=len(tokens),
        train_s=seconds,
        **numbers,
    )


def log_step(progress: Progress, health: Health, checkpoints: Checkpoints, log: Log) -> None:
    """Raises UserError on rank 0, SystemExit elsewhere, for numbers that are not finite."""
    losses, finite_steps = health.by_rank()
    check_finite(progress.step, finite_steps, checkpoints)
    training = progress.cfg.training
    step, seconds = progress.step, progress.seconds
    mean_loss = sum(losses) / len(losses)
    left = (training.iterations - step) * seconds / step
    if training.train_seconds > 0:
        left = min(left, training.train_seconds - seconds)
    lr_scale = progress.learning_rate_scale()
    tokens = step * training.train_batch_tokens
    log.point(
        f"step:{step}/{training.iterations} train_loss:{mean_loss:.6f} "
        f"lr_scale:{lr_scale:.4f} train_time:{1000 * seconds:.0f}ms "
        f"step_avg:{1000 * seconds / step:.2f}ms "
        f"tokens_per_s:{tokens / seconds:.0f} "
        f"left:{max(0.0, left):.0f}s",
        "step",
        step,
        steps=training.iterations,
        tokens=tokens,
        train_loss=mean_loss,
        lr_scale=lr_scale,
        muon_lr=lr_scale * training.muon_lr,
        tokens_per_s=tokens / seconds,
        train_s=seconds,
        left_s=max(0.0, left),
        peak_memory_mib=peak_memory_mib(checkpoints.ranks.device),
    )


def check_finite(step: int, finite_steps: list[float], checkpoints: Checkpoints) -> None:
    """Names the step and rank where losses, gradients or weights first were not finite.

    Raises UserError on rank 0, SystemExit(2) on the others.
    """
    fewest = int(min(finite_steps))
    norms = torch._foreach_norm(list(checkpoints.state.values()))
    if fewest < step:
        found = f"others in step {fewest + 1} on rank {finite_steps.index(fewest)}"
    elif not torch.stack(norms).isfinite().all():
        found = f"others after step {step}"
    else:
        return
    if checkpoints.ranks.rank != 0:
        raise SystemExit(2)
    names = checkpoints.find()
    raise UserError(
        f"training: expected finite losses, gradients and weights, found {found}; "
        "start again with lower learning rates; "
        f"last good checkpoint: {names[-1] if names else 'none'}"
    )


# --- 12. Commands ---


def start_log(cfg: Config, source: bytes, code_sha256: str, ranks: Ranks) -> Log:
    """A new log that begins with this file's source; an older run's log is kept beside it."""
    path = Path(cfg.run.out) / "train.log"
    log = Log(path, active=ranks.rank == 0)
    with ranks.together():
        if ranks.rank == 0:
            sink = open_sink(cfg)
            old = path.read_bytes() if path.is_file() else b""
            if b"\nstep:" in old:
                write_atomically(path.with_name("train.log.previous"), old)
            write_atomically(path, b"log_format:1\n")
            log = Log(path, metrics=Metrics(path.with_name("metrics.jsonl"), sink))
            if not cfg.run.resume:
                log.metrics.forget_after(-1)
    header = f"===== source train_gpt.py bytes:{len(source)} sha256:{code_sha256} ====="
    log(f"{header}\n{source.decode()}\n===== end source =====", echo=False)
    return log


def export_artifact(
    model: GPT, cfg: Config, tokenizer_sha256: str, code_bytes: int, ranks: Ranks, log: Log
) -> bytes:
    """Rank 0 writes the artifact and reads it back from the disk; all ranks get its bytes."""
    path = Path(cfg.run.out) / "artifact.bin"
    started = time.perf_counter()
    stored = b""
    with ranks.together():
        if ranks.rank == 0:
            data = export(model, cfg, tokenizer_sha256, code_bytes, log)
            write_atomically(path, data)
            stored = path.read_bytes()
            log(
                f"artifact file:{path.name} bytes:{len(data)} "
                f"sha256:{hashlib.sha256(data).hexdigest()} "
                f"export_time:{time.perf_counter() - started:.1f}s"
            )
    return ranks.broadcast(stored)  # another machine may not see the file, or an older one


@dataclass(frozen=True)
class ValidationScore:
    """A score of the validation split, summed over all targets."""

    nats: float
    targets: int
    num_bytes: int
    seconds: float  # of evaluation so far, from the artifact's bytes on

    @property
    def val_loss(self) -> float:
        return self.nats / self.targets

    @property
    def val_bpb(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    def summary(self) -> str:
        return f"val_loss:{self.val_loss:.8f} val_bpb:{self.val_bpb:.8f}"


class FinalScore(NamedTuple):
    """What a run ends with: the score of the model alone, and that of the mixture, which counts."""

    neural: ValidationScore
    mixed: ValidationScore


def score_artifact(
    artifact: bytes, dataset: Dataset, cfg: Config, ranks: Ranks, log: Log
) -> FinalScore | None:
    """Loads the artifact and scores the validation split with it, on all ranks.

    Rank 0 logs the score of the model alone and returns both; the others return None.
    """
    started = ranks.clock()

    def total(nll: Tensor) -> ValidationScore:
        nats = nll.sum().item()
        seconds = ranks.clock() - started
        return ValidationScore(nats, len(nll), dataset.manifest.val_bytes, seconds)

    model = unpack(artifact, "artifact.bin").model.to(ranks.device)
    scores = score_streams(model, [dataset.val], cfg.scoring, ranks, what="final scoring")[0]
    if ranks.rank != 0:
        return None
    neural = total(scores.nll)
    log(f"neural {neural.summary()} eval_time:{neural.seconds:.1f}s")
    mixed_nll, _ = final_scores(scores, dataset.val, cfg, ranks.map, "mixing n-grams")
    return FinalScore(neural, total(mixed_nll))


def log_result(
    score: FinalScore, progress: Progress, artifact_bytes: int, source: bytes, log: Log
) -> None:
    """The line that every later number comes from."""
    mixed = score.mixed
    seed = progress.cfg.run.seed
    bytes_total = artifact_bytes + len(source)
    log.point(
        f"result {mixed.summary()} nats:{mixed.nats:.6f} "
        f"scored_tokens:{mixed.targets} scored_bytes:{mixed.num_bytes} "
        f"steps:{progress.step} train_s:{progress.seconds:.1f} "
        f"eval_s:{mixed.seconds:.1f} artifact_bytes:{artifact_bytes} "
        f"code_bytes:{len(source)} bytes_total:{bytes_total} "
        f"code_sha256:{hashlib.sha256(source).hexdigest()} seed:{seed}",
        "result",
        progress.step,
        val_loss=mixed.val_loss,
        val_bpb=mixed.val_bpb,
        neural_val_bpb=score.neural.val_bpb,
        train_s=progress.seconds,
        eval_s=mixed.seconds,
        artifact_bytes=artifact_bytes,
        bytes_total=bytes_total,
    )


def print_summary(
    score: FinalScore, progress: Progress, bytes_total: int, xz_bpb: float | None
) -> None:
    """The result for people, on the terminal alone: the log ends with the line for programs."""
    cfg = progress.cfg
    mixed = score.mixed
    facts = {
        "score": f"{mixed.val_bpb:.5f} bits per byte of the validation text",
        "model alone": f"{score.neural.val_bpb:.5f}",
        "xz -9e": "" if xz_bpb is None else f"{xz_bpb:.4f} on the same text",
        "bytes": f"{bytes_total:,} of {cfg.export.size_cap:,} for code and weights",
        "time": f"{progress.seconds:.1f} s for {progress.step:,} steps of training, "
        f"{mixed.seconds:.1f} s for evaluation",
        "files": f"train.log, metrics.jsonl and artifact.bin in {cfg.run.out}",
    }
    for label, value in facts.items():
        if value:
            print(f"{label:<12} {value}", flush=True)


def log_memory(ranks: Ranks, log: Log) -> None:
    if ranks.on_gpu:
        log(
            f"memory peak_allocated_mib:{torch.cuda.max_memory_allocated() >> 20} "
            f"peak_reserved_mib:{torch.cuda.max_memory_reserved() >> 20}"
        )


def command_train(argv: Sequence[str]) -> None:
    """Train, average, export, reload the artifact, score. Writes the log and artifact.bin."""
    cfg, config_lines = parse_config(argv, os.environ)
    source = Path(__file__).read_bytes()
    code_sha256 = hashlib.sha256(source).hexdigest()
    with contextlib.ExitStack() as stack:
        bf16 = bool(cfg.training.bf16)
        opened = open_ranks(os.environ, bf16=bf16, device_name=cfg.run.device)
        ranks = stack.enter_context(opened)
        log = start_log(cfg, source, code_sha256, ranks)
        stack.callback(log.close)
        log("\n".join(environment_report(ranks) + config_lines))
        dataset = open_dataset(cfg, ranks)
        log(dataset.log_line)
        torch.manual_seed(cfg.run.seed)
        model = GPT(cfg.model).to(ranks.device)
        ranks.share(model.parameters())  # two kinds of CPU differ in the last bits of an SVD
        log(f"model parameters:{sum(p.numel() for p in model.parameters())}")
        run_id = f"{code_sha256} {config_sha256(cfg)} seed:{cfg.run.seed} {dataset.log_line}"
        progress = train(model, dataset, cfg, ranks, log, run_id)
        log_memory(ranks, log)
        trained, scoring_ranks = where_float64_is(model, ranks)
        tokenizer_sha256 = dataset.manifest.tokenizer_sha256
        artifact = export_artifact(trained, cfg, tokenizer_sha256, len(source), scoring_ranks, log)
        score = score_artifact(artifact, dataset, cfg, scoring_ranks, log)
        if score is not None:
            log_result(score, progress, len(artifact), source, log)
            bytes_total = len(artifact) + len(source)
            print_summary(score, progress, bytes_total, dataset.manifest.val_xz_bpb)


def read_probes(path: Path | None, streams: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Positions to probe by stream. Raises UserError for any that no stream has."""
    if path is None:
        return {}
    try:
        probes = dict(json.loads(path.read_bytes()))
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(
            f'{path}: expected JSON like {{"stream": [0, 5]}}, found {error}; correct the file'
        ) from None
    for stem, positions in probes.items():
        if stem not in streams:
            known = sorted(streams)
            raise UserError(
                f"{path}: expected one of the streams {known} (a file name without .bin), "
                f"found {stem!r}; correct it"
            )
        length = len(streams[stem])
        whole = isinstance(positions, list) and all(type(i) is int for i in positions)
        if not whole or not all(0 <= i < length for i in positions):
            raise UserError(
                f"{path}: expected positions 0..{length - 1} for {stem!r}, "
                f"found {positions}; correct it"
            )
    return probes


def write_array(path: Path, array: Tensor) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array.cpu().numpy(), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def score_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train_gpt.py score", description=command_score.__doc__, allow_abbrev=False
    )
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, nargs="+", required=True, metavar="S.bin")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--probes", type=Path, metavar="P.json", help='{"S": [positions]}')
    return parser


def command_score(argv: Sequence[str]) -> None:
    """The scoring contract.

    Writes DIR/S.nll.npy, float64 [N-1], nats, and for probed streams DIR/S.probe.npy, float64
    [K, V], ln p.
    """
    args = score_parser().parse_args(argv)
    with open_ranks(os.environ) as ranks:
        artifact = load_artifact(args.artifact)
        cfg = artifact.cfg
        streams = {}
        for path in args.tokens:
            stream = np.asarray(open_shard(path, cfg.model.vocab_size))
            streams[path.name.removesuffix(".bin")] = stream
        if len(streams) != len(args.tokens):
            names = [path.name for path in args.tokens]
            raise UserError(f"--tokens: expected distinct file names, found {names}; rename one")
        probes = read_probes(args.probes, streams)
        model = artifact.model.to(ranks.device)
        wanted = [probes.get(stem, []) for stem in streams]
        tokens = list(streams.values())
        scores = score_streams(model, tokens, cfg.scoring, ranks, wanted, "scoring")
        if ranks.rank != 0:
            return
        mixed = mix_streams(scores, tokens, cfg, ranks)
        for stem, (nll, distributions) in zip(streams, mixed, strict=True):
            write_array(args.out / f"{stem}.nll.npy", nll)
            if stem in probes:
                rows = [distributions[i] for i in probes[stem]]
                empty = nll.new_zeros(0, cfg.model.vocab_size)
                write_array(args.out / f"{stem}.probe.npy", torch.stack(rows) if rows else empty)
            print(f"scored {stem}: {len(nll):,} targets, {nll.sum().item():.6f} nats", flush=True)


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, 2 for a user's error, or 141 where nobody reads what is printed."""
    command = command_train
    if argv and argv[0] in ("train", "score"):
        command = command_score if argv[0] == "score" else command_train
        argv = argv[1:]
    try:
        try:
            command(argv)
        finally:
            sys.stdout.flush()  # here, where somebody catches it
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except RuntimeError as error:
        # where another rank has died, gloo and NCCL say so, gloo with its address
        if not re.search("by peer|Broken pipe|NCCL", str(error)):
            raise
        return report(error)
    except (UserError, OSError, KeyboardInterrupt) as error:
        return report(error)  # an OSError here is a full disk or a file that vanished
    return 0


def report(error: BaseException) -> int:
    print(f"error: {str(error) or 'interrupted'}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
