"""How long a batch takes, learned from the batches that ran."""

from dataclasses import dataclass

FORGETTING = 0.98  # weight of the past at each batch: about the last fifty count
FLOOR_S = 1e-6


@dataclass(slots=True)
class ServiceTime:
    """Least squares of `seconds = fixed + per_token * rows * longest`, forgetting exponentially.

    `rows * longest` counts padding, as the backend computes it. The sums start with a weak prior, so the first prediction
    is usable and the first few measurements overrule it.
    """

    fixed_s: float = 1e-3
    per_token_s: float = 1e-4
    _n: float = 0.0
    _x: float = 0.0
    _xx: float = 0.0
    _y: float = 0.0
    _xy: float = 0.0

    def predict(self, rows: int, longest: int) -> float:
        """Seconds for a batch of `rows` padded to `longest` tokens; positive."""
        return max(FLOOR_S, self.fixed_s + self.per_token_s * rows * longest)

    def learn(self, rows: int, longest: int, seconds: float) -> None:
        """Takes one measured batch into account."""
        x = float(rows * longest)
        self._n = FORGETTING * self._n + 1.0
        self._x = FORGETTING * self._x + x
        self._xx = FORGETTING * self._xx + x * x
        self._y = FORGETTING * self._y + seconds
        self._xy = FORGETTING * self._xy + x * seconds
        self._solve()

    def _solve(self) -> None:
        spread = self._xx - self._x * self._x / self._n
        if spread <= 1e-9 * self._xx:  # one size only so far: a line through the origin
            self.fixed_s, self.per_token_s = 0.0, self._xy / self._xx
            return
        slope = (self._xy - self._x * self._y / self._n) / spread
        fixed = (self._y - slope * self._x) / self._n
        if slope <= 0:  # noise outweighs size
            self.fixed_s, self.per_token_s = self._y / self._n, 0.0
        elif fixed < 0:
            self.fixed_s, self.per_token_s = 0.0, self._xy / self._xx
        else:
            self.fixed_s, self.per_token_s = fixed, slope
