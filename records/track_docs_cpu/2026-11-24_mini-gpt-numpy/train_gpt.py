"""Mini-GPT: a causal transformer in pure NumPy, forward and backward written by hand; no framework, no automatic differentiation.

    python train_gpt.py --data-dir data/datasets/docs_sp1024 --out runs/mini_gpt_seed1337    train, export, reload, score; CPU
    python train_gpt.py score --artifact FILE --tokens S.bin [S2.bin ...] --out DIR [--probes P.json]
    python train_gpt.py params                 every parameter of the canonical lab model and of the recorded one
    python train_gpt.py lab --out DIR          the 8-token sentence through the untrained lab model; writes DIR/manifest.json

Model: pre-LN blocks, x += Attention(LN(x)), x += GELU(LN(x)·up)·down, rotary positions, final LayerNorm, logits h·Eᵀ with E the only V×D matrix.
Matrices act on row vectors and have no biases. A layer returns its result and its backward function, which turns the gradient of the result into
that of the input and stores those of the parameters. Tests check gradients in float64; the recorded run uses float32.
Shape suffixes: B batch, T time, D width, H heads, K head size, S scored positions of a window, V vocabulary, N tokens of a stream.
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
from functools import partial, reduce
from hashlib import sha256
from pathlib import Path

if __name__ == "__main__":  # before NumPy loads its BLAS: our two threads split the batch, BLAS must not split each product again
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np

MAGIC = b"MINIGPT1"


class UserError(ValueError):
    """A mistake in the input. Reported as one line, exit code 2."""


@dataclass(frozen=True)
class MiniGPTConfig:  # the canonical lab model
    d_model: int = 64
    n_heads: int = 4
    n_layers: int = 2
    d_ff: int = 256
    vocab_size: int = 64
    context_len: int = 32

    def __post_init__(self):
        wrong = [name for name, value in vars(self).items() if name != "seed" and isinstance(value, int) and value < 1]
        if wrong or self.d_model % (2 * self.n_heads):
            raise UserError(f"{self}: expected positive sizes and d_model a multiple of 2·n_heads; change {wrong or 'd_model or n_heads'}")


@dataclass(frozen=True)
class Config(MiniGPTConfig):  # the recorded run: a larger model of the same kind, and its training
    d_model: int = 128
    d_ff: int = 512
    vocab_size: int = 1024
    context_len: int = 128
    steps: int = 600
    batch: int = 32
    matrix_lr: float = 0.02  # Muon; an update has about this spectral norm
    vector_lr: float = 0.01  # Adam, for the embedding and the norms
    seed: int = 1337
    data_dir: str = "data/datasets/docs_sp1024"
    out: str = "runs/mini_gpt_seed1337"


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


# --- Model ---
def chain(layers: Iterable[Callable], x: np.ndarray) -> tuple[np.ndarray, Callable]:
    backwards = []
    for layer in layers:
        x, backward = layer(x)
        backwards.append(backward)
    return x, lambda d: reduce(lambda d, backward: backward(d), reversed(backwards), d)


def residual(layers: Iterable[Callable], x: np.ndarray) -> tuple[np.ndarray, Callable]:
    y, backward = chain(layers, x)
    return x + y, lambda d: d + backward(d)


def gelu(u: np.ndarray) -> tuple[np.ndarray, Callable]:
    """The tanh form (Hendrycks and Gimpel 2016): NumPy has no erf."""
    c, square = math.sqrt(2 / math.pi), u * u
    half = 0.5 * np.tanh(u * (square * (0.044715 * c) + c)) + 0.5
    return u * half, lambda d: d * half * (1 + u * (1 - half) * (square * (6 * 0.044715 * c) + 2 * c))


def rotate(x_BTHK: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Turns the pairs (x[i], x[i + K/2]) by their position's angle. With −sin it turns back, which is the gradient."""
    a, b = np.split(x_BTHK, 2, axis=-1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.divide(e, e.sum(-1, keepdims=True), out=e)


class MiniGPT:  # parameters by name in `weights`; any number of tokens up to the context is served as it is, without padding
    def __init__(self, cfg: MiniGPTConfig, seed: int = 0, dtype: type = np.float64):
        D, K, rng, shapes = cfg.d_model, cfg.d_model // cfg.n_heads, np.random.default_rng(seed), {"embedding": (cfg.vocab_size, cfg.d_model)}
        for i in range(cfg.n_layers):
            shapes |= {f"{i}.norm1.gain": (D,), f"{i}.norm1.bias": (D,), f"{i}.qkv": (D, 3 * D), f"{i}.out": (D, D)}
            shapes |= {f"{i}.norm2.gain": (D,), f"{i}.norm2.bias": (D,), f"{i}.up": (D, cfg.d_ff), f"{i}.down": (cfg.d_ff, D)}
        self.cfg, self.weights = cfg, {}
        for name, shape in (shapes | {"norm.gain": (D,), "norm.bias": (D,)}).items():
            std = 0.02 / math.sqrt(2 * cfg.n_layers) if name.endswith(("out", "down")) else 0.02  # residual writers start smaller
            self.weights[name] = (rng.normal(0, std, shape) if len(shape) == 2 else np.full(shape, name.endswith("gain"))).astype(dtype)
        angles_T1K = np.arange(cfg.context_len)[:, None, None] * 1e4 ** (-np.arange(0, K, 2) / K)
        self.rope = np.cos(angles_T1K).astype(dtype), np.sin(angles_T1K).astype(dtype)
        self.future = np.triu(np.full((cfg.context_len, cfg.context_len), -np.inf, dtype), 1)

    def norm(self, name: str, gradients: dict, x: np.ndarray) -> tuple[np.ndarray, Callable]:
        gain, centred = self.weights[name + ".gain"], x - x.mean(-1, keepdims=True)
        scale = 1 / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
        unit = centred * scale

        def backward(d: np.ndarray) -> np.ndarray:
            gradients[name + ".gain"], gradients[name + ".bias"], du = (d * unit).sum((0, 1)), d.sum((0, 1)), d * gain
            return (du - du.mean(-1, keepdims=True) - unit * (du * unit).mean(-1, keepdims=True)) * scale

        return unit * gain + self.weights[name + ".bias"], backward

    def linear(self, name: str, gradients: dict, x: np.ndarray) -> tuple[np.ndarray, Callable]:
        def backward(d: np.ndarray) -> np.ndarray:
            gradients[name] = x.reshape(-1, x.shape[-1]).T @ d.reshape(-1, d.shape[-1])
            return d @ self.weights[name].T

        return x @ self.weights[name], backward

    def attention(self, rope: tuple, qkv_BTE: np.ndarray) -> tuple[np.ndarray, Callable]:
        """Causal, multi-head. Backward: dS = P ⊙ (dP − Σ dP ⊙ P), where Σ dP ⊙ P = Σ dy ⊙ y spares a pass over T×T."""
        (B, T, _), (cos, sin), K = qkv_BTE.shape, rope, self.cfg.d_model // self.cfg.n_heads
        q, k, v = np.moveaxis(qkv_BTE.reshape(B, T, 3, -1, K), 2, 0)
        q, k, v = (a.swapaxes(1, 2) for a in (rotate(q, cos, sin) * K**-0.5, rotate(k, cos, sin), v))  # [B, H, T, K]
        p = softmax(q @ k.swapaxes(2, 3) + self.future[:T, :T])
        y = p @ v

        def backward(d_BTD: np.ndarray) -> np.ndarray:
            d = d_BTD.reshape(B, T, -1, K).swapaxes(1, 2)
            ds = (d @ v.swapaxes(2, 3) - (d * y).sum(-1, keepdims=True)) * p
            dq, dk, dv = (a.swapaxes(1, 2) for a in (ds @ k, ds.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ d))
            return np.stack((rotate(dq, cos, -sin) * K**-0.5, rotate(dk, cos, -sin), dv), axis=2).reshape(B, T, -1)

        return y.swapaxes(1, 2).reshape(B, T, -1), backward

    def features(self, ids_BT: np.ndarray, gradients: dict | None = None, rope: bool = True) -> tuple[np.ndarray, Callable]:
        """Last hidden states, normalised, [B, T, D], and the backward function from them to the embedded tokens."""
        T, g, layers = ids_BT.shape[1], {} if gradients is None else gradients, []
        if not 1 <= T <= self.cfg.context_len:
            raise UserError(f"expected 1 to {self.cfg.context_len} tokens, found {T}; crop the input")
        attention = partial(self.attention, tuple(table[:T] for table in self.rope) if rope else (1, 0))
        for i in range(self.cfg.n_layers):
            norm1, norm2 = (partial(self.norm, f"{i}.{name}", g) for name in ("norm1", "norm2"))
            qkv, out, up, down = (partial(self.linear, f"{i}.{name}", g) for name in ("qkv", "out", "up", "down"))
            layers += [partial(residual, (norm1, qkv, attention, out)), partial(residual, (norm2, up, gelu, down))]
        return chain([*layers, partial(self.norm, "norm", g)], self.weights["embedding"][ids_BT])

    def forward(self, ids: np.ndarray, rope: bool = True) -> np.ndarray:
        """Raw logits [T, V] of ids [T], or [B, T, V] of ids [B, T]."""
        logits = self.features(np.atleast_2d(ids), rope=rope)[0] @ self.weights["embedding"].T
        return logits if np.ndim(ids) == 2 else logits[0]

    def loss_and_gradients(self, blocks_BT1: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        """Sum of the nats of the B·T next tokens and its gradient by parameter name."""
        ids, targets, gradients, embedding = blocks_BT1[:, :-1], blocks_BT1[:, 1:], {}, self.weights["embedding"]
        h, backward = self.features(ids, gradients)
        dlogits, hit = softmax(h @ embedding.T), (*np.indices(targets.shape), targets)
        nats = -float(np.log(dlogits[hit]).sum(dtype=np.float64))
        dlogits[hit] -= 1  # softmax − onehot
        gradients["embedding"] = dlogits.reshape(-1, len(embedding)).T @ h.reshape(-1, h.shape[-1])  # as the head
        np.add.at(gradients["embedding"], ids, backward(dlogits @ embedding))  # and as the input
        return nats, gradients


# --- Artifact: MAGIC, sha256 of the rest, an npz of the parameters in fp16 and of the configuration as JSON ---
def export(model: MiniGPT) -> bytes:
    tensors = {name: w.astype(np.float16) for name, w in model.weights.items()}
    config = {k: v for k, v in asdict(model.cfg).items() if k not in ("data_dir", "out")}  # paths say nothing about the model
    np.savez_compressed(buffer := io.BytesIO(), config=json.dumps(config), **tensors)
    return MAGIC + sha256(buffer.getvalue()).digest() + buffer.getvalue()


def load(path: Path) -> MiniGPT:
    """The model of an artifact, in fp32. Raises UserError unless every byte is the one that was exported."""
    raw = read_file(path)
    if raw[:8] != MAGIC or sha256(raw[40:]).digest() != raw[8:40]:
        raise UserError(f"{path}: expected an intact {MAGIC.decode()} artifact, found {raw[:8]!r} and {len(raw)} bytes; export it again")
    with np.load(io.BytesIO(raw[40:]), allow_pickle=False) as npz:
        model = MiniGPT(Config(**json.loads(str(npz["config"]))), dtype=np.float32)
        model.weights = {name: npz[name].astype(np.float32) for name in model.weights}
    return model


# --- Scoring ---
def score_streams(model: MiniGPT, streams: list[np.ndarray], probes: list[list[int]], batch: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per stream: nats [N−1] of each next token, and log-probabilities [probes, V] after the probed positions; float64.
    Windows (stream, start, first, end) read start..end−1 and score first..end−1, on a grid anchored at the start of the stream. They share
    batches of one shape, padded after their end, so that where a stream is cut changes no earlier score, not even by rounding."""
    T, S = model.cfg.context_len, max(1, model.cfg.context_len // 2)
    windows = [(s, max(0, k + S - T), k, min(len(x), k + S)) for s, x in enumerate(streams) for k in range(0, len(x), S)]
    windows += windows[-1:] * (-len(windows) % batch)
    nats, logp = [np.zeros(len(x)) for x in streams], [np.zeros((len(p), model.cfg.vocab_size)) for p in probes]

    def run(lo: int) -> None:
        group = windows[lo : lo + batch]
        ids_BT = np.stack([np.pad(streams[s][start:end], (0, T - end + start)) for s, start, _, end in group])
        for x_TD, (s, start, first, end) in zip(model.features(ids_BT)[0], group, strict=True):
            logp_SV = np.log(softmax((x_TD[first - start :][:S] @ model.weights["embedding"].T).astype(np.float64)))
            targets = streams[s][first + 1 : end + 1]
            nats[s][first : first + len(targets)] = -logp_SV[np.arange(len(targets)), targets]
            hits = [i for i, position in enumerate(probes[s]) if first <= position < end]
            logp[s][hits] = logp_SV[[probes[s][i] - first for i in hits]]

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(0, len(windows), batch)))
    return [(n[:-1], p) for n, p in zip(nats, logp, strict=True)]


def score_command(args: argparse.Namespace) -> None:
    model = load(args.artifact)
    streams = {path.name.removesuffix(".bin"): read_shard(path, model.cfg.vocab_size) for path in args.tokens}
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
def update(name: str, w: np.ndarray, g: np.ndarray, state: list[np.ndarray], cfg: Config, scale: float) -> None:
    """One step, in place: Adam (.95, .95) for embedding and norms; for the other matrices Muon (Jordan et al. 2024), which moves by
    lr · sqrt(max(1, columns/rows)) · the nearest orthogonal matrix of the Nesterov momentum."""
    m, v, correction = state
    m += 0.05 * (g - m)
    if w.ndim == 1 or name == "embedding":
        v += 0.05 * (g * g - v)
        correction *= 0.95
        w -= cfg.vector_lr * scale * m / (1 - correction) / (np.sqrt(v / (1 - correction)) + 1e-8)
        return
    x, tall = g + 0.95 * (m - g), w.shape[0] > w.shape[1]
    x = (x.T if tall else x) / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    w -= cfg.matrix_lr * scale * max(1, w.shape[1] / w.shape[0]) ** 0.5 * (x.T if tall else x)


def train_command(args: argparse.Namespace) -> None:
    cfg = Config(**{k: v for k, v in vars(args).items() if k != "command"})
    stream, val, val_bytes, data_line = load_data(Path(cfg.data_dir), cfg.vocab_size)
    T, rng = cfg.context_len, np.random.default_rng(cfg.seed)
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
    env = f"env python:{platform.python_version()} torch:none numpy:{np.__version__} cuda:none driver:none gpu:none gpus:0 cpu:{cpu} cores:{os.cpu_count()}"
    log(f"{env} platform:{platform.platform()} git_commit:{'none' if failed else commit} world_size:1")
    settings = {k: v for k, v in asdict(cfg).items() if k not in ("seed", "data_dir", "out")}  # what seeds of one record share
    for name in (name for name, value in settings.items() if value != getattr(Config, name)):
        log(f"config:override {name}={settings[name]} (default {getattr(Config, name)}, from flag)")
    log(f"config sha256:{sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}\n{data_line}")
    model = MiniGPT(cfg, cfg.seed, np.float32)
    w, tokens = model.weights, cfg.batch * cfg.context_len
    log(f"model parameters:{sum(x.size for x in w.values())}")
    state = {name: [np.zeros_like(x), np.zeros_like(x), np.ones(1, np.float32)] for name, x in w.items()}
    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:  # four fixed parts of the batch for two threads: the sums do not depend on the machine's cores
        for step, at in enumerate(starts, 1):
            scale = min(1, step / 10, (cfg.steps + 1 - step) / (0.7 * cfg.steps))
            losses, parts = zip(*pool.map(model.loss_and_gradients, np.array_split(stream[at + np.arange(T + 1)], 4)), strict=True)
            list(pool.map(lambda k, parts=parts, s=scale: update(k, w[k], sum(part[k] for part in parts) / tokens, state[k], cfg, s), w))
            if step % 20 == 0 or step in (1, cfg.steps):
                ms = 1e3 * (time.perf_counter() - start)
                line = f"step:{step}/{cfg.steps} train_loss:{sum(losses) / tokens:.4f} lr_scale:{scale:.4f} train_time:{ms:.0f}ms"
                log(f"{line} step_avg:{ms / step:.2f}ms tokens_per_s:{1e3 * step * tokens / ms:.0f}")
    train_s = time.perf_counter() - start
    artifact = export(model)
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


def lab_command(args: argparse.Namespace) -> None:
    sentence, words = (
        "<bos> I work , you work , he",
        """
        <pad> <bos> <eos> <unk> , . ? ! I you he she it we they work works worked play plays played read reads write writes run runs see sees eat eats
        sleep sleeps a an the this that and or but not is are was be in on at to of with from good new old big small man woman child dog cat home""",
    )
    words, model = words.split(), MiniGPT(MiniGPTConfig())
    ids = [words.index(word if word in words else "<unk>") for word in sentence.split()]
    start = time.perf_counter()
    logits = model.forward(ids)
    report = {"sentence": sentence, "ids": ids, "shape": logits.shape, "forward_ms": 1e3 * (time.perf_counter() - start)}
    report |= {"top5_at_7": {words[i]: float(logits[7, i]) for i in np.argsort(-logits[7])[:5]}, "weights": "untrained, seed 0"}
    report |= {"rope_l2": float(np.linalg.norm(logits - model.forward(ids, rope=False))), "config": asdict(model.cfg)}
    print("\n".join(f"{key}: {value}" for key, value in report.items()))
    write_file(args.out / "manifest.json", json.dumps(report, indent=2).encode())


def params_command(args: argparse.Namespace) -> None:
    for cfg in (MiniGPTConfig(), Config()):
        shapes = {name: w.shape for name, w in MiniGPT(cfg).weights.items()}
        print(f"{sum(map(math.prod, shapes.values())):,} = " + " + ".join(f"{math.prod(shape):,} {name}" for name, shape in shapes.items()))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = {"train": train_command, "score": score_command, "params": params_command, "lab": lab_command}
    subparsers = parser.add_subparsers(dest="command", required=True)
    sub = {name: subparsers.add_parser(name, allow_abbrev=False) for name in commands}
    for flag, default in asdict(Config()).items():
        sub["train"].add_argument("--" + flag.replace("_", "-"), type=type(default), default=default, help=f"default {default}")
    for name, flag in (("score", "artifact"), ("score", "out"), ("lab", "out")):
        sub[name].add_argument(f"--{flag}", type=Path, required=True)
    sub["score"].add_argument("--tokens", type=Path, nargs="+", required=True)
    sub["score"].add_argument("--probes", type=Path)
    args = parser.parse_args(argv if argv and argv[0] in {*sub, "-h", "--help"} else ["train", *argv])
    try:
        if os.environ.get("RANK", "0") == "0":  # under torchrun the first rank does the work; there are seconds of it
            commands[args.command](args)
    except (UserError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
