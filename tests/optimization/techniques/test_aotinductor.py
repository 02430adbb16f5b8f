"""Packages of native code. One compilation takes many seconds, so one stands for all that is asked of it."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.optimization.failures import Toolchain
from services.optimization.techniques import Outcome, find
from services.repository.manifest import Format
from tests.applied import apply
from tests.converted import Sources, answer, batch, cosine

needs_compiler = pytest.mark.skipif(bool(find("aotinductor").probe()), reason=find("aotinductor").probe())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def compiled(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    return apply("aotinductor", *sources["resnet"], tmp_path_factory.mktemp("compiled") / "made")


@needs_compiler
def test_a_package_answers_as_its_source_on_any_rows(sources: Sources, compiled: tuple[Path, Outcome]) -> None:
    target, outcome = compiled
    assert (outcome.signature.format, outcome.signature.dtype) == (Format.AOTINDUCTOR, "float32")
    assert outcome.notes["largest_deviation"] < 1e-4
    assert outcome.notes["verified_shapes"] == 3
    assert outcome.notes["compiled_for"]
    assert cosine(sources["resnet"], (target, outcome.signature)) > 0.99999
    assert answer((target, outcome.signature), batch(outcome.signature, rows=23)).shape == (23, 10)


@needs_compiler
def test_what_it_builds_with_stays_in_the_steps_folder(compiled: tuple[Path, Outcome]) -> None:
    scratch = compiled[0].parent / "scratch"
    assert list(scratch.rglob("*.cpp"))
    assert str(scratch) not in {os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.environ.get("TMPDIR")}
    assert not [path for path in compiled[0].rglob("*") if path.suffix in {".cpp", ".o", ".so", ".h"}]


@needs_compiler
def test_a_compiler_that_fails_is_the_toolchains_fault(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as configuration

    monkeypatch.setattr(configuration.cpp, "cxx", (None, "false"))
    with pytest.raises(Toolchain, match="aotinductor: "):
        apply("aotinductor", *sources["resnet"], tmp_path / "failed")


def test_without_a_compiler_it_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in find("aotinductor").probe()


@pytest.mark.parametrize(("field", "value"), [("dtype", "float16"), ("freezing", "maybe"), ("mode", "trace")])
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        find("aotinductor").parameters.model_validate({field: value})
