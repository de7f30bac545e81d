# Characters of Shakespeare on a CPU, with the model of nanoGPT's README for laptops: 0.8 million parameters, 64 characters of context.
# In 200 steps, a quarter of a minute on two cores, it reaches the loss that nanoGPT reaches in 2,000 (bench/README.md).
# First: preprocess build --corpus tinyshakespeare --tokenizer char --document file --no-authors --eot none --name tinyshakespeare_char
data = "tinyshakespeare_char"

arch = "modern"
n_layer = 4
n_head = 2  # a head of 64 numbers learns more here than two of 32
n_embd = 128
block_size = 64
dropout = 0.0  # few characters are read twice

batch_size = 12  # more windows a step cost more than they bring
gradient_accumulation_steps = 1
max_steps = 200
warmup_steps = 0
schedule = "linear"
min_lr = 0

optimizer = "muon"
muon_learning_rate = 0.03
muon_momentum = 0.9  # so short a run has no time for a longer memory
embedding_learning_rate = 0.3
learning_rate = 0.015  # of the head
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0

eval_interval = 50
checkpoint_interval = 50
log_interval = 10

completion_tokens = 300
