"""A model of the speed on GPUs: `python bench/roofline.py` prints the tables of docs/speed.md.

It counts the operations of all products, the bytes that each stage moves through memory and the
bytes that ranks exchange. It divides each by what a data sheet promises, times the share of it
that well-kept kernels reach. **Predicted, not measured**: it says which change can pay, and how
much at most. It needs Python alone.
"""

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Gpu:
    """Peaks by the data sheet: dense bfloat16, memory, and NVLink in one direction."""

    name: str
    flops: float  # a second
    memory_bytes: float  # a second
    link_bytes: float  # a second


GPUS = (
    Gpu("H100 SXM", 989.4e12, 3.35e12, 450e9),
    Gpu("H200", 989.4e12, 4.8e12, 450e9),
    Gpu("A100 80 GB", 312e12, 2.04e12, 300e9),
)
RANKS = (1, 2, 4, 8, 16)
NODE_RANKS = 8
BETWEEN_NODES_BYTES = 50e9  # a second and GPU: 400 Gbit/s InfiniBand


@dataclass(frozen=True)
class Efficiency:
    """The share of each peak that kernels reach, and what a launch costs."""

    products: float = 0.64  # large cuBLAS products in bfloat16 on Hopper
    attention: float = 0.35  # causal flash attention, forward and backward together
    memory: float = 0.88
    link: float = 0.70
    launch_seconds: float = 1e-6  # of an idle device between two kernels


class Cost(NamedTuple):
    """What one stage asks of a GPU."""

    flops: float = 0.0
    attention_flops: float = 0.0
    memory_bytes: float = 0.0  # of kernels bound by memory; a product's own traffic is hidden
    launches: float = 0
    exchanged_bytes: float = 0.0  # that each rank sends

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(mine + its for mine, its in zip(self, other, strict=True)))

    def seconds(self, gpu: Gpu, ranks: int, reached: "Efficiency") -> float:
        """One stage after the other; nothing overlaps."""
        link = gpu.link_bytes if ranks <= NODE_RANKS else BETWEEN_NODES_BYTES
        return (
            self.flops / (gpu.flops * reached.products)
            + self.attention_flops / (gpu.flops * reached.attention)
            + self.memory_bytes / (gpu.memory_bytes * reached.memory)
            + self.launches * reached.launch_seconds
            + self.exchanged_bytes / (link * reached.link)
        )


@dataclass(frozen=True)
class Shape:
    """Sizes of the reference record."""

    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    enrich: int
    bigram_dim: int
    seq_len: int
    batch_tokens: int
    parameters: int
    stride: int
    window_batch_tokens: int

    @property
    def layer_weights(self) -> int:
        """Weights of a block's products."""
        kv = self.kv_heads * self.dim // self.heads
        return self.dim * (2 * self.dim + 2 * kv) + 2 * self.dim * self.hidden

    @property
    def stem_weights(self) -> int:
        return 2 * self.dim * self.enrich + self.bigram_dim * self.dim


REFERENCE = Shape(
    vocab=1024,
    dim=512,
    layers=10,
    heads=8,
    kv_heads=4,
    hidden=1536,
    enrich=768,
    bigram_dim=128,
    seq_len=2048,
    batch_tokens=524_288,
    parameters=25_254_992,
    stride=64,
    window_batch_tokens=131_072,
)
WORD = 2  # bytes of a bfloat16
VALIDATION_TOKENS = 62_021_846


