"""Running anything that maps named tensors to the one output tensor, as a backend."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from services.backends import Array, RunError
from services.backends.datatypes import check_inputs
from services.backends.limits import NO_LIMITS, Limits
from services.repository.manifest import Signature

Call = Callable[[dict[str, Tensor]], Tensor]


class TorchRuns:
    """A callable and its weights, shared by every thread that calls `run`."""

    name = "torch"

    def __init__(self, call: Call, signature: Signature, threads: int, limits: Limits = NO_LIMITS, device: str = "cpu") -> None:
        """`call` takes the signature's inputs by name, in the signature's order, on `device`; `limits` is for one that does not look."""
        self._call: Call | None = call
        self._output = signature.outputs[0].name
        self._signature = signature
        self._threads = threads
        self._limits = limits
        self._device = device

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        call = self._call
        if call is None:
            raise RunError("the model is closed")
        if set(outputs) - {self._output}:
            raise RunError(f"the model answers {self._output!r} alone, not {sorted(set(outputs) - {self._output})}")
        check_inputs(self._signature, inputs)
        self._limits.check(inputs)
        return {self._output: self._forward(call, inputs)} if outputs else {}

    def _forward(self, call: Call, inputs: Mapping[str, Array]) -> Array:
        # torch keeps the number per calling thread, and another model of this process may want another one.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                arrays = {spec.name: np.ascontiguousarray(inputs[spec.name]) for spec in self._signature.inputs}
                tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}
                answer: Array = call(tensors).cpu().numpy()  # both moves are free where the tensor is there already
        except Exception as error:  # torch raises RuntimeError, IndexError, TypeError, …
            raise RunError(str(error)) from error
        return answer

    def close(self) -> None:
        self._call = None
