"""Judging an uploaded model folder before anything trusts it: in a child process with limits, by an allow-list.

Run as a module it is that child: `inspection FOLDER [TASK]` writes one JSON object to stdout, `{"signature": …}` or `{"fault": …}`.
"""

import json
import sys
from pathlib import Path

from services.optimization.failures import BadModel
from services.optimization.uploads import allowed_files, limited_child
from services.repository.manifest import Signature, Task

MODULE = "services.optimization.uploads.inspection"
ADDRESS_SPACE_BYTES = 8 << 30  # beside the weights, which are mapped once and copied once


def inspect_folder(folder: Path, task: Task | None = None) -> Signature:
    """The signature of an uploaded folder, Hugging Face with safetensors or one ONNX file; the task is read from it when None.

    Nothing in the folder is executed, unpickled or followed out of it; everything is parsed in a child process with limits
    on time, address space and files. Raises BadModel whose text names the file and the fault.
    """
    allowed_files.check_tree(folder)  # names and links only: nothing is opened here
    try:
        answer = limited_child.ask(MODULE, str(folder.resolve()), *([task.value] if task else []))
    except limited_child.NoAnswer as error:
        raise BadModel(f"model: {error}") from error
    if "fault" in answer:
        raise BadModel(answer["fault"])
    return Signature.model_validate(answer["signature"])


def _main(folder: Path, task: Task | None) -> str:
    """The answer as JSON. BadModel is the folder's fault; anything else ends the child with its traceback."""
    weights_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    limited_child.limit_self(ADDRESS_SPACE_BYTES + 3 * weights_bytes)
    from services.optimization.uploads.parsing import parse_folder  # after the limits

    try:
        return json.dumps({"signature": parse_folder(folder, task).model_dump(mode="json")})
    except BadModel as fault:
        return json.dumps({"fault": str(fault)})
    except MemoryError:
        return json.dumps({"fault": f"model: it asks for more than the {ADDRESS_SPACE_BYTES >> 30} GB that parsing may take"})


if __name__ == "__main__":
    sys.stdout.write(_main(Path(sys.argv[1]), Task(sys.argv[2]) if len(sys.argv) > 2 else None))
