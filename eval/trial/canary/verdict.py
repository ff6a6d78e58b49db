"""Judges what a script printed against what the stream costs.

No code spends fewer than the entropy on average, and the chance of saving more than b bits is at
most 2^-b. A claim is refuted where it saves more than 40 bits after everything that is uncertain
has been taken off: the rounding of the printed digits, the noise of the arithmetic, the way in
which the script may have weighed the targets, and the number of claims of the run. Nothing is
proved by a claim that is not refuted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from eval.trial.canary.claims import Claim, Claims, Printed, read_claims
from eval.trial.canary.miscounts import wrong_counts
from eval.trial.canary.readings import UNKNOWN_HEAVIEST, Interval, Reading, Readings
from eval.trial.canary.results import NO_WORDS, OwnWords, Results
from eval.trial.canary.sources import Known, Source
from eval.trial.canary.tokenizers import BYTE_LEVEL, Tokenizer

LN2 = math.log(2.0)
ALLOWED_BITS = 40.0
# A script may add the sums of its batches one by one in float32: each addition rounds by at most
# half of 2^-23, and the sum grows from 0 to its end.
FEWEST_TOKENS_ADDED = 32  # at once
FLOAT32_ROUNDING = 2.0**-24
BFLOAT16_ROUNDING = 2.0**-9  # a mean loss of each batch, on a GPU
SAME_RATIO = 1e-6  # relative; sums of bytes and tokens are whole numbers, nearly always exact
SAME_MISCOUNT = 2e-4  # relative; a wrong count is computed for the whole stream
VISIBLE_MISCOUNT = 1e-3  # relative; a smaller difference is a reading that nobody listed
MOST_REFUTATIONS = 20  # of one run that are named
LONGEST_PIECE = 16  # bytes; a tokenizer of the script's own may have longer ones, no mean of them
UNTRAINED = (0.7, 1.3)  # times ln V: losses in nats per token, of small networks trained briefly

INVALID, CONSISTENT, NOT_RUN, REMARK = "INVALID", "CONSISTENT", "NOT RUN", "REMARK"


@dataclass(frozen=True)
class Finding:
    """`theme` is entropy, bytes, coverage or scores; `verdict` INVALID or REMARK.

    `line` is what was printed.

    `bits` below the entropy, of a finding of the entropy: the number that is certain."""

    theme: str
    verdict: str
    what: str
    line: str = ""
    bits: float | None = None


@dataclass(frozen=True)
class Judged:
    """A claim, the unit it is judged in, and the evidence.

    `unit` is `nats/token` or `bits/byte`. `claimed` and `needed` in that unit. `bits_below`: by how
    much less is claimed than needed for the whole stream, negative where it is more.
    `certain_bits`: the same after all that is uncertain, so that the chance is at most 2 to its
    negative."""

    claim: Claim
    reading: str
    unit: str
    claimed: float
    needed: float
    bits_below: float
    certain_bits: float


@dataclass
class Judgement:
    """What one run shows. `script_counts_bytes`: some claim fits the bytes of the stream."""

    source: str
    verdict: str
    claims: tuple[Claim, ...] = ()
    judged: list[Judged] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    set_aside: tuple[str, ...] = ()
    readings: Readings | None = None
    script_counts_bytes: bool = False

    @property
    def lowest(self) -> Judged | None:
        """A refuted claim where there is one; of those, the furthest below the entropy."""
        return max(self.judged, key=refuted_then_low, default=None)


def certain_bits(judged: Judged) -> float:
    return judged.certain_bits


def refuted_then_low(score: Judged) -> tuple[bool, float]:
    """Order of claims by what they show; also of the lines of a report."""
    return score.certain_bits > ALLOWED_BITS, score.bits_below


def judge_run(
    text: str,
    stream: Known,
    source: Source,
    tokenizer: Tokenizer,
    own: OwnWords = NO_WORDS,
    device: str = "cpu",
) -> Judgement:
    """The verdict on what a script printed when its validation set was `stream`.

    Numbers of the script's `own` text are no measurements. `device` is `cpu`, where all is
    float32, or `cuda`."""
    claims = read_claims(text, own.script, own.results.labels)
    if not claims.scores:
        return Judgement(source.name, NOT_RUN, set_aside=claims.set_aside)
    case = _Case(claims, stream, tokenizer, device)
    judged = case.judged()
    findings = [*_refutations(judged), *case.byte_findings(), *_missing(claims, own.results)]
    refuted = any(finding.verdict == INVALID for finding in findings)
    return Judgement(
        source=source.name,
        verdict=INVALID if refuted else CONSISTENT,
        claims=claims.scores,
        judged=judged,
        findings=findings,
        set_aside=claims.set_aside,
        readings=case.readings,
        script_counts_bytes=case.script_counts_bytes,
    )


def _refutations(judged: list[Judged]) -> Iterator[Finding]:
    refuted = [one for one in judged if one.certain_bits > ALLOWED_BITS]
    worst = sorted(refuted, key=certain_bits, reverse=True)[:MOST_REFUTATIONS]
    for one in refuted:
        if one in worst:
            yield below_the_entropy(one)
    if len(refuted) > len(worst):
        more = f"{len(refuted) - len(worst):,} more scores are below the entropy"
        yield Finding("scores", REMARK, more)


def _missing(claims: Claims, results: Results) -> Iterator[Finding]:
    """What was not judged and might have told more."""
    if claims.left_out:
        what = (
            f"of {claims.left_out + len(claims.scores):,} scores only the lowest and the last "
            f"{len(claims.scores):,} were judged"
        )
        yield Finding("scores", REMARK, what)
    if not results.are_among(claims.scores):
        what = "the line that carries the record's own score was not printed or not judged"
        yield Finding("scores", REMARK, what, results.line)


def below_the_entropy(judged: Judged) -> Finding:
    what = (
        f"{judged.claimed:.8g} {judged.unit} claimed, {judged.needed:.8g} needed "
        f"({judged.reading}): {judged.bits_below:,.0f} bits below the entropy; "
        f"the chance is at most 2^-{judged.certain_bits:,.0f}"
    )
    return Finding("entropy", INVALID, what, judged.claim.text, judged.certain_bits)


@dataclass(frozen=True)
class Fit:
    """The readings that a claim's ratio allows. `nats_per_loss`: ln 2 for losses in bits."""

    nats_per_loss: float
    readings: list[Reading]


