# Time: CPU (2 cores): more than an hour (estimate); consumer GPU: not measured; H100: not measured.
# A small GPT on Shakespeare, divided into passages that begin with author and year tokens.
# First: preprocess build --corpus tinyshakespeare
# For one consumer GPU. The time on a CPU is estimated from the speed of a smaller model; for a
# first look there, use configs/small_cpu.py.
base = "modern_recipe.py"
data = "tinyshakespeare"

n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
dropout = 0.2  # the model soon overfits a third of a million tokens; dropout delays that

batch_size = 32
max_steps = 500
eval_interval = 100
checkpoint_interval = 100

completion_author = "William Shakespeare"
completion_year = 1623
