"""The length predictor: an encoder that predicts how long answers will be, and its training."""
