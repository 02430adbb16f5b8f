"""Sealed, immutable, numbered versions of named things: `folder/NAME/VERSION/`, each described by its `manifest.json`."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from services.repository.atomic import locked, replace_file, sync_folder, sync_tree
from services.repository.manifest import FILE_NAME, Frozen
from services.repository.references import NAME, check_name

M = TypeVar("M", bound=Frozen)


class Damaged(Exception):
    """A sealed version's files are not what its manifest says."""


class Versions(Generic[M]):
    """Versions on a disk that several processes may share: readers see whole versions or none.

    Args:
        folder: holds the names; it may be read-only for a process that only reads.
        staging: where versions are built, on the same disk.
        noun: what a name stands for, for the texts of errors.
        read: reads a version folder's manifest. Raises FileNotFoundError, pydantic.ValidationError.
        unknown: raised for a name or version that is not there.
    """

    def __init__(self, folder: Path, staging: Path, noun: str, read: Callable[[Path], M], unknown: type[LookupError]) -> None:
        self._folder = folder
        self._staging = staging
        self._noun = noun
        self._read = lru_cache(maxsize=4096)(read)  # sealed means never edited, so a manifest is read once
        self._unknown = unknown

    # Reading

    def names(self) -> list[str]:
        """Names that have a version, sorted."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if NAME.fullmatch(path.name) and self.numbers(path.name))

    def home(self, name: str) -> Path:
        """The folder of a name's versions. Raises BadName."""
        return self._folder / check_name(name, self._noun)

    def folder(self, name: str, version: int) -> Path:
        return self.home(name) / str(version)

    def numbers(self, name: str) -> list[int]:
        """Sealed versions, ascending; empty for an unknown name. Raises BadName."""
        home = self.home(name)
        return sorted(int(path.name) for path in home.glob("[1-9]*") if path.name.isdigit()) if home.is_dir() else []

    def manifest(self, name: str, version: int) -> M:
        """Raises `unknown`, or Damaged where the manifest cannot be read."""
        folder = self.folder(name, version)
        if not folder.is_dir():  # another process may have deleted what this one has read
            raise self._unknown(self._missing(name, version))
        try:
            return self._read(folder)
        except FileNotFoundError:
            raise self._unknown(self._missing(name, version)) from None
        except ValidationError as error:
            raise Damaged(f"{name}@{version}: {FILE_NAME} does not parse: {error}") from error

    def newest(self, name: str, matches: Callable[[M], bool]) -> M | None:
        """The newest version that matches, None where none does."""
        return next((found for version in reversed(self.numbers(name)) if matches(found := self.manifest(name, version))), None)

    # Writing

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """An empty folder to build a version in; what was not sealed is removed at the end."""
        folder = self._staging / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def seal(self, staged: Path, name: str, describe: Callable[[int], M]) -> M:
        """Makes the staged folder the name's next version, atomically, with the manifest that `describe` gives for its number.

        Raises:
            BadName: the name breaks its rule.
            OSError: the disk is full or fails; nothing is visible then.
        """
        home = self.home(name)
        home.mkdir(parents=True, exist_ok=True)
        sync_tree(staged)  # before the lock: the files take longest
        with locked(home):
            number = self._next(home)
            sealed = describe(number)
            replace_file(staged / FILE_NAME, sealed.model_dump_json(indent=1).encode())
            staged.rename(home / str(number))
            sync_folder(home)
        return sealed

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """One change at a time to a name's versions. Raises BadName, `unknown`."""
        home = self.home(name)
        if not home.is_dir():
            raise self._unknown(f"no {self._noun} {name!r}")
        with locked(home):
            yield

    def delete(self, name: str, version: int, release: Callable[[], None] = lambda: None) -> None:
        """Removes a version; its number is never given again. Raises BadName, `unknown`, and what `release` raises to refuse.

        `release` runs under the lock, before anything is removed: it drops what leads to the version.
        """
        with self.staged() as grave, self.changing(name):  # in this order: the files go after the lock
            self.manifest(name, version)
            release()
            replace_file(self.home(name) / "deleted" / str(version), b"")  # killed here, the number is still not given twice
            self.folder(name, version).rename(grave / "version")
        self._read.cache_clear()

    def _next(self, home: Path) -> int:
        deleted = home / "deleted"
        taken = [path.name for folder in (home, deleted) if folder.is_dir() for path in folder.iterdir()]
        return 1 + max((int(text) for text in taken if text.isdigit()), default=0)

    def _missing(self, name: str, version: int) -> str:
        numbers = self.numbers(name)
        if not numbers:
            return f"no {self._noun} {name!r}"
        return f"no version {version} of {self._noun} {name!r}; there are {', '.join(map(str, numbers))}"
