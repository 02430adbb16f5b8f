"""Where a model is run."""

from services.backends import LoadError

CPU, CUDA, AUTO = "cpu", "cuda", "auto"


def choose(wanted: str, *, cuda: bool) -> str:
    """`cpu` or `cuda` for what is wanted, given whether the engine can use a GPU here. Raises LoadError."""
    if wanted == CUDA and not cuda:
        raise LoadError("device cuda was asked for, and this engine finds no GPU here")
    return CUDA if cuda and wanted != CPU else CPU
