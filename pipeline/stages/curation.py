"""curation: sources become problems, worked traces and preference pairs, or end in the quarantine.

The tables take their place among the artifacts only after the quality gates have passed; a set that failed stays under
runs/, to be read. So does what the last accepted set of these sources was like: it is this machine's history, no
function of the inputs. Other sources are another data set, and their difference is no drift.
"""

import shutil
from dataclasses import asdict

import polars as pl

from pipeline.data.curate import curate
from pipeline.data.gates import check
from pipeline.data.measures import TABLES, accepted_file, read_accepted
from pipeline.data.pins import check_pins
from pipeline.data.sources import data_root
from pipeline.errors import GateFailedError
from pipeline.files import atomic_folder, write_json
from pipeline.job import Job
from pipeline.params import Params


def run(params: Params, job: Job) -> dict[str, float]:
    data = data_root(job.root)
    check_pins(params.curation.sources, data)
    candidate, rejected = job.runs / "candidate", job.runs / "rejected"
    accepted = accepted_file(job.runs, params.curation.sources)
    with atomic_folder(candidate) as folder:
        metrics = curate(
            params.curation, seed=params.seed, held_out=params.held_out, root=data, folder=folder
        ).metrics()
    report = check(
        {name: pl.read_parquet(candidate / f"{name}.parquet") for name in TABLES},
        curation=params.curation,
        previous=read_accepted(accepted),
        docs=job.runs / "data_docs",
    )
    job.log(report.drift, 0)
    shutil.rmtree(rejected, ignore_errors=True)
    if report.accepted is None:
        candidate.rename(rejected)
        raise GateFailedError(f"{report}\nthe tables: {rejected}")
    for table in sorted(candidate.iterdir()):
        job.output(table.name).parent.mkdir(parents=True, exist_ok=True)
        table.replace(job.output(table.name))
    write_json(job.output("verdict.json"), report.verdict())
    write_json(accepted, asdict(report.accepted))
    return metrics
