"""Finds what attackers guess first in a password: common ones, names, patterns (NIST SP 800-63B-4, 3.1.1.2)."""

import re
import unicodedata
from collections.abc import Iterator

from shared.runtime.once import once

SERVICE_WORDS = (
    *("aegis", "user", "service", "account", "admin", "administrator", "login", "signin", "welcome", "secret"),
    *("default", "changeme", "letmein", "passphrase", "password", "passwort", "비밀번호", "패스워드", "이지스"),
    *("root", "system", "server", "staging", "production", "manager", "employee", "company", "관리자", "회사"),
    *("knative", "kubernetes", "postgres", "redis", "kafka"),
)
PHRASES = (  # widely quoted, so they are in lists of breached passwords
    *("correcthorsebatterystaple", "thequickbrownfoxjumpsoverthelazydog", "loremipsumdolorsitamet"),
    *("maytheforcebewithyou", "allyourbasearebelongtous", "tobeornottobethatisthequestion", "ihaveadream"),
    *("supercalifragilisticexpialidocious", "iloveyousomuch", "iloveyouforever", "opensesame", "whatisthepassword"),
    *("314159265358979", "안녕하세요", "감사합니다", "사랑해", "대한민국", "spongebobsquarepants", "backstreetboys"),
)
_KEYBOARD = (
    *("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz", "qwertzuiop", "azertyuiop"),
    *("1q2w3e4r5t6y7u8i9o0p", "q1w2e3r4t5y6u7i8o9p0", "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p"),
    *(
        "1a2b3c4d5e6f7g8h9i0j",
        "a1b2c3d4e5f6g7h8i9j0",
        "qazwsxedcrfvtgbyhnujmikolp",
        "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔ",
        "ㅁㄴㅇㄹㅎㅗㅓㅏㅣ",
    ),
    *("가나다라마바사아자차카타파하", "11223344556677889900", "aabbccddeeffgghhiijjkkllmmnnooppqqrrssttuuvvwwxxyyzz"),
)
# The keys for the letters of a Hangul syllable, in Unicode order: initial consonants, vowels, final consonants.
_KOREAN_KEYS = (
    (0x1100, "r r s e e f a q q t t d w w c z x v g"),
    (0x1161, "k o i o j p u p h hk ho hl y n nj np nl b m ml l"),
    (0x11A8, "r r rt s sw sg e f fr fa fq ft fx fv fg a q qt t t d w c z x v g"),
)
_KEYS_OF_LETTERS = {first + place: key for first, keys in _KOREAN_KEYS for place, key in enumerate(keys.split())}
_WALK_LENGTH = 4
_COMMON_PASSWORDS = 1000
"""How many of zxcvbn's most common passwords to remove. Rarer ones are words, which zxcvbn judges itself."""
_COMMON_LENGTH = 5
_FEW_SYMBOLS = 2
"""Up to this many different symbols count as separators and padding; more are part of a random password."""
_LEET = tuple(str.maketrans("0134578@$!", f"o{one}eastb" + f"as{one}") for one in "il")
_DULL = re.compile(r"(.)\1{2,}|(?:19|20)[0-9]{2}")


def remainder(password: str, *known: str | None) -> str:
    """Return a password without the parts that attackers guess first. The rest must be strong by itself.

    This removes words of the service, the most common passwords, keyboard walks, sequences, repeated characters, years,
    and what is `known` about the user, in any case, in leetspeak, or with separators in between.
    """
    text = password.casefold()
    words = [*_common_words(), *_words_of(known)]
    guessed = {place for found in _DULL.finditer(text) for place in range(*found.span())}
    for letters in (text, *(text.translate(table) for table in _LEET)):
        places = [place for place, letter in enumerate(letters) if letter.isalnum()]
        compact = "".join(letters[place] for place in places)
        for start, end in (*_occurrences(compact, words), *_walks(compact)):
            guessed.update(places[start:end])
    symbols = {letter for letter in text if not letter.isalnum()}
    left_out = symbols if len(symbols) <= _FEW_SYMBOLS else set()
    return "".join(letter for place, letter in enumerate(text) if place not in guessed and letter not in left_out)


def _words_of(known: tuple[str | None, ...]) -> Iterator[str]:
    """Yield the parts of addresses and names, forwards and backwards, without top-level domains."""
    for text in filter(None, known):
        local, _, domain = text.casefold().rpartition("@") if "@" in text else (text.casefold(), "", "")
        for part in (local, *re.split(r"[\W\d_]+", local), *domain.split(".")[:-1]):
            word = re.sub(r"[\W_]", "", part)
            # A Hangul syllable counts as two letters.
            if len(word) >= (3 if word.isascii() else 2):
                yield from (word, word[::-1], *_typed_in_latin(word))


def _typed_in_latin(word: str) -> Iterator[str]:
    """Yield the keys that type a Hangul word (KS X 5002): Koreans type 비밀번호 as qlalfqjsgh."""
    keys = unicodedata.normalize("NFD", word).translate(_KEYS_OF_LETTERS)
    if keys.isascii() and not word.isascii():
        yield keys


def _occurrences(text: str, words: list[str]) -> Iterator[tuple[int, int]]:
    for word in words:
        start = text.find(word)
        while start >= 0:
            yield start, start + len(word)
            start = text.find(word, start + 1)


def _walks(text: str) -> Iterator[tuple[int, int]]:
    """Yield where adjacent keys, or consecutive letters or digits, follow each other."""
    pieces = _pieces_of_walks()
    for start in range(len(text) - _WALK_LENGTH + 1):
        if text[start : start + _WALK_LENGTH] in pieces:
            yield start, start + _WALK_LENGTH


@once
def _pieces_of_walks() -> frozenset[str]:
    walks = [walk for way in _KEYBOARD for walk in (way, way[::-1], *_typed_in_latin(way))]
    return frozenset(
        walk[start : start + _WALK_LENGTH] for walk in walks for start in range(len(walk) - _WALK_LENGTH + 1)
    )


@once
def _common_words() -> tuple[str, ...]:
    from zxcvbn.matching import RANKED_DICTIONARIES

    ranked = RANKED_DICTIONARIES["passwords"]
    common = (word for word, rank in ranked.items() if rank <= _COMMON_PASSWORDS and len(word) >= _COMMON_LENGTH)
    known = (*SERVICE_WORDS, *PHRASES)
    return (*known, *(keys for word in known for keys in _typed_in_latin(word)), *common)
