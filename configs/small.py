# A small GPT on Shakespeare, divided into passages that begin with author and year tokens.
# First: preprocess build --corpus tinyshakespeare
# For one consumer GPU. For a first look on a CPU, in minutes: --n_layer=4 --n_head=2 --n_embd=128
# --block_size=64 --batch_size=8 --max_steps=300 --learning_rate=0.015 --dropout=0
# --eval_tokens=8192 --out_dir=runs/small_cpu
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
