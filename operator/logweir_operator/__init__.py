"""The operator: the model of the custom resources, and what should run because of them."""
