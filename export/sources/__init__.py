"""Where a checkpoint comes from: a folder, a zip, a hub id, one of Apple's archives."""
