"""What several runs of one script show together: bytes that follow no text, targets left out."""

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations

from eval.trial.canary.claims import Claim
from eval.trial.canary.readings import MOST_CUT, Interval
from eval.trial.canary.verdict import (
    INVALID,
    REMARK,
    SAME_MISCOUNT,
    VISIBLE_MISCOUNT,
    Finding,
    Judgement,
    is_per_byte,
    stated_ratio,
)

DIFFERENT_TEXT = 0.05  # relative difference of the bytes per token of two streams
UNEVEN = 0.05  # of the weight of a half: few targets are no fair sample of their half's bytes
# Sliding windows that are cut by the end of the stream may all score its last targets: together as
# many again as a sequence holds, and this is a long one.
MOST_REPEATED = 8192
LEAST_CONTRAST = 0.5  # bytes per target between the halves, to tell them apart
FEWEST_DECIMALS = 6  # of a number that shows one byte more or less in a usual stream
HALVES, SWAPPED, OTHER_REST = "halves", "halves-swapped", "halves-other-rest"


def judge_together(runs: Mapping[str, Judgement], shortened: Collection[str] = ()) -> list[Finding]:
    """Findings that need several runs of one script, by the name of their source.

    The runs were made with one seed and equal settings. `shortened` names the sources whose run was
    stopped, or had less time or fewer targets for its evaluation than the script's own settings
    give: there the referee itself may be why a part was not scored, and nothing is refuted."""
    coverage = [*_rest_without_weight(runs, shortened), *_uneven_halves(runs, shortened)]
    return [*_wrong_scale(runs), *coverage]


def closing_pairs(run: Judgement | None) -> dict[str, Claim]:
    """The scores after training that state both numbers, by label."""
    if run is None:
        return {}
    return {claim.label: claim for claim in run.claims if claim.has_both and claim.step is None}


# --- Bytes ---


def _wrong_scale(runs: Mapping[str, Judgement]) -> Iterator[Finding]:
    """Bytes per token that are a constant, or the true ones times a constant.

    A tokenizer of the script's own would give each stream another factor."""
    miscounting = [
        run for run in runs.values() if run.readings is not None and not run.script_counts_bytes
    ]
    for one, other in combinations(miscounting, 2):
        true = [run.readings.whole.bytes_per_target for run in (one, other)]
        if abs(true[0] / true[1] - 1) < DIFFERENT_TEXT:
            continue
        found = _common_scale(closing_pairs(one), closing_pairs(other), true)
        if found is not None:
            yield found
            return


def _common_scale(
    pairs: dict[str, Claim], others: dict[str, Claim], true: list[float]
) -> Finding | None:
    for label in pairs.keys() & others.keys():
        stated = [stated_ratio(pairs[label]), stated_ratio(others[label])]
        if any(is_per_byte(ratio) for ratio in stated):
            continue
        if _overlap(*stated):
            what = f"{stated[0].middle:.4f} bytes per token whatever the text"
            return Finding("bytes", INVALID, what, pairs[label].text)
        factors = [_divided(*pair) for pair in zip(stated, true, strict=True)]
        excess = factors[0].middle - 1
        if _overlap(*factors) and excess > VISIBLE_MISCOUNT:
            what = f"{excess:+.2%} bytes whatever the text"
            return Finding("bytes", INVALID, what, pairs[label].text)
    return None


def _divided(ratio: Interval, by: float) -> Interval:
    return Interval(ratio.low / by, ratio.high / by)


def _overlap(one: Interval, other: Interval) -> bool:
    a, b = one.widened(SAME_MISCOUNT), other.widened(SAME_MISCOUNT)
    return a.low <= b.high and b.low <= a.high


# --- Coverage ---


def _rest_without_weight(
    runs: Mapping[str, Judgement], shortened: Collection[str]
) -> Iterator[Finding]:
    """A score that stays the same to its last digit though half of the text is another.

    Even of a network that has learned nothing, the bits per byte must follow the bytes. Where both
    rests happen to have the same number of bytes, nothing can be said."""
    run, other_run = runs.get(HALVES), runs.get(OTHER_REST)
    pairs, others = closing_pairs(run), closing_pairs(other_run)
    if not (pairs and others) or run.readings.whole.bytes == other_run.readings.whole.bytes:
        return
    is_own = not {HALVES, OTHER_REST} & set(shortened)
    for label in pairs.keys() & others.keys():
        claim, other = pairs[label], others[label]
        same = claim.bpb == other.bpb and claim.loss == other.loss
        if same and claim.bpb.decimals >= FEWEST_DECIMALS:
            what = "the same score to the last digit with another second half: it is not scored"
            yield Finding("coverage", INVALID if is_own else REMARK, what, claim.text)
            return


def _uneven_halves(runs: Mapping[str, Judgement], shortened: Collection[str]) -> Iterator[Finding]:
    """The weight of each half, from the bytes per target of what was scored.

    The last score after training decides; an earlier one may be a look at a part."""
    run = runs.get(HALVES)
    pairs = closing_pairs(run)
    if not pairs:
        return
    elsewhere = _labels_that_fit(runs)
    swapped = closing_pairs(runs.get(SWAPPED))
    last = list(pairs)[-1]
    for label, claim in pairs.items():
        weight = _weight_of_the_first_half(run, claim)
        if weight is None or _may_be_whole(weight, run.readings.targets):
            continue
        by_place = label in swapped and _follows_place(weight, runs[SWAPPED], swapped[label])
        if label not in elsewhere and not by_place:
            continue
        verdict = INVALID if label == last and HALVES not in shortened else REMARK
        what = f"the first half of the targets has {weight:.0%} of the weight"
        yield Finding("coverage", verdict, what, claim.text)


def _may_be_whole(weight: float, targets: int) -> bool:
    """Whether the first half may weigh so much although nothing but an end was left out.

    The last targets may count again, and the first or the last window may be missing."""
    half = targets / 2
    cut = min(MOST_CUT, targets / 4)
    low = min(half / (targets + MOST_REPEATED), (half - cut) / (targets - cut))
    high = half / (targets - cut)
    return low - UNEVEN <= weight <= high + UNEVEN


def _labels_that_fit(runs: Mapping[str, Judgement]) -> set[str]:
    """Labels of scores whose bytes are right on some stream that is alike from end to end."""
    found = set()
    for source, run in runs.items():
        if source in (HALVES, SWAPPED, OTHER_REST) or run.readings is None:
            continue
        for label, claim in closing_pairs(run).items():
            homogeneous = stated_ratio(claim).widened(UNEVEN)
            if homogeneous.holds(run.readings.whole.bytes_per_target):
                found.add(label)
    return found


def _weight_of_the_first_half(run: Judgement, claim: Claim) -> float | None:
    """Between 0 and 1; None where the ratio is not between those of the halves.

    Nor where these are alike, as for a byte-level vocabulary."""
    middle = run.readings.targets // 2
    first = run.readings.between(0, middle).bytes_per_target
    second = run.readings.between(middle, run.readings.targets).bytes_per_target
    if abs(second - first) < LEAST_CONTRAST:
        return None
    weight = (second - stated_ratio(claim).middle) / (second - first)
    return weight if -UNEVEN <= weight <= 1 + UNEVEN else None


def _follows_place(weight: float, swapped: Judgement, claim: Claim) -> bool:
    """Whether the first half has the same weight when short and long pieces change places.

    A wrong count of bytes would follow the pieces."""
    other = _weight_of_the_first_half(swapped, claim)
    return other is not None and abs(weight - other) < UNEVEN
