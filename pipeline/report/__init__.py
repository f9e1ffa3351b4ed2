"""The page of a project: runs/report.html, one file that opens anywhere and asks no network for anything.

It shows what is there, a part of the recipe too. All of its facts come from files that the stages and their attempts
have written (metrics.json, samples.parquet, runs/*/state.json, cost.json, dvc.lock) and from the tracking store.
"""
