"""Language consistency: the share of the thinking's words that are in the target language (DeepSeek-R1, section 2.3.2).

Numbers, formulas, code, single letters and the prompt's own words (names, quoted words) are neutral. A word in a script
that the target language does not use is foreign. Among words of the same script lingua judges, word by word, and its
confidences are added up over a few neighbours, because a short word alone belongs to many languages. A word counts as
foreign only on strong evidence: `sqrt`, names and made-up words are not. What a word looks like is remembered, so a
text costs a look-up a word. Where a script belongs to several languages (Cyrillic, Arabic, Devanagari, Han) and the
target is one of them, its words count as the target's: only Latin ones are told apart.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from lingua import IsoCode639_1, Language, LanguageDetector, LanguageDetectorBuilder

from pipeline.errors import InputError

_RIVALS = ("en", "de", "fr", "es", "pt", "it")
"""Latin languages that a foreign word is compared with, besides the target."""
_EVIDENCE = math.log(12.0)
"""How much more likely another language must make a word and its neighbours."""
_CLEAR = 4.0  # no word's log ratio counts for more
_NEIGHBOURS = 3  # on either side
_LONGEST_WORD = 40  # letters; a longer one is no word of any language

_SCRIPTS: Final = {
    "latin": "A-Za-zªºÀ-ÖØ-öø-ʯḀ-ỿ",
    "greek": "Ͱ-Ͽἀ-῿",
    "cyrillic": "Ѐ-ԯ",
    "armenian": "԰-֏",
    "hebrew": "֐-׿",
    "arabic": "؀-ۿݐ-ݿࢠ-ࣿ",
    "devanagari": "ऀ-ॿ",
    "bengali": "ঀ-৿",
    "gurmukhi": "਀-੿",
    "gujarati": "઀-૿",
    "tamil": "஀-௿",
    "telugu": "ఀ-౿",
    "thai": "฀-๿",
    "georgian": "Ⴀ-ჿ",
    "hangul": "ᄀ-ᇿ가-힯",
    "kana": "ぁ-ヿ",
    "han": "㐀-䶿一-鿿",
}
_LANGUAGES: Final = {
    "greek": ("el",),
    "cyrillic": ("ru", "uk", "be", "bg", "mk", "sr", "kk", "mn"),
    "armenian": ("hy",),
    "hebrew": ("he",),
    "arabic": ("ar", "fa", "ur"),
    "devanagari": ("hi", "mr"),
    "bengali": ("bn",),
    "gurmukhi": ("pa",),
    "gujarati": ("gu",),
    "tamil": ("ta",),
    "telugu": ("te",),
    "thai": ("th",),
    "georgian": ("ka",),
    "hangul": ("ko",),
    "kana": ("ja",),
    "han": ("zh", "ja", "ko"),
}
"""Languages by script; every other one is written in Latin letters."""

_NEUTRAL = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`"  # code
    r"|\$\$.{0,500}?\$\$|\$[^$\n]*\$|\\\(.{0,500}?\\\)|\\\[.{0,500}?\\\]"  # formulas; a bound, or time is quadratic
    r"|\\[A-Za-z]+|https?://\S+|</?(?:think|answer)>",
    re.DOTALL,
)
_MARKS = "\u0300-\u036f"  # accents on their own, as decomposed text has them
_WORD = re.compile("|".join(f"(?P<{name}>[{letters}{_MARKS}]+)" for name, letters in _SCRIPTS.items()))
_SENTENCE_END = re.compile(r"[.!?;:\n。！？]")
_WITHOUT_BLANKS = ("han", "kana", "thai")


@dataclass(frozen=True, slots=True)
class Share:
    """The share of words in the target language, 1.0 where there are none, and in words what was counted."""

    score: float
    reason: str


def language_share(thinking: str, target: str, prompt: str = "") -> Share:
    """Share of the words of `thinking` that are in language `target` (ISO 639-1).

    Of scripts that are written without blanks two letters count as one word. Raises InputError for a language that
    cannot be told apart.
    """
    scripts = _scripts_of(target)
    counted = foreign = 0.0
    known = {match[0].lower() for match in _WORD.finditer(prompt)}
    for sentence in _SENTENCE_END.split(_NEUTRAL.sub(" ", thinking)):
        words = []
        for match in _WORD.finditer(sentence):
            script, word = match.lastgroup, match[0].lower()
            assert script is not None
            weight = len(word) / 2 if script in _WITHOUT_BLANKS else 1.0
            if (len(word) == 1 and script not in _WITHOUT_BLANKS) or (script in scripts and word in known):
                continue
            counted += weight
            if script not in scripts:
                foreign += weight
            elif script == "latin":
                words.append(word)
        foreign += _foreign(words, target)
    if not counted:
        return Share(1.0, "no words")
    return Share(1.0 - foreign / counted, f"{counted - foreign:g} of {counted:g} words in {target}")


def _scripts_of(target: str) -> frozenset[str]:
    """Scripts that the language is written in."""
    _detector(target)
    scripts = frozenset(script for script, languages in _LANGUAGES.items() if target in languages)
    return scripts or frozenset({"latin"})


def _foreign(words: Sequence[str], target: str) -> int:
    """How many of the neighbouring Latin `words` are in another language than `target`."""
    ratios = [_log_ratios(word, target) for word in words]
    return sum(
        max(sum(near) for near in zip(*ratios[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS + 1], strict=True))
        > _EVIDENCE
        for place in range(len(ratios))
    )


@lru_cache(maxsize=200_000)
def _log_ratios(word: str, target: str) -> tuple[float, ...]:
    """For each rival: the logarithm of how much more likely it makes the word than the target language does."""
    rivals = [language for language in _RIVALS if language != target]
    if len(word) > _LONGEST_WORD:
        return (0.0,) * len(rivals)
    values = _detector(target).compute_language_confidence_values(word)
    found = {value.language.iso_code_639_1.name.lower(): max(value.value, 1e-3) for value in values}
    return tuple(max(-_CLEAR, min(_CLEAR, math.log(found[rival] / found[target]))) for rival in rivals)


@cache
def _detector(target: str) -> LanguageDetector:
    iso = getattr(IsoCode639_1, target.upper(), None)
    if iso is None:
        raise InputError(f"rewards.language: {target}: not a language that can be detected")
    codes = [getattr(IsoCode639_1, code.upper()) for code in dict.fromkeys((target, *_RIVALS))]
    return LanguageDetectorBuilder.from_languages(*map(Language.from_iso_code_639_1, codes)).build()
