"""The image's health check: it exits with 0 if the server in this container is ready, else with 1.

It uses the standard library only, because the image has no curl. The address comes from EASEL_HOST
and EASEL_PORT. A container must therefore set these instead of the options --host and --port.
"""

import http.client
import os
import sys

_TIMEOUT_S = 4  # less than Docker's timeout, which would kill the check without output
_LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # to ask a server that listens on all addresses


def main() -> int:
    host = os.environ.get("EASEL_HOST", "127.0.0.1")
    port = int(os.environ.get("EASEL_PORT", "8000"))
    connection = http.client.HTTPConnection(_LOCAL.get(host, host), port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        print(response.status, response.read().decode())
        return 0 if response.status == 200 else 1
    except OSError as error:
        print(f"{host} port {port}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
