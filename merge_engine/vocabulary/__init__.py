"""Models with different tokenizers: one vocabulary for the result, and the rows of every source in its order.

Light: from tokenizer files and headers alone. What is written is in `merge_engine.vocabulary.files`.
"""
