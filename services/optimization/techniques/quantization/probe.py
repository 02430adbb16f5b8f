"""One run of a result before it is called one: a graph may be written, and even load, and still not run."""

from pathlib import Path

import numpy as np

from services import backends
from services.backends import Array
from services.optimization.failures import Toolchain
from services.repository.manifest import Signature, TensorSpec

ROWS = 2
FREE = 8  # the size of every dimension that varies, but the rows
_DTYPES = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "INT64": np.int64, "INT32": np.int32}


def _example(spec: TensorSpec) -> Array:
    """Ones: an index that every table has, a mask that hides nothing."""
    shape = (ROWS, *(FREE if size < 0 else size for size in spec.shape[1:]))
    return np.ones(shape, _DTYPES.get(spec.datatype, np.float32))


def run_once(folder: Path, signature: Signature, threads: int, technique: str) -> None:
    """Raises Toolchain where the model does not load, does not run, or answers NaN or infinity."""
    outputs = [spec.name for spec in signature.outputs]
    try:
        loaded = backends.load(folder, signature, threads)
        found = loaded.run({spec.name: _example(spec) for spec in signature.inputs}, outputs)
    except backends.BackendError as error:
        raise Toolchain(f"{technique}: the quantized model does not run: {error}") from error
    loaded.close()
    broken = [name for name, values in found.items() if not np.isfinite(values).all()]
    if broken:
        raise Toolchain(f"{technique}: the quantized model answers NaN or infinity in {broken[0]!r}")
