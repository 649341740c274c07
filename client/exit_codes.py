"""What a command ends with: sysexits.h, and what shells say of signals. One table for the daemon's commands and for the client's.

docs/OPERATIONS.md says what each means and what helps.
"""

from __future__ import annotations

from typing import Final

EXIT_OK: Final = 0
EXIT_USAGE: Final = 64
EXIT_DATA: Final = 65
EXIT_NO_INPUT: Final = 66
EXIT_UNAVAILABLE: Final = 69
EXIT_INTERNAL: Final = 70
EXIT_DOES_NOT_FIT: Final = 71
EXIT_TRY_AGAIN: Final = 75
EXIT_CONFIG: Final = 78
#: ended by Ctrl-C, as shells say it: 128 + SIGINT
EXIT_INTERRUPTED: Final = 130
#: whoever read the answer has gone: 128 + SIGPIPE
EXIT_BROKEN_PIPE: Final = 141
