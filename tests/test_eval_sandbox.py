"""The sandbox: every way out of it that a submission may try is contained and reported, and nothing is left running."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.errors import UserError
from eval.trial.sandbox import running as sandbox
from eval.trial.sandbox.job import EVENT_KINDS, GIB, Job, Limits, Outcome

SECRET = "SECRET-OF-THE-HOST"
WALL = 3.0


def mechanisms(*names: str) -> list:
    """One parameter for each mechanism; those that do not work here skip with the sandbox's own reason."""
    reasons = {
        name: sandbox.unavailable(name) if sys.platform == "linux" else "not Linux"
        for name in names
    }
    return [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=f"{name}: {reason}"))
        for name, reason in reasons.items()
    ]


ISOLATED = mechanisms("bubblewrap", "unshare")
ANY = [
    *ISOLATED,
    pytest.param("none", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")),
]


def run(code: str, mechanism: str, collect: tuple[str, ...] = (), **limits) -> Outcome:
    settings = {
        "wall_seconds": WALL,
        "memory_bytes": GIB // 2,
        "printed_bytes": 1 << 20,
        "file_bytes": 1 << 24,
        "output_bytes": 1 << 25,
        "processes": 64,
    }
    job = Job(
        {"a.py": code.encode()},
        {"given.txt": b"hello"},
        ["{code}/a.py", "{in}", "{out}"],
        collect,
        Limits(**(settings | limits)),
    )
    return sandbox.run(job, mechanism)


@pytest.fixture
def nothing_left():
    """After the test no process of this test's children is alive: the sandbox ended them all."""
    marker = f"left-{os.getpid()}-{time.monotonic_ns()}"
    yield marker
    time.sleep(0.05)
    alive = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if marker.encode() in _read(path)
    ]
    assert not alive, f"processes {alive} outlived the sandbox"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_an_environment_below_tmp_is_seen(mechanism):
    """A clone in /tmp keeps its .venv there, where the sandbox puts a private folder."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        program = (
            "import sys; from eval.trial.sandbox import running as sandbox; "
            "job = sandbox.Job({'a.py': b'import os, sys; print(sys.prefix, sorted(os.listdir(\"/tmp\")))'}, {}, ['{code}/a.py']); "
            f"print(sandbox.run(job, {mechanism!r}).stdout)"
        )
        done = subprocess.run(
            [f"{folder}/bin/python", "-c", program],
            cwd=Path(sandbox.__file__).parents[3],
            capture_output=True,
            text=True,
        )
    assert done.stdout.split()[:2] == [folder, f"['{Path(folder).name}']"], (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("mechanism", ANY)
def test_an_honest_run_reads_its_input_and_gives_its_output(mechanism):
    code = "import sys, pathlib\nt = pathlib.Path(sys.argv[1], 'given.txt').read_text()\npathlib.Path(sys.argv[2], 'x').write_text(t * 2)\nprint('done')"
    outcome = run(code, mechanism, collect=("x",))
    assert outcome.ok, outcome.why()
    assert (outcome.files, outcome.stdout, outcome.problems) == ({"x": b"hellohello"}, "done\n", [])
    assert not any(outcome.seen.values())


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_what_a_run_can_see(mechanism, tmp_path, monkeypatch):
    """No host files, no host environment, no privileges, only loopback, a read-only root."""
    monkeypatch.setenv("SECRET", SECRET)
    outcome = run(
        "import os, socket\nprint(sorted(os.environ))\nprint(sorted(os.listdir('/')))\nprint(os.path.exists('/home'), os.path.exists('/usr/share'))\n"
        "print([line for line in open('/proc/self/status') if line.startswith(('CapEff', 'CapBnd', 'NoNewPrivs'))])\n"
        "print([line.split(':')[0].strip() for line in open('/proc/net/dev')][2:])\nprint(len([p for p in os.listdir('/proc') if p.isdigit()]))",
        mechanism,
    )
    assert outcome.ok, outcome.why()
    environment, root, outside, privileges, network, processes = outcome.stdout.splitlines()
    assert "SECRET" not in environment and "HOME" in environment
    assert not {"home", "boot", "srv", "mnt", "opt"} & set(eval(root))
    assert outside == "False False"
    assert (
        "CapEff:\\t0000000000000000" in privileges
        and "CapBnd:\\t0000000000000000" in privileges
        and "NoNewPrivs:\\t1" in privileges
    )
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
        place = {"{secret}": str(secret), "{folder}": folder}
        for name, value in place.items():
            code, what = code.replace(name, value), what.replace(name, value)
        outcome = run(code, mechanism)
        assert sorted(p.name for p in Path(folder).iterdir()) == ["secret.txt"]
        assert secret.read_text() == SECRET
    assert outcome.returncode != 0
    assert SECRET not in outcome.stdout + outcome.stderr
    assert any(what in event for event in outcome.seen[kind]), outcome.seen


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_training_shards_do_not_exist(mechanism):
    """Neither the repository nor its data can be found, whatever path is tried."""
    shards = Path(__file__).parents[1] / "data" / "datasets"
    outcome = run(
        f"import os, sys\nprint(os.path.exists({str(shards)!r}), os.path.exists({str(Path(__file__))!r}))\nopen({str(shards / 'x.bin')!r}, 'rb')",
        mechanism,
    )
    assert outcome.stdout == "False False\n"
    assert outcome.seen["outside"] == [str(shards / "x.bin")]


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_fork_bomb_is_contained(mechanism, nothing_left):
    code = f"import os  # {nothing_left}\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    started = time.monotonic()
    outcome = run(code, mechanism, wall_seconds=1.5)
    assert outcome.killed == "wall clock"
    assert "killed by the sandbox: wall clock" in outcome.problems
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_number_of_processes_is_bounded(mechanism):
    code = "import os, time\nn = 0\ntry:\n    while n < 500:\n        if os.fork() == 0:\n            time.sleep(60)\n"
    code += "        n += 1\nexcept OSError:\n    print(n)"
    outcome = run(code, mechanism)
    assert 30 <= int(outcome.stdout) < 64
    assert (
        sum("left a process behind" in problem for problem in outcome.problems) == 20
    )  # as many as are listed


@pytest.mark.parametrize("mechanism", ANY)
def test_hundred_gigabytes_are_refused(mechanism):
    outcome = run("x = bytearray(100 << 30)", mechanism)
    assert outcome.returncode == 1 and "MemoryError" in outcome.why()


@pytest.mark.parametrize("mechanism", ANY)
def test_memory_of_all_processes_together_is_bounded(mechanism):
    """Each process stays below its own limit; the sum is what counts."""
    code = "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        x = b'1' * (100 << 20)\n        time.sleep(60)\ntime.sleep(60)"
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
    outcome = run(
        f"import sys  # {nothing_left}\nfor _ in range(1 << 14):\n    sys.stdout.write('x' * 65536)",
        mechanism,
    )
    assert outcome.killed == "printed more than 1,048,576 bytes"
    assert len(outcome.stdout) <= sandbox.TAIL_BYTES


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_output_files_are_bounded(mechanism):
    code = "import sys\nfor k in range(100):\n    with open(f'{sys.argv[2]}/{k}', 'wb') as f:\n        f.write(b'0' * (8 << 20))"
    outcome = run(code, mechanism)
    assert outcome.returncode == 1 and "No space left" in outcome.why()


@pytest.mark.parametrize("mechanism", ANY)
def test_many_outputs_are_fine_where_they_are_expected(mechanism):
    """A full audit scores some ten thousand streams in one run."""
    names = tuple(f"{i}.npy" for i in range(10_500))
    code = "import sys\nfor i in range(10_500):\n    open(f'{sys.argv[2]}/{i}.npy', 'w').close()\n"
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
    outcome = run(
        f"import os, sys\np = sys.argv[2] + '/x.npy'\n{make}", mechanism, collect=("x.npy",)
    )
    assert outcome.ok and outcome.files == {}
    if kind != "folder":
        assert any("x.npy" in problem for problem in outcome.problems)


@pytest.mark.parametrize("mechanism", ANY)
def test_a_daemon_is_ended_and_named(mechanism, nothing_left):
    code = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000) # {nothing_left}'], start_new_session=True)"
    outcome = run(code, mechanism)
    assert outcome.returncode == 0
    assert any(
        "left a process behind" in problem and "sleep" in problem for problem in outcome.problems
    )
    assert any("Popen" in event for event in outcome.seen["program"])


HARMLESS = {
    "shared memory": "from multiprocessing.shared_memory import SharedMemory\nm = SharedMemory(create=True, size=64)\nm.close()\nm.unlink()",
    "pool": "from multiprocessing import get_context\nif __name__ == '__main__':\n    with get_context('spawn').Pool(1) as p:\n        print(p.map(abs, [-1]))",
    "manager": "from multiprocessing import Manager\nif __name__ == '__main__':\n    with Manager() as m:\n        print(m.dict(a=1))",
    "every address": "import socket\nwith socket.socket() as s:\n    s.bind(('0.0.0.0', 0))",
    "the root": "import os\nos.listdir('/')",
}


@pytest.mark.parametrize("what", HARMLESS)
@pytest.mark.parametrize("mechanism", ISOLATED)
def test_ordinary_python_is_no_attempt(mechanism, what):
    outcome = run(HARMLESS[what], mechanism, wall_seconds=20)
    assert outcome.ok, outcome.why()
    assert outcome.problems == [] and not any(
        outcome.seen[kind] for kind in EVENT_KINDS if kind != "program"
    ), outcome


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_a_missing_file_of_the_home_folder_is_told_apart(mechanism):
    """A cache that is looked for and not there, as libraries do: told, but as no path outside."""
    outcome = run(
        "import os\ntry:\n    open(os.path.expanduser('~/.cache/x/tok.json'))\nexcept OSError:\n    pass",
        mechanism,
    )
    assert (
        outcome.ok
        and outcome.seen["absent"] == ["/tmp/.cache/x/tok.json"]
        and not outcome.seen["outside"]
    )


def test_memory_that_others_hold_is_no_fault_of_the_run():
    printed = SimpleNamespace(text=lambda name: "", total=0)
    header = {"returncode": -9, "killed": sandbox.HOST_MEMORY, "peak_memory": GIB}
    with pytest.raises(
        sandbox.SandboxError,
        match=r"found this machine out of it when the run held 1\.0 GiB; free some and repeat",
    ):
        sandbox._outcome(header, {}, 1.0, printed, SimpleNamespace(reason=None), "unshare")


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_killing_the_supervisor_changes_nothing(mechanism):
    code = "import os, signal, sys\nfor target in (1, os.getppid()):\n    try:\n        os.kill(target, signal.SIGKILL)\n    except OSError:\n        pass\n"
    outcome = run(code + "open(sys.argv[2] + '/x', 'w').write('alive')", mechanism, collect=("x",))
    assert outcome.ok and outcome.files == {"x": b"alive"}


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_flooding_the_witness_neither_blocks_nor_fills_memory(mechanism):
    outcome = run(
        "f = open('/channel/events', 'w')\nfor k in range(200_000):\n    f.write('outside ' + 'x' * 100 + str(k) + '\\n')",
        mechanism,
        wall_seconds=30,
    )
    assert outcome.ok
    assert len(outcome.seen["outside"]) <= 20_000


@pytest.mark.parametrize("mechanism", ISOLATED)
def test_two_runs_share_nothing(mechanism):
    """State that one run leaves in its temporary folder or in shared memory is not there in the next."""
    code = "import pathlib\nfor place in ('/tmp', '/dev/shm'):\n    mark = pathlib.Path(place, 'mark')\n    print(mark.exists())\n    mark.touch()"
    assert [run(code, mechanism).stdout for _ in range(2)] == ["False\nFalse\n"] * 2


def test_no_mechanism_is_chosen_silently(monkeypatch):
    """Where neither namespaces nor bubblewrap work, the referee refuses unless it is told to go unprotected."""
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


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root, to become an ordinary user"
)
@pytest.mark.parametrize("mechanism", ISOLATED)
def test_works_for_an_ordinary_user(mechanism):
    """As an ordinary user the root is built in a user namespace. The system's Python is used: root's own may lie where others cannot read."""
    python, root = "/usr/bin/python3", Path(__file__).parents[1]
    supported = (
        Path(python).exists()
        and subprocess.run(
            [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False
        ).returncode
        == 0
    )
    if not supported:
        pytest.skip(f"{python} is missing or older than 3.11")
    code = (
        f"import os, sys\nos.setresgid(1234, 1234, 1234)\nos.setresuid(1234, 1234, 1234)\nsys.path.insert(0, {str(root)!r})\nfrom eval.trial.sandbox import running as sandbox\n"
        f"reason = sandbox.unavailable({mechanism!r})\nprint('SKIP', reason) if reason else None\n"
        "job = sandbox.Job({'a.py': b'import os\\nprint(os.getuid(), os.path.exists(\"/home\"))\\nopen(\"/etc/x\", \"w\")'}, {}, ['{code}/a.py'])\n"
        f"outcome = sandbox.run(job, {mechanism!r}) if not reason else None\n"
        "print(outcome.stdout.strip(), outcome.seen['write']) if outcome else None"
    )
    done = subprocess.run(
        [python, "-B", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
        cwd="/",
    )
    if "Permission denied" in done.stderr or done.stdout.startswith("SKIP"):
        pytest.skip(f"an ordinary user cannot here: {(done.stdout + done.stderr).strip()[-200:]}")
    assert done.stdout.strip() == "1234 False ['/etc/x']", done.stderr
