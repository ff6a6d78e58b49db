"""WikiGPT: a small LLaMA-style language model (RMSNorm, RoPE, SwiGLU, tied embedding), trained, exported and scored by this one file.

    python train_gpt.py --data-dir data/datasets/docs_sp1024 --out runs/wikigpt_seed1337     train, export, reload, score; CPU
    python train_gpt.py score --artifact FILE --tokens S.bin [S2.bin ...] --out DIR [--probes P.json]
    python train_gpt.py params                 parameters by group: the recorded model and the paper size; RoPE check
    python train_gpt.py generate --artifact FILE --tokenizer docs_1024_bpe.model --prompt "Returns the"
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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAGIC = b"WIKIGPT1"


class UserError(Exception):
    """A mistake in the input. Reported as one line, exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 1024
    context: int = 128
    n_layers: int = 4
    n_heads: int = 4
    width: int = 96
    steps: int = 600
    batch: int = 32
    matrix_lr: float = 0.02  # Muon; an update has about this spectral norm
    vector_lr: float = 0.01  # Adam, for the embedding and the gains
    decay_share: float = 0.7  # in this last share of the steps the rate falls linearly to zero
    seed: int = 1337
    data_dir: str = "data/datasets/docs_sp1024"
    out: str = "runs/wikigpt_seed1337"

    def __post_init__(self):
        least = min(self.vocab_size, self.context, self.n_layers, self.n_heads, self.width, self.steps, self.batch)
        if least < 1 or self.context % 2 or self.batch % 4 or self.width % (2 * self.n_heads):
            raise UserError(f"{self}: expected positive sizes, an even context, batch a multiple of 4, width a multiple of 2·n_heads; change the flags")


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
def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    x32 = x.float()  # a mean of squares keeps too few digits in bf16
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * gain


def rope_tables(context: int, head_size: int) -> Tensor:
    """cos and sin, fp32 [2, T, K/2], of position · 10000^(−2i/K)."""
    angles = torch.arange(context)[:, None] * 1e4 ** (-torch.arange(0, head_size, 2) / head_size)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x_BHTK: Tensor, rope: Tensor) -> Tensor:
    """Turns the pairs (x[i], x[i + K/2]) by their position's angle, in fp32 whatever the dtype of x."""
    (a, b), (cos, sin) = x_BHTK.float().chunk(2, dim=-1), rope
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x_BHTK.dtype)


def check_rope(head_size: int = 64) -> tuple[float, float]:
    """How much q·k moves at most when both positions move together (to be < 1e-4), and at least when their offset changes."""
    q, k = torch.randn(2, head_size, generator=torch.Generator().manual_seed(0)) / head_size**0.25
    rope, offsets, bases = rope_tables(1024, head_size), (0, 1, 2, 7, 31, 100), (0, 1, 5, 64, 333, 900)
    score = {(o, b): float(rotate(q, rope[:, b + o]) @ rotate(k, rope[:, b])) for o in offsets for b in bases}
    drift = max(abs(score[o, b] - score[o, 0]) for o, b in score)
    return drift, min(abs(score[o, 0] - score[p, 0]) for o in offsets for p in offsets if o < p)


