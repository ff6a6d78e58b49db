"""What a public script lets its user set, what its record says, and the small values chosen."""

import pytest

from eval.trial.canary.knobs import find_knobs
from eval.trial.canary.plan import MOST_TRIES, OUT_OF_TIME, Plan, retry
from eval.trial.canary.settings import best_command, commands_in, own_settings, script_in_texts
from eval.trial.canary.table import RULES, Family, Sizes, rule_for

SCRIPT = b"""
import os
from os import environ, getenv
E = os.environ.get

def _env_int(name, default):
    return int(os.environ.get(name, default))

class Hyperparameters:
    data_path = os.environ.get("DATA_PATH", "./data/datasets/fineweb10B_sp1024")
    iterations = int(os.environ.get("ITERATIONS", 20_000))
    val_loss_every = int(E("VAL_LOSS_EVERY", 1000))
    train_batch_tokens = int(os.environ.get("TRAIN_BATCH_TOKENS", 8 * 64 * 1024))
    train_seq_len = _env_int("TRAIN_SEQ_LEN", 2048)
    eval_seq_len = int(os.environ.get("EVAL_SEQ_LEN", train_seq_len))
    eval_stride = int(getenv("EVAL_STRIDE", "64"))
    num_layers = int(os.environ.get("NUM_LAYERS", 11))
    ve_layers = environ.get("VE_LAYERS", "9,10")
    xsa_last_n = int(os.environ.get("XSA_LAST_N", 4))
    model_dim = int(os.environ.get("MODEL_DIM", 512))
    num_heads = int(os.environ.get("NUM_HEADS", 8))
    num_kv_heads = int(os.environ.get("NUM_KV_HEADS", 4))
    tie = bool(int(os.environ.get("TIE_EMBEDDINGS", "1")))
    max_wallclock_seconds = float(os.environ.get("MAX_WALLCLOCK_SECONDS", 600.0))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.04))
    ttt_lr = float(os.environ.get("TTT_LR", 0.002))
    ttt_epochs = int(os.environ.get("TTT_EPOCHS", 3))
    slot_steps = int(os.environ.get("SLOT_STEPS", 0))
    ngram_buckets = int(os.environ.get("NGRAM_BUCKETS", 4_194_304))
    warmup_steps, beta = 20, 0.95

rank = int(os.environ["RANK"])
for name in ("MUON_WD", "not a name"):
    print(name)
"""


def chosen(plan: Plan) -> dict[str, str]:
    return {setting.name: setting.value for setting in plan.settings}


# --- Finding ---


def test_every_way_to_read_a_variable_is_found():
    knobs = find_knobs([SCRIPT])
    defaults = {name: knob.default for name, knob in knobs.variables.items()}
    assert defaults["ITERATIONS"] == "20000"
    assert defaults["VAL_LOSS_EVERY"] == "1000"
    assert defaults["TRAIN_BATCH_TOKENS"] == "524288"
    assert defaults["TRAIN_SEQ_LEN"] == "2048"
    assert defaults["EVAL_SEQ_LEN"] is None  # another setting, no constant
    assert defaults["EVAL_STRIDE"] == "64"
    assert defaults["VE_LAYERS"] == "9,10"
    assert defaults["RANK"] is None
    assert knobs.mentioned >= {"MUON_WD"}
    assert knobs.constants["WARMUP_STEPS"] == ("20", 30)
    assert "NUM_LAYERS" not in knobs.constants
    assert knobs.default("WARMUP_STEPS") == "20"


def test_options_of_argparse_and_tyro_are_found():
    argparse_script = b"""
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--n-layers", "-l", type=int, default=12)
parser.add_argument("--smoke", action="store_true")
parser.add_argument("paths", nargs="*")
"""
    knobs = find_knobs([argparse_script])
    assert [(k.name, k.option, k.default) for k in knobs.options.values()] == [
        ("N_LAYERS", "--n-layers", "12")
    ]
    assert Plan(knobs).arguments == ("--n-layers", "4")
    assert Plan(knobs).variables == {}
    tyro_script = b"""
import tyro
from dataclasses import dataclass
@dataclass
class Config:
    model_dim: int = 768
    name: str = "x"
args = tyro.cli(Config)
"""
    assert Plan(find_knobs([tyro_script])).arguments == ("--model-dim", "64")


def test_modules_beside_the_script_are_read_too():
    module = b"import os\nDIM = int(os.environ.get('MODEL_DIM', 512))\nLAYERS = 12\n"
    knobs = find_knobs([b"import model\nNUM_LAYERS = 9\n", module])
    assert set(knobs.variables) == {"MODEL_DIM"}
    assert set(knobs.constants) == {"NUM_LAYERS"}


