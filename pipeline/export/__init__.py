"""A release for other servers: the command, script or manifest that serves it in vLLM, llama.cpp or KServe.

Nothing is converted here and no weight is copied. What a target does not read is refused, with the reason.
docs/release.md says which of it was tried with which version.
"""
