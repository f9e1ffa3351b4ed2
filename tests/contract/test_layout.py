"""Which way imports point, and one name for each stage everywhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest

from pipeline.job import DAG_FILE, read_yaml
from pipeline.params import Params

ROOT = Path(__file__).parents[2]
PLOTS: list[dict[str, Any]] = read_yaml(ROOT / DAG_FILE)["plots"]
WRITTEN: dict[str, dict[str, Any]] = read_yaml(ROOT / DAG_FILE)["stages"]
STAGES = {stage: definition.get("do", definition) for stage, definition in WRITTEN.items()}
# Params that belong to no stage.
COMMON = {"seed", "held_out", "distributed", "tracking", "operation", "machine", "workers"}
READ = {"pipeline/chat.py": "pipeline/chat_template.jinja"}  # files outside packages that a module reads


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("pipeline", cache_dir=None)


def _modules(stage: str, graph: grimp.ImportGraph) -> set[str]:
    """A stage's module and everything of ours that it imports, also indirectly."""
    module = f"pipeline.stages.{stage}"
    return {module, *graph.find_upstream_modules(module)} - {"pipeline"}


def _file(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _dependency(module: str) -> str:
    """What dvc.yaml names for a module: its package's folder, or the file of a module in no package or of a stage."""
    _, part, *rest = module.split(".")
    if part == "stages":
        return f"pipeline/stages/{rest[0]}.py"
    return f"pipeline/{part}" if (ROOT / "pipeline" / part).is_dir() else f"pipeline/{part}.py"


def _inputs(stage: str) -> set[str]:
    """Artifacts that a stage's module asks for by literal names: `job.input("curation", "problems.parquet")`."""
    inputs = set()
    for node in ast.walk(ast.parse(_file(f"pipeline.stages.{stage}").read_text(encoding="utf-8"))):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="input"), args=[ast.Constant(value=str(writer)), ast.Constant(value=str(name))]
            ):
                inputs.add(f"artifacts/{writer}/{name}")
    return inputs


def test_imports_point_the_right_way() -> None:
    # In a process of its own: the linter sets logging up and switches all loggers off that are there already.
    program = (
        "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_stage_has_one_name_everywhere() -> None:
    modules = {path.stem for path in (ROOT / "pipeline" / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGES)
    assert set(Params.model_fields) - COMMON == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_by_its_name_and_writes_to_its_folder(stage: str) -> None:
    definition, repeated = STAGES[stage], "foreach" in WRITTEN[stage]
    assert definition["cmd"] == f"python -m pipeline {stage}" + ("@${key}" if repeated else "")
    plots = [next(iter(plot)) for plot in definition.get("plots", [])]
    outputs = [*definition.get("outs", []), *definition.get("metrics", []), *plots]
    assert outputs
    folder = f"artifacts/{stage}/" + ("${key}/" if repeated else "")
    assert all(f"{output}/".startswith(folder) for output in outputs)


def test_plots_draw_columns_of_outputs_with_templates_that_are_there() -> None:
    outputs = {output for definition in STAGES.values() for output in definition["outs"]}
    names = [name for plot in PLOTS for name in plot]
    assert len(names) == len(set(names)) > 0
    for plot in PLOTS:
        [definition] = plot.values()
        # An output is the file itself, or a folder whose name params do not fix the content of.
        assert all({file, str(Path(file).parent)} & outputs for file in definition["y"])
        template = definition.get("template", "linear")
        assert template == "linear" or (ROOT / ".dvc" / "plots" / f"{template}.json").is_file()


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_the_code_that_a_stage_imports(stage: str, graph: grimp.ImportGraph) -> None:
    imported = {_dependency(module) for module in _modules(stage, graph)}
    imported |= {file for module, file in READ.items() if module in imported}
    named = {dependency for dependency in STAGES[stage]["deps"] if not dependency.startswith("artifacts/")}
    assert named == imported, "deps ought to be:\n" + "\n".join(f"      - {name}" for name in sorted(imported))


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_the_artifacts_that_a_stage_reads(stage: str) -> None:
    named = {dependency for dependency in STAGES[stage]["deps"] if dependency.startswith("artifacts/")}
    assert _inputs(stage) <= named
    outputs = {output for definition in STAGES.values() for output in definition["outs"]}
    folders = {parent.as_posix() for output in outputs for parent in Path(output).parents[:-2]}  # below artifacts/
    assert named <= outputs | folders


@pytest.mark.parametrize("stage", STAGES)
def test_params_name_the_sections_that_a_stage_reads(stage: str, graph: grimp.ImportGraph) -> None:
    sections = "|".join(set(Params.model_fields) - {"tracking", "operation", "machine", "workers"})
    read = {
        section
        for module in _modules(stage, graph)
        for section in re.findall(rf"\bparams\.({sections})\b", _file(module).read_text(encoding="utf-8"))
    }
    assert {name.partition(".")[0] for name in STAGES[stage]["params"]} == read


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").glob("*/*.py")), ids=lambda path: path.stem)
def test_what_works_for_a_job_tells_its_meter(path: Path) -> None:
    """A loop that is given a job's log is given its meter as well: else a stage's work would go uncounted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if "job.log" in given.get("log", ""):
                assert "job.meter" in given.get("meter", ""), f"{path}:{node.lineno}: pass meter=job.meter"
