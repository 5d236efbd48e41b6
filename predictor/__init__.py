"""The length predictor: an encoder that says how long answers will be, and its training."""
