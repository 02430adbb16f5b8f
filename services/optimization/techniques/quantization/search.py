"""The search over exclusions: quantize, measure, keep more of the worst layers in FP32, measure again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from services import backends
from services.optimization import folder
from services.optimization.environment import cpu_features, has_int8_dot
from services.optimization.evaluation import fidelity
from services.optimization.evaluation.remembered import recall
from services.optimization.failures import NotEnoughData, Toolchain, UnsupportedOperator
from services.optimization.rows import Rows, prepare
from services.optimization.techniques.quantization.findings import Findings
from services.optimization.techniques.quantization.graph import MODEL, matching
from services.optimization.techniques.quantization.parameters import Int8Parameters
from services.optimization.techniques.technique import Context, Model, Outcome

MIN_CALIBRATION_EXAMPLES = 16
SENSITIVITY_EXAMPLES = 32
FULL_RANGE, REDUCED_RANGE = 127, 64  # the largest level of a weight, as the library quantizes symmetrically


class Strategy(Protocol):
    """How a trial is quantized. `layers` and `tables` are names of nodes in graph order."""

    name: str
    layers: Sequence[str]
    tables: Sequence[str]
    findings: Findings

    @property
    def shaped_by(self) -> Mapping[str, Any]:
        """Plain JSON of what shapes every trial, beside the graph and the examples."""

    def quantize(self, path: Path, excluded: Sequence[str], reduce_range: bool) -> None:
        """Writes the model with every layer but `excluded` in INT8. Raises Toolchain."""

    def sensitivities(self, reduce_range: bool) -> dict[str, float]:
        """Relative output error of each layer, worst first."""


@dataclass(frozen=True)
class Trial:
    """A quantized model and what it measured; `fidelity` is None when there was nothing to measure on.

    There is no file yet where an earlier job measured the same.
    """

    path: Path
    excluded: tuple[str, ...]
    reduce_range: bool
    fidelity: float | None = None

    @property
    def measured(self) -> float:
        return self.fidelity if self.fidelity is not None else 0.0


def check_layers(strategy: Strategy, wanted: str) -> None:
    """Raises UnsupportedOperator where there is nothing to quantize."""
    if not strategy.layers:
        raise UnsupportedOperator(f"{strategy.name}: the graph has no FP32 {wanted}")


def check_examples(name: str, count: int, purpose: str) -> None:
    """Raises NotEnoughData."""
    if count < MIN_CALIBRATION_EXAMPLES:
        noun = "example" if count == 1 else "examples"
        raise NotEnoughData(f"{name}: {count} calibration {noun}; {purpose} at least {MIN_CALIBRATION_EXAMPLES}")


class Ruler:
    """Fidelity to the source, on examples whose answers it gave once."""

    def __init__(self, context: Context, name: str) -> None:
        """Raises BadModel or NotEnoughData."""
        self._context = context
        self._name = name
        self._rows: Rows = prepare(context.source, context.signature, context.calibration, context.remembered)
        source = Model(context.source, context.signature)
        run = partial(self._answers, context.source)
        self._reference = recall(context.remembered, source, context.calibration, self._rows, context.threads, run)

    def _answers(self, model: Path) -> fidelity.Answers:
        try:
            loaded = backends.load(model, self._context.signature, self._context.threads)
            found = fidelity.answers(loaded, self._context.signature, self._rows)
        except backends.BackendError as error:
            raise Toolchain(f"{self._name}: the model does not run: {error}") from error
        loaded.close()
        return found

    def measure(self, model: Path) -> float:
        """Of the model in a folder. Raises Toolchain where it does not load or run."""
        found = self._answers(model)
        return fidelity.compare(self._context.signature.task, self._reference, found, self._context.seed).interval.estimate


def _exclusion_counts(layers: int, share: float) -> list[int]:
    """1, 2, 4, … up to the share, and the share's own number last."""
    most = int(layers * share)
    counts = [1 << power for power in range(most.bit_length()) if 1 << power < most]
    return [*counts, most] if most else []


