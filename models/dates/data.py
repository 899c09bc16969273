"""Dates as people write them in 92 locales, and the same dates in ISO 8601.

Days are those of 1950 to 2049, so that a year of two digits has one meaning. One day in 20 is held
out, by hash. A text is a day in a format of `formats.py`, varied a little: digits of the locale's
own script, a dot more or less, commas and directional marks left out.

A text may begin with the BCP 47 tag of its locale and a space: "en-US 1/2/26". It does where it
has more than one reading, and else with a chance of 30 %.
"""

import random
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from functools import cache
from itertools import chain, repeat
from zlib import crc32

import formats
from babel.core import get_global
from formats import Format

FIRST = date(formats.FIRST_YEAR, 1, 1)
DAYS = [day for n in range(36525) if (day := FIRST + timedelta(n)).year < formats.FIRST_YEAR + 100]
ZEROS = {
    "arab": 0x660, "arabext": 0x6F0, "beng": 0x9E6, "deva": 0x966, "gujr": 0xAE6, "guru": 0xA66,
    "khmr": 0x17E0, "knda": 0xCE6, "laoo": 0xED0, "mlym": 0xD66, "mymr": 0x1040,
    "tamldec": 0xBE6, "telu": 0xC66, "thai": 0xE50,
}  # fmt: skip
"""Code points of the zeros of CLDR's numbering systems; the other digits follow."""
DIGITS = {name: "".join(chr(zero + n) for n in range(10)) for name, zero in ZEROS.items()} | {
    "hanidec": "〇一二三四五六七八九"
}
NATIVE, RARELY_NATIVE = 0.75, 0.25
"""How often digits are the locale's own, where those are its default and where not."""
TAGGED = 0.3
CHUNK = 20_000

Sample = tuple[str, str]
"""A text, and its day in ISO 8601."""


def split() -> tuple[list[date], list[date]]:
    """Return the known and the held-out days."""
    parts: tuple[list[date], list[date]] = ([], [])
    for day in DAYS:
        parts[crc32(day.isoformat().encode()) % 20 == 0].append(day)
    return parts


def training(count: int) -> list[Sample]:
    """Return samples of known days in known formats, made by a process for each core."""
    with ProcessPoolExecutor() as pool:
        jobs = pool.map(_chunk, range(-(-count // CHUNK)))
        return list(chain.from_iterable(jobs))[:count]


def samples(every: Iterable[Format], days: list[date], count: int, seed: int) -> list[Sample]:
    """Return so many samples: each locale as often as any other, and so each of its formats."""
    rng = random.Random(seed)
    homes: dict[str, list[Format]] = {}
    for one in every:
        homes.setdefault(one.locale, []).append(one)
    locales = list(homes)
    drawn = (rng.choice(homes[rng.choice(locales)]) for _ in repeat(None, count))
    return [_sample(one, rng.choice(days), rng) for one in drawn]


def _chunk(seed: int) -> list[Sample]:
    return samples(formats.split()[0], split()[0], CHUNK, seed)


def _sample(one: Format, day: date, rng: random.Random) -> Sample:
    plain = one.text(day)
    tagged = len(formats.days(plain)) > 1 or rng.random() < TAGGED
    text = _varied(plain, rng).translate(_digits(one.locale, rng))
    return f"{rng.choice(_tags(one.locale))} {text}" if tagged else text, day.isoformat()


def _varied(text: str, rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.15:
        text = re.sub(r"[,،]|(?<=[^\W\d])\.", "", text)
    elif choice < 0.25:
        text = text.removesuffix(".") if text.endswith(".") else f"{text}."
    return text.replace("\u200f", "") if rng.random() < 0.5 else text


def _digits(code: str, rng: random.Random) -> dict[int, str]:
    """Return what ASCII digits are written as: nothing, where they stay."""
    locale = formats.locale(code)
    native = locale.other_numbering_systems.get("native", "latn")
    chance = NATIVE if locale.default_numbering_system == native else RARELY_NATIVE
    return _translation(native) if native in DIGITS and rng.random() < chance else {}


@cache
def _translation(system: str) -> dict[int, str]:
    return {ord("0") + n: digit for n, digit in enumerate(DIGITS[system])}


@cache
def _tags(code: str) -> list[str]:
    """Return the locale's tag, and the one with its territory: "fr" and "fr-FR"."""
    full = get_global("likely_subtags").get(code)
    tags = [code.replace("_", "-")]
    if full and code != "ar":  # CLDR's "ar" is no country's Arabic
        language, _, territory = full.split("_")
        tags.append(f"{language}-{territory}")
    return tags


if __name__ == "__main__":
    for name, part in zip(("known", "held-out"), formats.split(), strict=True):
        print(f"{len(part)} {name} formats")
    for text, iso in samples(formats.split()[0], split()[0], 50, 0):
        print(iso, text)
