"""Features of images -> numbers, one file a metric."""
