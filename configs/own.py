# Time: CPU (2 cores): more than an hour (estimate); consumer GPU: not measured; H100: not measured.
# A small GPT for your text: the sizes of configs/small.py.
# First: preprocess build --input 'data/*.jsonl' --name own; for a build of another name add
# --data=NAME --out_dir=runs/NAME.
base = "small.py"
data = "own"

dropout = 0.2  # set 0 for a text of many million tokens, which such a model does not overfit
completion_author = None
completion_year = None
