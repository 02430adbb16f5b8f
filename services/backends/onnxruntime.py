"""ONNX models on onnxruntime's CPU provider."""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from services.backends import Array, LoadError, RunError
from services.repository.manifest import Signature

FILE_NAME = "model.onnx"
# A domain beyond these is native code that somebody would have to register: refused.
ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

# Field numbers in onnx.proto: ModelProto.opset_import and OperatorSetIdProto.domain.
_OPSET_IMPORT, _DOMAIN = 8, 1
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_ERROR_SEVERITY = 3


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a varint of more than ten bytes")


def _length_delimited(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of one protobuf message, unopened. Raises ValueError or IndexError when malformed."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        match key & 7:
            case wire if wire == _LENGTH_DELIMITED:
                size, at = _varint(data, at)
                if at + size > len(data):
                    raise ValueError("the file ends within a field")
                yield key >> 3, data[at : at + size]
                at += size
            case wire if wire == _VARINT:
                _, at = _varint(data, at)
            case wire if wire == _FIXED64:
                at += 8
            case wire if wire == _FIXED32:
                at += 4
            case wire:
                raise ValueError(f"wire type {wire}")


def operator_domains(model: memoryview) -> set[str]:
    """Operator domains that a serialized ModelProto imports; a model cannot use one that it does not import.

    Read from the wire, so that serving needs no onnx package and opens no weight. Raises ValueError or IndexError.
    """
    imports = (payload for field, payload in _length_delimited(model) if field == _OPSET_IMPORT)
    return {next((bytes(value).decode() for field, value in _length_delimited(entry) if field == _DOMAIN), "") for entry in imports}


def _check_domains(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        unknown = operator_domains(view) - ALLOWED_DOMAINS
    if unknown:
        raise LoadError(f"{path.name}: operators of the domain {sorted(unknown)[0]!r} are not supported")


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR_SEVERITY
    # Spinning workers burn the cores that the neighbours, and the other instances, need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(path: Path, threads: int) -> ort.InferenceSession:
    """From bytes, not from a path: without a folder of its own the engine refuses external data of any kind."""
    try:
        _check_domains(path)
        return ort.InferenceSession(path.read_bytes(), _options(threads), providers=["CPUExecutionProvider"])
    except LoadError:
        raise
    except Exception as error:  # the engine raises a dozen unrelated classes
        raise LoadError(f"{path.name}: {error}") from error


class OnnxRuntimeBackend:
    """A session and its weights, shared by every thread that calls `run`."""

    name = "onnxruntime"

    def __init__(self, folder: Path, signature: Signature, threads: int) -> None:
        """Raises LoadError."""
        self._session: ort.InferenceSession | None = _session(folder / FILE_NAME, threads)
        self._inputs = frozenset(value.name for value in self._session.get_inputs())
        known = {value.name for value in self._session.get_outputs()}
        missing = ({spec.name for spec in signature.inputs} ^ self._inputs) | ({spec.name for spec in signature.outputs} - known)
        if missing:
            raise LoadError(f"{FILE_NAME}: the graph and the signature disagree about {sorted(missing)}")
        # Returns the arena's free chunks after each run. Measured: as fast as keeping them, while a 64x256 batch leaves
        # 33 MB behind instead of 630 MB; switching the arena off instead costs 3 to 14 % on long batches.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._run_options.log_severity_level = _ERROR_SEVERITY

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise RunError("the model is closed")
        feeds = {name: np.ascontiguousarray(value) for name, value in inputs.items() if name in self._inputs}
        try:
            values = session.run(list(outputs), feeds, self._run_options)
        except Exception as error:  # as above: no common class
            raise RunError(str(error)) from error
        return dict(zip(outputs, values, strict=True))

    def close(self) -> None:
        self._session = None
