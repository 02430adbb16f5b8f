"""Judging an uploaded model folder before anything trusts it: in a child process with limits, by an allow-list.

Run as a module it is that child: `inspection FOLDER [TASK]` writes one JSON object to stdout, `{"signature": …}` or `{"fault": …}`.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from services.optimization import allowed_files
from services.optimization.failures import BadModel
from services.repository.manifest import Signature, Task

CPU_SECONDS = 120
WALL_SECONDS = 180
# Address space, not memory: torch alone reserves several GB of it. Weights are mapped once and copied once.
ADDRESS_SPACE_BYTES = 8 << 30
OPEN_FILES = 256
FILE_BYTES = 64 << 10  # a library that probes for a temporary folder writes a few bytes
_ROOT = Path(__file__).parents[2]


def inspect_folder(folder: Path, task: Task | None = None) -> Signature:
    """The signature of an uploaded folder, Hugging Face with safetensors or one ONNX file; the task is read from it when None.

    Nothing in the folder is executed, unpickled or followed out of it; everything is parsed in a child process with limits
    on time, address space and files. Raises BadModel whose text names the file and the fault.
    """
    allowed_files.check_tree(folder)  # names and links only: nothing is opened here
    answer = _ask_child(folder.resolve(), task)
    if "fault" in answer:
        raise BadModel(answer["fault"])
    return Signature.model_validate(answer["signature"])


def _environment() -> dict[str, str]:
    """Nothing of ours but the path: no credentials, no proxies, no hub."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return kept | quiet | {"PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def _ask_child(folder: Path, task: Task | None) -> dict[str, str]:
    command = [sys.executable, "-P", "-m", "services.optimization.inspection", str(folder), *([task.value] if task else [])]
    with tempfile.TemporaryDirectory() as empty:
        try:
            done = subprocess.run(  # noqa: S603  our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=WALL_SECONDS,
                env=_environment() | {"HOME": empty, "TMPDIR": empty},
                cwd=empty,
            )
        except subprocess.TimeoutExpired as error:
            raise BadModel(f"model: parsing took longer than {WALL_SECONDS} s") from error
    if done.returncode != 0 or not done.stdout:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BadModel(f"model: parsing ended without an answer, as broken files or ones past the limits make it: {last[0]}")
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


def _limit_self(weights_bytes: int) -> None:
    """Every limit is final."""
    space = ADDRESS_SPACE_BYTES + 3 * weights_bytes
    for kind, most in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _main(folder: Path, task: Task | None) -> str:
    """The answer as JSON. BadModel is the folder's fault; anything else ends the child with its traceback."""
    _limit_self(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    from services.optimization.parsing import parse_folder  # after the limits

    try:
        return json.dumps({"signature": parse_folder(folder, task).model_dump(mode="json")})
    except BadModel as fault:
        return json.dumps({"fault": str(fault)})
    except MemoryError:
        return json.dumps({"fault": f"model: it asks for more than the {ADDRESS_SPACE_BYTES >> 30} GB that parsing may take"})


if __name__ == "__main__":
    sys.stdout.write(_main(Path(sys.argv[1]), Task(sys.argv[2]) if len(sys.argv) > 2 else None))
