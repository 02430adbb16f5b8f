"""How many instances a version gets, with how many threads each: as told, as advised, or what answers most rows here."""

from collections.abc import Callable, Sequence

import structlog

from services.inference.advice import read_advice
from services.inference.host import Host
from services.inference.opening import Opened, Opener
from services.inference.parallelism import Parallelism, candidates
from services.inference.settings import InferenceSettings, Isolation
from services.inference.warming import rows_per_second
from services.repository.manifest import Manifest
from services.repository.programs import check_origin
from services.repository.store import Repository

log = structlog.get_logger("hone.choosing")

MOST_PROCESSES = 4  # compared, where each instance is a process and holds the weights once more
NEAR = 2.0  # times: what a neighbour on the machine can take away


def open_version(repository: Repository, manifest: Manifest, settings: InferenceSettings, host: Host) -> Opened:
    """A version's warm backends.

    Raises:
        BackendError, ForeignProgram, Damaged, OSError: it cannot be served.
    """
    check_origin(manifest)
    return Opener(repository, manifest, settings, choose(repository, manifest, settings, host)).open()


def choose(repository: Repository, manifest: Manifest, settings: InferenceSettings, host: Host) -> Parallelism:
    """By the settings, else by the version's recipe, else by measuring, once for each digest. Raises as `open_version`."""
    cores = len(settings.cores)
    if settings.instances or settings.threads:
        return settings.parallelism
    if (advised := read_advice(manifest.recipe, settings.bounds).parallelism) is not None:
        return advised
    if not settings.tune_s or cores == 1:
        return settings.parallelism
    with host.measuring:  # one at a time: they would measure one another
        if manifest.digest not in host.measured:
            host.measured[manifest.digest] = _measured(repository, manifest, settings)
    return host.measured[manifest.digest]


def _measured(repository: Repository, manifest: Manifest, settings: InferenceSettings) -> Parallelism:
    """Each is loaded and closed again: keeping the best so far would hold the weights twice while the next one is tried."""
    most = MOST_PROCESSES if settings.isolation is Isolation.PROCESS else len(settings.cores)
    compared = candidates(len(settings.cores), most)

    def rate(parallelism: Parallelism) -> float:
        candidate = Opener(repository, manifest, settings, parallelism).open()
        try:
            return rows_per_second(candidate.backends, manifest.signature, settings.tune_s / len(compared))
        finally:
            candidate.close()

    rates = highest_rates(compared, rate)
    best = max(compared, key=rates.__getitem__)
    told = {str(parallelism): round(each) for parallelism, each in rates.items()}
    log.info("instances measured", model=manifest.reference, chosen=str(best), rows_per_second=told)
    return best


def highest_rates(compared: Sequence[Parallelism], rate: Callable[[Parallelism], float]) -> dict[Parallelism, float]:
    """Each one's rate, the higher of two where it comes near the best: what else a machine does only ever slows one down."""
    rates = {parallelism: rate(parallelism) for parallelism in compared}
    near = [parallelism for parallelism in compared if rates[parallelism] * NEAR >= max(rates.values())]
    if len(near) > 1:
        for parallelism in reversed(near):  # else what slows the last one would hit it twice in a row
            rates[parallelism] = max(rates[parallelism], rate(parallelism))
    return rates
