"""The search behind `dynamic_int8`: quantize, measure, keep one more of the worst products in FP32, measure again."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from services import backends
from services.backends.text import Ids
from services.optimization import fidelity, folder
from services.optimization.environment import cpu_features, has_int8_dot
from services.optimization.failures import NotEnoughData, Toolchain, UnsupportedOperator
from services.optimization.techniques import sensitivity
from services.optimization.techniques.technique import Context, Outcome
from services.optimization.tokenization import batches, encode
from services.repository.manifest import Signature, Task

if TYPE_CHECKING:
    from services.optimization.techniques.dynamic_int8 import DynamicInt8Parameters

MODEL = "model.onnx"
MIN_CALIBRATION_TEXTS = 16
SENSITIVITY_TEXTS = 32
BATCH_ROWS = 8
FULL_RANGE, REDUCED_RANGE = 127, 63


@dataclass(frozen=True)
class Trial:
    """One quantized model and what it measured; `fidelity` is None when no texts were given."""

    path: Path
    excluded: tuple[str, ...]
    reduce_range: bool
    fidelity: float | None = None


def _prepare(source: Path) -> onnx.ModelProto:
    """Gemm split into MatMul and Add, every node named, so that names mean the same before and after quantization."""
    model = onnx.load(str(source / MODEL), load_external_data=False)
    wrapped = ONNXModel(model)
    wrapped.replace_gemm_with_matmul()
    for index, node in enumerate(wrapped.model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    add_pre_process_metadata(wrapped.model)  # nothing of the library's preprocessing helps here, and without the mark it logs a plea for it
    prepared: onnx.ModelProto = wrapped.model
    return prepared


def _tables(model: onnx.ModelProto) -> list[str]:
    """Names of the Gather nodes that look rows up in a constant FP32 matrix."""
    matrices = {value.name for value in model.graph.initializer if len(value.dims) == 2 and value.data_type == onnx.TensorProto.FLOAT}
    return [node.name for node in model.graph.node if node.op_type == "Gather" and node.input[0] in matrices]


class _Search:
    """The prepared graph, the texts, and the trials made of them."""

    def __init__(self, context: Context, parameters: "DynamicInt8Parameters") -> None:
        self.context = context
        self.parameters = parameters
        self.model = _prepare(context.source)
        self.prepared = context.scratch / "prepared.onnx"
        onnx.save(self.model, str(self.prepared))
        self.products = [product.name for product in sensitivity.weight_products(self.model)]
        self.tables = _tables(self.model) if parameters.quantize_embeddings else []
        self.rows: list[Ids] = []
        self.reference: fidelity.Floats | None = None

    def read_texts(self) -> None:
        """Takes the source's own answers as the reference."""
        self.rows = encode(self.context.source, self.context.signature, self.context.calibration_texts)
        source = backends.load(self.context.source, self.context.signature, self.context.threads)
        self.reference = fidelity.answers(source, self.context.signature, self.rows)
        source.close()

    def fixed(self) -> tuple[str, ...]:
        """Products that the caller's patterns exclude."""
        return tuple(name for name in self.products if any(fnmatchcase(name, pattern) for pattern in self.parameters.exclude))

    def sensitivities(self, reduce_range: bool) -> dict[str, float]:
        levels = REDUCED_RANGE if reduce_range else FULL_RANGE
        feeds = [batch for _, batch in batches(self.rows[:SENSITIVITY_TEXTS], self.context.signature, BATCH_ROWS)]
        return sensitivity.measure(self.model, feeds, self.context.threads, levels=levels, per_channel=self.parameters.per_channel)

    def trial(self, excluded: Sequence[str], reduce_range: bool) -> Trial:
        """Quantizes everything but `excluded` and, where there are texts, measures. Raises Toolchain."""
        path = self.context.scratch / f"trial-{len(excluded)}-{'7' if reduce_range else '8'}" / MODEL
        path.parent.mkdir()
        self._quantize(path, excluded, reduce_range)
        return Trial(path, tuple(excluded), reduce_range, self._fidelity(path.parent))

    def _quantize(self, path: Path, excluded: Sequence[str], reduce_range: bool) -> None:
        chosen = [name for name in self.products if name not in set(excluded)] + self.tables
        try:
            quantize_dynamic(
                self.prepared,
                path,
                op_types_to_quantize=["MatMul", "Gather"],
                per_channel=self.parameters.per_channel,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,  # QUInt8 measured half as fast
                nodes_to_quantize=chosen,
                extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        except Exception as error:  # the library raises bare classes of every kind
            raise Toolchain(f"dynamic_int8: {error}") from error

    def _fidelity(self, model: Path) -> float | None:
        if self.reference is None:
            return None
        try:
            loaded = backends.load(model, self.context.signature, self.context.threads)
            found = fidelity.answers(loaded, self.context.signature, self.rows)
        except backends.BackendError as error:
            raise Toolchain(f"dynamic_int8: the quantized model does not run: {error}") from error
        loaded.close()
        return fidelity.compare(self.context.signature.task, self.reference, found, self.context.seed).interval.estimate


def _exclusion_counts(products: int, share: float) -> list[int]:
    """1, 2, 4, … up to the share, and the share's own number last."""
    most = int(products * share)
    counts = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*counts, most] if most else []