class _Case:
    """The claims of one run beside its stream."""

    def __init__(self, claims: Claims, known: Known, tokenizer: Tokenizer, device: str):
        self.claims = claims
        self.known = known
        self.tokenizer = tokenizer
        self.readings = Readings(known, tokenizer.byte_counts(known.tokens))
        self.noise = known.targets / FEWEST_TOKENS_ADDED / 2 * FLOAT32_ROUNDING
        if device != "cpu":
            self.noise += BFLOAT16_ROUNDING
        self.wrong_counts = tuple(wrong_counts(known, tokenizer))
        self.fits = {claim: self._fit(claim) for claim in claims.scores}
        self.script_counts_bytes = any(map(self._counts_bytes, claims.scores))

    # --- Which targets, in which unit ---

    def _fit(self, claim: Claim) -> Fit | None:
        """What a claim's own numbers allow; None where they state no ratio or an unknown one."""
        if not claim.has_both:
            return None
        ratio = stated_ratio(claim)
        in_nats = self.readings.fitting(ratio)
        if in_nats:
            return Fit(1.0, in_nats)
        ratio_in_bits = Interval(ratio.low * LN2, ratio.high * LN2)
        in_bits = [one for one in self.readings.plain if ratio_in_bits.holds(one.bytes_per_target)]
        return Fit(LN2, in_bits) if in_bits else None

    def _counts_bytes(self, claim: Claim) -> bool:
        """Whether a claim's ratio is that of the stream, to the few digits that were printed."""
        if self.fits[claim] is not None:
            return True
        if not claim.has_both:
            return False
        nearly = stated_ratio(claim).widened(VISIBLE_MISCOUNT / 2)
        truth = self.readings.whole.bytes_per_target
        few_digits = nearly.high - nearly.low > 4 * VISIBLE_MISCOUNT * truth
        return not few_digits and bool(nearly.holds(truth))

    def _losses_are_nats_per_token(self) -> bool:
        """Seen by another claim's ratio, or by a loss near that of a network without training."""
        if self.script_counts_bytes:
            return True
        untrained = math.log(self.tokenizer.vocab_size)
        losses = list(self.claims.training_losses)
        losses += [claim.loss.value for claim in self.claims.scores if claim.loss is not None]
        low, high = UNTRAINED
        return any(low * untrained <= loss <= high * untrained for loss in losses)

    # --- Evidence ---

    def judged(self) -> list[Judged]:
        found = []
        for claim in self.claims.scores:
            fit = self.fits[claim]
            if fit is not None:
                evidence = (self._by_reading(claim, fit, reading) for reading in fit.readings)
                found.append(min(evidence, key=certain_bits))
            else:
                found += self._without_reading(claim)
        return found

    def _without_reading(self, claim: Claim) -> Iterator[Judged]:
        """Loss and bpb each for itself: they may be of different quantities."""
        per_byte = claim.has_both and is_per_byte(stated_ratio(claim))
        if claim.loss is not None and not per_byte and self._losses_are_nats_per_token():
            yield self._by_loss(claim)
        # A ratio that nothing explains and that all claims share is the script's own way to count.
        alone = claim.loss is None or self.script_counts_bytes or per_byte
        if claim.bpb is not None and (alone or self._never_of_the_loss(claim)):
            yield self._by_bytes(claim)

    def _never_of_the_loss(self, claim: Claim) -> bool:
        """Whether so many bytes per target are in no text, in nats or in bits: two quantities."""
        longest = max(LONGEST_PIECE, int(self.tokenizer.table.counted.max()) + 1)
        return LN2 * stated_ratio(claim).low > longest

    def _by_reading(self, claim: Claim, fit: Fit, reading: Reading) -> Judged:
        claimed = claim.loss.value * fit.nats_per_loss
        most = self._most(claim.loss) * fit.nats_per_loss
        return Judged(
            claim=claim,
            reading=reading.what,
            unit="nats/token",
            claimed=claimed,
            needed=reading.nats_per_target,
            bits_below=(reading.nats - claimed * reading.targets) / LN2,
            certain_bits=self._certain(reading.nats - most * reading.targets, reading.heaviest),
        )

    def _by_loss(self, claim: Claim) -> Judged:
        """Which targets is not known: as if the cheapest part of the stream had been scored."""
        targets = self.known.targets
        needed = self.readings.cheapest_nats_per_target()
        saved = (needed - self._most(claim.loss)) * targets
        return Judged(
            claim=claim,
            reading="some of the targets, the cheapest",
            unit="nats/token",
            claimed=claim.loss.value,
            needed=needed,
            bits_below=(needed - claim.loss.value) * targets / LN2,
            certain_bits=self._certain(saved, UNKNOWN_HEAVIEST),
        )

    def _by_bytes(self, claim: Claim) -> Judged:
        """From bits per byte alone: as if the cheapest bytes had been scored."""
        counted = self.readings.whole.bytes
        needed = self.readings.cheapest_nats_per_byte()
        if self.tokenizer.vocab_size == BYTE_LEVEL:
            # Byte-level scripts may count BOS as a byte: bits per byte are then bits per target.
            needed = min(needed, self.readings.cheapest_nats_per_target())
        saved = (needed - self._most(claim.bpb) * LN2) * counted
        return Judged(
            claim=claim,
            reading="some of the bytes, the cheapest",
            unit="bits/byte",
            claimed=claim.bpb.value,
            needed=needed / LN2,
            bits_below=(needed / LN2 - claim.bpb.value) * counted,
            certain_bits=self._certain(saved, UNKNOWN_HEAVIEST),
        )

    def _most(self, printed: Printed) -> float:
        """The largest value that a printed number may stand for."""
        return (printed.value + printed.rounding) * (1 + self.noise)

    def _certain(self, saved_nats: float, heaviest: int) -> float:
        """Bits after the weights and the choice among the claims are taken off."""
        choices = len(self.claims.scores) + self.claims.left_out
        return float(saved_nats / heaviest / LN2 - math.log2(choices))

    # --- Bytes ---

    def byte_findings(self) -> list[Finding]:
        """Only where no claim of the run fits the bytes of the stream.

        Where one does, the script counts right, and another ratio is that of a bpb which was not
        computed from the loss beside it."""
        if self.script_counts_bytes:
            return []
        pairs = [claim for claim in reversed(self.claims.scores) if claim.has_both]
        pairs = [claim for claim in pairs if not is_per_byte(stated_ratio(claim))]
        explained: list[Finding] = []
        for claim in pairs:
            explained += self._explanations(claim)
        return explained[:1] or [self._unexplained(claim) for claim in pairs[:1]]

    def _explanations(self, claim: Claim) -> list[Finding]:
        truth = self.readings.whole.bytes_per_target
        stated = stated_ratio(claim).widened(SAME_MISCOUNT)
        findings = []
        for wrong in self.wrong_counts:
            excess = wrong.bytes_per_target / truth - 1
            if excess > VISIBLE_MISCOUNT and stated.holds(wrong.bytes_per_target):
                what = f"{wrong.how}: {excess:+.2%} bytes"
                findings.append(Finding("bytes", INVALID, what, claim.text))
        return findings

    def _unexplained(self, claim: Claim) -> Finding:
        what = (
            f"val_loss / val_bpb implies {stated_ratio(claim).middle:.4f} bytes per target, the "
            f"stream holds {self.readings.whole.bytes_per_target:.4f}: other targets, another "
            "tokenizer, or a bpb that is not of this loss"
        )
        return Finding("bytes", REMARK, what, claim.text)


def stated_ratio(claim: Claim) -> Interval:
    """Bytes per target that a claim's loss and bpb imply; the claim has both."""
    loss, bpb = claim.loss, claim.bpb
    low = (loss.value - loss.rounding) / ((bpb.value + bpb.rounding) * LN2)
    least_bpb = bpb.value - bpb.rounding
    high = (loss.value + loss.rounding) / (least_bpb * LN2) if least_bpb > 0 else math.inf
    return Interval(low, high).widened(SAME_RATIO)


def is_per_byte(ratio: Interval) -> bool:
    """Whether losses are nats or bits per byte: the ratio is the same whatever the text."""
    return bool(ratio.holds(1.0) or ratio.holds(1 / LN2))
