"""The version of every verifier, which goes into samples and metrics.

A version rises by one when a verifier judges any case differently than before; a test ties it to the judgements of the
golden suite.
"""

_VERSIONS = {
    "exact": 2,
    "numeric": 3,
    "math": 3,
    "code": 2,
    "format": 1,
    "language": 1,
    "length": 1,
    "repetition": 1,
}


def verifier_versions() -> dict[str, int]:
    """Version by verifier and by part of the rule reward."""
    return dict(_VERSIONS)
