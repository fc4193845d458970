"""Turn a pre-trained image model into a video classifier by training a few million parameters."""
