# Time: CPU (2 cores): about 2 hours (estimate); consumer GPU: not measured; H100: 20 seconds.
# Characters of Shakespeare with the width and depth of nanoGPT's config, and the modern recipe.
# First: preprocess build --corpus tinyshakespeare --tokenizer char --document file \
#   --no-authors --eot none --name tinyshakespeare_char
# For one GPU: on an H100 it reaches nanoGPT's loss of 1.47 after 6 seconds of training, and
# 11 seconds of start-up (bench/README.md). The time on a CPU is estimated from the speed of
# configs/shakespeare_char_cpu.py, the config for CPUs. With nanoGPT's settings:
# configs/plain_shakespeare_char.py.
base = "modern_recipe.py"
data = "tinyshakespeare_char"

token_shift = True  # lowers the loss on characters; an export needs trust_remote_code=True
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256  # characters of context
dropout = 0.2

batch_size = 64
max_steps = 500  # 400 steps end at a higher loss, and in 1,000 it overfits
weight_decay = 0.1  # ends at a lower loss than no weight decay, or more dropout
eval_interval = 100
checkpoint_interval = 100

completion_tokens = 500
