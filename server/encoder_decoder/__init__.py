"""A server for encoder-decoders (T5, FLAN-T5, mT5, MADLAD), which llama-server cannot run."""
