"""The shard format, its readers and its writer. preprocess/ and train/ both use this folder."""
