# A small GPT-2 on Shakespeare, cut into passages with author and year in front.
# First: preprocess build --corpus tinyshakespeare
# Minutes on one consumer GPU. On a CPU it runs too, in hours; for a first look there, in minutes, add --n_layer=4 --n_head=4
# --n_embd=128 --block_size=64 --batch_size=8 --max_steps=500 --eval_tokens=8192 --out_dir=runs/small_cpu
data = "tinyshakespeare"

n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
# The text is small, a third of a million tokens: dropout holds off learning it by heart.
dropout = 0.2

batch_size = 32
gradient_accumulation_steps = 1
max_steps = 1_500
warmup_steps = 100
learning_rate = 1e-3
min_lr = learning_rate / 10
# A step has few tokens, so that the square of the gradient wants a longer memory than GPT-2's.
beta2 = 0.99

eval_interval = 100
checkpoint_interval = 100
log_interval = 10

sample_author = "William Shakespeare"
sample_year = 1623
sample_tokens = 200
