"""The table of metrics in docs/operations.md: `python -m tests.docs.metrics_table` prints it."""

import asyncio

from prometheus_client import Metric

from app.metrics import Metrics

_ENDS = {"counter": "_total", "info": "_info"}


def table() -> str:
    """Returns a row for each metric, as /metrics exposes it."""
    rows = [
        f"| `{each.name}{_ENDS.get(each.type, '')}` | {each.type} | {each.documentation} |"
        for each in asyncio.run(_collected())
    ]
    return "\n".join(["| metric | type | |", "|---|---|---|", *rows])


async def _collected() -> list[Metric]:  # some metrics need a running event loop
    return list(Metrics().registry.collect())


if __name__ == "__main__":
    print(table())
