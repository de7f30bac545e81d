# Fine-tunes the model of configs/demo.py to answer questions, in a minute or two on two CPU cores. The
# loss counts only the replies, and each chat is read as if it were alone.
# First: folio train demo, then
#   preprocess build --corpus synthetic-chat --tokenizer shards/synthetic/tokenizer
# and afterwards: folio chat runs/chat
# For another model and your chats: --init_from=RUN --data=BUILD, and the sizes and the arch of the run.
base = "demo.py"
data = "synthetic-chat"
init_from = "runs/demo"

mask_documents = True
data_order = "epochs"  # three of them: so few chats are read more than once
max_steps = 1000
warmup_steps = 20
learning_rate = 1e-3  # half of that of the first training
min_lr = 0
weight_decay = 0.0

eval_interval = 200
eval_tokens = None
checkpoint_interval = 200

completion_author = None
completion_city = None
completion_year = None
temperature = 0.0  # the most likely reply
top_k = None
