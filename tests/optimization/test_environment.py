"""What is told of the machine: GPUs as their driver names them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.optimization import environment
from services.optimization.advisor.precisions import notes
from services.optimization.environment import Gpu, describe, gpus
from services.optimization.recipe import Objective

Driver = Callable[[str], None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Puts a driver's tool on the path, as a script."""

    def install(script: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        gpus.cache_clear()

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    gpus.cache_clear()
    yield install
    gpus.cache_clear()


def test_gpus_are_told_with_what_they_run(driver: Driver) -> None:
    driver('echo "NVIDIA H200, 9.0, 143771 MiB"; echo "Tesla V100, SXM2, 7.0, 16384 MiB"')
    new, old = gpus()
    assert (new, old) == (Gpu("NVIDIA H200", (9, 0), "143771 MiB"), Gpu("Tesla V100, SXM2", (7, 0), "16384 MiB"))
    assert (new.has_fp16, new.has_int8, new.has_bf16) == (True, True, True)
    assert (old.has_fp16, old.has_int8, old.has_bf16) == (True, False, False)
    assert describe(1)["gpus"] == ["NVIDIA H200, compute capability 9.0, 143771 MiB", "Tesla V100, SXM2, compute capability 7.0, 16384 MiB"]


@pytest.mark.parametrize(
    "script",
    ["echo no devices were found", "exit 9", "echo 'NVIDIA H200, nine, 1 MiB'", "sleep 60", ""],
    ids=lambda script: script or "silent",
)
def test_a_driver_that_fails_tells_of_none(driver: Driver, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_DRIVER_S", 0.5)
    driver(script)
    assert gpus() == ()


def test_the_notes_tell_what_a_gpu_is_used_for() -> None:
    modern = frozenset({"avx512_fp16", "avx512_bf16", "avx512_vnni"})
    (note,) = notes(Objective.THROUGHPUT, modern, [Gpu("Tesla V100", (7, 0), "16384 MiB")])
    assert "runs FP32, FP16 in hardware" in note
    assert "timed on the processor" in note
