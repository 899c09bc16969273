"""Whole numbers from 0 to 999,999,999 and their names in English.

A prompt is a number and " =", with or without commas between the thousands: "48,213 =". What
follows is a space and the name: " forty-eight thousand two hundred thirteen". A number has one to
nine digits, each length as often as any other. Few such numbers are round, so one in five for
training has about half of its digits made zero. One number in 20 is held out, by hash, but none
below 100: their names are the words of all others.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from zlib import crc32

SMALL = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ["million", "thousand", ""]
MOST_DIGITS = 9
COMMAS = 0.4
"""How often a training number has commas, if it is long enough."""
ZEROS = 0.2
"""How often about half of the digits of a training number are made zero."""
CHUNK = 20_000

Sample = tuple[str, str]
"""A prompt and what follows."""


def name(number: int) -> str:
    """Return the name of a number below a thousand million."""
    if not number:
        return SMALL[0]
    groups = f"{number:011,}".split(",")
    words = [
        f"{_below_thousand(int(group))} {scale}".rstrip()
        for group, scale in zip(groups, SCALES, strict=True)
        if int(group)
    ]
    return " ".join(words)


def sample(number: int, commas: bool) -> Sample:
    return f"{number:,} =" if commas else f"{number} =", f" {name(number)}"


def numbers(held_out: bool, zeros: float, count: int, seed: int) -> Iterator[int]:
    """Yield numbers of one side of the split.

    Args:
        held_out: Which side.
        zeros: How often about half of the digits are made zero.
        count: How many.
        seed: Of every random choice.
    """
    rng = random.Random(seed)
    while count:
        digits = [rng.choice("0123456789") for _ in range(rng.randint(1, MOST_DIGITS))]
        if rng.random() < zeros:
            digits = [digit if rng.random() < 0.5 else "0" for digit in digits]
        if len(digits) > 1 and digits[0] == "0":
            digits[0] = rng.choice("123456789")
        number = int("".join(digits))
        if _held_out(number) == held_out:
            count -= 1
            yield number


def training(count: int) -> list[Sample]:
    """Return samples of known numbers, made by a process for each core."""
    with ProcessPoolExecutor() as pool:
        jobs = pool.map(_chunk, range(-(-count // CHUNK)))
        return list(chain.from_iterable(jobs))[:count]


def _chunk(seed: int) -> list[Sample]:
    rng = random.Random(seed)
    return [sample(number, rng.random() < COMMAS) for number in numbers(False, ZEROS, CHUNK, seed)]


def _held_out(number: int) -> bool:
    return number >= 100 and crc32(str(number).encode()) % 20 == 0


def _below_hundred(number: int) -> str:
    if number < 20:
        return SMALL[number]
    tens = TENS[number // 10 - 2]
    return f"{tens}-{SMALL[number % 10]}" if number % 10 else tens


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{SMALL[hundreds]} hundred"] if hundreds else []
    return " ".join(words + ([_below_hundred(rest)] if rest else []))


if __name__ == "__main__":
    for prompt, answer in _chunk(0)[:20]:
        print(prompt + answer)
