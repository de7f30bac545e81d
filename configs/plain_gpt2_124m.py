# GPT-2 124M as it was, on ten billion tokens of FineWeb-Edu, with the settings of llm.c's scripts/run_gpt2_124M.sh, which took 94 minutes
# on 8 A100. configs/gpt2_124m.py wants far fewer tokens; this is the plain one, whose weights Hugging Face's GPT-2 takes.
# First: preprocess build --corpus fineweb-edu (see docs/recipes.md for its files), or any large build, by --data=NAME.
# On 8 GPUs: torchrun --nproc_per_node=8 train/train.py configs/plain_gpt2_124m.py
data = "fineweb-edu"

n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.0  # no text is read twice

batch_size = 64  # for GPUs of 80 GB; where memory is less, it is halved before the first step until it fits
gradient_accumulation_steps = 8  # 524,288 tokens a step, whatever the number of GPUs
max_steps = 19_073
data_order = "epochs"
learning_rate = 6e-4
min_lr = 0
warmup_steps = 700
weight_decay = 0.1
beta2 = 0.95
compile = True

log_interval = 10
eval_interval = 250
eval_tokens = 10 * 1024 * 1024
checkpoint_interval = 1_000
keep_checkpoints = 2  # 1.5 GB each, and the best beside them

completion_interval = 1_000
completion_prompt = "The history of"
completion_tokens = 100
