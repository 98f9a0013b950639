"""The image's health check: exits 0 while the server in this container is ready.

Standard library only, for the image has no curl. Knows the address from the environment alone: a
container whose `serve` is given --port or --host must be given them as EASEL_PORT, EASEL_HOST.
"""

import http.client
import os
import sys

_TIMEOUT_S = 4  # below the health check's own, which would kill it without a word
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listening on every address, asked on this one


def main() -> int:
    host = os.environ.get("EASEL_HOST", "127.0.0.1")
    port = int(os.environ.get("EASEL_PORT", "8000"))
    connection = http.client.HTTPConnection(_ANY.get(host, host), port, timeout=_TIMEOUT_S)
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
