"""What may be tried on a model: recipes out of a few parts, and what each part is expected to bring.

What each part brings is at first the published rule of thumb (half precision 0.5x the size, 2x the speed, 1 % lost; INT8 0.25x, 4x,
2 %; INT4 0.125x, 8x, 5 %). It orders the search and decides nothing: see `search`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.rung import Rung
from services.optimization.environment import has_bf16
from services.optimization.estimating import PlannedStep
from services.optimization.recipe import Kinds, Step
from services.repository.manifest import Format, Signature, Task

FORMATS = (Format.HUGGINGFACE, Format.ONNX)  # of models that a search can begin with
TRIAL_S = 20.0  # to compare and to time one candidate, beside what making it takes
_SPREAD = 0.4  # of a speed-up that nobody measured here
_EPOCHS = {2: 3e-4, 8: 5e-4}  # of a student's training, with the learning rate that goes with so many
_LAYER_SHARE = 0.9  # of a transformer's time, that its layers take
# What a smaller model is expected to lose: so much for each time that its layers fit into the original's beyond the first, when it
# has learnt from so many examples, and less by a power of how many more it sees. Read off one grid; like all of this, it only orders.
_LOSS_OF_SHRINKING, _SEEN, _SEEN_POWER = 0.02, 6_000, 0.65


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What of a transformer decides which students it can have; 0 where a model has no such thing."""

    layers: int = 0
    intermediate_size: int = 0
    hidden_size: int = 0  # decides nothing, and tells how alike two models are


@dataclass(frozen=True, slots=True)
class Costs:
    """What making things takes here. `planned` prices steps by earlier runs; what was made before and kept costs nothing."""

    planned: Callable[[Sequence[Step]], Iterable[PlannedStep]]
    row_seconds: float  # of the original's answer to one example
    training_rows: int

    def of(self, steps: Sequence[Step]) -> tuple[float, ...]:
        """Each step's."""
        return tuple(step.seconds for step in self.planned(steps))

    def trained(self, step: Step, share: float, epochs: int) -> float:
        """Of one step that trains a model which takes `share` of the original's time.

        The original answers every example once; a training step costs three passes of what is trained. What this machine has
        measured for the same parameters tells better.
        """
        (planned,) = self.planned([step])
        if planned.basis != "assumed":
            return planned.seconds
        return self.row_seconds * self.training_rows * (1 + 3 * share * epochs)


@dataclass(frozen=True, slots=True)
class Ladder:
    rungs: tuple[Rung, ...]
    priors: Mapping[str, Prior]


@dataclass(frozen=True, slots=True)
class _Part:
    """Something that a recipe may be made of, and what of it makes the others' prior."""

    name: str
    steps: tuple[Step, ...]
    speedup: float
    size_ratio: float
    loss: float
    spread: float = _SPREAD

    @property
    def prior(self) -> Prior:
        return Prior(Guess(self.speedup, self.spread), Guess(self.size_ratio, 0.1), Loss(self.loss), "rule of thumb")


@dataclass(frozen=True, slots=True)
class _Training:
    """One way to train a smaller model: its name, and the step that makes and trains it."""

    name: str
    step: Step
    epochs: int


@dataclass(frozen=True, slots=True)
class _Smaller:
    """A smaller model to be, untrained, which tells its speed; and trained in one way or another."""

    part: _Part  # with the step that makes its shape
    layers_share: float  # of the original's layers' time that it takes
    trainings: tuple[_Training, ...]

    @property
    def share(self) -> float:
        """Of the original's time."""
        return _taken(self.layers_share)

    def taught(self, training: _Training) -> str:
        """The part that a training is: what it loses hangs on who learns."""
        return f"{self.part.name}-{training.name}"

    def no_worse(self, training: _Training, others: Iterable["_Smaller"]) -> tuple[str, ...]:
        """Trainings of as much of the original for as long, or more: where those lose too much, this one is not likely to lose less."""
        technique = training.step.technique
        larger = [other for other in others if other.layers_share >= self.layers_share]
        return tuple(
            other.taught(each)
            for other in larger
            for each in other.trainings
            if each.step.technique == technique and each.epochs >= training.epochs
        )

    def prior(self, training: _Training, rows: int) -> Prior:
        """Training changes no speed."""
        seen = max(1, training.epochs * rows)
        lost = _LOSS_OF_SHRINKING * (1 / self.layers_share - 1) * (_SEEN / seen) ** _SEEN_POWER
        return Prior(Guess(1.0, 0.0), Guess(1.0, 0.0), Loss(min(lost, 1.0)), "rule of thumb")


def ladder(signature: Signature, anatomy: Anatomy, kinds: Kinds, features: frozenset[str], costs: Costs) -> Ladder:
    """Of what this machine runs in hardware, and what the examples allow."""
    engines = tuple(_engines(signature, kinds, features))
    rungs = [_rung(_name(parts), parts, costs, is_precision=True) for parts in engines]
    priors = {part.name: part.prior for parts in engines for part in parts}
    all_smaller = tuple(_smaller(signature, anatomy, kinds))
    for smaller in all_smaller:
        priors[smaller.part.name] = smaller.part.prior
        priors |= {smaller.taught(each): smaller.prior(each, costs.training_rows) for each in smaller.trainings}
        for parts in engines:
            if _follows(parts):
                rungs += _trained(smaller, all_smaller, parts, costs)
    return Ladder(tuple(rungs), priors)


def _name(parts: tuple[_Part, ...]) -> str:
    return "-".join(part.name for part in parts)


