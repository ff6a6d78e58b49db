"""What bench/cpu.py and bench/gpu.py share: plain against ours, piece by piece and in all, each measurement in a process of its own, in turns."""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import plain  # noqa: E402

import train_gpt as tg  # noqa: E402

SIDES = {"training": ("plain", "ours in float32", "ours"), "scoring": ("plain", "ours")}
PEAK_BF16_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
}  # dense, data sheets


def synthetic_stream(vocab_size: int, length: int) -> np.ndarray:
    """uint16 [length]: ids by Zipf's law with a BOS now and then. Speed does not depend on what the tokens say."""
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, vocab_size - 1)
    tokens = rng.choice(np.arange(2, vocab_size), length, p=p / p.sum()).astype(np.uint16)
    tokens[::400] = tg.BOS_ID
    return tokens


def timed(rt: tg.Runtime, action: Callable[[], object]) -> tuple[float, object]:
    started = rt.clock()
    result = action()
    return rt.clock() - started, result


def peak_memory() -> int:
    """Most bytes that this program has held so far. getrusage's figure may be that of the process which started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(
            next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        )
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def dtype_of(side: str, cfg: tg.Config, device: torch.device) -> torch.dtype:
    """Of a side's products in training. The plain side computes in float32 on a CPU and in bfloat16 on a GPU, as scoring does."""
    fast = {
        "plain": device.type == "cuda",
        "ours in float32": False,
        "ours": tg.trains_in_bf16(cfg, device),
    }[side]
    return torch.bfloat16 if fast else torch.float32


def peak_flops(rt: tg.Runtime, dtype: torch.dtype) -> float:
    """Of the data sheet for bfloat16 on a known GPU, else what a large product reaches here."""
    if (
        dtype == torch.bfloat16
        and rt.device.type == "cuda"
        and (known := PEAK_BF16_FLOPS.get(torch.cuda.get_device_name(rt.device)))
    ):
        return known
    n = 8192 if rt.device.type == "cuda" else 1536
    a = torch.randn(n, n, device=rt.device, dtype=dtype)
    return 2 * n**3 / min(timed(rt, lambda: a @ a)[0] for _ in range(5))


def measure_training(
    side: str, cfg: tg.Config, rt: tg.Runtime, steps: int, whole_steps: int
) -> dict:
    """Medians: seconds by piece (each waited for), then of whole steps by the host's clock, which a GPU's queue paces; losses of the former."""
    torch.manual_seed(cfg.seed)
    stream = tg.TokenStream(
        [synthetic_stream(cfg.vocab_size, 4 * cfg.train_batch_tokens + cfg.train_seq_len)]
    )
    ours, cfg = (
        side != "plain",
        dataclasses.replace(cfg, bf16=int(dtype_of(side, cfg, rt.device) == torch.bfloat16)),
    )
    loader = tg.Loader(
        stream,
        cfg if ours else dataclasses.replace(cfg, micro_batch_tokens=cfg.train_batch_tokens),
        rt,
    )
    model = (tg.GPT if ours else plain.PlainGPT)(cfg).to(rt.device)
    compute = torch.compile(model, fullgraph=True, dynamic=False) if ours and cfg.compile else model
    optimizers = tg.Optimizers(model, cfg, rt) if ours else plain.PlainOptimizers(model, cfg)
    average = (tg.Average if ours else plain.PlainAverage)(model, cfg)
    train = (
        (lambda batch: tg.training_step(compute, batch, optimizers.params, rt))
        if ours
        else (lambda batch: plain.plain_step(model, batch))
    )
    if rt.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pieces: dict[str, list[float]] = {"forward and backward": [], "optimizer": [], "averaging": []}
    first, losses = 0.0, []
    for step in range(steps):
        batch = loader.next()
        a, loss = timed(rt, lambda batch=batch: train(batch))
        b, _ = timed(rt, lambda step=step: optimizers.step(step, 1.0))
        c, _ = timed(rt, lambda: average.update(snapshot=False))
        losses.append(loss.item())
        if step < 2:  # compilation and first calls
            first += a + b + c
        else:
            for piece, seconds in zip(pieces.values(), (a, b, c), strict=True):
                piece.append(seconds)
    ends = [rt.clock()]
    for step in range(steps, steps + whole_steps):
        train(loader.next())
        optimizers.step(step, 1.0)
        average.update(snapshot=False)
        rt.pace()
        ends.append(time.perf_counter())
    whole = statistics.median(b - a for a, b in itertools.pairwise(ends))
    loader.pool.shutdown()
    peak = torch.cuda.max_memory_allocated() if rt.device.type == "cuda" else peak_memory()
    medians = {name: statistics.median(seconds) for name, seconds in pieces.items()}
    return {
        "pieces_s": medians,
        "step_s": whole,
        "first_two_steps_s": first,
        "losses": losses,
        "peak_bytes": peak,
    }


