"""A server of OpenAI's API, made of the parts of transformers' own server (`transformers serve`).

transformers reads the model, applies the chat template, generates and streams. This module decides which
requests reach it. `transformers serve` itself is not started, because it

- always takes the most likely token of a model whose generation_config.json does not say `do_sample`,
- lets a GPT-2 generate beyond its context, which fails, and on a GPU ends the server,
- answers a wrong value, or a chat for a model without a chat template, by the status 500,
- loads other folders, also with pickled weights, if a client asks for them.

This module and loaded_model.py import transformers, and only this one openai and starlette. They
are parts of the extra `serve`. The classes are those of transformers 5.23; later versions may have others.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import openai  # noqa: F401  # the handlers need it, but would only say that a name is not defined
import torch
import uvicorn
import uvicorn.config
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.utils import GenerateManager, GenerationState, _StreamError
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from preprocess.errors import shorten
from preprocess.shards.files import JsonObject, parse_json
from train.model.generate import cut_at_stop
from train.serving.bodies import BodyError, BodyReader
from train.serving.connections import MAX_CONNECTIONS, LimitedConnection
from train.serving.loaded_model import LoadedModel
from train.serving.requests import RequestError, parse_chat, parse_completion
from train.serving.stops import StopQueue
from train.serving.streamer import Cancelled, WholeStreamer

SECONDS_TO_FINISH = 2  # after Ctrl-C, for the requests that are being answered
CLIENT_HAS_GONE = 499  # nginx's status for a request whose client has hung up; it is not sent


class SeededModel:
    """A model that sets the seed of the random numbers when it begins to generate, which another request may delay."""

    def __init__(self, model: Any, seed: int) -> None:
        self._model, self._seed = model, seed

    def generate(self, **options: Any) -> Any:
        """Return what the model's method does."""
        torch.manual_seed(self._seed)
        return self._model.generate(**options)


class Hangup(StoppingCriteria):
    """Ends a generation after its client has hung up."""

    def __init__(self) -> None:
        self.has_hung_up = threading.Event()

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.has_hung_up.is_set(), device=input_ids.device)


class StoppableModel:
    """A model that stops generating, or does not start, after its client has hung up."""

    def __init__(self, model: Any, hangup: Hangup) -> None:
        self._model, self._hangup = model, hangup

    def generate(self, **options: Any) -> Any:
        """Return what the model's method does. Raises ClientHasGoneError if the client has hung up before."""
        if self._hangup.has_hung_up.is_set():
            raise ClientHasGoneError
        return self._model.generate(stopping_criteria=StoppingCriteriaList([self._hangup]), **options)


class ClientHasGoneError(Exception):
    """A text was not generated, because its client has hung up."""


class BoundedGeneration(GenerateManager):
    """Generation that ends at the end of the context, and whose text ends before a stop text."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self._context = context

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> tuple[Any, Any]:
        """Start to generate. Return the queue of the parts and the streamer, as the base class does."""
        self._bound(inputs, gen_config)
        model, queue = _seed_model(model, gen_config), asyncio.Queue[Any]()
        tokenizer = processor._tokenizer
        streamer = WholeStreamer(
            tokenizer, queue, on_end=lambda ids: _note_end(gen_config, ids, str(tokenizer.decode(ids)))
        )

        def run() -> None:
            try:
                model.generate(**inputs, streamer=streamer, generation_config=gen_config, tokenizer=processor)
            except Cancelled:
                streamer.send(None)
            except Exception as e:  # the handler reports it to the client, between quotation marks
                streamer.send(_StreamError(json.dumps(str(e))[1:-1]))

        self.submit(run)
        stops = gen_config.stop_strings
        return (StopQueue(queue, stops) if stops else queue), streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> tuple[str, int, Any]:
        """Return the text, the number of tokens of the prompt, and the generated ids.

        If the call is cancelled, the generation ends too.
        """
        self._bound(inputs, gen_config)
        hangup = Hangup()
        model = StoppableModel(_seed_model(model, gen_config), hangup)
        generation = asyncio.ensure_future(
            super().generate_non_streaming(model, processor, inputs, gen_config, request_id=request_id)
        )
        try:  # the generation itself is not cancelled: its thread would fail to deliver the result
            text, length, ids = await asyncio.shield(generation)
        except asyncio.CancelledError:
            hangup.has_hung_up.set()
            # Else asyncio would log ClientHasGoneError. When the server ends, the generation itself is cancelled.
            generation.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        _note_end(gen_config, ids.tolist(), text)
        return cut_at_stop(text, gen_config.stop_strings or []), length, ids

    def _bound(self, inputs: Any, gen_config: Any) -> None:
        """Limit the number of tokens to those that are free. Raises RequestError if there are none."""
        length = inputs["input_ids"].shape[-1]
        if length >= self._context:
            raise RequestError(
                f"the prompt has {length:,} tokens, but the model's context has {self._context:,}, also for the "
                "answer; shorten it"
            )
        gen_config.max_new_tokens = min(gen_config.max_new_tokens, self._context - length)


def _note_end(gen_config: Any, ids: list[int], text: str) -> None:
    """Make the handlers report an answer that the model or a stop text ended as such.

    They would report that it was too long if it has all the tokens that it may have.
    """
    end_ids = gen_config.eos_token_id if isinstance(gen_config.eos_token_id, list) else [gen_config.eos_token_id]
    if (ids and ids[-1] in end_ids) or cut_at_stop(text, gen_config.stop_strings or []) != text:
        gen_config.max_new_tokens = None


def _seed_model(model: Any, gen_config: Any) -> Any:
    """Return `model`, with the seed that `gen_config` has as an attribute, which is removed."""
    seed = vars(gen_config).pop("seed", None)
    return model if seed is None else SeededModel(model, seed)


class OneGeneration(GenerationState):
    """The state of a server of one model."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self._manager = BoundedGeneration(context)

    def get_manager(self, model_id: str, use_cb: bool = False) -> BoundedGeneration:
        """Return the only manager. It answers one request after another."""
        return self._manager


