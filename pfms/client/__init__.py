"""The client: what the command line uses, and other programs can use.

::

    with Client("http://127.0.0.1:2024") as client:
        client.upload_model(Path("model.pth"), "demo")
        segmentation = client.segment("ct.nii.gz", model="demo")
    print(segmentation.ml)
    segmentation.save("ct-spleen.nii.gz")

It needs none of the server's libraries.
"""

from pfms.client.async_client import AsyncClient
from pfms.client.client import Client
from pfms.client.credentials import BearerToken
from pfms.client.problems import ClientError, Json, PfmsProblem, Unreachable
from pfms.client.updates import JobEvent, Update
from pfms.client.volumes import Segmentation

__all__ = [
    "AsyncClient",
    "BearerToken",
    "Client",
    "ClientError",
    "JobEvent",
    "Json",
    "PfmsProblem",
    "Segmentation",
    "Unreachable",
    "Update",
]
