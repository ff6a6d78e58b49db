"""The sandbox contains and reports every way out that a submission may try.

Nothing is left running, whether the run ends or the referee does.
"""

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from sandbox_support import ANY, ISOLATED, ROOT, processes_with, run, wait_until

from eval.errors import UserError
from eval.trial.sandbox import running as sandbox
from eval.trial.sandbox.job import EVENT_KINDS, GIB, Limits

SECRET = "SECRET-OF-THE-HOST"


@pytest.fixture
def nothing_left():
    """After the test no process of this test's children is alive: the sandbox ended them all."""
    marker = f"left-{os.getpid()}-{time.monotonic_ns()}"
    yield marker
    time.sleep(0.05)
    alive = processes_with(marker)
    assert not alive, f"processes {alive} outlived the sandbox"


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_an_environment_below_tmp_is_seen(mechanism):
    """A clone in /tmp keeps its .venv there, where the sandbox puts a private folder."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        program = f"""
from eval.trial.sandbox import running as sandbox
code = b"import os, sys; print(sys.prefix, sorted(os.listdir('/tmp')))"
job = sandbox.Job({{"a.py": code}}, {{}}, ["{{code}}/a.py"])
print(sandbox.run(job, {mechanism!r}).stdout)
"""
        python = f"{folder}/bin/python"
        done = subprocess.run([python, "-c", program], cwd=ROOT, capture_output=True, text=True)
    shown = done.stdout + done.stderr
    assert done.stdout.split()[:2] == [folder, f"['{Path(folder).name}']"], shown


@pytest.mark.parametrize("mechanism", ANY)
def test_an_honest_run_reads_its_input_and_gives_its_output(mechanism):
    code = """
import pathlib, sys
text = pathlib.Path(sys.argv[1], "given.txt").read_text()
pathlib.Path(sys.argv[2], "x").write_text(text * 2)
print("done")
"""
    outcome = run(code, mechanism, collect=("x",))
    assert outcome.ok, outcome.why()
    assert (outcome.files, outcome.stdout, outcome.problems) == ({"x": b"hellohello"}, "done\n", [])
    assert not any(outcome.seen.values())


SURROUNDINGS = """
import os, socket
print(sorted(os.environ))
print(sorted(os.listdir("/")))
print(os.path.exists("/home"), os.path.exists("/usr/share"))
names = ("CapEff", "CapBnd", "NoNewPrivs")
print([line for line in open("/proc/self/status") if line.startswith(names)])
print([line.split(":")[0].strip() for line in open("/proc/net/dev")][2:])
print(len([p for p in os.listdir("/proc") if p.isdigit()]))
"""


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_what_a_run_can_see(mechanism, tmp_path, monkeypatch):
    """No host files, no host environment, no privileges, only loopback, a read-only root."""
    monkeypatch.setenv("SECRET", SECRET)
    outcome = run(SURROUNDINGS, mechanism)
    assert outcome.ok, outcome.why()
    environment, root, outside, privileges, network, processes = outcome.stdout.splitlines()
    assert "SECRET" not in environment and "HOME" in environment
    assert not {"home", "boot", "srv", "mnt", "opt"} & set(ast.literal_eval(root))
    assert outside == "False False"
    assert "CapEff:\\t0000000000000000" in privileges
    assert "CapBnd:\\t0000000000000000" in privileges
    assert "NoNewPrivs:\\t1" in privileges
    assert network == "['lo']"
    assert int(processes) == 2


ESCAPES = {
    "socket": (
        "import socket\ns = socket.socket()\ns.settimeout(2)\ns.connect(('192.0.2.1', 80))",
        "network",
        "192.0.2.1",
    ),
    "name lookup": (
        "import socket\nsocket.getaddrinfo('example.com', 80)",
        "network",
        "example.com",
    ),
    "read outside": ("print(open('{secret}').read())", "outside", "{secret}"),
    "list outside": ("import os\nprint(os.listdir('{folder}'))", "outside", "{folder}"),
    "write outside": ("open('{folder}/new', 'w').write('x')", "write", "{folder}/new"),
    "write its code": ("open(__file__, 'a').write('x')", "write", "/code/a.py"),
    "write its input": (
        "import sys\nopen(sys.argv[1] + '/given.txt', 'w')",
        "write",
        "/in/given.txt",
    ),
}


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("mechanism", ISOLATED)
def test_escape_fails_and_is_reported(mechanism, escape):
    """The folder lies outside /tmp: the sandbox has a /tmp of its own."""
    code, kind, what = ESCAPES[escape]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        secret = Path(folder, "secret.txt")
        secret.write_text(SECRET)
        os.chmod(folder, 0o777)
        secret.chmod(0o666)
        place = {"secret": str(secret), "folder": folder}
        outcome = run(code.format(**place), mechanism)
        assert sorted(p.name for p in Path(folder).iterdir()) == ["secret.txt"]
        assert secret.read_text() == SECRET
    assert outcome.returncode != 0
    assert SECRET not in outcome.stdout + outcome.stderr
    expected = what.format(**place)
    assert any(expected in event for event in outcome.seen[kind]), outcome.seen


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_training_shards_do_not_exist(mechanism):
    """Neither the repository nor its data can be found, whatever path is tried."""
    shards = ROOT / "data" / "datasets"
    shard = str(shards / "x.bin")
    code = f"""
