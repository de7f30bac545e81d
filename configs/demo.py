# Time: CPU (2 cores): a minute; consumer GPU: not measured; H100: not measured.
# What `make demo` trains: parallel Russian and English sentences, with the plain recipe of GPT-2.
# First: preprocess build --corpus synthetic
data = "synthetic"

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64
dropout = 0.0  # the run is too short to overfit

batch_size = 16
max_steps = 600
warmup_steps = 60
learning_rate = 2e-3  # small models can be trained with a high learning rate
min_lr = learning_rate / 10
base_width = 128  # the width of these rates; a wider model has lower ones
beta2 = 0.99  # a step has few tokens

log_interval = 20
eval_interval = 100
eval_tokens = 256 * block_size  # half a second per evaluation
checkpoint_interval = 100

completion_author = "MagistrTheOne"
completion_city = "Krasnodar"
completion_year = 2025
completion_tokens = 60
