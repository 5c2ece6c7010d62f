"""`shard`, `merge`, `bake`: from and to Hugging Face."""
