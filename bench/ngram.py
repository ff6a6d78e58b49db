"""N-gram mixing, measured: `python bench/ngram.py --artifact A` writes bench/results/ngram.json and ngram.png.

On one validation stream in one run: the model alone; the published hashed estimator at shrinking tables, with the sums of its
"probabilities"; exact counts under the published entropy sigmoid; exact counts under the Bayesian gate, ablated by feature and by order.
Then speed on training tokens: exact against the hashed chunk loop at the same orders, growth with length, peak memory."""

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from hashed_ngram import HashedConfig, hashed_mix, vocabulary_sums  # noqa: E402
from speed import peak_memory  # noqa: E402

import train_gpt as tg  # noqa: E402

TABLE_BITS = (22, 20, 18, 16, 14, 12)
ORDERS = (0, 2, 3, 4, 6, 8, 11, 12, 16, 24)
FEATURES = ("RECENT_EDGES", "ENTROPY_EDGES", "CONFIDENCE_EDGES", "CONTINUATION_EDGES")
COUNT_EDGES = (
    1.5,
    3.5,
    8.5,
    32.5,
)  # of a feature that the gate could also have: visits of the longest match


def bits_per_byte(nll: torch.Tensor | np.ndarray, num_bytes: int) -> float:
    return float(nll.sum()) / math.log(2) / num_bytes


def published_sigmoid(scores: tg.StreamScores, stream: np.ndarray, cfg: tg.Config) -> torch.Tensor:
    """nll [M] of the exact chain under alpha = 0.05 + 0.55 sigmoid(2 (H - 4)) wherever any order matched."""
    tokens = torch.from_numpy(stream.astype(np.int64))
    p_model = torch.cat([scores.nll, scores.nll.new_zeros(1)]).neg().exp()
    p_chain, match = tg.ngram_chain(tokens, p_model, cfg.ngram_order, cfg.vocab_size)
    alpha = torch.where(match > 0, 0.05 + 0.55 * torch.sigmoid(2 * (scores.entropy - 4)), 0.0)
    return -torch.log((1 - alpha) * p_model + alpha * p_chain)[:-1]


def without(
    feature: str, scores: tg.StreamScores, stream: np.ndarray, cfg: tg.Config
) -> torch.Tensor:
    """nll [M] of the Bayesian gate with one feature's edges removed, so that it tells no buckets apart."""
    with mock.patch.object(tg, feature, ()):
        return tg.final_scores(scores, stream, cfg)[0]


def with_visits(scores: tg.StreamScores, stream: np.ndarray, cfg: tg.Config) -> torch.Tensor:
    """nll [M] of the Bayesian gate whose buckets also tell apart how often the longest matching context was visited."""
    tokens = torch.from_numpy(stream.astype(np.int64))
    count = torch.zeros(len(tokens), dtype=torch.int32)

    def keep(n: int, at: torch.Tensor, visits: torch.Tensor, *_: torch.Tensor) -> None:
        count[at[visits > 0]] = visits[visits > 0]

    tg.context_counts(tokens, cfg.ngram_order, cfg.vocab_size, keep)
    finer, plain = (
        torch.bucketize(
            count.double(), torch.tensor(COUNT_EDGES, dtype=torch.float64), out_int32=True
        ),
        tg.gate_buckets,
    )

    def buckets(*args) -> tuple[torch.Tensor, int]:
        bucket, size = plain(*args)
        return bucket * (len(COUNT_EDGES) + 1) + finer, size * (len(COUNT_EDGES) + 1)

    with mock.patch.object(tg, "gate_buckets", buckets):
        return tg.final_scores(scores, stream, cfg)[0]