class Block(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        D, hidden = cfg.width, 256 * math.ceil(8 * cfg.width / 3 / 256)  # three matrices then cost what the two of a 4·D MLP do
        self.n_heads = cfg.n_heads
        self.norm1, self.norm2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.attention_qkv, self.attention_out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.mlp_gate, self.mlp_up, self.mlp_down = (nn.Linear(*s, bias=False) for s in ((D, hidden), (D, hidden), (hidden, D)))

    def forward(self, x_BTD: Tensor, rope: Tensor, cache: dict | None) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.attention_qkv(rms_norm(x_BTD, self.norm1)).view(B, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # [B, H, T, K] each
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = (torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)) if cache else (k, v)
            cache.update(k=k, v=v)
        # SDPA aligns its causal mask to the top left: right for a whole sequence; one token after a cached past sees all and needs none.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        x = x_BTD + self.attention_out(y.transpose(1, 2).reshape(B, T, D))
        h = rms_norm(x, self.norm2)
        return x + self.mlp_down(F.silu(self.mlp_gate(h)) * self.mlp_up(h))


class WikiGPT(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg, self.embedding = cfg, nn.Embedding(cfg.vocab_size, cfg.width)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = nn.Parameter(torch.ones(cfg.width))
        self.register_buffer("rope", rope_tables(cfg.context, cfg.width // cfg.n_heads), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # what writes to the residual stream starts smaller, so that its variance does not grow with depth
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.n_layers) if "out" in name or "down" in name else 0.02)

    def features(self, ids_BT: Tensor, caches: list[dict] | None = None) -> Tensor:
        """Last hidden states, normalised, [B, T, D]. With caches that hold a past, ids_BT is the one next token."""
        past, T = caches[0]["k"].shape[2] if caches and caches[0] else 0, ids_BT.shape[1]
        if past + T > self.cfg.context or (past and T > 1):
            raise ValueError(f"a context of {self.cfg.context} holds {past} cached tokens, {T} more were given; crop, or feed one by one")
        x = self.embedding(ids_BT)
        for i, block in enumerate(self.blocks):
            x = block(x, self.rope[:, past : past + T], caches[i] if caches else None)
        return rms_norm(x, self.norm)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor | None = None, caches: list[dict] | None = None) -> tuple[Tensor, Tensor | None]:
        """With targets: logits [B, T, V], mean nats over the targets that are not −1. Without: logits [B, 1, V] of the last position, None."""
        x = self.features(ids_BT, caches)
        logits = F.linear(x if targets_BT is not None else x[:, -1:], self.embedding.weight)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=-1) if targets_BT is not None else None
        return logits, loss


@torch.inference_mode()
def generate(model: WikiGPT, ids: list[int], count: int, *, temperature=1.0, top_k=0, top_p=1.0, seed=0) -> Iterator[int]:
    """Yields count ids that continue ids. temperature 0: greedy; top_k 0 and top_p 1: off. Beyond the context the oldest tokens are
    cropped and the cache is rebuilt, because its states still know them: the cache never changes the ids."""
    generator, ids, caches = torch.Generator().manual_seed(seed), list(ids), []
    for _ in range(count):
        rebuild = not caches or len(ids) > model.cfg.context
        caches = [{} for _ in model.blocks] if rebuild else caches
        logits = model(torch.tensor([ids[-model.cfg.context :] if rebuild else ids[-1:]]), caches=caches)[0][0, 0]
        p, index = (logits.double() / (temperature or 1)).softmax(-1).sort(descending=True, stable=True)
        p[p.cumsum(-1) - p >= top_p] = 0  # leaves the smallest set that holds top_p; nothing is before the first, which stays
        p[1 if temperature == 0 else top_k or len(p) :] = 0
        ids.append(int(index[torch.multinomial(p, 1, generator=generator)]))
        yield ids[-1]


# --- Artifact: MAGIC, sha256 of the rest, an npz of the parameters in fp16 and of the configuration as JSON ---
def export(model: WikiGPT) -> bytes:
    tensors = {name: p.detach().numpy().astype(np.float16) for name, p in model.named_parameters()}
    config = {k: v for k, v in asdict(model.cfg).items() if k not in ("data_dir", "out")}  # paths say nothing about the model
    np.savez_compressed(buffer := io.BytesIO(), config=json.dumps(config), **tensors)
    return MAGIC + sha256(buffer.getvalue()).digest() + buffer.getvalue()


def load(path: Path) -> WikiGPT:
    """The model of an artifact. Raises UserError unless every byte is the one that was exported."""
    raw = read_file(path)
    if raw[:8] != MAGIC or sha256(raw[40:]).digest() != raw[8:40]:
        raise UserError(f"{path}: expected an intact {MAGIC.decode()} artifact, found {raw[:8]!r} and {len(raw)} bytes; export it again")
    with np.load(io.BytesIO(raw[40:]), allow_pickle=False) as npz:
        model = WikiGPT(Config(**json.loads(str(npz["config"]))))
        model.load_state_dict({name: torch.from_numpy(npz[name].astype(np.float32)) for name in npz.files if name != "config"})
    return model.eval()


