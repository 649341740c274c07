"""``python -m potatod.worker``: started by the supervisor."""

import sys

from potatod import stage

from .worker import work

sys.exit(stage.run("worker", work))
