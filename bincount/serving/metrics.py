"""What a service says of itself at /metrics, for Prometheus."""

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from bincount.model_settings import Task
from bincount.serving.answers import Answer
from bincount.serving.served import ServedModel

disable_created_metrics()  # a series beside each other one, of when it began

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


class Metrics:
    """The counters of one service. Labels hold versions and outcomes only, so that their number is bounded."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.model = Gauge(
            "bincount_model_info", "1 for the version that answers", ["name", "version", "digest"], registry=registry
        )
        self.pictures = Counter(
            "bincount_pictures",
            "Pictures by the version that answered and how: counted, look, or unreadable",
            ["version", "outcome"],
            registry=registry,
        )
        self.question_models = Gauge(
            "bincount_question_model_info",
            "1 for the version that answers questions of a task",
            ["task", "name", "version", "digest"],
            registry=registry,
        )
        self.questions = Counter(
            "bincount_questions",
            "Questions by the task and version of the model and how: answered or unreadable",
            ["task", "version", "outcome"],
            registry=registry,
        )
        self.queue = Gauge("bincount_queue_pictures", "Pictures that wait or are predicted", registry=registry)
        self.requests = Counter(
            "bincount_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.switches = Counter(
            "bincount_switches",
            "Tries to use another version, to answer (served), beside it (shadow), or for questions of a task",
            ["role", "outcome"],
            registry=registry,
        )
        self.shadowed = Counter(
            "bincount_shadow_pictures",
            "Pictures that a shadow predicted too, by whether it agrees with the version that answered",
            ["version", "shadow", "outcome"],
            registry=registry,
        )
        self.captured = Counter(
            "bincount_captured_pictures", "Pictures by whether they were kept", ["outcome"], registry=registry
        )
        self.confidence = Histogram(
            "bincount_confidence",
            "Probability of the likeliest class",
            ["version"],
            buckets=SHARES,
            registry=registry,
        )
        self.batch_pictures = Histogram(
            "bincount_batch_pictures", "Pictures that were predicted together", buckets=SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "bincount_batch_seconds", "Time of the network for a batch", buckets=SECONDS, registry=registry
        )
        self.request_seconds = Histogram(
            "bincount_request_seconds",
            "Time to answer a request with pictures",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )

        for outcome in ("switched", "failed"):
            self.switches.labels("served", outcome)  # from the start, so that a rate has something to begin with

    def show_model(self, model: ServedModel) -> None:
        """Say which version answers now."""
        self.model.clear()
        self.model.labels(model.name, model.version, model.engine.digest).set(1)

    def show_question_models(self, models: Mapping[Task, ServedModel]) -> None:
        """Say which versions answer questions now, by their tasks."""
        self.question_models.clear()
        for task, model in models.items():
            self.question_models.labels(task, model.name, model.version, model.engine.digest).set(1)

    def count(self, answer: Answer) -> None:
        """Count a picture that was answered."""
        outcome = "look" if answer.abstains else "counted"
        self.pictures.labels(answer.version, outcome).inc()
        self.confidence.labels(answer.version).observe(answer.confidence)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
