"""The list that the images' dependency layer is installed from. Needs no engine."""

import tomllib

import pytest

from deploy.requirements import requirements
from tests.compose.compose_project import ROOT

PROJECT = {
    "name": "demo",
    "dependencies": ["grpcio>=1"],
    "optional-dependencies": {
        "chassis": ["structlog>=25"],
        "models": ["torch>=2", "grpcio>=1"],
        "serve": ["demo[models,chassis]", "pandas[excel]>=2"],
    },
}


def test_extras_that_an_extra_names_are_followed_and_nothing_comes_twice() -> None:
    assert requirements(PROJECT, "serve") == ["grpcio>=1", "pandas[excel]>=2", "structlog>=25", "torch>=2"]


def test_without_an_extra_it_is_the_projects_own() -> None:
    assert requirements(PROJECT) == ["grpcio>=1"]


def test_an_unknown_extra_is_refused() -> None:
    with pytest.raises(KeyError, match="nothing"):
        requirements(PROJECT, "nothing")


@pytest.mark.parametrize("extra", ["cache", "backends", "inference", "optimization"])
def test_every_extra_that_the_images_install_leaves_no_reference_to_the_project_itself(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [specifier for specifier in requirements(project, extra) if specifier.startswith(project["name"] + "[")]