def measure_scoring(side: str, cfg: tg.Config, rt: tg.Runtime, tokens: int) -> dict:
    """Seconds for every target of a stream, model alone, and the nats that came out; the second run counts."""
    torch.manual_seed(cfg.seed)
    model = (tg.GPT if side == "ours" else plain.PlainGPT)(cfg).to(rt.device).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():  # the zero-initialised projections would make all positions alike
        p.add_(torch.randn(p.shape, generator=generator).to(p.device) * 0.02)
    stream = synthetic_stream(cfg.vocab_size, tokens)
    if side == "ours":
        run = lambda: tg.score_streams(model, [stream], cfg, rt)[0].nll.sum().item()  # noqa: E731
    else:
        run = lambda: float(plain.plain_scores(model, stream, cfg, rt.device).sum())  # noqa: E731
    first, _ = timed(rt, run)
    seconds, nats = timed(rt, run)
    windows = tg.plan_windows(tokens - 1, cfg.eval_seq_len, cfg.eval_stride)
    window_tokens = sum(end - start for start, _, end in windows)
    return {
        "tokens": tokens,
        "first_s": first,
        "seconds": seconds,
        "nats": nats,
        "tokens_per_s": tokens / seconds,
        "window_tokens_per_s": window_tokens / seconds,
    }


def measure_artifact(cfg: tg.Config, rt: tg.Runtime, path: Path | None) -> dict:
    """Bytes of the artifact against the zero-order entropy of its symbols and against general compressors, on trained weights where given."""
    torch.manual_seed(cfg.seed)
    if path is not None:
        model, cfg, _ = tg.load_artifact(path, tg.Runtime())
        # an artifact keeps what scoring needs; the formats it was exported in are those of its tensors
        formats = {
            name: fmt
            for name, _, fmt in json.loads(tg.read_header(path.read_bytes(), str(path))[0])[
                "tensors"
            ]
        }
        cfg = dataclasses.replace(
            cfg,
            matrix_format=formats["blocks.0.fc.weight"],
            embed_format=formats["embed"],
            control_format=formats["smear"],
        )
    else:
        model = tg.GPT(cfg)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
    seconds, (data, stored) = timed(rt, lambda: tg.pack(model, cfg, "0" * 64))
    bound, header = (
        sum(tg.entropy_bytes(tensors) for _, tensors, _ in stored.values()),
        len(tg.read_header(data, "artifact")[0]),
    )
    general = plain.compressed_bytes(model, cfg)
    return {
        "weights": "trained" if path else "random",
        "artifact_bytes": len(data),
        "header_bytes": header,
        "entropy_bound_bytes": bound,
        "over_bound_without_header": (len(data) - header) / bound,
        "general_compressors_bytes": general,
        "best_general_over_bound": min(general.values()) / bound,
        "pack_s": seconds,
    }


