"""How Ray Serve's router picks a replica for a request.

Serve's own router does it by consistent hashing: all requests of a session go to one replica. If
that one is gone or has too many open requests, they go to the next one on its ring.
"""

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica

from app.cluster.call import Call


class Router(ConsistentHashRouter):
    """Ray Serve's router by sessions, except that a call may name its replica."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Returns lists of replicas, of which the router tries the earlier lists first."""
        ranks: list[list[RunningReplica]] = await super().choose_replicas(
            candidate_replicas, pending_request
        )
        named = _named(pending_request)
        exact = [each for each in candidate_replicas if each.replica_id.unique_id == named]
        return [exact] if exact else ranks


def _named(request: PendingRequest | None) -> str | None:
    """Returns the replica that the request's call names, if any."""
    if request is None or not request.args or not isinstance(request.args[0], Call):
        return None
    return request.args[0].replica
