"""The real service, started for a trial: what is played against it, what it tells when it fails, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hone
import psutil
import pytest

from benchmarks.sentences import sentences
from services.optimization.advisor.serving.calls_wire import calls_for
from services.optimization.advisor.serving.material import material_of
from services.optimization.advisor.serving.replay import Player, Subject
from services.optimization.advisor.serving.traffic import Traffic
from services.optimization.advisor.serving.trial import TrialFailed, TrialService, trial_service
from services.optimization.advisor.serving.tune import ServedPair, Wanted
from services.optimization.examples import Examples
from services.optimization.recipe import Objective
from services.optimization.techniques import Model

EXAMPLES = Examples(texts=tuple(sentences(60, seed=0)))
QUICK = {**os.environ, "HONE_INFERENCE_TUNE_S": "0"}
TURN_S = 0.3
WAIT_S = 60.0  # only a process that stays waits so long


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialService]:
    with trial_service(tmp_path_factory.mktemp("trial"), QUICK) as running:
        yield running


def player(service: TrialService, model: Model, traffic: Traffic) -> Player:
    material = material_of(traffic, model.folder, model.signature, EXAMPLES, 0)
    return Player(service, material, calls_for(material, model.signature.task), 0)


def counted(service: TrialService, reference: str) -> tuple[int, int]:
    """Rows that were answered, and those of them from memory."""
    with hone.Client(inference=service.address) as client:
        (found,) = [model for model in client.statistics().models if f"{model.name}@{model.version}" == reference]
    return found.rows, found.cached_rows


def test_two_versions_played_in_turns(service: TrialService, slow: Model, fast: Model) -> None:
    traffic = Traffic(callers=4)
    subjects = [Subject(service.add(model, {}), traffic) for model in (slow, fast)]
    original, candidate = player(service, fast, traffic).play(subjects, 2, TURN_S)
    assert (len(original.turns), len(candidate.turns)) == (2, 2)
    assert candidate.rows_per_second > 1.2 * original.rows_per_second
    assert candidate.latency_s(0.5) < original.latency_s(0.5) <= original.latency_s(0.99) < 10
    assert candidate.cpu_s_per_row < original.cpu_s_per_row
    assert (original.unanswered, candidate.unanswered) == (0, 0)
    assert min(candidate.cpu_s_per_row, candidate.asking_cpu_s_per_row) > 0


def test_an_open_loop_asks_at_its_rate(service: TrialService, fast: Model) -> None:
    traffic = Traffic(rate=60, gamma_shape=50, request_rows=(2,))
    (played,) = player(service, fast, traffic).play([Subject(service.add(fast, {}), traffic)], 2, 2 * TURN_S)
    assert played.rows_per_second == pytest.approx(120, rel=0.15)
    assert played.requests == pytest.approx(60 * 4 * TURN_S, rel=0.15)


def test_nothing_but_stated_repeats_is_remembered(service: TrialService, fast: Model) -> None:
    """Also among versions of equal files, whose answers are the same."""
    texts = tuple(sorted({*sentences(60, seed=7)} - {*EXAMPLES.texts}))  # that no other test asked for
    fresh, repeating = Traffic(texts=texts, callers=2), Traffic(texts=texts, callers=2, repeat_share=0.8)
    one, other = (service.add(fast, serving) for serving in ({}, {"batch_rows": 8}))
    playing = player(service, fast, fresh)
    playing.play([Subject(one, fresh), Subject(other, fresh)], 2, TURN_S)
    assert (counted(service, one)[1], counted(service, other)[1]) == (0, 0)
    third = service.add(fast, {})
    playing.play([Subject(third, repeating)], 2, TURN_S)
    rows, cached = counted(service, third)
    assert cached / rows == pytest.approx(0.8, abs=0.1)


def test_token_lengths_are_played_without_texts(service: TrialService, fast: Model) -> None:
    traffic = Traffic(token_lengths=(4, 30), callers=2)
    reference = service.add(fast, {})
    (played,) = player(service, fast, traffic).play([Subject(reference, traffic)], 1, TURN_S)
    assert played.rows > 0
    assert counted(service, reference)[1] == 0


def test_a_version_is_served_with_the_settings_given(service: TrialService, fast: Model) -> None:
    reference = service.add(fast, {"instances": 1, "threads": 1, "batch_rows": 4, "remember": False})
    with hone.Client(inference=service.address) as client:
        (found,) = [model for model in client.serving().models if f"{model.name}@{model.version}" == reference]
        assert found.backend == "onnxruntime, 1 x 1 threads, batch_rows 4, answers not remembered as advised"
        service.remove(reference)
        end = time.monotonic() + WAIT_S
        while reference in {f"{model.name}@{model.version}" for model in client.serving().models if model.resident_bytes}:
            assert time.monotonic() < end  # it is freed in the background


def test_a_version_that_cannot_be_loaded_is_told(service: TrialService, fast: Model, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(TrialFailed, match="could not be served"):
        service.add(Model(tmp_path, fast.signature), {})


def test_the_models_own_files_stay_as_they_were(service: TrialService, fast: Model) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in fast.folder.iterdir()}
    service.add(fast, {})
    assert {path.name: path.stat().st_mtime_ns for path in fast.folder.iterdir()} == before


def test_a_service_that_is_killed_is_told_and_leaves_nothing(tmp_path: Path, fast: Model) -> None:
    traffic = Traffic(callers=2)
    with trial_service(tmp_path, {**QUICK, "HONE_INFERENCE_ISOLATION": "process"}) as running:
        subject = Subject(running.add(fast, {}), traffic)
        family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
        assert len(family) > 1
        playing = player(running, fast, traffic)
        os.kill(running.pid, signal.SIGKILL)
        with pytest.raises(TrialFailed, match="SIGKILL"):
            playing.play([subject], 2, TURN_S)
        with pytest.raises(TrialFailed, match="SIGKILL"):
            running.add(fast, {})
    assert psutil.wait_procs(family, timeout=WAIT_S)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(TrialFailed, match=r"(?s)status 2.*HONE_INFERENCE_BATCH_ROWS"),
        trial_service(tmp_path, {**QUICK, "HONE_INFERENCE_BATCH_ROWS": "none"}),
    ):
        raise AssertionError("it started")
    assert list(tmp_path.iterdir()) == []


_STARTER = """
import sys
from pathlib import Path
from services.optimization.advisor.serving.trial import trial_service
with trial_service(Path(sys.argv[1])) as service:
    print(service.pid, flush=True)
    sys.stdin.read()
