"""What runs have logged, and more files for them."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.params import Tracking
from pipeline.tracking.store import explained, opened, store_file

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Recorded:
    """What a run has logged so far."""

    run_id: str
    stage: str
    params: Mapping[str, str]  # section.key → text
    steps: tuple[tuple[int, Mapping[str, float]], ...]  # step and the figures noted together, in the order of noting:
    # a step comes again where a run went on from a checkpoint before it


def read_run(options: Tracking, root: Path, run: str) -> Recorded:
    """Read a run's figures over steps, without MLflow's own and the final ones. It may still be going on.

    `run` is a stage, of which the newest run is taken, or a run's id or how it begins. Raises InputError where there is
    none, the beginning fits several or there is no store, ConnectionError where that refuses.
    """
    if options.uri is None and not store_file(root).is_file():
        raise InputError(f"{run}: no run: nothing has run in {root} yet")
    client, experiment = opened(options, root)
    rows: dict[tuple[int, int], dict[str, float]] = {}
    with explained(options, root):
        found = client.get_run(_run_id(client, experiment, run))
        for name in found.data.metrics:
            if name.startswith(("system/", "final/")):
                continue
            for metric in client.get_metric_history(found.info.run_id, name):
                # MLflow keeps an infinite value as the largest finite one.
                infinite = abs(metric.value) >= sys.float_info.max
                value = math.copysign(math.inf, metric.value) if infinite else metric.value
                rows.setdefault((metric.timestamp, metric.step), {})[name] = value
    steps = tuple((step, figures) for (_, step), figures in sorted(rows.items(), key=lambda row: row[0]))
    return Recorded(found.info.run_id, found.data.tags.get("stage", found.info.run_name), found.data.params, steps)


def keep_file(options: Tracking, root: Path, run_id: str, file: Path) -> None:
    """Keep a file among a run's artifacts, in place of one of the same name.

    Raises InputError without a store, ConnectionError where that refuses.
    """
    client, _ = opened(options, root)
    with explained(options, root):
        client.log_artifact(run_id, file)


def _run_id(client: "MlflowClient", experiment: str, run: str) -> str:
    """The id of the run that a person means."""
    if not re.fullmatch(r"[\w@-]+", run, re.ASCII):
        raise InputError(f"{run!r}: must be a stage or the beginning of a run's id")
    newest = client.search_runs([experiment], f"tags.stage = '{run}'", max_results=1, order_by=["start_time DESC"])
    if newest:
        return newest[0].info.run_id
    begun = client.search_runs([experiment], f"attributes.run_id LIKE '{run}%'", max_results=2) if run.isalnum() else []
    if len(begun) == 1:
        return begun[0].info.run_id
    if begun:
        raise InputError(f"{run}: several runs begin so; give more of the id")
    stages = sorted({known.data.tags.get("stage", "") for known in client.search_runs([experiment])} - {""})
    raise InputError(
        f"{run}: no run; give the beginning of a run's id or one of {', '.join(stages) or 'no stages yet'}"
    )
