"""Decoding as a batch job: many requests of token ids in, samples or the best of a beam search out.

Not here: the model (`models`), text (`tokenizer`), and what is asked (`stages`).
"""
