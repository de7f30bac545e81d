"""Drawing ids, with the cache as without it, never padded ones; and decoding them one by one."""

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
from tests.train.model.helpers import VOCAB_SIZE, all_architectures
from tests.train.model.helpers import make_config as make_model_config
from train.config import Config
from train.model import make_model
from train.model.base import LanguageModel
from train.model.generate import completion_seed, decode_stream, draw, extend_context, generate

BLOCK_SIZE = 12


def make_config(**settings: object) -> Config:
    return make_model_config(**{"block_size": BLOCK_SIZE, "dropout": 0.1, "completion_tokens": 40} | settings)


def make_random_model(arch: str = "gpt2", *, scale: float = 3.0, block_size: int = BLOCK_SIZE) -> LanguageModel:
    """Return a model with random weights so large that the next id depends on the context."""
    torch.manual_seed(0)
    model = make_model(make_config(arch=arch, block_size=block_size), VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1).mul_(scale)
    return model.eval()


def generate_list(
    model: LanguageModel, ids: list[int], *, eot_id: int | None = None, number: int = 0, **settings: object
) -> list[int]:
    return list(generate(model, ids, config=make_config(**settings), eot_id=eot_id, number=number))


@torch.no_grad()
def generate_without_cache(model: LanguageModel, ids: list[int], config: Config) -> list[int]:
    """Return the ids that `generate` must yield, by a forward pass over the whole context each."""
    generator, new_ids = torch.Generator().manual_seed(config.seed), []
    context = ids[-model.block_size :]
    for _ in range(config.completion_tokens):
        logits = model.logits(model.features(torch.tensor([context])))[0, -1, :VOCAB_SIZE]
        new_ids.append(draw(logits, config, generator=generator))
        context = [*context, new_ids[-1]]
        if len(context) > model.block_size:
            context = context[-max(1, model.block_size // 2) :]
    return new_ids


# The cache and the context


@all_architectures
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("num_prompt", [1, 5, BLOCK_SIZE, BLOCK_SIZE + 7])
def test_generate_equals_generation_without_cache(arch: str, temperature: float, num_prompt: int) -> None:
    model, prompt = make_random_model(arch), [(7 * i) % VOCAB_SIZE for i in range(num_prompt)]
    config = make_config(temperature=temperature, completion_tokens=3 * BLOCK_SIZE)
    ids = generate_list(model, prompt, temperature=temperature, completion_tokens=3 * BLOCK_SIZE)
    assert ids == generate_without_cache(model, prompt, config)
    assert temperature == 0 or len(set(ids)) > 3, "a model that repeats one id would hide a wrong context"


@all_architectures
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_generate_with_the_smallest_contexts(arch: str, block_size: int) -> None:
    model = make_random_model(arch, block_size=block_size)
    expected = generate_without_cache(model, [1, 2, 3, 4], make_config(temperature=1.0))
    assert generate_list(model, [1, 2, 3, 4], temperature=1.0) == expected


@all_architectures
@torch.no_grad()
def test_logits_with_the_cache_equal_those_without(arch: str) -> None:
    model = make_random_model(arch, scale=1.0)
    ids = torch.randint(VOCAB_SIZE, (3, BLOCK_SIZE), generator=torch.Generator().manual_seed(1))
    expected = model.logits(model.features(ids))[..., :VOCAB_SIZE]
    cache = model.empty_cache(3)
    parts = [model.features(ids[:, :5], cache=cache)] + [
        model.features(ids[:, i : i + 1], cache=cache) for i in range(5, BLOCK_SIZE)
    ]
    torch.testing.assert_close(model.logits(torch.cat(parts, dim=1))[..., :VOCAB_SIZE], expected, atol=1e-5, rtol=0)


def test_each_id_costs_one_position_until_the_context_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    model, lengths = make_random_model(), []
    features = model.features
    monkeypatch.setattr(model, "features", lambda ids, **rest: lengths.append(ids.shape[1]) or features(ids, **rest))  # type: ignore[func-returns-value]
    generate_list(model, [1, 2, 3], completion_tokens=2 * BLOCK_SIZE)
    half = BLOCK_SIZE // 2
    expected = [3] + [1] * (BLOCK_SIZE - 3) + [half] + ([1] * (BLOCK_SIZE - half) + [half]) * 2
    assert lengths == expected[: 2 * BLOCK_SIZE]


def test_extend_context_keeps_the_last_half_when_full() -> None:
    assert extend_context([1, 2, 3], 4, block_size=4) == [1, 2, 3, 4]
    assert extend_context([1, 2, 3, 4], 5, block_size=4) == [4, 5]
    assert extend_context([1], 2, block_size=1) == [2]


# generate


def test_generate_ends_before_the_end_of_text() -> None:
    ids = generate_list(make_random_model(), [1, 2, 3], temperature=5.0)
    assert len(ids) == 40
    until_eot = generate_list(make_random_model(), [1, 2, 3], temperature=5.0, eot_id=ids[5])
    assert until_eot == ids[: ids.index(ids[5])]


@all_architectures
def test_padded_ids_are_never_drawn(arch: str) -> None:
    model = make_random_model(arch)
    with torch.no_grad():  # so that the padded ids would be by far the most likely
        for name, parameter in model.named_parameters():
            if name in ("wte.weight", "lm_head.weight"):
                parameter[VOCAB_SIZE:] = 100.0
    ids = generate_list(model, [0], completion_tokens=200, temperature=50.0, top_k=None)
    assert len(ids) == 200 and max(ids) < VOCAB_SIZE


def test_completions_depend_only_on_seed_and_number() -> None:
    model = make_random_model(scale=1.0)
    completions = [
        generate_list(model, [1], seed=seed, number=number, temperature=2.0) for seed in (1, 2) for number in (0, 1, 2)
    ]
    assert len({tuple(ids) for ids in completions}) == 6
    assert generate_list(model, [1], seed=2, number=1, temperature=2.0) == completions[4]
    assert completion_seed(1337, 0) == 1337


def test_closing_the_generator_restores_the_mode_of_the_model() -> None:
    model = make_random_model().train()
    ids = generate(model, [1], config=make_config(), eot_id=None)
    next(ids)
    assert not model.training and torch.is_grad_enabled()
    ids.close()
    assert model.training


# draw


def test_draw_follows_temperature_top_k_and_top_p() -> None:
    logits, generator = torch.tensor([0.0, 3.0, 2.0, -1.0]), torch.Generator().manual_seed(0)

    def drawn(**settings: object) -> set[int]:
        return {draw(logits, make_config(**settings), generator=generator) for _ in range(200)}

    assert drawn(temperature=0.0) == drawn(temperature=1e-30) == {1}
    assert drawn(temperature=100.0, top_k=2) == {1, 2}
    assert drawn(temperature=100.0, top_k=None) == {0, 1, 2, 3}
    # At temperature 1 the probabilities are 0.70, 0.26, 0.03, 0.01.
    assert drawn(temperature=1.0, top_p=0.69) == drawn(temperature=1.0, top_p=1e-300) == {1}
    assert drawn(temperature=1.0, top_p=0.71) == {1, 2}
    assert drawn(temperature=100.0, top_p=1.0) == {0, 1, 2, 3}
    # Among the two that top_k keeps, the first has probability 0.73.
    assert drawn(temperature=1.0, top_k=2, top_p=0.72) == {1}
    assert drawn(temperature=100.0, top_p=1e-9) == {1}


@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12, unique=True),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0.01, 1.0),
    st.floats(0.1, 10.0),
)
def test_drawn_ids_are_in_the_nucleus(
    values: list[float], top_k: int | None, top_p: float | None, temperature: float
) -> None:
    logits = torch.tensor(values)
    order = np.argsort(-logits.double().numpy(), kind="stable")[: top_k or len(values)]
    exact = np.exp((logits.double().numpy()[order] - max(values)) / temperature)
    sum_before = np.cumsum(exact / exact.sum()) - exact / exact.sum()
    nucleus = set(order[sum_before < (top_p or 2.0) + 1e-5].tolist())
    config = make_config(top_k=top_k, top_p=top_p, temperature=temperature)
    assert {draw(logits, config, generator=torch.Generator().manual_seed(seed)) for seed in range(10)} <= nucleus


