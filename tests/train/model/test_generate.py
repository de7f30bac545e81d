"""Drawing tokens: with the cache as without, by temperature, top_k and top_p, never padding; and their text as it comes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from preprocess.errors import FolioError
from preprocess.tokenizers import sentencepiece_bpe, tiktoken_bpe
from preprocess.tokenizers.characters import ByteTokenizer, CharTokenizer
from preprocess.tokenizers.interface import Tokenizer
from train.config import Config
from train.model import make_model
from train.model.base import LanguageModel
from train.model.generate import completion_seed, decode_stream, draw, generate, next_context

VOCAB_SIZE, BLOCK_SIZE = 31, 12
ARCHITECTURES = ("gpt2", "modern")


def config_of(**settings: object) -> Config:
    tiny = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": BLOCK_SIZE, "dropout": 0.1, "completion_tokens": 40}
    return Config(**({"data": "x", "out_dir": "y"} | tiny | settings))  # type: ignore[arg-type]


def model_of(arch: str = "gpt2", *, scale: float = 3.0, block_size: int = BLOCK_SIZE) -> LanguageModel:
    """Every weight drawn, those that begin at zero too, and large enough that what was read decides what comes."""
    torch.manual_seed(0)
    model = make_model(config_of(arch=arch, block_size=block_size), VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1).mul_(scale)
    return model.eval()


def draw_all(
    model: LanguageModel, ids: list[int], *, eot_id: int | None = None, number: int = 0, **settings: object
) -> list[int]:
    return list(generate(model, ids, config=config_of(**settings), eot_id=eot_id, number=number))


@torch.no_grad()
def without_cache(model: LanguageModel, ids: list[int], config: Config) -> list[int]:
    """What generate must give: the same contexts, each read anew and whole."""
    generator, new = torch.Generator().manual_seed(config.seed), []
    context = ids[-model.block_size :]
    for _ in range(config.completion_tokens):
        logits = model.logits(model.features(torch.tensor([context])))[0, -1, :VOCAB_SIZE]
        new.append(draw(logits, config, generator=generator))
        context = [*context, new[-1]]
        if len(context) > model.block_size:
            context = context[-max(1, model.block_size // 2) :]
    return new


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_prompt", [1, 5, BLOCK_SIZE, BLOCK_SIZE + 7])
def test_the_cache_changes_no_token(arch: str, temperature: float, num_prompt: int) -> None:
    model, prompt = model_of(arch), [(7 * i) % VOCAB_SIZE for i in range(num_prompt)]
    config = config_of(temperature=temperature, completion_tokens=3 * BLOCK_SIZE)
    got = draw_all(model, prompt, temperature=temperature, completion_tokens=3 * BLOCK_SIZE)
    assert got == without_cache(model, prompt, config)
    assert temperature == 0 or len(set(got)) > 3, "a model that says one thing would hide what it read"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_contexts(arch: str, block_size: int) -> None:
    model = model_of(arch, block_size=block_size)
    assert draw_all(model, [1, 2, 3, 4], temperature=1.0) == without_cache(
        model, [1, 2, 3, 4], config_of(temperature=1.0)
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@torch.no_grad()
def test_logits_with_the_cache_are_those_without(arch: str) -> None:
    model = model_of(arch, scale=1.0)
    ids = torch.randint(VOCAB_SIZE, (3, BLOCK_SIZE), generator=torch.Generator().manual_seed(1))
    whole = model.logits(model.features(ids))[..., :VOCAB_SIZE]
    cache = model.empty_cache(3)
    parts = [model.features(ids[:, :5], cache=cache)] + [
        model.features(ids[:, i : i + 1], cache=cache) for i in range(5, BLOCK_SIZE)
    ]
    torch.testing.assert_close(model.logits(torch.cat(parts, dim=1))[..., :VOCAB_SIZE], whole, atol=1e-5, rtol=0)


def test_each_token_costs_one_row_but_where_the_context_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = model_of(), []
    features = model.features
    monkeypatch.setattr(model, "features", lambda ids, **rest: read.append(ids.shape[1]) or features(ids, **rest))  # type: ignore[func-returns-value]
    draw_all(model, [1, 2, 3], completion_tokens=2 * BLOCK_SIZE)
    half = BLOCK_SIZE // 2
    assert read == ([3] + [1] * (BLOCK_SIZE - 3) + [half] + ([1] * (BLOCK_SIZE - half) + [half]) * 2)[: 2 * BLOCK_SIZE]


def test_the_context_is_whole_until_it_is_full_and_then_its_last_half() -> None:
    assert next_context([1, 2, 3], 4, block_size=4) == [1, 2, 3, 4]
    assert next_context([1, 2, 3, 4], 5, block_size=4) == [4, 5]
    assert next_context([1], 2, block_size=1) == [2]


def test_the_end_of_a_document_ends_a_sample_and_is_left_out() -> None:
    ids = draw_all(model_of(), [1, 2, 3], temperature=5.0)
    assert len(ids) == 40
    assert draw_all(model_of(), [1, 2, 3], temperature=5.0, eot_id=ids[5]) == ids[: ids.index(ids[5])]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_padded_ids_are_never_drawn(arch: str) -> None:
    model = model_of(arch)
    with torch.no_grad():  # the padding would be by far the likeliest
        for name, parameter in model.named_parameters():
            if name in ("wte.weight", "lm_head.weight"):
                parameter[VOCAB_SIZE:] = 100.0
    ids = draw_all(model, [0], completion_tokens=200, temperature=50.0, top_k=None)
    assert len(ids) == 200 and max(ids) < VOCAB_SIZE


def test_samples_follow_from_seed_and_number() -> None:
    model = model_of(scale=1.0)
    texts = [draw_all(model, [1], seed=seed, number=number, temperature=2.0) for seed in (1, 2) for number in (0, 1, 2)]
    assert len({tuple(text) for text in texts}) == 6
    assert draw_all(model, [1], seed=2, number=1, temperature=2.0) == texts[4]
    assert completion_seed(1337, 0) == 1337


def test_the_mode_comes_back_even_if_nobody_waits_for_the_end() -> None:
    model = model_of().train()
    tokens = generate(model, [1], config=config_of(), eot_id=None)
    next(tokens)
    assert not model.training and torch.is_grad_enabled()
    tokens.close()
    assert model.training


def test_drawing() -> None:
    logits, generator = torch.tensor([0.0, 3.0, 2.0, -1.0]), torch.Generator().manual_seed(0)

    def drawn(**settings: object) -> set[int]:
        return {draw(logits, config_of(**settings), generator=generator) for _ in range(200)}

    assert drawn(temperature=0.0) == drawn(temperature=1e-30) == {1}
    assert drawn(temperature=100.0, top_k=2) == {1, 2}
    assert drawn(temperature=100.0, top_k=None) == {0, 1, 2, 3}
    # At temperature 1 the probabilities are 0.70, 0.26, 0.03, 0.01.
    assert drawn(temperature=1.0, top_p=0.69) == drawn(temperature=1.0, top_p=1e-300) == {1}
    assert drawn(temperature=1.0, top_p=0.71) == {1, 2}
    assert drawn(temperature=100.0, top_p=1.0) == {0, 1, 2, 3}
    # Of the two that top_k leaves, the first has 0.73: the nucleus is of what is left.
    assert drawn(temperature=1.0, top_k=2, top_p=0.72) == {1}
    assert drawn(temperature=100.0, top_p=1e-9) == {1}


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12, unique=True),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0.01, 1.0),
    st.floats(0.1, 10.0),
)
def test_what_is_drawn_is_in_the_nucleus(
    values: list[float], top_k: int | None, top_p: float | None, temperature: float
) -> None:
    logits = torch.tensor(values)
    order = np.argsort(-logits.double().numpy(), kind="stable")[: top_k or len(values)]
    exact = np.exp((logits.double().numpy()[order] - max(values)) / temperature)
    before = np.cumsum(exact / exact.sum()) - exact / exact.sum()
    nucleus = set(order[before < (top_p or 2.0) + 1e-5].tolist())
    config = config_of(top_k=top_k, top_p=top_p, temperature=temperature)
    assert {draw(logits, config, generator=torch.Generator().manual_seed(seed)) for seed in range(10)} <= nucleus


def test_numbers_that_are_not_finite_are_an_error_not_a_token() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(FolioError, match="not finite"):
            draw(torch.tensor([0.0, value]), config_of(), generator=torch.Generator())


@pytest.fixture(scope="module")
def tokenizers(cache: object) -> Iterator[dict[str, Tokenizer]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        lines = [
            "Мой дядя самых честных правил, когда не в шутку занемог. 你好",
            "It was the best of times, it was the worst 👩‍👩‍👧.",
        ] * 20
        alphabet = CharTokenizer("".join(sorted({*"".join(lines)})), has_eot=True)
        made = [
            tiktoken_bpe.load(),
            sentencepiece_bpe.train(lines, num_pieces=400),
            alphabet,
            ByteTokenizer(has_eot=True),
        ]
        yield {tokenizer.kind: tokenizer for tokenizer in made}


@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece", "char", "byte"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_pieces_of_a_stream_are_the_text(tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizers[kind]
    # Gpt2's first 256 ids, byte's all, and SentencePiece's 4 to 259 are single bytes: characters come in parts, or broken.
    few, any_id = st.integers(0, min(260, tokenizer.vocab_size - 1)), st.integers(0, tokenizer.vocab_size - 1)
    ids = data.draw(st.lists(few | any_id, max_size=30))
    pieces = list(decode_stream(tokenizer.decode_bytes, ids))
    assert "".join(pieces) == tokenizer.decode(np.array(ids, np.uint32))
    assert all(pieces)


def test_a_character_waits_for_its_last_byte() -> None:
    tokenizer, came = ByteTokenizer(has_eot=True), []
    for piece in decode_stream(tokenizer.decode_bytes, (came.append(i) or i for i in "aж👍".encode())):  # type: ignore[func-returns-value]
        came.append(piece)
    assert came == [97, "a", *"ж".encode(), "ж", *"👍".encode(), "👍"]