"""


def test_a_service_ends_with_whoever_started_it(tmp_path: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", _STARTER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=QUICK)
    assert starter.stdout is not None
    assert starter.stdin is not None
    with starter, starter.stdout, starter.stdin:
        service = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    assert psutil.wait_procs([service], timeout=WAIT_S)[1] == []


def test_the_whole_of_it(tmp_path: Path, slow: Model, fast: Model) -> None:
    traffic = Traffic(rate=40, callers=4)
    said: list[str] = []
    wanted = Wanted(Objective.THROUGHPUT, seconds=1)
    served = ServedPair(slow, fast, EXAMPLES, traffic, wanted, tmp_path, QUICK).tune(said.append)
    assert served.speedup.low > 1
    assert served.candidate == served.candidate_default
    assert served.candidate.rows_per_second.estimate > served.original.rows_per_second.estimate
    assert served.candidate_at_rate is not None
    assert served.candidate_at_rate.rows_per_second.estimate == pytest.approx(40, rel=0.25)
    assert (served.advice.settings, served.original_capacity) == ({}, None)
    assert {"batching", "remembering", "delay"} <= {*served.advice.left}  # there was no time
    assert (served.advice.kept, served.advice.not_kept) == ((), ())
    assert said
    assert list(tmp_path.iterdir()) == []
    assert type(served).model_validate_json(served.model_dump_json()) == served


def test_a_comparison_alone(tmp_path: Path, slow: Model, fast: Model) -> None:
    """Of the closed loop, whatever the traffic's rate: at a rate that both keep up with, neither is faster."""
    wanted = Wanted(seconds=1)
    found = ServedPair(slow, fast, EXAMPLES, Traffic(rate=5, callers=4), wanted, tmp_path, QUICK).compare()
    assert found.low > 1
    assert list(tmp_path.iterdir()) == []
