"""Comparisons that are no part of the recipe: what a study asks, what its arms did and cost, and how they compare."""
