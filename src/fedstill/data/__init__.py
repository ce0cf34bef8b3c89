"""Images in, shards out: loading, partitioning, augmenting."""
