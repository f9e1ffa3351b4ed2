"""Train rows that overlap with the evaluation split.

A row is contaminated by an evaluation prompt if it holds a given share of the prompt's word n-grams and all of the
prompt's numbers in their order: a question that asks the same with other numbers is another question, and stays. As in
GPT-3 (Brown et al. 2020, appendix C), n-grams of common phrases do not count, else every row made from one template
would overlap with every other. To find such pairs among millions of rows, only the rarest n-grams of every evaluation
prompt are looked up, together with its rarest number: a pair that overlaps enough cannot miss all of them (prefix
filtering, Chaudhuri et al. 2006).
"""

from collections.abc import Iterable

import numpy as np
import polars as pl

from pipeline.data.words import ngrams, numbers, words
from pipeline.params import Decontamination

SAMPLE_ROWS = 50_000
"""Common phrases are those of a sample of so many rows."""

_NO_NUMBER = ""


class EvaluationIndex:
    """The n-grams and numbers of the evaluation prompts."""

    def __init__(self, ids: pl.Series, normalised: pl.Series, sample: pl.Series, options: Decontamination) -> None:
        """`ids` (N,) name the problems in what `overlaps` says, `normalised` (N,) are their prompts.

        `sample` holds prompts of any split; an n-gram that occurs in more than `phrase_rows` of them is a phrase.
        """
        self.ids, self.normalised, self.options = ids, normalised, options
        phrases = self._grams(sample, "row").group_by("gram").len().filter(pl.col("len") > options.phrase_rows)
        grams = self._grams(normalised, "problem")
        telling = grams.join(phrases, on="gram", how="anti", maintain_order="left")
        # What was copied often looks like phrases alone. Then all of it counts, or it would be found the less for that.
        only_phrases = grams.join(telling, on="problem", how="anti", maintain_order="left")
        self.grams = pl.concat([telling, only_phrases])
        self.sizes = self.grams.group_by("problem", maintain_order=True).agg(size=pl.len())
        texts = pl.DataFrame({"problem": np.arange(len(normalised)), "text": normalised})
        self.numbers = _numbers(texts, "problem")
        self.prefixes = self._prefixes()
        self.lookup = self.prefixes["gram"].unique().sort().to_numpy()

    def overlaps(self, normalised: pl.Series) -> dict[int, str]:
        """Positions of the prompts that overlap with an evaluation prompt, each with a text that says with which."""
        if not len(self.lookup):
            return {}
        grams = ngrams(words(normalised), self.options.ngram_words)
        nearest = np.minimum(np.searchsorted(self.lookup, grams.values), len(self.lookup) - 1)
        hits = np.flatnonzero(self.lookup[nearest] == grams.values)
        rows = grams.rows
        pairs = self._candidates(pl.DataFrame({"row": rows[hits], "gram": grams.values[hits]}), normalised)
        inside = np.flatnonzero(np.isin(rows, pairs["row"].unique()))
        return self._verified(
            pairs, pl.DataFrame({"row": rows[inside], "gram": grams.values[inside]}).unique(), normalised
        )

    def _grams(self, normalised: pl.Series, name: str) -> pl.DataFrame:
        """(`name`, gram): the different n-grams of every text, `name` being its position."""
        grams = ngrams(words(normalised), self.options.ngram_words)
        return pl.DataFrame({name: grams.rows, "gram": grams.values}).unique(maintain_order=True)

    def _prefixes(self) -> pl.DataFrame:
        """(problem, gram, number): a problem's rarest grams, one more than may be missing, and its rarest number."""
        number = (
            self.numbers.with_columns(count=pl.len().over("number"))
            .sort("count", "number")
            .group_by("problem", maintain_order=True)
            .first()
        )
        missing = pl.col("size") - (pl.col("size") * self.options.overlap - 1e-9).ceil()  # 0.85 * 20 is a bit above 17
        return (
            self.grams.with_columns(count=pl.len().over("gram"))
            .sort("problem", "count", "gram")
            .with_columns(rank=pl.int_range(pl.len()).over("problem"))
            .join(self.sizes, on="problem")
            .filter(pl.col("rank") <= missing)
            .join(number, on="problem", how="left")
            .select("problem", "gram", pl.col("number").fill_null(_NO_NUMBER))
        )

    def _candidates(self, hits: pl.DataFrame, normalised: pl.Series) -> pl.DataFrame:
        """(row, problem): they share a rare gram, and the row has all the numbers. `hits` has row and gram."""
        rows = hits.select(pl.col("row").unique(maintain_order=True))
        held = _numbers(rows.with_columns(text=normalised.gather(rows["row"])), "row")
        none = rows.with_columns(number=pl.lit(_NO_NUMBER))
        pairs = (
            hits.join(pl.concat([held, none]), on="row")
            .join(self.prefixes, on=["gram", "number"])
            .select("row", "problem")
            .unique()
        )
        lacking = pairs.join(self.numbers, on="problem").join(held, on=["row", "number"], how="anti")
        return pairs.join(lacking, on=["row", "problem"], how="anti")

    def _verified(self, pairs: pl.DataFrame, grams: pl.DataFrame, normalised: pl.Series) -> dict[int, str]:
        """For every row the closest of its pairs' problems that does overlap. `grams` has row and gram."""
        shares = (
            pairs.join(self.grams, on="problem")
            .join(grams, on=["row", "gram"], how="semi")
            .group_by("row", "problem")
            .agg(shared=pl.len())
            .join(self.sizes, on="problem")
            .with_columns(share=pl.col("shared") / pl.col("size"))
            .filter(pl.col("share") >= self.options.overlap)
            .sort("row", -pl.col("share"), "problem")
            .select("row", "problem", "share")
        )
        wanted, held = numbers(self.normalised.gather(shares["problem"])), numbers(normalised.gather(shares["row"]))
        found: dict[int, str] = {}
        for (row, problem, share), *sequences in zip(shares.iter_rows(), wanted, held, strict=True):
            if row not in found and _in_order(*sequences):
                found[row] = f"{share:.0%} of the {self.options.ngram_words}-grams of problem {self.ids[problem]}"
        return found


def _numbers(texts: pl.DataFrame, name: str) -> pl.DataFrame:
    """(`name`, number): the different numbers of every text, given (`name`, text)."""
    table = texts.select(name, number=numbers(texts["text"]))
    return table.explode("number", empty_as_null=False).unique(maintain_order=True)


def _in_order(wanted: Iterable[str], held: Iterable[str]) -> bool:
    """Whether `wanted` is `held` with some left out."""
    rest = iter(held)
    return all(number in rest for number in wanted)
