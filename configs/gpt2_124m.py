# A model of GPT-2 124M's width and depth on FineWeb-Edu, with the modern recipe; its head is a matrix of its own: 162M parameters.
# The rates are those of Keller Jordan's modded-nanogpt and of nanochat. In the first, such a model reached the loss of GPT-2's own recipe
# in a quarter of its ten billion tokens; Folio has not measured it. The plain recipe is configs/plain_gpt2_124m.py.
# First: preprocess build --corpus fineweb-edu (see docs/recipes.md for its files), or any large build, by --data=NAME.
# On 8 GPUs: torchrun --nproc_per_node=8 train/train.py configs/gpt2_124m.py
data = "fineweb-edu"

arch = "modern"
n_layer = 12
n_head = 12
n_embd = 768
block_size = 1024
dropout = 0.0  # no text is read twice

batch_size = 64  # for GPUs of 80 GB; where memory is less, it is halved before the first step until it fits
gradient_accumulation_steps = 8  # 524,288 tokens a step, whatever the number of GPUs
max_steps = 5_100
data_order = "epochs"
warmup_steps = 0
schedule = "wsd"
decay_steps = 2_300
min_lr = 0

optimizer = "muon"
muon_learning_rate = 0.02
embedding_learning_rate = 0.3
learning_rate = 4e-3  # of the head
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0
compile = True

log_interval = 10
eval_interval = 250
eval_tokens = 10 * 1024 * 1024
checkpoint_interval = 1_000
keep_checkpoints = 2  # 1.6 GB each, and the best beside them

completion_interval = 1_000
completion_prompt = "The history of"
completion_tokens = 100
