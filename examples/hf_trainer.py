"""Trains a tiny GPT-2 on a build's documents by Hugging Face's Trainer: python examples/hf_trainer.py BUILD OUT_DIR

Needs transformers and accelerate.
"""

import sys

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from preprocess.shards.format import Build
from preprocess.shards.torch_data import Documents

MAX_TOKENS, STEPS = 64, 50

if __name__ == "__main__":
    build, out_dir = Build(sys.argv[1]), sys.argv[2]
    documents = Documents(build, max_tokens=MAX_TOKENS)
    ids = {"bos_token_id": documents.bos_id, "eos_token_id": documents.eot_id, "pad_token_id": documents.pad_id}
    config = GPT2Config(vocab_size=build.vocab_size, n_positions=MAX_TOKENS, n_embd=64, n_layer=2, n_head=4, **ids)
    settings = TrainingArguments(
        out_dir,
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    Trainer(GPT2LMHeadModel(config), settings, train_dataset=documents, data_collator=documents.collate).train()
