"""torch's two ways to ONNX behind one call. The tracing one is announced for removal, and still leaves the better graph."""

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import onnx
import torch

from services.optimization.failures import Toolchain, UnsupportedOperator
from services.optimization.techniques.tracing import Positional, first_line, quiet, traced_tensors
from services.optimization.techniques.verification import axes
from services.repository.manifest import Signature


class Exporter(StrEnum):
    TORCHSCRIPT = "torchscript"
    DYNAMO = "dynamo"


def missing(exporter: Exporter) -> str:
    """Why this installation does not have it, "" when it has."""
    if exporter is Exporter.DYNAMO:
        return "" if importlib.util.find_spec("onnxscript") else "the package onnxscript is not installed"
    has_switch = "dynamo" in inspect.signature(torch.onnx.export).parameters
    return (
        "" if has_switch and importlib.util.find_spec("torch.onnx._internal.torchscript_exporter") else "this torch has no tracing exporter"
    )


def _trace(module: Any, path: Path, signature: Signature, opset: int) -> None:
    """As it is, not as Positional: the names of nodes are the module's paths, by which later steps exclude them."""
    specs = (*signature.inputs, *signature.outputs)
    torch.onnx.export(
        module,
        traced_tensors(module, signature),
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=[spec.name for spec in signature.inputs],
        output_names=[spec.name for spec in signature.outputs],
        dynamic_axes={spec.name: axes(signature, spec) for spec in specs},
    )


def dynamic_shapes(signature: Signature) -> tuple[tuple[dict[int, Any], ...]]:
    """torch.export's, for `Positional`: one tuple of arguments, dimensions of one name being equal."""
    largest = {"tokens": signature.max_tokens or None}
    names = {name for spec in signature.inputs for name in axes(signature, spec).values()}
    dims = {name: torch.export.Dim(name, min=1, max=largest.get(name)) for name in sorted(names)}
    return (tuple({index: dims[name] for index, name in axes(signature, spec).items()} for spec in signature.inputs),)


def _export(module: Any, path: Path, signature: Signature, opset: int) -> None:
    program = torch.onnx.export(
        Positional(module, signature).eval(),
        traced_tensors(module, signature),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=[spec.name for spec in signature.inputs],
        dynamic_shapes=dynamic_shapes(signature),
    )
    if program is None:
        raise Toolchain("export_onnx: dynamo: the exporter answered nothing")
    _name_outputs(program.model.graph, [spec.name for spec in signature.outputs])
    program.save(str(path), external_data=False)  # a model is one file


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """By hand: the exporter's own output_names clash with values that it named after operators, an embedding's for one."""
    for node in graph:
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}_inner"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


_WAYS: Mapping[Exporter, Callable[[Any, Path, Signature, int], None]] = {Exporter.TORCHSCRIPT: _trace, Exporter.DYNAMO: _export}


def _attempt(exporter: Exporter, module: Any, path: Path, signature: Signature, opset: int) -> None:
    """Raises UnsupportedOperator or Toolchain."""
    if why := missing(exporter):
        raise Toolchain(f"export_onnx: {exporter}: {why}")
    try:
        with quiet():
            _WAYS[exporter](module, path, signature, opset)
        onnx.checker.check_model(str(path))  # dynamo's conversion down to older operator sets leaves attributes that they lack
    except torch.onnx.errors.UnsupportedOperatorError as error:
        raise UnsupportedOperator(f"export_onnx: {exporter}: {first_line(error)}") from error
    except Exception as error:  # the exporters share no class: RuntimeError, IndexError, TypeError, their own, the model's
        raise Toolchain(f"export_onnx: {exporter}: {type(error).__name__}: {first_line(error)}") from error


def export(module: Any, path: Path, signature: Signature, opset: int, asked: Exporter) -> dict[str, str]:
    """Writes `path` by the exporter asked for, or by the other where that one is absent or fails; answers the report's notes.

    Raises the failure of the exporter asked for, with the other's in its text, when neither can.
    """
    other = next(exporter for exporter in Exporter if exporter is not asked)
    try:
        _attempt(asked, module, path, signature, opset)
        return {"exporter": str(asked)}
    except (UnsupportedOperator, Toolchain) as first:
        try:
            _attempt(other, module, path, signature, opset)
        except (UnsupportedOperator, Toolchain) as second:
            raise type(first)(f"{first}; {second}") from first
        return {"exporter": str(other), "exporter_fallback": str(first)}
