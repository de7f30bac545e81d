"""Train a tiny GPT-2 on the documents of a build with Hugging Face's Trainer.

Usage: `python examples/hf_trainer.py BUILD OUT_DIR`. Needs transformers and accelerate.
"""

import argparse

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from preprocess.errors import FolioError
from preprocess.shards.format import Build
from preprocess.shards.torch_dataset import Documents

MAX_TOKENS, STEPS = 64, 50


def train(where, out_dir):
    build = Build(where)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", help="name or folder of the build")
    parser.add_argument("out_dir", help="folder that the Trainer writes to")
    arguments = parser.parse_args()
    try:
        train(arguments.build, arguments.out_dir)
    except FolioError as e:
        raise SystemExit(f"error: {e}") from e
