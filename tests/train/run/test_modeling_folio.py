"""An export with a token shift: transformers computes and generates what Folio does, with the code in the export.

transformers copies that code to the folder HF_MODULES_CACHE, which it reads when it is imported, so a new process loads
the export.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.runs import AUTHOR_ID, VOCAB_SIZE, encode, invoke, make_build, make_environment, write_config
from train.config import Config
from train.model import make_model
from train.model.generate import generate
from train.run.checkpoint import find_checkpoint, load_model

NUM_TOKENS = 200
PROMPTS = [[AUTHOR_ID], encode("fox jumps ov").tolist(), [3, 1, 4, 1, 5]]
SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, DynamicCache

folder, prompts, ids, num_tokens = json.loads(sys.argv[1])
found = {}


def catch(name, function):
    try:
        function()
        found[name] = "no error"
    except ValueError as e:
        found[name] = str(e)


catch("not trusted", lambda: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False))
model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
found["loading"] = [sorted(names) for names in info.values()]
model.generation_config.eos_token_id = None
options = {"max_new_tokens": num_tokens, "do_sample": False}
torch.set_grad_enabled(False)
found["logits"] = model(torch.tensor(ids)).logits.tolist()


def run(prompt, **settings):
    tensor = torch.tensor(prompt)
    settings = {"attention_mask": torch.ones_like(tensor)} | options | settings
    return model.generate(tensor, **settings)[:, tensor.shape[1] :].tolist()


found["alone"] = [run([prompt])[0] for prompt in prompts]
longest = max(map(len, prompts))
padded = [[7] * (longest - len(prompt)) + prompt for prompt in prompts]
mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
found["padded"] = run(padded, attention_mask=mask)
found["first logits"] = [
    model.generate(
        torch.tensor(padded), attention_mask=mask, max_new_tokens=2, output_logits=True, return_dict_in_generate=True,
        **settings,
    ).logits[0].tolist()
    for settings in ({}, {"cache_implementation": "static", "disable_compile": True})
]
found["static"] = run(padded, attention_mask=mask, cache_implementation="static", disable_compile=True)
found["beams"] = [run([prompts[1]], num_beams=3, max_new_tokens=40, use_cache=cache) for cache in (True, False)]
model.train()
with torch.enable_grad():
    model(torch.tensor(ids), labels=torch.tensor(ids)).loss.backward()
found["gradient"] = model.shift.grad.abs().sum().item()
model.eval()
cache = DynamicCache(config=model.config)
model(torch.tensor(ids)[:, :5], past_key_values=cache)
catch("no previous_ids", lambda: model(torch.tensor(ids)[:, 5:], past_key_values=cache))
embeddings = model.get_input_embeddings()(torch.tensor(ids))
catch("embeddings", lambda: model(inputs_embeds=embeddings, input_ids=None))
catch("generate from embeddings", lambda: model.generate(inputs_embeds=embeddings, **options))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_transformers_computes_a_model_with_a_token_shift(tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "run.py", make_build(tmp_path / "tiny"), arch="modern", token_shift=True, optimizer="muon",
        max_steps=100, block_size=NUM_TOKENS + 20, batch_size=1, dropout=0.0, eval_interval=100,
    )  # fmt: skip
    assert invoke("train.py", config).returncode == 0
    assert invoke("export.py", tmp_path / "run", "--output", tmp_path / "out").returncode == 0
    ids = torch.randint(VOCAB_SIZE, (3, 40), generator=torch.Generator().manual_seed(1))
    found = load_in_a_process(tmp_path, ids)
    assert "trust_remote_code=True" in found["not trusted"] and not any(found["loading"])
    checkpoint = find_checkpoint(tmp_path / "run", pytest.fail)
    model = make_model(checkpoint.info.config, VOCAB_SIZE)
    load_model(checkpoint, model)
    greedy = Config(**(checkpoint.info.config.as_dict() | {"temperature": 0.0, "completion_tokens": NUM_TOKENS}))
    with torch.no_grad():
        logits = model.eval().logits(model.features(ids))[..., :VOCAB_SIZE]
        expected = [list(generate(model, prompt, config=greedy, eot_id=None)) for prompt in PROMPTS]
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=0)
    assert logits.std() > 1 and model.state_dict()["shift"].abs().max() > 0.01
    assert [len(ids) for ids in expected] == [NUM_TOKENS] * len(PROMPTS)
    assert found["alone"] == expected
    assert found["padded"] == expected and found["static"] == expected  # of prompts with padding on the left
    for rows in found["first logits"]:
        for row, prompt in zip(rows, PROMPTS, strict=True):
            with torch.no_grad():
                last = model.logits(model.features(torch.tensor([prompt])))[0, -1, :VOCAB_SIZE]
            torch.testing.assert_close(torch.tensor(row), last, atol=1e-5, rtol=0)
    assert found["beams"][0] == found["beams"][1]
    assert found["gradient"] > 0
    assert "pass previous_ids, the token before each of input_ids" in found["no previous_ids"]
    assert "needs input_ids, because inputs_embeds" in found["embeddings"]
    assert "not used by the model: ['inputs_embeds']" in found["generate from embeddings"]


def load_in_a_process(folder: Path, ids: torch.Tensor) -> dict[str, Any]:
    argument = json.dumps([str(folder / "out"), PROMPTS, ids.tolist(), NUM_TOKENS])
    environment = make_environment() | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert os.listdir(folder / "modules")
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found
