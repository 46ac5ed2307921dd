"""The HTTP client that the command line uses, and other programs can use."""

from pfms.client.client import JobEvent, PfmsClient
from pfms.client.credentials import BearerToken
from pfms.client.transport import ClientError, Json, PfmsProblem, Unreachable, Update

__all__ = [
    "BearerToken",
    "ClientError",
    "JobEvent",
    "Json",
    "PfmsClient",
    "PfmsProblem",
    "Unreachable",
    "Update",
]
