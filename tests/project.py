"""A tiny project for tests of the flow: three stages that take no time and behave as a file tells them."""

import json
import subprocess
from pathlib import Path

PARAMS = """\
seed: 1
held_out: 0.1
curation:
  sources:
    - {kind: generated, name: sums, problems: 100, families: {sum: 1.0}}
base: &checkpoint {kind: checkpoint, source: model, digest: "%s"}
cold_start:
  examples: 10
  train: {steps: 1, tokens_per_step: 1, learning_rate: 1e-3}
reasoning_rl:
  train: {steps: 1, prompts: 2, group: 2, max_new_tokens: 4, learning_rate: 1e-3}
rejection_sampling: {problems: 1, samples: 1}
general_sft:
  train: {steps: 1, tokens_per_step: 1, learning_rate: 1e-3}
preference:
  train: {steps: 1, pairs_per_step: 1, learning_rate: 1e-3}
general_rl:
  train: {steps: 1, prompts: 2, group: 2, max_new_tokens: 4, learning_rate: 1e-3}
distillation:
  students:
    little:
      base: *checkpoint
      train: {steps: 1, tokens_per_step: 1, learning_rate: 1e-3}
evaluation: {problems: 1, samples: 1}
deployment: {parity: {problems: 1}}
machine: {retries: 1}
""" % ("0" * 64)

DAG = """\
stages:
  first:
    cmd: python stage.py first
    deps: [stage.py]
    params: [seed]
    outs: [artifacts/first/out]
    metrics: [artifacts/first/metrics.json]
  aside:
    cmd: python stage.py aside
    deps: [stage.py]
    outs: [artifacts/aside/out]
  last:
    cmd: python stage.py last
    deps: [artifacts/first/out]
    params: [evaluation]
    outs: [artifacts/last/out]
"""

STAGE = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path
from pipeline.errors import EXPECTED, GateFailedError, InputError, RunStoppedError, exit_code
from pipeline.files import write_json
from pipeline.job import artifacts
from pipeline.process import die_with_parent, exit_on_signals
from pipeline.state import Attempt

DETACHED = "import time; time.sleep(600)"

PLAYED = Path(os.environ.get("PLAYED", "played"))

def work(stage, root, behaviour):
    with (PLAYED / "calls").open("a") as calls:
        calls.write(stage + "\\n")
    match behaviour:
        case "input":
            raise InputError("data.jsonl: line 3: not JSON")
        case "gate":
            raise GateFailedError("share_quarantined: 0.4 is above 0.2")
        case "sick":
            raise RunStoppedError("step 20: dead reward")
        case "crash":
            raise RuntimeError("out of luck")
        case "crash once" if not (PLAYED / "crashed").exists():
            (PLAYED / "crashed").touch()
            raise RuntimeError("out of luck")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            time.sleep(6)
        case "meet":
            (PLAYED / stage).touch()
            deadline = time.monotonic() + 200
            while not all((PLAYED / other).exists() for other in ("first", "aside")):
                if time.monotonic() > deadline:
                    raise GateFailedError("nobody came")
                time.sleep(0.05)
        case "hang":
            subprocess.Popen([sys.executable, "-c", DETACHED], start_new_session=True)
            (PLAYED / "hangs").touch()
            time.sleep(600)
    out = artifacts(root, stage)
    out.mkdir(parents=True, exist_ok=True)
    (out / "out").write_text(stage)
    if stage == "first":
        write_json(out / "metrics.json", {"right": 0.5, "right_low": 0.4, "right_high": 0.6, "a": 1.0}, sort=False)

def main(stage, root):
    die_with_parent()
    exit_on_signals()
    try:
        with Attempt(root, stage):
            work(stage, root, json.loads((PLAYED / "behaviour.json").read_text()).get(stage))
    except EXPECTED as error:
        return exit_code(error)

sys.exit(main(sys.argv[1], Path.cwd()))
"""


class FlowProject:
    """A git and DVC project with the stages first → last and aside."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, content in {"params.yaml": PARAMS, "dvc.yaml": DAG, "stage.py": STAGE}.items():
            (root / name).write_text(content)
        (root / ".gitignore").write_text("/runs\n/artifacts\n/played\n")
        dvc = root / ".dvc"
        dvc.mkdir()
        (dvc / "config").write_text("[core]\n    analytics = false\n    site_cache_dir = .dvc/tmp/site\n")
        (dvc / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
        (root / "played").mkdir()
        self.behave()
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=start"]):
            subprocess.run([*git, *arguments], cwd=root, check=True)

    def behave(self, **stages: str) -> None:
        """From now on the named stages do this, the others their work."""
        (self.root / "played" / "behaviour.json").write_text(json.dumps(stages))

    def calls(self) -> list[str]:
        """The stages that ran so far, in order."""
        path = self.root / "played" / "calls"
        return path.read_text().split() if path.exists() else []
