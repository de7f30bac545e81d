"""What both halves share: the format on disk and the windows cut from it."""
