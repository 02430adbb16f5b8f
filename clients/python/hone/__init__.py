"""Hone's client: push models, optimize them in jobs, call what is served.

    with hone.Client("127.0.0.1:7000") as client:
        vectors = client.embed("minilm", ["a sentence"]).vectors

`hone.aio.Client` is the same for asyncio. Every call has a deadline; calls that are safe to repeat are retried, at the pace that
the server asks for. Failures are `grpc.RpcError` with the codes that the contracts list.
"""

from hone.client import Client
from hone.results import Classifications, Embeddings, Predictions, ScoredLabel

__all__ = ["Classifications", "Client", "Embeddings", "Predictions", "ScoredLabel"]