class Search:
    """The trials made of one source by one strategy."""

    def __init__(self, context: Context, parameters: Int8Parameters, strategy: Strategy) -> None:
        self._context = context
        self._parameters = parameters
        self._strategy = strategy
        self._trials: list[Trial] = []
        self._errors: dict[str, float] = {}
        self._fixed = matching(strategy.layers, parameters.exclude)  # what the caller's patterns exclude

    def run(self) -> Outcome:
        """Leaves the chosen model in the context's target. Raises NotEnoughData or Toolchain."""
        target = self._parameters.target_fidelity
        if target is None:
            self._first_trials()
        else:
            self._context.progress(0.2, "fidelity on the calibration examples")
            self._search(target)
        chosen = self._pick(target)
        if not chosen.path.exists():
            self._strategy.quantize(chosen.path, chosen.excluded, chosen.reduce_range)
        chosen.path.replace(self._context.target / MODEL)
        folder.copy_files(self._context.source, self._context.target, (*folder.TOKENIZER_FILES, *folder.DESCRIPTION_FILES))
        return Outcome(self._context.signature.model_copy(update={"dtype": "int8"}), self._notes(chosen))

    def _trial(self, excluded: Sequence[str], reduce_range: bool) -> Trial:
        path = self._context.scratch / f"trial-{len(self._trials)}" / MODEL
        path.parent.mkdir()
        measured = None
        if self._parameters.target_fidelity is not None:
            shaped_by = {**self._strategy.shaped_by, "excluded": list(excluded), "reduce_range": reduce_range}
            measured = self._strategy.findings.fidelity(shaped_by, partial(self._measure, path, excluded, reduce_range))
        trial = Trial(path, tuple(excluded), reduce_range, measured)
        self._trials.append(trial)
        return trial

    def _measure(self, path: Path, excluded: Sequence[str], reduce_range: bool) -> float:
        self._strategy.quantize(path, excluded, reduce_range)
        return self._ruler.measure(path.parent)

    @cached_property
    def _ruler(self) -> Ruler:
        """Made for the first trial that nothing is known of."""
        return Ruler(self._context, self._strategy.name)

    def _first_trials(self) -> Trial:
        """Nothing excluded but what the caller asked; both ranges where the processor may saturate and nobody decided."""
        asked = self._parameters.reduce_range
        undecided = asked is None and self._parameters.target_fidelity is not None and not has_int8_dot(cpu_features())
        ranges = (False, True) if undecided else (bool(asked),)
        return max([self._trial(self._fixed, reduce_range) for reduce_range in ranges], key=lambda trial: trial.measured)

    def _search(self, target: float) -> None:
        """Excludes the worst layers, doubling their number, until the target or the share is reached."""
        best = self._first_trials()
        self._errors = self._strategy.sensitivities(best.reduce_range)
        ranked = [name for name in self._errors if name not in best.excluded]
        counts = _exclusion_counts(len(ranked), self._parameters.max_excluded_share)
        for done, count in enumerate(counts):
            if best.measured >= target or self._trials[-1].measured >= target:
                break
            self._context.progress(0.3 + 0.6 * done / len(counts), f"keeping {count} layers in FP32")
            self._trial((*self._fixed, *ranked[:count]), best.reduce_range)

    def _pick(self, target: float | None) -> Trial:
        """The one with fewest exclusions among those that reach the target; the most faithful when none does."""
        reached = [trial for trial in self._trials if target is None or trial.measured >= target]
        if not reached:
            return max(self._trials, key=lambda trial: trial.measured)
        return min(reached, key=lambda trial: (len(trial.excluded), -trial.measured))

    def _notes(self, chosen: Trial) -> dict[str, Any]:
        told = [{"excluded": len(t.excluded), "reduce_range": t.reduce_range, "fidelity": t.fidelity} for t in self._trials]
        return {
            "quantized_layers": len(self._strategy.layers) - len(chosen.excluded),
            "quantized_tables": len(self._strategy.tables),
            "excluded": list(chosen.excluded),
            "reduce_range": chosen.reduce_range,
            "calibration_fidelity": chosen.fidelity,
            "sensitivity": self._errors,
            "trials": told,
        }
