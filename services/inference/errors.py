"""Which of the repository's faults is which status; the faults of our own are in the chassis."""

import grpc

from services.chassis.errors import ErrorTable
from services.repository.references import BadName
from services.repository.store import UnknownModel

ERRORS = ErrorTable({BadName: grpc.StatusCode.INVALID_ARGUMENT, UnknownModel: grpc.StatusCode.NOT_FOUND})