import os
print(os.path.exists({str(shards)!r}), os.path.exists({__file__!r}))
open({shard!r}, "rb")
"""
    outcome = run(code, mechanism)
    assert outcome.stdout == "False False\n"
    # a clone below /tmp is hidden by the run's own /tmp, which is not outside
    assert outcome.seen["outside"] == ([] if shard.startswith("/tmp/") else [shard])


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_fork_bomb_is_contained(mechanism, nothing_left):
    code = f"""
import os  # {nothing_left}
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    started = time.monotonic()
    outcome = run(code, mechanism, wall_seconds=1.5)
    assert outcome.killed == "wall clock"
    assert "killed by the sandbox: wall clock" in outcome.problems
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_number_of_processes_is_bounded(mechanism):
    code = """
import os, time
n = 0
try:
    while n < 500:
        if os.fork() == 0:
            time.sleep(60)
        n += 1
except OSError:
    print(n)
"""
    outcome = run(code, mechanism)
    assert 30 <= int(outcome.stdout) < 64
    left = [problem for problem in outcome.problems if "left a process behind" in problem]
    assert len(left) == 20  # as many as are listed


@pytest.mark.parametrize("mechanism", ANY)
def test_hundred_gigabytes_are_refused(mechanism):
    outcome = run("x = bytearray(100 << 30)", mechanism)
    assert outcome.returncode == 1 and "MemoryError" in outcome.why()


@pytest.mark.parametrize("mechanism", ANY)
def test_memory_of_all_processes_together_is_bounded(mechanism):
    """Each process stays below its own limit; the sum is what counts."""
    code = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        x = b"1" * (100 << 20)
        time.sleep(60)
time.sleep(60)
"""
    outcome = run(code, mechanism, memory_bytes=250 << 20, wall_seconds=30)
    assert outcome.killed == "memory"


@pytest.mark.parametrize("mechanism", ANY)
def test_sleeping_past_the_limit_is_ended(mechanism, nothing_left):
    started = time.monotonic()
    outcome = run(f"import time\ntime.sleep(1000)  # {nothing_left}", mechanism, wall_seconds=1.0)
    assert outcome.killed == "wall clock"
    assert 1.0 <= time.monotonic() - started < 8


@pytest.mark.parametrize("mechanism", ANY)
def test_a_gigabyte_of_prints_ends_the_run(mechanism, nothing_left):
    code = f"""
import sys  # {nothing_left}
for _ in range(1 << 14):
    sys.stdout.write("x" * 65536)
"""
    outcome = run(code, mechanism)
    assert outcome.killed == "printed more than 1,048,576 bytes"
    assert len(outcome.stdout) == Limits().kept_bytes


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_output_files_are_bounded(mechanism):
    code = """
import sys
for k in range(100):
    with open(f"{sys.argv[2]}/{k}", "wb") as file:
        file.write(b"0" * (8 << 20))
"""
    outcome = run(code, mechanism)
    assert outcome.returncode == 1 and "No space left" in outcome.why()


@pytest.mark.parametrize("mechanism", ANY)
def test_many_outputs_are_fine_where_they_are_expected(mechanism):
    """A full audit scores some ten thousand streams in one run."""
    names = tuple(f"{i}.npy" for i in range(10_500))
    code = """
import sys
for i in range(10_500):
    open(f"{sys.argv[2]}/{i}.npy", "w").close()
