"""The contest's hashed n-gram estimator, as bench/ implements it, wrapped as a submission.

The referee rejects it and names the sum that its distribution reaches.
"""

import shutil
import sys
from pathlib import Path

import pytest
from sandbox_support import NEEDS_SANDBOX

from eval.rules import load_rules
from eval.trial.audit.audit import Options, audit_record

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
import build
from build import Workshop

ROOT = Path(__file__).parents[1]
FEW = {"pairs": 24, "tiny_pairs": 24, "dense_tokens": 256}

WRAPPER = '''


CFG = HashedConfig(buckets=1 << 12, chunk=4096)


def ratios_of_all_tokens(cache, tokens, t, vocab):
    """(longest order n whose context was seen often enough, ratio of each token after it)."""
    vocabulary = np.arange(vocab, dtype=np.uint64)
    keys = cache.keys(tokens, t, t + 1)
    for n, (_, context_keys, hashes) in sorted(keys.items(), reverse=True):
        contexts, pairs = cache.tables[n]
        count = contexts[context_keys[0]]
        if count >= CFG.min_count:
            pair_keys = cache.pair_keys(np.repeat(hashes, vocab), vocabulary, n)
            return n, np.minimum(pairs[pair_keys], count) / count
    return None, None


def score_stream(model, x, probes):
    """The estimator over the static model.

    Its rows are what it gives when asked for every token in turn, as nobody ever asked it."""
    p, rows = static(model, x, probes)
    entropy = -(model.bigram * np.log(model.bigram)).sum(1)
    tokens = np.append(x, 0).astype(np.uint64)
    cache = HashedNgram(CFG)
    for start in range(1, len(x) + 1, CFG.chunk):
        stop = min(len(x), start + CFG.chunk)
        for k in np.flatnonzero((probes + 1 >= start) & (probes + 1 < start + CFG.chunk)):
            t = int(probes[k]) + 1
            n, ratio = ratios_of_all_tokens(cache, tokens, t, model.vocab)
            if n is not None:
                a = cache.alpha(np.array([n]), entropy[x[t - 1 : t]], np.ones(1))
                rows[k] = (1 - a) * rows[k] + a * ratio
        if stop > start:
            keys = cache.keys(tokens, start, stop)
            ratio, matched = cache.estimate(tokens, start, stop, keys)
            a = cache.alpha(matched, entropy[x[start - 1 : stop - 1]], np.ones(stop - start))
            p[start - 1 : stop - 1] = (1 - a) * p[start - 1 : stop - 1] + a * ratio
            cache.update(tokens, keys)
    return p, rows
'''


@NEEDS_SANDBOX
def test_the_published_estimator_is_no_probability(tmp_path, monkeypatch):
    estimator = ROOT / "bench" / "hashed_ngram.py"
    if not estimator.exists():
        pytest.skip(f"{estimator} is not here")
    submissions = tmp_path / "submissions"
    (submissions / "invalid").mkdir(parents=True)
    shutil.copyfile(build.SUBMISSIONS / "base.py", submissions / "base.py")
    published = submissions / "invalid" / "published.py"
    published.write_text(estimator.read_text() + WRAPPER)
    monkeypatch.setattr(build, "SUBMISSIONS", submissions)
    shop = Workshop(tmp_path)
    folder = shop.record("invalid/published")
    options = Options(
        dataset=shop.corpus.dataset,
        only=("normalisation", "canary", "future"),
        random_seed=1,
        profile=load_rules().profile["quick"].model_copy(update=FEW),
    )
    report = audit_record(folder, options)
    normalisation = report["normalisation"]
    assert normalisation.verdict == report["canary"].verdict == "INVALID", report
    assert normalisation.figures["largest_sum"] > 2
    assert any("sum 1 ±" in finding.expected for finding in normalisation.findings)
    assert report["canary"].figures["evidence_bits"] > 1000
