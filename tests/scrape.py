"""What `/metrics` of a server says, read by Prometheus's own parser."""

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Server

Sample = tuple[str, frozenset[tuple[str, str]]]


def scrape(server: Server) -> dict[Sample, float]:
    """The value of each sample."""
    answer = server.http.get(f"{server.url}/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(server: Server, name: str, **labels: str) -> float:
    """The value of one sample; 0 as long as it is not there."""
    return scrape(server).get((name, frozenset(labels.items())), 0)


def names_in(server: Server) -> set[str]:
    """The names of the metrics: a histogram's is that of its series without `_bucket`."""
    answer = server.http.get(f"{server.url}/metrics")
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(answer.text)
    }
