"""How long a batch takes, learned from the batches that ran."""

from collections import deque
from dataclasses import dataclass, field

FORGETTING = 0.98  # weight of the past at each batch: about the last fifty shape the curve
RECENT = 5  # batches that tell the machine's pace; all but one of them must agree
CHANGED = 1.3  # times: a pace that tells a change of the machine's speed, not the curve's error
ERROR_FORGETTING = 0.9
TRUSTED = 8  # batches from which on work may be refused by prediction
SURE_ERRORS = 2.0  # a batch is taken to be at most this many mean errors faster than predicted
PRIOR = 0.05  # of the first batch is what the curve assumed before it counts
SWEEPS = 4  # of coordinate descent; it goes on from the last batch's curve, which is near
FLOOR_S = 1e-6

Vector = tuple[float, float, float, float]

ASSUMED: Vector = (1e-3, 1e-5, 1e-4, 1e-8)  # before the first batch


@dataclass(frozen=True, slots=True)
class _Sample:
    features: Vector
    seconds: float


@dataclass(slots=True)
class ServiceTime:
    """`seconds = pace * (a + b rows + c rows longest + d rows longest^2)`: handing over, per row, per padded token, attention.

    The curve is the least squares of relative errors over the last batches, forgetting exponentially, with no negative
    coefficient: so it rises with rows and with length wherever it is asked. An error relative to the longer of measured and
    predicted is at most one, so that a stalled batch, however long, counts no more than any other. The pace is what the last few
    batches agree to be off by; when that is much, the machine's speed has changed, and the whole curve with it.
    """

    samples: int = 0
    error: float = 1.0  # mean of |measured / predicted - 1|, of what was predicted before each batch
    _weights: list[float] = field(default_factory=lambda: list(ASSUMED))
    _gram: list[list[float]] = field(default_factory=lambda: [[0.0] * 4 for _ in range(4)])
    _moment: list[float] = field(default_factory=lambda: [0.0] * 4)
    _recent: deque[_Sample] = field(default_factory=lambda: deque(maxlen=RECENT))
    _paced: Vector = ASSUMED

    @property
    def sure_share(self) -> float:
        """Of a predicted time, the share that a batch is sure to take; 0 before enough ran."""
        return 1 / (1 + SURE_ERRORS * self.error) if self.samples >= TRUSTED else 0.0

    def predict(self, rows: int, longest: int) -> float:
        """Seconds for a batch of `rows` padded to `longest` tokens; positive, and no less for more rows or a greater length."""
        fixed, per_row, per_token, per_pair = self._paced
        return fixed + rows * (per_row + longest * (per_token + longest * per_pair))

    def learn(self, rows: int, longest: int, seconds: float) -> None:
        """Takes one measured batch into account."""
        seconds = max(FLOOR_S, seconds)
        predicted = self.predict(rows, longest)
        sample = _Sample((1.0, float(rows), float(rows * longest), float(rows * longest * longest)), seconds)
        self._recent.append(sample)
        if self.samples:
            self._judge(abs(seconds - predicted) / predicted)
            self._shape(sample, max(seconds, predicted))
        else:
            self._begin(sample, seconds / predicted)
            self._shape(sample, seconds)
        self.samples += 1
        self._set_pace()

    def _judge(self, off: float) -> None:
        off = min(1.0, off)  # one stall says little of the others
        self.error = off if self.samples == 1 else ERROR_FORGETTING * self.error + (1 - ERROR_FORGETTING) * off

    def _begin(self, sample: _Sample, scale: float) -> None:
        """The first batch tells the machine's speed; the proportions of the curve are a weak prior until more have run."""
        self._weights = [weight * scale for weight in self._weights]
        for index, feature in enumerate(sample.features):
            self._gram[index][index] = PRIOR * (feature / sample.seconds) ** 2
            self._moment[index] = self._gram[index][index] * self._weights[index]

    def _shape(self, sample: _Sample, norm_s: float) -> None:
        """Fits the curve. What the batches do not tell, such as the share of attention among equal lengths, stays as it was."""
        relative = [feature / norm_s for feature in sample.features]
        target = sample.seconds / norm_s
        for i, left in enumerate(relative):
            self._moment[i] = FORGETTING * self._moment[i] + left * target
            row = self._gram[i]
            for j, right in enumerate(relative):
                row[j] = FORGETTING * row[j] + left * right
        for _ in range(SWEEPS):
            for i, row in enumerate(self._gram):
                slope = self._moment[i] - sum(map(float.__mul__, row, self._weights))
                self._weights[i] = max(0.0, self._weights[i] + slope / row[i])

    def _set_pace(self) -> None:
        pace = self._agreed()
        if len(self._recent) == RECENT and not 1 / CHANGED < pace < CHANGED:
            self._rescale(pace)
            pace = 1.0
        fixed, per_row, per_token, per_pair = self._weights
        self._paced = max(FLOOR_S, pace * fixed), pace * per_row, pace * per_token, pace * per_pair

    def _rescale(self, pace: float) -> None:
        """The machine's speed has changed: the past counts as if it had been measured at the new one."""
        self._weights = [pace * weight for weight in self._weights]
        self._moment = [value / pace for value in self._moment]
        self._gram = [[value / pace**2 for value in row] for row in self._gram]

    def _agreed(self) -> float:
        """What nearly all recent batches are off by in the same direction; 1 where they disagree."""
        ratios = sorted(sample.seconds / self._curve(sample.features) for sample in self._recent)
        outlier = 1 if len(ratios) == RECENT else 0
        slowest, quickest = ratios[-1 - outlier], ratios[outlier]
        return quickest if quickest > 1 else min(1.0, slowest)

    def _curve(self, features: Vector) -> float:
        return max(FLOOR_S, sum(map(float.__mul__, features, self._weights)))
