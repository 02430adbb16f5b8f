"""Modules to AOTInductor packages. Imports torch."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from services.optimization import folder
from services.optimization.failures import Toolchain, UnsupportedOperator
from services.optimization.techniques.aotinductor import FILE_NAME
from services.optimization.techniques.onnx_exporters import dynamic_shapes
from services.optimization.techniques.technique import Context, Outcome
from services.optimization.techniques.tracing import Positional, first_line, load_source, quiet, traced_tensors, vocabulary
from services.optimization.techniques.verification import TOLERANCES, module_answer, trials, verify
from services.repository.manifest import Format, Signature

if TYPE_CHECKING:
    from services.optimization.techniques.aotinductor import AotInductorParameters

_TEMPORARY = ("TORCHINDUCTOR_CACHE_DIR", "TMPDIR")


@contextlib.contextmanager
def _building_in(scratch: Path) -> Iterator[None]:
    """Generated sources, objects and the compiler's own temporary files stay in the step's folder and go with it."""
    before = {name: os.environ.get(name) for name in _TEMPORARY}
    os.environ.update(dict.fromkeys(_TEMPORARY, str(scratch)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def exported(module: Any, signature: Signature) -> torch.export.ExportedProgram:
    """The graph of the module with its inputs by position and its varying dimensions free. Raises UnsupportedOperator."""
    try:
        with quiet(), torch.inference_mode():
            return torch.export.export(
                Positional(module, signature).eval(), traced_tensors(module, signature), dynamic_shapes=dynamic_shapes(signature)
            )
    except Exception as error:  # its own dozen classes, and whatever the model's Python raises on symbols
        raise UnsupportedOperator(f"aotinductor: torch.export: {type(error).__name__}: {first_line(error)}") from error


def _compile(program: torch.export.ExportedProgram, path: Path, threads: int, *, freezing: bool) -> None:
    """Raises Toolchain."""
    configuration = {
        "freezing": freezing,
        "compile_threads": max(1, threads),
        "cpp.dynamic_threads": True,  # or the package runs on as many threads as compiled it, whoever serves it
        "aot_inductor.precompile_headers": False,  # hundreds of megabytes, left in the system's temporary folder whatever the cache's is
    }
    try:
        with quiet(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configuration)
    except Exception as error:  # Inductor's own, the C++ compiler's, the packer's
        raise Toolchain(f"aotinductor: {type(error).__name__}: {first_line(error)}") from error


def compile_package(context: Context, parameters: "AotInductorParameters") -> Outcome:
    """Raises BadModel, UnsupportedOperator or Toolchain."""
    dtype = parameters.dtype or context.signature.dtype
    signature = context.signature.model_copy(update={"format": Format.AOTINDUCTOR, "dtype": dtype})
    module = load_source(context, dtype)
    context.progress(0.1, "exporting the graph")
    program = exported(module, signature)
    context.progress(0.2, "compiling")
    with _building_in(context.scratch):
        _compile(program, context.target / FILE_NAME, context.threads, freezing=parameters.freezing)
    folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
    context.progress(0.9, "verifying on other shapes")
    tried = list(trials(signature, vocabulary(module)))
    tolerance = TOLERANCES[dtype]
    off = verify("aotinductor", module_answer(module), context.target, signature, tried, threads=context.threads, tolerance=tolerance)
    notes = {"dtype": dtype, "compiled_for": torch.backends.cpu.get_cpu_capability(), "largest_deviation": off}
    return Outcome(signature, notes | {"graph_nodes": len(program.graph.nodes), "verified_shapes": len(tried)})
