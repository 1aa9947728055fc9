"""What other machines answer: judges and embeddings behind an OpenAI-compatible endpoint, and an embedding that needs none.

No JAX and no task: texts go in, numbers come out. What is answered is kept on disk, so that nothing is asked, or paid for, twice.
"""
