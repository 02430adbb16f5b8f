"""From an accepted candidate to a sealed version."""

import shutil
from typing import Any

from services.optimization.jobs.job import Job
from services.optimization.jobs.worker import Outcome
from services.optimization.spec import Spec
from services.repository.manifest import Manifest
from services.repository.references import parse
from services.repository.store import Origin, Repository


def publish(repository: Repository, job: Job, outcome: Outcome) -> Manifest:
    """Seals the chosen candidate and points the asked channels at it; doing it twice makes one version.

    Raises:
        OSError: the disk is full or fails; no version is visible then.
    """
    return published(repository, job) or _pointed(repository, job, _seal(repository, _name(job), job, outcome))


def published(repository: Repository, job: Job) -> Manifest | None:
    """The version that an earlier run of the job sealed, with the asked channels pointed at it; None where there is none."""
    found = repository.find(_name(job), job=job.id)
    return None if found is None else _pointed(repository, job, found)


def _name(job: Job) -> str:
    return Spec.model_validate_json(job.spec).publish.name or parse(job.source).name


def _pointed(repository: Repository, job: Job, manifest: Manifest) -> Manifest:
    for channel in Spec.model_validate_json(job.spec).publish.channels:
        repository.set_channel(manifest.name, channel, manifest.version)
    return manifest


def _seal(repository: Repository, name: str, job: Job, outcome: Outcome) -> Manifest:
    if outcome.report is None or outcome.chosen_folder is None or outcome.chosen_signature is None:
        raise ValueError("nothing was chosen")
    chosen = next(candidate for candidate in outcome.report.candidates if candidate.name == outcome.report.chosen)
    recipe: dict[str, Any] = {"name": chosen.name, "steps": [step.model_dump(mode="json") for step in chosen.steps]}
    if outcome.serving:
        recipe["serving"] = dict(outcome.serving)
    report = outcome.report.model_dump(mode="json")
    with repository.staging() as staged:
        shutil.copytree(outcome.chosen_folder, staged, dirs_exist_ok=True)
        return repository.seal(staged, name, outcome.chosen_signature, Origin(parent=job.source, job=job.id, recipe=recipe, report=report))
