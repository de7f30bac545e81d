"""The shard format, its readers and its writer. Both preprocess/ and train/ use this folder."""
