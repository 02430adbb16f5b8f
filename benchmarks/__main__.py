"""`python -m benchmarks NAME`: what each measures, and its options, is told by `--help` after its name."""

import importlib
import signal
import sys

NAMES = (
    *("demo", "serving", "interference", "methods", "chain", "batching", "overload", "soak", "cache", "eviction"),
    *("advisor", "search", "loop"),
)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m benchmarks {'|'.join(NAMES)} [--help]")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # or what it has started would outlive it
    importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
