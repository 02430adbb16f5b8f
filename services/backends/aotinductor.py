"""Packages that AOTInductor compiled for this kind of processor: native code, so never one that was uploaded."""

from pathlib import Path

from torch._inductor.package.package import load_package

from services.backends import LoadError, Options
from services.backends.limits import Limits
from services.backends.torch_runs import TorchRuns
from services.repository.manifest import Signature

FILE_NAME = "model.pt2"


class AotInductorBackend(TorchRuns):
    """A package whose graph takes the signature's inputs in their order and answers its one output."""

    name = "aotinductor"

    def __init__(self, folder: Path, signature: Signature, threads: int, parallel_runs: int = 1) -> None:
        """A runner serves one call at a time; all of them share the weights. Raises LoadError."""
        path = folder / FILE_NAME
        if not path.is_file():  # the loader takes a path that is not there for a package of an older kind
            raise LoadError(f"{FILE_NAME}: missing")
        try:
            package = load_package(str(path), num_runners=parallel_runs)
        except Exception as error:  # RuntimeError, OSError, zipfile's own
            raise LoadError(f"{FILE_NAME}: {error}") from error
        super().__init__(lambda tensors: package(*tensors.values()), signature, threads, Limits.of(folder, signature))


def load(folder: Path, signature: Signature, threads: int, parallel_runs: int, options: Options) -> AotInductorBackend:
    """Our jobs compile for the processor, so that is where it runs. Raises LoadError."""
    return AotInductorBackend(folder, signature, threads, parallel_runs)
