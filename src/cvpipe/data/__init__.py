"""From files to uint8 batches: sources, splits, decoding, augmentation, loading."""
