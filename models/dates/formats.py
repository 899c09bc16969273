"""The formats of dates in CLDR, as Babel has them, and which texts have more than one reading.

A format is a pattern of one locale: its four styles and some skeletons, Gregorian calendar. Some
are held out: a pattern goes for all locales of its language at once, and only where the rest of
each locale's formats has all its words and its order of numbers, so that nothing about it has to
be guessed.

What a text can mean is decided from the formats themselves. Two texts look alike when they differ
in digits, spaces, commas and the dots that are not between numbers; a text has every reading that
a format with such texts gives it, if it is a day of this calendar. So "27/11/2026" has one reading,
"1/2/2026" two, "2026-02-01" one, and "2 listopada 2026" two: October in Croatian, November in
Polish.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from zlib import crc32

from babel import Locale
from babel.dates import DateTimeFormat, parse_pattern

LOCALES = [
    "af", "am", "ar", "ar_LB", "ar_MA", "az", "be", "bg", "bn", "bs", "ca", "cs", "cy", "da", "de",
    "de_AT", "el", "en", "en_AU", "en_CA", "en_GB", "en_IN", "en_ZA", "es", "es_AR", "es_CL",
    "es_MX", "et", "eu", "fa", "fi", "fil", "fr", "fr_CA", "fr_CH", "ga", "gl", "gu", "he", "hi",
    "hr", "hu", "hy", "id", "is", "it", "ja", "ka", "kk", "km", "kn", "ko", "ky", "lo", "lt", "lv",
    "mk", "ml", "mn", "mr", "ms", "my", "nb", "ne", "nl", "nl_BE", "pa", "pl", "pt", "pt_PT", "ro",
    "ru", "si", "sk", "sl", "sq", "sr", "sr_Latn", "sv", "sw", "ta", "te", "th", "tr", "uk", "ur",
    "uz", "vi", "zh", "zh_Hant", "zh_Hant_HK", "zu",
]  # fmt: skip
STYLES = ("full", "long", "medium", "short")
SKELETONS = ("yMd", "yMEd", "yMMMd", "yMMMEd", "yMMMMd", "yMMMMEd")
FIRST_YEAR = 1950
"""Two digits of a year mean one of the hundred years from here."""
SAMPLE_DAYS = [date(2023, month, day) for month in range(1, 13) for day in range(1, 8)]
"""Every month with every day of the week."""
HELD_OUT = 8
"""At most one of so many formats of a language is held out."""

Reading = tuple[str, int]
"""What the numbers of a text are, in order, and the month if a word names it, else 0.

d, M, y: day, month, year of four digits; Y: year of two; others: part of a word.
"""


@dataclass(frozen=True)
class Format:
    """One way to write a date."""

    locale: str
    pattern: str

    @property
    def language(self) -> str:
        return self.locale.partition("_")[0]

    def text(self, day: date) -> str:
        """Return the day in this format, in ASCII digits."""
        text: str = parse_pattern(self.pattern).apply(day, locale(self.locale))
        return text

    def reading(self, day: date) -> Reading:
        """Return what the numbers of this day's text are."""
        fields = DateTimeFormat(day, locale(self.locale))
        names = re.findall(r"%\((\w+)\)", parse_pattern(self.pattern).format)
        kinds = ["Y" if name == "yy" else name[0].replace("L", "M") for name in names]
        order = "".join(
            kind
            for kind, name in zip(kinds, names, strict=True)
            if any(map(str.isdigit, fields[name]))
        )
        return order, 0 if "M" in order else day.month


@cache
def locale(code: str) -> Locale:
    return Locale.parse(code)


@cache
def split() -> tuple[list[Format], list[Format]]:
    """Return the known and the held-out formats."""
    languages: defaultdict[str, list[Format]] = defaultdict(list)
    for one in (Format(code, pattern) for code in LOCALES for pattern in _patterns(code)):
        languages[one.language].append(one)
    known: list[Format] = []
    held_out: list[Format] = []
    for every in languages.values():
        patterns = _held_out(every)
        for one in every:
            (held_out if one.pattern in patterns else known).append(one)
    return known, held_out


def days(text: str) -> frozenset[date]:
    """Return all days that a text without native digits may mean."""
    numbers = re.findall(r"\d+", _plain(text))
    found = (_day(numbers, *reading) for reading in _readings()[_outline(text)])
    return frozenset(day for day in found if day)


def _patterns(code: str) -> set[str]:
    styles, skeletons = locale(code).date_formats, locale(code).datetime_skeletons
    made = {styles[style].pattern for style in STYLES}
    return made | {skeletons[name].pattern for name in SKELETONS if name in skeletons}


def _held_out(every: list[Format]) -> set[str]:
    """Choose patterns of one language, by hash."""
    named = {f"{one.language} {one.pattern}": one.pattern for one in every}
    patterns = [named[name] for name in sorted(named, key=lambda name: crc32(name.encode()))]
    chosen: set[str] = set()
    for pattern in patterns:
        if len(chosen) == len(patterns) // HELD_OUT:
            break
        left = [one for one in every if one.pattern not in chosen | {pattern}]
        if all(_known(one, left) for one in every if one.pattern == pattern):
            chosen.add(pattern)
    return chosen


def _known(new: Format, left: list[Format]) -> bool:
    """Tell whether the other formats of its locale have all words and readings of this one."""
    others = [_features(one) for one in left if one.locale == new.locale]
    return _features(new) <= set[str | Reading]().union(*others)


@cache
def _features(one: Format) -> frozenset[str | Reading]:
    words = {word for day in SAMPLE_DAYS for word in re.split(r"[\W\d]+", one.text(day).lower())}
    return frozenset(words | {one.reading(day) for day in SAMPLE_DAYS})


@cache
def _readings() -> defaultdict[str, set[Reading]]:
    """Return the readings of every outline."""
    readings: defaultdict[str, set[Reading]] = defaultdict(set)
    for one in _all():
        for day in SAMPLE_DAYS:
            readings[_outline(one.text(day))].add(one.reading(day))
    return readings


def _all() -> Iterator[Format]:
    for part in split():
        yield from part


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _outline(text: str) -> str:
    """Return what texts that look alike have in common."""
    numbered = re.sub(r"\d+", "#", _plain(text))
    joined = re.sub(r"[\s,،\u200f]", "", numbered)
    return re.sub(r"(?<!#)\.|\.(?!#)", "", joined)


def _day(numbers: list[str], order: str, month: int) -> date | None:
    """Return the day that numbers mean in one reading, if there is such a day."""
    part = dict(zip(order, numbers, strict=True))
    year = part.get("y") or part["Y"]
    if len(year) != (4 if "y" in part else 2):
        return None
    full = int(year) if "y" in part else FIRST_YEAR + (int(year) - FIRST_YEAR) % 100
    try:
        return date(full, int(part.get("M", month)), int(part["d"]))
    except ValueError:
        return None
