"""Finished steps, checkpoints and kept answers: whole or absent, used by several processes, within their bytes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.optimization.failures import Toolchain
from services.optimization.kept import CHECKPOINT_LIFE_S, KeptStep, KeptSteps, digest_of
from tests.models import minilm_signature

DIGEST = digest_of({"a": 1})
SIGNATURE = minilm_signature()

# Stages a model, tells so, and waits to be killed.
STAGING = """
import sys
from pathlib import Path
from services.optimization.failures import Toolchain
from services.optimization.kept import KeptSteps
with KeptSteps(Path(sys.argv[1])).stage() as model:
    (model / "model.onnx").write_bytes(b"half")
    print("staged", flush=True)
    sys.stdin.read()
"""


def keep(steps: KeptSteps, content: bytes) -> KeptStep:
    with steps.stage() as model:
        (model / "model.onnx").write_bytes(content)
        return steps.keep(DIGEST, model, SIGNATURE, {"excluded": ["a"]}, 1.5)


def test_kept_is_found_again(tmp_path: Path) -> None:
    kept = keep(KeptSteps(tmp_path), b"weights")
    again = KeptSteps(tmp_path)
    assert again.find(DIGEST) == kept
    assert (again.model(DIGEST) / "model.onnx").read_bytes() == b"weights"


def test_shrinking_keeps_what_was_of_use_last(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    digests = [digest_of({"step": number}) for number in range(3)]
    for age, digest in enumerate(digests):
        with steps.stage() as model:
            (model / "model.onnx").write_bytes(bytes(10_000))
            steps.keep(digest, model, SIGNATURE, {}, 1.0)
        os.utime(tmp_path / digest / "step.json", (age, age))
    assert steps.find(digests[0]) is not None  # of use again
    steps.close()
    steps.shrink(25_000)
    assert [steps.find(digest) is not None for digest in digests] == [True, False, True]
    steps.close()
    steps.shrink(0)
    assert not any(steps.find(digest) for digest in digests)


def test_unknown_is_not_found(tmp_path: Path) -> None:
    assert KeptSteps(tmp_path).find(DIGEST) is None


def test_a_flipped_byte_makes_it_absent_and_it_can_be_kept_anew(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    keep(steps, b"weights")
    (steps.model(DIGEST) / "model.onnx").write_bytes(b"weightz")
    assert steps.find(DIGEST) is None
    keep(steps, b"weights")
    assert steps.find(DIGEST) is not None


def fail_while_staging(steps: KeptSteps) -> None:
    with steps.stage() as model:
        (model / "model.onnx").write_bytes(b"half")
        raise RuntimeError


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    with pytest.raises(RuntimeError):
        fail_while_staging(steps)
    assert steps.find(DIGEST) is None
    assert not list(tmp_path.rglob("model.onnx"))


def test_first_of_two_stands(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    first = keep(steps, b"first")
    assert keep(steps, b"second") == first
    assert (steps.model(DIGEST) / "model.onnx").read_bytes() == b"first"


def test_killed_while_staging_leaves_nothing_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STAGING, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        KeptSteps(tmp_path)
        assert len(list(tmp_path.rglob("model.onnx"))) == 1
        process.kill()
        process.wait()
    KeptSteps(tmp_path)
    assert not list(tmp_path.rglob("model.onnx"))


def test_what_another_process_uses_is_not_removed(tmp_path: Path) -> None:
    user, other = KeptSteps(tmp_path), KeptSteps(tmp_path)
    keep(user, b"weights")
    other.shrink(0)
    assert user.find(DIGEST) is not None
    user.close()
    other.shrink(0)
    assert user.find(DIGEST) is None


# Checkpoints and answers

# Writes a checkpoint, tells so, and waits to be killed.
TRAINING = """
import sys
from pathlib import Path
from services.optimization.failures import Toolchain
from services.optimization.kept import KeptSteps
steps = KeptSteps(Path(sys.argv[1]))
(steps.checkpoints(sys.argv[2]) / "step-3").write_text("half way")
print("written", flush=True)
sys.stdin.read()
"""


def test_checkpoints_survive_a_kill_and_go_when_the_step_is_kept(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINING, str(tmp_path), DIGEST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        beside = KeptSteps(tmp_path)
        assert list(beside.checkpoints(DIGEST).iterdir()) == []  # another that trains the same has a folder of its own
        beside.shrink(0)
        beside.close()
        process.kill()
        process.wait()
    steps = KeptSteps(tmp_path)
    found = steps.checkpoints(DIGEST)
    assert (found / "step-3").read_text() == "half way"
    assert steps.checkpoints(DIGEST) == found
    keep(steps, b"trained")
    assert not found.exists()
    assert list(steps.checkpoints(DIGEST).iterdir()) == []


def test_checkpoints_of_another_step_stay(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    other = steps.checkpoints(digest_of({"another": 1}))
    keep(steps, b"weights")
    assert other.is_dir()


def test_checkpoints_that_nobody_went_on_with_for_a_week_are_given_up(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    folders = [steps.checkpoints(digest_of({"step": number})) for number in range(2)]
    for folder in folders:
        (folder / "last").write_text("x")
    steps.close()
    for path in (folders[0], folders[0] / "last"):
        os.utime(path, times=(path.stat().st_atime, path.stat().st_mtime - CHECKPOINT_LIFE_S - 60))
    steps.shrink(1 << 30)
    assert [folder.exists() for folder in folders] == [False, True]


def test_answers_go_first_when_they_were_of_use_longest_ago(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    keep(steps, bytes(10_000))
    checkpoint = steps.checkpoints(digest_of({"another": 1}))
    (checkpoint / "last").write_bytes(bytes(10_000))
    for name in ("old", "new"):
        (steps.outputs / name).write_bytes(bytes(10_000))
    ages = {steps.outputs / "old": 4, tmp_path / DIGEST / "step.json": 3, checkpoint / "last": 2, checkpoint: 2, steps.outputs / "new": 1}
    for path, age in ages.items():
        os.utime(path, times=(path.stat().st_atime, path.stat().st_mtime - age * 60))
    steps.close()
    there = [steps.outputs / "old", steps.model(DIGEST), checkpoint, steps.outputs / "new"]
    for kept_bytes, left in ((45_000, 4), (35_000, 3), (25_000, 2), (15_000, 1), (0, 0)):
        steps.shrink(kept_bytes)
        assert [path.exists() for path in there] == [False] * (4 - left) + [True] * left


def test_a_full_disk_leaves_nothing_of_a_step(tmp_path: Path) -> None:
    """A file may not grow past 64 KiB there."""
    program = """
