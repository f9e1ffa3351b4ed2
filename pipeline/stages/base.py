"""base: the model that everything starts from. Trained here from scratch, or a checkpoint pinned by its digest."""

from pipeline.files import atomic_folder
from pipeline.job import Job
from pipeline.model.checkpoint import save_model
from pipeline.model.tokenizer import save_tokenizer
from pipeline.params import Params
from pipeline.training.curated import read_curated
from pipeline.training.pretraining import obtain


def run(params: Params, job: Job) -> dict[str, float]:
    start = obtain(
        params.base,
        seed=params.seed,
        held_out=params.held_out,
        curated=lambda: read_curated(
            job.input("curation", "problems.parquet"), job.input("curation", "traces.parquet")
        ),
        scratch=job.scratch,
        log=job.log,
        meter=job.meter,
        title="base: pre-training",
        distributed=params.distributed,
    )
    with atomic_folder(job.output("model")) as folder:
        save_model(start.model, folder)
        save_tokenizer(start.tokenizer, folder)
    return {**start.figures, **start.model.size().figures()}
