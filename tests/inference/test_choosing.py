"""Instances and threads as told, as advised, or as measured; and versions opened so."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from services.backends import Array, LoadError, RunError
from services.inference.choosing import choose, highest_rates, open_version
from services.inference.host import Host
from services.inference.opening import Opener, closed_on_failure
from services.inference.parallelism import Parallelism, candidates
from services.inference.settings import InferenceSettings
from services.inference.warming import rows_per_second
from services.repository.manifest import Manifest
from services.repository.store import Origin, Repository
from tests.inference.conftest import PLAIN, plain_model, seal
from tests.inference.fakes import FakeClock

FOUR = (0, 1, 2, 3)


class FourCores(InferenceSettings):
    """On a machine of four, wherever the test runs."""

    @property
    def cores(self) -> tuple[int, ...]:
        return FOUR


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_model(tmp_path_factory.mktemp("choosing") / "plain")


@pytest.fixture
def plain(repository: Repository, folder: Path) -> Manifest:
    return seal(repository, folder, "plain", PLAIN)


def test_what_is_told_is_taken(repository: Repository, plain: Manifest) -> None:
    advised = plain.model_copy(update={"recipe": {"serving": {"instances": 1, "threads": 1}}})
    assert choose(repository, advised, FourCores(instances=3, threads=2), Host()) == Parallelism(3, 2)
    assert choose(repository, advised, FourCores(instances=2), Host()) == Parallelism(2, 2)


def test_a_recipes_advice_is_taken_unless_told(repository: Repository, folder: Path) -> None:
    origin = Origin(recipe={"serving": {"instances": 2, "threads": 1}})
    advised = seal(repository, folder, "plain", PLAIN, origin=origin)
    assert choose(repository, advised, FourCores(), Host()) == Parallelism(2, 1)


def test_without_time_to_measure_there_is_one_instance_a_core(repository: Repository, plain: Manifest) -> None:
    assert choose(repository, plain, FourCores(tune_s=0), Host()) == Parallelism(4, 1)


def test_what_was_measured_is_among_the_candidates_and_not_measured_again(repository: Repository, plain: Manifest) -> None:
    host = Host()
    chosen = choose(repository, plain, FourCores(tune_s=0.03), host)
    assert chosen in candidates(4, 4)
    assert host.measured == {plain.digest: chosen}
    host.measured[plain.digest] = Parallelism(9, 9)
    assert choose(repository, plain, FourCores(tune_s=0.03), host) == Parallelism(9, 9)


def test_one_slowed_down_by_something_else_is_measured_again() -> None:
    one, both = Parallelism(1, 2), Parallelism(2, 1)
    measured = {one: [100.0, 110.0], both: [80.0, 150.0]}
    assert highest_rates([one, both], lambda parallelism: measured[parallelism].pop(0)) == {one: 110.0, both: 150.0}


def test_one_far_behind_is_not_measured_again() -> None:
    one, both, far = Parallelism(1, 4), Parallelism(2, 2), Parallelism(4, 1)
    asked: list[Parallelism] = []

    def rate(parallelism: Parallelism) -> float:
        asked.append(parallelism)
        return {one: 100.0, both: 90.0, far: 40.0}[parallelism]

    highest_rates([one, both, far], rate)
    assert asked == [one, both, far, both, one]


def test_an_opened_version_has_a_warm_backend_for_each_instance(repository: Repository, plain: Manifest) -> None:
    opened = open_version(repository, plain, InferenceSettings(instances=3, threads=1), Host())
    assert len(opened.backends) == 3
    x = np.ones((2, 3), np.float32)
    opened.backends[0].close()
    assert opened.backends[1].run({"x": x}, ["total"])["total"].tolist() == [3.0, 3.0]
    opened.close()
    with pytest.raises(RunError):
        opened.backends[1].run({"x": x}, ["total"])


def test_instances_that_are_lost_one_after_the_other_share_one_new_model(repository: Repository, plain: Manifest) -> None:
    opener = Opener(repository, plain, InferenceSettings(), Parallelism(2, 1))
    old = opener.open().backends
    first = opener.replace(0, old[0])
    second = opener.replace(1, old[1])
    assert first.shelf is second.shelf is not old[0].shelf  # type: ignore[attr-defined]
    for backend in old:
        backend.close()
    for backend in (first, second):
        opener.probe(backend)
    first.close()
    third = opener.replace(0, first)
    assert third.shelf is not second.shelf  # type: ignore[attr-defined]
    second.close()
    fourth = opener.replace(1, second)
    assert fourth.shelf is third.shelf  # type: ignore[attr-defined]
    for backend in (third, fourth):
        backend.close()


def test_a_version_that_is_gone_cannot_be_opened_anew(repository: Repository, plain: Manifest) -> None:
    opener = Opener(repository, plain, InferenceSettings(), Parallelism(1, 1))
    (old,) = opener.open().backends
    (repository.folder("plain", 1) / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(Exception, match=r"model\.onnx"):
        opener.replace(0, old)
    opener.probe(old)  # the loaded one is not harmed
    old.close()


class Timed:
    """Takes a second for each row, on a clock of its own."""

    name = "timed"

    def __init__(self, clock: FakeClock) -> None:
        self.closed = False
        self._clock = clock

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self._clock.now_s += len(inputs["x"])
        return {}

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("seconds", [0.0, 20.0, 100.0])
def test_rows_are_counted_over_the_time_they_took(seconds: float) -> None:
    clock = FakeClock()
    assert rows_per_second([Timed(clock)], PLAIN, seconds, clock) == pytest.approx(1.0)
    assert clock.now_s - 100.0 >= seconds


def test_what_was_loaded_for_a_failure_is_closed(tmp_path: Path) -> None:
    timed = Timed(FakeClock())
    with pytest.raises(LoadError), closed_on_failure([timed]):
        raise LoadError("later")
    assert timed.closed
    kept = Timed(FakeClock())
    with closed_on_failure([kept]):
        pass
    assert not kept.closed
