"""Running a model folder: what is measured by optimization is by construction what inference serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from services.repository.manifest import Format, Signature

__all__ = ["Array", "Backend", "BackendDied", "BackendError", "LoadError", "Options", "RunError", "engine_module", "load"]

Array = NDArray[Any]


class BackendError(Exception):
    """Something went wrong in or below a backend; the text is fit for a log."""


class LoadError(BackendError):
    """The folder does not hold what its signature says, or holds what is not allowed."""


class RunError(BackendError):
    """A run that did not produce its outputs: wrong names, dtypes or shapes, or the engine failed."""


class BackendDied(RunError):
    """What ran the model is gone, so that every further run fails; loaded anew it may go on."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is run, beside its threads; none of it changes what the model answers, beyond rounding.

    `device` is one of `devices`; an engine without GPU support leaves "auto" at the processor. `compiled` is for engines that compile
    while serving: torch. `cores` are those that the runs of all threads may use, each run's own ones side by side; none: any.
    """

    device: str = "cpu"
    compiled: bool = False
    cores: tuple[int, ...] = ()


DEFAULT = Options()


class Backend(Protocol):
    """A loaded model. `run` may be called by several threads at once: weights are shared, the GIL is released."""

    name: str

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs one batch; every array has the rows as its first dimension. Raises RunError."""

    def close(self) -> None:
        """Releases the weights. Idempotent; a run after it raises RunError."""


# Each has a `load` of its own, called by ours.
_ENGINES: Mapping[Format, str] = {
    Format.HUGGINGFACE: "services.backends.torch",
    Format.ONNX: "services.backends.onnxruntime",
    Format.TORCHSCRIPT: "services.backends.torchscript",
    Format.AOTINDUCTOR: "services.backends.aotinductor",
    Format.OPENVINO: "services.backends.openvino",
}


def engine_module(format: Format) -> str:  # noqa: A002  the signature's own word
    """Name of the module that runs a format; importing it brings in the engine."""
    return _ENGINES[format]


def load(folder: Path, signature: Signature, threads: int, parallel_runs: int = 1, options: Options = DEFAULT) -> Backend:
    """Loads by the signature's format, importing the engine only now. Raises LoadError.

    `threads` work inside one run; `parallel_runs` go on at once without waiting for one another, more are right but may wait.
    A program is executed: only folders that our own jobs made may come here, see repository.programs.
    """
    try:
        engine = import_module(engine_module(signature.format))
    except ModuleNotFoundError as error:  # OpenVINO is an extra
        raise LoadError(f"{signature.format} models need {error.name}, which is not installed here") from error
    loaded: Backend = engine.load(folder, signature, threads, parallel_runs, options)
    return loaded
