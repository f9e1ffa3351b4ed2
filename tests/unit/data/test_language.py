import polars as pl
import pytest

from pipeline.data.language import detect
from pipeline.errors import InputError

TEXTS = {
    "How many apples does Ann have if she buys 3 more of them?": "en",
    "James turned 27 three years ago. Matt turns twice James's age next year.": "en",
    "Wie viele Äpfel hat Anna, wenn sie noch drei weitere kauft?": "de",
    "Combien de pommes Anne a-t-elle si elle en achète trois de plus ?": "fr",
    "¿Cuántas manzanas tiene Ana si compra tres más en el mercado?": "es",
    "Сколько яблок у Анны, если она купит ещё три?": "ru",
    "安娜再买三个苹果后有多少个?": "zh",
    "كم تفاحة لدى آنا إذا اشترت ثلاثًا أخرى؟": "ar",
}


@pytest.mark.parametrize(("text", "language"), TEXTS.items())
def test_language_of_a_question(text: str, language: str) -> None:
    assert detect(pl.Series([text]), ["en"]).to_list() == [language]


@pytest.mark.parametrize(
    "text", ["47+85=?", r"\frac{1}{2}+\sqrt{16}+\operatorname{lcm}(4,6)", "reverse tomal", "🍎+🍎=?", ""]
)
def test_text_with_hardly_a_word_has_none(text: str) -> None:
    assert detect(pl.Series([text]), ["en"]).to_list() == [""]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("θ = π/3. cos θ = ?", ""),
        ("R = 10 Ω, I = 2 A. V = ?", ""),
        ("x ∈ ℤ, 3x ≡ 1 (mod 7)", ""),
        ("Convert 2.5 µm into nm", ""),
        ("How many solutions does sin(2x) = cos(x) have on [0, 2π]?", "en"),
        ("Πόσα μήλα έχει η Άννα αν αγοράσει άλλα τρία;", "el"),
    ],
)
def test_letters_of_formulas_do_not_count(text: str, language: str) -> None:
    assert detect(pl.Series([text]), ["en", "el"] if language == "el" else ["en"]).to_list() == [language]


def test_english_is_recognised_where_it_is_not_wanted() -> None:
    assert detect(pl.Series(list(TEXTS)[:1]), ["de"]).to_list() == ["en"]


def test_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match=r"curation\.languages: xx"):
        detect(pl.Series(["Wie viele Äpfel hat Anna, wenn sie noch drei kauft?"]), ["xx"])
