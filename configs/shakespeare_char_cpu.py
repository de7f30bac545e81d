# Time: CPU (2 cores): a quarter of a minute; consumer GPU: not measured; H100: not measured.
# Characters of Shakespeare on a CPU, with the model of nanoGPT's README for laptops: 0.8 million
# parameters, 64 characters of context. In 200 steps it reaches the loss that nanoGPT
# reaches in 2,000 (bench/README.md).
# First: preprocess build --corpus tinyshakespeare --tokenizer char --document file \
#   --no-authors --eot none --name tinyshakespeare_char
base = "modern_recipe.py"
data = "tinyshakespeare_char"

token_shift = True  # lowers the loss by 0.05; an export needs trust_remote_code=True
n_layer = 4
n_head = 2  # two heads of size 64 learn more here than four of size 32
n_embd = 128
block_size = 64
dropout = 0.0  # few characters are read twice

batch_size = 12  # with larger batches, the same loss takes longer
max_steps = 200
muon_learning_rate = 0.03
muon_momentum = 0.9  # 200 steps are too few for 0.95
learning_rate = 0.015  # of the head
base_width = 128

eval_interval = 50
checkpoint_interval = 50

completion_tokens = 300
