"""How a channel's calls are split among versions: one small file per channel, replaced atomically, every one a new revision."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from services.repository.atomic import replace_file
from services.repository.manifest import Frozen, Signature, TensorSpec
from services.repository.references import CHANNEL

SUFFIX = ".traffic"  # no channel's name has a dot: the file lies beside the channel's and one stat sees both move
MAX_ARMS = 8
NAME_PATTERN = f"^{CHANNEL.pattern}$"


class BadTraffic(ValueError):
    """A split breaks its rule; the text begins with the field."""


class StaleRevision(Exception):
    """The split has changed since it was read."""


class UnknownArm(LookupError):
    """The channel's split has no arm of this name."""


class Arm(Frozen):
    """One version among which calls are split. Weights count relative to one another."""

    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    weight: float = Field(gt=0)


class Shadow(Frozen):
    """A version that answers a copy of `share` of the control's calls, for comparison alone."""

    version: int = Field(ge=1)
    share: float = Field(gt=0, le=1)


class Guardrails(Frozen):
    """Bounds past which an arm is taken out. None: not guarded.

    Attributes:
        max_error_rate: failed calls over calls; breached when the arm's rate is above it and above the control's.
        max_p99_ratio: the arm's 99th percentile of latency over the control's.
        min_agreement: mean agreement of the shadow's answers with the control's, 0 to 1; it guards arms of the shadow's version.
        min_calls: fewest calls of an arm before it is judged.
    """

    max_error_rate: float | None = Field(None, ge=0, lt=1)
    max_p99_ratio: float | None = Field(None, ge=1)
    min_agreement: float | None = Field(None, gt=0, le=1)
    min_calls: int = Field(100, ge=1)


class Plan(Frozen):
    """What is asked for. The first arm is the control; `experiment` salts the hash that gives each sticky key its arm."""

    arms: tuple[Arm, ...] = Field(min_length=1, max_length=MAX_ARMS)
    shadow: Shadow | None = None
    guardrails: Guardrails = Guardrails()
    experiment: str = Field("", max_length=64)

    @property
    def control(self) -> Arm:
        return self.arms[0]

    @property
    def versions(self) -> frozenset[int]:
        """Every version that answers calls or their copies."""
        return frozenset(version for _, version in self.fields())

    def fields(self) -> Iterator[tuple[str, int]]:
        """Every version with the path of its field."""
        yield from ((f"arms[{index}].version", arm.version) for index, arm in enumerate(self.arms))
        if self.shadow is not None:
            yield "shadow.version", self.shadow.version

    def arm(self, name: str) -> Arm:
        """Raises UnknownArm."""
        found = next((arm for arm in self.arms if arm.name == name), None)
        if found is None:
            raise UnknownArm(f"no arm {name[:80]!r}; there are {', '.join(arm.name for arm in self.arms)}")
        return found

    def check(self) -> None:
        """Raises BadTraffic where fields contradict one another."""
        names = [arm.name for arm in self.arms]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise BadTraffic(f"arms[{index}].name: {name!r} is named twice")
        if not math.isfinite(sum(arm.weight for arm in self.arms)):
            raise BadTraffic("arms: the sum of the weights is not a number")
        if self.shadow is None and len(self.arms) < 2:
            raise BadTraffic("arms: one arm and no shadow leave nothing to split; ClearTraffic ends a split")
        if self.shadow is not None and self.shadow.version == self.control.version:
            raise BadTraffic(f"shadow.version: {self.shadow.version} is the control's own")
        if self.guardrails.min_agreement is not None and not self._is_compared():
            raise BadTraffic("guardrails.min_agreement: agreement is measured on a shadow; give one whose version is an arm's too")

    def _is_compared(self) -> bool:
        return self.shadow is not None and any(arm.version == self.shadow.version for arm in self.arms)


class Traffic(Frozen):
    """A channel's split as it is kept. `plan` is None where it was cleared: revisions go on growing, so that none is used twice."""

    revision: int = Field(ge=1)
    plan: Plan | None = None


def check_alike(control: Signature, other: Signature, field: str) -> None:
    """Two versions of one split must answer the same question alike. Raises BadTraffic."""
    for noun, left, right in zip(("task", "labels", "outputs", "inputs"), _question(control), _question(other), strict=True):
        if left != right:
            raise BadTraffic(f"{field}: its {noun} differ from the control's: {right} against {left}")


def _question(signature: Signature) -> tuple[object, ...]:
    """Token inputs are left out: the server makes them, and a model that takes fewer of them answers the same callers."""
    inputs = () if signature.task.takes_text else signature.inputs
    return (str(signature.task), list(signature.labels), *(list(map(_told, specs)) for specs in (signature.outputs, inputs)))


def _told(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.datatype} {list(spec.shape)}"


@dataclass(frozen=True, slots=True)
class Splits:
    """The splits of one model, in the folder of its channels. One writer at a time: the repository holds the model's lock."""

    folder: Path

    def read(self) -> dict[str, Traffic]:
        """Channel to its split, the cleared ones left out. A file that cannot be read is as if it were not there."""
        paths = sorted(self.folder.glob(f"*{SUFFIX}")) if self.folder.is_dir() else ()
        found = {path.stem: self.of(path.stem) for path in paths if CHANNEL.fullmatch(path.stem)}
        return {channel: traffic for channel, traffic in found.items() if traffic is not None and traffic.plan is not None}

    def of(self, channel: str) -> Traffic | None:
        """The channel's split, a cleared one too; None where there never was one."""
        try:
            return Traffic.model_validate_json(self._path(channel).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def set(self, channel: str, plan: Plan, *, expected: int = 0) -> Traffic:
        """Writes the next revision; the same plan again changes nothing. Raises StaleRevision where `expected` is not the last."""
        last = self.of(channel)
        revision = last.revision if last is not None else 0
        if expected not in (0, revision):
            raise StaleRevision(f"traffic: revision {expected} was read, {revision} is the last; read it again")
        if last is not None and last.plan == plan:
            return last
        return self._write(channel, Traffic(revision=revision + 1, plan=plan))

    def clear(self, channel: str) -> None:
        """Writes a revision without a plan, where there is one with."""
        last = self.of(channel)
        if last is not None and last.plan is not None:
            self._write(channel, Traffic(revision=last.revision + 1))

    def _write(self, channel: str, traffic: Traffic) -> Traffic:
        replace_file(self._path(channel), traffic.model_dump_json().encode())
        return traffic

    def _path(self, channel: str) -> Path:
        return self.folder / f"{channel}{SUFFIX}"


def users(splits: Mapping[str, Traffic], version: int) -> list[str]:
    """Channels whose split uses the version."""
    return [channel for channel, traffic in splits.items() if traffic.plan is not None and version in traffic.plan.versions]
