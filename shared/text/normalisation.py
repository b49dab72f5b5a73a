"""Normalize text that people type, and detect text that cannot be seen."""

import re
import unicodedata

IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that are not displayed: Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties."""
_SHAPING = re.compile("[\u200c\u200d\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Joiners and variation selectors: invisible, but part of how some languages and emoji are written."""
_BLANK = "\N{BRAILLE PATTERN BLANK}\U0001d159\U00013441\U00013442"
"""Symbols and letters that look blank."""


def normalize_name(text: str) -> str:
    """Return a name as it is stored: in NFC, whatever keyboard it came from, without surrounding whitespace."""
    return unicodedata.normalize("NFC", text).strip()


def folded(text: str) -> str:
    """Return the form in which texts that differ in case or composition are equal (Unicode 3.13, D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


def is_printable(text: str) -> bool:
    """Return whether a text has visible characters, and none that cannot be displayed in one line."""
    shown = _SHAPING.sub("", text)
    return not IGNORABLE.search(shown) and not any(map(_is_unprintable, shown)) and any(map(_is_visible, shown))


def _is_unprintable(character: str) -> bool:
    """Return whether a character cannot be displayed in one line; False for one newer than Python's Unicode."""
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") or (category == "Cn" and _is_noncharacter(character))


def _is_noncharacter(character: str) -> bool:
    return "\ufdd0" <= character <= "\ufdef" or ord(character) & 0xFFFE == 0xFFFE


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] not in "MZ" and character not in _BLANK


def plain(text: str) -> str:
    """Return a typed or pasted number or code with plain characters for full-width digits, dashes and spaces."""
    return "".join(map(_plain_character, unicodedata.normalize("NFKC", text))).strip()


_DASHES = "\N{MINUS SIGN}\N{KATAKANA-HIRAGANA PROLONGED SOUND MARK}"
"""Signs that are typed as a dash, but are not dashes in Unicode."""


def _plain_character(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Cf":  # invisible, such as the direction marks that come with a copied number
        return ""
    return "-" if category == "Pd" or character in _DASHES else character