"""
    outcome = run(code, mechanism, collect=names)
    assert outcome.ok and outcome.problems == [] and len(outcome.files) == len(names)
    assert run(code, mechanism, collect=names[:400]).problems == ["more than 10400 output files"]


@pytest.mark.parametrize("kind", ["symbolic link", "named pipe", "folder"])
@pytest.mark.parametrize("mechanism", ANY)
def test_output_that_is_no_file_is_not_followed(mechanism, kind):
    """A link to a file of the host must not be read by the referee, a pipe must not block it."""
    make = {
        "symbolic link": "os.symlink('/etc/passwd', p)",
        "named pipe": "os.mkfifo(p)",
        "folder": "os.mkdir(p)",
    }[kind]
    code = f"import os, sys\np = sys.argv[2] + '/x.npy'\n{make}"
    outcome = run(code, mechanism, collect=("x.npy",))
    assert outcome.ok and outcome.files == {}
    if kind != "folder":
        assert any("x.npy" in problem for problem in outcome.problems)


@pytest.mark.parametrize("mechanism", ANY)
def test_a_daemon_is_ended_and_named(mechanism, nothing_left):
    code = f"""
import subprocess, sys
daemon = "import time; time.sleep(1000) # {nothing_left}"
subprocess.Popen([sys.executable, "-c", daemon], start_new_session=True)
"""
    outcome = run(code, mechanism)
    assert outcome.returncode == 0
    left = [problem for problem in outcome.problems if "left a process behind" in problem]
    assert any("sleep" in problem for problem in left)
    assert any("Popen" in event for event in outcome.seen["program"])


HARMLESS = {
    "shared memory": """
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=64)
memory.close()
memory.unlink()
""",
    "pool": """
from multiprocessing import get_context
if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        print(pool.map(abs, [-1]))
""",
    "manager": """
from multiprocessing import Manager
if __name__ == "__main__":
    with Manager() as manager:
        print(manager.dict(a=1))
""",
    "every address": """
import socket
with socket.socket() as s:
    s.bind(("0.0.0.0", 0))
""",
    "bytecode that is not there": """
import os, sys
os.mkdir("/tmp/own")
open("/tmp/own/helper.py", "w").close()
sys.path.insert(0, "/tmp/own")
sys.dont_write_bytecode = True
import helper
""",
    "the root": """
import os
os.listdir("/")
""",
}


@pytest.mark.parametrize("what", HARMLESS)
@pytest.mark.parametrize("mechanism", ISOLATED)
def test_ordinary_python_is_no_attempt(mechanism, what):
    outcome = run(HARMLESS[what], mechanism, wall_seconds=20)
    assert outcome.ok, outcome.why()
    assert outcome.problems == []
    assert not any(outcome.seen[kind] for kind in EVENT_KINDS if kind != "program"), outcome


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_a_missing_file_of_the_home_folder_is_told_apart(mechanism):
    """Libraries look for caches that are not there: reported, but not as a path outside."""
    code = """
import os
try:
    open(os.path.expanduser("~/.cache/x/tok.json"))
except OSError:
    pass
"""
    outcome = run(code, mechanism)
    assert outcome.ok
    assert outcome.seen["absent"] == ["/tmp/.cache/x/tok.json"]
    assert not outcome.seen["outside"]


def test_memory_that_others_hold_is_no_fault_of_the_run():
    printed = SimpleNamespace(text=lambda name: "", total=0)
    header = {"returncode": -9, "killed": sandbox.HOST_MEMORY, "peak_memory": GIB}
    reins = SimpleNamespace(reason=None)
    complaint = r"found this machine out of it when the run held 1\.0 GiB; free some and repeat"
    with pytest.raises(sandbox.SandboxError, match=complaint):
        sandbox._outcome(header, {}, 1.0, printed, reins, "unshare")


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_killing_the_supervisor_changes_nothing(mechanism):
    code = """
import os, signal, sys
for target in (1, os.getppid()):
    try:
        os.kill(target, signal.SIGKILL)
    except OSError:
        pass
