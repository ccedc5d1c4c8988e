"""The deterministic model server speaks OpenAI's protocol, to raw HTTP clients and to litellm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from bench import fake_llm
from bench.fake_llm import API_KEY
from tests.helpers.sizes import ONLY_LONG

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 3},
                "x": {},
            },
            "required": ["city", "days"],
        },
    },
}
LITELLM = """
import json, os, sys
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

def ask(model, text="Hello there, world", **more):
    return litellm.completion(
        model="openai/" + model, api_base=sys.argv[1], api_key=sys.argv[2],\
 max_retries=0, num_retries=0,
        messages=more.pop("messages", [{"role": "user", "content": text}]), **more)

def failure(**more):
    try:
        return ask(**more).choices[0].message.content
    except Exception as exc:
        return [type(exc).__name__, getattr(exc, "status_code", None)]

tool = json.loads(sys.argv[3])
answered = ask("echo")
pieces = list(ask("echo", stream=True, stream_options={"include_usage": True}))
rebuilt = litellm.stream_chunk_builder(list(ask("tool", tools=[tool], stream=True)))
called = ask("tool", tools=[tool]).choices[0]
result = {"role": "tool", "tool_call_id": called.message.tool_calls[0].id, "content": "rain"}
after = ask("tool", tools=[tool],\
 messages=[{"role": "user", "content": "?"}, called.message.model_dump(), result])
