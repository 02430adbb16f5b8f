"""Running a model folder: what is measured by optimization is by construction what inference serves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from services.repository.manifest import Format, Signature

__all__ = ["Array", "Backend", "BackendError", "LoadError", "RunError", "load"]

Array = NDArray[Any]


class BackendError(Exception):
    """Something went wrong in or below a backend; the text is fit for a log."""


class LoadError(BackendError):
    """The folder does not hold what its signature says, or holds what is not allowed."""


class RunError(BackendError):
    """A run that did not produce its outputs: wrong names, dtypes or shapes, or the engine failed."""


class Backend(Protocol):
    """A loaded model. `run` may be called by several threads at once: weights are shared, the GIL is released."""

    name: str

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs one batch; every array has the rows as its first dimension. Raises RunError."""

    def close(self) -> None:
        """Releases the weights. Idempotent; a run after it raises RunError."""


def load(folder: Path, signature: Signature, threads: int) -> Backend:
    """Loads by the signature's format, importing the engine only now. `threads` work inside one run. Raises LoadError."""
    if signature.format is Format.ONNX:
        from services.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(folder, signature, threads)
    from services.backends.torch import TorchBackend

    return TorchBackend(folder, signature, threads)
