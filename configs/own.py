# Time: CPU (2 cores): more than an hour (estimate); consumer GPU: not measured; H100: not measured.
# A small GPT for your text: the sizes of configs/small.py or, with --minutes=10, those that fit the
# text and the time.
# First: preprocess build --input 'data/*.jsonl' --name own; for a build of another name add
# --data=NAME --out_dir=runs/NAME.
base = "small.py"
data = "own"

completion_author = None
completion_year = None
