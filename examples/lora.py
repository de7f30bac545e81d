"""Fine-tune an exported model with LoRA: only small matrices beside the weights are trained, then added to them.

Usage: `python examples/lora.py EXPORT TEXTS.jsonl OUT_DIR`. Each line of TEXTS.jsonl is an object with the key
`text`. Needs transformers and peft. OUT_DIR is a folder like EXPORT: `--init_from=OUT_DIR` reads it.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS, BATCH_SIZE, LEARNING_RATE = 50, 8, 1e-2
IGNORED = -100  # the label of a token that does not count in the loss


def read_documents(path, tokenizer, config):
    """Return the ids of each text, (T,) int64, between end-of-text tokens, as documents are in a build."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines if line.strip()]
    end = [config.eos_token_id]
    ids = [end + tokenizer(text, add_special_tokens=False).input_ids + end for text in texts]
    return [torch.tensor(each[: config.max_position_embeddings]) for each in ids]


def draw_batch(documents):
    """Return ids, labels and attention mask of random documents, (B, T) each."""
    chosen = [documents[i] for i in torch.randint(len(documents), (BATCH_SIZE,))]
    labels = pad_sequence(chosen, batch_first=True, padding_value=IGNORED)
    return {"input_ids": labels.clamp(min=0), "labels": labels, "attention_mask": (labels != IGNORED).long()}


def train(export, texts, out_dir):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    documents = read_documents(texts, tokenizer, model.config)

    # "all-linear": every matrix of the blocks. In GPT-2 they are called c_attn, c_proj and c_fc; in NanoChat q_proj,
    # k_proj, v_proj, o_proj, fc1 and fc2. The embedding and the head are left as they are.
    is_gpt2 = model.config.model_type == "gpt2"  # whose matrices are stored transposed
    settings = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", fan_in_fan_out=is_gpt2, task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, settings)
    model.print_trainable_parameters()

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    model.train()
    for step in range(STEPS + 1):
        loss = model(**draw_batch(documents)).loss
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # Add the products of the small matrices to the weights: the result is an ordinary model.
    model.merge_and_unload().save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", help="folder that train/export.py wrote")
    parser.add_argument("texts", help="file with a JSON object per line, with the key text")
    parser.add_argument("out_dir", help="folder for the model and its tokenizer")
    arguments = parser.parse_args()
    train(arguments.export, arguments.texts, arguments.out_dir)
