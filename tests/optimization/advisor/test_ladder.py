"""What may be tried on a model: only what its machine, format and examples allow, and what each costs."""

from collections.abc import Iterable, Sequence

import pytest

from services.optimization.advisor.ladder import Anatomy, Costs, Ladder, ladder
from services.optimization.estimating import PlannedStep
from services.optimization.recipe import Kinds, Recipe, Step, validate_recipe
from services.repository.manifest import Format, Signature
from tests.models import classifier_signature

MINILM = Anatomy(layers=6, intermediate_size=1536)
NO_DATA, ALL_DATA = Kinds(calibration=False, training=False), Kinds()


def costs(row_seconds: float = 0.01, training_rows: int = 1000, basis: str = "assumed") -> Costs:
    def planned(steps: Sequence[Step]) -> Iterable[PlannedStep]:
        return [PlannedStep(step.technique, step.parameters, Format.ONNX, Format.ONNX, 7.0, basis) for step in steps]

    return Costs(planned, row_seconds, training_rows)


def made(
    signature: Signature | None = None,
    anatomy: Anatomy = MINILM,
    kinds: Kinds = ALL_DATA,
    features: Iterable[str] = (),
    priced: Costs | None = None,
) -> Ladder:
    return ladder(signature or classifier_signature(), anatomy, kinds, frozenset(features), priced or costs())


def test_every_rung_is_a_recipe_that_a_job_would_take() -> None:
    found = made()
    assert len({rung.name for rung in found.rungs}) == len(found.rungs)
    for rung in found.rungs:
        validate_recipe(Recipe(name=rung.name, steps=rung.steps), classifier_signature(), ALL_DATA)


def test_every_part_has_a_prior_and_every_trained_rung_its_shape() -> None:
    found = made()
    names = {rung.name: rung for rung in found.rungs}
    for rung in found.rungs:
        assert set(rung.parts) <= found.priors.keys()
        if rung.shape:
            shape = names[rung.shape]
            assert shape.is_shape
            assert set(shape.parts) < set(rung.parts)
            assert shape.seconds < rung.seconds


def test_without_training_examples_nothing_is_trained() -> None:
    assert not any(rung.is_shape or rung.shape for rung in made(kinds=NO_DATA).rungs)


def test_an_onnx_model_is_quantized_as_it_is() -> None:
    signature = classifier_signature().model_copy(update={"format": Format.ONNX})
    assert {rung.name for rung in made(signature).rungs} == {"int8", "int8-selective", "int8-static", "int4"}


def test_what_the_processor_emulates_is_not_tried() -> None:
    assert "bf16" not in {rung.name for rung in made().rungs}
    assert "bf16" in {rung.name for rung in made(features=["amx_bf16"]).rungs}


@pytest.mark.parametrize(("layers", "students"), [(12, {6, 4, 1}), (6, {3, 2, 1}), (2, {1}), (1, set())])
def test_students_are_smaller_than_their_source(layers: int, students: set[int]) -> None:
    names = {rung.parts[0] for rung in made(anatomy=Anatomy(layers, 0)).rungs if rung.is_shape}
    assert names - {"pruned-50"} == {f"student-{count}" for count in students}


def test_training_costs_passes_of_what_is_trained() -> None:
    by_name = {rung.name: rung for rung in made(priced=costs(row_seconds=0.01, training_rows=1000)).rungs}
    short, long = (by_name[f"student-1-narrow-taught-{epochs}-onnx"] for epochs in (2, 8))
    assert long.seconds - short.seconds == pytest.approx(10 * 3 * 6 * (0.1 + 0.9 * 0.1))
    assert by_name["student-3-taught-8-onnx"].seconds > long.seconds


def test_what_was_measured_here_prices_training_better() -> None:
    found = {rung.name: rung for rung in made(priced=costs(basis="measured")).rungs}
    assert found["student-3-taught-8-onnx"].seconds == pytest.approx(found["shape-student-3-onnx"].seconds + 7.0)


def test_the_smaller_and_the_less_taught_is_expected_to_lose_more() -> None:
    def lost(training_rows: int, student: str, epochs: int) -> float:
        return made(priced=costs(training_rows=training_rows)).priors[f"{student}-taught-{epochs}"].loss.mean

    assert lost(3_000, "student-1", 2) > lost(3_000, "student-3", 2)
    assert lost(3_000, "student-1", 2) > lost(3_000, "student-1", 8)
    assert lost(3_000, "student-1", 8) > lost(46_000, "student-1", 8)


def test_a_training_knows_which_others_lose_no_more() -> None:
    """Those of as many layers or more, for as many epochs or more; a pruned model is another matter than a student."""
    no_worse = {rung.training: set(rung.no_worse) for rung in made().rungs if rung.training}
    assert no_worse["student-3-taught-8"] == {"student-3-taught-8"}
    assert no_worse["student-2-taught-2"] == {f"student-{layers}-taught-{epochs}" for layers in (2, 3) for epochs in (2, 8)}
    assert no_worse["student-1-narrow-taught-2"] == {name for name in no_worse if name.startswith("student")}
    assert no_worse["pruned-50-healed-2"] == {"pruned-50-healed-2"}
