"""Formats that are programs run with their reader's rights: only what our own jobs made, unchanged since, is ever loaded."""

from pathlib import Path

from services.repository.manifest import Manifest
from services.repository.store import Repository


class ForeignProgram(Exception):
    """A version in a format that is a program, which no job of ours made."""


def check_origin(manifest: Manifest) -> None:
    """Raises ForeignProgram."""
    if manifest.signature.format.is_program and not manifest.job:
        raise ForeignProgram(f"{manifest.reference} is a {manifest.signature.format} program that no job made; it is not run")


def verified_folder(repository: Repository, manifest: Manifest) -> Path:
    """The folder of a version about to be loaded, its files read against their digests now.

    Raises:
        ForeignProgram: it is a program from elsewhere.
        UnknownModel, Damaged: it is gone, or not what was sealed.
    """
    check_origin(manifest)
    repository.verify(manifest.name, manifest.version)
    return repository.folder(manifest.name, manifest.version)
