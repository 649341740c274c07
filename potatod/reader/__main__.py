"""``python -m potatod.reader``: started by the supervisor."""

import sys

from potatod import stage

from .reader import work

sys.exit(stage.run("reader", work))
