"""What OpenAI's own client gets, and that its usage is right."""

import json
from collections.abc import Iterator

import httpx
import openai
import pytest
from openai import OpenAI

from pipeline.model.tokenizer import load_tokenizer
from tests.unit.serving.toys import QUESTION, Server, until

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with server.client() as client:
        yield client


def test_models(client: OpenAI, server: Server) -> None:
    [model] = client.models.list()
    assert model.id == server.name
    assert client.models.retrieve(server.name).id == server.name
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_chat_and_stream_say_the_same(client: OpenAI, server: Server) -> None:
    asked = {"model": server.name, "messages": QUESTION, "seed": 3, "max_tokens": 50}
    whole = client.chat.completions.create(**asked)
    stream = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    said = "".join(delta.content or "" for delta in deltas)
    thought = "".join(delta.model_extra.get("reasoning") or "" for delta in deltas)
    message = whole.choices[0].message
    assert said == message.content
    assert thought == (message.model_extra["reasoning"] or "")
    assert message.model_extra["reasoning"] == message.model_extra["reasoning_content"]
    assert [c.choices[0].finish_reason for c in stream if c.choices][-1] == whole.choices[0].finish_reason
    assert stream[-1].usage == whole.usage
    assert deltas[0].role == "assistant"
    assert client.chat.completions.create(**asked | {"seed": 4}).choices[0].message != message


def test_usage_counts_what_went_in_and_out(client: OpenAI, server: Server) -> None:
    done = client.chat.completions.create(
        model=server.name, messages=QUESTION, temperature=0, max_completion_tokens=7, n=3
    )
    assert done.usage.prompt_tokens == len("47+85=?") + 3  # <bos><|user|>…<|assistant|>, one token per character
    assert [choice.finish_reason for choice in done.choices] == ["length"] * 3
    assert done.usage.completion_tokens == 21
    assert done.usage.total_tokens == 31
    assert len({choice.message.content for choice in done.choices}) == 1  # greedy


def test_stop_cuts_before_it(client: OpenAI, server: Server) -> None:
    asked = {"model": server.name, "prompt": "1+1=", "max_tokens": 60}
    texts = ((seed, client.completions.create(**asked, seed=seed).choices[0].text) for seed in range(20))
    asked["seed"], text = next((seed, text) for seed, text in texts if len(text) > 30)
    stop = text[20:22]
    cut = client.completions.create(**asked, stop=[stop])
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    stream = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == cut.choices[0].text


def test_prompts_as_texts_and_as_tokens(client: OpenAI, server: Server, model: object) -> None:
    asked = {"model": server.name, "temperature": 0, "max_tokens": 12}
    texts = ["1+1=", "2+3="]
    both = client.completions.create(prompt=texts, n=2, **asked)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    tokens = [load_tokenizer(str(model)).encode(text, add_special_tokens=False) for text in texts]
    alone = [client.completions.create(prompt=prompt, **asked).choices[0].text for prompt in tokens]
    assert [choice.text for choice in both.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert both.usage.prompt_tokens == 8


def test_log_probabilities_are_those_of_the_text(client: OpenAI, server: Server) -> None:
    asked = {"model": server.name, "temperature": 0, "max_tokens": 20}
    [plain] = client.completions.create(prompt="1+1=", logprobs=3, **asked).choices
    assert "".join(plain.logprobs.tokens) == plain.text
    for token, own, top in zip(
        plain.logprobs.tokens, plain.logprobs.token_logprobs, plain.logprobs.top_logprobs, strict=True
    ):
        assert own == max(top.values()) == top[token]
        assert len(top) == 3
    assert plain.logprobs.text_offset[0] == 0
    [told] = client.chat.completions.create(messages=QUESTION, logprobs=True, top_logprobs=2, **asked).choices
    assert "".join(token.token for token in told.logprobs.content) == told.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob < 0 for token in told.logprobs.content)


