"""Causal language-model pretraining with a backward pass written by hand: a post-LN GPT-1 on torch tensors, without autograd anywhere.

    python train_gpt.py --data-dir data/datasets/docs_sp1024 --out runs/manual_seed1337      train, export, reload, score; CPU
    python train_gpt.py score --artifact FILE --tokens S.bin [S2.bin ...] --out DIR [--probes P.json]
    python train_gpt.py params                 parameters by group

Model, on row vectors: x = E[tokens] + pos; per block x = LN(x + Attention(x)), x = LN(x + GELU(x·W1)·W2); logits = x·W_head.
LN has no parameters, W1 and W2 are square, nothing has a bias, the head is untied. The optimizer is plain SGD. `pretraining_step` and
`loss_and_gradient` are importable without side effects and work in any float dtype, so that other code can be checked against them.

Shape suffixes: N sequences (streams: tokens), T time, D width, H heads, K head size, S scored positions of a window, V vocabulary.
"""

import argparse
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MAGIC = b"MANUALG1"


class UserError(Exception):
    """A mistake in the input. Reported as one line, exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 1024
    context: int = 128
    n_layers: int = 3
    n_heads: int = 4
    width: int = 128
    steps: int = 1500
    batch: int = 16
    embedding_lr: float = 1.0  # plain SGD: one rate per group, because a gradient's size depends on the group, not on what it needs
    block_lr: float = 0.1
    head_lr: float = 1.0
    decay_share: float = 0.7  # in this last share of the steps the rates fall linearly to zero
    seed: int = 1337
    data_dir: str = "data/datasets/docs_sp1024"
    out: str = "runs/manual_seed1337"

    def __post_init__(self):
        least = min(self.vocab_size, self.context, self.n_layers, self.n_heads, self.width, self.steps, self.batch)
        if least < 1 or self.width % self.n_heads:
            raise UserError(f"{self}: expected positive sizes and width a multiple of n_heads; change the flags")

    @property
    def group_sizes(self) -> dict[str, int]:
        """Elements of each group of the flat weight vector, in its order."""
        V, T, D = self.vocab_size, self.context, self.width
        return {"embedding": V * D, "positions": T * D, "blocks": self.n_layers * 6 * D * D, "head": D * V}


# --- Files ---
def read_file(path: Path, expected: str | None = None) -> bytes:
    raw = path.read_bytes()
    if expected not in (None, found := sha256(raw).hexdigest()):
        raise UserError(f"{path}: expected sha256 {expected}, found {found}; rebuild the dataset with `python -m data docs`")
    return raw


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (temporary := path.with_name(path.name + ".tmp")).write_bytes(content)
    os.replace(temporary, path)


def read_shard(path: Path, vocab_size: int, expected: str | None = None) -> np.ndarray:
    """Token ids int64 [N] of a shard. Raises UserError when header, size or an id is not what the format says."""
    raw = read_file(path, expected)
    magic, version, count = np.frombuffer(raw[:12].ljust(12, b"\0"), "<i4").tolist()
    if (magic, version) != (20240520, 1) or count < 1 or len(raw) != 1024 + 2 * count:
        raise UserError(f"{path}: expected 20240520, 1, count and 1024 + 2·count bytes, found {magic}, {version}, {count}, {len(raw)}; rebuild it")
    tokens = np.frombuffer(raw, "<u2", offset=1024).astype(np.int64)
    if tokens.max() >= vocab_size:
        raise UserError(f"{path}: expected ids below {vocab_size}, found {tokens.max()}; use shards made by the model's tokenizer")
    return tokens


def load_data(data_dir: Path, vocab_size: int) -> tuple[np.ndarray, np.ndarray, int, str]:
    """Training and validation stream, source bytes of the latter, the log's data line. Every file is checked by sha256."""
    raw = read_file(path := data_dir / "manifest.json")
    try:
        m = json.loads(raw)
        tok, train, val = m["tokenizer"], m["splits"]["train"], m["splits"]["val"]
        if tok["vocab_size"] != vocab_size:
            raise UserError(f"{path}: expected a vocabulary of {vocab_size}, found {tok['vocab_size']}; pass --vocab-size {tok['vocab_size']}")
        beside = data_dir / tok["file"]
        read_file(beside if beside.exists() else data_dir.parent.parent / "tokenizers" / tok["file"], tok["sha256"])
        x, y = (np.concatenate([read_shard(data_dir / f["name"], vocab_size, f["sha256"]) for f in s["files"]]) for s in (train, val))
        line = f"data corpus:{m['corpus']} version:{m['version']} dataset:{m['name']} tokenizer_sha256:{tok['sha256']} train_tokens:{len(x)} "
        line += f"val_tokens:{len(y)} val_bytes:{val['source_bytes']} train_files:{len(train['files'])} manifest_sha256:{sha256(raw).hexdigest()}"
        return x, y, int(val["source_bytes"]), line
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a format-1 manifest ({error!r}); rebuild it with `python -m data docs`") from error


