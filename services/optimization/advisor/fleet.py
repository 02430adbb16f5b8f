"""How many instances a load needs, and what they and a row cost."""

import math

HOURS_PER_MONTH = 730  # a year's, by twelve
_ROUNDING = 1e-12  # a quotient this little above a whole number is one: 21 / (0.7 * 3) is not eleven


def loads(peak: float, growth: float, months: int) -> list[float]:
    """The peak in each month; the first is now, then it grows by this share from month to month."""
    return [peak * (1 + growth) ** month for month in range(months)]


def instances(load: float, capacity: float, least: int) -> int:
    """That serve the load, at so many rows per second each."""
    return max(least, math.ceil(load / capacity * (1 - _ROUNDING)))


def cost_per_row(instance_hour_price: float, capacity: float) -> float:
    """On instances that are as busy as planned."""
    return instance_hour_price / (3600 * capacity)
