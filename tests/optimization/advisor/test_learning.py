"""What trials say of recipes that were not tried: the laws of the rule of thumb's correction."""

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.learning import Belief
from services.optimization.advisor.observation import Context, Observation
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import HOPELESS
from services.optimization.recipe import Step
from services.optimization.report import Interval

RULE = "rule of thumb"
HERE = Context(
    model="here", megabytes=90, layers=6, hidden_size=384, characters=80, training_rows=1000, threads=2, metric="ACCURACY", day=100
)
PRIORS = {
    "onnx": Prior(Guess(1.3, 0.4), Guess(1.0, 0.1), Loss(0.0), RULE),
    "int8": Prior(Guess(4.0, 0.4), Guess(4.0, 0.1), Loss(0.02), RULE),
    "int4": Prior(Guess(2.0, 0.4), Guess(8.0, 0.1), Loss(0.05), RULE),
    "student": Prior(Guess(1.8, 0.2), Guess(1.3, 0.1), Loss(0.005), RULE),
    "taught": Prior(Guess(1.0, 0.0), Guess(1.0, 0.0), Loss(0.03), RULE),
}

contexts = st.builds(
    Context,
    model=st.uuids().map(str),  # else the later of two trials of one recipe would replace the earlier
    megabytes=st.floats(1, 5000),
    layers=st.integers(0, 48),
    hidden_size=st.integers(0, 4096),
    characters=st.floats(0, 5000),
    training_rows=st.integers(0, 100_000),
    threads=st.integers(1, 64),
    libraries=st.sampled_from(["old", "new"]),
    metric=st.sampled_from(["ACCURACY", "FIDELITY"]),
    day=st.floats(0, 100),
)
recipes = st.lists(st.sampled_from(sorted(PRIORS)), min_size=1, max_size=4, unique=True).map(tuple)
observations = st.builds(
    Observation,
    parts=recipes,
    context=contexts,
    speedup=st.floats(0.1, 20),
    size_ratio=st.floats(0.5, 20),
    loss=st.none() | st.floats(0, 1),
)


def seen(
    parts: tuple[str, ...], speedup: float = 1.0, loss: float | None = None, there: Context = HERE, size_ratio: float = 1.0
) -> Observation:
    return Observation(parts=parts, context=there, speedup=speedup, size_ratio=size_ratio, loss=loss)


def elsewhere(number: int) -> Context:
    """As here in everything but the weights."""
    return HERE.model_copy(update={"model": f"model {number}"})


def believed(*evidence: Observation, parts: Sequence[str] = ("int8",)) -> Prior:
    return Belief(PRIORS, HERE, evidence).of(parts)


# What is believed without evidence


@pytest.mark.parametrize("part", PRIORS)
def test_without_evidence_the_rule_of_thumb_stands(part: str) -> None:
    assert believed(parts=[part]) == PRIORS[part]


def test_without_evidence_parts_are_independent() -> None:
    found = believed(parts=["onnx", "int8"])
    assert found.speedup == PRIORS["onnx"].speedup * PRIORS["int8"].speedup
    assert found.loss.mean == pytest.approx(0.02)
    assert found.basis == RULE


@given(contexts)
def test_evidence_of_other_parts_alone_changes_nothing(there: Context) -> None:
    assert believed(seen(("int4",), 0.9, 0.3, there)) == PRIORS["int8"]


def test_a_part_that_nobody_knows_any_more_says_nothing() -> None:
    assert believed(seen(("int8", "forgotten"), 0.5, 0.5)) == PRIORS["int8"]


# Laws


@settings(max_examples=60)
@given(st.lists(observations, max_size=8), observations, recipes)
def test_more_evidence_is_never_less_sure(before: list[Observation], one: Observation, parts: tuple[str, ...]) -> None:
    less, more = believed(*before, parts=parts), believed(*before, one, parts=parts)
    assert more.speedup.spread <= less.speedup.spread + 1e-9
    assert more.size_ratio.spread <= less.size_ratio.spread + 1e-9


@settings(max_examples=60)
@given(st.lists(observations, max_size=8), recipes)
def test_what_is_believed_is_possible(evidence: list[Observation], parts: tuple[str, ...]) -> None:
    found = believed(*evidence, parts=parts)
    assert 0 < found.speedup.median < math.inf
    assert 0 <= found.loss.mean <= sum(PRIORS[part].loss.mean for part in parts) + len(parts)


