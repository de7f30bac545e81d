# The recommended recipe, which other configs start from (`base = "modern_recipe.py"`): the modern
# architecture, Muon for the matrices of the blocks and AdamW for the rest, and a learning rate that
# falls linearly to 0. bench/README.md measures what each part gives. The recipe of GPT-2 is the
# defaults of all settings; configs/plain_*.py use it.
arch = "modern"
optimizer = "muon"
muon_learning_rate = 0.02
embedding_learning_rate = 0.3
learning_rate = 6e-3  # of the head
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0
warmup_steps = 0  # each of Muon's steps has the size that the learning rate says, also the first ones
schedule = "linear"
min_lr = 0
