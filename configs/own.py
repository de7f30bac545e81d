# A small GPT-2 for text of your own: configs/small.py without Shakespeare in front of its samples.
# First: preprocess build --input 'data/*.jsonl'; that build is called `own`, another is chosen by --data=NAME --out_dir=runs/NAME.
data = "own"

n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
# A small text is learned by heart, which dropout holds off; 0 for one of many million tokens.
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

sample_tokens = 200