def _rung(name: str, parts: tuple[_Part, ...], costs: Costs, **told: Any) -> Rung:
    steps = tuple(step for part in parts for step in part.steps)
    seconds = costs.of(steps)
    return Rung(name, steps, tuple(part.name for part in parts), sum(seconds) + TRIAL_S, step_seconds=seconds, **told)


def _trained(smaller: _Smaller, others: Iterable[_Smaller], engine: tuple[_Part, ...], costs: Costs) -> Iterator[Rung]:
    shape = _rung(f"shape-{_name((smaller.part, *engine))}", (smaller.part, *engine), costs, is_shape=True)
    yield shape
    for training in smaller.trainings:
        steps = (training.step, *(step for part in engine for step in part.steps))
        made, *run = shape.step_seconds
        seconds = (made + costs.trained(training.step, smaller.share, training.epochs), *run)
        name = f"{smaller.part.name}-{training.name}-{_name(engine)}"
        taught = smaller.taught(training)
        yield Rung(
            name,
            steps,
            (*shape.parts, taught),
            sum(seconds) + TRIAL_S,
            shape=shape.name,
            training=taught,
            no_worse=smaller.no_worse(training, others),
            step_seconds=seconds,
        )


# Engines and precisions


def _engines(signature: Signature, kinds: Kinds, features: frozenset[str]) -> Iterator[tuple[_Part, ...]]:
    """How a model of this format may be run, the parts in the order of their steps."""
    precisions = tuple(_precisions(kinds))
    if signature.format is Format.ONNX:
        yield from precisions
    if signature.format is not Format.HUGGINGFACE:
        return
    export = _Part("onnx", (Step(technique="export_onnx"),), 1.3, 1.0, 0.0)
    yield (export,)
    yield from ((export, *parts) for parts in precisions)
    # Half precision that the processor emulates is slower than none: it is tried for its size alone, in a format that can be small.
    yield (export, _Part("fp16", (Step(technique="fp16"),), 1.0, 2.0, 0.01))
    if has_bf16(features):
        yield (_Part("bf16", (Step(technique="bf16"),), 2.0, 2.0, 0.01),)


def _precisions(kinds: Kinds) -> Iterator[tuple[_Part, ...]]:
    """What one way to INT8 brings here tells of the others: they are parts on top of it, with steps of their own."""
    int8 = _Part("int8", (), 4.0, 4.0, 0.02)
    yield (replace(int8, steps=(Step(technique="dynamic_int8", parameters={"target_fidelity": None}),)),)
    if kinds.calibration or kinds.training:  # these keep as many layers in FP32 as it takes to answer as the model does
        yield int8, _Part("selective", (Step(technique="dynamic_int8"),), 0.8, 0.8, 0.0, spread=0.2)
        yield int8, _Part("static", (Step(technique="static_int8"),), 0.9, 0.9, 0.0, spread=0.2)
    yield (_Part("int4", (Step(technique="int4_weight_only"),), 2.0, 8.0, 0.05),)


def _follows(engine: tuple[_Part, ...]) -> bool:
    """Whether a smaller model is run so: as it is exported, or in the precision that costs least."""
    return _name(engine) in ("onnx", "onnx-int8", "onnx-int8-selective", "onnx-int4")


# Smaller models


def _smaller(signature: Signature, anatomy: Anatomy, kinds: Kinds) -> Iterator[_Smaller]:
    if not kinds.training or signature.format is not Format.HUGGINGFACE or not signature.task.takes_text:
        return
    for layers in sorted({anatomy.layers // 2, anatomy.layers // 3, 1} - {0, anatomy.layers}, reverse=True):
        yield _student(f"student-{layers}", {"layers": layers}, layers / anatomy.layers)
    if anatomy.layers > 1 and anatomy.intermediate_size >= 8:
        narrow = {"layers": 1, "layer_choice": "first", "intermediate_size": anatomy.intermediate_size // 3}
        yield _student("student-1-narrow", narrow, 0.6 / anatomy.layers)
    if anatomy.layers and signature.task is not Task.CAUSAL_LM:
        yield _pruned()


def _student(name: str, shape: Mapping[str, Any], share: float) -> _Smaller:
    """`share` of the layers' time that the student takes."""
    step = Step(technique="distill", parameters={**shape, "training": None})
    part = _Part(name, (step,), 1 / _taken(share), 1 / (0.5 + 0.5 * share), 0.0, spread=0.2)
    return _Smaller(part, share, tuple(_taught(shape, epochs, rate) for epochs, rate in _EPOCHS.items()))


def _taught(shape: Mapping[str, Any], epochs: int, rate: float) -> _Training:
    training = {"epochs": epochs, "learning_rate": rate}
    return _Training(f"taught-{epochs}", Step(technique="distill", parameters={**shape, "training": training}), epochs)


def _pruned() -> _Smaller:
    cut = {"heads": 0.5, "ffn": 0.5}
    step = Step(technique="prune", parameters={**cut, "recovery": None})
    healed = Step(technique="prune", parameters={**cut, "recovery": {"epochs": 2, "learning_rate": 3e-4}})
    part = _Part("pruned-50", (step,), 1 / _taken(0.5), 1.3, 0.0, spread=0.2)
    return _Smaller(part, 0.5, (_Training("healed-2", healed, 2),))


def _taken(layers_share: float) -> float:
    """Of the original's time by a model whose layers take such a share of what the original's take."""
    return 1 - _LAYER_SHARE + _LAYER_SHARE * layers_share