# --- Scoring ---
def in_threads(function: Callable, jobs: Iterable) -> list:
    """[function(job) for job in jobs] on two threads. main gives each of them one core: results do not depend on the machine, and on a busy one
    two threads that meet once per call are 5 to 10 times faster than two that meet in every product."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, jobs))


def score_streams(model: WikiGPT, streams: list[np.ndarray], probes: list[list[int]], batch: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
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
            logp_SV = F.linear(x_TD[first - start :][:S], model.embedding.weight).double().log_softmax(-1).numpy()
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
    cfg = Config(**{k: v for k, v in vars(args).items() if k != "command"})
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
    for name in (name for name, value in settings.items() if value != getattr(Config, name)):
        log(f"config:override {name}={settings[name]} (default {getattr(Config, name)}, from flag)")
    log(f"config sha256:{sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}\n{data_line}")
    model = WikiGPT(cfg)
    log(f"model parameters:{sum(p.numel() for p in model.parameters())}")
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    momenta, parameters = [torch.zeros_like(w) for w in matrices], list(model.parameters())
    adam = torch.optim.Adam([p for p in parameters if all(p is not w for w in matrices)], betas=(0.9, 0.95), fused=True)

    def gradient(blocks: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        loss = model(blocks[:, :-1], blocks[:, 1:])[1]
        return loss.item(), torch.autograd.grad(loss, parameters)

    start = time.perf_counter()
    for step, at in enumerate(starts, 1):
        scale = min(1, step / 10, (cfg.steps + 1 - step) / (cfg.decay_share * cfg.steps))
        losses, parts = zip(*in_threads(gradient, torch.from_numpy(stream[at + np.arange(T + 1)]).chunk(4)), strict=True)
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
        sizes = {name: p.numel() for name, p in WikiGPT(cfg).named_parameters()}
    return {group: sum(n for name, n in sizes.items() if group in name) for group in ("embedding", "attention", "mlp", "norm")}


def params_command(args: argparse.Namespace) -> None:
    for cfg in (Config(), Config(vocab_size=32768, context=1024, n_layers=12, n_heads=12, width=768)):  # the recorded and the paper's size
        table = parameter_table(cfg)
        print(f"{sum(table.values()):,} = " + " + ".join(f"{count:,} {group}" for group, count in table.items()))
    print("RoPE: q·k moves by at most {:.1e} with the position, by at least {:.1e} with the offset".format(*check_rope()))


def generate_command(args: argparse.Namespace) -> None:
    import sentencepiece  # only this command turns ids into text

    model, tokenizer = load(args.artifact), sentencepiece.SentencePieceProcessor(model_proto=read_file(args.tokenizer))
    if tokenizer.vocab_size() != model.cfg.vocab_size or args.temperature < 0 or args.top_k < 0 or not 0 < args.top_p <= 1:
        wanted = f"{model.cfg.vocab_size} pieces, --temperature and --top-k at least 0, --top-p in (0, 1]"
        raise UserError(f"{args.tokenizer}: expected {wanted}; found {tokenizer.vocab_size()}, {args.temperature}, {args.top_k}, {args.top_p}")
    ids, options = tokenizer.encode(args.prompt), {k: getattr(args, k) for k in ("temperature", "top_k", "top_p", "seed")}
    print(tokenizer.decode(ids + list(generate(model, [1, *ids], args.count, **options))))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    commands = {"train": train_command, "score": score_command, "params": params_command, "generate": generate_command}
    subparsers = parser.add_subparsers(dest="command", required=True)
    sub = {name: subparsers.add_parser(name, allow_abbrev=False) for name in commands}
    generation = {"prompt": "", "count": 200, "temperature": 0.8, "top_k": 0, "top_p": 0.95, "seed": 0}
    for name, defaults in {"train": asdict(Config()), "generate": generation}.items():
        for flag, default in defaults.items():
            sub[name].add_argument("--" + flag.replace("_", "-"), type=type(default), default=default, help=f"default {default}")
    for name, flag in (("score", "artifact"), ("score", "out"), ("generate", "artifact"), ("generate", "tokenizer")):
        sub[name].add_argument(f"--{flag}", type=Path, required=True)
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
