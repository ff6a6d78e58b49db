"""A decoder made of PyTorch's encoder: GPT-2-class language model on a causally masked nn.TransformerEncoder.

    python train_gpt.py --data-dir data/datasets/docs_sp1024 --out runs/encoder_seed1337     train, export, reload, score; CPU
    python train_gpt.py score --artifact FILE --tokens S.bin [S2.bin ...] --out DIR [--probes P.json]
    python train_gpt.py params                 parameters by group of every preset
    python train_gpt.py --preset gpt2_small --data-dir ...                                   110 M parameters, 16,384 words

Model: token embedding · √D + sinusoidal positions, nn.TransformerEncoder under a causal mask (norm_first 1: pre-LN, 0: post-LN), final
LayerNorm, untied head. An encoder layer is a decoder layer without cross-attention: the mask is all that makes it a language model.

Shape suffixes: B batch, T time, D width, S scored positions of a window, V vocabulary, N tokens of a stream.
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
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAGIC = b"ENCODER1"


class UserError(Exception):
    """A mistake in the input. Reported as one line, exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 1024
    context: int = 128
    n_layers: int = 4
    n_heads: int = 4
    width: int = 96
    hidden: int = 384
    norm_first: int = 1
    steps: int = 600
    batch: int = 32
    matrix_lr: float = 0.02  # Muon; an update has about this spectral norm
    vector_lr: float = 0.01  # Adam, for embedding, head, norms and biases
    decay_share: float = 0.7  # in this last share of the steps the rates fall linearly to zero
    seed: int = 1337
    data_dir: str = "data/datasets/docs_sp1024"
    out: str = "runs/encoder_seed1337"

    def __post_init__(self):
        least = min(self.vocab_size, self.n_layers, self.n_heads, self.width, self.hidden, self.steps, self.batch, self.context - 1)
        if least < 1 or self.width % (2 * self.n_heads):
            raise UserError(f"{self}: expected positive sizes, a context above 1, width a multiple of 2·n_heads; change the flags")