class ChecksRequests:
    """What the handlers of both endpoints do before and instead of transformers' own steps."""

    model_manager: LoadedModel

    def _validate_request(self, body: JsonObject) -> None:
        pass  # train/serving/requests.py did

    def _resolve_model(self, body: JsonObject) -> tuple[str, Any, Any]:
        loaded = self.model_manager
        if body.get("model", loaded.served.name) != loaded.served.name:
            raise HTTPException(
                404, f"there is no model {shorten(body['model'])!r}; this server has {loaded.served.name!r}"
            )
        return loaded.served.name, loaded.model, loaded.tokenizer

    def _build_generation_config(self, body: JsonObject, defaults: Any, use_cb: bool = False) -> Any:
        served, config = self.model_manager.served, copy.deepcopy(defaults)
        temperature = body.get("temperature", served.temperature)
        config.do_sample = temperature > 0
        if config.do_sample:
            # 0 and 1.0 are transformers' values for no limit; without them it would take the 50 most likely tokens.
            top_p = body.get("top_p", 1.0 if served.top_p is None else served.top_p)
            config.temperature, config.top_k, config.top_p = temperature, served.top_k or 0, top_p
        config.max_new_tokens = body.get("max_tokens", self.model_manager.context)
        config.stop_strings = body.get("stop")
        config.seed = body.get("seed")  # for BoundedGeneration
        return config


class Chats(ChecksRequests, ChatCompletionHandler):
    """Answers /v1/chat/completions."""


class Completions(ChecksRequests, CompletionHandler):
    """Answers /v1/completions."""


