"""Health probe for Compose and Kubernetes: `python -m services.chassis.probe HOST:PORT [SERVICE]`.

Ends with status 0 when the service answers SERVING within two seconds, else 1 with the reason.
"""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 2.0


def probe(address: str, service: str = "") -> str:
    """Returns "" when `service` at `address` is SERVING, else what it is instead."""
    with grpc.insecure_channel(address) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return "" if name == "SERVING" else str(name)


if __name__ == "__main__":
    fault = probe(*sys.argv[1:3])
    if fault:
        sys.exit(fault)
