"""Features: passes that encode each image once, the cache they fill, and what probes read."""