def child(part: str, side: str) -> dict:
    """One measurement in a fresh process: no allocator settings of this one, no compiled code of an earlier one."""
    command = [sys.executable, *sys.argv, "--part", part, "--side", side]
    with tempfile.TemporaryDirectory() as cache:
        env = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | {
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": cache,
        }
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def summary(
    training: dict[str, list[dict]],
    scoring: dict[str, list[dict]],
    cfg: tg.Config,
    peaks: dict[str, tuple[torch.dtype, float]],
) -> dict:
    out: dict = {"training": {}, "scoring": {}}
    train_flops = plain.flops_per_token(cfg)
    for side, runs in training.items():
        step = statistics.median(run["step_s"] for run in runs)
        warm = statistics.median(run["first_two_steps_s"] for run in runs)
        steps = (
            min(cfg.iterations, int(cfg.train_seconds / step))
            if cfg.train_seconds
            else cfg.iterations
        )
        for run in runs:
            run["mean_step_s"] = (
                run["first_two_steps_s"] + run["step_s"] * (steps - 2)
            ) / steps  # over a whole run, compilation included
        out["training"][side] = {
            "dtype": str(peaks[side][0]).removeprefix("torch."),
            "pieces_ms": {
                name: 1e3 * statistics.median(run["pieces_s"][name] for run in runs)
                for name in runs[0]["pieces_s"]
            },
            "step_ms": 1e3 * step,
            "tokens_per_s": cfg.train_batch_tokens / step,
            "tokens_per_s_of_the_run": cfg.train_batch_tokens
            / statistics.median(run["mean_step_s"] for run in runs),
            "first_two_steps_s": warm,
            "utilisation": train_flops * cfg.train_batch_tokens / step / peaks[side][1],
            "peak_mib": max(run["peak_bytes"] for run in runs) / 2**20,
        }
    for side, runs in scoring.items():
        out["scoring"][side] = {
            key: statistics.median(run[key] for run in runs)
            for key in ("first_s", "seconds", "tokens_per_s", "window_tokens_per_s", "nats")
        }
    for part, sides, key in (
        ("training", training, "mean_step_s"),
        ("scoring", scoring, "seconds"),
    ):
        for side in SIDES[part][1:]:
            ratios = [
                a[key] / b[key] for a, b in zip(sides["plain"], sides[side], strict=True)
            ]  # of one round: a machine's mood cancels
            out[part][side] |= {"speedup": statistics.median(ratios), "speedup_by_round": ratios}
    plain_losses, plain_nats = training["plain"][0]["losses"], out["scoring"]["plain"]["nats"]
    for side in SIDES["training"][1:]:
        losses = zip(training[side][0]["losses"], plain_losses, strict=True)
        out["training"][side]["largest_relative_loss_difference"] = max(
            abs(x - y) / y for x, y in losses
        )
    out["scoring"]["ours"]["relative_difference"] = (
        abs(out["scoring"]["ours"]["nats"] - plain_nats) / plain_nats
    )
    return out


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.2), layout="constrained", width_ratios=(3, 2)
    )
    colours = ("#2980b9", "#e67e22", "#7f8c8d")
    for row, side in enumerate(SIDES["training"]):
        at = 0.0
        for (piece, ms), colour in zip(
            result["training"][side]["pieces_ms"].items(), colours, strict=True
        ):
            left.barh(row, ms, left=at, color=colour, label=piece if row == 0 else None)
            at += ms
        left.text(
            at,
            row,
            f" {result['training'][side]['step_ms']:.0f} ms a step",
            va="center",
            fontsize=9,
        )
    for row, side in enumerate(SIDES["scoring"]):
        rate = result["scoring"][side]["window_tokens_per_s"]
        right.barh(row, rate, color="#27ae60")
        right.text(rate, row, f" {rate:,.0f}", va="center", fontsize=9)
    left.set(yticks=range(3), yticklabels=SIDES["training"], xlabel="training step, ms by piece")
    right.set(
        yticks=range(2), yticklabels=SIDES["scoring"], xlabel="scoring, window tokens per second"
    )
    right.xaxis.set_major_locator(ticker.MaxNLocator(3))
    for axis in (left, right):
        axis.margins(x=0.25)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def main(
    kind: str,
    doc: str,
    cfg_flags: list[str],
    steps: int,
    whole_steps: int,
    rounds: int,
    score_tokens: int,
) -> None:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=steps,
        help="per round, timed piece by piece; the first two do not count",
    )
    parser.add_argument(
        "--whole-steps",
        type=int,
        default=whole_steps,
        help="per round, timed without waiting between pieces",
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--score-tokens", type=int, default=score_tokens)
    parser.add_argument(
        "--artifact",
        type=Path,
        help="trained weights for the artifact's bytes; default: random ones",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--flags", default="", help="more of train_gpt.py's flags, in one string")
    parser.add_argument("--part", choices=("training", "scoring"), help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES["training"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 3 or min(args.whole_steps, args.rounds) < 1:
        parser.error("expected at least 3 steps, 1 whole step and 1 round")
    cfg, _ = tg.parse_config([*cfg_flags, *args.flags.split()], {})
    environ = (
        {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
        if "OMP_NUM_THREADS" in os.environ
        else {}
    )
    if args.part and args.side == "plain":  # no allocator settings on the plain side
        tg.reuse_memory = lambda: None
    with tg.runtime(environ) as rt:
        if rt.device.type != kind:
            sys.exit(
                f"error: expected a {kind} device, found {rt.device.type}; run bench/{'gpu' if rt.device.type == 'cuda' else 'cpu'}.py here"
            )
        if args.part == "training":
            print(json.dumps(measure_training(args.side, cfg, rt, args.steps, args.whole_steps)))
            return
        if args.part == "scoring":
            print(json.dumps(measure_scoring(args.side, cfg, rt, args.score_tokens)))
            return
        dtypes = {side: dtype_of(side, cfg, rt.device) for side in SIDES["training"]}
        of_dtype = {dtype: peak_flops(rt, dtype) for dtype in set(dtypes.values())}
        peaks = {side: (dtype, of_dtype[dtype]) for side, dtype in dtypes.items()}
        artifact = measure_artifact(cfg, rt, args.artifact)
    runs: dict[str, dict[str, list[dict]]] = {
        part: {side: [] for side in sides} for part, sides in SIDES.items()
    }
    jobs = [
        (part, side) for part, sides in SIDES.items() for _ in range(args.rounds) for side in sides
    ]
    for part, side in tqdm(jobs, desc="measurements"):
        runs[part][side].append(child(part, side))
    result = summary(runs["training"], runs["scoring"], cfg, peaks) | {"artifact": artifact}
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    device = (
        torch.cuda.get_device_name()
        if kind == "cuda"
        else next(
            (
                x.split(":")[1].strip()
                for x in Path("/proc/cpuinfo").read_text().splitlines()
                if x.startswith("model name")
            ),
            platform.processor(),
        )
    )
    result["environment"] = {
        "device": device,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }
    result["config"] = {
        "flags": " ".join([*cfg_flags, args.flags]).strip(),
        "batch_tokens": cfg.train_batch_tokens,
        "peak_flops": {str(dtype).removeprefix("torch."): peak for dtype, peak in of_dtype.items()},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    name = "cpu" if kind == "cpu" else "gpu"
    tg.write_atomically(args.out / f"{name}.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(result, args.out / f"{name}.png")
    print(json.dumps(result, indent=1))
