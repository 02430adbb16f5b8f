"""Which faults of the repository and of the Open Inference Protocol's door are which status; the others are in the chassis."""

import grpc

from services.chassis.errors import ErrorTable
from services.inference.oip.faults import NotOffered
from services.inference.residency import TooLarge
from services.repository.references import BadName
from services.repository.store import UnknownModel

ERRORS = ErrorTable(
    {
        BadName: grpc.StatusCode.INVALID_ARGUMENT,
        UnknownModel: grpc.StatusCode.NOT_FOUND,
        TooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
        NotOffered: grpc.StatusCode.UNIMPLEMENTED,
    }
)
