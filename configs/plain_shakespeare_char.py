# Time: CPU (2 cores): a day (estimate); consumer GPU: not measured; H100: not measured.
# nanoGPT's character-level Shakespeare: its model and its settings, with which it reaches a
# validation loss of 1.47.
# configs/shakespeare_char.py reaches it sooner; this one is for comparison.
# First: preprocess build --corpus tinyshakespeare --tokenizer char --document file \
#   --no-authors --eot none --name tinyshakespeare_char
# The time on a CPU is estimated from the speed of a smaller model. There, use nanoGPT's small
# sizes: --n_layer=4 --n_head=4 --n_embd=128 --block_size=64 --batch_size=12
# --max_steps=2000 --dropout=0
data = "tinyshakespeare_char"

n_layer = 6
n_head = 6
n_embd = 384
block_size = 256  # characters of context
dropout = 0.2

batch_size = 64
max_steps = 5_000
warmup_steps = 100
learning_rate = 1e-3  # small models can be trained with a high learning rate
min_lr = learning_rate / 10
beta2 = 0.99  # a step has few tokens

completion_tokens = 500