PRESETS = {"docs": Config(), "gpt2_small": Config(vocab_size=16384, context=1024, n_layers=12, n_heads=12, width=768, hidden=3072, vector_lr=0.001)}


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
def sinusoids(context: int, width: int) -> Tensor:
    """fp32 [T, D]: sin and cos of position · 10000^(−2i/D), interleaved (Vaswani et al. 2017)."""
    angles = torch.arange(context)[:, None] * 1e4 ** (-torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class EncoderGPT(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg, self.embedding = cfg, nn.Embedding(cfg.vocab_size, cfg.width)
        self.register_buffer("positions", sinusoids(cfg.context, cfg.width), persistent=False)
        # dropout 0: less than one epoch cannot be memorised
        layer = nn.TransformerEncoderLayer(cfg.width, cfg.n_heads, cfg.hidden, 0.0, "gelu", batch_first=True, norm_first=bool(cfg.norm_first))
        self.encoder = nn.TransformerEncoder(layer, cfg.n_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, cfg.vocab_size, bias=False)
        for name, p in self.named_parameters():  # nn.TransformerEncoder copies one layer: without this all layers start as the same
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.ndim == 2:  # what writes to the residual stream starts smaller, so that its variance does not grow with depth
                writer = name.endswith(("out_proj.weight", "linear2.weight"))
                nn.init.normal_(p, std=cfg.width**-0.5 if "embedding" in name else 0.02 / math.sqrt(2 * cfg.n_layers) if writer else 0.02)

    def features(self, ids_BT: Tensor) -> Tensor:
        """Last hidden states, normalised, [B, T, D]."""
        T = ids_BT.shape[1]
        x = self.embedding(ids_BT) * math.sqrt(self.cfg.width) + self.positions[:T]
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        return self.norm(self.encoder(x, mask=mask, is_causal=True))

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        return self.head(self.features(ids_BT))


def next_token_cross_entropy(logits_BTV: Tensor, tokens_BT: Tensor) -> Tensor:
    """Mean nats over B·(T − 1) predictions: logits at t are for token t + 1, so the last has no target and the first token no prediction."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())


# --- Artifact: MAGIC, sha256 of the rest, an npz of the parameters in fp16 and of the configuration as JSON ---
def export(model: EncoderGPT) -> bytes:
    tensors = {name: p.detach().numpy().astype(np.float16) for name, p in model.named_parameters()}
    config = {k: v for k, v in asdict(model.cfg).items() if k not in ("data_dir", "out")}  # paths say nothing about the model
    np.savez_compressed(buffer := io.BytesIO(), config=json.dumps(config), **tensors)
    return MAGIC + sha256(buffer.getvalue()).digest() + buffer.getvalue()


def load(path: Path) -> EncoderGPT:
    """The model of an artifact. Raises UserError unless every byte is the one that was exported."""
    raw = read_file(path)
    if raw[:8] != MAGIC or sha256(raw[40:]).digest() != raw[8:40]:
        raise UserError(f"{path}: expected an intact {MAGIC.decode()} artifact, found {raw[:8]!r} and {len(raw)} bytes; export it again")
    with np.load(io.BytesIO(raw[40:]), allow_pickle=False) as npz:
        model = EncoderGPT(Config(**json.loads(str(npz["config"]))))
        model.load_state_dict({name: torch.from_numpy(npz[name].astype(np.float32)) for name in npz.files if name != "config"})
    return model.eval()


# --- Scoring ---
def in_threads(function: Callable, jobs: Iterable) -> list:
    """[function(job) for job in jobs] on two threads. main gives each of them one core: results do not depend on the machine, and on a busy one
    two threads that meet once per call are 5 to 10 times faster than two that meet in every product."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, jobs))


def score_streams(model: EncoderGPT, streams: list[np.ndarray], probes: list[list[int]], batch: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per stream: nats [N−1] of each next token, and log-probabilities [probes, V] after the probed positions; float64.
    Windows (stream, start, first, end) read start..end−1 and score first..end−1, on a grid anchored at the start of the stream. They share
    batches of one shape, padded after their end, so that where a stream is cut changes no earlier score, not even by rounding."""
    T, S = model.cfg.context, max(1, model.cfg.context // 2)
    windows = [(s, max(0, k + S - T), k, min(len(x), k + S)) for s, x in enumerate(streams) for k in range(0, len(x), S)]
    windows += windows[-1:] * (-len(windows) % batch)
    nats, logp = [np.zeros(len(x)) for x in streams], [np.zeros((len(p), model.cfg.vocab_size)) for p in probes]

    @torch.inference_mode()
    def run(lo: int) -> None:
        group = windows[lo : lo + batch]
        ids_BT = np.stack([np.pad(streams[s][start:end], (0, T - end + start)) for s, start, _, end in group])
        for x_TD, (s, start, first, end) in zip(model.features(torch.from_numpy(ids_BT)), group, strict=True):
            logp_SV = model.head(x_TD[first - start :][:S]).double().log_softmax(-1).numpy()
            targets = streams[s][first + 1 : end + 1]
            nats[s][first : first + len(targets)] = -logp_SV[np.arange(len(targets)), targets]
            hits = [i for i, position in enumerate(probes[s]) if first <= position < end]
            logp[s][hits] = logp_SV[[probes[s][i] - first for i in hits]]

    in_threads(run, range(0, len(windows), batch))
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
@torch.no_grad()
def muon_step(w: Tensor, m: Tensor, lr: float) -> None:
    """Moves a matrix by lr · sqrt(max(1, rows/columns)) · the nearest orthogonal matrix of its Nesterov momentum m (Jordan et al. 2024).
    In fp32: torch.optim.Muon computes in bf16, which a CPU without bf16 units emulates, 30 times slower."""
    x, tall = w.grad.lerp(m.lerp_(w.grad, 0.05), 0.95), w.shape[0] > w.shape[1]
    x = (x.T if tall else x) / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    w.sub_(x.T if tall else x, alpha=lr * max(1, w.shape[0] / w.shape[1]) ** 0.5)


def train_command(args: argparse.Namespace) -> None:
    preset = PRESETS[args.preset]
    cfg = replace(preset, **{k: v for k, v in vars(args).items() if k not in ("command", "preset")})
    torch.manual_seed(cfg.seed)
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
    for name in (name for name, value in settings.items() if value != getattr(preset, name)):
        log(f"config:override {name}={settings[name]} (default {getattr(preset, name)}, from flag)")
    log(f"config sha256:{sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}\n{data_line}")
    model = EncoderGPT(cfg)
    log(f"model parameters:{sum(p.numel() for p in model.parameters())}")
    matrices = [p for p in model.encoder.parameters() if p.ndim == 2]
    momenta, parameters = [torch.zeros_like(w) for w in matrices], list(model.parameters())
    adam = torch.optim.Adam([p for p in parameters if all(p is not w for w in matrices)], betas=(0.9, 0.95), fused=True)

    def gradient(blocks: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        loss = next_token_cross_entropy(model(blocks), blocks)
        return loss.item(), torch.autograd.grad(loss, parameters)

    start = time.perf_counter()
    for step, at in enumerate(starts, 1):
        scale = min(1, step / 10, (cfg.steps + 1 - step) / (cfg.decay_share * cfg.steps))
        losses, parts = zip(*in_threads(gradient, torch.from_numpy(stream[at + np.arange(T)]).chunk(4)), strict=True)
        for p, *g in zip(parameters, *parts, strict=True):
            p.grad = torch.stack(g).mean(0)
        in_threads(lambda i, s=scale: muon_step(matrices[i], momenta[i], cfg.matrix_lr * s), range(len(matrices)))
        adam.param_groups[0]["lr"] = cfg.vector_lr * scale
        adam.step()
        if step % 20 == 0 or step in (1, cfg.steps):
            ms = 1e3 * (time.perf_counter() - start)
            line = f"step:{step}/{cfg.steps} train_loss:{sum(losses) / 4:.4f} lr_scale:{scale:.4f} train_time:{ms:.0f}ms step_avg:{ms / step:.2f}ms"
            log(f"{line} tokens_per_s:{1e3 * step * cfg.batch * cfg.context / ms:.0f}")
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


def parameter_table(cfg: Config) -> dict[str, int]:
    """Parameters by group, counted on the model itself, which the meta device builds without memory."""
    with torch.device("meta"):
        sizes = {name: p.numel() for name, p in EncoderGPT(cfg).named_parameters()}
    return {group: sum(n for name, n in sizes.items() if group in name) for group in ("embedding", "self_attn", "linear", "norm", "head")}


def params_command(args: argparse.Namespace) -> None:
    for name, cfg in PRESETS.items():
        table = parameter_table(cfg)
        print(f"{name}: {sum(table.values()):,} = " + " + ".join(f"{count:,} {group}" for group, count in table.items()))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = {"train": train_command, "score": score_command, "params": params_command}
    subparsers = parser.add_subparsers(dest="command", required=True)
    sub = {name: subparsers.add_parser(name, allow_abbrev=False) for name in commands}
    sub["train"].add_argument("--preset", choices=PRESETS, default="docs")
    for flag, default in asdict(Config()).items():
        sub["train"].add_argument("--" + flag.replace("_", "-"), type=type(default), default=argparse.SUPPRESS, help=f"docs preset: {default}")
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
