"""The stages and their order, as DVC reads them from dvc.yaml (matrix and foreach stages expanded)."""

from dataclasses import dataclass
from pathlib import Path

import networkx
from dvc.exceptions import DvcException
from dvc.repo import Repo

from pipeline.errors import InputError
from pipeline.job import DAG_FILE, MEMBER


@dataclass(frozen=True)
class Dag:
    """`order`: every stage after the stages it needs, otherwise as dvc.yaml lists them."""

    order: tuple[str, ...]
    needs: dict[str, frozenset[str]]  # stage → all stages that it depends on, directly or not

    def until(self, stage: str | None) -> tuple[str, ...]:
        """The stages that lead to `stage`, and it; all of them for None. A group stands for all its members.

        Raises InputError for an unknown stage.
        """
        if stage is None:
            return self.order
        wanted = {name for name in self.order if stage in (name, name.partition(MEMBER)[0])}
        if not wanted:
            raise InputError(f"{DAG_FILE}: no stage {stage!r}; there are {', '.join(self.order)}")
        needed = wanted.union(*(self.needs[name] for name in wanted))
        return tuple(name for name in self.order if name in needed)


def read_dag(root: Path) -> Dag:
    """The DAG of the project at `root`. Raises InputError where DVC refuses it."""
    # The project's own config names this folder too, but relative to wherever the caller stands.
    inside = {"core": {"site_cache_dir": str(root / ".dvc" / "tmp" / "site")}}
    try:
        with Repo(str(root), config=inside) as repo:
            graph = repo.index.graph  # edges from a stage to what it needs
    except DvcException as error:
        raise InputError(f"{root / DAG_FILE}: {error}") from error
    listed = [stage.name for stage in graph if stage.path_in_repo == DAG_FILE]
    edges = [(needed.name, stage.name) for stage, needed in graph.edges if needed.path_in_repo == DAG_FILE]
    names = networkx.DiGraph(edges)
    names.add_nodes_from(listed)
    order = networkx.lexicographical_topological_sort(names, key=listed.index)
    return Dag(tuple(order), {name: frozenset(networkx.ancestors(names, name)) for name in listed})
