"""The counted file - its layout and its codecs."""
