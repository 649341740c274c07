"""The gateway's life: a loop that serves HTTP, and the ties to the supervisor beside it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from sse_starlette.sse import AppStatus
from starlette.applications import Starlette

from potatod import bearer_token
from potatod.messages import Reload
from potatod.stage import Stage

from . import listener
from .about import About
from .answering import Answering
from .app import Door, make_app
from .batching import Batches
from .filing import Files
from .job_pages import JobPages
from .metrics import Metrics
from .questions import Questions
from .responding import Responding
from .retention import Retention
from .served import Served
from .store import Store
from .upstream import Upstream

_LOOK_EVERY_S: Final = 0.2


def work(stage: Stage) -> None:
    """Serves until the supervisor says Stop."""
    asyncio.run(_serve(stage))


async def _serve(stage: Stage) -> None:
    settings = stage.boot.settings
    token = bearer_token.read_or_make(Path(settings.gateway.token))
    listening = listener.bind(settings.gateway.listen, stage.fds.get("listen"))
    served = Served(stage.boot.models, int(time.time()))
    upstream = Upstream(settings.front.socket)
    store = Store(Path(settings.gateway.path))
    questions = Questions(upstream, store, stage.logger)
    files = Files(store)
    batches = Batches(served, upstream, questions, store, files, stage.logger)
    retention = Retention(store, upstream, lambda: stage.boot.settings.jobs.keep_s, stage.logger)
    metrics = Metrics()
    about, answering, jobs = About(served, upstream, metrics), Answering(served, upstream, questions), JobPages(served, upstream, questions)
    parts = about, answering, Responding(served, upstream, questions, store), files, batches, jobs
    routes = [route for part in parts for route in part.routes()]

    def app() -> Starlette:
        now = stage.boot.settings.gateway
        return make_app(routes, token=token, hosts=now.hosts, origins=now.origins, metrics=metrics, logger=stage.logger)

    door = Door(app)
    server = listener.server(door)
    questions.go_on()
    batches.go_on()
    retention.start()
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    ready = False
    try:
        while not (stage.stopping or serving.done()):
            await asyncio.sleep(_LOOK_EVERY_S)
            if any(isinstance(order, Reload) for order in stage.orders()):
                door.anew()
            if server.started and not ready:
                ready = True
                stage.ready(f"listening at {listener.url(listening)}")
            stage.beat()
        server.should_exit = AppStatus.should_exit = True  # the second ends streams
        await serving
    finally:
        await retention.close()
        await batches.close()
        await questions.close()
        await upstream.close()
