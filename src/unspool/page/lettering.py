"""Words that are safe to show: no control character of theirs reaches a terminal, their width is known."""

import unicodedata

_JOINERS = "\u200c\u200d\ufe0e\ufe0f"
_LEFT_TO_RIGHT_MARK = "\u200e"


def cleaned(text: str) -> str:
    """Replace what cannot be seen or would steer a terminal: ESC becomes ␛, other controls �."""
    shown = "".join(_visible(character) for character in text)
    if not shown.strip(_JOINERS):
        return "\ufffd"
    if shown.isspace():
        return shown.replace(" ", "\u2420")
    # A mark without a letter would sit on what stands before it.
    return f"\u25cc{shown}" if unicodedata.category(shown[0])[0] == "M" else shown


def _visible(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))
    if character == "\x7f":
        return "\u2421"
    hidden = unicodedata.category(character)[0] == "C" or character in "\u2028\u2029"
    return "\ufffd" if hidden and character not in _JOINERS else character


def _cells(character: str) -> int:
    """How many columns of a terminal a character takes."""
    if unicodedata.category(character) in ("Mn", "Me") or "\u1160" <= character <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_cells, text))


def cut_to(text: str, width: int) -> str:
    """Make text safe, and end it with … if it takes more than `width` columns."""
    kept, used, room = "", 0, width
    text = cleaned(text)
    if columns_of(text) > width:
        room = width - 1
    for character in text:
        used += _cells(character)
        if used > room:
            return f"{kept}…"
        kept += character
    return kept


def fit_to(text: str, width: int) -> str:
    """Make text safe and exactly `width` columns wide."""
    shown = cut_to(text.translate(dict.fromkeys(map(ord, _JOINERS))), width)
    pad = " " * (width - columns_of(shown))
    # What follows a word of Hebrew or Arabic must not be drawn into its right-to-left run.
    turned = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in shown)
    return f"{shown}{_LEFT_TO_RIGHT_MARK if turned else ''}{pad}"
