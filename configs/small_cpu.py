# Time: CPU (2 cores): a minute; consumer GPU: not measured; H100: not measured.
# A small GPT on Shakespeare for a CPU (measured on an AMD EPYC), from a loss of 8.0 to 4.2, which
# is 2.2 bits per byte. Its tokenizer has 3,000 pieces. GPT-2's has 50,257, with which the head takes
# most of the time: 300 steps with half the context take twice as long and end at 2.3.
# First: preprocess build --corpus tinyshakespeare --tokenizer sentencepiece --name shakespeare
base = "small.py"
data = "shakespeare"

n_layer = 4
n_head = 2
n_embd = 128
block_size = 128
dropout = 0.0  # the run is too short to overfit

batch_size = 8
max_steps = 400
learning_rate = 0.015  # of the head
base_width = 128
eval_tokens = 8_192
