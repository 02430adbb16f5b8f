"""Only a process that is alone with a repository tidies it."""

from pathlib import Path

import pytest

from services.optimization.jobs.writers import writing


def test_only_the_first_of_several_tidies_and_the_next_after_the_last(tmp_path: Path) -> None:
    tidied: list[str] = []
    with writing(tmp_path, lambda: tidied.append("first")), writing(tmp_path, lambda: tidied.append("beside")):
        assert tidied == ["first"]
    with writing(tmp_path, lambda: tidied.append("after")):
        assert tidied == ["first", "after"]


def test_a_failure_to_tidy_leaves_nobody_counted(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("the disk broke")

    with pytest.raises(OSError, match="broke"), writing(tmp_path, fail):
        pass
    tidied = []
    with writing(tmp_path, lambda: tidied.append(1)):
        assert tidied == [1]
