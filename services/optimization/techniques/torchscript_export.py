"""Modules to TorchScript archives, by trace or by script. Imports torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from services.optimization import folder
from services.optimization.failures import Toolchain, UnsupportedOperator
from services.optimization.techniques.onnx_exporters import dynamic_shapes
from services.optimization.techniques.technique import Context, Outcome
from services.optimization.techniques.torchscript import FILE_NAME
from services.optimization.techniques.tracing import Positional, first_line, load_source, quiet, traced_tensors, vocabulary
from services.optimization.techniques.verification import TOLERANCES, module_answer, trials, verify
from services.repository.manifest import Format, Signature

if TYPE_CHECKING:
    from services.optimization.techniques.torchscript import TorchScriptParameters


def trace(technique: str, module: nn.Module, signature: Signature) -> Any:
    """Records the operators of one padded example. Raises Toolchain."""
    try:
        with quiet(), torch.inference_mode():
            # Its own check runs the same example again; `verify` runs others.
            return torch.jit.trace(  # type: ignore[no-untyped-call]  # torch.jit has no annotations
                Positional(module, signature).eval(), traced_tensors(module, signature), check_trace=False
            )
    except Exception as error:  # RuntimeError, TypeError, whatever the model's Python raises while it is followed
        raise Toolchain(f"{technique}: tracing failed: {type(error).__name__}: {first_line(error)}") from error


def _script_graph(module: nn.Module, signature: Signature) -> Any:
    """Scripts torch.export's graph of the module: real TorchScript source, of operators, for Python that no script compiler reads."""
    graph = torch.export.export(
        Positional(module, signature).eval(), traced_tensors(module, signature), dynamic_shapes=dynamic_shapes(signature)
    ).module(check_guards=False)
    for node in list(graph.graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload):
            node.target = node.target.overloadpacket  # TorchScript chooses overloads by itself
        if node.op == "output":
            (node.args,) = (tuple(node.args[0]),)  # the one tensor instead of a tuple of it
    graph.graph.set_codegen(torch.fx.graph.CodeGen())  # arguments as they are, without pytrees around them
    return torch.jit.script(torch.fx.GraphModule(graph, graph.graph))


def script(technique: str, module: nn.Module, signature: Signature) -> tuple[Any, dict[str, Any]]:
    """Compiles the module's own source, or where that cannot be read the graph that torch.export makes of it; with notes.

    Raises UnsupportedOperator with both compilers' reasons.
    """
    try:
        with quiet():
            return torch.jit.script(module), {"scripted": "source"}
    except Exception as error:  # OSError without source, the frontend's own classes, RuntimeError from the compiler
        reason = f"{type(error).__name__}: {first_line(error)}"
    try:
        with quiet(), torch.inference_mode():
            return _script_graph(module, signature), {"scripted": "graph of torch.export", "source_refused": reason}
    except Exception as error:  # as above, and torch.export's
        name = type(getattr(module, "model", module)).__name__
        raise UnsupportedOperator(
            f"{technique}: {name} cannot be scripted, trace it: {reason}; its graph: {type(error).__name__}: {first_line(error)}"
        ) from error


def freeze(technique: str, scripted: Any, path: Path, *, optimize: bool) -> dict[str, Any]:
    """Writes the archive: weights as constants, folded and packed where `optimize` says so; answers notes. Raises Toolchain."""
    try:
        with quiet(), torch.inference_mode():
            frozen = torch.jit.freeze(scripted.eval())
            if optimize:
                if not (refused := _write_optimized(frozen, path)):
                    return {"optimized_for_inference": True}
                frozen = torch.jit.freeze(scripted.eval())  # the passes have rewritten the first one in place
            frozen.save(str(path))
    except Exception as error:  # RuntimeError mostly; the passes raise others
        raise Toolchain(f"{technique}: freezing failed: {type(error).__name__}: {first_line(error)}") from error
    return {"optimized_for_inference": False} | ({"optimization_refused": refused} if optimize else {})


def _write_optimized(frozen: Any, path: Path) -> str:
    """Why the archive is no good, "" when it is: convolutions packed for oneDNN are saved as constants that no loader reads."""
    try:
        torch.jit.optimize_for_inference(frozen).save(str(path))
        torch.jit.load(str(path))  # type: ignore[no-untyped-call]  # as above
    except Exception as error:  # the passes', the writer's and the reader's
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def export(context: Context, parameters: "TorchScriptParameters") -> Outcome:
    """Raises BadModel, UnsupportedOperator or Toolchain."""
    signature = context.signature.model_copy(update={"format": Format.TORCHSCRIPT})
    module = load_source(context)
    context.progress(0.2, f"{parameters.mode}: compiling")
    how: dict[str, Any] = {}
    if parameters.mode == "script":
        scripted, how = script("torchscript", module, signature)
    else:
        scripted = trace("torchscript", module, signature)
    how |= freeze("torchscript", scripted, context.target / FILE_NAME, optimize=parameters.optimize)
    folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
    context.progress(0.7, "verifying on other shapes")
    tried = list(trials(signature, vocabulary(module)))
    tolerance = TOLERANCES[signature.dtype]
    off = verify("torchscript", module_answer(module), context.target, signature, tried, threads=context.threads, tolerance=tolerance)
    notes = {"mode": parameters.mode, "dtype": signature.dtype, **how}
    return Outcome(signature, notes | {"largest_deviation": off, "verified_shapes": len(tried)})
