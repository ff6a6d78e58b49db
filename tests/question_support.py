"""What the tests of `check`'s questions share: sound records of the contest's track, and edits."""

import base64
import lzma

from check_support import GOOD, public_folder, public_log

from eval.papers.checks.run import check_folder

TRACK = "track_10min_16mb"
LOG = "train_seed1.log"
SCRIPT = "import math\n"  # 12 bytes, as GOOD states
TOO_LARGE = 16_000_001
SP1024_TOKENS = 62_021_632
SEEDS = {1: 1.10, 2: 1.11, 3: 1.12}  # bits per byte


def contest_folder(parent, submission=(), logs=None, code=SCRIPT):
    """A sound record of the contest's track, with these changes."""
    place = parent / TRACK
    place.mkdir(parents=True)
    stated = GOOD | {"val_bpb": 1.1} | dict(submission)
    return public_folder(place, stated, {LOG: public_log(1, 1.1)} if logs is None else logs, code)


def edited(log, old, new):
    assert old in log, old
    return log.replace(old, new)


def checked(folder, name):
    """All answers to one question."""
    return [check for check in check_folder(folder).checks if check.name == name]


def answer(folder, name):
    (check,) = checked(folder, name)
    return check


def wrapped(source):
    packed = base64.b85encode(lzma.compress(source.encode())).decode()
    return f"import lzma as L,base64 as B\nexec(L.decompress(B.b85decode('{packed}')))\n"
