"""Tables in narrow terminals."""

import io

from hone.cli import show
from hone.optimization.v1 import jobs_pb2
from rich.console import Console


def test_a_jobs_id_is_whole_in_a_narrow_terminal() -> None:
    job = jobs_pb2.Job(id="0123456789abcdef" * 2, published="a-model-of-a-longer-name@12345")
    job.spec.source = "another-model-of-a-long-name@3"
    job.state = jobs_pb2.JOB_STATE_CANCELLING
    shown = io.StringIO()
    Console(file=shown, width=80).print(show.jobs([job]))
    assert job.id in shown.getvalue()