# --- Model: the forward pass caches what the backward pass needs ---
class Weights(NamedTuple):
    """Views into one flat vector [w_emb, pos, per block (q, k, v, o, mlp1, mlp2), w_head] of V·D + T·D + L·6·D² + D·V elements."""

    embedding_VD: Tensor
    positions_TD: Tensor
    blocks_L6DD: Tensor
    head_DV: Tensor


def unflatten(flat: Tensor, cfg: Config) -> Weights:
    V, T, D = cfg.vocab_size, cfg.context, cfg.width
    shapes = (V, D), (T, D), (cfg.n_layers, 6, D, D), (D, V)
    return Weights(*(piece.view(shape) for piece, shape in zip(flat.split(list(cfg.group_sizes.values())), shapes, strict=True)))


def initial_weights(cfg: Config, generator: torch.Generator) -> Tensor:
    flat = torch.empty(sum(cfg.group_sizes.values())).normal_(0, 0.02, generator=generator)
    unflatten(flat, cfg).blocks_L6DD.mul_(cfg.width**-0.5 / 0.02)  # LN feeds the blocks unit variance, which 1/sqrt(D) keeps
    return flat


def layer_norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x − mean) / sqrt(variance + 1e-5) over the last axis, and the reciprocal deviation [..., 1]."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    scale = (variance + 1e-5).rsqrt_()
    return (x - mean).mul_(scale), scale


def layer_norm_backward(dy: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """y = (x − mean)·s with s depending on x: dx = s·(dy − mean(dy) − y·mean(dy·y))."""
    return (dy - dy.mean(-1, keepdim=True)).sub_(y * (dy * y).mean(-1, keepdim=True)).mul_(scale)


def gelu_slope(u: Tensor) -> tuple[Tensor, Tensor]:
    """GELU(u) = u·Φ(u) with the exact normal distribution, and its derivative Φ(u) + u·φ(u)."""
    cdf = torch.special.ndtr(u)
    return u * cdf, cdf + u * torch.exp(-0.5 * u * u).mul_((2 * math.pi) ** -0.5)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)  # [N, T, D] -> [N, H, T, K]


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Causal softmax attention over [N, H, T, K], q already divided by √K: mixed values and probabilities [N, H, T, T]."""
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu_(1)
    p = (q @ k.mT).masked_fill_(future, -math.inf).softmax(-1)
    return p @ v, p


def attention_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Through y = P·v, P = softmax(S), S = q·kᵀ: dS = P ⊙ (dP − Σ dP ⊙ P), where Σ dP ⊙ P = Σ dy ⊙ y. Masked places have P = 0, so dS = 0."""
    ds = (dy @ v.mT).sub_((dy * y).sum(-1, keepdim=True)).mul_(p)
    return ds @ k, ds.mT @ q, p.mT @ dy


