"""The contest's names for settings, with values for a quick run on a CPU.

Collected from the training scripts of the contest's early records and pull requests, by how often
a name occurs. A rule never makes a value larger than the record's own, but for the stride of the
long stream, and never changes a zero, which switches things off. Sizes of hashed tables of counts
stay: they are part of what is judged.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property


class Family(StrEnum):
    """What a setting is about. A failed run leaves one family after another at its own values."""

    DEPTH = "depth"
    WIDTH = "width"
    SEQUENCE = "sequence"
    BATCH = "batch"
    STEPS = "steps"
    RATES = "learning rates"
    RHYTHM = "rhythm of validation"
    CLOCK = "clock"
    ADAPTATION = "adaptation"
    EVALUATION = "evaluation"
    CALIBRATION = "calibration"


@dataclass(frozen=True)
class Sizes:
    """What a small run is made of: counts, and tokens for sequence, stride and batches."""

    layers: int = 4
    loops: int = 2
    width: int = 64
    heads: int = 2
    kv_heads: int = 1
    side_width: int = 16  # of embeddings beside the main one
    sequence: int = 128
    stride: int = 64
    least_stride: int = 0  # smaller strides of windows become this one
    train_batch: int = 1024
    validation_batch: int = 32768
    sequences: int = 32
    steps: int = 2
    adaptation_steps: int = 2
    adaptation_epochs: int = 3
    adaptation_sequences: int = 8
    calibration: int = 4
    evaluation_seconds: int = 60
    chunk: int = 4096
    one: int = 1
    none: int = 0

    @cached_property
    def head_width(self) -> int:
        return self.width // self.heads

    @cached_property
    def hidden(self) -> int:
        return 2 * self.width

    @cached_property
    def half_sequence(self) -> int:
        return self.sequence // 2

    def for_stream(self, tokens: int) -> "Sizes":
        """The same where a stream of so many tokens is cut into a few chunks."""
        chunks = max(1, tokens // (8 * self.sequence))
        return replace(self, chunk=min(32768, chunks * self.sequence))


@dataclass(frozen=True)
class Rule:
    """Names (a regular expression for the whole name) and the size that bounds their value.

    `exactly` sets the size itself: for what must fit another setting, and for what has no own
    value that is known. With `share` there is no size, but that share of the own value.
    """

    names: str
    family: Family
    size: str = ""
    exactly: bool = False
    share: float | None = None

    def matches(self, name: str) -> bool:
        return re.fullmatch(self.names, name) is not None


# The first rule that matches a name counts.
RULES: tuple[Rule, ...] = (
    # Width. Heads must divide it, and rotary dimensions (often 16) must fit into a head.
    Rule("(?:MODEL_DIM|D_MODEL|DIM|N_EMBD|HIDDEN_(?:DIM|SIZE)|WIDTH)", Family.WIDTH, "width", True),
    Rule("(?:NUM|N)_HEADS?|HEADS", Family.WIDTH, "heads", True),
    Rule("(?:NUM_|N_)?KV_HEADS", Family.WIDTH, "kv_heads", True),
    Rule("HEAD_DIM|D_HEAD", Family.WIDTH, "head_width", True),
    Rule("(?:EMBED|EMBEDDING|EMB|FACTOR|BOTTLENECK)_DIM", Family.WIDTH, "width"),
    Rule(
        "(?:(?:MLP|FFN|FF|MOE|SWIGLU)_)?HIDDEN|(?:MLP|FFN|FF|MOE)_(?:HIDDEN_)?(?:DIM|SIZE)|D_FF",
        Family.WIDTH,
        "hidden",
    ),
    Rule(r"(?:BIGRAM|TRIGRAM|NGRAM|ENGRAM|BIGRAMHASH)\w*_DIM", Family.WIDTH, "side_width"),
    Rule(r"VE_DIM|\w*LATENT_DIM|D_STATE|STATE_DIM|SPARSE_HIDDEN_DIM", Family.WIDTH, "side_width"),
    Rule(r"\w*GROUP_SIZE", Family.WIDTH, "width"),
    # Depth.
    Rule("(?:NUM_|N_)?LAYERS?|DEPTH|NUM_BLOCKS|N_BLOCKS", Family.DEPTH, "layers", True),
    Rule(
        "(?:NUM_)?(?:UNIQUE|PHYSICAL|SHARED|FLAT|CRAWLER)_(?:LAYERS|BLOCKS|MLPS)",
        Family.DEPTH,
        "loops",
    ),
    Rule("NUM_(?:ENCODER|DECODER)_LAYERS", Family.DEPTH, "loops"),
    Rule("(?:ENCODER|DECODER)_LAYERS|NUM_(?:PRELUDE|CODA)", Family.DEPTH, "one"),
    Rule(
        "(?:NUM_|N_|CRAWLER_)?(?:LOOPS|REPEATS|LOOP_ITERS|PASSES|RECURRENCES?)|LOOP_(?:COUNT|REPEATS)"
        "|RECURRENCE_(?:DEPTH|STEPS)|(?:TRAINING_|EVAL_)?DEPTH_RECURRENCE",
        Family.DEPTH,
        "loops",
    ),
    # Sequences.
    Rule(
        "(?:TRAIN_)?(?:MAX_)?SEQ_LEN|SEQUENCE_LENGTH|BLOCK_SIZE", Family.SEQUENCE, "sequence", True
    ),
    Rule(
        "CONTEXT(?:_LEN|_LENGTH|_SIZE)?|TRAIN_MAX_SEQ_LEN|N_CTX", Family.SEQUENCE, "sequence", True
    ),
    Rule(r"\w*SEQ_LEN(?:_START|_MIN|_MAX)?|\w*_CONTEXT_LEN", Family.SEQUENCE, "sequence"),
    Rule(r"SEQ_LEN_START|SEQ_CURRICULUM_MIN|SHORT_SEQ_LEN|\w*MAX_LEN", Family.SEQUENCE, "sequence"),
    Rule(
        r"\w*PHASE\d_LEN|(?:SWA_|SLIDING_|LOCAL_|ATTN_)?WINDOW(?:_SIZE)?",
        Family.SEQUENCE,
        "sequence",
    ),
    Rule(r"\w*STRIDE", Family.SEQUENCE, "stride"),
    # Test-time training: many small steps, as what it learns must show in a short stream.
    Rule(r"\w*TTT\w*EPOCHS|ADAPT\w*EPOCHS", Family.ADAPTATION, "adaptation_epochs"),
    Rule(r"\w*TTT\w*BATCH_SEQS", Family.ADAPTATION, "adaptation_sequences"),
    Rule(
        r"\w*(?:TTT|SLOT|ETLB|REPTILE|DISTILL|META)\w*STEPS(?:_PER_CHUNK)?",
        Family.ADAPTATION,
        "adaptation_steps",
    ),
    Rule("TTT_(?:TRAIN_)?CHUNK_SIZE", Family.ADAPTATION, "half_sequence"),
    # Batches.
    Rule(
        "(?:TRAIN_)?BATCH_TOKENS|TOTAL_BATCH_SIZE|TOKENS_PER_STEP|TRAIN_BATCH_SIZE",
        Family.BATCH,
        "train_batch",
        True,
    ),
    Rule("MICRO_?BATCH_TOKENS", Family.BATCH, "sequence"),
    Rule("BATCH_TOKENS_START|GPTQ_CALIB_BATCH_TOKENS", Family.BATCH, "train_batch"),
    Rule("(?:VAL|EVAL)_BATCH_(?:SIZE|TOKENS)", Family.BATCH, "validation_batch"),
    Rule("BATCH(?:_SIZE)?|MICRO_BATCH_SIZE|(?:MICRO_?)?BATCH_SEQS", Family.BATCH, "sequences"),
    Rule(r"\w*BATCH_SEQS|SW_EVAL_BATCH|SLIDING_BATCH_SIZE", Family.EVALUATION, "sequences"),
    # Training.
    Rule("(?:NUM_|MAX_|TRAIN_)?(?:ITERATIONS|ITERS|STEPS)", Family.STEPS, "steps", True),
    Rule("WARMUP_STEPS|COMPILE_WARMUP_STEPS", Family.STEPS, "one"),
    Rule("VAL_LOSS_EVERY|(?:VAL|EVAL)_EVERY|EVAL_INTERVAL", Family.RHYTHM, "none"),
    # A few steps on noise only take a network away from the uniform guess that it starts with, and
    # a small gain would not show. Adaptation to the stream keeps its rates: it is judged.
    Rule(
        "(?:SCALAR|MATRIX|(?:TIED_)?EMBED|HEAD|TOKEN|ADAMW?|MUON|MAX)_LR|LR|LEARNING_RATE",
        Family.RATES,
        share=0.01,
    ),
    # Clocks: own reserves for export stay, limits of a phase shrink.
    Rule(
        r"(?:TTT|SLOT|EVAL|NGRAM)\w*(?:SECONDS|SECS|TIME_LIMIT|TIME_BUDGET)",
        Family.CLOCK,
        "evaluation_seconds",
    ),
    # Evaluation in chunks: enough of them that counts of the first serve the later ones.
    Rule(r"\w*CHUNK_TOKENS|\w*CHUNK_SIZE_TOKENS", Family.EVALUATION, "chunk"),
    # Calibration of quantisers.
    Rule(
        r"\w*(?:GPTQ|CALIB|HESSIAN|AWQ)\w*(?:BATCHES|SAMPLES|SEQS|STEPS)",
        Family.CALIBRATION,
        "calibration",
    ),
)

# Settings that name layers by number, alone or in a list: `4`, `9,10`.
LAYER_NUMBERS = re.compile(
    r"\w*_LAYERS?|\w*LAYER_(?:START|END)|\w*FREEZE_BLOCKS"
    r"|(?:LOOP|RECUR|REPEAT|PARALLEL|PARALLEL_RESIDUAL)_(?:START|END)"
)
# Counts of layers that look like the above.
LAYER_COUNTS = re.compile(r"XSA_LAYERS|NUM_\w*|\w*LATE_K\w*|UNTIE\w*")
LAYER_NAMES = ("NUM_LAYERS", "N_LAYERS", "N_LAYER", "LAYERS")
HEAD_NAMES = ("NUM_HEADS", "N_HEADS", "N_HEAD")
KV_NAMES = ("NUM_KV_HEADS", "N_KV_HEADS", "KV_HEADS")


def rule_for(name: str) -> Rule | None:
    """The rule that covers a setting, None where it keeps its own value."""
    return next((rule for rule in RULES if rule.matches(name)), None)


def first_number(names: tuple[str, ...], own: Mapping[str, str | None]) -> float | None:
    """The first of several settings that has a number as its own value."""
    for name in names:
        number = as_number(own.get(name))
        if number is not None:
            return number
    return None


def as_number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text.replace("_", ""))
    except ValueError:
        return None
