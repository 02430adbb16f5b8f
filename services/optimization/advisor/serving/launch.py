"""`python -m services.optimization.advisor.serving.launch MODULE`: becomes the program MODULE, and ends with whoever started it.

Standard input is a pipe whose other end the starter holds; what the kernel was asked for outlives the change of program.
"""

import os
import sys

from services.backends.isolated_child import die_with

if __name__ == "__main__":
    die_with(sys.stdin.fileno())
    os.execv(sys.executable, [sys.executable, "-m", sys.argv[1]])  # noqa: S606  no shell is wanted
