"""The log parser against both dialects and against every kind of damage that logs arrive with."""

import contextlib
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records_support import TRICKY_SOURCE, FakeRun, upstream_records

from eval.errors import UserError
from eval.papers.logs.log import Log
from eval.papers.logs.proof import data_of, environment_of, override_settings, seed_result
from eval.papers.logs.reading import parse_log
from eval.papers.logs.values import seconds

RUN = FakeRun(
    seed=42, overrides=("ngram_order=5", 'note="result val_loss:0.5 step:1/2 train_loss:9"')
)
HEAD = RUN.head()
BODY = RUN.body()


def parse(tmp_path, content: bytes) -> Log:
    path = tmp_path / "train.log"
    path.write_bytes(content)
    return parse_log(path)


def content_of(log: Log) -> dict:
    """All that a log says, without line numbers."""
    result = seed_result(log)
    if result is not None:
        result = result.model_copy(update={"log": None, "log_sha256": None})
    return {
        "facts": {name: fact.value for name, fact in log.facts.items()},
        "steps": [step._replace(line=0, text="") for step in log.steps],
        "overrides": sorted(log.overrides),
        "source": log.source,
        "result": result,
        "problems": log.problems,
    }


def joined(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture
def reference(tmp_path) -> dict:
    return content_of(parse(tmp_path, RUN.log()))


def test_native_log_is_read_completely(tmp_path):
    log = parse(tmp_path, RUN.log())
    assert log.native
    assert log.problems == []
    assert log.source == TRICKY_SOURCE.encode()
    assert log.seed == 42
    result = seed_result(log)
    assert (result.val_bpb, result.val_loss, result.nats) == (1.0, 1.38629436, 1386.294361)
    assert (result.scored_tokens, result.scored_bytes, result.steps) == (1000, 2000, 400)
    assert (result.train_s, result.eval_s, result.artifact_bytes) == (61.5, 4.25, 700)
    assert (result.neural_val_bpb, result.parameters) == (1.25, 123456)
    assert log.text("config.preset") == "docs_cpu"
    assert log.text("config.sha256") == "d" * 64
    assert override_settings(log) == [
        "ngram_order=5",
        'note="result val_loss:0.5 step:1/2 train_loss:9"',
    ]  # the seed is no override
    data = data_of(log)
    assert (data.corpus, data.train_tokens, data.val_tokens, data.val_bytes) == (
        "docs",
        9000,
        1001,
        2000,
    )
    environment = environment_of(log)
    assert environment.cpu == 'Test CPU "X" 3'
    assert environment.cuda is None
    assert (environment.gpus, environment.world_size) == (0, 1)
    assert [s.step for s in log.steps] == [*range(0, 401, 50), 400]
    assert (log.steps[1].train_s, log.steps[1].train_loss) == (7.5, 4.7778)
    assert log.steps[-1].val_loss == 2.9


def test_facts_point_at_their_lines(tmp_path):
    log = parse(tmp_path, RUN.log())
    lines = RUN.log().decode().split("\n")
    for fact in log.facts.values():
        assert lines[fact.line - 1] == fact.text
    assert log.facts["result.val_bpb"].line == len(lines) - 1  # the file ends with a newline


# --- damage that must not change what is read ---


def coloured(data: bytes) -> bytes:
    return b"\n".join(b"\x1b[1;32m" + line + b"\x1b[0m" for line in data.split(b"\n"))


def prefixed(data: bytes) -> bytes:
    return b"\n".join(b"[rank0]: " + line for line in data.split(b"\n"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.replace(b"\n", b"\r\n"),
        coloured,
        lambda d: coloured(d).replace(b"\n", b"\r\n"),
        prefixed,
        lambda d: coloured(prefixed(d)),
        lambda d: b"some launcher warning\n\x1b]0;title\x07another\n" + d,
        lambda d: d + b"\n[rank1]:[W318 14:38:18] Warning: destroy_process_group was not called\n",
        lambda d: d.rstrip(b"\n"),
        lambda d: d.replace(b"\nneural", b"\n 40%|####      | 4/10\r 50%|#####     | 5/10\rneural"),
    ],
    ids=[
        "crlf",
        "colour",
        "colour-crlf",
        "rank-prefix",
        "colour-prefix",
        "preamble",
        "epilogue",
        "no-final-newline",
        "progress-bar",
    ],
)
def test_damage_changes_nothing(tmp_path, reference, damage):
    assert content_of(parse(tmp_path, damage(RUN.log()))) == reference


@pytest.mark.parametrize("seed", range(12))
def test_order_of_lines_does_not_matter(tmp_path, reference, seed):
    body = BODY[:]
    random.Random(seed).shuffle(body)
    assert content_of(parse(tmp_path, HEAD + joined(body))) == reference


@pytest.mark.parametrize("seed", range(12))
def test_ranks_that_interleave(tmp_path, reference, seed):
    """Lines of other ranks between, repeated lines, and lines that lack their newline."""
    rng = random.Random(seed)
    noise = [
        "[rank3]:[W318 14:38:18.835 Utils.hpp:112] Warning: deprecated",
        "gptq_quantize: 66 layers",
        "[2026] ncclx NCCL WARN Call failed",
    ]
    body: list[str] = []
    for line in BODY:
        body += rng.sample(noise, rng.randint(0, 2))
        body += [line] * rng.choice([1, 1, 8])
    text = "\n".join(body) + "\n"
    for line in BODY:
        if line.startswith(("step:", "result ")) and rng.random() < 0.5:
            text = text.replace("\n" + line, line, 1)
    assert content_of(parse(tmp_path, HEAD + text.encode())) == reference


def test_a_line_cut_by_another_rank_keeps_its_first_half(tmp_path):
    line = next(line for line in BODY if line.startswith("step:100/"))
    cut = line.index("train_time")
    broken = f"{line[:cut]}[rank2]:[W318 1:2:3] warning\n{line[cut:]}"
    body = joined(BODY).replace(line.encode(), broken.encode())
    log = parse(tmp_path, HEAD + body)
    assert log.problems == []
    (step,) = [step for step in log.steps if step.step == 100]
    assert step.train_loss == 4.1429


# --- damage that must be reported ---


def test_every_truncation_is_noticed(tmp_path):
    whole = RUN.log()
    end = whole.index(b"\nresult val_loss", len(HEAD))
    for cut in [
        *range(0, len(HEAD), 97),
        *range(len(HEAD), end, 211),
        *range(end, len(whole) - 5, 3),
    ]:
        log = parse(tmp_path, whole[:cut])
        assert log.problems, f"cut at {cut} of {len(whole)} went unnoticed"
        # The seed is the last token: a result line without it is not used at all.
        assert log.seed is None
        assert not log.native or seed_result(log) is None


def test_contradictions_are_reported(tmp_path):
    other = FakeRun(seed=42, nats=1300.0)
    two_results = parse(tmp_path, RUN.log() + joined([other.result()]))
    assert any("result.val_bpb" in problem for problem in two_results.problems)
    step = next(line for line in BODY if line.startswith("step:100/"))
    twice = parse(tmp_path, RUN.log() + joined([step.replace("train_loss:4", "train_loss:5")]))
    complaint = "give different losses for step 100: more than one run"
    assert any(complaint in problem for problem in twice.problems)


def test_source_must_match_its_hash(tmp_path):
    broken = RUN.log().replace(b"math.exp", b"math.sin", 1)
    log = parse(tmp_path, broken)
    assert log.source is None
    assert any("embedded source is not" in problem for problem in log.problems)
    assert log.seed == 42  # the rest is still read, from behind the source, not from inside it
    unmarked = RUN.log().replace(b"===== source", b"===== sauce", 1)
    assert any("no embedded source" in p for p in parse(tmp_path, unmarked).problems)


@pytest.mark.parametrize("token", ["val_loss:nan", "val_loss:", "val_bpb:1,0", "steps:4.5"])
def test_malformed_result_is_no_result(tmp_path, token):
    name = token.split(":")[0]
    line = " ".join(token if part.startswith(name + ":") else part for part in BODY[-1].split(" "))
    log = parse(tmp_path, HEAD + joined([*BODY[:-1], line]))
    assert log.problems
    assert seed_result(log) is None


PUBLIC_RUN = b"""seed:1
1/2 train_loss: 3.0
stopping_early: x train_time:10ms step:2/2
final val_loss:1 val_bpb:0.5
"""


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 5000), st.booleans())
def test_no_bytes_make_the_parser_fail(tmp_path_factory, junk, position, native):
    whole = RUN.log() if native else PUBLIC_RUN
    place = position % len(whole)
    log = parse(tmp_path_factory.mktemp("junk"), whole[:place] + junk + whole[place:])
    for name in log.facts:
        log.number(name)
        log.integer(name)
    with contextlib.suppress(UserError):
        seed_result(log)


