"""Training: losses, optimisers, jitted steps over K adapters, and the one loop that saves and goes on.

Not here: what is trained on what (`stages`), and how text becomes batches (`tokenizer`, `batches`).
"""
