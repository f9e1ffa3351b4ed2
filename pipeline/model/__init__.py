"""One decoder for every model of the recipe, read from and written to Hugging Face checkpoints."""
