"""The running suite that end-to-end tests share."""

from collections.abc import Iterator

import pytest

from benchmarks.suite import Suite, start_suite, stop_suite
from tests.models import minilm

__all__ = ["Suite", "start_suite", "stop_suite"]


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A running suite that serves MiniLM as `minilm`. Shared: leave it as you found it."""
    running = start_suite(tmp_path_factory.mktemp("suite"), HONE_OPTIMIZATION_EVALUATION_S="4")
    try:
        with running.client() as client:
            client.models.push(minilm(), "minilm", channels=["stable"])
            client.wait_until_served("minilm")
        yield running
    finally:
        assert stop_suite(running) == 0
