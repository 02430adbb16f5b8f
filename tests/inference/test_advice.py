"""Advice in a version's recipe: what is taken, what is passed over and named, and that a version is served by it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.inference.advice import Bounds, read_advice
from services.inference.answers import Answers, MemoryAnswers
from services.inference.batching import Batching
from services.inference.calls import Options, Result
from services.inference.core import Core
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.oip.metadata_wire import model_config
from services.inference.parallelism import Parallelism
from services.inference.settings import InferenceSettings
from services.optimization.advisor.serving.knobs import Conditions, knobs
from services.repository.store import Origin, Repository
from tests.inference.conftest import PLAIN, Serving, plain_model, seal

BOUNDS = Bounds(cores=4, queue_rows=1024, queue_tokens=1 << 17)
WHOLE: dict[str, Any] = {
    "instances": 2,
    "threads": 2,
    "cores": 4,
    "batching": "fixed-buckets",
    "buckets": [8, 24],
    "batch_rows": 8,
    "batch_tokens": 512,
    "max_age_s": 0.05,
    "remember": False,
}
DIVISION = {"instances", "threads", "cores"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_model(tmp_path_factory.mktemp("advice") / "plain")


def test_whole_advice_is_taken() -> None:
    advice = read_advice({"serving": WHOLE, "steps": []}, BOUNDS)
    assert (advice.parallelism, advice.remembers, advice.passed_over) == (Parallelism(2, 2), False, {})
    assert advice.settings == {
        "batching": Batching.FIXED_BUCKETS,
        "buckets": (8, 24),
        "batch_rows": 8,
        "batch_tokens": 512,
        "max_age_s": 0.05,
    }


def test_no_advice_changes_nothing() -> None:
    advice = read_advice({}, BOUNDS)
    assert (advice.parallelism, advice.settings, advice.remembers, advice.passed_over) == (None, {}, True, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batching", "fast"),
        ("batching", 1),
        ("buckets", [16, 8]),
        ("buckets", [8, 8]),
        ("buckets", [0, 8]),
        ("buckets", []),
        ("buckets", "16"),
        ("batch_rows", 0),
        ("batch_rows", 8.0),
        ("batch_rows", True),
        ("batch_rows", 1025),
        ("batch_tokens", -1),
        ("batch_tokens", (1 << 17) + 1),
        ("max_age_s", 0),
        ("max_age_s", "soon"),
        ("max_age_s", float("nan")),
        ("max_age_s", 10**400),
        ("remember", "no"),
        ("remember", 0),
        ("instances", "2"),
        ("instances", True),
        ("threads", 0),
        ("instances", 3),
        ("cores", 8),
        ("cores", "4"),
        ("turbo", 1),
    ],
)
def test_what_is_unsound_is_passed_over_by_its_name_and_the_rest_is_taken(name: str, value: object) -> None:
    advice = read_advice({"serving": {**WHOLE, name: value}}, BOUNDS)
    assert list(advice.passed_over) == [name]
    kept = {"batch_rows", "batch_tokens", "max_age_s"} - {name}
    assert {each: advice.settings[each] for each in kept} == {each: WHOLE[each] for each in kept}
    assert name not in advice.settings
    assert (advice.parallelism is None) == (name in ("instances", "threads", "cores"))
    assert advice.remembers == (name == "remember")


@pytest.mark.parametrize("serving", ["fast", 3, None, [1]])
def test_advice_that_is_no_mapping_is_passed_over(serving: object) -> None:
    assert list(read_advice({"serving": serving}, BOUNDS).passed_over) == ["serving"]


def test_half_of_a_division_is_passed_over() -> None:
    assert "without threads" in read_advice({"serving": {"instances": 2}}, BOUNDS).passed_over["instances"]
    assert "without instances" in read_advice({"serving": {"threads": 2}}, BOUNDS).passed_over["threads"]


def test_whatever_the_advisor_may_advise_is_known_here() -> None:
    every = [candidate for knob in knobs(Conditions(BOUNDS.cores, (5, 9, 30))) for candidate in knob.candidates]
    assert {name for settings in every for name in settings} == {*WHOLE}
    for settings in every:
        assert read_advice({"serving": json.loads(json.dumps(settings))}, BOUNDS).passed_over == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([*Batching]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*WHOLE]) | st.text(max_size=4), _JSON, max_size=8))
def test_whatever_a_recipe_holds_a_policy_comes_of_it(serving: dict[str, Any]) -> None:
    settings = InferenceSettings()
    advice = read_advice({"serving": serving}, settings.bounds)
    policy = settings.advised(advice).policy  # raises ValueError where its bounds are no bounds
    assert policy.max_rows <= settings.queue_rows
    assert policy.max_tokens <= settings.queue_tokens
    assert not {*advice.settings} & {*advice.passed_over}
    assert {*serving} - {*advice.passed_over} - DIVISION <= {*advice.settings, "remember"}
    if {*serving} & {"instances", "threads"}:  # obeyed whole, or named
        assert (advice.parallelism is None) == bool({*advice.passed_over} & DIVISION)


def test_what_the_operator_set_wins() -> None:
    advice = read_advice({"serving": WHOLE}, BOUNDS)
    told = InferenceSettings(batch_rows=32, batching=Batching.LENGTH_AWARE).advised(advice).policy
    assert (told.max_rows, told.length_aware, told.buckets) == (32, True, ())
    assert (told.max_tokens, told.max_age_s) == (512, 0.05)


def test_what_the_environment_sets_wins_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_INFERENCE_BATCH_ROWS", "32")
    assert InferenceSettings().advised(read_advice({"serving": WHOLE}, BOUNDS)).policy.max_rows == 32


def test_advice_does_not_reach_the_next_version() -> None:
    settings = InferenceSettings()
    before = settings.policy
    settings.advised(read_advice({"serving": WHOLE}, BOUNDS))
    assert settings.policy == before


async def plain_rows(models: Models, answers: Answers, rows: int) -> Result:
    values = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    return await Core(models, answers, 64).run_tensors("plain", {"x": values}, (), Options())


async def test_a_version_is_served_by_its_advice(repository: Repository, folder: Path, following: Serving) -> None:
    serving = {"instances": 1, "threads": 1, "batch_rows": 2, "max_age_s": 0.1}
    seal(repository, folder, "plain", PLAIN, "stable", Origin(recipe={"serving": serving}))
    async with following(repository, instances=0, threads=0) as models:
        await models.begin()
        assert (await plain_rows(models, Answers(None, None), 8)).served.batch_rows == 2
        served, _ = models.find("plain")
        assert served.backend == "onnxruntime, 1 x 1 threads, batch_rows 2, max_age_s 0.1 as advised"
        seal(repository, folder, "plain", PLAIN, "stable")
        await models.look()
        await models.settle()
        assert (await plain_rows(models, Answers(None, None), 8)).served.batch_rows > 2


@pytest.mark.parametrize(("serving", "cached"), [({}, 1), ({"remember": True}, 1), ({"remember": False}, 0)])
async def test_a_version_may_advise_against_remembering(
    repository: Repository, folder: Path, following: Serving, serving: dict[str, Any], cached: int
) -> None:
    seal(repository, folder, "plain", PLAIN, "stable", Origin(recipe={"serving": serving}))
    answers = Answers(MemoryAnswers(1 << 20), None)
    async with following(repository) as models:
        await models.begin()
        await plain_rows(models, answers, 1)
        assert (await plain_rows(models, answers, 1)).served.cached_rows == cached
        served, _ = models.find("plain")
        assert model_config("plain", served, InferenceSettings()).response_cache.enable == bool(cached)


async def test_unsound_advice_is_told_once_and_the_version_is_served(repository: Repository, folder: Path) -> None:
    origin = Origin(recipe={"serving": {"batch_rows": "many", "remember": 3, "max_age_s": 0.1}})
    seal(repository, folder, "plain", PLAIN, "stable", origin)
    models = Models(repository, InferenceSettings(repository=repository.root, tune_s=0), Metrics(CollectorRegistry()))
    try:
        with capture_logs() as lines:
            await models.begin()
        (line,) = [line for line in lines if line["log_level"] == "warning"]
        assert (line["model"], set(line["passed_over"])) == ("plain@1", {"batch_rows", "remember"})
        assert (await plain_rows(models, Answers(None, None), 1)).served.version == 1
    finally:
        await models.close()