@settings(max_examples=25)
@given(st.floats(0.5, 8))
def test_consistent_evidence_is_believed(speedup: float) -> None:
    def gap(count: int) -> float:
        evidence = [seen(("int8",), speedup, there=elsewhere(number)) for number in range(count)]
        return abs(math.log(believed(*evidence).speedup.median / speedup))

    gaps = [gap(count) for count in (0, 1, 10, 100)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(gaps))
    assert gaps[-1] <= 0.01


@settings(max_examples=25)
@given(st.floats(0, 0.5))
def test_a_consistent_loss_is_believed(loss: float) -> None:
    def gap(count: int) -> float:
        evidence = [seen(("int8",), loss=loss, there=elsewhere(number)) for number in range(count)]
        return abs(believed(*evidence).loss.mean - loss)

    gaps = [gap(count) for count in (0, 1, 10, 100)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(gaps))
    assert gaps[-1] <= 0.04 * gaps[0] + 1e-12


def test_it_is_never_certain() -> None:
    evidence = [seen(("int8",), 2.0, 0.0, elsewhere(number)) for number in range(300)]
    assert believed(*evidence).speedup.spread >= 0.1


@pytest.mark.parametrize(
    ("near", "far"),
    [
        ({"megabytes": 120}, {"megabytes": 1300}),
        ({"layers": 8}, {"layers": 48}),
        ({"hidden_size": 512}, {"hidden_size": 4096}),
        ({"threads": 3}, {"threads": 64}),
        ({"day": 70}, {"day": -900}),
        ({"layers": 7}, {"layers": 7, "libraries": "other"}),
    ],
)
def test_what_is_less_alike_says_less(near: dict[str, float], far: dict[str, float]) -> None:
    similar, dissimilar = (believed(seen(("int8",), 1.2, 0.2, HERE.model_copy(update=changed))) for changed in (near, far))
    assert 1.2 < similar.speedup.median < dissimilar.speedup.median < 4.0
    assert similar.speedup.spread < dissimilar.speedup.spread < 0.4
    assert 0.02 < dissimilar.loss.mean < similar.loss.mean


# Speeds


def test_the_sum_of_two_is_surer_than_each() -> None:
    trial = seen(("onnx", "int8"), 1.8)
    together = believed(trial, parts=["onnx", "int8"]).speedup
    apart = believed(trial, parts=["onnx"]).speedup * believed(trial, parts=["int8"]).speedup
    assert together.median == pytest.approx(1.8, rel=0.1)
    assert together.spread < apart.spread / 2


def test_what_two_trials_differ_in_is_the_part_that_they_differ_in() -> None:
    evidence = seen(("onnx",), 1.4), seen(("onnx", "int8"), 1.8)
    assert believed(*evidence, parts=["int8"]).speedup.median == pytest.approx(1.8 / 1.4, rel=0.3)
    assert believed(*evidence, parts=["student", "onnx", "int8"]).speedup.median == pytest.approx(1.8 * 1.8, rel=0.2)


def test_a_recipe_of_the_same_model_is_expected_to_do_the_same_again() -> None:
    same, other = (believed(seen(("onnx", "int8"), 1.8, there=there), parts=["onnx", "int8"]).speedup for there in (HERE, elsewhere(1)))
    assert same.median == pytest.approx(1.8, rel=0.02)
    assert same.spread < 0.06 < other.spread
    assert same.chance_of(2.5) < 0.001 < other.chance_of(2.5)


def test_a_size_is_learnt_as_a_speed_is() -> None:
    found = believed(seen(("int4",), size_ratio=3.0), parts=["int4"]).size_ratio
    assert 3.0 < found.median < 5.0
    assert found.spread < 0.1


def test_the_same_recipe_in_the_same_context_counts_once_and_as_it_was_last() -> None:
    earlier, later = seen(("int8",), 2.0), seen(("int8",), 1.5, there=HERE.model_copy(update={"day": 99.0}))
    assert believed(earlier, later) == believed(later)
    assert believed(earlier, later) != believed(earlier)


def test_training_changes_no_speed() -> None:
    found = believed(seen(("student", "onnx", "taught"), 5.0, 0.2), parts=["taught"])
    assert found.speedup == Guess(1.0, 0.0)


def test_a_shape_tells_the_speed_of_what_is_trained_from_it() -> None:
    shape = seen(("student", "onnx", "int8"), 5.5)
    trained = believed(shape, parts=["student", "onnx", "int8", "taught"]).speedup
    assert trained.median == pytest.approx(5.5, rel=0.02)
    assert trained.spread < 0.06


