"""The server, through OpenAI's client."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.chats import REPLIES, train_chat_run
from tests.helpers.runs import make_build, train_run
from tests.helpers.servers import serve
from train.model.sampler import Sampler
from train.run.checkpoint import find_checkpoint
from train.run.sampling import open_trained_model, replace_settings

pytestmark = pytest.mark.slow
CONTEXT = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_chat_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    pytest.importorskip("openai")
    with serve(run) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)


def ask(client: Any, message: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": message}]
    return client.chat.completions.create(**{"model": "chat", "messages": messages, "temperature": 0} | options)


def read_text(completion: Any) -> str:
    return "".join(chunk.choices[0].text for chunk in completion)


def test_reply_ends_where_the_turn_does_streamed_or_not(client: Any) -> None:
    for message, reply in REPLIES.items():
        answer = ask(client, message)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (reply, "stop")
        assert answer.model == "chat" and answer.usage.prompt_tokens == len(message) + 3
        chunks = list(ask(client, message, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reply
        assert len(chunks) > len(reply) and chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "text", "reason"),
    [
        ({"max_tokens": 8}, "the fox", "stop"),  # the last token ends the turn
        ({"max_tokens": 7}, "the fox", "length"),
        ({"max_tokens": 5, "stop": "f"}, "the ", "stop"),
    ],
)
def test_reason_is_right_for_the_last_token_that_is_allowed(
    client: Any, options: dict[str, Any], text: str, reason: str
) -> None:
    answer = ask(client, "what jumps", **options).choices[0]
    assert (answer.message.content, answer.finish_reason) == (text, reason)
    chunks = [chunk.choices[0] for chunk in ask(client, "what jumps", stream=True, **options)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == text and chunks[-1].finish_reason == reason


def test_conversation_with_earlier_turns_is_answered(client: Any) -> None:
    first, second = REPLIES
    messages = [
        {"role": "user", "content": first}, {"role": "assistant", "content": REPLIES[first]},
        {"role": "user", "content": [{"type": "text", "text": second}]},
    ]  # fmt: skip
    assert ask(client, "", messages=messages).usage.prompt_tokens > len(first) + len(second) + len(REPLIES[first])


def complete_with_folio(run: Path, prompt: str, num_tokens: int) -> str:
    checkpoint = find_checkpoint(run, pytest.fail)
    options = {"temperature": 0.0, "completion_tokens": num_tokens, "completion_prompt": prompt, "device": "cpu"}
    trained = open_trained_model(checkpoint, replace_settings(checkpoint.info.config, options))
    _, *texts = Sampler(trained.model, trained.folder, trained.manifest, config=trained.config).stream()
    return "".join(texts)


def test_model_with_a_token_shift_is_served_without_code_from_its_folder(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from train.serving.loaded_model import LoadedModel
    from train.serving.served_model import export_run, open_exported_folder

    make_build(tmp_path / "tiny")
    run = train_run(tmp_path, "shifted", arch="modern", token_shift=True, max_steps=2, warmup_steps=0)
    folder = export_run(find_checkpoint(run, pytest.fail)).folder
    (folder / "modeling_folio.py").write_text("raise SystemExit('code of the folder')")
    loaded = LoadedModel(open_exported_folder(folder), torch.device("cpu"))
    ids = loaded.tokenizer("the ", return_tensors="pt").input_ids
    text = loaded.tokenizer.decode(loaded.model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :])
    assert text == complete_with_folio(run, "the ", 8)


@pytest.mark.parametrize("prompt", ["what ju", "the ", ""])
def test_greedy_completion_is_that_of_folio_sample(client: Any, run: Path, prompt: str) -> None:
    expected = complete_with_folio(run, prompt, 12)
    options = {"model": "chat", "prompt": prompt, "temperature": 0, "max_tokens": 12}
    assert client.completions.create(**options).choices[0].text == expected
    assert read_text(client.completions.create(**options, stream=True)) == expected


def test_completion_ends_before_a_stop_text_and_at_the_end_of_the_context(client: Any) -> None:
    def complete(seed: int, **options: Any) -> Any:
        return client.completions.create(model="chat", prompt="what jum", temperature=2, seed=seed, **options)

    wholes = [complete(seed, max_tokens=1000) for seed in range(8)]
    assert {whole.usage.total_tokens <= CONTEXT for whole in wholes} == {True}
    seed, text = max(enumerate(whole.choices[0].text for whole in wholes), key=lambda pair: len(pair[1]))
    assert len(text) > 8 and text == complete(seed).choices[0].text, "equal seeds give equal texts"
    stop = text[4:7]
    expected = text[: text.index(stop)]
    assert complete(seed, stop=stop).choices[0].text == expected
    assert read_text(complete(seed, stop=[stop, "never"], stream=True)) == expected


def test_equal_seeds_give_equal_texts_while_other_requests_wait(client: Any) -> None:
    def complete(seed: int) -> str:
        answer = client.completions.create(model="chat", prompt="what jum", temperature=2, seed=seed)
        return str(answer.choices[0].text)

    expected = [complete(seed) for seed in range(4)]
    assert len(set(expected)) > 1
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(complete, [*range(4)] * 3)) == expected * 3


def test_temperature_of_the_request_and_of_the_run_draw_texts(client: Any) -> None:
    texts = {client.completions.create(model="chat", prompt="t", temperature=2).choices[0].text for _ in range(4)}
    assert len(texts) > 1
    assert client.completions.create(model="chat", prompt="what jum").choices[0].text  # the temperature of the run


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["chat"]
    assert client.models.retrieve("chat").id == "chat"


BAD_CHATS: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "other"}, 404, "there is no model 'other'; this server has 'chat'"),
    ({"messages": "Hi"}, 400, "messages must be a list of messages"),
    ({"messages": [{"role": "king", "content": "hi"}]}, 400, "with the role 'king'"),
    ({"messages": [{"role": "user", "content": "WHAT?"}]}, 400, "the tokenizer cannot encode the text 'WHAT?'"),
    ({"messages": [{"role": "user", "content": "<|user_end|>"}]}, 400, "cannot encode the text '<|user_end|>'"),
    ({"messages": [{"role": "user", "content": "fox " * 100}]}, 400, "the prompt has 403 tokens, but the model's"),
    ({"temperature": "hot"}, 400, "temperature must be a number"),
    ({"max_tokens": -1}, 400, "max_tokens must be a whole number"),
    ({"tools": [{"type": "function"}]}, 400, "'tools' is not supported"),
    ({"stream": True, "messages": []}, 400, "messages has no messages"),
    ({"stream": True, "messages": [{"role": "user", "content": "a" * 62}]}, 400, "the prompt has 65 tokens"),
]


@pytest.mark.parametrize(("fields", "status", "message"), BAD_CHATS)
def test_wrong_request_is_answered_by_its_fault(client: Any, fields: dict[str, Any], status: int, message: str) -> None:
    import openai

    with pytest.raises(openai.APIStatusError) as e:
        ask(client, "what jumps", **fields)
    assert e.value.status_code == status and message in e.value.message
    assert ask(client, "what jumps").choices[0].message.content == REPLIES["what jumps"], "the server is alive"


def send(url: str, data: bytes | None, kind: str = "application/json") -> tuple[int, str]:
    """Return the status and the message of the error in the answer to a request."""
    request = urllib.request.Request(url, data, {"Content-Type": kind})
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(request, timeout=60)
    return e.value.code, json.loads(e.value.read())["error"]["message"]


@pytest.mark.parametrize(
    ("data", "kind", "status", "message"),
    [
        (b"{bad", "application/json", 400, "the request is not JSON"),
        (b"\xff", "application/json", 400, "the request is not JSON"),
        (b"[" * 100_000, "application/json", 400, "nested too deeply"),
        (b'{"messages": "\\ud800"}', "application/json", 400, "half of a surrogate pair"),
        (b"[]", "application/json", 400, "must be a JSON object, got a list"),
        (b"{}", "text/plain", 415, "Content-Type: application/json"),
        (b" " * (5 << 20), "application/json", 413, "more than 4,194,304 bytes"),
        (None, "application/json", 405, "Method Not Allowed"),
    ],
)
def test_body_that_is_not_a_request_is_answered_by_its_fault(
    url: str, data: bytes | None, kind: str, status: int, message: str
) -> None:
    found = send(f"{url}/chat/completions", data, kind)
    assert found[0] == status and message in found[1]


def test_body_of_many_lists_is_parsed_without_looking_for_garbage() -> None:
    from starlette.requests import Request

    from train.serving.bodies import BodyReader
    from train.serving.openai_server import _read_json

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}
    body = b"[" + b"[]," * 300_000 + b"[]]"
    collections: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            collections.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    try:
        assert len(asyncio.run(_read_json(Request(scope, receive), BodyReader()))) == 300_001
    finally:
        gc.callbacks.remove(note)
    assert not collections and gc.isenabled()


def test_lines_of_the_log_of_requests_are_short() -> None:
    from train.serving.openai_server import ShortPaths

    arguments = ("127.0.0.1:1", "GET", "/v1/models/" + "x" * 15_000, "1.1", 404)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None)
    assert ShortPaths().filter(record)
    assert re.fullmatch(r'127.0.0.1:1 - "GET /v1/models/x{50,150}… HTTP/1.1" 404', record.getMessage())


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/v1/responses"])
def test_other_endpoints_of_transformers_are_closed(url: str, path: str) -> None:
    assert send(url.removesuffix("/v1") + path, b'{"model": "/etc"}')[0] == 404


def test_pickled_weights_are_not_read(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from preprocess.errors import FolioError
    from train.serving.loaded_model import LoadedModel
    from train.serving.served_model import export_run, open_exported_folder

    folder = export_run(find_checkpoint(run, pytest.fail)).folder
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FolioError, match=r"cannot load .* no file named model.safetensors"):
        LoadedModel(open_exported_folder(tmp_path), torch.device("cpu"))


def test_text_that_cannot_fit_the_context_is_refused_before_it_is_encoded(url: str) -> None:
    message = {"role": "user", "content": "a"}
    for path, body in [
        ("completions", {"prompt": "a" * 1_000_000}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a" * 1_000_000}]}),
        ("chat/completions", {"messages": [message] * 2_000}),
    ]:
        status, answer = send(f"{url}/{path}", json.dumps(body).encode())
        assert status == 400 and "do not fit the model's context of 64 tokens" in answer, path


def test_end_of_the_server_during_a_generation_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openai")
    import torch

    from train.serving.openai_server import BoundedGeneration

    began, may_end = threading.Event(), threading.Event()

    class Model:
        def generate(self, **_: Any) -> None:
            began.set()
            may_end.wait(60)

    async def ask_and_end() -> None:
        manager, inputs = BoundedGeneration(8), {"input_ids": torch.tensor([[1]])}
        config = SimpleNamespace(max_new_tokens=1, stop_strings=None, eos_token_id=None)
        asyncio.create_task(manager.generate_non_streaming(Model(), None, inputs, config, ""))  # noqa: RUF006
        await asyncio.to_thread(began.wait, 60)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:  # as asyncio.run does
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0)  # for the callbacks
        assert len(tasks) == 2 and not caplog.records
        may_end.set()
        await asyncio.wrap_future(manager.submit(lambda: None))

    asyncio.run(ask_and_end())


def test_generations_of_clients_that_have_hung_up_end() -> None:
    pytest.importorskip("openai")
    import torch

    from train.serving.openai_server import BoundedGeneration

    began, has_hung_up, calls = threading.Event(), threading.Event(), []

    class Model:
        def generate(self, *, stopping_criteria: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            calls.append(int(input_ids[0, 0]))
            began.set()
            if calls == [1]:
                has_hung_up.wait(60)
                assert stopping_criteria(input_ids, None).tolist() == [True]
            else:
                assert stopping_criteria(input_ids, None).tolist() == [False]
            return torch.cat([input_ids, input_ids], dim=1)

    class Tokenizer:
        def decode(self, ids: Any, **_: Any) -> str:
            return str(ids.tolist())

    async def ask_and_hang_up() -> str:
        manager = BoundedGeneration(8)
        config = SimpleNamespace(max_new_tokens=1, stop_strings=None, eos_token_id=None)

        def ask(number: int) -> asyncio.Task[Any]:
            inputs = {"input_ids": torch.tensor([[number]])}
            return asyncio.create_task(manager.generate_non_streaming(Model(), Tokenizer(), inputs, config, ""))

        tasks = [ask(1), ask(2)]
        await asyncio.to_thread(began.wait, 60)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        has_hung_up.set()
        text: str = (await ask(3))[0]
        return text

    assert asyncio.run(ask_and_hang_up()) == "[3]"
    assert calls == [1, 3]
