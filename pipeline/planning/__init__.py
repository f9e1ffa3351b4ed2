"""Which release, served how, suits this machine: each is measured here, and the cheapest that meets the target chosen.

A plan belongs to a machine, so it lies under runs/ and in the tracking store, not among the artifacts.
"""
