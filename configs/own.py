# A small GPT for text of your own: configs/small.py without Shakespeare in front of its samples.
# First: preprocess build --input 'data/*.jsonl'; that build is called `own`, another is chosen by --data=NAME --out_dir=runs/NAME.
data = "own"

arch = "modern"
n_layer = 6
n_head = 6
n_embd = 384
block_size = 256
# A small text is learned by heart, which dropout holds off; 0 for one of many million tokens.
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

completion_tokens = 200
