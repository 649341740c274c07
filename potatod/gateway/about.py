"""What the daemon is and does: /health, /v1/models, /status, /metrics."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from potato_client import ClientError

from . import pages
from .faults import Fault, Json
from .metrics import CONTENT_TYPE, Metrics
from .query import route
from .served import Served, ServedModel
from .upstream import Upstream


class About:
    def __init__(self, served: Served, upstream: Upstream, metrics: Metrics) -> None:
        self._served = served
        self._metrics = metrics
        self._upstream = upstream

    def routes(self) -> list[Route]:
        return [
            route("/health", self.live),
            route("/health/live", self.live),
            route("/health/ready", self.ready),
            route("/status", self.status),
            route("/metrics", self.metrics),
            route("/v1/models", self.models),
            route("/v1/models/{model:path}", self.model),
            route("/v1/embeddings", self.embeddings, "POST"),
        ]

    async def live(self, request: Request) -> Response:
        return Json({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """503 while nothing can be computed. A model on its way into memory instead of another is no reason."""
        try:
            state: str = (await self._upstream.status()).engine.state
        except ClientError:
            state = "starting"
        return Json({"status": "ready"}) if state in ("up", "switching") else Json({"status": state}, 503)

    async def status(self, request: Request) -> Response:
        return Json(asdict(await self._upstream.status()))

    async def metrics(self, request: Request) -> Response:
        try:
            report = await self._upstream.status()
        except ClientError:
            report = None
        return Response(self._metrics.page(report), headers={"Content-Type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        return Json({"object": "list", "data": [self._model(model) for model in self._served]})

    async def model(self, request: Request) -> Response:
        return Json(self._model(self._served.model(request.path_params["model"])))

    async def embeddings(self, request: Request) -> Response:
        raise Fault(501, "embeddings are not supported: the models that are served here write text", code="unsupported")

    def _model(self, model: ServedModel) -> pages.Page:
        return {"id": model.name, "object": "model", "created": self._served.since, "owned_by": "potato"}