# --- Bytes of the kernels that memory bounds ---
# Words of bfloat16 that a block reads and writes for each token, in units of the model's width,
# as Inductor fuses them. Products are left out: they read and write while they compute.
#   mix with the stem, RMS norm    reads the stream and the stem, writes the mix and the norm    4
#   QK norm, rotation, gain        one pass over queries and keys                               3
#   XSA, values                    reads and writes the result, reads the values              2.5
#   residual, RMS norm             reads two, writes two                                        4
#   residual                       reads two, writes one                                        3
FORWARD_WIDTHS = 4 + 3 + 2.5 + 4 + 3
BACKWARD_WIDTHS = 2 * FORWARD_WIDTHS  # a gradient comes with each input that is read again
ACTIVATION_FORWARD = 2  # the MLP's activation, in units of its hidden width: reads and writes
ACTIVATION_BACKWARD = 3  # reads the gradient and what went in, writes the gradient
LOGIT_PASSES = 4  # of the loss: z is written, read twice, its gradient is written
EAGER_EVALUATION_BYTES = 541_000  # for a window token, counted by running it on a GPU of stubs
OPTIMIZER_PASSES = 20  # over float32 weights: gradients, momenta, updates, EMA
# A batch's launches, counted on a GPU of stubs
EVALUATION_LAUNCHES = 292  # compiled
EAGER_EVALUATION_LAUNCHES = 558
STEP_LAUNCHES = 643  # forward and backward, counted on a GPU of stubs
OPTIMIZER_LAUNCHES = 271


def block_bytes(shape: Shape, training: bool) -> float:
    """Of one block and token."""
    widths = FORWARD_WIDTHS + BACKWARD_WIDTHS * training
    activation = ACTIVATION_FORWARD + ACTIVATION_BACKWARD * training
    return WORD * (widths * shape.dim + activation * shape.hidden)


# --- Stages ---


def forward_backward(shape: Shape, tokens: float) -> Cost:
    """Forward and backward of this many tokens; backward costs twice what forward does."""
    weights = shape.layers * shape.layer_weights + shape.stem_weights + shape.vocab * shape.dim
    attention = shape.layers * 2 * 2 * shape.dim * shape.seq_len / 2
    logits = LOGIT_PASSES * WORD * shape.vocab
    return Cost(
        flops=3 * 2 * weights * tokens,
        attention_flops=3 * attention * tokens,
        memory_bytes=(shape.layers * block_bytes(shape, training=True) + logits) * tokens,
        launches=STEP_LAUNCHES,
    )


def newton_schulz_flops(rows: int, columns: int, steps: int = 5) -> float:
    """Of one matrix, short side first: x x^T, its square, and a product with x."""
    short, long = sorted((rows, columns))
    return steps * (2 * 2 * short * short * long + 2 * short**3)


def optimizer(shape: Shape, ranks: int) -> Cost:
    """Muon's matrices are shared over ranks; the rest is done by each."""
    D = shape.dim
    kv = shape.kv_heads * D // shape.heads
    of_a_layer = ((D, D), (D, D), (kv, D), (kv, D), (shape.hidden, D), (D, shape.hidden))
    flops = shape.layers * sum(newton_schulz_flops(*matrix) for matrix in of_a_layer)
    return Cost(
        flops=flops / ranks,
        memory_bytes=4 * OPTIMIZER_PASSES * shape.parameters,
        launches=OPTIMIZER_LAUNCHES,
    )


def exchange(shape: Shape, ranks: int, gradient_bytes: int = 4) -> Cost:
    """Gradients by a ring all-reduce in float32, then Muon's updates gathered in bfloat16."""
    others = (ranks - 1) / ranks
    return Cost(exchanged_bytes=others * shape.parameters * (2 * gradient_bytes + WORD))


def training_step(shape: Shape, ranks: int) -> Cost:
    """Of one rank."""
    own = forward_backward(shape, shape.batch_tokens / ranks)
    return own + optimizer(shape, ranks) + exchange(shape, ranks)


