"""What a caller installs: the wheel holds the generated stubs, and needs no machine learning library."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BARE = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "onnxruntime", "pydantic", "services", "typer", "rich"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import hone, hone.aio, hone.specs
assert hone.__file__.startswith(sys.argv[1]), hone.__file__
with hone.Client("127.0.0.1:9") as client:
    print(len(hone.__all__))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(command, check=True, timeout=240)
    (found,) = folder.glob("hone-*.whl")
    return found


def test_the_wheel_holds_the_client_and_its_stubs_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for stub in ("cache/v1/cache", "inference/v1/inference", "optimization/v1/jobs", "repository/v1/models"):
        assert {f"hone/{stub}_pb2.py", f"hone/{stub}_pb2.pyi", f"hone/{stub}_pb2_grpc.py"} <= set(names)
    assert "hone/py.typed" in names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"hone"}


def test_the_wheel_is_imported_without_what_it_does_not_need(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run([sys.executable, "-c", BARE, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
