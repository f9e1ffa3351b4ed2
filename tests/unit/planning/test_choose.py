"""The choice among hand-made measures: cheapest of what fits, and what is said where nothing does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.intervals import Interval
from pipeline.params import Target
from pipeline.planning.choose import Candidate, choose, misses, refusal


def candidate(release: str = "one", **values: Any) -> Candidate:
    loss = values.pop("loss", 0.0)
    known: dict[str, Any] = {
        "way": "memory", "kind": "variant", "pass_at_1": Interval(0.8, 0.7, 0.9), "memory": 100.0, "model_memory": 10.0,
        "resident": 120.0, "speed": 1000.0, "speed_alone": 300.0, "first_token": 0.01, "latency": 0.5, "cost": 1.0,
    }  # fmt: skip
    return Candidate(release=release, loss=Interval(loss, loss - 0.1, loss + 0.1), **{**known, **values})


candidates = st.lists(
    st.builds(
        candidate,
        release=st.sampled_from("abcdef"),
        loss=st.sampled_from([-0.02, 0.0, 0.01, 0.02, 0.05]),
        memory=st.sampled_from([50.0, 100.0, 200.0]),
        latency=st.sampled_from([0.1, 0.5, 2.0]),
        cost=st.sampled_from([0.5, 1.0, 2.0]),
    ),
    min_size=1,
    max_size=8,
)
targets = st.builds(
    Target,
    accuracy_loss=st.sampled_from([0.0, 0.01, 0.03]),
    memory=st.sampled_from([None, 60.0, 100.0]),
    latency=st.sampled_from([None, 0.2, 0.5]),
)


def meets(one: Candidate, target: Target) -> bool:
    return (
        one.loss.mean <= target.accuracy_loss
        and (target.memory is None or one.memory <= target.memory)
        and (target.latency is None or one.latency <= target.latency)
    )


@given(candidates, targets)
def test_it_is_the_cheapest_that_meets_every_bound_or_none_does(several: list[Candidate], target: Target) -> None:
    fitting = [one for one in several if meets(one, target)]
    chosen = choose(several, target)
    if not fitting:
        assert chosen is None
        message = refusal(several, target)
        assert message.startswith(f"plan: none of {len(several)} candidates meets deployment.target")
        assert len(message.splitlines()) == 1 + len(several)
    else:
        assert chosen in fitting
        assert (chosen.cost, chosen.memory) == min((one.cost, one.memory) for one in fitting)
    assert all((not misses(one, target)) == meets(one, target) for one in several)


def test_the_message_says_which_bound_failed_by_how_much_the_nearest_first() -> None:
    target = Target(accuracy_loss=0.01, memory=80.0, latency=0.2)
    far = candidate("far", loss=0.05, memory=300.0, latency=1.0)
    near = candidate("near", way="offload", memory=81.5, latency=0.1)
    assert refusal([far, near], target) == (
        "plan: none of 2 candidates meets deployment.target; what each misses, the nearest first:\n"
        "    near (offload): memory 81.5 MiB, 1.5 above 80\n"
        "    far: accuracy_loss 5.0 points, 4.0 above 1; memory 300.0 MiB, 220.0 above 80; "
        "latency 1.000 s, 0.800 above 0.2"
    )


@pytest.mark.parametrize(("bound", "limit", "found"), [("memory", 100.0, 100.0), ("accuracy_loss", 0.1, 0.1)])
def test_what_lies_at_a_bound_keeps_it(bound: str, limit: float, found: float) -> None:
    key = "loss" if bound == "accuracy_loss" else bound
    assert not misses(candidate(**{key: found}), Target.model_validate({bound: limit}))