def evaluation(shape: Shape, ranks: int, tokens: int, compiled: bool = True) -> Cost:
    """Sliding windows over this many tokens, of one rank."""
    window_tokens = tokens / shape.stride * shape.seq_len / ranks
    # the last block works on the scored positions alone, but for keys and values
    blocks = shape.layers - 1 + shape.stride / shape.seq_len
    weights = blocks * shape.layer_weights + shape.stem_weights
    weights += shape.vocab * shape.dim * shape.stride / shape.seq_len
    bytes_of_a_token = blocks * block_bytes(shape, training=False)
    launches = EVALUATION_LAUNCHES
    if not compiled:
        bytes_of_a_token = EAGER_EVALUATION_BYTES
        launches = EAGER_EVALUATION_LAUNCHES
    return Cost(
        flops=2 * weights * window_tokens,
        attention_flops=blocks * 2 * shape.dim * shape.seq_len * window_tokens,
        memory_bytes=bytes_of_a_token * window_tokens,
        launches=launches * window_tokens / shape.window_batch_tokens,
    )


def mixing(tokens: int, orders: int = 11) -> Cost:
    """The n-gram mixer on one rank, as if every context lived through all orders: a bound.

    An order sorts 12 bytes in 4 passes, makes 25 passes over int32 and 8 random accesses, each of
    a sector of 32 bytes. The gate makes 12 passes over 8 float64 numbers.
    """
    of_an_order = 4 * 2 * 12 + 25 * 8 + 8 * 32
    of_the_gate = 12 * 8 * 16
    blocks = tokens / (1 << 24)
    return Cost(
        memory_bytes=tokens * (orders * of_an_order + of_the_gate),
        launches=orders * blocks * 80 + tokens / (1 << 21) * 60,
    )


# --- What a kernel would save ---


class Saving(NamedTuple):
    """A change, and what a training step or an evaluation costs before and after it."""

    name: str
    before: Cost
    after: Cost


TRITON_PRODUCTS = 0.55  # of the peak, where cuBLAS reaches Efficiency.products


def fused_activation(shape: Shape, tokens: float) -> Saving:
    """Into the epilogues of two of the MLP's products, which then run in Triton.

    They still write the activation and read what went in.
    """
    unit = WORD * shape.hidden * shape.layers * tokens
    flops = 2 * 2 * shape.dim * shape.hidden * shape.layers * tokens
    slower = flops * Efficiency().products / TRITON_PRODUCTS
    passes = ACTIVATION_FORWARD + ACTIVATION_BACKWARD
    before = Cost(flops=flops, memory_bytes=passes * unit)
    return Saving("squared ReLU in the products", before, Cost(slower, memory_bytes=2 * unit))


def fused_training_head(shape: Shape, tokens: float) -> Saving:
    """No logits written, but computed a second time in the backward pass."""
    flops = 2 * shape.vocab * shape.dim * tokens
    written = Cost(flops=3 * flops, memory_bytes=LOGIT_PASSES * WORD * shape.vocab * tokens)
    slower = Efficiency().products / TRITON_PRODUCTS
    return Saving("training head", written, Cost(flops=4 * flops * slower))


def fused_scoring_head(shape: Shape, ranks: int) -> Saving:
    """Of a whole evaluation. Float32 logits, and six passes of float64 over them."""
    positions = VALIDATION_TOKENS / ranks
    flops = 2 * shape.vocab * shape.dim * positions
    written = Cost(flops=2 * flops, memory_bytes=positions * shape.vocab * (3 * 4 + 6 * 8))
    return Saving("scoring head (evaluation)", written, Cost(flops=flops))


def symmetric_product(shape: Shape, ranks: int) -> Saving:
    """Half the tiles of x x^T and of its square: half of 2/3 of the operations at most."""
    whole = optimizer(shape, ranks)
    return Saving("symmetric products", whole, whole._replace(flops=whole.flops * 2 / 3))


def bfloat16_gradients(shape: Shape, ranks: int) -> Saving:
    """Half the bytes of the all-reduce."""
    return Saving(
        "gradients reduced in bfloat16", exchange(shape, ranks), exchange(shape, ranks, WORD)
    )


def overlapped_gradients(shape: Shape, ranks: int) -> Saving:
    """All but the last tenth of the all-reduce hidden behind the backward pass."""
    whole = exchange(shape, ranks)
    gather = exchange(shape, ranks, 0)
    exposed = gather.exchanged_bytes + 0.1 * (whole.exchanged_bytes - gather.exchanged_bytes)
    return Saving("all-reduce overlapped", whole, Cost(exchanged_bytes=exposed))


