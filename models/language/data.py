"""Sentences with a known language, from the message catalogs inside Django's package.

Messages are split by their English original, so all translations of one message are on one side.
The catalogs lack everyday words, so training adds the phrases of `everyday.txt`, written for this
project; they are in no score.
"""

import html
import re
import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np

LANGUAGES = {
    "Albanian": ("sq",),
    "Arabic": ("ar", "ar_DZ"),
    "Armenian": ("hy",),
    "Basque": ("eu",),
    "Bengali": ("bn",),
    "Bulgarian": ("bg",),
    "Catalan": ("ca",),
    "Chinese": ("zh_Hans", "zh_Hant"),
    "Czech": ("cs",),
    "Danish": ("da",),
    "Dutch": ("nl",),
    "English": ("en", "en_GB"),
    "Esperanto": ("eo",),
    "Estonian": ("et",),
    "Finnish": ("fi",),
    "French": ("fr",),
    "Georgian": ("ka",),
    "German": ("de",),
    "Greek": ("el",),
    "Hebrew": ("he",),
    "Hindi": ("hi",),
    "Hungarian": ("hu",),
    "Icelandic": ("is",),
    "Indonesian": ("id",),
    "Irish": ("ga",),
    "Italian": ("it",),
    "Japanese": ("ja",),
    "Korean": ("ko",),
    "Latvian": ("lv",),
    "Lithuanian": ("lt",),
    "Mongolian": ("mn",),
    "Persian": ("fa",),
    "Polish": ("pl",),
    "Portuguese": ("pt", "pt_BR"),
    "Romanian": ("ro",),
    "Russian": ("ru",),
    "Slovenian": ("sl",),
    "Spanish": ("es", "es_MX"),
    "Swahili": ("sw",),
    "Swedish": ("sv",),
    "Tamil": ("ta",),
    "Thai": ("th",),
    "Turkish": ("tr",),
    "Ukrainian": ("uk",),
    "Vietnamese": ("vi",),
    "Welsh": ("cy",),
}
LABELS = sorted(LANGUAGES)
SPACELESS = {LABELS.index(name) for name in ("Chinese", "Japanese", "Thai")}

# Placeholders, tags and addresses look the same in every language.
NOISE = re.compile(r"%\(\w+\)[a-zA-Z]|%[a-zA-Z%]|\{[^}]*\}|<[^>]*>|https?://\S+|&\w+;|[\\_]")

Sample = tuple[str, int]


def split() -> tuple[list[Sample], list[Sample]]:
    """Return the training and the held-out samples: pairs of a text and the index of its label.

    A text that reads the same in two languages is left out, because it has no one right answer,
    and so is a held-out text that also stands in the training part.
    """
    parts: tuple[set[Sample], set[Sample]] = (set(), set())
    for label, name in enumerate(LABELS):
        for original, text in _messages(name):
            parts[zlib.crc32(original.casefold().encode()) % 10 == 0].add((text, label))
    homes: defaultdict[str, set[int]] = defaultdict(set)
    for text, label in parts[0] | parts[1]:
        homes[text.casefold()].add(label)
    train, held_out = (
        sorted(one for one in part if len(homes[one[0].casefold()]) == 1) for part in parts
    )
    seen = {text.casefold() for text, _ in train + everyday()}
    return train, [one for one in held_out if one[0].casefold() not in seen]


def everyday() -> list[Sample]:
    """Return the phrases of `everyday.txt`, for training only."""
    lines = (Path(__file__).parent / "everyday.txt").read_text(encoding="utf-8").splitlines()
    phrases: list[Sample] = []
    for line in lines:
        name, _, texts = line.partition(":")
        phrases += [(text.strip(), LABELS.index(name)) for text in texts.split("|")]
    return phrases


def sentences(samples: list[Sample]) -> list[Sample]:
    """Return the samples of ten letters and more: "Close" or "menu" tell no language."""
    return [(text, label) for text, label in samples if sum(map(str.isalpha, text)) >= 10]


def clean(text: str) -> str:
    """Return a catalog message without placeholders, tags and line breaks."""
    return " ".join(NOISE.sub(" ", html.unescape(text)).split())


def varied(texts: list[str], spaceless: bool, rng: np.random.Generator) -> str:
    """Make one training sentence: a message, a few words of it, or two messages in a row.

    Args:
        texts: Messages of one language.
        spaceless: Whether the language writes no spaces; then characters count as words.
        rng: Source of every random choice.
    """
    text, choice = texts[rng.integers(len(texts))], rng.random()
    if choice < 0.55:
        text = _window(text, spaceless, rng)
    elif choice < 0.7:
        text = f"{text} {texts[rng.integers(len(texts))]}"
    if rng.random() < 0.3:
        text = text.rstrip(".:!?。…") + str(rng.choice(["", "", ".", "!", "?"]))
    return text.upper() if rng.random() < 0.07 else text


def _window(text: str, spaceless: bool, rng: np.random.Generator) -> str:
    words, glue = (list(text), "") if spaceless else (text.split(), " ")
    size = int(rng.integers(2, 9)) * (2 if spaceless else 1)
    first = int(rng.integers(0, max(1, len(words) - size + 1)))
    part = glue.join(words[first : first + size])
    return part if sum(map(str.isalpha, part)) >= 5 else text


def _messages(name: str) -> Iterator[tuple[str, str]]:
    """Yield the English original and the cleaned text of each message worth keeping."""
    for code in LANGUAGES[name]:
        for original, translation in _catalogs(code):
            text = clean(translation)
            translated = name == "English" or text != clean(original)
            if translated and sum(map(str.isalpha, text)) >= 4:
                yield original, text


def _catalogs(code: str) -> Iterator[tuple[str, str]]:
    root = Path(str(files("django")))
    # The English catalogs are empty: English is what the other catalogs translate from.
    folder = "de" if code == "en" else code
    for path in sorted(root.glob(f"**/locale/{folder}/LC_MESSAGES/*.mo")):
        for original, translation in _entries(path.read_bytes()):
            yield original, original if code == "en" else translation


def _entries(blob: bytes) -> Iterator[tuple[str, str]]:
    """Yield the original and each plural form from a little-endian gettext `.mo` file."""
    count, originals, translations = struct.unpack_from("<3I", blob, 8)
    for row in range(count):
        keys, values = (_strings(blob, at + 8 * row) for at in (originals, translations))
        key = keys[0].rpartition("\x04")[2]
        if key:
            yield from ((key, value) for value in values)


def _strings(blob: bytes, at: int) -> list[str]:
    size, start = struct.unpack_from("<2I", blob, at)
    return blob[start : start + size].decode().split("\x00")


if __name__ == "__main__":
    for side, samples in zip(("train", "held-out"), split(), strict=True):
        print(side, len(samples), Counter(LABELS[label] for _, label in samples))