def _first_trials(search: _Search) -> list[Trial]:
    """Nothing excluded but what the caller asked; both ranges where the processor may saturate and nobody decided."""
    asked = search.parameters.reduce_range
    undecided = asked is None and search.reference is not None and not has_int8_dot(cpu_features())
    ranges = (False, True) if undecided else (bool(asked),)
    return [search.trial(search.fixed(), reduce_range) for reduce_range in ranges]


def _measured(trial: Trial) -> float:
    return trial.fidelity if trial.fidelity is not None else 0.0


def _search(search: _Search, target: float) -> tuple[list[Trial], dict[str, float]]:
    """Excludes the worst products, doubling their number, until the target or the share is reached."""
    trials = _first_trials(search)
    best = max(trials, key=_measured)
    errors = search.sensitivities(best.reduce_range)
    ranked = [name for name in errors if name not in best.excluded]
    counts = _exclusion_counts(len(ranked), search.parameters.max_excluded_share)
    for done, count in enumerate(counts):
        if _measured(trials[-1]) >= target or _measured(best) >= target:
            break
        search.context.progress(0.3 + 0.6 * done / len(counts), f"keeping {count} products in FP32")
        trials.append(search.trial((*search.fixed(), *ranked[:count]), best.reduce_range))
    return trials, errors


def _pick(trials: Sequence[Trial], target: float | None) -> Trial:
    """The one with fewest exclusions among those that reach the target; the most faithful when none does."""
    reached = [trial for trial in trials if target is None or _measured(trial) >= target]
    return min(reached, key=lambda t: (len(t.excluded), -_measured(t))) if reached else max(trials, key=_measured)


def _notes(search: _Search, trials: Sequence[Trial], chosen: Trial, errors: dict[str, float]) -> dict[str, Any]:
    told = [{"excluded": len(t.excluded), "reduce_range": t.reduce_range, "fidelity": t.fidelity} for t in trials]
    return {
        "quantized_products": len(search.products) - len(chosen.excluded),
        "quantized_tables": len(search.tables),
        "excluded": list(chosen.excluded),
        "reduce_range": chosen.reduce_range,
        "calibration_fidelity": chosen.fidelity,
        "sensitivity": errors,
        "trials": told,
    }


def _check(search: _Search, context: Context, parameters: "DynamicInt8Parameters") -> None:
    if not search.products:
        raise UnsupportedOperator("dynamic_int8: the graph has no FP32 MatMul by a constant matrix")
    if parameters.target_fidelity is not None and context.signature.task is Task.TENSOR:
        raise NotEnoughData("dynamic_int8: a tensor model takes no calibration texts; null as target_fidelity quantizes without a search")
    if parameters.target_fidelity is not None and len(context.calibration_texts) < MIN_CALIBRATION_TEXTS:
        raise NotEnoughData(
            f"dynamic_int8: {len(context.calibration_texts)} calibration texts; the search needs {MIN_CALIBRATION_TEXTS}, "
            "or set target_fidelity to null to quantize without it"
        )


def quantize(context: Context, parameters: "DynamicInt8Parameters") -> Outcome:
    """Raises UnsupportedOperator, NotEnoughData or Toolchain."""
    search = _Search(context, parameters)
    _check(search, context, parameters)
    if parameters.target_fidelity is None:
        trials, errors = _first_trials(search), dict[str, float]()
    else:
        context.progress(0.1, "reference answers on the calibration texts")
        search.read_texts()
        trials, errors = _search(search, parameters.target_fidelity)
    chosen = _pick(trials, parameters.target_fidelity)
    chosen.path.replace(context.target / MODEL)
    folder.copy_files(context.source, context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
    signature: Signature = context.signature.model_copy(update={"dtype": "int8"})
    return Outcome(signature, _notes(search, trials, chosen, errors))
