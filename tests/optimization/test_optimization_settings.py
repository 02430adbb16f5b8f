"""What the settings give jobs, and what they refuse."""

import os

import psutil
import pytest
from pydantic import ValidationError

from services.optimization.settings import OptimizationSettings


def test_jobs_get_the_last_half_of_the_cores_and_three_quarters_of_the_memory_by_default() -> None:
    usable = sorted(os.sched_getaffinity(0))
    capacity = OptimizationSettings().capacity
    assert capacity.cores == tuple(usable[-max(1, len(usable) // 2) :])
    assert 0 < capacity.memory_bytes <= psutil.virtual_memory().total * 3 // 4


def test_cores_that_are_not_there_are_not_given() -> None:
    assert set(OptimizationSettings(job_cores=1024).capacity.cores) == os.sched_getaffinity(0)
    assert OptimizationSettings(job_cores=1, memory_bytes=5).capacity.memory_bytes == 5


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"job_cores": 2, "cores_per_job": 3}, "cores_per_job: 3 are more than job_cores, 2"),
        ({"memory_bytes": 2, "memory_per_job_bytes": 3}, "memory_per_job_bytes: 3 are more than memory_bytes, 2"),
        ({"database": "mysql://somewhere"}, "database"),
        ({"lease_s": 0}, "lease_s"),
    ],
)
def test_what_contradicts_itself_refuses_to_start(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        OptimizationSettings.model_validate(changes)


def test_the_databases_password_is_not_shown() -> None:
    settings = OptimizationSettings(database="postgresql+psycopg://hone:secret@database/hone")
    assert "secret" not in repr(settings)
