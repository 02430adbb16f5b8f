"""ONNX models on onnxruntime: its CPU provider, and its CUDA provider where there is one."""

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from services.backends import DEFAULT, Array, LoadError, Options, RunError, devices
from services.backends.onnx_wire import has_external_data, operator_domains
from services.repository.manifest import Signature

FILE_NAME = "model.onnx"
# A domain beyond these is native code that somebody would have to register: refused.
ALLOWED_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

_ERROR_SEVERITY = 3
# What the GPU has no kernel for runs on the processor.
_PROVIDERS = {devices.CPU: ["CPUExecutionProvider"], devices.CUDA: ["CUDAExecutionProvider", "CPUExecutionProvider"]}
_ARENAS = {devices.CPU: "cpu:0", devices.CUDA: "cpu:0;gpu:0"}


def check_file(path: Path) -> None:
    """Refuses operators of unknown domains and tensors in other files. Raises LoadError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        unknown = operator_domains(view) - ALLOWED_DOMAINS
        external = has_external_data(view)
    if unknown:
        raise LoadError(f"{path.name}: operators of the domain {min(unknown)!r} are not supported")
    if external:
        raise LoadError(f"{path.name}: tensors in other files are refused; a model is one file")


def affinities(cores: Sequence[int], threads: int) -> str:
    """onnxruntime's `session.intra_op_thread_affinities` for runs that have `threads` cores each, side by side; "" where there is none.

    It counts processors from 1 and does not name the calling thread, which is the first of each run: the workers, shared by all runs,
    may each use one core of every run.
    """
    if not cores:
        return ""
    runs = len(cores) // threads
    return ";".join(",".join(str(cores[run * threads + worker] + 1) for run in range(runs)) for worker in range(1, threads))


def _options(threads: int, cores: Sequence[int]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR_SEVERITY
    # Spinning workers burn the cores that the neighbours, and the other instances, need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if pinned := affinities(cores, threads):
        options.add_session_config_entry("session.intra_op_thread_affinities", pinned)
    return options


def _session(path: Path, options: ort.SessionOptions, device: str) -> ort.InferenceSession:
    """By path: measured, loading from bytes holds half as much memory again, for good."""
    try:
        check_file(path)
        return ort.InferenceSession(str(path), options, providers=_PROVIDERS[device])
    except LoadError:
        raise
    except Exception as error:  # the engine raises a dozen unrelated classes
        raise LoadError(f"{path.name}: {error}") from error


class OnnxRuntimeBackend:
    """A session and its weights, shared by every thread that calls `run`."""

    def __init__(self, folder: Path, signature: Signature, threads: int, options: Options = DEFAULT) -> None:
        """Raises LoadError."""
        device = devices.choose(options.device, cuda=_PROVIDERS[devices.CUDA][0] in ort.get_available_providers())
        self.name = "onnxruntime" if device == devices.CPU else f"onnxruntime {device}"
        self._session: ort.InferenceSession | None = _session(folder / FILE_NAME, _options(threads, options.cores), device)
        self._inputs = frozenset(value.name for value in self._session.get_inputs())
        known = {value.name for value in self._session.get_outputs()}
        missing = ({spec.name for spec in signature.inputs} ^ self._inputs) | ({spec.name for spec in signature.outputs} - known)
        if missing:
            raise LoadError(f"{FILE_NAME}: the graph and the signature disagree about {sorted(missing)}")
        # Returns the arena's free chunks after each run. Measured: as fast as keeping them, while a 64x256 batch leaves
        # 33 MB behind instead of 630 MB; switching the arena off instead costs 3 to 14 % on long batches.
        self._run_options = ort.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", _ARENAS[device])
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


def load(folder: Path, signature: Signature, threads: int, parallel_runs: int, options: Options) -> OnnxRuntimeBackend:
    """Runs in parallel as it is. Raises LoadError."""
    return OnnxRuntimeBackend(folder, signature, threads, options)
