"""What the server takes on and when it refuses. Not part of any stage's identity."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params.section import Count, Positive, Section


class Serving(Section):
    """Limits of `r1flow serve`. A completion is one sample: a request for n = 4 counts as four."""

    slots: Count = 32  # completions that are written at a time
    queue: Annotated[int, Field(ge=0)] = 128  # completions that wait for a slot; beyond that 429, with Retry-After
    max_length: Count = 4_096  # tokens of prompt and completion together; the model's own limit where that is less
    max_tokens: Count = 1_024  # of a completion, its thinking included; what a request without max_tokens gets
    samples: Count = 8  # completions that one request may ask for: n, times its prompts
    body_bytes: Count = 2**20  # of a request
    connections: Count = 512  # open at a time
    requests_per_minute: Count | None = None  # of one API key, or of one address where there are no keys; None: any
    receive_seconds: Positive = 10.0  # in which a request's header must be here, and then its body
    request_seconds: Positive = 300.0  # for waiting, writing and sending; then the request ends with an error
    drain_seconds: Positive = 30.0  # after SIGTERM, in which running requests may end
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights in memory; on a CPU float32 is the faster one