def test_missing_and_huge_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"train\.log: cannot be read"):
        parse_log(tmp_path / "train.log")
    with (tmp_path / "huge.log").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(UserError, match="at most 67,108,864 bytes"):
        parse_log(tmp_path / "huge.log")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1234ms", 1.234),
        ("0.8m", 48.0),
        ("508.8s", 508.8),
        ("12", 12.0),
        ("fast", None),
        ("", None),
    ],
)
def test_durations(text, value):
    assert seconds(text) == (pytest.approx(value) if value is not None else None)


# --- public logs ---

# Read off the files by eye, in the order of PUBLIC_FACTS, the number of step lines, the final bpb
# and the final loss.
PUBLIC_FACTS = (
    "result.seed",
    "model.parameters",
    "env.world_size",
    "data.val_tokens",
    "result.steps",
    "result.train_s",
    "result.code_bytes",
    "result.bytes_total",
)
PUBLIC = {
    "2026-03-17_NaiveBaseline/train.log": (
        (1337, 17059912, 8, 63779840, 13780, 600.038, 47642, 15863489),
        (355, 1.2243657, 2.07269931),
    ),
    "2026-03-20_PR187_EMA_Ngram/train.log": (
        (1337, 25254992, 8, 62021632, 9268, 600.031, 64223, 14942971),
        (67, 0.93933506, None),
    ),
    "2026-03-22_11L_EMA_GPTQ-lite_warmdown3500_QAT015_1.1233/train_seed42.log": (
        (42, 26993756, 8, 62021632, 7103, 600.059, 67603, 15540675),
        (27, 1.12360306, 1.89715168),
    ),
    "2026-03-29_Loader_FullGPTQ_XSA11_BigramHash2816/train_seed2025.log": (
        (2025, 27038812, 8, 62021632, 6703, 586.065, 96398, 15983626),
        (26, 1.11212378, 1.87776945),
    ),
    "2026-04-05_SP8192_GPTQ-Embeddings_SDClip_Loop45x2/train_seed42.log": (
        (42, 35943512, 8, 40540160, 4986, 588.136, 15516, 15988983),
        (17, 1.08664424, 2.80691494),
    ),
    "2026-04-27_SP8192_LQER_SparseGate_BOSSmearFix_9HpStack_1.0611/train_seed42.log": (
        (42, 35945671, 8, 47851520, 4945, 599.592, 157868, 15897259),
        (15, 1.05989454, 2.31944212),
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_public_logs_are_read(name):
    log = parse_log(upstream_records() / name)
    facts, closing = PUBLIC[name]
    assert tuple(log.number(fact) for fact in PUBLIC_FACTS) == facts
    assert (len(log.steps), log.final.val_bpb, log.final.val_loss) == closing
    assert log.problems == []
    assert seed_result(log).val_bpb == log.final.val_bpb


def test_public_environment_is_read():
    folder = upstream_records() / "2026-04-05_SP8192_GPTQ-Embeddings_SDClip_Loop45x2"
    log = parse_log(folder / "train_seed1.log")
    environment = environment_of(log)
    assert (environment.gpu, environment.gpus) == ("NVIDIA H100 80GB HBM3", 8)
    assert environment.torch == "2.11.0+cu130"
    assert environment.python == "3.10.12"
    assert environment.driver == "580.126.09"
    assert environment.cuda == "13.0"
    assert log.steps[6].train_s == pytest.approx(48.0)
    assert log.steps[0].val_bpb == 3.4878


@pytest.mark.parametrize(
    "damage",
    [lambda d: d.replace(b"\n", b"\r\n"), coloured, prefixed],
    ids=["crlf", "colour", "prefix"],
)
@pytest.mark.parametrize("name", PUBLIC)
def test_public_logs_survive_damage(tmp_path, name, damage):
    raw = (upstream_records() / name).read_bytes()
    assert content_of(parse(tmp_path, damage(raw))) == content_of(parse(tmp_path, raw))


DUMP = '''import math
# final_int8_zlib_roundtrip_exact val_loss:0.00000001 val_bpb:0.00000001
TEXT = """
====================================================================================================
seed:7
model_params:1
step:1/2 train_loss:0.1 train_time:1ms
final_exact val_loss:0.2 val_bpb:0.1
"""
def main(): pass
'''


RULER = "=" * 100
SHORT_LOG = """seed:3
model_params:5
step:1/9 train_loss:2.5 train_time:10ms
final val_loss:1.5 val_bpb:0.9
"""


@pytest.mark.parametrize(
    "text",
    [
        f"{DUMP}{RULER}\nRunning Python 3.12\n{RULER}\n{SHORT_LOG}",
        f"logs/x.txt\n{RULER}\n{DUMP}{RULER}\n{SHORT_LOG}",
    ],
)
def test_public_source_dump_is_not_evidence(tmp_path, text):
    """Some scripts write their own code, between rulers, into the log.

    That code contains what a parser looks for."""
    log = parse(tmp_path, text.encode())
    assert (log.seed, log.integer("model.parameters")) == (3, 5)
    assert (log.final.val_bpb, len(log.steps)) == (0.9, 1)
    assert log.problems == []


RESULT = """seed:3
final_int6 val_loss:1.90 val_bpb:1.1251
final_int6_exact val_loss:1.90012 val_bpb:1.12512345
"""


@pytest.mark.parametrize(
    ("after", "final", "candidates"),
    [
        ("", 1.12512345, [1.12512345]),
        ("val_bpb:    1.1251\n", 1.12512345, [1.12512345]),  # the same, rounded
        ("comparison: leaderboard val_bpb:1.0810\n", 1.12512345, [1.12512345, 1.081]),
        (
            "min over passes val_bpb:0.90000000\nmin over passes val_bpb:0.90000000\n",
            1.12512345,
            [1.12512345, 0.9],
        ),
        ("legal_ttt val_loss:1.80 val_bpb:1.11 eval_time:9ms\n", 1.11, [1.12512345, 1.11]),
    ],
)
def test_a_later_line_is_not_the_result_for_being_last(tmp_path, after, final, candidates):
    log = parse(tmp_path, (RESULT + after).encode())
    assert log.final.val_bpb == final
    assert [score.val_bpb for score in log.candidates] == candidates
    assert log.ambiguous is (len(candidates) > 1)


@pytest.mark.parametrize(
    "line",
    [
        "done " + "1" * 1000 + "x",
        "val_bpb:" + "1" * 500_000 + "x",
        "took " * 200_000 + "s",
        "A" * 1_000_000,
    ],
)
@pytest.mark.parametrize("head", ["", "log_format:1\n"])
def test_no_line_takes_long_to_read(tmp_path, head, line):
    text = f"{head}stopping_early: x train_time:10ms step:2/2\n{line}\nenv {line}\n"
    begin = time.process_time()
    parse(tmp_path, text.encode())
    assert time.process_time() - begin < 2


def test_phases_are_read(tmp_path):
    lines = [
        "stopping_early: x train_time:10ms step:2/2",
        "GPTQ:collected 67 hessians in 4.0s",
        "compression done (98.7s)",
        "not done 1.5s yet",
    ]
    log = parse(tmp_path, joined(lines))
    assert [(p.name, p.seconds, p.stage) for p in log.phases] == [
        ("GPTQ:collected 67 hessians", 4.0, "export"),
        ("compression done", 98.7, "export"),
    ]


def test_public_log_without_a_score_is_truncated(tmp_path):
    lines = [
        "seed:3",
        "step:1/9 train_loss:2.5 train_time:10ms",
        "Traceback (most recent call last):",
    ]
    log = parse(tmp_path, joined(lines))
    for complaint in ("truncated", "exception"):
        assert any(complaint in problem for problem in log.problems)


@pytest.mark.parametrize(
    "line",
    [
        "resume step:",
        "resume step: ",
        "resume step:x train_time:1ms",
        "resume step:" + "9" * 400 + " x",
    ],
)
def test_a_cut_resume_line_says_nothing(tmp_path, line):
    run = FakeRun(extra=[line]).write(tmp_path)
    log = parse_log(run / "train.log")
    assert log.resumes == []
    assert log.problems == []