@pytest.mark.parametrize("source", [b"", b"\x00", b"def (", b"x = 1\n"])
def test_a_script_without_knobs_has_none(source):
    knobs = find_knobs([source])
    assert not knobs.variables
    assert Plan(knobs).settings == ()


def test_a_script_for_a_newer_python_has_its_knobs():
    newer = (
        b"import os\nprint(f'{os.environ['HOME']}')\nD = int(os.environ.get('MODEL_DIM', 512))\n"
    )
    assert "MODEL_DIM" in find_knobs([newer]).variables


# --- Small values ---


def test_small_values_fit_each_other():
    values = chosen(Plan(find_knobs([SCRIPT])))
    assert values["MODEL_DIM"] == "64"
    assert int(values["MODEL_DIM"]) % int(values["NUM_HEADS"]) == 0
    assert int(values["NUM_HEADS"]) % int(values["NUM_KV_HEADS"]) == 0
    assert values["NUM_LAYERS"] == "4"
    assert values["VE_LAYERS"] == "3"
    assert int(values["TRAIN_BATCH_TOKENS"]) % (8 * int(values["TRAIN_SEQ_LEN"])) == 0
    assert values["ITERATIONS"] == "2"
    assert values.get("TTT_EPOCHS", "3") == "3"


def test_what_is_judged_and_what_is_off_stays():
    values = chosen(Plan(find_knobs([SCRIPT])))
    untouched = {"NGRAM_BUCKETS", "SLOT_STEPS", "MAX_WALLCLOCK_SECONDS", "TIE_EMBEDDINGS"}
    assert not untouched & values.keys()
    assert "EVAL_STRIDE" not in values  # already as small
    assert not {"DATA_PATH", "RANK"} & values.keys()


def test_training_hardly_moves_the_network_and_adaptation_does_as_ever():
    values = chosen(Plan(find_knobs([SCRIPT])))
    assert values["MATRIX_LR"] == "0.0004"
    assert "TTT_LR" not in values


def test_as_many_key_heads_as_heads_stay_as_many():
    equal = SCRIPT.replace(b'"NUM_KV_HEADS", 4', b'"NUM_KV_HEADS", 8')
    values = chosen(Plan(find_knobs([equal])))
    assert values["NUM_KV_HEADS"] == values["NUM_HEADS"]


def test_the_users_word_counts_most_and_the_records_next():
    knobs = find_knobs([SCRIPT])
    plan = Plan(knobs, own={"TTT_EPOCHS": "10", "XSA_LAST_N": "2"}, given={"NGRAM_BUCKETS": "4096"})
    settings = {setting.name: setting for setting in plan.settings}
    assert settings["NGRAM_BUCKETS"].value == "4096"
    assert (settings["NGRAM_BUCKETS"].own, settings["NGRAM_BUCKETS"].origin) == ("4194304", "given")
    assert (settings["TTT_EPOCHS"].value, settings["TTT_EPOCHS"].own) == ("3", "10")
    assert (settings["XSA_LAST_N"].value, settings["XSA_LAST_N"].origin) == ("2", "record")


def test_sizes_that_nobody_can_set_are_named():
    fixed = Plan(find_knobs([b"NUM_LAYERS = 9\nMODEL_DIM = 512\nROPE_BASE = 10000.0\n"])).fixed
    assert fixed == ("num_layers = 9 (line 1)", "model_dim = 512 (line 2)")


def test_every_rule_has_a_size():
    for rule in RULES:
        assert (rule.share is None) == bool(rule.size)
        assert not rule.size or getattr(Sizes(), rule.size) >= 0


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("MODEL_DIM", Family.WIDTH),
        ("NUM_UNIQUE_LAYERS", Family.DEPTH),
        ("UNIQUE_MLPS", Family.DEPTH),
        ("TTT_EVAL_SEQ_LEN", Family.SEQUENCE),
        ("SLIDING_EVAL_STRIDE", Family.SEQUENCE),
        ("GPTQ_CALIB_BATCHES", Family.CALIBRATION),
        ("TTT_MAX_EVAL_SECS", Family.CLOCK),
        ("NGRAM_EVAL_CHUNK_TOKENS", Family.EVALUATION),
    ],
)
def test_names_of_the_field_are_covered(name, family):
    assert rule_for(name).family is family


@pytest.mark.parametrize("name", ["NGRAM_BUCKETS", "BIGRAM_VOCAB_SIZE", "HASH_SIZE", "SEED", "QAT"])
def test_sizes_of_tables_are_no_sizes_of_the_model(name):
    assert rule_for(name) is None


# --- Another choice ---


def test_a_failure_leads_to_another_choice():
    plan = Plan(find_knobs([SCRIPT]))
    second = retry(plan, "Traceback\nAssertionError: head_dim must be even")
    assert second.remedies == ("width 128 in 4 heads",)
    assert "head_dim must be even" in second.reasons[0]
    assert chosen(second)["MODEL_DIM"] == "128"
    third = retry(second, "ZeroDivisionError: integer modulo by zero")
    assert "VAL_LOSS_EVERY" not in chosen(third)
    assert chosen(third)["MODEL_DIM"] == "128"


