"""`python -m tools`: a record's parameters, and the text that its model continues."""

import hashlib
import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLEAN_ENV, ROOT
from train_support import awake, tiny

import train_gpt as tg
from data.tokenizer import ByteTokenizer
from tools.__main__ import main
from tools.models import ModelAlone, open_model
from tools.sampling import continue_tokens, sample
from tools.script import find_record, load_script
from tools.text import REPLACEMENT, TextStream, find_tokenizer

SCRIPT = ROOT / "train_gpt.py"
RECORDS = ROOT / "records" / "track_docs_cpu"
BYTES_SHA256 = hashlib.sha256(ByteTokenizer.model).hexdigest()
DOCS_TOKENIZER = ROOT / "data" / "tokenizers" / "docs_1024_bpe.model"
WITH_DOCS_TOKENIZER = pytest.mark.skipif(
    not DOCS_TOKENIZER.is_file(), reason="needs the tokenizer of the docs data set"
)


def run_tools(*argv: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tools", *map(str, argv)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=CLEAN_ENV | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )


def refused(capsys, *argv: object) -> str:
    """The one line that a refusal prints."""
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def printed(capsys, *argv: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 0
    return capsys.readouterr().out


def write_artifact(path: Path, cfg: tg.Config, tokenizer_sha256: str = BYTES_SHA256) -> tg.Packed:
    model = awake(cfg, dtype=torch.float32)
    packed = tg.pack(model, cfg, tokenizer_sha256)
    path.write_bytes(packed.data)
    return packed


@pytest.fixture
def record(tmp_path):
    """Today's script with the artifacts of three seeds, in a folder as `pack` writes it."""
    folder = tmp_path / "record"
    folder.mkdir()
    (folder / "train_gpt.py").write_bytes(SCRIPT.read_bytes())
    for seed, matrix_format in ((42, "int5"), (1337, "int8"), (2025, "fp16")):
        write_artifact(folder / f"artifact_seed{seed}.bin", tiny(matrix_format=matrix_format))
    return folder


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--help"], ["params", "--help"], ["generate", "--help"]])
def test_help_answers_at_once_and_says_that_code_is_run(argv):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_tools(*argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "runs the record's code" in " ".join(done.stdout.split())
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_what_is_no_record_is_refused(tmp_path, capsys):
    assert "found nothing there" in refused(capsys, "params", tmp_path / "none")
    assert "expected a record folder with train_gpt.py" in refused(capsys, "params", tmp_path)
    (tmp_path / "train_gpt.py").write_text("import no_such_package\n")
    assert "expected artifact_seed1337.bin, found none" in refused(capsys, "params", tmp_path)
    assert "ModuleNotFoundError" in refused(capsys, "params", tmp_path / "train_gpt.py")
    (tmp_path / "script").write_text("")
    assert "without the suffix .py" in refused(capsys, "params", tmp_path / "script")
    (tmp_path / "train_gpt.py").write_text("raise SystemExit(3)\n")
    assert "SystemExit: 3" in refused(capsys, "params", tmp_path / "train_gpt.py")


def test_unknown_flags_are_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["generate", str(SCRIPT), "--no-such-flag"])
    assert left.value.code == 2
    assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["params", str(SCRIPT), "--no-such-setting", "1"])
    assert left.value.code == 2
    assert "--no-such-setting" in capsys.readouterr().err


def test_a_script_is_imported_by_its_path_and_leaves_no_trace(tmp_path):
    """Two of one name are two modules, and a file beside a script may be imported."""
    modules = []
    path_before = list(sys.path)
    setting_before = sys.dont_write_bytecode
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"beside_{name}.py").write_text(f"NAME = {name!r}\n")
        source = f"from dataclasses import dataclass\nfrom beside_{name} import NAME\n"
        (folder / "train_gpt.py").write_text(source + "@dataclass\nclass A:\n    x: int = 0\n")
        modules.append(load_script(folder / "train_gpt.py"))
        files = sorted(path.name for path in folder.iterdir())
        assert files == [f"beside_{name}.py", "train_gpt.py"]
    assert [module.NAME for module in modules] == ["one", "other"]
    assert sys.modules["train_gpt"] is tg
    assert sys.path == path_before
    assert sys.dont_write_bytecode == setting_before


# --- params ---------------------------------------------------------------------------------------


