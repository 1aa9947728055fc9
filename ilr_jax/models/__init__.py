"""Language models: one decoder, three families, adapters, heads, and the door to Hugging Face folders."""
