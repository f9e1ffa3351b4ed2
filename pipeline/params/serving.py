"""What the server takes on and when it refuses. Not part of any stage's identity."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params.section import Count, Name, NonNegative, Positive, Section, Share


class Follow(Section):
    """How `r1flow serve` without --model follows the champion, and what a version must show before it answers."""

    release: Name = "general_rl"  # whose champion: of the registered model REGISTRY-RELEASE (section deployment)
    every_seconds: Positive = 2.0  # between two looks at the alias
    trial_seconds: Positive = 300.0  # for everything from the download to the switch; then the version is refused
    smoke: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = ["47+85=?"]  # must get answers
    problems: Annotated[int, Field(ge=0)] = 100  # held-out ones that the version and the champion answer; 0: none
    fall: Share = 0.1  # how far the version's share of right answers may lie below the champion's
    shadow: Share = 0.2  # of live requests that the version answers as well; what it says is thrown away
    shadow_seconds: NonNegative = 3.0  # for which it does
    watch_seconds: NonNegative = 300.0  # after the switch, in which it is rolled back where it goes over a bound:
    errors: Share = 0.05  # of requests that may fail, shadowed or answered
    latency_seconds: Positive = 60.0  # that 95 of 100 requests may take at most, from the prompt to the last token
    requests: Count = 10  # answered before the watch judges
    # Of the record of promotions: a folder in the project or s3://bucket/prefix, for all servers of a registry one.
    # None: ledger/ in machine.store, or runs/ledger where there is none
    ledger: Annotated[str, Field(min_length=1)] | None = None


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
    follow: Follow = Follow()
