"""In which order stages begin, wherever each of them runs.

A stage begins when all that it needs is done, in dvc.yaml's order, and up to `at_once` of them at a time. After a
failure none begins any more; those that run come to their end, so that their work is kept.
"""

from collections.abc import Callable, Sequence

from prefect.futures import PrefectFuture, as_completed

from flows.artifacts import Progress
from flows.attempts import StageFailedError
from flows.dag import Dag
from flows.report import Outcome

Begin = Callable[[str, int], PrefectFuture[Outcome]]
"""Called with a stage and how many others run beside it; raises nothing itself."""


def run_in_order(dag: Dag, stages: Sequence[str], outcomes: dict[str, Outcome], begin: Begin, at_once: int) -> None:
    """Run `stages` and note how each came out. Raises the first StageFailedError once nothing runs any more."""
    running: dict[PrefectFuture[Outcome], str] = {}
    failure: BaseException | None = None
    progress = Progress("Stages that are done")
    while True:
        done = {stage for stage, outcome in outcomes.items() if outcome.state in ("ran", "fresh")}
        progress.show(len(done), len(stages))
        ready = [stage for stage in stages if stage not in outcomes and dag.needs[stage] <= done]
        begun = [] if failure else ready[: at_once - len(running)]
        beside = len(running) + len(begun) - 1
        for stage in begun:
            outcomes[stage] = Outcome(stage, "stopped")  # unless it comes to an end
            running[begin(stage, beside)] = stage
        if not running:
            break
        future = next(as_completed(list(running)))
        stage, result = running.pop(future), future.result(raise_on_failure=False)
        if isinstance(result, Outcome):
            outcomes[stage] = result
            continue
        if isinstance(result, StageFailedError):
            outcomes[stage] = result.outcome
        failure = failure or result
    if failure is not None:
        raise failure
