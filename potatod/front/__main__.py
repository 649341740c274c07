"""``python -m potatod.front``: started by the supervisor."""

import sys

from potatod import stage

from .front import work

sys.exit(stage.run("front", work))