def savings(shape: Shape, ranks: int) -> list[Saving]:
    tokens = shape.batch_tokens / ranks
    return [
        fused_activation(shape, tokens),
        fused_training_head(shape, tokens),
        symmetric_product(shape, ranks),
        bfloat16_gradients(shape, ranks),
        overlapped_gradients(shape, ranks),
        fused_scoring_head(shape, ranks),
    ]


# --- Tables ---


def speed_table(shape: Shape) -> list[str]:
    """Markdown: a row for each GPU and number of ranks."""
    lines = [
        "| predicted | GPUs | step, ms | MFU | tokens/s | evaluation, s | mixer, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    reached = Efficiency()
    for gpu in GPUS:
        mixer = mixing(VALIDATION_TOKENS).seconds(gpu, 1, reached)
        for ranks in RANKS:
            step = training_step(shape, ranks).seconds(gpu, ranks, reached)
            useful = forward_backward(shape, shape.batch_tokens / ranks)
            mfu = (useful.flops + useful.attention_flops) / step / gpu.flops
            scoring = evaluation(shape, ranks, VALIDATION_TOKENS).seconds(gpu, ranks, reached)
            lines.append(
                f"| {gpu.name} | {ranks} | {1e3 * step:.1f} | {mfu:.0%} "
                f"| {shape.batch_tokens / step / 1e6:.2f} M | {scoring:.0f} | {mixer:.1f} |"
            )
    return lines


def parts_table(shape: Shape, gpu: Gpu, ranks: int) -> list[str]:
    """Markdown: where a step's time goes."""
    lines = [f"| predicted, {ranks}x {gpu.name} | GFLOP | GB | launches | ms |"]
    lines.append("|---|---:|---:|---:|---:|")
    stages = {
        "forward and backward": forward_backward(shape, shape.batch_tokens / ranks),
        "optimizer": optimizer(shape, ranks),
        "exchange": exchange(shape, ranks),
    }
    for name, cost in stages.items():
        flops = (cost.flops + cost.attention_flops) / 1e9
        moved = (cost.memory_bytes + cost.exchanged_bytes) / 1e9
        ms = 1e3 * cost.seconds(gpu, ranks, Efficiency())
        lines.append(f"| {name} | {flops:,.0f} | {moved:.2f} | {cost.launches:.0f} | {ms:.2f} |")
    return lines


def savings_table(shape: Shape, gpu: Gpu, ranks: int) -> list[str]:
    """Markdown: what each change would save at most."""
    lines = [f"| predicted, {ranks}x {gpu.name} | GB before | GB after | saves, ms |"]
    lines.append("|---|---:|---:|---:|")
    for name, before, after in savings(shape, ranks):
        moved = [(cost.memory_bytes + cost.exchanged_bytes) / 1e9 for cost in (before, after)]
        seconds = [cost.seconds(gpu, ranks, Efficiency()) for cost in (before, after)]
        lines.append(
            f"| {name} | {moved[0]:.2f} | {moved[1]:.2f} | {1e3 * (seconds[0] - seconds[1]):.2f} |"
        )
    return lines


def main() -> None:
    tables = (
        speed_table(REFERENCE),
        parts_table(REFERENCE, GPUS[0], NODE_RANKS),
        savings_table(REFERENCE, GPUS[0], NODE_RANKS),
    )
    for table in tables:
        print("\n".join(table), end="\n\n")
    as_written = evaluation(REFERENCE, NODE_RANKS, VALIDATION_TOKENS, compiled=False)
    seconds = as_written.seconds(GPUS[0], NODE_RANKS, Efficiency())
    print(f"evaluation without the compiler, predicted, 8x H100: {seconds:.0f} s")


if __name__ == "__main__":
    main()
