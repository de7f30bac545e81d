# Time: CPU (2 cores): not measured; consumer GPU: not measured; H100: 6 hours (estimate).
# GPT-2 124M with its own recipe on ten billion tokens of FineWeb-Edu: the settings of llm.c's
# scripts/run_gpt2_124M.sh, which took 94 minutes on 8 A100. configs/gpt2_124m.py needs far fewer
# tokens; the weights of this one load into Hugging Face's GPT-2. The time is estimated from the
# 465,300 tokens/s of one H100 in bench/README.md.
# First: preprocess build --corpus fineweb-edu (docs/recipes.md says where its files come from), or
# another large build by --data=NAME.
# On 8 GPUs: torchrun --nproc_per_node=8 train/train.py configs/plain_gpt2_124m.py
base = "gpt2_124m.py"

arch = "gpt2"
optimizer = "adamw"
embedding_learning_rate = None
learning_rate = 6e-4
min_lr = 0
beta1 = 0.9
beta2 = 0.95
weight_decay = 0.1
warmup_steps = 700
schedule = "cosine"
decay_steps = None
max_steps = 19_073