print(json.dumps({
    "text": answered.choices[0].message.content,
    "usage": [answered.usage.prompt_tokens, answered.usage.completion_tokens],
    "streamed": [choice.delta.content\
 for piece in pieces for choice in piece.choices if choice.delta.content],
    "streamed usage": [piece.usage.total_tokens\
 for piece in pieces if getattr(piece, "usage", None)],
    "call": [called.finish_reason, called.message.tool_calls[0].function.name,
             json.loads(called.message.tool_calls[0].function.arguments)],
    "streamed call": [call.function.arguments for call in rebuilt.choices[0].message.tool_calls],
    "after the call": after.choices[0].message.content,
    "busy": failure(model="echo", text="busy"),
    "broken": failure(model="echo", text="broken"),
    "slow": failure(model="echo", text="slow", timeout=0.5),
    "no such model": failure(model="nobody"),
    "then": ask("echo", "busy").choices[0].message.content,
}))
"""


@pytest.fixture(scope="module")
def model() -> Iterator[fake_llm.ModelServer]:
    with fake_llm.start_model_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _unscripted(model: fake_llm.ModelServer) -> None:
    model.set_script()


def post(
    model: fake_llm.ModelServer, text: object = "Hello", name: str = "echo", **more: Any
) -> httpx2.Response:
    body = {"model": name, "messages": [{"role": "user", "content": text}], **more}
    return httpx2.post(
        f"{model.url}/chat/completions", json=body, headers={"authorization": f"Bearer {API_KEY}"}
    )


def said(answer: httpx2.Response) -> Any:
    return answer.json()["choices"][0]["message"]["content"]


def chunks_of(answer: httpx2.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def test_an_answer_has_text_reason_and_usage(model: fake_llm.ModelServer) -> None:
    answer = post(model, "x" * 9).json()
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (
        said(post(model, [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]))
        == "in parts"
    )
    cut = post(model, "x" * 9, max_tokens=2)
    assert (said(cut), cut.json()["choices"][0]["finish_reason"]) == ("x" * 8, "length")
    assert model.read_counts() == {"most at once": 1, "calls": 3, "tokens in": 8, "tokens out": 7}


def test_a_stream_has_the_same_in_pieces_and_usage_only_on_request(
    model: fake_llm.ModelServer,
) -> None:
    text = "a text of more than one piece"
    *pieces, last, done = chunks_of(post(model, text, stream=True))
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == text
    assert (last["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")
    *_, usage, done = chunks_of(
        post(model, text, stream=True, stream_options={"include_usage": True})
    )
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 16)
    model.set_script({"fault": "cut"})
    *_, end = chunks_of(post(model, text, stream=True))
    assert end["choices"][0]["finish_reason"] is None


def test_faults_come_as_scripted_and_pass(model: fake_llm.ModelServer) -> None:
    model.set_script(
        {"match": "busy", "fault": "429", "retry_after": 7, "times": 2},
        {"match": "busy", "fault": "malformed"},
    )
    assert [post(model, "busy").status_code for _ in range(2)] == [429, 429]
    with pytest.raises(ValueError, match="Expecting value"):
        post(model, "busy").json()
    assert said(post(model, "busy")) == "busy"
    assert model.read_counts()["fault 429"] == 2
    model.set_script(
        {"fault": "cut"}, {"fault": "empty"}, {"reply": {"not": "text"}, "latency_s": 0.01}
    )
    with pytest.raises(httpx2.RemoteProtocolError):
        post(model)
    assert post(model).json()["choices"] == []
    assert said(post(model)) == '{"not": "text"}'


def test_a_model_that_never_answers_is_left_and_then_answers_others(
    model: fake_llm.ModelServer,
) -> None:
    model.set_script({"fault": "timeout"})
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(
            f"{model.url}/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {API_KEY}"},
            timeout=0.2,
        )
    assert said(post(model)) == "Hello"
    assert model.read_counts()["gave up"] == 1


def test_answers_may_be_slow_huge_or_elsewhere(model: fake_llm.ModelServer) -> None:
    other = model.url.removesuffix("/v1") + "/elsewhere"
    model.set_script(
        {"fault": "slow", "drops": 2, "every_s": 0.01},
        {"fault": "huge", "bytes": 200_000},
        {"fault": "redirect", "to": other},
        {"reply": "x", "usage": {"prompt_tokens": 7}},
    )
    assert post(model).text == "  "
    assert len(said(post(model))) == 3 * 65_536
    assert post(model).headers["location"] == other
    assert post(model).json()["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 1,
        "total_tokens": 8,
    }
    assert httpx2.get(other, headers={"authorization": f"Bearer {API_KEY}"}).status_code == 400
    assert model.read_counts()["key elsewhere"] == 1


def test_what_is_no_request_is_refused_as_openai_does(model: fake_llm.ModelServer) -> None:
    url, headers = f"{model.url}/chat/completions", {"authorization": f"Bearer {API_KEY}"}
    assert httpx2.post(url, json={}).status_code == 401
    for content in (
        "{",
        "[]",
        "{}",
        '{"model": "echo", "messages": []}',
        '{"model": 1, "messages": [{}]}',
    ):
        assert httpx2.post(url, content=content, headers=headers).status_code == 400, content
    for name in ("nobody", "forgetful", "forgetful:some:echo", "forgetful:9:nobody"):
        unknown = post(model, name=name)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    wrong: tuple[dict[str, Any], ...] = (
        {"tools": [{}]},
        {"max_tokens": "many"},
        {"response_format": "json"},
    )
    for more in wrong:
        assert post(model, name="tool" if "tools" in more else "echo", **more).status_code == 400, (
            more
        )
    assert "reader" in [each["id"] for each in httpx2.get(f"{model.url}/models").json()["data"]]


def test_tool_calls_come_by_script_too(model: fake_llm.ModelServer) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    model.set_script({"tool_calls": calls})
    choice = post(model).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["tool_calls"]) == ("tool_calls", calls)


@ONLY_LONG  # tests of the suites do tasks through litellm
def test_litellm_takes_it_for_a_provider(model: fake_llm.ModelServer) -> None:
    model.set_script(
        {"match": "busy", "fault": "429"},
        {"match": "broken", "fault": "malformed"},
        {"match": "slow", "fault": "timeout"},
    )
    command = [sys.executable, "-W", "ignore", "-c", LITELLM, model.url, API_KEY, json.dumps(TOOL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    text = "Hello there, world"
    assert (told["text"], told["usage"]) == (text, [5, 5])
    assert len(told["streamed"]) > 1
    assert "".join(told["streamed"]) == text
    assert told["streamed usage"] == [10]
    assert told["call"] == ["tool_calls", "weather", {"city": "", "days": 3}]
    assert list(map(json.loads, told["streamed call"])) == [{"city": "", "days": 3}]
    assert told["after the call"] == "rain"
    assert told["busy"] == ["RateLimitError", 429]
    assert told["no such model"] == ["NotFoundError", 404]
    assert told["slow"][0] == "Timeout"
    assert told["broken"][0].endswith("Error")
    assert told["then"] == "busy"
