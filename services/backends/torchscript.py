"""TorchScript archives, as our own export writes them: a program, so never one that was uploaded."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from services.backends import LoadError, Options
from services.backends.torch_runs import TorchRuns
from services.repository.manifest import Signature

FILE_NAME = "model.ts"


@contextlib.contextmanager
def deprecation_known() -> Iterator[None]:
    """Every entry point of torch.jit warns of its deprecation; the technique's summary tells the caller once, in its own words."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\..*deprecated", category=DeprecationWarning)
        yield


class TorchScriptBackend(TorchRuns):
    """A frozen archive whose forward takes the signature's inputs in their order and answers its one output."""

    name = "torchscript"

    def __init__(self, folder: Path, signature: Signature, threads: int) -> None:
        """Raises LoadError."""
        try:
            with deprecation_known():
                module = torch.jit.load(str(folder / FILE_NAME), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except Exception as error:  # RuntimeError, ValueError, whatever the archive's reader raises
            raise LoadError(f"{FILE_NAME}: {error}") from error
        super().__init__(lambda tensors: module(*tensors.values()), signature, threads)


def load(folder: Path, signature: Signature, threads: int, parallel_runs: int, options: Options) -> TorchScriptBackend:
    """Runs in parallel as it is; traced on the processor, so that is where it runs. Raises LoadError."""
    return TorchScriptBackend(folder, signature, threads)
