"""Images to vectors, and which vectors are close: pure maths, no stage and no settings.

`encoders` makes float32 vectors from uint8 images; `search` compares two sets of such vectors
exactly, in an encoder's own metric: cosine (larger is closer) or l2 (smaller is closer).
"""
