"""Structured pruning, start to end: score, cut, recover, as often as asked; then write the smaller model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from services.backends import shapes
from services.optimization.failures import NotEnoughData, UnsupportedOperator
from services.optimization.rows import prepare
from services.optimization.techniques.pruning import costs, gradients, importance, surgery
from services.optimization.techniques.pruning.dependencies import Dependencies
from services.optimization.techniques.pruning.layout import PATTERNS, Layout, layout_of, plain_linears
from services.optimization.techniques.pruning.ledger import Ledger
from services.optimization.techniques.pruning.parts import Parts
from services.optimization.techniques.pruning.recovery import Cut, load, recover, recovery_notes
from services.optimization.techniques.pruning.selection import Aim, keep_globally, keep_per_layer
from services.optimization.techniques.saving import save
from services.optimization.techniques.technique import Context, Outcome
from services.repository.manifest import Signature, Task

if TYPE_CHECKING:
    from services.optimization.techniques.prune import PruneParameters

DEFAULT_RATIO = 0.25
_BY_LAYER = ("heads", "ffn")
_ROUNDED = ("ffn", "hidden")
_RANKED_TOGETHER = ("heads", "ffn", "channels")  # by the scope "global"


class _Pruner:
    """One model under surgery."""

    def __init__(self, context: Context, parameters: "PruneParameters") -> None:
        self._context, self._parameters = context, parameters
        self.module = load(context)
        self.model = self.module.model
        self.signature = context.signature.model_copy(update={"dtype": "float32"})
        self.layout = self._find_layout()
        self.ledger = Ledger()
        self._ratios = self._find_ratios()

    def _find_layout(self) -> Layout | None:
        try:
            return layout_of(self.model)
        except LookupError as error:
            raise UnsupportedOperator(str(error)) from error

    def _find_ratios(self) -> dict[str, float]:
        """By kind, those above 0. Raises UnsupportedOperator for what the model does not have."""
        parameters = self._parameters
        if not parameters.asks:
            return dict.fromkeys(_BY_LAYER if self.layout else ("channels",), DEFAULT_RATIO)
        asked = {
            kind: float(getattr(parameters, kind)) for kind in ("layers", *_BY_LAYER, "hidden", "channels") if getattr(parameters, kind)
        }
        kind = self.model.config.model_type
        if self.layout is None and asked.keys() != {"channels"}:
            raise UnsupportedOperator(f"{', '.join(asked)}: a {kind} model is none of {', '.join(sorted(PATTERNS))}")
        if self.layout is not None and "channels" in asked:
            raise UnsupportedOperator(f"channels: a {kind} model has no convolutions between its layers")
        return asked

    # -- one cut ---------------------------------------------------------------------------------------------------------

    def cut(self, share: float) -> None:
        """Cuts until `share` of what was asked for is gone. Raises UnsupportedOperator, NotEnoughData."""
        with plain_linears(self.model):
            places = self._places()
            scores = self._score(places)
            for kind, found in scores.items():
                self.ledger.open(kind, places[kind], found)
                self._check(kind)
            for kind in places:
                self._cut_kind(kind, places, scores, share)
            if self.layout:
                surgery.write_config(self.layout, self.model.config)
        self._check_runs()

    def _places(self) -> dict[str, list[Parts]]:
        layout = self.layout
        makers: dict[str, Callable[[], list[Parts]]] = {"channels": lambda: self._dependencies().channels()}
        if layout:
            makers = {
                "layers": lambda: [surgery.layers(layout)],
                "heads": lambda: surgery.heads(layout),
                "ffn": lambda: surgery.neurons(layout),
                "hidden": lambda: [self._dependencies().hidden(layout)],
            }
        found = {kind: make() for kind, make in makers.items() if kind in self._ratios}
        empty = [kind for kind, places in found.items() if not places]
        if empty:
            raise UnsupportedOperator(f"{empty[0]}: a {self.model.config.model_type} model has none")
        return found

    def _dependencies(self) -> Dependencies:
        try:
            return Dependencies(self.model, self.signature)
        except Exception as error:  # Torch-Pruning raises whatever its tracing ran into
            raise UnsupportedOperator(f"the dependencies among the model's layers cannot be followed: {error}") from error

    def _score(self, places: dict[str, list[Parts]]) -> dict[str, list[Tensor]]:
        norm = self._parameters.importance
        if norm != "taylor":
            return {kind: [importance.magnitudes(parts, norm) for parts in found] for kind, found in places.items()}
        every = [parts for found in places.values() for parts in found]
        scores = iter(importance.taylor(every, self.model, self._losses()))
        return {kind: [next(scores) for _ in found] for kind, found in places.items()}

    def _losses(self) -> Any:
        context = self._context
        if not len(context.training):
            raise NotEnoughData("importance by taylor needs training examples")
        order = np.random.default_rng(context.seed).permutation(len(context.training))
        examples = context.training.take(order[: self._parameters.importance_examples])
        rows = prepare(context.source, context.signature, examples)
        return gradients.losses(self.module, context.signature.task, rows, examples, context.seed)

    def _aim(self, kind: str, count: int) -> Aim:
        ratio = self._ratios[kind]
        if kind == "layers" and ratio >= 1:
            ratio /= count
        return Aim(ratio, self._parameters.round_to if kind in _ROUNDED else 1)

    def _check(self, kind: str) -> None:
        for entry in self.ledger.entries[kind]:
            if self._aim(kind, entry.before).kept(entry.before) < 1:
                asked = f"{self._ratios[kind]:g}"
                raise UnsupportedOperator(f"{kind}: {asked} leaves none of the {entry.before} in {entry.place}; one at least has to stay")

    def _cut_kind(self, kind: str, places: dict[str, list[Parts]], scores: dict[str, list[Tensor]], share: float) -> None:
        keeps = self._keeps(kind, scores[kind], share)
        found = places[kind]
        if kind == "hidden" and self.layout:
            found = [self._dependencies().hidden(self.layout)]  # the graph that it was scored by knows heads and neurons that are gone
        for parts, keep in zip(found, keeps, strict=True):
            if len(keep) < parts.count:
                parts.cut(keep)
        self.ledger.cut(kind, keeps)
        if kind == "layers":
            self._forget_layers(places, scores, keeps[0])

    def _keeps(self, kind: str, scores: list[Tensor], share: float) -> list[Tensor]:
        counts = self.ledger.counts(kind)
        aim = self._aim(kind, counts[0])
        if kind in _RANKED_TOGETHER and self._parameters.scope == "global":
            return keep_globally(scores, counts, aim, share, comparable=self._parameters.importance == "taylor")
        return keep_per_layer(scores, counts, aim, share)

    def _forget_layers(self, places: dict[str, list[Parts]], scores: dict[str, list[Tensor]], keep: Tensor) -> None:
        self.ledger.drop_layers(_BY_LAYER, keep)
        for kind in set(_BY_LAYER) & places.keys():
            places[kind] = [places[kind][index] for index in keep.tolist()]
            scores[kind] = [scores[kind][index] for index in keep.tolist()]

    def _check_runs(self) -> None:
        try:
            with torch.inference_mode():
                self.model(**shapes.probe(self.model, self.signature))
        except Exception as error:  # torch raises RuntimeError, IndexError, TypeError, …
            raise UnsupportedOperator(f"the pruned model does not run: {error}") from error

    # -- what it costs and what it answers ----------------------------------------------------------------------------------

    def costs(self, moment: str) -> dict[str, int]:
        model = self.model
        return {f"parameters_{moment}": costs.count_parameters(model), f"macs_{moment}": costs.count_macs(model, self.signature)}

    def result_signature(self) -> Signature:
        """An embedding is as wide as the model is now."""
        signature = self._context.signature
        if signature.task is not Task.EMBEDDING or not self.layout:
            return signature
        (output,) = signature.outputs
        with plain_linears(self.model):
            narrowed = output.model_copy(update={"shape": (*output.shape[:-1], self.layout.hidden)})
        return signature.model_copy(update={"outputs": (narrowed,)})


def prune(context: Context, parameters: "PruneParameters") -> Outcome:
    """Raises a class of `failures`."""
    pruner = _Pruner(context, parameters)
    before = pruner.costs("before")
    runs = []
    for cut in [Cut(number, parameters.iterations) for number in range(1, parameters.iterations + 1)]:
        context.progress(cut.share[0], f"cutting, {cut.number} of {cut.of}")
        pruner.cut(cut.number / cut.of)
        if parameters.recovery is not None:
            runs.append(recover(context, pruner.module, parameters.recovery, parameters.losses, cut))
    context.progress(0.95, "writing the smaller model")
    signature = pruner.result_signature()
    save(pruner.module, context.source, context.target, signature)
    chosen: dict[str, Any] = {"importance": parameters.importance, "scope": parameters.scope, "iterations": parameters.iterations}
    counted = {"macs_of": f"one text of {costs.TOKENS} tokens" if signature.task.takes_text else "one image"}
    return Outcome(signature, chosen | before | pruner.costs("after") | counted | pruner.ledger.notes() | recovery_notes(runs))
