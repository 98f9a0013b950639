"""The metrics of several replicas as one exposition, with the replica as a label."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def with_replicas(expositions: Mapping[str, str]) -> bytes:
    """Returns the metrics of all replicas in Prometheus' text format.

    `expositions` has the text of each replica by its id, which every series gets as the label
    `replica`.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Parsed(expositions))
    return generate_latest(registry)


class _Parsed(Collector):
    def __init__(self, expositions: Mapping[str, str]) -> None:
        self._expositions = expositions

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._expositions.items():
            for family in text_string_to_metric_families(text):
                whole = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                whole.samples += [
                    sample._replace(labels={**sample.labels, "replica": replica})
                    for sample in family.samples
                ]
        yield from families.values()
