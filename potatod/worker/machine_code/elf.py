"""The machine code of an object file with the constants that it refers to, in one piece that can lie anywhere.

A compiler keeps constants in sections of their own, and leaves the distances to them to a linker. There is none here, and what is left to do is a
table of sums: where the code says "from here to that constant", or a table says "from here to that code", the distance is filled in.
"""

from __future__ import annotations

import struct
from typing import Final

#: Of a 64-bit object file: section headers, symbols, relocations.
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_RELOCATION: Final = struct.Struct("<QQq")
_SYMBOLS, _RELOCATIONS = 2, 4
#: "the distance from here, 32 bits", of data and of code
_DISTANCES: Final = (2, 4)
_ALIGNMENT: Final = 64


def linked(obj: bytes) -> bytes:
    """``.text`` and whatever it refers to, behind it. Its first byte is the code's."""
    where, _, _, _, _, size, count, names_at = struct.unpack_from("<QIHHHHHH", obj, 0x28)
    headers = [_SECTION.unpack_from(obj, where + number * size) for number in range(count)]
    names = headers[names_at][4]
    named = {obj[names + header[0] : obj.index(b"\0", names + header[0])].decode(): number for number, header in enumerate(headers)}
    text = named[".text"]
    out, places = bytearray(), {}
    for name, number in sorted(named.items(), key=lambda pair: pair[1] != text):  # the code first
        if number == text or name.startswith(".rodata"):
            out += bytes(-len(out) % _ALIGNMENT)
            places[number] = len(out)
            out += obj[headers[number][4] :][: headers[number][5]]
    for header in headers:
        if header[1] != _RELOCATIONS or header[7] not in places:
            continue
        own = places[header[7]]
        symbols = headers[header[6]]
        for offset, info, addend in _RELOCATION.iter_unpack(obj[header[4] :][: header[5]]):
            _, _, _, section, value, _ = _SYMBOL.unpack_from(obj, symbols[4] + (info >> 32) * _SYMBOL.size)
            if info & 0xFFFFFFFF not in _DISTANCES or section not in places:
                raise ValueError("code that refers to something outside of itself")
            struct.pack_into("<i", out, own + offset, places[section] + value + addend - own - offset)
    return bytes(out)
