"""`easel cluster`: starts the application on a Ray cluster, and ends it on request."""

import os
import signal

import ray
from ray import serve
from rich.console import Console

from app.cluster.application import REPLICAS, application
from app.cluster.options import ClusterOptions
from app.settings import PREFIX, Settings, server_url

_NAME = "easel"  # of the application
# Ray would send statistics of its use to its maker.
_NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}


class CannotRunError(RuntimeError):
    """The cluster cannot be reached, or its replicas cannot start."""


def run(settings: Settings, options: ClusterOptions, address: str, console: Console) -> None:
    """Run the application until a signal ends this process.

    `address` is that of a Ray cluster. If it is empty, one of this machine alone is started.
    Raises CannotRunError.
    """
    os.environ.update(_NO_STATISTICS)
    if settings.port == 0:
        raise CannotRunError(f"{PREFIX}PORT: a cluster needs a port of its own, not 0")
    url = server_url(settings.host, settings.port)
    console.print(
        f"easel: starting {options.replicas} of {settings.model} behind {url}", markup=False
    )
    try:
        if address:
            ray.init(address)
        else:
            ray.init("local", include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CannotRunError(f"Ray cannot be started or reached: {error}") from error
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        _serve(settings, options)
        console.print(
            f"\nEasel listens on {url}/v1: {options.replicas} of {settings.model_names[0]}\n",
            markup=False,
        )
        while True:
            signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        if address:  # where others may have applications of their own
            serve.delete(_NAME)
        else:
            serve.shutdown()
        ray.shutdown()


def _serve(settings: Settings, options: ClusterOptions) -> None:
    """Start the proxies and the application, and wait until every model is loaded."""
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": settings.host, "port": settings.port},
    )
    try:
        serve.run(application(settings, options), name=_NAME)
    except RuntimeError as error:
        raise CannotRunError(f"no replica can be started: {_reason() or error}") from error


def _reason() -> str:
    """Returns why Ray Serve could not start a replica: the last line of its traceback, if any."""
    started = serve.status().applications.get(_NAME)
    replicas = None if started is None else started.deployments.get(REPLICAS)
    lines = [] if replicas is None else replicas.message.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
