# nanoGPT's character-level Shakespeare, with its model and its settings; there the validation loss reaches 1.47.
# configs/shakespeare_char.py gets there sooner; this is the plain one to compare with.
# First: preprocess build --corpus tinyshakespeare --tokenizer char --document file --no-authors --eot none --name tinyshakespeare_char
# Minutes on one GPU. On a CPU take nanoGPT's small ones:
# --n_layer=4 --n_head=4 --n_embd=128 --block_size=64 --batch_size=12 --max_steps=2000 --dropout=0
data = "tinyshakespeare_char"

n_layer = 6
n_head = 6
n_embd = 384
block_size = 256  # characters of context
dropout = 0.2

batch_size = 64
gradient_accumulation_steps = 1
max_steps = 5_000
warmup_steps = 100
learning_rate = 1e-3  # a baby network can afford a high one
min_lr = learning_rate / 10
beta2 = 0.99  # a step has few tokens

# It overfits before the end: look often.
eval_interval = 250
checkpoint_interval = 250
log_interval = 10

completion_tokens = 500
