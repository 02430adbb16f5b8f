"""Which gRPC code each of this service's faults becomes."""

import grpc

from services.chassis.errors import ErrorTable
from services.optimization.datasets.table import BadDataset
from services.optimization.failures import BadModel
from services.optimization.jobs.store import RequestTaken, UnknownJob
from services.repository.channels import NoEarlierVersion
from services.repository.datasets import UnknownDataset
from services.repository.references import BadName
from services.repository.store import InUse, UnknownModel
from services.repository.traffic import BadTraffic, StaleRevision, UnknownArm
from services.repository.uploads import BadUpload, UnknownUpload, UploadTooLarge

ERRORS = ErrorTable(
    {
        BadName: grpc.StatusCode.INVALID_ARGUMENT,
        BadUpload: grpc.StatusCode.INVALID_ARGUMENT,
        BadModel: grpc.StatusCode.INVALID_ARGUMENT,
        BadDataset: grpc.StatusCode.INVALID_ARGUMENT,
        BadTraffic: grpc.StatusCode.INVALID_ARGUMENT,
        UnknownModel: grpc.StatusCode.NOT_FOUND,
        UnknownDataset: grpc.StatusCode.NOT_FOUND,
        UnknownUpload: grpc.StatusCode.NOT_FOUND,
        UnknownJob: grpc.StatusCode.NOT_FOUND,
        UnknownArm: grpc.StatusCode.NOT_FOUND,
        UploadTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
        RequestTaken: grpc.StatusCode.ALREADY_EXISTS,
        NoEarlierVersion: grpc.StatusCode.FAILED_PRECONDITION,
        InUse: grpc.StatusCode.FAILED_PRECONDITION,
        StaleRevision: grpc.StatusCode.FAILED_PRECONDITION,
    }
)
