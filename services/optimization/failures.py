"""Why a job or a recipe failed: one exception per failure class of the contract."""

from enum import StrEnum
from typing import ClassVar


class FailureClass(StrEnum):
    """The contract's failure classes, by the names it gives them."""

    BAD_MODEL = "BAD_MODEL"
    UNSUPPORTED_OPERATOR = "UNSUPPORTED_OPERATOR"
    NOT_ENOUGH_DATA = "NOT_ENOUGH_DATA"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TOOLCHAIN = "TOOLCHAIN"
    INTERNAL = "INTERNAL"


class OptimizationFailure(Exception):
    """A failure whose text is fit for the caller."""

    failure_class: ClassVar[FailureClass] = FailureClass.INTERNAL


class BadModel(OptimizationFailure, ValueError):
    """The model's files are broken, unsafe or contradict each other. The text names the file and the fault."""

    failure_class = FailureClass.BAD_MODEL


class UnsupportedOperator(OptimizationFailure):
    """The model holds something that the technique cannot treat."""

    failure_class = FailureClass.UNSUPPORTED_OPERATOR


class NotEnoughData(OptimizationFailure):
    """A technique or the evaluation lacks the examples it needs."""

    failure_class = FailureClass.NOT_ENOUGH_DATA


class BudgetExceeded(OptimizationFailure):
    """The job ran past its time."""

    failure_class = FailureClass.BUDGET_EXCEEDED


class OutOfMemory(OptimizationFailure):
    """The job asked for more memory than it may have."""

    failure_class = FailureClass.OUT_OF_MEMORY


class Toolchain(OptimizationFailure):
    """A library that a technique stands on refused or broke."""

    failure_class = FailureClass.TOOLCHAIN


class Diverged(Toolchain):
    """A training run whose loss is no number any more. The text tells the step, the learning rate and what to change."""


class Internal(OptimizationFailure):
    """Our own fault."""

    failure_class = FailureClass.INTERNAL
