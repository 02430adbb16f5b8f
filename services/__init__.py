"""The services. Each is a program: `python -m services.NAME`."""

import os

# A service forks only to start another program, which uvloop does with the handlers that gRPC leaves for forks. They start a
# poller thread in the child, which now and then ends it by SIGSEGV before the program begins. Has to be set before gRPC starts.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
