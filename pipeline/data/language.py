"""In which language a prompt is written.

lingua decides. Before it is asked, two cheap rules settle what is clear: a text with hardly any letters beside its
formulas has no language, and a Latin text in which a good share of the words are English function words that no other
common language uses is English. The second rule is what makes millions of English prompts affordable.
"""

from collections.abc import Sequence
from functools import cache

import polars as pl
from lingua import IsoCode639_1, Language, LanguageDetector, LanguageDetectorBuilder

from pipeline.errors import InputError

_ALWAYS = ("en", "zh", "ja", "ko", "ru", "ar", "he", "hi", "de", "fr", "es", "pt", "it")
"""Told apart whatever is wanted, so that an unwanted text has somewhere to go."""

_FUNCTION_WORDS = (
    "the|of|and|to|for|how|many|much|what|does|did|have|had|with|he|she|they|it|their|his|from|each|than|then|were|"
    "which|you|that|this|who|there|would|find|if|are|by"
)
_ENGLISH = rf"\b(?:{_FUNCTION_WORDS})\b"
_ENGLISH_SHARE = 0.12  # of the words, counted by their blanks; 99 % of GSM8K has more
_COMMAND = r"\\[A-Za-z]+"  # of LaTeX
_SIGN = r"[\p{Greek}\u{b5}\u{2100}-\u{214f}]"  # α, µ, ℝ: letters of formulas, unless the text may be Greek
_ENOUGH_LETTERS = r"(?:\pL\PL*){20}"
_LOOKED_AT = 400  # characters; more does not change lingua's mind


def detect(prompts: pl.Series, wanted: Sequence[str]) -> pl.Series:
    """ISO 639-1 codes of the prompts, "" where a prompt has no words to tell by."""
    text = pl.col("text")
    no_words = _COMMAND if "el" in wanted else f"{_COMMAND}|{_SIGN}"
    latin = ~text.str.contains(r"[\pL--\p{Latin}]")
    words = text.str.count_matches(" ", literal=True) + 1
    english = text.str.count_matches(_ENGLISH) >= _ENGLISH_SHARE * words
    table = (
        prompts.rename("text")
        .to_frame()
        .select(text.str.replace_all(no_words, " ").str.to_lowercase())
        .with_columns(
            language=pl.when(latin & ~text.str.contains(_ENOUGH_LETTERS))
            .then(pl.lit(""))
            .when(latin & english & ("en" in wanted))
            .then(pl.lit("en"))
        )
    )
    unclear = table.select(pl.col("language").is_null().arg_true()).to_series()
    if unclear.is_empty():
        return table["language"]
    detector = _detector(tuple(wanted))
    found = detector.detect_languages_in_parallel_of(table["text"].gather(unclear).str.head(_LOOKED_AT).to_list())
    codes = ["" if language is None else language.iso_code_639_1.name.lower() for language in found]
    return table["language"].scatter(unclear, codes)


@cache
def _detector(wanted: tuple[str, ...]) -> LanguageDetector:
    codes = []
    for code in dict.fromkeys((*wanted, *_ALWAYS)):
        iso = getattr(IsoCode639_1, code.upper(), None)
        if iso is None:
            raise InputError(f"curation.languages: {code}: not a language that can be detected")
        codes.append(Language.from_iso_code_639_1(iso))
    return LanguageDetectorBuilder.from_languages(*codes).build()
