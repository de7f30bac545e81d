"""Fine-tune an exported model on conversations with the SFTTrainer of trl, in the chat template of the export.

Usage: `python examples/trl_chat.py EXPORT CHATS.jsonl OUT_DIR`. Each line of CHATS.jsonl is an object with the key
`messages`, a list of objects with `role` and `content`. Needs trl. The run must have been trained on a build with a
chat template (`--chat-template`).
"""

import argparse

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

STEPS = 50


def train(export, chats, out_dir):
    model = AutoModelForCausalLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    settings = SFTConfig(
        out_dir,
        max_steps=STEPS,
        per_device_train_batch_size=8,
        learning_rate=3e-3,
        max_length=model.config.max_position_embeddings,
        assistant_only_loss=True,  # the loss mask of a build: the replies, and the tokens that end them
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
    )
    dataset = load_dataset("json", data_files=chats, split="train")
    trainer = SFTTrainer(model, args=settings, train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(out_dir)  # the tokenizer, too


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", help="folder that train/export.py wrote")
    parser.add_argument("chats", help="file with a JSON object per line, with the key messages")
    parser.add_argument("out_dir", help="folder for the model and its tokenizer")
    arguments = parser.parse_args()
    train(arguments.export, arguments.chats, arguments.out_dir)