# Losses


def test_a_loss_of_another_metric_does_not_count() -> None:
    found = believed(seen(("int8",), 1.5, 0.4, HERE.model_copy(update={"metric": "FIDELITY"})))
    assert found.loss == PRIORS["int8"].loss
    assert found.speedup.median < 3.0


def test_the_same_recipe_of_the_same_model_and_data_loses_the_same_again() -> None:
    """Where the rule of thumb, corrected, would leave its large loss a chance to be small."""
    there = HERE.model_copy(update={"data": "the same"})
    trial = Observation(parts=("onnx", "int8"), context=there, speedup=1.8, size_ratio=4.0, loss=0.05, loss_spread=0.01)

    def known(here: Context, *parts: str) -> Loss | None:
        return Belief(PRIORS, here, [trial]).known_loss(parts)

    assert known(there, "onnx", "int8") == Loss(0.0, 0.05, 0.01)
    for changed in ({"model": "another"}, {"data": "other"}, {"libraries": "new"}, {"metric": "FIDELITY"}):
        assert known(there.model_copy(update=changed), "onnx", "int8") is None
    assert known(there, "int8") is None
    assert Belief(PRIORS, HERE, [trial.model_copy(update={"context": HERE})]).known_loss(["onnx", "int8"]) is None  # of data nobody knows


def test_training_on_far_fewer_rows_says_little() -> None:
    alike, unlike = (
        believed(seen(("student", "taught"), 5.0, 0.3, HERE.model_copy(update={"training_rows": rows})), parts=["taught"])
        for rows in (900, 30)
    )
    assert alike.loss.mean > 0.06
    assert unlike.loss.mean == pytest.approx(0.03, abs=0.001)
    assert (alike.basis, unlike.basis) == ("1 trial on this machine", RULE)


def test_a_part_is_charged_with_what_it_is_expected_to_lose() -> None:
    trial = seen(("int8", "taught"), 4.0, 0.5)
    int8, taught = (believed(trial, parts=[part]).loss.mean for part in ("int8", "taught"))
    assert taught - 0.03 > int8 - 0.02 > 0
    unharmed = believed(trial, *(seen(("int8",), 4.0, 0.0, elsewhere(number)) for number in range(20)), parts=["taught"])
    assert unharmed.loss.mean > taught  # the other one is known to be innocent


# What a search makes of it


def test_what_never_helped_here_is_hopeless_until_it_was_long_ago() -> None:
    """Of a target of 3x, which the rule of thumb leaves open."""

    def chance(day: float) -> float:
        there = HERE.model_copy(update={"day": day})
        evidence = seen(("onnx",), 1.3, there=there), seen(("onnx", "int4"), 0.9, there=there)
        return believed(*evidence, parts=["onnx", "int4"]).speedup.chance_of(3.0)

    assert believed(parts=["onnx", "int4"]).speedup.chance_of(3.0) > 0.2
    assert chance(HERE.day) < HOPELESS
    assert chance(HERE.day - 30) < HOPELESS
    assert chance(HERE.day - 2 * 365) > HOPELESS


def test_bases_are_counted() -> None:
    evidence = [seen(("onnx", "int8"), 1.8, 0.01, elsewhere(number)) for number in range(3)]
    assert believed(*evidence).basis == "3 trials on this machine"
    assert believed(*evidence, parts=["int4"]).basis == RULE
    assert believed(*evidence, parts=["onnx", "int4"]).basis == f"3 trials on this machine, {RULE}"


# From a trial


def test_a_trial_is_observed_without_what_it_does_not_tell() -> None:
    told = Interval(estimate=2.0, low=1.9, high=2.1)
    gained = Interval(estimate=-0.01, low=-0.02, high=0.0)
    plain = Rung("int8", (Step(technique="dynamic_int8"),), ("int8",), 1.0)
    trained = Rung("small", (Step(technique="distill"),), ("student", "taught"), 1.0, shape="shape")
    assert Observation.of(Trial(plain, reason="does not export"), HERE) is None
    found = Observation.of(Trial(plain, told, 4.0, gained), HERE)
    assert found is not None
    assert (found.speedup, found.loss, found.context.training_rows) == (2.0, 0.0, 0)
    assert found.loss_spread == pytest.approx(0.02 / 3.92)
    found = Observation.of(Trial(trained, told, 4.0), HERE)
    assert found is not None
    assert (found.loss, found.context.training_rows) == (None, 1000)