def test_params_prints_the_table_of_the_reference():
    done = run_tools("params", SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("initial weights")
    total = done.stdout.strip().splitlines()[-1].split()
    assert total[0] == "total"
    assert total[2] == "25,254,992"
    assert re.search(r"^blocks.fc +10 +7,864,320 .*int6", done.stdout, flags=re.M)


def rows_of(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in table.splitlines()}


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def test_params_shows_what_the_artifact_stores(tmp_path, capsys):
    """Not what its weights would cost in the default format."""
    cfg = tiny(matrix_format="int8")
    packed = write_artifact(tmp_path / "a.bin", cfg)
    output = printed(capsys, "params", SCRIPT, "--artifact", tmp_path / "a.bin")
    assert output.startswith(f"{tmp_path / 'a.bin'}\n")
    rows = rows_of(output)
    assert rows["blocks.fc"][-3] == "int8"
    total = rows["total"]
    assert number(total[2]) == sum(p.numel() for p in tg.GPT(cfg.model).parameters())
    assert number(total[-1]) == round(packed.entropy_bytes())
    _, payload = tg.split_artifact(packed.data, "artifact")
    assert number(total[-2]) == len(payload)  # the rows are all there is


def test_params_of_settings(capsys):
    small = ("--num-layers", 2, "--num-encoder-layers", 1, "--model-dim", 64, "--xsa-layers", 1)
    output = printed(capsys, "params", SCRIPT, *small)
    assert "initial weights" in output
    assert rows_of(output)["blocks.fc"][1] == "2"
    preset = printed(capsys, "params", SCRIPT, "--preset", "docs_cpu")
    assert rows_of(preset)["total"][2] == "1,008,904"
    assert "num_heads" in refused(capsys, "params", SCRIPT, *small, "--num-heads", 7)


def test_params_of_a_record_folder(record, capsys):
    default = printed(capsys, "params", record)
    assert "artifact_seed1337.bin" in default
    assert rows_of(default)["blocks.fc"][-3] == "int8"
    other = printed(capsys, "params", record, "--seed-artifact", 42)
    assert rows_of(other)["blocks.fc"][-3] == "int5"
    (record / "artifact_seed1337.bin").unlink()
    assert "artifact_seed2025.bin" in printed(capsys, "params", record)
    message = refused(capsys, "params", record, "--seed-artifact", 7)
    assert "expected artifact_seed7.bin, found artifact_seed2025.bin" in message
    message = refused(capsys, "params", record, "--num-layers", 2)
    assert "expected no settings beside an artifact" in message
    (record / "artifact_seed42.bin").write_bytes(b"PGOLFART")
    message = refused(capsys, "params", record, "--artifact", record / "artifact_seed42.bin")
    assert "expected an artifact" in message


def test_params_of_another_kind_of_script_says_what_is_missing(capsys):
    folder = next(RECORDS.glob("*_wikigpt"))
    lines = printed(capsys, "params", folder).splitlines()
    assert "parameters by group are unknown" in lines[0]
    assert "load_artifact" in lines[0]
    size = (folder / "artifact_seed1337.bin").stat().st_size
    submission = json.loads((folder / "submission.json").read_text())
    parameters = submission["seed_results"]["1337"]["parameters"]
    assert f"{size:,} bytes" in "\n".join(lines)
    assert f"{parameters:,} by submission.json" in "\n".join(lines)


# --- generate -------------------------------------------------------------------------------------


def test_generation_continues_past_the_context_and_greedy_is_deterministic():
    cfg = tiny(eval_seq_len=8)
    model = awake(cfg, dtype=torch.float32)
    artifact = tg.Artifact(model, cfg, "", tg.Packed(b"", {}, {}))
    alone = ModelAlone(artifact, tg.Ranks())

    def greedy(logits):
        return sample(logits, 0.0, 0, 1.0, torch.Generator())

    first = list(continue_tokens(alone, [1, 5, 6], 20, greedy))
    assert first == list(continue_tokens(alone, [1, 5, 6], 20, greedy))
    assert len(first) == 20
    tokens = [1, 5, 6, *first]
    with torch.no_grad():
        # every token by the full forward pass over the window before it
        for i in range(3, 23):
            window = torch.tensor([tokens[max(0, i - 8) : i]])
            assert tokens[i] == model.logits(model.hidden(window)[0][0, -1]).argmax()


def test_sampling_filters():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))

    def draw(*options):
        generators = [torch.Generator().manual_seed(i) for i in range(200)]
        return {sample(logits, *options, generator) for generator in generators}

    assert draw(0.0, 0, 1.0) == {0}
    assert draw(1.0, 2, 1.0) == {0, 1}
    assert draw(1.0, 0, 0.7) == {0, 1}
    assert draw(1.0, 0, 0.1) == {0}
    assert draw(1.0, 0, 1.0) == {0, 1, 2, 3}