def test_a_budget_of_thinking_is_kept(client: OpenAI, server: Server) -> None:
    asked = {"model": server.name, "messages": QUESTION, "seed": 1, "max_tokens": 40}
    none = client.chat.completions.create(**asked, n=2, extra_body={"reasoning_budget": 0})
    assert all(choice.message.model_extra["reasoning"] is None for choice in none.choices)
    assert all(choice.message.content for choice in none.choices)
    assert none.usage.completion_tokens <= 80
    assert none.usage.completion_tokens_details.reasoning_tokens == 6  # <think></think><answer>, twice


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"max_completion_tokens": 10**6}, openai.BadRequestError, "max_completion_tokens"),
        ({"extra_body": {"top_k": -2}}, openai.BadRequestError, "top_k"),
        ({"n": 9}, openai.BadRequestError, "n"),
        ({"extra_body": {"tools": [{"type": "function"}]}}, openai.BadRequestError, "tools"),
        ({"presence_penalty": 0.5}, openai.BadRequestError, "presence_penalty"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs"),
        ({"extra_body": {"reasoning_budget": 479}}, openai.BadRequestError, "reasoning_budget"),
    ],
)
def test_errors_have_openais_form(
    client: OpenAI, server: Server, body: dict[str, object], kind: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(kind) as refused:
        client.chat.completions.create(**{"model": server.name, "messages": QUESTION} | body)
    assert refused.value.param == param
    assert param in refused.value.message


def test_a_top_k_of_other_servers_that_is_off_cuts_nothing(server: Server) -> None:
    asked = {"seed": 5, "max_tokens": 30, "top_p": 1.0}
    free = server.chat(**asked).json()["choices"]
    for off in (0, -1):
        assert server.chat(**asked, top_k=off).json()["choices"] == free
    assert server.chat(**asked, top_k=1).json()["choices"] != free


@pytest.mark.parametrize("temperature", [1e-7, 1e-36, 1e-39, 1e-300])
def test_a_temperature_next_to_nothing_takes_the_likeliest_tokens(server: Server, temperature: float) -> None:
    greedy = server.chat(temperature=0, max_tokens=20).json()["choices"]
    for top_p in (0.95, 1.0):
        assert server.chat(temperature=temperature, top_p=top_p, max_tokens=20).json()["choices"] == greedy


def test_a_head_is_what_a_get_would_be_without_its_body(server: Server) -> None:
    for path in ("/health/live", "/health/ready", "/v1/models"):
        answer = httpx.head(server.address + path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == httpx.get(server.address + path).headers["content-length"]
    assert httpx.head(server.address + "/v1/completions").status_code == 405


def test_another_method_is_told_which_one_would_do(server: Server) -> None:
    for path, method in (("/v1/completions", "POST"), ("/health/live", "GET")):
        answer = httpx.request("PUT", server.address + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, method)
        assert answer.json()["error"]["message"].startswith(f"PUT {path}")


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_of_another_type_is_told_the_type(server: Server, headers: dict[str, str]) -> None:
    body = json.dumps({"model": server.name, "messages": QUESTION}).encode()
    answer = httpx.post(f"{server.address}/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Content-Type: must be application/json"


def test_metrics_count_what_was_done(server: Server) -> None:
    before = {name: server.metric(f"r1flow_{name}_tokens_total") for name in ("prompt", "completion")}
    usage = server.chat(max_tokens=9, temperature=0).json()["usage"]
    for name, tokens in before.items():
        assert server.metric(f"r1flow_{name}_tokens_total") - tokens == usage[f"{name}_tokens"]
    assert server.metric("r1flow_time_to_first_token_seconds_count") > 0
    assert 0 < server.metric("r1flow_activated_share") < 1
    assert server.metric("r1flow_ready") == 1
    until(lambda: server.metric("r1flow_expert_tokens") > 0)


def test_a_client_that_goes_stops_the_generation(server: Server) -> None:
    gone = server.metric("r1flow_requests_abandoned_total")
    # Greedily, which writes up to the limit: what is sampled may have ended before.
    body = {"model": server.name, "messages": QUESTION, "temperature": 0, "max_tokens": 480, "n": 8, "stream": True}
    with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body) as stream:
        next(stream.iter_lines())
    until(lambda: server.metric("r1flow_requests_abandoned_total") == gone + 1)
    assert server.metric("r1flow_samples_running") == server.metric("r1flow_samples_waiting") == 0


def test_the_page_names_the_model_and_loads_nothing_from_elsewhere(server: Server) -> None:
    page = httpx.get(server.address)
    assert f"<h1>{server.name}</h1>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text.replace("http-equiv", "")


def test_events_are_json_and_end_with_done(server: Server) -> None:
    lines = [line for line in server.chat(stream=True, max_tokens=5).text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "chat.completion.chunk" for line in lines[:-1])
