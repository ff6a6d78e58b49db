"""N-gram mixing, measured: `python bench/ngram.py --artifact A`.

It writes bench/results/ngram.json and ngram.png. On one validation stream in one run:

  * the model alone
  * the published hashed estimator at shrinking tables, with the sums of its "probabilities"
  * exact counts under the published entropy sigmoid
  * exact counts under the Bayesian gate, ablated by feature and by order

Then speed on training tokens: exact counts against the hashed chunk loop at the same orders,
growth with length, peak memory.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train_gpt as tg
from bench.machine import RESULTS, ROOT, software, write_json
from bench.mixing.picture import draw
from bench.mixing.scores import Scored, measure_scores
from bench.mixing.speed import Plan, measure_speed, run_child, time_exact, time_hashed


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--artifact",
        type=Path,
        help="a model that this train_gpt.py exported; a record's belongs to its own script",
    )
    parser.add_argument("--dataset", type=Path, default=ROOT / "data/datasets/docs_sp1024")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--limit", type=int, default=0, help="first tokens of the validation stream only; 0 = all"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[100_000, 1_000_000, 8_000_000])
    parser.add_argument("--length-rounds", type=int, default=3, help="timings of each length")
    parser.add_argument("--rounds", type=int, default=5, help="timings side by side")
    parser.add_argument("--time-exact", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--time-hashed", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def score_validation(args: argparse.Namespace, manifest: dict) -> Scored:
    """Of the model in --artifact. Raises UserError for one of another script."""
    val = tokens_of(args.dataset, "val")
    stream = val[: args.limit] if args.limit else val
    source_bytes = manifest["splits"]["val"]["source_bytes"]
    num_bytes = round(source_bytes * len(stream) / len(val))
    with tg.open_ranks({}) as ranks:
        artifact = tg.load_artifact(args.artifact)
        model = artifact.model.to(ranks.device)
        scores = tg.score_streams(model, [stream], artifact.cfg.scoring, ranks)[0]
    return Scored(stream, num_bytes, scores, artifact.cfg, ranks)


def tokens_of(dataset: Path, split: str) -> np.ndarray:
    manifest = tg.read_manifest(dataset)
    return np.concatenate(tg.open_shards(getattr(manifest, split)))


def measure(args: argparse.Namespace) -> None:
    manifest = json.loads((args.dataset / "manifest.json").read_text())
    result = measure_scores(score_validation(args, manifest))

    def child(side: str, length: int) -> dict:
        return run_child([__file__, "--dataset", str(args.dataset), f"--time-{side}", str(length)])

    plan = Plan(
        lengths=args.lengths,
        length_rounds=args.length_rounds,
        side_by_side_rounds=args.rounds,
        available=len(tokens_of(args.dataset, "train")),
    )
    result["speed"] = measure_speed(child, plan)
    result["environment"] = software()
    result["dataset"] = {"name": manifest["name"], "version": manifest["version"]}
    write_json(args.out / "ngram.json", result)
    draw(result, args.out / "ngram.png")
    shown = {key: value for key, value in result.items() if key not in ("hashed", "environment")}
    print(json.dumps(shown, indent=1))


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if min(args.rounds, args.length_rounds) < 1:
        parser.error("expected at least 1 round")
    try:
        if args.time_exact:
            tokens = tokens_of(args.dataset, "train")[: args.time_exact]
            vocab_size = tg.read_manifest(args.dataset).vocab_size
            with tg.open_ranks({}) as ranks:
                print(json.dumps(time_exact(tokens, vocab_size, ranks)))
        elif args.time_hashed:
            tokens = tokens_of(args.dataset, "train")[: args.time_hashed]
            print(json.dumps(time_hashed(tokens)))
        elif args.artifact is None:
            parser.error(
                "--artifact: expected a model of train_gpt.py; train one with `make record`"
            )
        else:
            measure(args)
    except tg.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
