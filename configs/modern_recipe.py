# Time: see the configs that start from it.
# The recommended recipe, which other configs start from (`base = "modern_recipe.py"`): the modern
# architecture, Muon for the matrices of the blocks and AdamW for the rest, and a learning rate that
# falls linearly to 0. bench/README.md has the measured effect of each part. The defaults of all
# settings are the recipe of GPT-2, which configs/plain_*.py use.
arch = "modern"
optimizer = "muon"
muon_learning_rate = 0.02
embedding_learning_rate = 0.3
learning_rate = 6e-3  # of the head
base_width = 384  # the width of these rates; a wider model has a lower learning_rate
beta1 = 0.8
beta2 = 0.95
weight_decay = 0.0
warmup_steps = 0  # the learning rate alone determines the size of Muon's updates, also of the first ones
schedule = "linear"
min_lr = 0
