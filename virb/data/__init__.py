"""Images, datasets and samples: what lies on disk, how it is decoded, and how it becomes uint8 pixels."""
