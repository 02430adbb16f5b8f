"""Whether a part of an installed package is there, without importing the package."""

from importlib.util import find_spec
from pathlib import Path


def has_submodule(package: str, *names: str) -> bool:
    """Whether `package`.name.name… exists as a file or folder. importlib would import every parent to tell."""
    spec = find_spec(package)
    roots = [Path(root, *names) for root in (spec.submodule_search_locations or ())] if spec else []
    return any(root.is_dir() or root.with_suffix(".py").is_file() for root in roots)
