# Characters of Shakespeare with the width and depth of nanoGPT's config, and the modern recipe.
# First: preprocess build --corpus tinyshakespeare --tokenizer char --document file --no-authors --eot none --name tinyshakespeare_char
# For one GPU, where Folio has not measured it. On a CPU: configs/shakespeare_char_cpu.py; nanoGPT's: configs/plain_shakespeare_char.py
data = "tinyshakespeare_char"

arch = "modern"
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256  # characters of context
dropout = 0.2

batch_size = 64
gradient_accumulation_steps = 1
max_steps = 1_000  # it overfits before long
warmup_steps = 0  # each of Muon's steps is as large as the rate says, the first ones too
schedule = "linear"
min_lr = 0

optimizer = "muon"
muon_learning_rate = 0.02
embedding_learning_rate = 0.3
learning_rate = 6e-3  # of the head
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0

eval_interval = 100
checkpoint_interval = 100
log_interval = 10

completion_tokens = 500
