"""The parts of `second_drawings.py`: colours, outlines, grounds, pictures, questions, scores."""
