"""/metrics, for Prometheus: what the front reports of itself and of the engine, and what HTTP itself does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from potato_client.protocol import Report
from potato_client.words import disk_share

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._daemon = _Daemon()
        self._registry.register(self._daemon)
        self._requests = Counter("potato_http_requests", "HTTP requests that were answered.", ["path", "status"], registry=self._registry)
        self.streaming = Gauge("potato_http_streams", "Streams that clients read now.", registry=self._registry)

    def answered(self, path: str, status: int) -> None:
        """``path``: as the routes have it, so that there are only so many."""
        self._requests.labels(path, str(status)).inc()

    def page(self, report: Report | None) -> bytes:
        """``report``: None while the front is away; then there is ``potato_up 0``, and of HTTP what there is."""
        self._daemon.report = report
        return generate_latest(self._registry)


class _Daemon(Collector):
    def __init__(self) -> None:
        self.report: Report | None = None

    def collect(self) -> Iterator[Metric]:
        report = self.report
        yield GaugeMetricFamily("potato_up", "Whether an engine computes.", float(report is not None and report.engine.state == "up"))
        if report is None:
            return
        for name, about, gauge in _gauges(report):
            if gauge is not None:
                yield GaugeMetricFamily(f"potato_{name}", about, gauge)
        for name, about, count in _counters(report):
            yield CounterMetricFamily(f"potato_{name}", about, count)
        yield _labelled("potato_process_resident_bytes", "Memory of each process.", "process", {s.name: s.rss_bytes for s in report.stages})
        for what, about in (("drafted", "Tokens that were guessed."), ("accepted", "Of these, the ones that were right.")):
            family = CounterMetricFamily(f"potato_{what}_tokens", about, labels=["source"])
            for guesses in report.queue.guesses:
                family.add_metric([guesses.source], getattr(guesses, f"{what}_tokens"))
            yield family


def _gauges(report: Report) -> Iterator[tuple[str, str, float | None]]:
    engine, queue, model = report.engine, report.queue, report.model
    yield "sweep_seconds", "Of a sweep, over the last ones.", engine.s_per_sweep
    yield "sweep_expected_seconds", "What the plan expects of a sweep like these.", engine.expected_s_per_sweep
    yield "sweep_waited_seconds", "Of a sweep, what nothing could be computed in since weights were on their way.", engine.waited_s_per_sweep
    yield "disk_bytes_per_second", "Read, over the last sweeps.", engine.disk_bytes_per_s
    yield "disk_limit_bytes_per_second", "The most that was seen.", engine.disk_limit_bytes_per_s
    yield "disk_share", "Of what the disk gives, the part that is used.", disk_share(engine.disk_bytes_per_s, engine.disk_limit_bytes_per_s)
    yield "weights_bytes", "Of the model.", model.weights_bytes
    yield "resident_bytes", "Of the model, in memory for good.", model.resident_bytes
    yield "card_bytes", "Of the model, on the card for good.", model.card_bytes
    yield "streamed_bytes_per_sweep", "Read from disk for every sweep.", model.streamed_bytes_per_sweep
    yield "jobs_running", "Jobs that share the sweeps now.", queue.running
    yield "jobs_waiting", "Jobs in the queue.", queue.waiting
    yield "kv_running_bytes", "KV of texts that run.", queue.kv_running_bytes
    yield "kv_kept_bytes", "KV that is kept for others to go on from.", queue.kv_kept_bytes
    yield "kv_bytes", "Memory for KV.", queue.kv_bytes
    yield "paused", "Whether no sweep begins now, for the machine's sake.", float(bool(queue.paused))
    yield "storage_trouble", "Whether jobs cannot be written now.", float(bool(queue.trouble))


def _counters(report: Report) -> Iterator[tuple[str, str, float]]:
    yield "sweeps", "Passes over the weights since the front began.", report.engine.sweeps
    yield "restarts", "Of engine and front.", report.engine.restarts
    yield "tokens", "Said since the front began; over sweeps: tokens a sweep.", report.queue.tokens
    yield "prompt_tokens", "Asked for since the front began.", report.queue.prompt_tokens
    yield "prompt_tokens_reused", "Of these, the ones that others had computed.", report.queue.reused_tokens
    yield "set_aside", "How often an answer made place for others.", report.queue.set_aside
    yield "etas", "Jobs that were over since the front began and of which it was said half-way when they would be.", report.queue.etas
    yield "etas_kept", "Of these, the ones that ended within what was said.", report.queue.etas_kept
    yield "eta_error_seconds", "Sum of how far the middle of what was said was off.", report.queue.eta_error_s


def _labelled(name: str, about: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
