"""Economics and measurements for tests: round figures, of which each test tells what it is about."""

from services.optimization.advisor.economics import Capacity, Economics, Measured, Speedup
from services.optimization.report import Interval


def certain(value: float) -> Interval:
    return Interval(estimate=value, low=value, high=value)


def around(value: float, factor: float) -> Interval:
    return Interval(estimate=value, low=value / factor, high=value * factor)


def measured(
    before: Interval | float = 50.0, speedup: Interval | float = 5.0, quality: Interval | float = 0.0, job_hours: float = 0.0
) -> Measured:
    found = [value if isinstance(value, Interval) else certain(value) for value in (before, speedup, quality)]
    return Measured(
        before=Capacity(rows_per_second=found[0]),
        after=Speedup(ratio=found[1]),
        quality_change=found[2],
        job_instance_hours=job_hours,
    )


def economics(**told: object) -> Economics:
    return Economics.model_validate({"instance_hour_price": 1.0, "peak_rows_per_second": 500.0, "utilization": 1.0} | told)
