"""No program from elsewhere, and none that was touched, gets as far as its loader."""

from pathlib import Path

import pytest

from services.repository.manifest import Format, Manifest, Signature, Task, TensorSpec
from services.repository.programs import ForeignProgram, verified_folder
from services.repository.store import Damaged, Origin, Repository

PROGRAMS = [format for format in Format if format.is_program]  # noqa: A001


def seal(repository: Repository, format: Format, origin: Origin) -> Manifest:  # noqa: A002
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
    with repository.staging() as staged:
        (staged / "model").write_bytes(b"program")
        return repository.seal(staged, "m", Signature(task=Task.TENSOR, format=format, inputs=(spec,), outputs=(spec,)), origin)


@pytest.mark.parametrize("format", PROGRAMS)
def test_a_program_that_no_job_made_is_refused(tmp_path: Path, format: Format) -> None:  # noqa: A002
    repository = Repository(tmp_path)
    with pytest.raises(ForeignProgram, match=r"m@1 .* no job made"):
        verified_folder(repository, seal(repository, format, Origin(upload_id="somebody's")))


@pytest.mark.parametrize("format", PROGRAMS)
def test_a_job_s_program_is_found(tmp_path: Path, format: Format) -> None:  # noqa: A002
    repository = Repository(tmp_path)
    folder = verified_folder(repository, seal(repository, format, Origin(job="7")))
    assert (folder / "model").read_bytes() == b"program"


@pytest.mark.parametrize("format", list(Format))
def test_a_version_that_was_touched_is_refused(tmp_path: Path, format: Format) -> None:  # noqa: A002
    repository = Repository(tmp_path)
    sealed = seal(repository, format, Origin(job="7"))
    (repository.folder("m", 1) / "model").write_bytes(b"Program")
    with pytest.raises(Damaged, match="model has digest"):
        verified_folder(repository, sealed)


@pytest.mark.parametrize("format", [Format.HUGGINGFACE, Format.ONNX])
def test_data_may_come_from_anywhere(tmp_path: Path, format: Format) -> None:  # noqa: A002
    repository = Repository(tmp_path)
    assert verified_folder(repository, seal(repository, format, Origin(upload_id="somebody's"))).is_dir()
