"""The Ray Serve application: the gateway, and the replicas behind it.

`easel` is its import path for `serve run` and for Serve's configuration files:
`app.cluster.application:easel`.
"""

from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.types import ASGIApp

from app.cluster.gateway import Gateway
from app.cluster.options import ClusterOptions
from app.cluster.replica import Replica
from app.cluster.router import Router
from app.settings import Settings

REPLICAS = "easel"  # the name of their deployment
_UNLIMITED = 10_000  # requests that the gateway relays at the same time; the replicas limit them
# uvloop, which Ray prefers, can't start a worker in a process group of its own.
_ASYNCIO = {"env_vars": {"RAY_USE_UVLOOP": "0"}}
_MARGIN_S = 15.0  # after the grace period, in which a replica ends its worker
_HEALTH_S = 5.0
_STARTS = 3  # of a replica, before the application counts as failed


def application(settings: Settings, options: ClusterOptions) -> Application:
    """Returns the application. This process must be connected to a Ray cluster.

    The settings that are set explicitly apply to all replicas.
    """
    gpus = options.gpus
    if gpus is None:
        gpus = float(settings.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
    most = options.max_replicas
    number: dict[str, Any] = {"num_replicas": options.replicas}
    if most is not None:
        number = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=options.replicas,
                max_replicas=most,
                target_ongoing_requests=options.target_requests,
            )
        }
    easel = serve.deployment(
        Replica,
        name=REPLICAS,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus, "runtime_env": _ASYNCIO},
        # Beyond this many, requests go to the next replica, and then wait in the gateway.
        max_ongoing_requests=settings.max_queue,
        max_queued_requests=settings.max_queue,
        request_router_config=RequestRouterConfig(request_router_class=Router),
        max_constructor_retry_count=_STARTS,
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=settings.shutdown_grace_s + _MARGIN_S,
        **number,
    ).bind(_explicit(settings))
    bounds = {"most_bytes": settings.max_body_bytes, "most_text_bytes": settings.max_text_bytes}
    affinity = options.affinity

    def gateway() -> ASGIApp:
        handle = serve.get_deployment_handle(REPLICAS, serve.get_replica_context().app_name)
        return Gateway(handle, **bounds, affinity=affinity)

    front = serve.deployment(
        serve.ingress(gateway)(),
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_UNLIMITED,
        graceful_shutdown_timeout_s=settings.shutdown_grace_s + _MARGIN_S,
    )
    return front.bind(easel)


def easel(arguments: dict[str, Any]) -> Application:
    """Returns the application that the arguments of `serve run` or of a Serve config describe.

    They are those of ClusterOptions and of Settings. Raises ValidationError.
    """
    own = {name: arguments[name] for name in ClusterOptions.model_fields if name in arguments}
    others = {name: value for name, value in arguments.items() if name not in own}
    return application(Settings(**others), ClusterOptions(**own))


def _explicit(settings: Settings) -> dict[str, Any]:
    """Returns the settings that are set explicitly, with secrets as text."""
    values = settings.model_dump(include=settings.model_fields_set)
    key = values.get("api_key")
    return values if key is None else {**values, "api_key": key.get_secret_value()}
