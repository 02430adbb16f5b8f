"""The README's Python runs as it stands, against a running suite."""

import re
from pathlib import Path

import pytest

from benchmarks.sentences import sentences
from tests.conftest import Suite

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_there_is_code_to_run() -> None:
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_code_runs(
    block: str, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(sentences(150, seed=9)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hone.channel.LOCAL", suite.addresses)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    assert capsys.readouterr().out.strip()


def test_every_path_that_it_names_is_there() -> None:
    root = README.parent
    names = re.findall(r"`((?:services|tests|protos|clients|deploy|benchmarks)/[\w./-]+)`", README.read_text())
    assert names
    assert [name for name in names if not (root / name).exists()] == []