def test_text_appears_with_its_tokens_and_whole_characters():
    file = io.StringIO()
    stream = TextStream(ByteTokenizer(), file)
    seen = []
    for token in ByteTokenizer().encode("a€b").tolist():
        stream.write([token])
        seen.append(file.getvalue())
    assert seen == ["a", "a", "a", "a€", "a€b"]
    stream.write(ByteTokenizer().encode("€").tolist()[:1])
    stream.close()
    assert file.getvalue() == f"a€b{REPLACEMENT}\n"


def test_generate_continues_a_prompt_by_bytes(record, capsys):
    argv = ("generate", record, "--prompt", "Ab", "--max-new-tokens", 12)
    first = printed(capsys, *argv)
    assert first.startswith("Ab")
    assert first == printed(capsys, *argv)
    assert first != printed(capsys, *argv, "--seed", 1)
    greedy = printed(capsys, *argv, "--temperature", 0)
    assert greedy == printed(capsys, *argv, "--top-k", 1, "--seed", 5)
    assert printed(capsys, *argv[:-1], 0) == "Ab\n"


def test_generate_refuses_bad_input(record, tmp_path, capsys):
    for bad in (("--top-p", 0), ("--temperature", "nan"), ("--top-k", -1)):
        message = refused(capsys, "generate", record, *bad)
        assert "0 < top-p <= 1" in message
    assert "add --artifact" in refused(capsys, "generate", SCRIPT)
    message = refused(capsys, "generate", SCRIPT, "--artifact", tmp_path / "none.bin")
    assert "found no file there" in message
    other = tmp_path / "other.bin"
    write_artifact(other, tiny(), "0" * 64)
    message = refused(capsys, "generate", SCRIPT, "--artifact", other)
    assert f"expected the tokenizer with sha256 {'0' * 64}" in message
    wrong = tmp_path / "bytes.json"
    wrong.write_bytes(ByteTokenizer.model)
    message = refused(capsys, "generate", SCRIPT, "--artifact", other, "--tokenizer", wrong)
    assert f"{wrong}: expected the tokenizer with sha256" in message


def test_a_given_tokenizer_is_read_where_its_sha256_is_the_records(record, tmp_path, capsys):
    path = tmp_path / "bytes.json"
    path.write_bytes(ByteTokenizer.model)
    argv = ("generate", record, "--prompt", "Ab", "--max-new-tokens", 3)
    assert printed(capsys, *argv, "--tokenizer", path) == printed(capsys, *argv)
    assert isinstance(find_tokenizer(path, None), ByteTokenizer)


# --- generate, by the scoring contract ------------------------------------------------------------

CONTRACT = '''
import json
import sys
from pathlib import Path

import numpy as np


def answer(argv):
    """The next token is the last one + 1, with a probability of nearly 1."""
    given = dict(zip(argv[1::2], argv[2::2]))
    if Path(given["--artifact"]).read_bytes() != b"good":
        print("error: a bad artifact", file=sys.stderr)
        return 2
    tokens = np.fromfile(given["--tokens"], "<u2", offset=1024)
    assert len(tokens) == np.fromfile(given["--tokens"], "<i4", count=3)[2]
    [(stem, positions)] = json.loads(Path(given["--probes"]).read_text()).items()
    assert positions == [len(tokens) - 1]
    logp = np.full((1, 260), -50.0)
    logp[0, (tokens[-1] + 1) % 260] = -1e-6
    np.save(Path(given["--out"]) / f"{stem}.probe.npy", logp)
    print("scored")
    return 0
'''
IN_PROCESS = CONTRACT + "\n\nmain = answer\n"
IN_CHILD = CONTRACT + "\n\nif __name__ == '__main__':\n    sys.exit(answer(sys.argv[1:]))\n"


