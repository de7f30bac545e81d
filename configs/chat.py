# Time: CPU (2 cores): 2 minutes; consumer GPU: not measured; H100: not measured.
# Trains the model of configs/demo.py further, to answer questions.
# The loss counts only the replies, and each chat is read whole, as if it were alone.
# First: folio train demo, then
#   preprocess build --corpus synthetic-chat --tokenizer shards/synthetic/tokenizer
# and afterwards: folio chat runs/chat
# For another model and your own chats, set --init_from=RUN, --data=BUILD, and the arch and the sizes of RUN.
# A pretrained model needs a lower rate, such as --learning_rate=1e-4. A model that Muon has trained
# is trained further by Muon: --arch=modern --optimizer=muon --muon_learning_rate=0.01
# --learning_rate=3e-3 --embedding_learning_rate=0.1 --beta1=0.8 --schedule=linear --warmup_steps=0
base = "demo.py"
data = "synthetic-chat"
init_from = "runs/demo"

data_order = "documents"  # whole chats, packed into rows
mask_documents = True
num_epochs = 3  # max_steps is computed from it
warmup_steps = 150
learning_rate = 2e-3  # as in demo.py: the model has yet to learn to translate
min_lr = 0
base_width = None  # these rates are used as they are, for a model of any width
weight_decay = 0.0

eval_interval = 200
eval_tokens = None
checkpoint_interval = 200

completion_author = None
completion_city = None
completion_year = None
temperature = 0.0  # the most likely reply
