"""Character sets of text values: the Defined Terms of Specific Character Set (0008,0005), PS3.3 §C.12.1.1.2.

Python's codecs do the work; here is which of them a term or an escape sequence means. The tables say what pydicom's
say: importing those would bring in the whole of pydicom.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

__all__ = ["DEFAULT", "ESCAPES", "decode_extended", "python_encodings"]

#: What stands for the default repertoire, ASCII: writers forget the term for Latin-1.
DEFAULT: Final = "iso8859"

# Table C.12-2, and C.12-3 for the same with code extensions: a number -> codec, end of the escape sequence.
_SINGLE_BYTE = {
    "6": (DEFAULT, b"(B"),
    "13": ("shift_jis", b")I"),
    "100": ("latin_1", b"-A"),
    "101": ("iso8859_2", b"-B"),
    "109": ("iso8859_3", b"-C"),
    "110": ("iso8859_4", b"-D"),
    "126": ("iso_ir_126", b"-F"),
    "127": ("iso_ir_127", b"-G"),
    "138": ("iso_ir_138", b"-H"),
    "144": ("iso_ir_144", b"-L"),
    "148": ("iso_ir_148", b"-M"),
    "166": ("iso_ir_166", b"-T"),
}
# Table C.12-4.
_MULTI_BYTE = {
    "58": ("iso_ir_58", b"$)A"),
    "87": ("iso2022_jp", b"$B"),
    "149": ("euc_kr", b"$)C"),
    "159": ("iso2022_jp_2", b"$(D"),
}

#: An escape sequence -> the codec of what follows.
ESCAPES: Final = {b"\x1b" + end: codec for codec, end in (*_SINGLE_BYTE.values(), *_MULTI_BYTE.values())} | {
    b"\x1b(J": "shift_jis"
}  # ISO-IR 14, the lower half of "13"

# Table C.12-5: terms that go with no other one, PS3.5 §6.1.2.5.4.
_STAND_ALONE = {"ISOIR192": "utf_8", "GB18030": "gb18030", "GBK": "gbk"}

# Terms are compared without punctuation: senders misspell them ("ISO-IR 100", "UTF-8"). Only these: a codec is never
# looked up by a peer's text.
_TERMS = {f"ISO8859{part}": f"iso8859_{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)}
_TERMS |= {
    "UTF8": "utf_8",
    "LATIN1": "latin_1",
    "GB2312": "gb2312",
    "ISO202258": "gb2312",
    "ISO2022GBK": "gbk",
}
_TERMS |= _STAND_ALONE
_TERMS |= {f"ISOIR{number}": codec for number, (codec, _) in _SINGLE_BYTE.items()}
_TERMS |= {f"ISO2022IR{number}": codec for number, (codec, _) in (_SINGLE_BYTE | _MULTI_BYTE).items()}

_escape = re.compile(rb"(\x1b(?:\$[()].|..))", re.DOTALL)
_reset = re.compile(rb"[\t\n\f\r]")


@lru_cache(maxsize=64)
def python_encodings(value: bytes) -> tuple[str, ...]:
    """The Python encodings of a Specific Character Set, the initial one first; DEFAULT for a term that is none."""
    terms = ["".join(filter(str.isalnum, term)).upper() for term in value.decode("latin-1").split("\\")]
    if terms[0] in _STAND_ALONE:
        del terms[1:]
    return tuple(_TERMS.get(term, DEFAULT) for term in terms)


def decode_extended(value: bytes, encodings: tuple[str, ...]) -> str:
    """Decode a value with code extensions (PS3.5 §6.1.2.5): escape sequences choose the encoding of what follows.

    Control characters end the choice. So should "^" and "=" in names, but there are writers that rely on the contrary.
    """
    initial = encodings[0]
    text, *rest = _escape.split(value)
    decoded = [text.decode(initial, "replace")]
    for escape, text in zip(rest[::2], rest[1::2], strict=True):
        encoding = ESCAPES.get(escape, "")
        if encoding not in encodings and encoding != DEFAULT:
            decoded.append((escape + text).decode(initial, "replace"))
        elif encoding.startswith("iso2022_jp"):  # Python's codec wants to see the escape sequence
            decoded.append((escape + text).decode(encoding, "replace"))
        else:
            found = _reset.search(text)
            end = found.start() if found else len(text)
            decoded.append(text[:end].decode(encoding, "replace") + text[end:].decode(initial, "replace"))
    return "".join(decoded)