def test_draw_rejects_logits_that_are_not_finite() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(FolioError, match="the model's output is not finite"):
            draw(torch.tensor([0.0, value]), make_config(), generator=torch.Generator())


# decode_stream


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
def test_decode_stream_parts_add_up_to_the_decoded_text(
    tokenizers: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = tokenizers[kind]
    # The first 256 ids of gpt2, all of byte, and the ids 4 to 259 of SentencePiece are single
    # bytes: with them characters are spread over several ids, or are invalid.
    byte_id, any_id = st.integers(0, min(260, tokenizer.vocab_size - 1)), st.integers(0, tokenizer.vocab_size - 1)
    ids = data.draw(st.lists(byte_id | any_id, max_size=30))
    parts = list(decode_stream(tokenizer.decode_bytes, ids))
    assert "".join(parts) == tokenizer.decode(np.array(ids, np.uint32))
    assert all(parts)


def test_decode_stream_holds_a_character_back_until_its_last_byte() -> None:
    tokenizer, events = ByteTokenizer(has_eot=True), []
    ids = (events.append(i) or i for i in "aж👍".encode())  # type: ignore[func-returns-value]
    for text in decode_stream(tokenizer.decode_bytes, ids):
        events.append(text)
    assert events == [97, "a", *"ж".encode(), "ж", *"👍".encode(), "👍"]