def measure_scores(
    scores: tg.StreamScores, stream: np.ndarray, cfg: tg.Config, num_bytes: int
) -> dict:
    count, vocab, rng = len(scores.nll), cfg.vocab_size, np.random.default_rng(0)
    out: dict = {
        "tokens": len(stream),
        "bytes": num_bytes,
        "vocab_size": vocab,
        "neural": bits_per_byte(scores.nll, num_bytes),
        "hashed": [],
    }
    model = scores.nll.numpy(), scores.entropy.numpy()[:count], scores.confidence.numpy()[:count]
    sampled = np.sort(rng.choice(np.arange(count // 2, count), min(200, count // 4), replace=False))
    for bits in tqdm(TABLE_BITS, desc="hashed tables"):
        started = time.perf_counter()
        nll, tables = hashed_mix(stream, *model, HashedConfig(buckets=1 << bits))
        seconds = time.perf_counter() - started
        sums, orders = vocabulary_sums(tables, stream, sampled, vocab)
        matched = sums[orders > 0]
        row = {
            "buckets": 1 << bits,
            "claimed_bpb": bits_per_byte(nll, num_bytes),
            "seconds": seconds,
            "matched": len(matched) / len(sums),
        }
        out["hashed"].append(
            row
            | {
                f"sum_{name}": float(f(matched))
                for name, f in (("median", np.median), ("mean", np.mean), ("max", np.max))
            }
        )
    out["exact_sigmoid"] = bits_per_byte(published_sigmoid(scores, stream, cfg), num_bytes)
    started = time.perf_counter()
    out["exact_bayes"] = bits_per_byte(tg.final_scores(scores, stream, cfg)[0], num_bytes)
    out["exact_seconds"], out["default_order"] = time.perf_counter() - started, cfg.ngram_order
    out["without"] = {
        f.removesuffix("_EDGES").lower(): bits_per_byte(without(f, scores, stream, cfg), num_bytes)
        for f in tqdm(FEATURES, desc="ablations")
    }
    out["with_visits"] = bits_per_byte(with_visits(scores, stream, cfg), num_bytes)
    by_order = (
        (n, tg.final_scores(scores, stream, dataclasses.replace(cfg, ngram_order=n))[0])
        for n in tqdm(ORDERS, desc="orders")
    )
    out["by_order"] = {str(n): bits_per_byte(nll, num_bytes) for n, nll in by_order}
    out["gain_over_neural"] = 1 - out["exact_bayes"] / out["neural"]
    out["gain_over_sigmoid"] = 1 - out["exact_bayes"] / out["exact_sigmoid"]
    return out


def time_exact(tokens: np.ndarray, vocab: int, order: int) -> dict:
    """Seconds and peak memory above the inputs (None where start-up took more) of one mix over `tokens`, with a made-up model; for a process of its own."""
    rng = np.random.default_rng(0)
    nll, entropy, confidence = (
        torch.from_numpy(rng.gamma(2.0, 1.5, len(tokens))) for _ in range(3)
    )
    scores, cfg = (
        tg.StreamScores(nll[:-1], entropy, confidence, {}),
        dataclasses.replace(tg.Config(), vocab_size=vocab, ngram_order=order),
    )
    few = min(5000, len(tokens))  # first calls load kernels
    tg.final_scores(
        tg.StreamScores(nll[: few - 1], entropy[:few], confidence[:few], {}), tokens[:few], cfg
    )
    before, started = peak_memory(), time.perf_counter()
    tg.final_scores(scores, tokens, cfg)
    seconds = time.perf_counter() - started
    peak = (peak_memory() - before) / len(tokens)
    return {
        "tokens": len(tokens),
        "seconds": seconds,
        "us_per_token": 1e6 * seconds / len(tokens),
        "peak_bytes_per_token": peak or None,
    }


def time_hashed(tokens: np.ndarray, order: int) -> dict:
    """Seconds of the published estimator's chunk loop over `tokens`, with a made-up model; for a process of its own."""
    rng = np.random.default_rng(0)
    model = [rng.gamma(2.0, 1.5, len(tokens) - 1) for _ in range(3)]
    few = min(5000, len(tokens))
    hashed_mix(tokens[:few], *(m[: few - 1] for m in model), HashedConfig(n_max=order))
    started = time.perf_counter()
    hashed_mix(tokens, *model, HashedConfig(n_max=order))
    return {"tokens": len(tokens), "seconds": time.perf_counter() - started}


def measure_speed(train: np.ndarray, lengths: list[int], dataset: Path) -> dict:
    """Every figure from a fresh process, as an evaluation is one; the two sides in turns."""

    def child(side: str, n: int) -> dict:
        command = [sys.executable, __file__, "--dataset", str(dataset), f"--time-{side}", str(n)]
        return json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )

    rounds = [[child("exact", n) for n in lengths] for _ in tqdm(range(3), desc="lengths")]
    middle = [sorted(runs, key=lambda run: run["seconds"])[1] for runs in zip(*rounds, strict=True)]
    out: dict = {"orders": "2-11", "exact": middle}
    n, seconds = min(1_000_000, len(train)), {"exact": [], "hashed": []}
    for _ in tqdm(range(5), desc="side by side"):
        for side, runs in seconds.items():
            runs.append(child(side, n)["seconds"])
    exact, hashed = (statistics.median(runs) for runs in seconds.values())
    out["side_by_side"] = {
        "tokens": n,
        "exact_seconds": exact,
        "hashed_seconds": hashed,
        "speedup": hashed / exact,
        "runs": seconds,
    }
    out["growth"] = out["exact"][-1]["us_per_token"] / out["exact"][0]["us_per_token"]
    return out


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    rows = sorted(result["hashed"], key=lambda row: row["buckets"])
    axis.plot(
        [r["buckets"] for r in rows],
        [r["claimed_bpb"] for r in rows],
        "o-",
        color="#c0392b",
        label="hashed tables, claimed (not a probability)",
    )
    for r in rows:
        axis.annotate(
            f"Σp ≈ {r['sum_median']:.0f}",
            (r["buckets"], r["claimed_bpb"]),
            textcoords="offset points",
            xytext=(4, -14),
            color="#c0392b",
            fontsize=8,
        )
    lines = (
        ("neural", "model alone", "#7f8c8d", ":"),
        ("exact_sigmoid", "exact counts, published sigmoid", "#2980b9", "--"),
    )
    for key, label, colour, style in (
        *lines,
        ("exact_bayes", "exact counts, Bayesian gate (Σp = 1)", "#27ae60", "-"),
    ):
        axis.axhline(
            result[key], color=colour, linestyle=style, label=f"{label}: {result[key]:.4f}"
        )
    axis.set(
        xscale="log",
        xlabel="buckets per table (smaller table, more collisions, better “score”)",
        ylabel="bits per byte",
    )
    axis.set_ylim(0, None)
    axis.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--artifact", type=Path, help="a model of train_gpt.py")
    parser.add_argument("--dataset", type=Path, default=ROOT / "data/datasets/docs_sp1024")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results")
    parser.add_argument(
        "--limit", type=int, default=0, help="first tokens of the validation stream only; 0 = all"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[100_000, 1_000_000, 8_000_000])
    parser.add_argument("--time-exact", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--time-hashed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    manifest = json.loads((args.dataset / "manifest.json").read_text())
    vocab = manifest["tokenizer"]["vocab_size"]
    train, val = (
        np.concatenate(
            [tg.open_shard(args.dataset / f["name"]) for f in manifest["splits"][s]["files"]]
        )
        for s in ("train", "val")
    )
    if args.time_exact:
        with tg.runtime({}):
            print(json.dumps(time_exact(train[: args.time_exact], vocab, 11)))
        return
    if args.time_hashed:
        print(json.dumps(time_hashed(train[: args.time_hashed], 11)))
        return
    if args.artifact is None:
        parser.error("--artifact: expected a model of train_gpt.py; train one with `make record`")
    stream = val[: args.limit] if args.limit else val
    with tg.runtime({}) as rt:
        model, cfg, _ = tg.load_artifact(args.artifact, rt)
        scores = tg.score_streams(model, [stream], cfg, rt)[0]
    val_bytes = round(manifest["splits"]["val"]["source_bytes"] * len(stream) / len(val))
    result = measure_scores(scores, stream, cfg, val_bytes)
    result["speed"] = measure_speed(train, args.lengths, args.dataset)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    result["environment"] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "commit": commit,
    }
    result["dataset"] = {"name": manifest["name"], "version": manifest["version"]}
    args.out.mkdir(parents=True, exist_ok=True)
    tg.write_atomically(args.out / "ngram.json", (json.dumps(result, indent=1) + "\n").encode())
    draw(result, args.out / "ngram.png")
    print(
        json.dumps(
            {k: v for k, v in result.items() if k not in ("hashed", "environment")}, indent=1
        )
    )


if __name__ == "__main__":
    try:
        main()
    except tg.UserError as error:
        sys.exit(f"error: {error}")
