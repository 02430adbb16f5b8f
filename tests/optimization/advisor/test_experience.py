"""What trials measured, kept for later searches: whole lines, of this machine, and of use."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.optimization.advisor.experience import Experience, Machine
from services.optimization.advisor.guess import Guess, Loss, Prior
from services.optimization.advisor.observation import Context
from services.optimization.advisor.rung import Rung, Trial
from services.optimization.advisor.search import Search, Stop
from services.optimization.advisor.wanted import Wanted
from services.optimization.recipe import Step
from services.optimization.report import Interval
from services.repository.manifest import Format, Signature
from tests.models import classifier_signature, minilm_signature

SIGNATURE = classifier_signature()
HERE = Context(model="m", megabytes=90, layers=6, metric="ACCURACY")
MACHINE = Machine(cpu_model="A", cpu_features=("avx2",))


def exactly(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value)


def rung(*parts: str, seconds: float = 10.0) -> Rung:
    return Rung("-".join(parts), tuple(Step(technique=part) for part in parts), parts, seconds)


def trial(speedup: float, *parts: str, loss: float = 0.0) -> Trial:
    return Trial(rung(*(parts or ("onnx",))), exactly(speedup), 1.0, exactly(loss), loss <= 0.01, "good", 3.0)


def experience(
    folder: Path, machine: Machine = MACHINE, signature: Signature = SIGNATURE, most_lines: int = 500, here: Context = HERE
) -> Experience:
    return Experience(folder / "experience.jsonl", signature, here, machine, most_lines)


def speedups(found: Experience) -> list[float]:
    return [one.speedup for one in found.evidence()]


# The file


def test_what_one_job_measured_another_finds(tmp_path: Path) -> None:
    experience(tmp_path).add(trial(1.4, "onnx"))
    experience(tmp_path).add(trial(1.8, "onnx", "int8", loss=0.02))
    found = experience(tmp_path).evidence()
    assert [(one.parts, one.speedup, one.loss) for one in found] == [(("onnx",), 1.4, 0.0), (("onnx", "int8"), 1.8, 0.02)]
    assert found[0].context == HERE


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    assert experience(tmp_path).evidence() == []


def test_a_torn_line_is_passed_over_and_takes_no_other_along(tmp_path: Path) -> None:
    found = experience(tmp_path)
    found.add(trial(1.0))
    with (tmp_path / "experience.jsonl").open("a") as file:
        file.write('{"machine": {"cpu_mo')  # torn by a kill
    assert speedups(found) == [1.0]
    found.add(trial(2.0))
    assert speedups(found) == [1.0, 2.0]


def test_a_line_of_another_version_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "experience.jsonl").write_text('{"kind": "of another version"}\n')
    found = experience(tmp_path)
    found.add(trial(2.0))
    assert speedups(found) == [2.0]


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    found = experience(tmp_path, most_lines=5)
    for number in range(1, 24):
        found.add(trial(float(number)))
        assert len((tmp_path / "experience.jsonl").read_text().splitlines()) <= 10
    assert speedups(found) == [19.0, 20.0, 21.0, 22.0, 23.0]
    assert [path.name for path in tmp_path.iterdir()] == ["experience.jsonl"]


@pytest.mark.parametrize("most_lines", [1000, 5])
def test_two_jobs_that_write_at_once_lose_nothing(tmp_path: Path, most_lines: int) -> None:
    """Each opens the file anew and locks what it opened, as another process does; with few lines, it is replaced again and again."""

    def write(first: int) -> None:
        for number in range(first, first + 100):
            experience(tmp_path, most_lines=most_lines).add(trial(float(number)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (1, 1001)))
    found = speedups(experience(tmp_path, most_lines=most_lines))
    assert len(found) == min(200, most_lines)
    if most_lines == 1000:
        assert sorted(found) == [*range(1, 101), *range(1001, 1101)]
    else:
        assert found[-1] in (100, 1100)


def test_only_this_machine_and_models_of_this_kind_count(tmp_path: Path) -> None:
    experience(tmp_path).add(trial(2.0))
    assert speedups(experience(tmp_path)) == [2.0]
    assert speedups(experience(tmp_path, MACHINE.model_copy(update={"cpu_model": "B"}))) == []
    assert speedups(experience(tmp_path, MACHINE.model_copy(update={"cpu_features": ("avx2", "avx512_vnni")}))) == []
    assert speedups(experience(tmp_path, signature=minilm_signature())) == []
    assert speedups(experience(tmp_path, signature=SIGNATURE.model_copy(update={"format": Format.ONNX}))) == []


def test_what_could_not_be_made_is_not_kept(tmp_path: Path) -> None:
    experience(tmp_path).add(Trial(rung("onnx"), reason="does not export"))
    assert not (tmp_path / "experience.jsonl").exists()


def test_what_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    found = experience(tmp_path / "gone")
    found.add(trial(2.0))
    assert found.evidence() == []


# Of use to the next search

RULE = {
    "onnx": Prior(Guess(1.3, 0.4), Guess(1.0, 0.1), Loss(0.0), "rule of thumb"),
    "int8": Prior(Guess(4.0, 0.4), Guess(4.0, 0.1), Loss(0.005), "rule of thumb"),
    "int4": Prior(Guess(2.0, 0.4), Guess(8.0, 0.1), Loss(0.005), "rule of thumb"),
    "student": Prior(Guess(4.0, 0.2), Guess(2.0, 0.1), Loss(0.005), "rule of thumb"),
}
MEASURED = {
    "onnx": trial(1.4, "onnx"),
    "onnx-int8": trial(1.8, "onnx", "int8"),
    "onnx-int4": trial(0.9, "onnx", "int4"),
    "student-onnx": trial(5.0, "student", "onnx"),
}
RUNGS = [rung("onnx", seconds=10), rung("onnx", "int8", seconds=20), rung("onnx", "int4", seconds=20), rung("student", "onnx", seconds=900)]


def searched(known: Experience) -> tuple[list[str], Search]:
    """Names in the order of a search for 3.5 times the speed, where every trial is one of MEASURED."""
    search = Search(RUNGS, Wanted(max_loss=0.01, speedup=3.5), RULE, evidence=known.evidence(), here=known.here)
    names = []
    while not isinstance(found := search.next(1e6), Stop):
        names.append(found.name)
        search.learn(MEASURED[found.name])
        known.add(MEASURED[found.name])
    assert found.is_reached
    return names, search


def test_a_second_search_does_not_try_what_the_first_found_hopeless(tmp_path: Path) -> None:
    first, _ = searched(experience(tmp_path))
    assert {"onnx-int8", "student-onnx"} <= {*first}
    later = HERE.model_copy(update={"model": "another", "megabytes": 100.0, "day": 10.0})
    second, search = searched(experience(tmp_path, here=later))
    assert second == ["student-onnx"]
    assert "onnx-int8" in {outlook.rung.name for outlook in search.skipped()}


def test_a_search_tells_what_it_left_out_and_why(tmp_path: Path) -> None:
    known = experience(tmp_path)
    for found in MEASURED.values():
        known.add(found)
    search = Search(RUNGS, Wanted(max_loss=0.01, speedup=3.5), RULE, evidence=known.evidence(), here=known.here)
    skipped = {outlook.rung.name: outlook for outlook in search.skipped()}
    assert {*skipped} == {"onnx", "onnx-int8", "onnx-int4"}
    assert skipped["onnx-int4"].expected.basis == "1 trial on this machine"
    assert skipped["onnx-int4"].expected.speedup.median == pytest.approx(0.9, rel=0.2)
    chances = [outlook.chance for outlook in search.skipped()]
    assert chances == sorted(chances, reverse=True)
    exhaustive = Search(RUNGS, search.wanted, RULE, exhaustive=True, evidence=known.evidence(), here=known.here)
    assert exhaustive.skipped() == []


def test_what_is_built_upon_a_failure_is_no_unlikely_thing() -> None:
    search = Search(RUNGS, Wanted(max_loss=0.01, speedup=30.0), RULE)
    search.learn(Trial(rung("onnx"), reason="does not export"))
    assert {outlook.rung.name for outlook in search.skipped()} == {"student-onnx"}
