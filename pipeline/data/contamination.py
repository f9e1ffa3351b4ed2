"""Train rows that overlap with the evaluation split.

A row is contaminated by an evaluation prompt if it holds a given share of the prompt's word n-grams and all of the
prompt's numbers: a question that asks the same with other numbers is another question, and stays. To find such pairs
among millions of rows, only the rarest n-grams of every evaluation prompt are looked up, together with its rarest
number: a pair that overlaps enough cannot miss all of them (prefix filtering, Chaudhuri et al. 2006).
"""

import numpy as np
import polars as pl

from pipeline.data.words import ngrams, numbers, words
from pipeline.params import Decontamination

_NO_NUMBER = ""


class EvaluationIndex:
    """The n-grams and numbers of the evaluation prompts."""

    def __init__(self, ids: pl.Series, normalised: pl.Series, options: Decontamination) -> None:
        """`ids` (N,) name the problems in what `overlaps` says, `normalised` (N,) are their prompts."""
        self.ids, self.options = ids, options
        grams = ngrams(words(normalised), options.ngram_words)
        self.grams = pl.DataFrame({"problem": grams.rows, "gram": grams.values}).unique(maintain_order=True)
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
        return self._verified(pairs, pl.DataFrame({"row": rows[inside], "gram": grams.values[inside]}).unique())

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
        """(row, problem): they share a rare gram, and the row has the problem's numbers. `hits` has row and gram."""
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

    def _verified(self, pairs: pl.DataFrame, grams: pl.DataFrame) -> dict[int, str]:
        """The pairs that share enough n-grams, the closest problem for each row. `grams` has row and gram."""
        shares = (
            pairs.join(self.grams, on="problem")
            .join(grams, on=["row", "gram"], how="semi")
            .group_by("row", "problem")
            .agg(shared=pl.len())
            .join(self.sizes, on="problem")
            .with_columns(share=pl.col("shared") / pl.col("size"))
            .filter(pl.col("share") >= self.options.overlap)
            .sort("row", -pl.col("share"), "problem")
            .unique("row", keep="first", maintain_order=True)
        )
        return {
            row: f"{share:.0%} of the {self.options.ngram_words}-grams of evaluation problem {self.ids[problem]}"
            for row, problem, share in shares.select("row", "problem", "share").iter_rows()
        }


def _numbers(texts: pl.DataFrame, name: str) -> pl.DataFrame:
    """(`name`, number): the different numbers of every text, given (`name`, text)."""
    table = texts.select(name, number=numbers(texts["text"]))
    return table.explode("number", empty_as_null=False).unique(maintain_order=True)
