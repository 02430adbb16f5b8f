"""The faults that cores raise, in plain Python: which gRPC code each becomes is decided at the door (`errors.py`)."""


class InvalidField(ValueError):
    """A request's field breaks its rule.

    `field` is the path in the request as its sender wrote it, such as `inputs[2].tensor.shape`.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class NotFound(LookupError):
    """No such name."""


class AlreadyThere(Exception):
    """The name is taken by something else."""


class WrongState(Exception):
    """The thing exists and cannot do this now; asking again alone will not help."""


class Unavailable(Exception):
    """Known, and not able to answer for the moment: loading, draining, stopping; `retry_after_s` where that can be told."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Overloaded(Exception):
    """A queue or a budget is full; `retry_after_s` is when it is worth coming back."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class DeadlineMissed(Exception):
    """The deadline passed, or the work could not be done before it."""


class OutOfRange(Exception):
    """An offset past the end."""
