"""``python -m potatod.gateway``: started by the supervisor where [gateway] listen says so."""

import sys

from potatod import stage

from .gateway import work

sys.exit(stage.run("gateway", work))