open(sys.argv[2] + "/x", "w").write("alive")
"""
    outcome = run(code, mechanism, collect=("x",))
    assert outcome.ok and outcome.files == {"x": b"alive"}


REFEREE = """
import os, sys
from eval.trial.sandbox import running
from eval.trial.sandbox.job import Job
running._fast_folder = lambda job: None  # so that its files lie in TMPDIR
mechanism, marker = os.environ["MECHANISM"], os.environ["MARKER"]
code = b"import time; time.sleep(1000)"
running.run(Job({"a.py": code}, {}, ["{code}/a.py", marker]), mechanism)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("mechanism", ANY)
def test_a_run_ends_with_its_referee(mechanism, number, nothing_left, tmp_path):
    """Also where the referee cannot do anything about it. On SIGTERM it removes its files too."""
    settings = {"MECHANISM": mechanism, "MARKER": nothing_left, "TMPDIR": str(tmp_path)}
    referee = subprocess.Popen([sys.executable, "-c", REFEREE], cwd=ROOT, env=os.environ | settings)
    try:
        wait_until(lambda: processes_with(nothing_left))
        referee.send_signal(number)
        ended = referee.wait(timeout=30)
    finally:
        referee.kill()
    assert ended == (128 + number if number == signal.SIGTERM else -number)
    wait_until(lambda: not processes_with(nothing_left))
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_flooding_the_witness_neither_blocks_nor_fills_memory(mechanism):
    code = """
pipe = open("/channel/events", "w")
for k in range(200_000):
    pipe.write("outside " + "x" * 100 + str(k) + "\\n")
"""
    outcome = run(code, mechanism, wall_seconds=30)
    assert outcome.ok
    assert len(outcome.seen["outside"]) <= 20_000


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_two_runs_share_nothing(mechanism):
    """What one run leaves in its temporary folder or in shared memory is not in the next."""
    code = """
import pathlib
for place in ("/tmp", "/dev/shm"):
    mark = pathlib.Path(place, "mark")
    print(mark.exists())
    mark.touch()
"""
    assert [run(code, mechanism).stdout for _ in range(2)] == ["False\nFalse\n"] * 2


def test_no_mechanism_is_chosen_silently(monkeypatch):
    """Without namespaces and bubblewrap the referee refuses, unless told to go unprotected."""
    monkeypatch.setattr(sandbox, "unavailable", lambda name: "not on this machine")
    with pytest.raises(UserError, match=r"no mechanism works here .*--no-sandbox"):
        sandbox.choose("auto")
    assert sandbox.choose("none") == "none"


def test_bubblewrap_comes_first(monkeypatch):
    monkeypatch.setattr(sandbox, "unavailable", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert sandbox.choose() == "bubblewrap"
    monkeypatch.setattr(
        sandbox, "unavailable", lambda name: "absent" if name == "bubblewrap" else None
    )
    assert sandbox.choose() == "unshare"


SYSTEM_PYTHON = "/usr/bin/python3"
ORDINARY_USER = """
import os, sys
os.setresgid(1234, 1234, 1234)
os.setresuid(1234, 1234, 1234)
root, mechanism = sys.argv[1:]
sys.path.insert(0, root)
from eval.trial.sandbox import running as sandbox
reason = sandbox.unavailable(mechanism)
if reason is not None:
    print("SKIP", reason)
    sys.exit()
code = b'import os\\nprint(os.getuid(), os.path.exists("/home"))\\nopen("/etc/x", "w")'
outcome = sandbox.run(sandbox.Job({"a.py": code}, {}, ["{code}/a.py"]), mechanism)
print(outcome.stdout.strip(), outcome.seen["write"])
"""


def lacks_system_python() -> str | None:
    """Why the system's Python cannot run the referee, None where it can."""
    if not Path(SYSTEM_PYTHON).exists():
        return f"{SYSTEM_PYTHON} is missing"
    question = "import sys; sys.exit(sys.version_info < (3, 11))"
    done = subprocess.run([SYSTEM_PYTHON, "-c", question], check=False)
    return f"{SYSTEM_PYTHON} is older than 3.11" if done.returncode else None


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to become an ordinary user"
)
@pytest.mark.parametrize("mechanism", ISOLATED)
def test_works_for_an_ordinary_user(mechanism):
    """As an ordinary user the root is built in a user namespace.

    The system's Python is used: root's own may lie where others cannot read."""
    lacking = lacks_system_python()
    if lacking:
        pytest.skip(lacking)
    done = subprocess.run(
        [SYSTEM_PYTHON, "-B", "-c", ORDINARY_USER, str(ROOT), mechanism],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
        cwd="/",
    )
    if "Permission denied" in done.stderr or done.stdout.startswith("SKIP"):
        said = (done.stdout + done.stderr).strip()[-200:]
        pytest.skip(f"an ordinary user cannot here: {said}")
    assert done.stdout.strip() == "1234 False ['/etc/x']", done.stderr
