"""The architecture `modern` of Folio with its token shift, for Hugging Face's transformers 5.

`AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)` runs this file. It is the same in
every export and contains no text of a user. The model is transformers' NanoChat, except that the
embedding of the previous token, times the weights `shift`, is added to the embedding of each token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, NanoChatConfig, NanoChatForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

NO_TOKEN = -1  # in `previous_ids`: there is no previous token


class FolioModernConfig(NanoChatConfig):
    model_type = "folio-modern"


class FolioModernForCausalLM(NanoChatForCausalLM):
    config: FolioModernConfig

    def __init__(self, config: FolioModernConfig) -> None:
        super().__init__(config)
        self.shift = nn.Parameter(torch.zeros(config.hidden_size))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        previous_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the output of `NanoChatForCausalLM.forward` for `input_ids`, (B, T).

        `previous_ids`, (B, T): the token before each token, NO_TOKEN if there is none. `generate` passes
        it. Raises ValueError if it is missing and `past_key_values` has tokens, or if `input_ids` is None.
        """
        if input_ids is None:
            raise ValueError("FolioModernForCausalLM needs input_ids, because inputs_embeds do not have the shift")
        if previous_ids is None:
            if past_key_values is not None and past_key_values.get_seq_length() > 0:
                raise ValueError(
                    "with tokens in past_key_values, pass previous_ids, the token before each of input_ids"
                )
            previous_ids = find_previous(input_ids, attention_mask)
        x = self.embed(input_ids)  # (B, T, C)
        previous = self.embed(previous_ids.clamp(min=0)) * (previous_ids != NO_TOKEN)[..., None]
        return super().forward(
            inputs_embeds=x + self.shift * previous,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )

    def embed(self, ids: Tensor) -> Tensor:
        embedding: Tensor = self.model.norm(self.model.embed_tokens(ids))
        return embedding

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Add `previous_ids` to the inputs of a step. `input_ids` has all tokens, also those in the cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, *args, attention_mask=attention_mask, **kwargs
        )
        length = inputs["input_ids"].shape[1]
        return inputs | {"previous_ids": find_previous(input_ids, attention_mask)[:, -length:]}


def find_previous(ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the token before each of `ids`, (B, T): NO_TOKEN for the first one, and after padding."""
    previous = F.pad(ids[:, :-1], (1, 0), value=NO_TOKEN)
    if attention_mask is not None and attention_mask.dim() == 2:
        previous = previous.masked_fill(F.pad(attention_mask[:, :-1], (1, 0)) == 0, NO_TOKEN)
    return previous