@pytest.fixture(params=[IN_PROCESS, IN_CHILD], ids=["main(argv)", "a process per token"])
def foreign(request, tmp_path):
    """A record whose script has nothing of today's but the score command."""
    (tmp_path / "train_gpt.py").write_text(request.param)
    (tmp_path / "artifact_seed1337.bin").write_bytes(b"good")
    submission = {"data": {"tokenizer_sha256": BYTES_SHA256}}
    (tmp_path / "submission.json").write_text(json.dumps(submission))
    return tmp_path


def test_any_script_that_answers_the_scoring_contract_generates(foreign, capsys):
    capsys.readouterr()
    assert main(["generate", str(foreign), "--prompt", "abc", "--max-new-tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "abcdef\n"
    assert captured.err.startswith("note: ") and "slow" in captured.err
    (foreign / "artifact_seed1337.bin").write_bytes(b"bad")
    assert main(["generate", str(foreign), "--prompt", "abc"]) == 2
    assert capsys.readouterr().err.endswith(
        "error: score: expected a distribution, found: a bad artifact\n"
    )
    (foreign / "submission.json").unlink()
    assert main(["generate", str(foreign), "--prompt", "abc"]) == 2
    assert "expected the record's tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("(1, 260)", "(2, 260)"), "found (2, 260)"),
        (("-50.0", "np.nan"), "or NaN"),
        (("np.save(", "print("), "No such file"),
        (("-1e-6", "1 / 0"), "ZeroDivisionError"),
        (("260", "300"), "expected one of 300 tokens"),
    ],
)
def test_an_answer_that_is_no_distribution_is_refused(change, found, tmp_path, capsys):
    (tmp_path / "train_gpt.py").write_text(IN_PROCESS.replace(*change))
    (tmp_path / "artifact.bin").write_bytes(b"good")
    (tmp_path / "bytes.json").write_bytes(ByteTokenizer.model)
    argv = ["generate", tmp_path / "train_gpt.py", "--artifact", tmp_path / "artifact.bin"]
    argv += ["--tokenizer", tmp_path / "bytes.json"]
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("error: ") and found in last_line


def test_the_contract_gives_the_distribution_of_the_model_where_nothing_is_mixed_in(tmp_path):
    """Today's script, asked in both ways."""
    cfg = tiny(ngram_order=0)
    artifact = tmp_path / "a.bin"
    write_artifact(artifact, cfg)
    as_foreign = tmp_path / "train_gpt.py"
    as_foreign.write_text("from train_gpt import main\n")
    tokens = [1, *np.random.default_rng(0).integers(4, 260, 25).tolist()]
    with open_model(tg, SCRIPT, artifact) as model:
        expected = torch.log_softmax(model.next_logits(tokens).double(), -1)
    with open_model(load_script(as_foreign), as_foreign, artifact) as contract:
        assert contract.tokenizer_sha256 is None
        found = contract.next_logits(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_every_token_is_printed_before_the_next_is_made(record, capsys, monkeypatch):
    """The text appears as it comes, also in a pipe."""
    printed_before: list[str] = []
    flushed: list[str] = []
    next_logits = ModelAlone.next_logits

    def watched(self, tokens):
        printed_before.append("".join(flushed))
        logits = next_logits(self, tokens)
        forced = torch.full_like(logits, -1e9)
        forced[ord("a") + len(printed_before) + 3] = 0  # "a", then "b", then "c"
        return forced

    class Pipe(io.StringIO):
        def flush(self) -> None:
            flushed[:] = [self.getvalue()]

    monkeypatch.setattr(ModelAlone, "next_logits", watched)
    monkeypatch.setattr(sys, "stdout", Pipe())
    assert main(["generate", str(record), "--prompt", "> ", "--max-new-tokens", "3"]) == 0
    assert printed_before == ["> ", "> a", "> ab"]


@WITH_DOCS_TOKENIZER
def test_a_committed_record_generates_what_its_own_command_does(capsys):
    folder = next(RECORDS.glob("*_wikigpt"))
    prompt = "Returns the"
    argv = ("--prompt", prompt, "--temperature", 0)
    ours = printed(capsys, "generate", folder, *argv, "--max-new-tokens", 4)
    module = load_script(find_record(folder).script)
    files = ("--artifact", folder / "artifact_seed1337.bin", "--tokenizer", DOCS_TOKENIZER)
    module.main([str(part) for part in ("generate", *files, *argv, "--count", 4)])
    assert capsys.readouterr().out == ours