import resource, signal, sys
from pathlib import Path
from services.optimization.failures import Toolchain
from services.optimization.kept import KeptSteps, digest_of
from tests.models import minilm_signature
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
steps = KeptSteps(Path(sys.argv[1]))
with steps.stage() as model:
    (model / "model.onnx").write_bytes(bytes(1 << 17))
    steps.keep(digest_of({"a": 1}), model, minilm_signature(), {}, 1.0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert "OSError: [Errno 28] No space left on device" in done.stderr
    assert KeptSteps(tmp_path).find(DIGEST) is None
    assert not list(tmp_path.rglob("model.onnx"))


def test_a_full_disk_that_a_technique_calls_something_else_is_told_as_such(tmp_path: Path) -> None:
    steps = KeptSteps(tmp_path)
    with pytest.raises(OSError, match="No space left"), steps.stage():
        raise Toolchain("the exporter broke") from OSError(errno.EFBIG, "File too large")
    with pytest.raises(Toolchain), steps.stage():
        raise Toolchain("the exporter broke")


def test_an_answer_half_removed_goes_with_the_next_one(tmp_path: Path) -> None:
    """Removing renames it aside first; a kill in between leaves a file among the folders."""
    KeptSteps(tmp_path)
    left = tmp_path / "staging" / "aside"
    left.write_bytes(b"answers")
    KeptSteps(tmp_path)
    assert not left.exists()
