"""An image as image features."""
