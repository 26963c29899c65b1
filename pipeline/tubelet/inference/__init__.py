"""A model as people hand it around, its predictor, and the rows it gives, written exactly once."""
