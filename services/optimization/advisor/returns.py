"""What money spent once and each month brings back. Infinity: never."""

import math

_NOTHING = 1e-6  # of money: a quotient by less says nothing and may overflow
_NO_GROWTH = 1e-12  # a month: too little to be told from none in a horizon, and its products vanish


def roi(benefit: float, cost: float) -> float:
    """Return on investment, a share; infinity where next to nothing is spent."""
    return (benefit - cost) / cost if cost >= _NOTHING else math.inf


def payback_months(benefit: float, cost: float, months: int) -> float:
    """Until the cost is earned, at the mean benefit of so many months."""
    return cost / benefit * months if benefit > 0 else math.inf


def break_even_rows(cost: float, saving_per_row: float) -> float:
    return cost / saving_per_row if saving_per_row > 0 else math.inf


def months_to_serve(rows: float, rows_per_month: float, growth: float) -> float:
    """Until so many rows were served, at `rows_per_month` (above 0) in the first month and this growth from month to month."""
    if abs(growth) < _NO_GROWTH or math.isinf(rows):
        return rows / rows_per_month
    grown = growth * rows / rows_per_month
    return math.log1p(grown) / math.log1p(growth) if grown > -1 else math.inf  # one that shrinks may end before