def block_forward(x: Tensor, w_6DD: Tensor, n_heads: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x [N·T, D] viewed as [N, T, D]: the block's output and everything that its backward pass reads."""
    q, k, v = (split_heads(x @ w, n_heads) for w in w_6DD[:3])
    q = q * q.shape[-1] ** -0.5
    y, p = attention(q, k, v)
    mixed = merge_heads(y)
    x1, scale1 = layer_norm(x + mixed @ w_6DD[3])
    g, slope = gelu_slope(x1 @ w_6DD[4])
    x2, scale2 = layer_norm(x1 + g @ w_6DD[5])
    return x2, (x, q, k, v, y, p, mixed, x1, scale1, g, slope, x2, scale2)


def block_backward(dx2: Tensor, w_6DD: Tensor, cache: tuple[Tensor, ...], dw_6DD: Tensor) -> Tensor:
    """Gradient of the block's input; the gradients of the weights are written to dw_6DD."""
    x, q, k, v, y, p, mixed, x1, scale1, g, slope, x2, scale2 = cache
    dr2 = layer_norm_backward(dx2, x2, scale2)  # of the sum under the norm, so of both its branches
    du = (dr2 @ w_6DD[5].T).mul_(slope)
    dr1 = layer_norm_backward(dr2 + du @ w_6DD[4].T, x1, scale1)
    dy = split_heads(dr1 @ w_6DD[3].T, q.shape[1])
    dq, dk, dv = (merge_heads(d) for d in attention_backward(dy, q, k, v, y, p))
    dq *= q.shape[-1] ** -0.5
    for i, inputs, d in ((0, x, dq), (1, x, dk), (2, x, dv), (3, mixed, dr1), (4, x1, du), (5, g, dr2)):
        torch.mm(inputs.flatten(0, 1).T, d.flatten(0, 1), out=dw_6DD[i])
    return dr1 + dq @ w_6DD[0].T + dk @ w_6DD[1].T + dv @ w_6DD[2].T


def features(ids_NT: Tensor, weights: Weights, n_heads: int) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """Last hidden states [N, T, D] and the caches of the blocks."""
    x, caches = weights.embedding_VD[ids_NT] + weights.positions_TD[: ids_NT.shape[1]], []
    for w_6DD in weights.blocks_L6DD:
        x, cache = block_forward(x, w_6DD, n_heads)
        caches.append(cache)
    return x, caches


@torch.no_grad()
def loss_and_gradient(tokens_NT1: Tensor, flat: Tensor, cfg: Config) -> tuple[Tensor, Tensor]:
    """Mean next-token cross-entropy in nats over all N·T positions of int64 [N, T + 1], T <= context, and its gradient, flat like the weights."""
    ids, targets, w = tokens_NT1[:, :-1], tokens_NT1[:, 1:].flatten(), unflatten(flat, cfg)
    gradient = torch.zeros_like(flat)
    dw = unflatten(gradient, cfg)
    x, caches = features(ids, w, cfg.n_heads)
    x_RD, rows = x.flatten(0, 1), torch.arange(len(targets))
    dlogits = (x_RD @ w.head_DV).log_softmax(-1)
    loss = -dlogits[rows, targets].mean()
    dlogits.exp_()[rows, targets] -= 1
    dlogits.div_(len(targets))  # (softmax − onehot) / (N·T)
    torch.mm(x_RD.T, dlogits, out=dw.head_DV)
    dx = (dlogits @ w.head_DV.T).view_as(x)
    for block in reversed(range(cfg.n_layers)):
        dx = block_backward(dx, w.blocks_L6DD[block], caches[block], dw.blocks_L6DD[block])
    dw.embedding_VD.index_add_(0, ids.flatten(), dx.flatten(0, 1))
    torch.sum(dx, 0, out=dw.positions_TD[: ids.shape[1]])
    return loss, gradient


def in_threads(function: Callable, jobs: Iterable) -> list:
    """[function(job) for job in jobs] on two threads. main gives each of them one core: results do not depend on the machine, and on a busy one
    two threads that meet once per call are 5 to 10 times faster than two that meet in every product."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, jobs))


def pretraining_step(tokens_NT1: Tensor, flat: Tensor, cfg: Config, lr: float | Tensor, losses: list | None = None) -> Tensor:
    """One step of plain SGD. Returns the updated weights, one flat tensor [w_emb, pos, per block (q, k, v, o, mlp1, mlp2), w_head] of the dtype
    of flat, which stays as it was. lr may be a tensor with one rate per weight; the loss before the step is appended to losses."""
    parts = tokens_NT1.tensor_split(min(4, len(tokens_NT1)))
    results = in_threads(lambda part: loss_and_gradient(part, flat, cfg), parts)
    loss, gradient = (sum(len(part) / len(tokens_NT1) * r[i] for part, r in zip(parts, results, strict=True)) for i in (0, 1))
    if losses is not None:
        losses.append(loss.item())
    return flat - lr * gradient


# --- Artifact: MAGIC, sha256 of the rest, an npz of the flat weights in fp16 and of the configuration as JSON ---
def export(flat: Tensor, cfg: Config) -> bytes:
    config = {k: v for k, v in asdict(cfg).items() if k not in ("data_dir", "out")}  # paths say nothing about the model
    np.savez_compressed(buffer := io.BytesIO(), config=json.dumps(config), flat=flat.numpy().astype(np.float16))
    return MAGIC + sha256(buffer.getvalue()).digest() + buffer.getvalue()


def load(path: Path) -> tuple[Tensor, Config]:
    """Flat fp32 weights and configuration of an artifact. Raises UserError unless every byte is the one that was exported."""
    raw = read_file(path)
    if raw[:8] != MAGIC or sha256(raw[40:]).digest() != raw[8:40]:
        raise UserError(f"{path}: expected an intact {MAGIC.decode()} artifact, found {raw[:8]!r} and {len(raw)} bytes; export it again")
    with np.load(io.BytesIO(raw[40:]), allow_pickle=False) as npz:
        return torch.from_numpy(npz["flat"].astype(np.float32)), Config(**json.loads(str(npz["config"])))


# --- Scoring ---
def score_streams(model: tuple[Tensor, Config], streams: list[np.ndarray], probes: list[list[int]], batch: int = 32) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per stream: nats [N−1] of each next token, and log-probabilities [probes, V] after the probed positions; float64.
    Windows (stream, start, first, end) read start..end−1 and score first..end−1, on a grid anchored at the start of the stream. They share
    batches of one shape, padded after their end, so that where a stream is cut changes no earlier score, not even by rounding."""
    weights, cfg = unflatten(*model), model[1]
    T, S = cfg.context, max(1, cfg.context // 2)
    windows = [(s, max(0, k + S - T), k, min(len(x), k + S)) for s, x in enumerate(streams) for k in range(0, len(x), S)]
    windows += windows[-1:] * (-len(windows) % batch)
    nats, logp = [np.zeros(len(x)) for x in streams], [np.zeros((len(p), cfg.vocab_size)) for p in probes]

    @torch.inference_mode()
    def run(lo: int) -> None:
        group = windows[lo : lo + batch]
        ids_BT = np.stack([np.pad(streams[s][start:end], (0, T - end + start)) for s, start, _, end in group])
        for x_TD, (s, start, first, end) in zip(features(torch.from_numpy(ids_BT), weights, cfg.n_heads)[0], group, strict=True):
            logp_SV = (x_TD[first - start :][:S] @ weights.head_DV).double().log_softmax(-1).numpy()
            targets = streams[s][first + 1 : end + 1]
            nats[s][first : first + len(targets)] = -logp_SV[np.arange(len(targets)), targets]
            hits = [i for i, position in enumerate(probes[s]) if first <= position < end]
            logp[s][hits] = logp_SV[[probes[s][i] - first for i in hits]]

    in_threads(run, range(0, len(windows), batch))
    return [(n[:-1], p) for n, p in zip(nats, logp, strict=True)]


def score_command(args: argparse.Namespace) -> None:
    model = _, cfg = load(args.artifact)
    streams = {path.name.removesuffix(".bin"): read_shard(path, cfg.vocab_size) for path in args.tokens}
    try:
        probes = json.loads(read_file(args.probes)) if args.probes else {}
        if len(streams) < len(args.tokens) or not all(set(probes.get(stem, [])) <= set(range(len(x))) for stem, x in streams.items()):
            raise ValueError(f"a name twice or a position outside its stream: {[(stem, len(x)) for stem, x in streams.items()]}")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{args.probes}: expected JSON {{stream name: [positions]}}, found {error}; correct the file") from error
    for stem, arrays in zip(streams, score_streams(model, list(streams.values()), [probes.get(stem, []) for stem in streams]), strict=True):
        for kind, array in zip(("nll", "probe") if stem in probes else ("nll",), arrays, strict=False):
            np.save(buffer := io.BytesIO(), array, allow_pickle=False)
            write_file(args.out / f"{stem}.{kind}.npy", buffer.getvalue())


# --- Training ---
def train_command(args: argparse.Namespace) -> None:
    cfg = Config(**{k: v for k, v in vars(args).items() if k != "command"})
    stream, val, val_bytes, data_line = load_data(Path(cfg.data_dir), cfg.vocab_size)
    T, rng = cfg.context, np.random.default_rng(cfg.seed)
    if len(stream) <= 2 * T:
        raise UserError(f"{cfg.data_dir}: expected more than {2 * T} training tokens, found {len(stream)}; shorten the context or add text")
    # every block of T tokens once, in an order and at an offset that the seed decides, before any comes again
    starts = np.resize(rng.permutation((len(stream) - T - 1) // T), (cfg.steps, cfg.batch, 1)) * T + rng.integers(T)
    code, out = Path(__file__).read_bytes(), Path(cfg.out)
    source = f"log_format:1\n===== source train_gpt.py bytes:{len(code)} sha256:{sha256(code).hexdigest()} =====\n{code.decode()}\n===== end source =====\n"
    write_file(out / "train.log", source.encode())

    def log(line: str) -> None:
        print(line, flush=True)
        with (out / "train.log").open("a", encoding="utf-8") as file:
            print(line, file=file)

    (unknown, name), (failed, commit) = map(subprocess.getstatusoutput, ("grep -m1 'model name' /proc/cpuinfo", "git rev-parse HEAD"))
    cpu = json.dumps(platform.machine() if unknown else name.split(": ")[1])
    env = f"env python:{platform.python_version()} torch:{torch.__version__} cuda:none driver:none gpu:none gpus:0 cpu:{cpu} cores:{os.cpu_count()}"
    log(f"{env} platform:{platform.platform()} git_commit:{'none' if failed else commit} world_size:1")
    settings = {k: v for k, v in asdict(cfg).items() if k not in ("seed", "data_dir", "out")}  # what seeds of one record share
    for name in (name for name, value in settings.items() if value != getattr(Config, name)):
        log(f"config:override {name}={settings[name]} (default {getattr(Config, name)}, from flag)")
    log(f"config sha256:{sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}\n{data_line}")
    flat = initial_weights(cfg, torch.Generator().manual_seed(cfg.seed))
    log(f"model parameters:{flat.numel()}")
    rates = torch.tensor((cfg.embedding_lr, cfg.embedding_lr, cfg.block_lr, cfg.head_lr))
    lr, losses = rates.repeat_interleave(torch.tensor(list(cfg.group_sizes.values()))), []
    start = time.perf_counter()
    for step, at in enumerate(starts, 1):
        scale = min(1, step / 100, (cfg.steps + 1 - step) / (cfg.decay_share * cfg.steps))
        flat = pretraining_step(torch.from_numpy(stream[at + np.arange(T + 1)]), flat, cfg, lr * scale, losses)
        if step % 50 == 0 or step in (1, cfg.steps):
            ms, recent = 1e3 * (time.perf_counter() - start), losses[-50:]
            line = f"step:{step}/{cfg.steps} train_loss:{sum(recent) / len(recent):.4f} lr_scale:{scale:.4f} train_time:{ms:.0f}ms"
            log(f"{line} step_avg:{ms / step:.2f}ms tokens_per_s:{1e3 * step * cfg.batch * cfg.context / ms:.0f}")
    train_s = time.perf_counter() - start
    artifact = export(flat, cfg)
    if len(artifact) + len(code) > 16_000_000:
        raise UserError(f"{out}: expected at most 16,000,000 bytes, found {len(artifact)} of artifact + {len(code)} of code; shrink --width")
    write_file(out / "artifact.bin", artifact)
    log(f"artifact file:artifact.bin bytes:{len(artifact)} sha256:{sha256(artifact).hexdigest()}")
    start = time.perf_counter()
    nats, scored = math.fsum(score_streams(load(out / "artifact.bin"), [val], [[]])[0][0]), len(val) - 1
    log(
        f"result val_loss:{nats / scored:.8f} val_bpb:{nats / math.log(2) / val_bytes:.8f} nats:{nats:.6f} scored_tokens:{scored} "
        f"scored_bytes:{val_bytes} steps:{cfg.steps} train_s:{train_s:.3f} eval_s:{time.perf_counter() - start:.3f} artifact_bytes:{len(artifact)} "
        f"code_bytes:{len(code)} bytes_total:{len(artifact) + len(code)} code_sha256:{sha256(code).hexdigest()} seed:{cfg.seed}"
    )


def params_command(args: argparse.Namespace) -> None:
    sizes = Config().group_sizes
    print(f"recorded: {sum(sizes.values()):,} = " + " + ".join(f"{count:,} {group}" for group, count in sizes.items()))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = {"train": train_command, "score": score_command, "params": params_command}
    subparsers = parser.add_subparsers(dest="command", required=True)
    sub = {name: subparsers.add_parser(name, allow_abbrev=False) for name in commands}
    for flag, default in asdict(Config()).items():
        sub["train"].add_argument("--" + flag.replace("_", "-"), type=type(default), default=default, help=f"default {default}")
    for flag in ("artifact", "out"):
        sub["score"].add_argument(f"--{flag}", type=Path, required=True)
    sub["score"].add_argument("--tokens", type=Path, nargs="+", required=True)
    sub["score"].add_argument("--probes", type=Path)
    args = parser.parse_args(argv if argv and argv[0] in {*sub, "-h", "--help"} else ["train", *argv])
    torch.set_num_threads(1)  # see in_threads
    try:
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first rank does the work; there are seconds of it
            commands[args.command](args)
    except (UserError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