def test_settings_with_which_a_script_cannot_run_give_way_to_its_defaults():
    plan = Plan(find_knobs([SCRIPT]), own={"NUM_LAYERS": "3", "WARM_START": "1"})
    failure = "UnboundLocalError: cannot access local variable 'elapsed'"
    second = retry(plan, failure)
    assert second.variables.get("WARM_START") is None
    assert "the record's settings, after: " + failure in second.reasons[0]
    assert retry(Plan(find_knobs([SCRIPT])), failure).reasons[0] != second.reasons[0]


def test_out_of_time_means_smaller():
    plan = Plan(find_knobs([SCRIPT]))
    second = retry(plan, OUT_OF_TIME)
    assert second.targets == plan.targets // 4
    assert int(chosen(second)["MODEL_DIM"]) < int(chosen(plan)["MODEL_DIM"])
    assert retry(second, OUT_OF_TIME) is None


def test_tries_end():
    plan = Plan(find_knobs([SCRIPT]))
    tries = 1
    while plan is not None and tries <= 2 * MOST_TRIES:
        plan = retry(plan, "ValueError: something else")
        tries += plan is not None
    assert tries == MOST_TRIES


@pytest.mark.parametrize(
    "failure", ["ModuleNotFoundError: No module named 'x'", "SyntaxError: invalid syntax"]
)
def test_what_no_size_mends_is_not_tried_again(failure):
    assert retry(Plan(find_knobs([SCRIPT])), f"Traceback\n{failure}") is None


# --- The record's own words ---

README = r"""
# A record

It's good. Try `python other.py` first; `EVAL_STRIDE=16` was worse.

```bash
export MUON_WD=0.04
RUN\_ID=mine DATA_PATH=/root/data \
  TTT_EPOCHS=10 XSA_LAST_N=2 SEED=$SEED \
  torchrun --standalone --nproc_per_node=8 records/x/train_gpt.py --flag 3 && echo done
```

```
ITERATIONS=10 torchrun --nproc-per-node 1 train_gpt.py
```
"""


def test_the_command_of_a_readme_is_read():
    commands = commands_in(README, "README.md")
    assert [(command.script_name, command.ranks) for command in commands] == [
        ("other.py", None),
        ("train_gpt.py", 8),
        ("train_gpt.py", 1),
    ]
    command = best_command(commands, "train_gpt.py")
    assert command.variables == {
        "MUON_WD": "0.04",
        "RUN_ID": "mine",
        "DATA_PATH": "/root/data",
        "TTT_EPOCHS": "10",
        "XSA_LAST_N": "2",
    }
    assert command.arguments == ("--flag", "3")


def test_a_shell_script_exports_to_its_end():
    shell = "export A_B=1\n# ``` is no fence here\nexport C_D=2\ntorchrun train_gpt.py\n"
    (command,) = commands_in(shell, "run.sh")
    assert command.variables == {"A_B": "1", "C_D": "2"}


def test_settings_come_from_command_json_and_log():
    files = {
        "README.md": README.encode(),
        "submission.json": b'{"val_bpb": 1.1, "config": {"num_layers": 7, "xsa_last_n": 3}}',
        "train.log": b"seed:42\ntrain_seq_len:1024 eval_stride:32\nstep:1/10 num_heads:4\n",
    }
    knobs = find_knobs([SCRIPT])
    own = own_settings(files, "train_gpt.py", knobs)
    assert own.variables == {
        "MUON_WD": "0.04",
        "TTT_EPOCHS": "10",
        "XSA_LAST_N": "2",
        "NUM_LAYERS": "7",
        "TRAIN_SEQ_LEN": "1024",
        "EVAL_STRIDE": "32",
    }
    assert own.arguments == ("--flag", "3")
    assert own.sources == ("README.md", "submission.json", "train.log")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"README.md": b"\xff\xfe `python", "submission.json": b"[" * 5000, "a.log": b"\x00"},
        {"README.md": b"X='unclosed torchrun train_gpt.py\n", "submission.json": b"[1]"},
    ],
)
def test_strange_files_say_nothing(files):
    assert own_settings(files, "train_gpt.py", find_knobs([SCRIPT])).variables == {}


def test_the_script_is_the_one_that_the_record_runs():
    shell = b"NUM_LAYERS=10 \\\ntorchrun --nproc_per_node=8 train_b.py\n"
    files = {"run.sh": shell, "train_a.py": b"", "train_b.py": b""}
    assert script_in_texts(files) == "train_b.py"
    assert script_in_texts({"train_a.py": b""}) is None
