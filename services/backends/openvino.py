"""OpenVINO's intermediate representation on its CPU plug-in; made by our own jobs, never one that was uploaded."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from services.backends import DEFAULT, Array, LoadError, Options, RunError
from services.backends.datatypes import check_inputs
from services.backends.limits import Limits
from services.repository.manifest import Signature

FILE_NAME, WEIGHTS_NAME = "model.xml", "model.bin"


def _properties(signature: Signature, threads: int, parallel_runs: int, options: Options) -> dict[str, Any]:
    """Without a precision the plug-in computes in bfloat16 wherever the processor can, which no signature says."""
    return {
        "NUM_STREAMS": parallel_runs,
        "INFERENCE_NUM_THREADS": threads * parallel_runs,  # over all streams
        "INFERENCE_PRECISION_HINT": "bf16" if signature.dtype == "bfloat16" else "f32",
        "ENABLE_CPU_PINNING": bool(options.cores),  # otherwise cores are shared with other models' threads, which nobody pins
    }


def _compiled(folder: Path, properties: Mapping[str, Any]) -> Any:
    try:
        core = openvino.Core()
        return core.compile_model(core.read_model(folder / FILE_NAME, folder / WEIGHTS_NAME), "CPU", dict(properties))
    except Exception as error:  # the engine raises RuntimeError and its own classes
        raise LoadError(f"{FILE_NAME}: {error}") from error


def _names(ports: Sequence[Any]) -> set[str]:
    return {name for port in ports for name in port.get_names()}


class OpenVinoBackend:
    """A compiled model; each thread that calls `run` has its own request, all of them share the weights."""

    name = "openvino"

    def __init__(self, folder: Path, signature: Signature, threads: int, parallel_runs: int = 1, options: Options = DEFAULT) -> None:
        """Raises LoadError."""
        self._model: Any = _compiled(folder, _properties(signature, threads, parallel_runs, options))
        self._signature = signature
        self._limits = Limits.of(folder, signature)
        wanted = {spec.name for spec in (*signature.inputs, *signature.outputs)}
        missing = wanted - _names(self._model.inputs) - _names(self._model.outputs)
        if missing:
            raise LoadError(f"{FILE_NAME}: the graph and the signature disagree about {sorted(missing)}")
        self._outputs = frozenset(_names(self._model.outputs))
        self._requests = threading.local()

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        model = self._model
        if model is None:
            raise RunError("the model is closed")
        if set(outputs) - self._outputs:
            raise RunError(f"the model answers {sorted(self._outputs)}, not {sorted(set(outputs) - self._outputs)}")
        check_inputs(self._signature, inputs)
        self._limits.check(inputs)
        return self._infer(model, inputs, outputs) if outputs else {}

    def _infer(self, model: Any, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        request = getattr(self._requests, "request", None)
        if request is None:
            request = self._requests.request = model.create_infer_request()
        try:
            request.infer({spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self._signature.inputs})
            return {name: request.get_tensor(name).data.copy() for name in outputs}  # the request's own memory is written to again
        except Exception as error:  # as above: no common class
            raise RunError(str(error)) from error

    def close(self) -> None:
        self._model = None
        self._requests = threading.local()


def load(folder: Path, signature: Signature, threads: int, parallel_runs: int, options: Options) -> OpenVinoBackend:
    """Raises LoadError."""
    return OpenVinoBackend(folder, signature, threads, parallel_runs, options)
