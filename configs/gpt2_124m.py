# Time: CPU (2 cores): not measured; consumer GPU: not measured; H100: 1.7 hours (estimate).
# A model of the width and depth of GPT-2 124M on FineWeb-Edu, with the modern recipe. Its head is a
# separate matrix: 162M parameters. The learning rates are those of Keller Jordan's modded-nanogpt
# and of nanochat. In modded-nanogpt, such a model needed a quarter of ten billion tokens for the
# loss that GPT-2's recipe reaches with all of them; this has not been measured with Folio. GPT-2's
# recipe: configs/plain_gpt2_124m.py. The time is estimated from the 431,600 tokens/s of one H100 in
# bench/README.md.
# First: preprocess build --corpus fineweb-edu (docs/recipes.md says where its files come from), or
# another large build by --data=NAME.
# On 8 GPUs: torchrun --nproc_per_node=8 train/train.py configs/gpt2_124m.py
base = "modern_recipe.py"
data = "fineweb-edu"

n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.0  # no text is read twice

batch_size = 64  # for GPUs of 80 GB; with less memory, the preflight halves it until a pass fits
gradient_accumulation_steps = 8  # 524,288 tokens per step for any number of GPUs
max_steps = 5_100
data_order = "epochs"
schedule = "wsd"
decay_steps = 2_300
learning_rate = 4e-3  # of the head
base_width = 768
compile = True

eval_tokens = 10 * 1024 * 1024
checkpoint_interval = 1_000
keep_checkpoints = 2  # 1.6 GB each; the best is kept in addition

completion_interval = 1_000
completion_prompt = "The history of"
completion_tokens = 100