def make_app(loaded: LoadedModel) -> Starlette:
    """Return the application, which answers requests with the model `loaded`."""
    state, reader = OneGeneration(loaded.context), BodyReader()
    # Else the name of a control token in a message would become the control token.
    chats = Chats(loaded, state, chat_template_kwargs={"sanitize_control_tokens": True})
    completions = Completions(loaded, state)
    entry = {"id": loaded.served.name, "object": "model", "created": loaded.created, "owned_by": "folio"}

    async def answer_chat(request: Request) -> Response:
        body = parse_chat(await _read_json(request, reader))
        if not loaded.has_chat_template:
            raise RequestError(
                "the model has no chat template, so it knows no turns; use /v1/completions, or train it on chats"
            )
        loaded.check_texts([message["content"] for message in body["messages"]], are_messages=True)
        return await _answer(request, chats.handle_request(body, str(uuid.uuid4())))

    async def answer_completion(request: Request) -> Response:
        body = parse_completion(await _read_json(request, reader))
        loaded.check_texts([body["prompt"]], are_messages=False)
        body["prompt"] = _begin(loaded, body["prompt"])
        return await _answer(request, completions.handle_request(body, str(uuid.uuid4())))

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [entry]})

    async def show_model(request: Request) -> Response:
        if request.path_params["name"] != loaded.served.name:
            raise HTTPException(404, f"there is no model {shorten(request.path_params['name'])!r}")
        return JSONResponse(entry)

    async def show_health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/v1/chat/completions", answer_chat, methods=["POST"]),
        Route("/v1/completions", answer_completion, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", show_model),
        Route("/health", show_health),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        RequestError: _report_request,
        HTTPException: _report_status,
        Exception: _report_failure,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


def _begin(loaded: LoadedModel, prompt: str) -> str:
    """Return `prompt` with the control token that begins a text; an empty one would have no token at all."""
    text = loaded.served.bos_token + prompt or loaded.tokenizer.eos_token
    if not text:
        raise RequestError("prompt is empty, and the model has no token that begins a text; give it some text")
    return str(text)


async def _read_json(request: Request, reader: BodyReader) -> Any:
    """Return the parsed body. Raises HTTPException or RequestError if it is too large, too slow or not JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the request must have the header Content-Type: application/json")
    try:
        body = await reader.read(request.stream())
    except BodyError as e:
        raise HTTPException(e.status, str(e)) from e
    except ClientDisconnect as e:  # else the log would have a traceback
        raise HTTPException(CLIENT_HAS_GONE, "the client has hung up") from e
    gc.disable()  # a body may be a million lists, for which Python would look for garbage in all objects of the process
    try:
        return parse_json(body)
    except ValueError as e:
        raise RequestError(f"the request is not JSON: {e!s:.80}") from e
    finally:
        gc.enable()


async def _answer(request: Request, handling: Coroutine[Any, Any, Response]) -> Response:
    """Return the response of `handling`, which is cancelled if the client hangs up. The body has been read."""
    answer, hangup = asyncio.ensure_future(handling), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({answer, hangup}, return_when=asyncio.FIRST_COMPLETED)
        return _end_stream(answer.result()) if answer.done() else Response(status_code=CLIENT_HAS_GONE)
    finally:
        hangup.cancel()
        answer.cancel()


def _end_stream(response: Response) -> Response:
    """Add the line that ends a stream in OpenAI's API."""
    if isinstance(response, StreamingResponse):
        response.body_iterator = _append_done(response.body_iterator)
    return response


async def _append_done(chunks: Any) -> AsyncIterator[str]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
    yield "data: [DONE]\n\n"


async def _report_request(_: Request, error: RequestError) -> Response:
    return _make_error(400, str(error), "invalid_request_error")


async def _report_status(_: Request, error: HTTPException) -> Response:
    return _make_error(error.status_code, error.detail, "invalid_request_error")


async def _report_failure(_: Request, error: Exception) -> Response:
    return _make_error(500, "the server failed; its log says why", "server_error")


def _make_error(status: int, message: str, kind: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status_code=status)


def make_example(loaded: LoadedModel, url: str) -> str:
    """Return a `curl` command line that asks the server at `url` for a text."""
    body: JsonObject = {"model": loaded.served.name, "max_tokens": max(1, min(50, loaded.context // 2)), "stream": True}
    if loaded.has_chat_template:
        path, body["messages"] = "chat/completions", [{"role": "user", "content": "Hello"}]
    else:
        path, body["prompt"] = "completions", "The"
    quoted = json.dumps(body).replace("'", r"\u0027")  # the same in JSON, and no end of a quotation in a shell
    return f"curl -N {url}/{path} -H 'Content-Type: application/json' -d '{quoted}'"


class ShortPaths(logging.Filter):
    """Shortens what a client has sent in the lines of the log of requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change `record`, and return that it is logged."""
        if isinstance(record.args, tuple):
            record.args = tuple(shorten(arg) if isinstance(arg, str) else arg for arg in record.args)
        return True


def run_server(loaded: LoadedModel, listening: socket.socket, *, log_requests: bool) -> None:
    """Answer the connections to `listening` until Ctrl-C or SIGTERM, whose exceptions are then raised."""
    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    log_config["loggers"]["uvicorn.error"]["level"] = "WARNING"  # not how the server starts and ends
    log_config["filters"] = {"short": {"()": ShortPaths}}
    log_config["loggers"]["uvicorn.access"]["filters"] = ["short"]
    gc.freeze()  # the model and the libraries are never garbage, so they are not searched for it
    config = uvicorn.Config(
        make_app(loaded),
        http=LimitedConnection,
        log_config=log_config,
        access_log=log_requests,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[listening])
