"""Examples on their way to a model: where they come from, how files are read, how batches are cut.

    sources.py   what can be fetched, from where, with which digest
    readers.py   files of labelled texts, the user's own and the benchmarks'
    vectors.py   pretrained word vectors
    batches.py   sequences of like lengths put together and padded

Nothing here knows a model or imports torch.
"""
