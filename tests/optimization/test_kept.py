import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.optimization.kept import KeptStep, KeptSteps, digest_of
from tests.models import minilm_signature

DIGEST = digest_of({"a": 1})
SIGNATURE = minilm_signature()

# Stages a model, tells so, and waits to be killed.
STAGING = """
import sys
from pathlib import Path
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
    steps.shrink(25_000)
    assert [steps.find(digest) is not None for digest in digests] == [True, False, True]
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
