"""Quantization-aware training, from a Hugging Face folder to an INT8 ONNX file that agrees with what was trained."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from services import backends
from services.optimization import folder
from services.optimization.environment import cpu_features, has_int8_dot
from services.optimization.evaluation import fidelity
from services.optimization.evaluation.remembered import recall
from services.optimization.examples import Examples
from services.optimization.failures import NotEnoughData, Toolchain
from services.optimization.remembered import NOTHING, Remembered
from services.optimization.rows import Batch, Rows, batches, prepare
from services.optimization.techniques.export_onnx import ExportParameters, onnx_signature, write_onnx
from services.optimization.techniques.quantization import graph, plan
from services.optimization.techniques.quantization.folding import folded
from services.optimization.techniques.quantization.simulation import Ranges, Simulation
from services.optimization.techniques.technique import Context, Model, Outcome
from services.optimization.techniques.tracing import load_source
from services.optimization.techniques.verification import deviation, module_answer
from services.optimization.training import Fitted, fit

if TYPE_CHECKING:
    from services.optimization.techniques.qat import QatParameters

# Of the largest answer. Sums in another order move single values to the next of 255 levels, layer after layer.
TOLERANCE = 0.05
FOLDING_TOLERANCE = 1e-4
MIN_TRAINING_EXAMPLES = 16
HELD_OUT_SHARE = 0.1
LARGEST_PROBE = 256  # examples that fidelity is measured on
OBSERVED = 128  # examples that the ranges of a static scheme start from
BATCH_ROWS = 16


def _held_out(context: Context) -> tuple[Context, Examples]:
    """The context to train in, and examples to measure on that it does not hold. Raises NotEnoughData."""
    if len(context.training) < MIN_TRAINING_EXAMPLES:
        raise NotEnoughData(f"qat: {len(context.training)} training examples; it needs at least {MIN_TRAINING_EXAMPLES}")
    if len(context.calibration) >= MIN_TRAINING_EXAMPLES:
        return context, context.calibration.take(range(min(LARGEST_PROBE, len(context.calibration))))
    most, held = context.training.split(HELD_OUT_SHARE, context.seed)
    return replace(context, training=most), held.take(range(min(LARGEST_PROBE, len(held))))


def _answers(model: Model, examples: Examples, threads: int, remembered: Remembered = NOTHING) -> fidelity.Answers:
    """Raises Toolchain where it does not load or run."""
    rows = prepare(model.folder, model.signature, examples, remembered)
    return recall(remembered, model, examples, rows, threads, lambda: _computed(model, rows, threads))


def _computed(model: Model, rows: Rows, threads: int) -> fidelity.Answers:
    try:
        loaded = backends.load(model.folder, model.signature, threads)
        found = fidelity.answers(loaded, model.signature, rows)
    except backends.BackendError as error:
        raise Toolchain(f"qat: {error}") from error
    loaded.close()
    return found


def _folded(module: Any, batch: Batch) -> Any:
    """Unfolded where children follow each other that are not called so."""
    attempt = folded(module)
    off = deviation(module_answer(attempt)(batch), module_answer(module)(batch))
    return attempt if off <= FOLDING_TOLERANCE else module


class Training:
    """One run. What lies in `scratch` is named after before and after the training."""

    def __init__(self, context: Context, parameters: "QatParameters") -> None:
        """Raises BadModel, NotEnoughData, UnsupportedOperator or Toolchain."""
        self._context, self._probe = _held_out(context)
        self._parameters = parameters
        self._signature = onnx_signature(context.signature)
        self._probed = self._batches(self._probe)
        # Eager attention, as it is exported: other implementations sum in another order.
        self._module = _folded(load_source(context, "float32", attention="eager"), self._probed[0])
        self._reference = _answers(context.original, self._probe, context.threads, context.original_remembered)
        self._plan = plan.make(self._exported("before"), self._module, parameters)

    def run(self) -> Outcome:
        context, parameters = self._context, self._parameters
        simulation = Simulation(self._module, self._plan.places, self._plan.tables.values(), self._plan.scheme)
        self._observe(simulation)
        before = self._fidelity(self._quantized("before", simulation.ranges()))
        context.progress(0.15, "training")
        fitted = fit(self._module, context, parameters.training, parameters.losses, stage="qat", share=(0.15, 0.85))
        simulated, ranges = self._simulated(), simulation.ranges()
        simulation.remove()
        context.progress(0.9, "quantizing, and comparing with what was trained")
        self._exported("after")
        written = self._quantized("after", ranges)
        deviations = {"largest_deviation": self._check(written, simulated), "tolerance": TOLERANCE}
        return self._outcome(written, fitted, {"fidelity_before": before, "fidelity_after": self._fidelity(written), **deviations})

    def _exported(self, name: str) -> Path:
        """The module in FP32, in a folder of its own."""
        target = self._context.scratch / f"{name}-fp32"
        target.mkdir()
        write_onnx(self._context, self._module, target / graph.MODEL, ExportParameters())
        return target

    def _quantized(self, name: str, ranges: Ranges) -> Path:
        """A loadable folder made of the export of that name."""
        target = self._context.scratch / f"{name}-int8"
        target.mkdir()
        self._plan.write(self._context.scratch / f"{name}-fp32", target, ranges, self._context.scratch)
        folder.copy_files(self._context.source, target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
        return target

    def _batches(self, examples: Examples) -> list[Batch]:
        rows = prepare(self._context.source, self._signature, examples)
        return [batch for _, batch in batches(rows, BATCH_ROWS)]

    def _observe(self, simulation: Simulation) -> None:
        examples = self._context.training.take(range(min(OBSERVED, len(self._context.training))))
        with simulation.observing():
            for batch in self._batches(examples):
                module_answer(self._module)(batch)

    def _simulated(self) -> list[NDArray[Any]]:
        torch.set_num_threads(self._context.threads)
        return [module_answer(self._module)(batch) for batch in self._probed]

    def _check(self, written: Path, simulated: Sequence[NDArray[Any]]) -> float:
        """The largest deviation of the quantized model from the simulation that was trained. Raises Toolchain past TOLERANCE."""
        output = self._signature.outputs[0].name
        try:
            loaded = backends.load(written, self._signature, self._context.threads)
            found = [loaded.run(batch, [output])[output] for batch in self._probed]
        except backends.BackendError as error:
            raise Toolchain(f"qat: the quantized model does not run: {error}") from error
        loaded.close()
        pairs = zip(found, simulated, self._probed, strict=True)
        worst = max(deviation(real, wanted, batch.get("attention_mask")) for real, wanted, batch in pairs)
        if worst > TOLERANCE:
            raise Toolchain(
                f"qat: the quantized model deviates from the trained one by {worst:.2g}; {TOLERANCE:g} is allowed{self._hint()}"
            )
        return worst

    def _hint(self) -> str:
        saturates = not self._plan.reduces_range and not has_int8_dot(cpu_features())
        return "; without 8-bit dot products this processor's sums saturate, which reduce_range avoids" if saturates else ""

    def _fidelity(self, written: Path) -> float:
        """To the original, on examples that are not trained on."""
        found = _answers(Model(written, self._signature), self._probe, self._context.threads)
        return fidelity.compare(self._signature.task, self._reference, found, self._context.seed).interval.estimate

    def _outcome(self, written: Path, fitted: Fitted, measured: dict[str, Any]) -> Outcome:
        for path in written.iterdir():
            path.replace(self._context.target / path.name)
        scheme, places = self._plan.scheme, self._plan.places
        notes = {
            "scheme": "static" if scheme.static else "dynamic",
            "reduce_range": self._plan.reduces_range,
            "quantized_layers": len(places),
            "quantized_outputs": sum(place.ends for place in places) if scheme.static else 0,
            "quantized_tables": len(self._plan.tables),
            "fidelity_examples": len(self._probe),
        }
        return Outcome(self._signature.model_copy(update={"dtype": "int8"}), {**fitted.notes(), **notes, **measured})


def train(context: Context, parameters: "QatParameters") -> Outcome:
    """Raises a class of `failures`."""
    context.progress(0.02, "exporting and quantizing the untrained model, to compare with")
    return Training(context, parameters).run()
