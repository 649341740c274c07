"""What `prepare --dtype` and `plan --dtype` take, by name. Pure."""

from __future__ import annotations

from typing import Final

#: The checkpoint's own.
AUTO: Final = "auto"
#: Values in this dtype, as its own bytes.
FLOATS: Final = ("bfloat16", "float16", "float32")
#: The scheme of a dtype's own bytes.
RAW: Final = "raw"
#: Exact bf16 in eleven bits.
PACKED: Final = "packed"
#: Schemes that matrices can be stored in, whatever they come from.
SCHEMES: Final = (PACKED, "int8", "int4")
#: Of these, those that round.
ROUNDED: Final = ("int8", "int4")
#: A quantised checkpoint's matrices as they are.
KEEP: Final = "keep"
CHOICES: Final = (AUTO, *FLOATS, *SCHEMES, KEEP)
#: torch's names of what `[kv] dtype` says; None: the model's own.
KV_DTYPES: Final = {"auto": None, "bfloat16": "bfloat16", "float8": "float8_e4m3fn"}
