"""Which arm answers a call: a pure function of names, weights and the caller's key."""

import math
from collections.abc import Callable, Mapping
from hashlib import blake2b


class Router:
    """Chooses among arms by weight; the first is the control.

    A key's arm is the one with the highest score, weight / -ln(u), u being the hash of arm and key: weighted rendezvous hashing
    (Schindelhauer, Schomaker 2005). When weights change, a key goes from one arm to another only if the other's weight has grown
    relative to the one's; ranges of a single hash would also move keys between arms whose weights stayed. The hash is a fixed
    function of bytes, so that all replicas and all restarts agree.

    Args:
        weights: arm to weight, each above 0.
        salt: names what is split. Under another salt keys are dealt anew, independently.
        draw: a number below 1 by chance, for calls without a key.
    """

    def __init__(self, weights: Mapping[str, float], salt: tuple[str, ...], draw: Callable[[], float]) -> None:
        self._draw = draw
        self._weights = dict(weights)
        self._control = next(iter(weights))
        self._out: frozenset[str] = frozenset()
        self._hashes = {arm: blake2b("\0".join((*salt, arm, "")).encode(), digest_size=8) for arm in weights}

    def take_out(self, arm: str) -> None:
        """Its share goes to the control, and no other call changes its arm. Raises ValueError for the control, KeyError for no arm."""
        if arm == self._control:
            raise ValueError("the control is what is left when every other arm is out")
        if arm not in self._weights:
            raise KeyError(arm)
        self._out |= {arm}

    def choose(self, key: str) -> str:
        """The arm of a call; `key` empty: by chance."""
        arm = max(self._weights, key=lambda arm: self._score(arm, key)) if key else self._by_chance()
        return self._control if arm in self._out else arm

    def shares(self) -> dict[str, float]:
        """Each arm's share of the calls now; they sum to 1."""
        total = sum(self._weights.values())
        shares = {arm: 0.0 if arm in self._out else weight / total for arm, weight in self._weights.items()}
        shares[self._control] += sum(weight for arm, weight in self._weights.items() if arm in self._out) / total
        return shares

    def _score(self, arm: str, key: str) -> float:
        hashed = self._hashes[arm].copy()
        hashed.update(key.encode(errors="surrogatepass"))
        uniform = (int.from_bytes(hashed.digest(), "big") + 0.5) / 2**64
        return self._weights[arm] / -math.log(min(uniform, 1 - 2**-53))

    def _by_chance(self) -> str:
        point = self._draw() * sum(self._weights.values())
        for arm, weight in self._weights.items():
            point -= weight
            if point < 0:
                return arm
        return self._control  # rounding alone leads here
