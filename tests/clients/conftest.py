"""The `hone` command in this process, against the running suite."""

from pathlib import Path

import pytest
from hone.cli import show
from typer.testing import CliRunner

from tests.conftest import Suite


@pytest.fixture
def hone(suite: Suite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setattr("hone.channel.LOCAL", suite.addresses)
    monkeypatch.setattr(show.console, "width", 200)  # a narrow one wraps what tests look for
    monkeypatch.chdir(tmp_path)
    return CliRunner()
