# A small GPT on Shakespeare, cut into passages with author and year in front, by the modern recipe.
# First: preprocess build --corpus tinyshakespeare
# For one consumer GPU. For a first look on a CPU, minutes long: --n_layer=4 --n_head=2 --n_embd=128 --block_size=64 --batch_size=8
# --max_steps=300 --learning_rate=0.015 --dropout=0 --eval_tokens=8192 --out_dir=runs/small_cpu
data = "tinyshakespeare"

arch = "modern"
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
# The text is small, a third of a million tokens: dropout holds off learning it by heart.
dropout = 0.2

batch_size = 32
gradient_accumulation_steps = 1
max_steps = 500
warmup_steps = 0
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

completion_author = "William Shakespeare"
completion_year = 1623
completion_tokens = 200
