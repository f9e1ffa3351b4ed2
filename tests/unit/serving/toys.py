"""A tiny random model with experts, and a server of it as a user starts it."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from openai import OpenAI

from pipeline import chat
from pipeline.model.checkpoint import save_model
from pipeline.model.config import ModelConfig
from pipeline.model.decoder import Decoder
from pipeline.model.tokenizer import character_tokenizer, save_tokenizer
from tests.project import PARAMS

SPARSE = {
    "model_type": "deepseek_v3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.3,  # so that models of other seeds say other things
}
ROOT = Path(__file__).parents[3]
R1FLOW = [sys.executable, "-c", "from pipeline.cli import main; main()"]
START_SECONDS = 60.0
QUESTION = [{"role": "user", "content": "47+85=?"}]


def write_model(folder: Path, seed: int = 0, **changed: Any) -> Path:
    """A folder with a checkpoint, tokenizer and chat template; `changed` in SPARSE."""
    tokenizer = character_tokenizer(chat.CHAT_TEMPLATE)
    decoder = Decoder(ModelConfig.from_hf({**SPARSE, **changed, "vocab_size": len(tokenizer)}))
    decoder.init_weights(seed)
    save_model(decoder, folder)
    save_tokenizer(tokenizer, folder)
    return folder


class Server:
    """`r1flow serve` in a process of its own, on a port that was free; `limits` as params.machine.serving."""

    def __init__(self, model: Path, home: Path, *arguments: str, ready: bool = True, **limits: Any) -> None:
        home.mkdir(parents=True, exist_ok=True)
        written = PARAMS.replace("machine: {retries: 1}", f"machine: {{serving: {json.dumps(limits)}}}")
        (home / "params.yaml").write_text(written)
        self.name = model.name
        self.log = (home / "log").open("w+")
        self.process = subprocess.Popen(
            [*R1FLOW, "serve", "--model", str(model), "--port", "0", *arguments],
            cwd=home,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(home)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.address = self._find(r"health at (http://\S+)/health/ready")
        self.port = int(self.address.rpartition(":")[2])
        if ready:
            self._find("answers at")

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.stop()
        self.log.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def _find(self, pattern: str) -> str:
        """What the server's output says, once it does."""
        until = time.monotonic() + START_SECONDS
        while (found := re.search(pattern, self.output())) is None:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < until, self.output()
            time.sleep(0.02)
        return found[1] if found.groups() else found[0]

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=30)

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return httpx.post(self.address + path, json={"model": self.name} | body, timeout=30)

    def chat(self, **body: Any) -> httpx.Response:
        return self.post(**({"messages": QUESTION} | body))

    def ready(self) -> bool:
        return httpx.get(f"{self.address}/health/ready", timeout=5).status_code == 200

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.address}/metrics", timeout=5).text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.M))

    def engine(self) -> int:
        """The process id of the engine."""
        [only] = self.engines()
        return only

    def engines(self) -> list[int]:
        """The process ids of all engines, loaded or loading."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in children.read_text().split()]

    def raw(self, data: bytes, *, seconds: float = 10.0, half_close: bool = False) -> bytes:
        """What comes back for these bytes until the server closes, or nothing comes for `seconds`."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            answer = b""
            try:
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(2**16):
                    answer += part
            except (TimeoutError, ConnectionResetError, BrokenPipeError):
                pass
            return answer


def until(true: Any, seconds: float = 20.0) -> float:
    """Wait until a call gives something true; how long that took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds
        time.sleep(0.02)
    return time.monotonic() - start
